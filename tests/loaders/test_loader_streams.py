"""Streams: which batches come when, over groups, epochs, validation runs, starts and ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from loading import each, host

from aioloader import Batch, DataGroup, Loader

WIDE = {"x": ((6,), "int32", "int32")}
NARROW = {"name": ((), "int64", "int32"), "half": ((2, 2), "float32", "bfloat16")}


def _load(item: Any, arrays: Any, seed: int | None) -> dict[str, object]:
    """Fill whatever arrays the item's group has."""
    for array in arrays.values():
        array[...] = item
    return {"arrays": sorted(arrays), "item": item}


def _groups() -> list[DataGroup[int]]:
    """Return groups of 2, 4 and 3 batches, of different sizes and layouts."""
    return [
        DataGroup(3, range(6), loader_arrays=WIDE, shuffle_later="repeat"),
        DataGroup(2, range(100, 108), loader_arrays=NARROW, shuffle_later="repeat"),
        DataGroup(5, range(50, 65), loader_arrays={**NARROW, **WIDE}, shuffle_later="repeat"),
    ]


def _held_out(batches: int = 2) -> DataGroup[int]:
    return DataGroup(2, range(20, 20 + 2 * batches), loader_arrays=NARROW)


def _loader(training: Any = None, **options: Any) -> Loader[int]:
    return Loader(_load, training or _groups(), **{"num_workers": 0, **options})


def _label(batch: Batch[Any]) -> str:
    """Name a batch by its kind and number: t7 is training batch 7, v3 validation batch 3."""
    if batch.is_training:
        return f"t{batch.batch_num}"
    return f"v{batch.validation_batch_num}"


async def _labels(loader: Loader[int], limit: int = 100) -> list[str]:
    seen: list[str] = []
    async with loader:
        async for batch in loader:
            seen.append(_label(batch))
            if len(seen) == limit:
                break
    return seen


INTERLEAVED = [0, 1, 2, 1, 2, 0, 1, 2, 1]
"""By the share that is used: 0; 0, 1/4; 0, 1/4, 1/3; and so on, ties to the earliest."""


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("interleave", [True, False])
async def test_groups_of_different_layouts_come_in_turns_or_one_after_the_other(
    interleave: bool, num_workers: int
) -> None:
    """Each batch is of one group, with its size, arrays and dtypes, and the right content."""
    groups = _groups()
    loader = _loader(
        groups, interleave_groups=interleave, end_at=("epoch", 2), num_workers=num_workers
    )
    seen = await each(
        loader, lambda b: (groups.index(b.group), b.group_index, list(b.data), host(b), b.layouts)
    )
    expected = INTERLEAVED if interleave else [0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert [group for group, *_ in seen] == expected * 2
    used = [0, 0, 0]
    for group, index, data, arrays, layouts in seen:
        assert index == used[group] % groups[group].batch_count
        used[group] += 1
        assert layouts is groups[group].loader_layouts
        assert set(arrays) == set(layouts)
        for name, array in arrays.items():
            assert array.shape == layouts[name].shape
            assert array.dtype == layouts[name].jax_dtype
            rows = array.reshape(len(data), -1)
            assert (rows == np.array(data)[:, None].astype(array.dtype)).all()


def test_an_epoch_has_all_groups_batches() -> None:
    """The counts that a program plans its schedule with."""
    loader = _loader(validation=("epoch", 1, [_held_out(), _held_out(3)]), end_at=("epoch", 4))
    assert (loader.batches_per_epoch, loader.batches_per_validation) == (9, 5)
    assert (loader.first_batch, loader.last_batch) == (0, 36)
    other = _loader(start_at=(2, 11))
    assert (other.first_batch, other.last_batch, other.batches_per_validation) == (29, None, 0)
    assert _loader(start_at=(1, 2), end_at=("batch", 12)).first_batch == 11
    assert _loader(end_at=("batch", 12)).last_batch == 12
    assert _loader().deterministic
    assert not _loader(deterministic=False).deterministic


VALIDATIONS: dict[str, tuple[tuple[str, int], str]] = {
    "every epoch": (("epoch", 1), "t0 t1 t2 v0 v1 t3 t4 t5 v2 v3 t6 t7 t8 v4 v5 t9 t10 t11 v6 v7"),
    "every second epoch": (
        ("epoch", 2),
        "t0 t1 t2 t3 t4 t5 v0 v1 t6 t7 t8 t9 t10 t11 v2 v3",
    ),
    "every two batches": (
        ("batch", 2),
        "t0 t1 v0 v1 t2 t3 v2 v3 t4 t5 v4 v5 t6 t7 v6 v7 t8 t9 v8 v9 t10 t11 v10 v11",
    ),
    "every five batches, across epochs": (
        ("batch", 5),
        "t0 t1 t2 t3 t4 v0 v1 t5 t6 t7 t8 t9 v2 v3 t10 t11",
    ),
    "later than the end": (("batch", 13), "t0 t1 t2 t3 t4 t5 t6 t7 t8 t9 t10 t11"),
}


def _three_batches() -> DataGroup[int]:
    return DataGroup(2, range(6), loader_arrays=NARROW)


@pytest.mark.parametrize("when", list(VALIDATIONS))
async def test_validation_runs_again_and_again(when: str) -> None:
    """In full, after each so many epochs or batches, also at the very end."""
    (unit, every), expected = VALIDATIONS[when]
    loader = _loader(_three_batches(), validation=(unit, every, _held_out()), end_at=("epoch", 4))
    assert " ".join(await _labels(loader)) == expected


@pytest.mark.parametrize("when", list(VALIDATIONS))
async def test_a_start_anywhere_is_the_rest_of_the_whole_stream(when: str) -> None:
    """At, before and after a boundary; what was due before the start is not done again."""
    (unit, every), expected = VALIDATIONS[when]
    whole = expected.split()
    for first in range(12):
        for epoch in range(first // 3 + 1):  # the batches may be more than an epoch has
            loader = _loader(
                _three_batches(),
                validation=(unit, every, _held_out()),
                start_at=(epoch, first - 3 * epoch),
                end_at=("batch", 12),
            )
            assert loader.first_batch == first
            assert await _labels(loader) == whole[whole.index(f"t{first}") :]


@pytest.mark.parametrize(
    ("start_at", "end_at", "expected"),
    [
        ((0, 0), ("batch", 1), "t0"),
        ((0, 0), ("epoch", 1), "t0 t1 t2 v0 v1"),
        ((0, 2), ("batch", 3), "t2 v0 v1"),
        ((1, 0), ("batch", 4), "t3"),
        ((1, 0), ("epoch", 2), "t3 t4 t5 v2 v3"),
        ((0, 7), ("epoch", 3), "t7 t8 v4 v5"),
        ((1, 7), ("batch", 12), "t10 t11 v6 v7"),
        ((2, 2), ("batch", 10), "t8 v4 v5 t9"),
    ],
)
async def test_the_end_is_absolute(start_at: Any, end_at: Any, expected: str) -> None:
    """In epochs or batches from the beginning, wherever the start; a run due there is done."""
    loader = _loader(
        _three_batches(), validation=("epoch", 1, _held_out()), start_at=start_at, end_at=end_at
    )
    assert " ".join(await _labels(loader)) == expected


async def test_without_an_end_there_is_none() -> None:
    """Epoch after epoch, validation included."""
    loader = _loader(_three_batches(), validation=("epoch", 1, _held_out()))
    seen = await _labels(loader, limit=500)
    assert len(seen) == 500
    assert [s for s in seen if s[0] == "t"] == [f"t{k}" for k in range(300)]
    assert [s for s in seen if s[0] == "v"] == [f"v{k}" for k in range(200)]


async def test_several_validation_groups_are_run_through_each_time() -> None:
    """Each of their batches once in every run, with layouts of their own."""
    held_out = [_held_out(1), _groups()[0], _held_out(2)]
    loader = _loader(_three_batches(), validation=("epoch", 1, held_out), end_at=("epoch", 3))
    seen = await each(
        loader,
        lambda b: (
            None
            if b.is_training
            else (b.validation_epoch, held_out.index(b.group), b.group_index, sorted(b.arrays))
        ),
    )
    runs = [entry for entry in seen if entry is not None]
    for run in range(3):
        ours = [entry[1:3] for entry in runs if entry[0] == run]
        assert sorted(ours) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(names == (["x"] if group == 1 else ["half", "name"]) for _, group, _, names in runs)


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("drop_remainder", [True, False])
async def test_every_row_of_an_epoch_comes_once(depth: int, drop_remainder: bool) -> None:
    """Shuffled, with or without a smaller last batch, at any depth."""
    group = DataGroup(
        4,
        range(50),
        loader_arrays=WIDE,
        shuffle_first=True,
        drop_remainder=drop_remainder,
        seed=depth,
    )
    loader = _loader(group, end_at=("epoch", 3), depth=depth)
    seen = await each(loader, lambda b: (b.epoch, list(b.indices)))
    for epoch in range(3):
        batches = [indices for number, indices in seen if number == epoch]
        rows = [index for batch in batches for index in batch]
        assert len(set(rows)) == len(rows) == (48 if drop_remainder else 50)
        assert [len(batch) for batch in batches] == [4] * 12 + ([] if drop_remainder else [2])


@pytest.mark.parametrize("mode", ["repeat", "reseed", "itemwise", "batchwise", "default"])
async def test_later_epochs_are_as_the_group_says(mode: str) -> None:
    """Order, contents of batches and seeds, kept or made anew."""
    group = DataGroup(2, range(16), loader_arrays=WIDE, shuffle_later=mode)
    loader = _loader(group, end_at=("epoch", 2))
    seen = await each(loader, lambda b: (tuple(b.indices), tuple(b.seeds), b.seed))
    first, second = seen[:8], seen[8:]
    same_order = [b[0] for b in first] == [b[0] for b in second]
    same_batches = {b[0] for b in first} == {b[0] for b in second}
    same_seeds = {(b[1], b[2]) for b in first} == {(b[1], b[2]) for b in second}
    assert (same_order, same_batches, same_seeds) == {
        "repeat": (True, True, True),
        "reseed": (True, True, False),
        "itemwise": (False, False, False),
        "batchwise": (False, True, True),
        "default": (False, False, False),
    }[mode]
    assert [b[0] for b in first] == [(2 * k, 2 * k + 1) for k in range(8)]
    if mode == "batchwise":  # a batch keeps its own seeds
        assert set(first) == set(second)


async def test_a_loader_goes_on_from_its_start_each_time_it_is_entered() -> None:
    """Leaving early does not move it; `set_state` does."""
    loader = _loader(_three_batches(), start_at=(0, 1), end_at=("epoch", 1))
    for limit in (1, 100, 1):
        assert await _labels(loader, limit) == ["t1", "t2"][:limit]
    loader.set_state(loader.get_state())
    for limit in (100, 100):
        assert await _labels(loader, limit) == ["t2"]
