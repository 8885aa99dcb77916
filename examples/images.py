"""Decode image files in worker processes, into batches that are sharded over two devices.

    python examples/images.py                # whatever images this machine has
    python examples/images.py holiday/       # files, and folders with all that is below them

Large images go into batches of 128 x 128 pixels and small ones into batches of 32 x 32: two
groups of different layouts, which take turns in one stream. Files are read by a coroutine on the
event loop, many at once, and decoded by Pillow in workers. The mean colour of each group, a
jitted computation over both devices, does not depend on the number of workers. It ends with one
line of figures.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import sysconfig
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from aioloader import DataGroup, Loader, run, wait_ready

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aioloader import Batch, LoaderStatistics

DEVICES = 2
SIDES = {"large": 128, "small": 32}
ENDINGS = (".gif", ".jpeg", ".jpg", ".png")
PLACES = (sysconfig.get_paths()["purelib"], sys.prefix, sys.base_prefix, "/usr/share")
MOST_FILES = 4000
MOST_PIXELS = 50_000_000


# In workers ---------------------------------------------------------------------------------------


def load(content: bytes, arrays: Mapping[str, np.ndarray], seed: int | None) -> dict[str, str]:
    """Decode a file's content into its row; a damaged file makes a row that is not valid."""
    pixels = arrays["image"]
    try:
        pixels[...] = np.asarray(crop(decode(content, pixels.shape[0]), pixels.shape[0], seed))
    except Exception as error:  # of a damaged file, Pillow may raise nearly anything
        pixels[...] = 0
        arrays["valid"][...] = False
        return {"damage": f"{type(error).__name__}: {error}"}
    arrays["valid"][...] = True
    return {}


def decode(content: bytes, side: int) -> Image.Image:
    """Decode grey, palette and transparent images alike to RGB, over white."""
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (2 * side, 2 * side))  # a JPEG need not be decoded at full size
        if not image.has_transparency_data:
            return image.convert("RGB")
        paint = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", paint.size, "white"), paint).convert("RGB")


def crop(image: Image.Image, side: int, seed: int | None) -> Image.Image:
    """Cut out a square, scale it to ``side`` and perhaps mirror it, all as the seed says."""
    rng = np.random.default_rng(seed)
    share, left, top, mirrored = rng.random(4) if seed is not None else (1.0, 0.5, 0.5, 1.0)
    edge = min(image.size) * (0.6 + 0.4 * share)
    x, y = (image.width - edge) * left, (image.height - edge) * top
    cut = image.resize((side, side), Image.Resampling.BILINEAR, box=(x, y, x + edge, y + edge))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored < 0.5 else cut


def hush() -> None:
    """Keep Pillow's remarks on odd files to itself: what matters comes back with the batch."""
    warnings.simplefilter("ignore")


# On the event loop --------------------------------------------------------------------------------


async def fetch(path: str) -> bytes:
    """Read a file. One that has gone since it was found is as good as damaged."""
    try:
        return await anyio.Path(path).read_bytes()
    except OSError:
        return b""


@dataclass(slots=True)
class Tally:
    """What was seen of a group. ``colour`` is a sum over ``valid`` images, on the devices."""

    name: str
    batches: int = 0
    valid: Any = 0
    colour: Any = 0
    shards: str = ""
    damaged: dict[str, str] = field(default_factory=dict)

    def add(self, batch: Batch[str]) -> None:
        """Add a batch; its arrays are read when the devices get to it."""
        self.batches += 1
        images, mask = batch.arrays["image"], batch.arrays["valid"]
        self.valid, self.colour = add(self.valid, self.colour, images, mask)
        sizes = images.sharding.shard_shape(images.shape)
        self.shards = f"{len(images.sharding.device_set)}x({','.join(map(str, sizes))})"
        for row, damage in enumerate(batch.get_additional("damage", default=())):
            if damage is not None:
                self.damaged[batch.get_data(row)] = damage

    def __str__(self) -> str:
        mean = np.asarray(self.colour) / max(int(self.valid), 1)
        colour = "".join(f"{round(255 * float(channel)):02x}" for channel in mean)
        return (
            f"{self.name}_images={int(self.valid)} {self.name}_batches={self.batches} "
            f"{self.name}_colour=#{colour} {self.name}_shards={self.shards}"
        )


@jax.jit
def add(
    valid: jax.Array, colour: jax.Array, images: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Add the number of valid images, and the sum of their mean colours."""
    means = jnp.mean(images / 255.0, axis=(1, 2)) * mask[:, None]
    return valid + mask.sum(), colour + means.sum(axis=0)


async def count_colours(loader: Loader[str], tallies: dict[Any, Tally]) -> LoaderStatistics:
    """Run the loader to its end."""
    async with loader:
        async for batch in loader:
            with batch:
                tallies[batch.group].add(batch)
        statistics = loader.statistics()
    await wait_ready([(tally.valid, tally.colour) for tally in tallies.values()])
    return statistics


# Files --------------------------------------------------------------------------------------------


def find(places: Iterable[str | Path]) -> list[str]:
    """Return the image files in and below ``places``, a fair choice if they are very many."""
    found = set()
    for place in places:
        if os.path.isfile(place):
            found.add(os.fspath(place))
        for folder, _, names in os.walk(place):
            found.update(os.path.join(folder, n) for n in names if n.lower().endswith(ENDINGS))
    return sorted(found)[:: max(len(found) // MOST_FILES, 1)]


def sort_out(paths: Iterable[str]) -> dict[str, list[str]]:
    """Part large and small images by their headers, and leave out what has none."""
    kinds: dict[str, list[str]] = {name: [] for name in SIDES}
    for path in paths:
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
                width, height = image.size
        except Exception:  # as above
            print(f"left out, no image: {path}")
            continue
        if width * height <= MOST_PIXELS:
            kinds["large" if min(width, height) >= SIDES["large"] else "small"].append(path)
    return kinds


def generate(folder: Path, count: int) -> None:
    """Write images of all kinds, and one that breaks off in the middle."""
    rng = np.random.default_rng(0)
    for number in range(count):
        low, high = ((24, 64), (160, 320))[number % 2]
        height, width = rng.integers(low, high, 2)
        slope = np.linspace(rng.random(3), rng.random(3), height * width)
        noise = rng.random((height, width, 3)) * 0.2
        pixels = ((slope.reshape(height, width, 3) * 0.8 + noise) * 255).astype(np.uint8)
        mode, ending = (("RGB", "jpg"), ("L", "png"), ("P", "gif"), ("RGBA", "png"))[
            number // 2 % 4
        ]
        Image.fromarray(pixels).convert(mode).save(folder / f"{number:03}.{ending}")
    broken = folder / "000.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])


# The program --------------------------------------------------------------------------------------


def make_groups(kinds: Mapping[str, Sequence[str]], batch_size: int) -> dict[DataGroup[str], Tally]:
    """Make a group of each kind of which there is a batch."""
    tallies = {}
    for name, paths in kinds.items():
        size = min(batch_size, len(paths) // DEVICES * DEVICES)
        if size == 0:
            continue
        side = SIDES[name]
        arrays = {"image": ((side, side, 3), "uint8", "uint8"), "valid": ((), "bool", "bool")}
        group = DataGroup(size, paths, loader_arrays=arrays, shuffle_first=True)
        tallies[group] = Tally(name)
        print(f"{name}: {len(paths)} files, {group.batch_count} batches of {size} in an epoch")
    return tallies


def make_sharding() -> jax.sharding.NamedSharding:
    """Share a batch's rows out over two devices, which the CPU is made to be."""
    mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")[:DEVICES]), ("rows",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))


async def main(options: argparse.Namespace, kinds: Mapping[str, Sequence[str]]) -> int:
    """Count the colours, print the figures, and return the exit status."""
    tallies = make_groups(kinds, options.batch_size)
    if not tallies:
        print("there are too few images", file=sys.stderr)
        return 2
    loader = Loader(
        load,
        tallies,
        fetch=fetch,
        place=make_sharding(),
        startup=hush,
        num_workers=options.num_workers,
        end_at=("epoch", options.epochs),
    )
    figures = await count_colours(loader, tallies)
    damaged = {path: why for tally in tallies.values() for path, why in tally.damaged.items()}
    for path, damage in sorted(damaged.items()):
        print(f"damaged: {path}: {damage}")
    print(
        *tallies.values(),
        f"damaged={len(damaged)} images_per_s={figures.rows_per_second:.0f} "
        f"idle={figures.idle_share:.2%} bound_by={figures.bound_by}",
    )
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Decode images in worker processes.")
    add_option = parser.add_argument
    add_option("paths", nargs="*", type=Path, help="image files and folders; else a search")
    add_option("--generate", action="store_true", help="make images instead of looking for them")
    add_option("--batch-size", type=int, default=16, help="images in a batch, an even number (16)")
    add_option("--epochs", type=int, default=3, help="how often every image is seen (3)")
    add_option("--num-workers", type=int, default=2, help="worker processes (2); 0 is a thread")
    options = parser.parse_args()
    if options.paths and options.generate:
        parser.error("--generate takes no paths")
    if options.batch_size < DEVICES or options.batch_size % DEVICES:
        parser.error(f"--batch-size {options.batch_size} is not a positive even number")
    return options


def work(options: argparse.Namespace) -> int:
    """Find images, or make some, and go through them."""
    kinds = {} if options.generate else sort_out(find(options.paths or PLACES))
    if options.paths or min(map(len, kinds.values()), default=0) >= DEVICES:
        return run(main(options, kinds))
    with tempfile.TemporaryDirectory() as folder:
        print("generating images" if options.generate else "found too few images: generating some")
        generate(Path(folder), 128)
        return run(main(options, sort_out(find([folder]))))


if __name__ == "__main__":
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES}"
    try:
        sys.exit(work(parse_options()))
    except KeyboardInterrupt:
        sys.exit(130)
