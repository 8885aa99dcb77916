"""A `MapDataset` as the data of loaders, and what they have for data as its source."""

from __future__ import annotations

from typing import Any

import numpy as np

from aioloader import DataGroup, DataLoader, Loader, MapDataset, run


def squares(length: int = 12) -> MapDataset[Any]:
    return MapDataset.range(length).seed(1).shuffle().map(lambda x: {"x": x, "y": x * x})


def test_it_is_the_dataset_of_a_data_loader() -> None:
    """Its order is that of the data, whoever loads it."""
    dataset = squares()
    expected = [np.array([dataset[k]["y"] for k in range(j, j + 4)]) for j in (0, 4, 8)]
    for num_workers in (0, 1):
        with DataLoader(dataset, 4, num_workers=num_workers) as loader:
            found = [minibatch["y"] for minibatch in loader.minibatches(None)]
            assert np.array_equal(found, expected)


def test_it_is_the_data_of_a_group() -> None:
    """The group's own order applies to it; here each epoch is as the first."""

    def load(item: dict[str, int], arrays: Any, seed: int | None) -> None:
        arrays["y"][...] = item["y"]

    dataset = squares()

    async def main() -> list[int]:
        arrays = {"y": ((), "int32", "int32")}
        group = DataGroup(4, dataset, loader_arrays=arrays, shuffle_later="repeat")
        async with Loader(load, group, num_workers=0, end_at=("epoch", 2)) as loader:
            return [y async for batch in loader for y in np.asarray(batch.arrays["y"]).tolist()]

    assert run(main()) == [dataset[k]["y"] for k in range(12)] * 2


def test_what_loaders_take_is_a_source() -> None:
    """Elements of a plain dataset, batched as a loader would."""

    class Squares:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> dict[str, int]:
            return {"x": index, "y": index**2}

    loader = DataLoader(Squares(), 4)
    batches = MapDataset.source(Squares()).batch(4, drop_remainder=True)
    for minibatch, batch in zip(loader.minibatches(None), batches, strict=True):
        assert minibatch.keys() == batch.keys()
        assert all(np.array_equal(minibatch[name], batch[name]) for name in batch)
