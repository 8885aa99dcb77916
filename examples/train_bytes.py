"""Train a small byte-level language model on the source of Python's own standard library.

    python examples/train_bytes.py             # a minute or two on two cores
    ^C                                         # saves a checkpoint, and says how to go on
    python examples/train_bytes.py --resume    # goes on with the very next batch

It ends with one line of figures. The digest in it is of all training batches, byte by byte and
in order: a run that was interrupted and resumed, however often and with whatever number of
workers, prints the same digest as one that was not. The model is in `byte_model`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import os
import shlex
import signal
import sys
import sysconfig
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import jax
import numpy as np
from byte_model import Model, State, make_model, replace_leaves
from tqdm import tqdm

from aioloader import DataGroup, Loader, TrainingBatch, run, wait_ready

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aioloader import Batch, LoaderStatistics

WINDOWS_APART = 16  # windows on a file begin so many of their lengths apart
HELD_OUT_EVERY = 20  # of so many files, one is held out
HELD_OUT_BATCHES = 8
VALIDATIONS = 8

Window = tuple[str, int, int]
"""A file, where a window on it begins, and by how much it may be moved."""


# The data: windows on files -----------------------------------------------------------------------


def load(window: Window, arrays: Mapping[str, np.ndarray], seed: int | None) -> None:
    """Read a window into its row: moved at random in training, as it is in validation."""
    path, offset, slack = window
    text = arrays["text"]
    if seed is not None:
        offset += seed % (slack + 1)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        read = file.readinto(text.data)
    if read != text.size:
        raise EOFError(f"{path} has become shorter: it ends before byte {offset + text.size}")


@dataclass(frozen=True, slots=True)
class Corpus:
    """The windows on all files, those to train on and those held out to validate with."""

    training: list[Window]
    held_out: list[Window]
    fingerprint: str


def find_corpus(window: int, batch_size: int) -> Corpus:
    """Return the windows on the standard library, in the same order every time."""
    root = sysconfig.get_paths()["stdlib"]
    length = window + 1  # the last byte is only a target
    found: dict[bool, list[Window]] = {False: [], True: []}
    files = [(path, size) for path, size in source_files(root) if size >= length]
    for number, (path, size) in enumerate(files):
        last = size - length
        for offset in range(0, last + 1, WINDOWS_APART * window):
            slack = min(WINDOWS_APART * window - 1, last - offset)
            where = os.path.join(root, path)
            found[number % HELD_OUT_EVERY == 0].append((where, offset, slack))
    held_out = HELD_OUT_BATCHES * batch_size
    step = max(len(found[True]) // held_out, 1)
    fingerprint = hashlib.blake2b(json.dumps(files).encode(), digest_size=8).hexdigest()
    return Corpus(found[False], found[True][::step][:held_out], fingerprint)


def source_files(root: str) -> list[tuple[str, int]]:
    """Return the Python files under ``root``, relative to it, and their sizes."""
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in ("site-packages", "dist-packages")]
        paths = [os.path.join(folder, name) for name in names if name.endswith(".py")]
        files += [(os.path.relpath(path, root), os.path.getsize(path)) for path in paths]
    return sorted(files)


# The checkpoint -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is of. It is kept in the checkpoint, and a resumed run goes by it."""

    steps: int
    batch_size: int
    window: int
    seed: int
    corpus: str

    @property
    def validation_period(self) -> int:
        """The number of training batches between validation runs."""
        return max(self.steps // VALIDATIONS, 1)


@dataclass(slots=True)
class Progress:
    """How far a run is. ``losses`` are of whole validation runs, ``parts`` of the present one."""

    batches: int = 0
    digest: str = ""
    losses: list[float] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)

    def add(self, batch: TrainingBatch[Window], text: jax.Array) -> None:
        """Chain a training batch's number and bytes, where they lie, to the digest."""
        chained = hashlib.blake2b(self.digest.encode(), digest_size=16)
        chained.update(batch.batch_num.to_bytes(8, "little"))
        chained.update(np.asarray(text).data)
        self.digest = chained.hexdigest()
        self.batches += 1

    def is_complete(self, settings: Settings) -> bool:
        """Tell whether nothing is left to do."""
        runs = settings.steps // settings.validation_period
        return self.batches == settings.steps and len(self.losses) == runs


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file: settings, progress, the loader's position, and the leaves of the state."""

    settings: Settings
    progress: Progress
    position: Mapping[str, Any]
    leaves: Sequence[np.ndarray]

    def write(self, directory: Path) -> None:
        """Replace the checkpoint in ``directory``, all of it or nothing."""
        facts = [asdict(self.settings), asdict(self.progress), self.position]
        buffer = io.BytesIO()
        np.savez(buffer, *self.leaves, facts=np.array(json.dumps(facts)))
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f"checkpoint.{os.getpid()}.tmp"
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / "checkpoint.npz")

    @classmethod
    def read(cls, directory: Path) -> Checkpoint:
        """Return the checkpoint in ``directory``."""
        with np.load(directory / "checkpoint.npz", allow_pickle=False) as saved:
            settings, progress, position = json.loads(str(saved["facts"]))
            leaves = [saved[f"arr_{index}"] for index in range(len(saved.files) - 1)]
        return cls(Settings(**settings), Progress(**progress), position, leaves)


# The loop -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Training:
    """A run: its loader, how far it is, and the bar that shows it."""

    settings: Settings
    progress: Progress
    loader: Loader[Window]
    directory: Path
    bar: tqdm[Any]
    stop_after: int | None

    async def run(self, leaves: Sequence[np.ndarray] | None) -> LoaderStatistics:
        """Train to the end, or until interrupted."""
        already = self.progress.batches
        async with self.loader as loader:
            with interrupted_by_signals(loader), self.bar:
                # Compiling takes a while, in which the workers load the first batches.
                model = await anyio.to_thread.run_sync(self.make_model)
                state = replace_leaves(model.state, leaves) if leaves else model.state
                async for batch in loader:
                    state = await self.take(batch, model, state)
                    if self.progress.batches - already == self.stop_after:
                        loader.interrupt()
                statistics = loader.statistics()
                await self.save(state)
        return statistics

    def make_model(self) -> Model:
        """Compile for this run's shapes."""
        settings = self.settings
        return make_model(settings.batch_size, settings.window, settings.steps, settings.seed)

    async def take(self, batch: Batch[Window], model: Model, state: State) -> State:
        """Train or validate with one batch."""
        with batch:
            text = batch.arrays["text"]
            if isinstance(batch, TrainingBatch):
                state, loss = model.train(state, text)
                self.progress.add(batch, text)  # while the device computes
                self.show(float(await wait_ready(loss)))
                return state
            loss = await wait_ready(model.validate(state, text))
        self.progress.parts.append(float(loss))
        if len(self.progress.parts) == self.loader.batches_per_validation:
            await self.end_validation(state)
        return state

    async def end_validation(self, state: State) -> None:
        """Note the mean loss of a validation run, and save."""
        progress = self.progress
        progress.losses.append(float(np.mean(progress.parts)))
        progress.parts.clear()
        line = f"validation after {progress.batches} batches: {progress.losses[-1]:.4f} nats/byte"
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()
        await self.save(state)

    async def save(self, state: State) -> None:
        """Write a checkpoint, off the event loop."""
        position = self.loader.get_state()
        leaves = jax.device_get(jax.tree.leaves(await wait_ready(state)))
        checkpoint = Checkpoint(self.settings, self.progress, position, leaves)
        await anyio.to_thread.run_sync(checkpoint.write, self.directory)

    def show(self, loss: float) -> None:
        """Move the bar on."""
        now = self.loader.statistics()
        figures = f"loss {loss:.3f}, {now.rows_per_second:.0f} rows/s, idle {now.idle_share:.1%}"
        self.bar.set_postfix_str(figures, refresh=False)
        self.bar.update()


@contextlib.contextmanager
def interrupted_by_signals(loader: Loader[Any]) -> Iterator[None]:
    """End the loader's stream on the first SIGINT or SIGTERM; a second one ends the program."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def restore() -> None:
        for number in signals:
            loop.remove_signal_handler(number)

    def interrupt() -> None:
        restore()
        loader.interrupt()

    for number in signals:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    finally:
        restore()


# The program --------------------------------------------------------------------------------------


def make_training(options: argparse.Namespace, saved: Checkpoint | None) -> Training:
    """Put a run together: a new one by the options, or a saved one as it was."""
    of = saved.settings if saved else options
    corpus = find_corpus(of.window, of.batch_size)
    arrays = {"text": ((of.window + 1,), "uint8", "uint8")}
    group = DataGroup(
        of.batch_size, corpus.training, loader_arrays=arrays, seed=of.seed, shuffle_first=True
    )
    held_out = DataGroup(of.batch_size, corpus.held_out, loader_arrays=arrays)
    if saved:
        settings = saved.settings
    else:
        steps = options.epochs * group.batch_count if options.epochs else options.steps
        settings = Settings(steps, of.batch_size, of.window, of.seed, corpus.fingerprint)
    if settings.corpus != corpus.fingerprint:
        raise ValueError("the checkpoint is of another version of the standard library")
    loader = Loader(
        load,
        group,
        validation=("batch", settings.validation_period, held_out),
        depth=options.depth,
        num_workers=options.num_workers,
        end_at=("batch", settings.steps),
    )
    if saved:
        loader.set_state(saved.position)
    progress = saved.progress if saved else Progress()
    bar = tqdm(total=settings.steps, initial=progress.batches, unit="batch", disable=options.quiet)
    return Training(settings, progress, loader, options.checkpoint, bar, options.stop_after)


async def main(options: argparse.Namespace, saved: Checkpoint | None) -> int:
    """Train, say how it went, and return the exit status."""
    try:
        training = make_training(options, saved)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    figures = await training.run(saved.leaves if saved else None)
    progress = training.progress
    if not progress.is_complete(training.settings):
        command = [sys.executable, sys.argv[0], "--resume", "--checkpoint", str(options.checkpoint)]
        print(f"interrupted after {progress.batches} batches, digest={progress.digest}")
        print(f"go on with: {shlex.join(command)}")
        return 0
    first, last = progress.losses[0], progress.losses[-1]
    print(
        f"first_loss={first:.4f} last_loss={last:.4f} rows_per_s={figures.rows_per_second:.0f} "
        f"idle={figures.idle_share:.2%} bound_by={figures.bound_by} digest={progress.digest}"
    )
    if last < first:
        return 0
    print(f"the validation loss did not fall: {progress.losses}", file=sys.stderr)
    return 1


def parse_options() -> argparse.Namespace:
    """Read the command line."""

    def count(text: str) -> int:
        if (number := int(text)) < 1:
            raise ValueError
        return number

    parser = argparse.ArgumentParser(description="Train on Python's own standard library.")
    add = parser.add_argument
    add("--steps", type=count, default=800, help="training batches (800)")
    add("--epochs", type=count, help="epochs, in place of --steps")
    add("--batch-size", type=count, default=32, help="windows in a batch (32)")
    add("--window", type=count, default=128, help="bytes in a window (128)")
    add("--seed", type=int, default=0, help="seed of the order, the windows and the model (0)")
    add("--num-workers", type=int, default=2, help="worker processes (2); 0 is a thread")
    add("--depth", type=count, default=3, help="batches that exist at once (3)")
    add("--checkpoint", type=Path, default=Path(".demo"), metavar="DIR", help="(.demo)")
    add("--resume", action="store_true", help="go on with the run that is saved in DIR, as it was")
    add("--quiet", action="store_true", help="show no progress bar")
    add("--stop-after", type=count, metavar="N", help="interrupt after N training batches")
    return parser.parse_args()


def read_checkpoint(directory: Path) -> Checkpoint:
    """Return the checkpoint to resume from, or exit and say why there is none."""
    try:
        return Checkpoint.read(directory)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise SystemExit(f"there is nothing to resume from in {directory}: {error}") from None


if __name__ == "__main__":
    given = parse_options()
    checkpoint = read_checkpoint(given.checkpoint) if given.resume else None
    try:
        sys.exit(run(main(given, checkpoint)))
    except KeyboardInterrupt:
        sys.exit(130)
