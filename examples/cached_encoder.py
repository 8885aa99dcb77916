"""Encode once, then read what was encoded from disk: three epochs and how fast each of them is.

python examples/cached_encoder.py [--cache DIRECTORY] [--workers N] [--images N] [--no-cache]

A fixed encoder turns images into codes in epoch 0. `Batch.cache` writes those, and epochs 1 and 2
map them from disk. The digest of each epoch is over what a model would be trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aioloader import DataGroup, Loader, run

SIDE, CODE = 96, 64
EPOCHS = 3


def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
    """Draw an image: circles on a noisy ground, which takes as long as decoding one."""
    rng = np.random.default_rng(item)
    image = rng.integers(0, 64, (SIDE, SIDE, 3), dtype=np.int64)
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(8):
        cy, cx, r = rng.integers(0, SIDE, 3)
        image[(y - cy) ** 2 + (x - cx) ** 2 < r**2 / 4] += rng.integers(0, 48, 3)
    arrays["image"][...] = np.clip(image, 0, 255)
    arrays["label"][...] = item % 10
    return {"name": f"image {item}"}


@jax.jit
def encode(images: jax.Array) -> jax.Array:
    """Return codes by a fixed random projection of patches, with a nonlinearity."""
    patches = images.reshape(len(images), SIDE // 8, 8, SIDE // 8, 8, 3).astype(jnp.float32)
    flat = patches.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), -1, 8 * 8 * 3) / 255
    kernel = jax.random.normal(jax.random.key(0), (8 * 8 * 3, CODE)) / 8
    return jnp.tanh(flat @ kernel).mean(axis=1)


async def main(args: argparse.Namespace, location: str | None) -> None:
    """Train, or pretend to, for three epochs."""
    group = DataGroup(
        32,
        range(args.images),
        loader_arrays={
            "image": ((SIDE, SIDE, 3), "uint8", "uint8"),
            "label": ((), "int32", "int32"),
        },
        cache_arrays={"code": ((CODE,), "float32", "float32"), "label": ((), "int32", "int32")},
        cache_location=location,
        shuffle_later="batchwise",
    )
    digest, started, rows = hashlib.blake2b(digest_size=8), time.perf_counter(), 0
    async with Loader(load, group, num_workers=args.workers, end_at=("epoch", EPOCHS)) as loader:
        async for batch in loader:
            if batch.uncached:
                code = encode(batch.arrays["image"])
                batch.cache({"code": code, "label": batch.arrays["label"]})
            for array in batch.arrays.values():
                digest.update(np.asarray(array).tobytes())
            digest.update(repr(batch.additional["name"]).encode())
            rows += len(batch.indices)
            if batch.epoch_batch == loader.batches_per_epoch - 1:
                seconds = time.perf_counter() - started
                counts = loader.statistics().cache
                print(
                    f"epoch={batch.epoch} rows_per_s={rows / seconds:.0f} hits={counts.hits} "
                    f"misses={counts.misses} digest={digest.hexdigest()}",
                    flush=True,
                )
                await loader.flush()
                digest, rows = hashlib.blake2b(digest_size=8), 0
                started = time.perf_counter()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cache", help="where to keep codes; a temporary directory by default")
    parser.add_argument("--no-cache", action="store_true", help="encode in every epoch")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=2048)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        where = None if arguments.no_cache else arguments.cache or temporary
        run(main(arguments, where))
