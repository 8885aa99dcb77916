"""ParquetSource where it is used: from disk, by datasets, workers and loaders."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tables import ALL, OBJECTS, ROWS, with_rows

from aioloader import DataGroup, Loader, MapDataset, MultiprocessingOptions
from aioloader.sources import ParquetSource

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files."""
    root = tmp_path_factory.mktemp("parquet")
    (root / "rows").mkdir()
    for key, data in OBJECTS.items():
        (root / key).write_bytes(data)
    return root


def test_a_path_or_a_url_may_be_of_a_folder_a_file_or_several(folder: Path) -> None:
    """Or a file may be named apart."""

    async def length(source: ParquetSource) -> int:
        return len(source)

    rows = folder / "rows"
    for place in (
        folder,
        rows,
        f"{folder}/",
        rows.as_uri(),
        f"{rows}/*.parquet",
        rows / "?.parquet",
    ):
        assert with_rows(length, place) == ROWS
    assert with_rows(length, rows / "1.parquet") == 20
    assert with_rows(length, folder, "rows/{0,1}.parquet") == 150


def test_pickled_it_is_open(folder: Path) -> None:
    """Without what is kept, which is made again."""

    async def main(source: ParquetSource) -> None:
        assert await source[5] == ALL[5]
        raw = pickle.dumps(source)
        assert len(raw) < 20_000
        other = pickle.loads(raw)
        assert await other[-1] == ALL[-1]
        assert other.statistics().requests == 1
        assert await pickle.loads(pickle.dumps(source.fetch))(6) == ALL[6]

    with_rows(main, folder)


def test_it_is_a_source_of_datasets(folder: Path) -> None:
    """For both kinds of loops, and in workers."""
    source = asyncio.run(ParquetSource(folder, columns=["label"]).open())
    dataset = MapDataset.source(source)[100:160].map(lambda row: int(row["label"]) + 1)
    wanted = list(range(101, 161))
    assert list(dataset) == wanted

    async def main() -> list[Any]:
        return [element async for element in dataset.to_iter_dataset()]

    assert asyncio.run(main()) == wanted
    options = MultiprocessingOptions(num_workers=1)
    with iter(dataset.to_iter_dataset().mp_prefetch(options)) as iterator:
        assert list(iterator) == wanted


def load(item: dict[str, Any], arrays: Any, seed: int | None) -> None:
    """Fill a row with what tells rows apart."""
    arrays["label"][...] = item["label"]
    arrays["length"][...] = len(item["image"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_fetches_by_it(folder: Path, workers: int) -> None:
    """Rows reach the load function whole."""

    async def main(source: ParquetSource) -> None:
        arrays = {"length": ((), "int64", "int32"), "label": ((), "int64", "int32")}
        group = DataGroup(30, range(len(source)), loader_arrays=arrays, seed=3)
        seen = {}
        async with Loader(
            load, group, fetch=source.fetch, num_workers=workers, end_at=("epoch", 1)
        ) as loader:
            async for batch in loader:
                lengths, labels = (np.asarray(batch.arrays[n]).tolist() for n in arrays)
                seen.update(zip(labels, lengths, strict=True))
        assert seen == {row["label"]: len(row["image"]) for row in ALL}
        assert source.statistics().failed == 0

    with_rows(main, folder)
