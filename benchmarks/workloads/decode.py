"""JPEG files of 256 by 256 pixels, decoded by Pillow: what is left for the work itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.loaders import LOADERS, SHORT_PEERS, Work
from benchmarks.workloads import THROUGHPUT, Column, Workload

if TYPE_CHECKING:
    from benchmarks.consumer import Columns, Proof
    from benchmarks.loaders import Row
    from benchmarks.program import Setting

BATCH, BATCHES, SIDE, FILES = 64, 160, 256, 64
HELD, HELD_BYTES = 16, 4096

WORKLOAD = Workload(
    title="decode: JPEG files of 256 x 256 pixels, batches of 64",
    columns={"rate": Column("images/s", ratio="more")}
    | {key: THROUGHPUT[key] for key in ("cpu_us", "pss_mib", "first_s")},
    limit="bare",
    loaders=("bare", *(name for name in LOADERS if name != "ours_vectorized")),
    short=("bare", "ours", *SHORT_PEERS),
    short_scale=0.3,
    reach="≥ 0.98 of two bare processes at ≤ 1.1 x their CPU",
    prepares=True,
)


class Decode:
    """Decode an item's file into its row.

    The same file takes the decoder 0.24 or 0.35 ms, by where on the heap its buffers happen to
    be, and most processes keep to one of the two: that would decide who is ahead. Small
    allocations of random sizes have everybody meet both.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._random = random.Random(0)
        self._held = [bytearray()] * HELD

    def __call__(self, item: int, arrays: Row, seed: int | None) -> None:
        size = self._random.randrange(HELD_BYTES)
        self._held[self._random.randrange(HELD)] = bytearray(size)
        with Image.open(f"{self.folder}/{item % FILES}.jpg") as image:
            arrays["image"][...] = np.asarray(image)
        arrays["item"][...] = item


def prepare(setting: Setting) -> None:
    """Write the files: smooth colours with some noise, as photographs have."""
    generator = np.random.default_rng(0)
    for number in range(FILES):
        coarse = generator.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth).astype(int) + generator.integers(-6, 7, (SIDE, SIDE, 3))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(Path(setting.scratch) / f"{number}.jpg", quality=85)


def work(setting: Setting) -> Work:
    """Return the work."""
    items = range(setting.times(BATCHES, 16) * BATCH)
    layout = {"image": ((SIDE, SIDE, 3), "uint8"), "item": ((1,), "int32")}
    return Work(items, layout, Decode(setting.scratch), BATCH)


def sample(arrays: Row) -> Columns:
    """Return the items, and a number made of some pixels."""
    image = arrays["image"]
    pixels = image[:, :: SIDE // 4, -1, :].reshape(len(image), -1).astype(np.int64)
    return arrays["item"][:, 0], pixels @ np.arange(1, pixels.shape[1] + 1)


def proof(given: Work) -> Proof:
    """Return how batches are recognized: by pixels from all over the image."""
    from benchmarks.consumer import Proof

    def witness(items: np.ndarray) -> np.ndarray:
        table = sample(given.batch(range(FILES)))[1]
        return table[items % FILES]

    return Proof(sample, witness)


def run(setting: Setting) -> dict[str, Any]:
    """Run one epoch."""
    given, adapter = work(setting), setting.adapter
    if hasattr(adapter, "measure"):
        return dict(adapter.measure(given))
    from benchmarks.consumer import Consumer, consume

    consumer = Consumer(given, proof(given))
    return consume(adapter.epoch(given), consumer)
