"""TarSource where it is used: by datasets, workers and loaders, and on S3."""

from __future__ import annotations

import asyncio
import pickle
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from shards import ALL, NAMES, OBJECTS, planned, with_source

from aioloader import DataGroup, Loader, MapDataset, MultiprocessingOptions
from aioloader.sources import TarSource

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards."""
    root = tmp_path_factory.mktemp("shards")
    (root / "train").mkdir()
    for key, data in OBJECTS.items():
        (root / key).write_bytes(data)
    return root


def test_pickled_it_is_open_and_makes_clients_of_its_own(folder: Path) -> None:
    """Its fetch alone, too; neither takes requests under way or figures along."""

    async def main(source: TarSource) -> None:
        assert await source[5] == ALL[5]
        other = pickle.loads(pickle.dumps(source))
        assert len(other) == 300
        assert other.statistics().requests == 0
        assert await other[-1] == ALL[-1]
        fetch = pickle.loads(pickle.dumps(source.fetch))
        assert await fetch(6) == ALL[6]
        assert fetch.policy == source.fetch.policy

    with_source(main, str(folder))


def test_it_is_a_source_of_datasets(folder: Path) -> None:
    """For both kinds of loops, and in workers."""

    def total(sample: dict[str, Any]) -> tuple[str, int]:
        return sample["__key__"], sum(bytes(sample["jpg"]))

    wanted = [(sample["__key__"], sum(sample["jpg"])) for sample in ALL[:24]]  # type: ignore[call-overload]
    source = asyncio.run(TarSource(str(folder), NAMES).open())
    dataset = MapDataset.source(source)[:24].map(total)
    assert list(dataset) == wanted

    async def main() -> list[Any]:
        return [element async for element in dataset.to_iter_dataset()]

    assert asyncio.run(main()) == wanted
    options = MultiprocessingOptions(num_workers=2)
    with iter(dataset.to_iter_dataset().mp_prefetch(options)) as iterator:
        assert list(iterator) == wanted


def load(item: dict[str, Any], arrays: Any, seed: int | None) -> dict[str, object]:
    """Fill a row with what tells samples apart."""
    arrays["length"][...] = len(item["jpg"])
    arrays["label"][...] = int(bytes(item["cls"]))
    return {"key": item["__key__"]}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_fetches_by_it(folder: Path, workers: int) -> None:
    """Its payloads reach the load function whole; requests are fewer than samples."""

    async def main(source: TarSource) -> None:
        arrays = {"length": ((), "int64", "int32"), "label": ((), "int64", "int32")}
        group = DataGroup(30, range(len(source)), loader_arrays=arrays, seed=3)
        seen = {}
        async with Loader(
            load, group, fetch=source.fetch, num_workers=workers, end_at=("epoch", 1)
        ) as loader:
            async for batch in loader:
                keys = batch.additional["key"]
                lengths, labels = (np.asarray(batch.arrays[n]).tolist() for n in arrays)
                seen.update(zip(keys, zip(lengths, labels, strict=True), strict=True))
        assert seen == {s["__key__"]: (len(s["jpg"]), int(s["cls"])) for s in ALL}  # type: ignore[arg-type, call-overload]
        figures = source.statistics()
        assert (figures.fetched, figures.failed, figures.in_flight) == (300, 0, 0)
        assert figures.requests < 300

    with_source(main, str(folder))


def test_s3_needs_no_more_requests_than_planned(s3: Any) -> None:
    """Listing, headers by ranges, and samples at random."""
    numbers = random.Random(5).choices(range(300), k=200)

    async def main(source: TarSource) -> None:
        opening = source.statistics().requests
        assert opening <= 1 + 2 * len(OBJECTS)
        elements = await asyncio.gather(*(source[number] for number in numbers))
        assert elements == [ALL[number] for number in numbers]
        plan = planned(source.index, numbers, 64 << 10, 4 << 20)
        assert source.statistics().requests - opening == len(plan) == 10
        assert s3.options["aws_secret_access_key"] not in repr(source)

    with_source(main, s3.bucket(OBJECTS), "train/*.tar", options=s3.options)
