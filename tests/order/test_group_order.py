"""The order of one group: how it is cut, shuffled and seeded, epoch by epoch."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioloader._order.group_order import GroupOrder, ShuffleLater
from aioloader._order.permutation import LONGEST

if TYPE_CHECKING:
    from aioloader._order.group_epoch import GroupBatch

MODES: list[ShuffleLater] = ["repeat", "reseed", "itemwise", "batchwise"]

orders = st.builds(
    lambda length, size, **rest: GroupOrder(length, min(size, length), **rest),
    length=st.one_of(st.integers(1, 300), st.integers(4000, 9000)),
    size=st.one_of(st.integers(1, 40), st.integers(1, 5000)),
    seed=st.integers(-3, 3),
    shuffle_first=st.booleans(),
    shuffle_later=st.sampled_from(MODES),
    drop_remainder=st.booleans(),
)

Value = tuple[int, list[int], int | None, list[int] | None]


def value(batch: GroupBatch) -> Value:
    """Turn a batch into something that compares by value."""
    seeds = None if batch.seeds is None else list(batch.seeds)
    return batch.group_index, list(batch.indices), batch.seed, seeds


def values(order: GroupOrder, epoch: int, stream: int | None = 0) -> list[Value]:
    return [value(batch) for batch in order.read(epoch, stream=stream)]


def items(order: GroupOrder, epoch: int) -> list[int]:
    return [int(item) for batch in order.read(epoch) for item in batch.indices]


def all_seeds(order: GroupOrder, epochs: range, stream: int) -> list[int]:
    batches = [batch for epoch in epochs for batch in order.read(epoch, stream=stream)]
    rows = [seed for batch in batches for seed in batch.seeds or ()]
    return rows + [batch.seed for batch in batches if batch.seed is not None]


@pytest.mark.parametrize("mode", MODES)
def test_the_first_epoch_goes_in_the_order_of_the_data(mode: ShuffleLater) -> None:
    """Without shuffle_first the first epoch is the data, as plain ranges."""
    order = GroupOrder(10, 3, shuffle_later=mode)
    assert [batch.indices for batch in order.read(0)] == [range(0, 3), range(3, 6), range(6, 9)]
    assert [batch.group_index for batch in order.read(0)] == [0, 1, 2]


@pytest.mark.parametrize("mode", MODES)
def test_shuffle_first_shuffles_the_first_epoch(mode: ShuffleLater) -> None:
    """The first epoch is the same permutation of the items whatever comes later."""
    order = GroupOrder(40, 8, shuffle_first=True, shuffle_later=mode)
    assert items(order, 0) == items(GroupOrder(40, 8, shuffle_first=True), 0)
    assert items(order, 0) != sorted(items(order, 0)) == list(range(40))


@pytest.mark.parametrize("shuffle_first", [False, True])
def test_repeat_repeats_the_first_epoch(shuffle_first: bool) -> None:
    """Order, group indices and seeds are those of the first epoch."""
    order = GroupOrder(50, 7, shuffle_first=shuffle_first, shuffle_later="repeat")
    assert values(order, 3) == values(order, 0)


@pytest.mark.parametrize("shuffle_first", [False, True])
def test_reseed_changes_the_seeds_alone(shuffle_first: bool) -> None:
    """The order is that of the first epoch, no seed is."""
    order = GroupOrder(50, 7, shuffle_first=shuffle_first, shuffle_later="reseed")
    assert items(order, 3) == items(order, 0)
    first, later = (all_seeds(order, range(epoch, epoch + 1), 0) for epoch in (0, 3))
    assert set(first).isdisjoint(later)


@pytest.mark.parametrize("shuffle_first", [False, True])
def test_itemwise_shuffles_anew_in_every_epoch(shuffle_first: bool) -> None:
    """No two epochs have one order, and group indices count up in each."""
    order = GroupOrder(50, 7, shuffle_first=shuffle_first)
    epochs = [tuple(items(order, epoch)) for epoch in range(5)]
    assert len(set(epochs)) == 5
    assert [batch.group_index for batch in order.read(4)] == list(range(7))


@pytest.mark.parametrize("shuffle_first", [False, True])
def test_batchwise_moves_whole_batches(shuffle_first: bool) -> None:
    """Each batch of the first epoch comes back with its contents, index and seeds."""
    order = GroupOrder(5000, 7, shuffle_first=shuffle_first, shuffle_later="batchwise")
    first, second, third = (values(order, epoch) for epoch in range(3))
    assert first != second != third != first
    assert sorted(second) == sorted(third) == sorted(first)


def test_batchwise_moves_the_short_batch_too() -> None:
    """The short batch keeps its few rows, and comes at other times in other epochs."""
    order = GroupOrder(10, 4, shuffle_later="batchwise", drop_remainder=False)
    epochs = [[list(batch.indices) for batch in order.read(epoch)] for epoch in range(20)]
    assert {epoch.index([8, 9]) for epoch in epochs} == {0, 1, 2}


@settings(deadline=None, max_examples=50)
@given(orders, st.integers(0, 4))
def test_an_epoch_has_every_item_once(order: GroupOrder, epoch: int) -> None:
    """Nothing comes twice, and without drop_remainder nothing is missing."""
    seen = items(order, epoch)
    assert len(set(seen)) == len(seen)
    kept = order.batch_count * order.batch_size if order.drop_remainder else order.length
    assert len(seen) == kept
    assert set(seen) <= set(range(order.length))


def test_itemwise_leaves_out_other_items_in_each_epoch() -> None:
    """Dropping the remainder starves no item."""
    order = GroupOrder(10, 4)
    dropped = {frozenset(range(10)) - set(items(order, epoch)) for epoch in range(1, 12)}
    assert len(dropped) > 3


@settings(deadline=None, max_examples=50)
@given(st.data(), orders, st.integers(0, 3), st.sampled_from([None, 0, 2]))
def test_reading_equals_random_access(
    data: st.DataObject, order: GroupOrder, epoch: int, stream: int | None
) -> None:
    """Blocks of batches, wherever they begin, hold what each batch is by itself."""
    batches = order.epoch(epoch, stream=stream)
    assert len(batches) == order.batch_count
    start = data.draw(st.integers(0, order.batch_count))
    step = max(1, order.batch_count // 50)
    read = list(order.read(epoch, start, stream=stream))
    assert len(read) == order.batch_count - start
    for number in range(start, order.batch_count, step):
        assert value(batches[number]) == value(read[number - start])


def test_indices_are_ranges_or_read_only_arrays() -> None:
    """A batch in order is a range; a permuted one an int64 array that nobody can spoil."""
    order = GroupOrder(100, 7)
    assert isinstance(next(order.read(0)).indices, range)
    indices = next(order.read(1)).indices
    assert isinstance(indices, np.ndarray)
    assert indices.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        indices[0] = 0


@pytest.mark.parametrize("mode", MODES)
def test_group_seeds_make_other_orders(mode: ShuffleLater) -> None:
    """Two seeds differ in the items' order, or in the batches'."""
    one, two = (GroupOrder(100, 5, seed, True, mode) for seed in (1, 2))
    assert items(one, 0) != items(two, 0)
    assert items(one, 1) != items(two, 1)
    plain = [GroupOrder(100, 5, seed, shuffle_later="batchwise") for seed in (1, 2)]
    assert items(plain[0], 1) != items(plain[1], 1)


@pytest.mark.parametrize("mode", ["reseed", "itemwise"])
@pytest.mark.parametrize("drop_remainder", [False, True])
def test_no_seed_comes_twice(mode: ShuffleLater, drop_remainder: bool) -> None:
    """Seeds differ between epochs, batches, rows, and groups whose seed is the same."""
    order = GroupOrder(50, 7, shuffle_later=mode, drop_remainder=drop_remainder)
    seeds = [seed for stream in range(3) for seed in all_seeds(order, range(6), stream)]
    rows = 49 if drop_remainder else 50
    assert len(seeds) == 3 * 6 * (rows + order.batch_count)
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("mode", ["repeat", "batchwise"])
def test_seeds_stay_with_their_rows(mode: ShuffleLater) -> None:
    """Where batches are not reseeded, an item has one seed for good, and no two share it."""
    order = GroupOrder(50, 7, shuffle_later=mode, drop_remainder=False)
    first, later = (
        {
            item: seed
            for _, rows, _, seeds in values(order, epoch)
            for item, seed in zip(rows, seeds or (), strict=True)
        }
        for epoch in (0, 5)
    )
    assert first == later
    assert len(set(first.values())) == 50


def test_seeds_have_nothing_to_do_with_the_shuffle() -> None:
    """The row's place in its epoch decides its seed, not the item that the shuffle put there."""
    kept, shuffled = (GroupOrder(50, 7, shuffle_later=mode) for mode in ("reseed", "itemwise"))
    assert all_seeds(kept, range(4), 0) == all_seeds(shuffled, range(4), 0)


def test_other_group_seeds_are_other_item_seeds() -> None:
    """Changing a group's seed changes the seed of every row."""
    one, two = (all_seeds(GroupOrder(50, 7, seed), range(3), 0) for seed in (0, 1))
    assert set(one).isdisjoint(two)


def test_batches_without_a_stream_have_no_seeds() -> None:
    """Validation is not seeded."""
    batch = next(GroupOrder(10, 2).read(1))
    assert (batch.seed, batch.seeds) == (None, None)


@pytest.mark.parametrize("epoch", [2**62, 2**64, 10**30])
def test_no_epoch_is_too_late(epoch: int) -> None:
    """Counters wrap around instead of overflowing."""
    order = GroupOrder(10**12, 256)
    batch = next(order.read(epoch, order.batch_count - 1, stream=0))
    assert len(set(batch.seeds or ())) == 256
    assert 0 <= min(batch.indices) <= max(batch.indices) < 10**12


@pytest.mark.parametrize("length", [10**9, 10**18, LONGEST])
def test_huge_groups_are_read_from_anywhere(length: int) -> None:
    """The last batches of a huge group, the short one among them, cost no more than the first."""
    order = GroupOrder(length, 1000, drop_remainder=False)
    batches = list(order.read(3, order.batch_count - 3))
    assert [len(batch.indices) for batch in batches] == [1000, 1000, length % 1000 or 1000]
    seen = np.concatenate([batch.indices for batch in batches])
    assert len(np.unique(seen)) == len(seen)


def test_epochs_read_side_by_side_do_not_disturb_each_other() -> None:
    """An order has no state: many readers may share it."""
    order = GroupOrder(10_000, 10)
    readers = [order.read(epoch) for epoch in (1, 2, 1)]
    for one, other, again in islice(zip(*readers, strict=True), 500):
        assert list(one.indices) == list(again.indices) != list(other.indices)


def test_a_batch_larger_than_the_data_is_one_short_batch() -> None:
    """Without drop_remainder even a single item is a batch, however large batches are."""
    order = GroupOrder(3, 10**20, shuffle_first=True, drop_remainder=False)
    assert order.batch_count == 1
    assert sorted(items(order, 0)) == sorted(items(order, 9)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"length": LONGEST + 1}, ValueError, "length must be at most"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, r"batch_size must be a whole number, got 2\.0"),
        ({"batch_size": 11}, ValueError, "batch_size=11 is more than the 10 .*drop_remainder=Fal"),
        ({"batch_size": True}, TypeError, "batch_size must be a whole number, got True"),
        ({"seed": "a"}, TypeError, "seed must be a whole number, got 'a'"),
        (
            {"shuffle_later": "default"},
            ValueError,
            "shuffle_later must be .*, got 'default'",
        ),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message has the parameter, the value, and what to do where that is not plain."""
    with pytest.raises(error, match=message):
        GroupOrder(**{"length": 10, "batch_size": 2} | arguments)


def test_numpy_integers_become_plain_ones() -> None:
    """NumPy's would overflow in later arithmetic, and print differently."""
    order: Any = GroupOrder(np.int32(10), np.uint8(2), np.int64(-1), np.True_)  # type: ignore[arg-type]
    assert order == GroupOrder(10, 2, -1, True)
    assert repr(order) == repr(GroupOrder(10, 2, -1, True))
    with pytest.raises(FrozenInstanceError):
        order.length = 3


def test_every_item_gets_every_place() -> None:
    """Over epochs an item is in each batch about equally often."""
    order = GroupOrder(20, 5)
    places = [[item // 5 for item in items(order, epoch)] for epoch in range(1, 400)]
    counts = np.array([np.bincount(column, minlength=4) for column in zip(*places, strict=True)])
    assert abs(counts - 399 / 4).max() < 60
    assert all(one != other for one, other in pairwise(places))


def test_seeds_are_the_same_for_good() -> None:
    """What a run was seeded with must not change under a resumed one."""
    order = GroupOrder(10, 4, seed=5, drop_remainder=False)
    batch = order.epoch(2, stream=1)[2]
    assert batch.seed == 5861085674188749243
    assert list(batch.seeds or ()) == [7521974773380832561, 5365272686638177615]
