"""Tar shards for tests, made by the standard library."""

from __future__ import annotations

import asyncio
import io
import random
import tarfile
from typing import TYPE_CHECKING, Any

from aioloader.sources import TarIndex, TarSource
from aioloader.sources.coalescing import coalesce

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}


def tar_of(files: Mapping[str, bytes], form: str = "ustar") -> bytes:
    """Return a tar file of these."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=FORMATS[form]) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def samples(count: int, *, seed: int = 0, most: int = 900, folder: str = "") -> dict[str, bytes]:
    """Return files of samples: each a picture, a class, and sometimes a mask."""
    rng = random.Random(seed)
    files: dict[str, bytes] = {}
    for number in range(count):
        key = f"{folder}{seed:02}-{number:05}"
        files[f"{key}.jpg"] = rng.randbytes(rng.randrange(1, most))
        files[f"{key}.cls"] = str(number).encode()
        if number % 3 == 0:
            files[f"{key}.seg.PNG"] = rng.randbytes(rng.randrange(1, most))
    return files


def expected(files: Mapping[str, bytes]) -> list[dict[str, object]]:
    """Return the samples of files."""
    found: dict[str, dict[str, object]] = {}
    for name, content in files.items():
        folder, _, last = name.rpartition("/")
        stem, _, field = last.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        found.setdefault(key, {"__key__": key})[field.lower()] = content
    return list(found.values())


SHARDS = {
    f"train/{number:03}.tar": samples(30, seed=number, folder="d/" * (number % 2))
    for number in range(10)
}
OBJECTS = {
    key: tar_of(files, list(FORMATS)[n % 3]) for n, (key, files) in enumerate(SHARDS.items())
}
ALL = [sample for files in SHARDS.values() for sample in expected(files)]
NAMES = "train/{000..009}.tar"


def with_source(
    main: Callable[[TarSource], Coroutine[Any, Any, Any]], store: Any, *args: Any, **options: Any
) -> Any:
    """Run a function of an open source to its end."""

    async def run() -> Any:
        async with TarSource(store, *(args or (NAMES,)), **options) as source:
            return await main(source)

    return asyncio.run(run())


def planned(index: TarIndex, numbers: Sequence[int], gap: int, most: int) -> list[tuple[Any, ...]]:
    """Return the ranges that the planning function predicts."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for number in numbers:
        spans.setdefault(index[number].shard, []).extend(index[number].spans)
    return sorted(
        (index.shards[shard].key, *read[:2])
        for shard, parts in spans.items()
        for read in coalesce([part for part in parts if part[0] < part[1]], gap=gap, most=most)
    )
