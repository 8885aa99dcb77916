"""Batches: every member of what a loader delivers, in training and in validation."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import pytest
from loading import each

from aioloader import Batch, DataGroup, Loader, TrainingBatch, ValidationBatch

ARRAYS = {"x": ((2,), "int64", "int32"), "y": ((), "uint8", "float32")}
NAMES = ["ada", "bob", "cy", "dee", "eve", "fay", "gil", "hal", "ida", "joe"]


def _load(item: str, arrays: Any, seed: int | None) -> dict[str, object]:
    arrays["x"][...] = (ord(item[0]), len(item))
    arrays["y"][...] = ord(item[1])
    extras: dict[str, object] = {"seed": seed, "length": len(item)}
    if item.endswith("e"):
        extras["ends in e"] = item.upper()
    return extras


def _group(**options: Any) -> DataGroup[str]:
    return DataGroup(4, NAMES, loader_arrays=ARRAYS, **options)


def _loader(group: DataGroup[str] | None = None, **options: Any) -> Loader[str]:
    options = {"end_at": ("epoch", 1), "num_workers": 0, "depth": 9} | options
    return Loader(_load, group or _group(), **options)


async def _batches(loader: Loader[str] | None = None) -> list[Any]:
    return await each(loader or _loader(), lambda batch: batch)


async def test_arrays_are_read_only_and_by_name() -> None:
    """`get_array(name)` is `arrays[name]`; an unknown name is a KeyError."""
    batch, *_ = await _batches()
    assert isinstance(batch.arrays, MappingProxyType)
    assert list(batch.arrays) == ["x", "y"]
    assert all(isinstance(array, jax.Array) for array in batch.arrays.values())
    assert batch.get_array("x") is batch.arrays["x"]
    assert batch.arrays["x"].tolist() == [[97, 3], [98, 3], [99, 2], [100, 3]]
    assert batch.arrays["y"].tolist() == [100.0, 111.0, 121.0, 101.0]
    assert (batch.arrays["x"].dtype, batch.arrays["y"].dtype) == ("int32", "float32")
    with pytest.raises(KeyError):
        batch.get_array("z")
    with pytest.raises(TypeError):
        batch.arrays["x"] = None


async def test_additional_data_have_a_value_for_every_row() -> None:
    """None where the row returned no such key."""
    first, second = await _batches()
    assert isinstance(first.additional, MappingProxyType)
    assert set(first.additional) == {"seed", "length", "ends in e"}
    assert list(first.additional["length"]) == [3, 3, 2, 3]
    assert list(first.additional["ends in e"]) == [None, None, None, "DEE"]
    assert list(second.additional["ends in e"]) == ["EVE", None, None, None]
    assert all(isinstance(column, Sequence) for column in first.additional.values())
    with pytest.raises(TypeError):
        first.additional["more"] = [1, 2, 3, 4]


async def test_additional_data_can_be_asked_for_with_a_default() -> None:
    """For one row or for all; the default stands where there is nothing."""
    batch, *_ = await _batches()
    assert list(batch.get_additional("length")) == [3, 3, 2, 3]
    assert batch.get_additional("length", 2) == 2
    assert batch.get_additional("length", index=-2) == 2
    assert batch.get_additional("ends in e", 3, default="no") == "DEE"
    assert batch.get_additional("ends in e", 0) is None
    assert batch.get_additional("ends in e", 0, default="no") == "no"
    assert batch.get_additional("nothing") is None
    assert batch.get_additional("nothing", default="no") == "no"
    assert batch.get_additional("nothing", 1, default="no") == "no"
    with pytest.raises(IndexError):
        batch.get_additional("length", 4)


async def test_falsy_additional_data_are_data() -> None:
    """Zero, an empty string and False are not taken for their absence."""

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        return {"value": [0, "", False, 0.0][item]}

    group = DataGroup(4, range(4), loader_arrays=ARRAYS)
    loader = Loader(load, group, end_at=("epoch", 1), num_workers=0)
    (values,) = await each(
        loader, lambda b: [b.get_additional("value", i, default="absent") for i in range(4)]
    )
    assert values == [0, "", False, 0.0]


async def test_a_batch_without_additional_data_has_none() -> None:
    """An empty mapping, not None."""

    def load(item: str, arrays: Any, seed: int | None) -> None: ...

    loader = Loader(load, _group(), end_at=("epoch", 1), num_workers=0)
    assert await each(loader, lambda batch: dict(batch.additional)) == [{}, {}]


async def test_data_are_the_rows_descriptors() -> None:
    """A sequence: by index from both ends, by slice, in order."""
    _, batch = await _batches()
    assert isinstance(batch.data, Sequence)
    assert list(batch.data) == NAMES[4:8]
    assert len(batch.data) == 4
    assert [batch.data[i] for i in range(-4, 4)] == NAMES[4:8] * 2
    assert list(batch.data[1:-1]) == NAMES[5:7]
    assert list(batch.data[::-2]) == [NAMES[7], NAMES[5]]
    assert (batch.get_data(0), batch.get_data(-1)) == ("eve", "hal")
    assert batch.data.index("gil") == 2
    assert batch.data.count("ada") == 0
    assert "fay" in batch.data
    assert "ada" not in batch.data
    for index in (4, -5):
        with pytest.raises(IndexError):
            batch.data[index]
        with pytest.raises(IndexError):
            batch.get_data(index)


@pytest.mark.parametrize("shuffle", [False, True])
async def test_indices_are_those_of_the_rows_in_their_group(shuffle: bool) -> None:
    """Plain integers that lead to the data, in the order of the rows."""
    group = _group(shuffle_first=shuffle, seed=5)
    seen: list[int] = []
    for batch in await _batches(_loader(group)):
        assert isinstance(batch.indices, Sequence)
        assert all(type(index) is int for index in batch.indices)
        assert [group[i] for i in batch.indices] == list(batch.data)
        assert batch.arrays["x"][:, 0].tolist() == [ord(name[0]) for name in batch.data]
        assert list(batch.indices[-2:]) == list(batch.indices)[2:]
        seen += batch.indices
    assert len(set(seen)) == 8
    assert (seen == list(range(8))) is not shuffle


async def test_a_batch_knows_where_it_is_from() -> None:
    """Its group, its index there, its layouts and whether it is cached."""
    group = _group()
    batches = await _batches(_loader(group))
    assert [batch.group_index for batch in batches] == [0, 1]
    for batch in batches:
        assert batch.group is group
        assert batch.uncached
        assert batch.layouts is group.loader_layouts
        assert {n: (a.shape, a.dtype) for n, a in batch.arrays.items()} == {
            n: (layout.shape, layout.jax_dtype) for n, layout in batch.layouts.items()
        }


async def test_a_group_index_means_the_same_batch_in_every_epoch_that_moves_batches() -> None:
    """With "batchwise" shuffling contents go with the index."""
    group = DataGroup(2, range(16), loader_arrays=ARRAYS, shuffle_later="batchwise")

    def load(item: int, arrays: Any, seed: int | None) -> None: ...

    loader = Loader(load, group, end_at=("epoch", 3), num_workers=0)
    pairs = await each(loader, lambda b: (b.group_index, list(b.data)))
    assert all(data == [2 * index, 2 * index + 1] for index, data in pairs)
    assert pairs[:8] != pairs[8:16] != pairs[16:]


async def test_a_training_batch_says_when_it_is() -> None:
    """Epoch, batch of the epoch and of all, and the seeds that `load` got."""
    batches = await _batches(_loader(end_at=("epoch", 2), start_at=(0, 1)))
    assert [(b.epoch, b.epoch_batch, b.batch_num) for b in batches] == [
        (0, 1, 1),
        (1, 0, 2),
        (1, 1, 3),
    ]
    for batch in batches:
        assert type(batch) is TrainingBatch
        assert isinstance(batch, Batch)
        assert batch.is_training
        assert not batch.is_validation
        assert list(batch.seeds) == list(batch.additional["seed"])
        assert all(type(seed) is int and 0 <= seed < 2**63 for seed in (batch.seed, *batch.seeds))
        assert batch.seed not in batch.seeds


async def test_a_validation_batch_says_when_it_is() -> None:
    """Run, batch of the run and of all; its items have no seeds."""
    held_out = _group()
    loader = _loader(validation=("batch", 1, held_out), end_at=("batch", 2))
    batches = [b for b in await _batches(loader) if not b.is_training]
    assert [
        (b.validation_epoch, b.validation_epoch_batch, b.validation_batch_num) for b in batches
    ] == [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)]
    for batch in batches:
        assert type(batch) is ValidationBatch
        assert isinstance(batch, Batch)
        assert batch.is_validation
        assert batch.group is held_out
        assert list(batch.additional["seed"]) == [None] * 4
        assert not hasattr(batch, "seed")
        assert not hasattr(batch, "epoch")


async def test_a_smaller_last_batch_is_smaller_in_everything() -> None:
    """Arrays, layouts, data, indices, seeds and additional data, all of two rows."""
    group = _group(drop_remainder=False)
    *_, whole, last = await _batches(_loader(group))
    assert {n: a.shape for n, a in last.arrays.items()} == {"x": (2, 2), "y": (2,)}
    assert last.layouts == {
        "x": ((2, 2), np.dtype("int64"), np.dtype("int32"), 0, 4),
        "y": ((2,), np.dtype("uint8"), np.dtype("float32"), 64, 2),
    }
    assert list(last.data) == ["ida", "joe"]
    assert (last.get_data(-1), list(last.indices)) == ("joe", [8, 9])
    assert list(last.seeds) == list(last.additional["seed"])
    assert {key: len(column) for key, column in last.additional.items()} == dict.fromkeys(
        ("seed", "length", "ends in e"), 2
    )
    assert list(last.additional["ends in e"]) == [None, "JOE"]
    assert last.uncached
    assert last.arrays["x"].tolist() == [[105, 3], [106, 3]]
    assert whole.layouts is group.loader_layouts


async def test_with_ends_the_batchs_own_references_and_nothing_else() -> None:
    """The arrays are gone from the batch, also when the block raises; the rest is still told."""
    batch, other = await _batches()
    with batch as same:
        assert same is batch
        kept = batch.arrays["y"]
    for attempt in (lambda: batch.arrays, lambda: batch.get_array("x")):
        with pytest.raises(RuntimeError, match=r"batch 0 of training group 0.*released"):
            attempt()
    assert list(batch.data) == NAMES[:4]
    assert batch.get_additional("length", 0) == 3
    assert kept.tolist() == [100.0, 111.0, 121.0, 101.0]
    batch.release()
    with pytest.raises(KeyError, match="own"), other:
        raise KeyError("own")
    with pytest.raises(RuntimeError, match="released"):
        _ = other.arrays


async def test_a_released_batch_takes_no_slot() -> None:
    """More batches than depth may be kept, once they are released."""
    loader = _loader(_group(shuffle_later="repeat"), depth=2, end_at=("epoch", 4), timeout=10)
    shelf = []
    async with loader:
        async for batch in loader:
            batch.release()
            shelf.append(batch)
    assert [list(batch.data) for batch in shelf] == [NAMES[:4], NAMES[4:8]] * 4


async def test_a_batch_tells_what_it_is() -> None:
    batch, _ = await _batches()
    assert repr(batch) == "<TrainingBatch: batch 0 of training group 0, epoch 0: x, y>"
    batch.release()
    assert repr(batch).endswith("epoch 0: released>")
    assert repr(batch.data) == "['ada', 'bob', 'cy', 'dee']"
