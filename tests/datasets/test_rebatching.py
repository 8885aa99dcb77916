"""Batches of another size, and batches that are padded."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from walking import check_walks, walk

from aioloader import MapDataset
from aioloader._datasets.extras import RebatchIterDataset
from aioloader._datasets.rebatching import batch_and_pad


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), max_size=9), st.integers(1, 7), st.booleans())
def test_rows_stay_in_order(sizes: list[int], size: int, drop_remainder: bool) -> None:
    """Whatever the sizes before, empty batches among them, and from every position on."""
    ends = np.cumsum(sizes, dtype=int)
    batches = [{"x": np.arange(e - n, e), "y": None} for n, e in zip(sizes, ends, strict=True)]
    dataset = MapDataset.source(batches).to_iter_dataset()
    rebatched = RebatchIterDataset(dataset, size, drop_remainder)
    total = sum(sizes)
    kept = total - total % size if drop_remainder else total
    made = list(rebatched)
    assert [int(x) for batch in made for x in batch["x"]] == list(range(kept))
    assert all(len(batch["x"]) == size for batch in made[: kept // size])
    if len(sizes) < 5:
        check_walks(rebatched)


def test_rebatching_goes_on_behind_errors() -> None:
    """With the rows it had, whether the parent raises or a batch is none."""
    batches: list[Any] = [np.arange(3), {"x": 1}, np.arange(3, 5), "no batch", np.arange(5, 8)]

    def check(batch: Any) -> Any:
        if isinstance(batch, str):
            raise OSError("gone")
        return batch

    dataset = MapDataset.source(batches).to_iter_dataset().map(check)
    seen = check_walks(RebatchIterDataset(dataset, 4))
    assert [x[2] if x[0] == "int64" else x for x in seen] == [
        ("ValueError", "leaf ['x'] of a batch is no array, and cannot be taken apart"),
        [0, 1, 2, 3],
        ("OSError", "gone"),
        [4, 5, 6, 7],
    ]


def test_batches_of_different_structures_are_not_mixed() -> None:
    """Within one batch; between batches they may change."""
    batches = [{"x": np.arange(2)}, {"y": np.arange(2)}, {"x": np.arange(2, 4)}]
    seen = walk(iter(RebatchIterDataset(MapDataset.source(batches).to_iter_dataset(), 4)))
    assert seen[0] == ("ValueError", "a batch has another structure than those before it")
    assert seen[1]["x"][2] == [0, 1, 2, 3]
    assert len(list(RebatchIterDataset(MapDataset.source(batches).to_iter_dataset(), 2))) == 3


def test_slices_of_one_batch_are_not_copied() -> None:
    """Only what comes of several is."""
    whole = np.arange(8)
    dataset = MapDataset.source([whole]).to_iter_dataset()
    assert all(np.shares_memory(batch, whole) for batch in RebatchIterDataset(dataset, 3))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        RebatchIterDataset(dataset, 0)


def test_the_last_batch_is_padded() -> None:
    """In every leaf, with a mask beside it or in it."""
    elements = [{"x": np.full(2, k, np.float32), "y": (f"s{k}", None)} for k in range(1, 4)]
    for mask in (True, "real"):
        padded = functools.partial(batch_and_pad, batch_size=2, pad_value=-1, mask=mask)
        for dataset in (MapDataset.source(elements), MapDataset.source(elements).to_iter_dataset()):
            *_, last = dataset.batch(2, batch_fn=padded)
            batch, real = last if mask is True else (last, last["real"])
            assert batch["x"].tolist() == [[3, 3], [-1, -1]]
            assert batch["x"].dtype == np.float32
            assert batch["y"][0].tolist() == ["s3", ""]
            assert batch["y"][1] is None
            assert real.tolist() == [True, False]


def test_what_cannot_be_padded_is_an_error() -> None:
    """Nothing at all, too much, and a mask that has no place."""
    for values in ([], [1, 2, 3]):
        with pytest.raises(ValueError, match="elements do not make a batch of 2"):
            batch_and_pad(values, batch_size=2)
    for element in (1, {"m": 1}):
        with pytest.raises(ValueError, match="mask='m' cannot be a new entry of a batch"):
            batch_and_pad([element], batch_size=2, mask="m")
