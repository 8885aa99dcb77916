"""The examples, as a user runs them: in short, to their end, interrupted and resumed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from support import descendants, is_alive

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = ("--steps", "400", "--batch-size", "4", "--window", "32")
VALIDATED = re.compile(r"validation after \d+ batches: \d+\.\d+ nats/byte")
BAR = re.compile(r"\s*(\d+%\|.*)?")

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Ended:
    """A program that has ended."""

    status: int
    lines: list[str]
    errors: str

    @property
    def figures(self) -> dict[str, str]:
        """The last line's ``name=value`` pairs."""
        return dict(re.findall(r"(\S+)=(\S+)", self.lines[-1]))


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Half of what a short run takes is compiling; all programs of this file share what comes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


def start(*command: str) -> subprocess.Popen[str]:
    """Start a program as a terminal would: in a process group of its own."""
    root = str(EXAMPLES.parent)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
    )


def end(program: subprocess.Popen[str]) -> Ended:
    """Wait for a program's end."""
    try:
        output, errors = program.communicate(timeout=120)
    finally:
        program.kill()
    return Ended(program.returncode, output.splitlines(), errors)


def train(*options: str) -> Ended:
    """Run the training example."""
    return end(start(sys.executable, str(EXAMPLES / "train_bytes.py"), *options))


def images(*options: str) -> Ended:
    """Run the image example."""
    return end(start(sys.executable, str(EXAMPLES / "images.py"), *options))


def test_digits_are_read_by_a_model_trained_over_two_devices() -> None:
    """The example ends with status 1 below 95 %."""
    ended = end(start(sys.executable, str(EXAMPLES / "digits.py")))
    assert (ended.status, ended.errors) == (0, "")
    assert re.fullmatch(r"devices=2 test_accuracy=0\.9[5-9]\d\d", ended.lines[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A short training run that nothing interrupts."""
    return train(*SHORT, "--checkpoint", str(tmp_path_factory.mktemp("whole")))


def test_training_lowers_the_validation_loss_and_says_so_in_one_line(whole: Ended) -> None:
    """Eight validation runs, then the figures; nothing on stderr but the bar."""
    assert whole.status == 0, whole.errors
    assert sum(bool(VALIDATED.fullmatch(line)) for line in whole.lines) == 8
    assert len(whole.lines) == 9
    assert float(whole.figures["last_loss"]) < float(whole.figures["first_loss"]) < 5.6
    assert int(whole.figures["rows_per_s"]) > 0
    assert whole.figures["idle"].endswith("%")
    assert whole.figures["bound_by"] in ("consumer", "load")
    assert re.fullmatch(r"[0-9a-f]{32}", whole.figures["digest"])
    assert all(BAR.fullmatch(line) for line in re.split(r"[\r\n]", whole.errors)), whole.errors
    assert "400/400" in whole.errors


def test_a_run_that_stopped_goes_on_with_the_very_next_batch(whole: Ended, tmp_path: Path) -> None:
    """The command that the first run prints ends in the whole run's digest and losses."""
    where = ("--checkpoint", str(tmp_path / "not" / "there yet"))
    stopped = train(*SHORT, *where, "--stop-after", "130", "--quiet")
    assert (stopped.status, stopped.errors) == (0, "")
    # What was loaded already is trained with, too.
    assert re.match(r"interrupted after 13[0-3] batches, ", stopped.lines[-2])
    assert whole.figures["digest"] not in stopped.lines[-2]

    command = shlex.split(stopped.lines[-1].removeprefix("go on with: "))
    resumed = end(start(*command, "--num-workers", "1", "--depth", "5", "--quiet"))
    assert (resumed.status, resumed.errors) == (0, "")
    assert_same_outcome(resumed, whole)


def test_ctrl_c_and_sigterm_end_a_run_that_can_be_resumed(whole: Ended, tmp_path: Path) -> None:
    """Twice interrupted by signals, the run still ends in the whole run's digest."""
    command = [sys.executable, str(EXAMPLES / "train_bytes.py"), "--checkpoint", str(tmp_path)]
    program = start(*command, *SHORT, "--quiet")
    interrupt_after_validation(program, signal.SIGINT, group=True, workers_at_least=2)
    program = start(*command, "--resume", "--quiet", "--num-workers", "0")
    interrupt_after_validation(program, signal.SIGTERM, group=False, workers_at_least=0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]
    resumed = train("--checkpoint", str(tmp_path), "--resume", "--quiet")
    assert (resumed.status, resumed.errors) == (0, "")
    assert_same_outcome(resumed, whole)


def interrupt_after_validation(
    program: subprocess.Popen[str], number: signal.Signals, *, group: bool, workers_at_least: int
) -> None:
    """Signal a run after its next validation, and see that it ends well and leaves nothing."""
    assert program.stdout is not None
    line = program.stdout.readline()
    workers = descendants(program.pid)
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in workers]
    (os.killpg if group else os.kill)(program.pid, number)
    ended = end(program)
    assert VALIDATED.fullmatch(line.strip()), (line, ended)
    assert (ended.status, ended.errors) == (0, "")
    assert ended.lines[-1].startswith("go on with: ")
    assert len(maps) >= workers_at_least
    assert not any("jaxlib" in text for text in maps)
    assert not any(is_alive(pid) for pid in workers)


def assert_same_outcome(resumed: Ended, whole: Ended) -> None:
    """Compare what must not depend on where a run was interrupted."""
    assert resumed.figures["digest"] == whole.figures["digest"]
    for name in ("first_loss", "last_loss"):
        assert float(resumed.figures[name]) == pytest.approx(float(whole.figures[name]), rel=1e-3)


def test_training_says_why_it_fails(tmp_path: Path) -> None:
    """Exit statuses are for scripts, reasons for people."""
    nothing = train("--resume", "--checkpoint", str(tmp_path))
    assert nothing.status == 1
    assert nothing.errors.startswith(f"there is nothing to resume from in {tmp_path}")

    small = ("--batch-size", "2", "--window", "16", "--quiet", "--num-workers", "0")
    short = train("--steps", "1", "--checkpoint", str(tmp_path), *small)
    assert short.status == 1
    assert short.errors.startswith("the validation loss did not fall")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Images in one colour of all kinds, one that breaks off, and one that is none."""
    folder = tmp_path / "album"
    folder.mkdir()
    red = Image.new("RGB", (150, 140), (200, 40, 10))
    red.save(folder / "1.png")
    red.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "2.gif")
    see_through = Image.new("RGBA", (130, 200), (200, 40, 10, 255))
    see_through.save(folder / "3.png")
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8)
    Image.fromarray(noise).save(folder / "4.png")
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:40_000])
    Image.new("L", (20, 60), 100).save(folder / "5.png")
    Image.new("LA", (60, 20), (0, 0)).save(folder / "6.png")  # nothing to see: white
    (folder / "7.jpg").write_text("no image")
    return folder


def test_images_of_all_kinds_come_out_in_their_colours(album: Path) -> None:
    """Means over two devices are exact; the damaged file is named, and costs only itself."""
    ended = images(str(album), "--epochs", "2")
    assert (ended.status, ended.errors) == (0, "")
    figures = ended.figures
    assert figures["large_colour"] == "#c8280a"
    assert (figures["large_images"], figures["large_batches"]) == ("6", "2")
    assert figures["large_shards"] == "2x(2,128,128,3)"
    assert figures["small_colour"] == "#b2b2b2"  # half of 100, half of 255
    assert (figures["small_images"], figures["small_batches"]) == ("4", "2")
    assert figures["small_shards"] == "2x(1,32,32,3)"
    assert figures["damaged"] == "1"
    assert figures["bound_by"] in ("fetch", "load", "place", "consumer")
    assert f"left out, no image: {album / '7.jpg'}" in ended.lines
    assert any(line.startswith(f"damaged: {album / '4.png'}: OSError") for line in ended.lines)


def test_generated_images_come_out_the_same_from_a_thread() -> None:
    """Random crops depend on seeds alone, and not on who decodes."""
    ours, theirs = images("--generate"), images("--generate", "--num-workers", "0")
    assert (ours.status, ours.errors) == (theirs.status, theirs.errors) == (0, "")
    for name in ("large_colour", "small_colour", "large_images", "small_images", "damaged"):
        assert ours.figures[name] == theirs.figures[name], name
    assert int(ours.figures["images_per_s"]) > 0


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    """Images that were asked for are not replaced by others."""
    ended = images(str(tmp_path))
    assert (ended.status, ended.errors) == (2, "there are too few images\n")


def signals(state: Path) -> subprocess.Popen[str]:
    """Start the example of signals."""
    return start(sys.executable, str(EXAMPLES / "signals.py"), str(state))


def lines_until(program: subprocess.Popen[str], number: signal.Signals, *, group: bool) -> Ended:
    """Signal a program when it has printed a few lines; returns it with all its lines."""
    assert program.stdout is not None
    first = [program.stdout.readline().rstrip() for _ in range(20)]
    workers = descendants(program.pid)
    (os.killpg if group else os.kill)(program.pid, number)
    ended = end(program)
    assert len(workers) >= 2
    assert not any(is_alive(pid) for pid in workers)
    return Ended(ended.status, first + ended.lines, ended.errors)


def test_sigterm_and_ctrl_c_lose_no_batch_and_repeat_none(tmp_path: Path) -> None:
    """The lines of three runs, two of them ended by a signal, are those of a single one."""
    whole = end(signals(tmp_path / "whole.json"))
    assert (whole.status, whole.errors) == (0, "")
    assert [int(line.split()[0]) for line in whole.lines] == list(range(200))

    state = tmp_path / "state.json"
    parts = []
    for number, group in ((signal.SIGTERM, False), (signal.SIGINT, True)):
        part = lines_until(signals(state), number, group=group)
        assert (part.status, part.errors) == (0, "")
        assert len(part.lines) >= 20
        parts += part.lines
        assert json.loads(state.read_text())["position"] == len(parts)
    assert len(parts) < 200
    rest = end(signals(state))
    assert (rest.status, rest.errors) == (0, "")
    assert parts + rest.lines == whole.lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "whole.json"]
