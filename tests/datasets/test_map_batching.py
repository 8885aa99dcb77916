"""Batches: pytrees stacked leaf by leaf, cut at epochs, gathered at once where that is possible."""

from __future__ import annotations

import collections
import dataclasses
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from aioloader import MapDataset
from aioloader._datasets.batching import stack_elements


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Sample:
    image: Any
    label: Any
    unit: str = dataclasses.field(default="px", metadata={"static": True})


def same(one: Any, other: Any) -> bool:
    """Whether two trees are alike to the types of their leaves."""
    leaves, structure = jax.tree.flatten(one)
    others, other_structure = jax.tree.flatten(other)
    return structure == other_structure and all(
        type(a) is type(b) and a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(leaves, others, strict=True)
    )


TREES: dict[str, Any] = {
    "int": lambda i: i,
    "float": lambda i: i / 4,
    "bool": lambda i: i % 2 == 0,
    "complex": lambda i: complex(i, 1),
    "large": lambda i: 2**63 + i,
    "mixed": lambda i: i if i % 2 else i / 2,
    "string": lambda i: "x" * i,
    "bytes": lambda i: b"x" * (i + 1),
    "numpy": lambda i: np.float32(i),
    "array": lambda i: np.full((2, 3), i, np.int16),
    "transposed": lambda i: np.full((2, 3), i, np.uint8).T,
    "swapped": lambda i: np.full(2, i, ">i4"),
    "list": lambda i: [i, [np.zeros(2), "a"]],
    "tuple": lambda i: (i, (i, np.ones(1))),
    "namedtuple": lambda i: Pair(i, {"x": i}),
    "dict": lambda i: {"b": i, "a": np.full(3, i)},
    "dict of numbers": lambda i: {"b": i, "a": i / 2, "c": i > 1},
    "dict of dicts": lambda i: {"b": {"c": i, "a": (i,)}, "a": None},
    "ordered": lambda i: collections.OrderedDict(a=i, b=2 * i),
    "dataclass": lambda i: Sample(np.full((2, 2), i), i),
    "nothing": lambda i: {"a": None, "b": i},
    "jax": lambda i: jax.numpy.full(2, i),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("count", [1, 3])
def test_trees_are_stacked_leaf_by_leaf(name: str, count: int) -> None:
    """As numpy would stack each leaf, in containers of the same kind."""
    elements = [TREES[name](i) for i in range(count)]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *elements)
    assert same(stack_elements(elements), expected)
    assert same(MapDataset.source(elements).batch(count)[0], expected)


def test_static_fields_stay_as_they_are() -> None:
    batch = stack_elements([Sample(1, 2, "mm"), Sample(3, 4, "mm")])
    assert (type(batch), batch.unit, batch.image.tolist()) == (Sample, "mm", [1, 3])


def test_a_batch_of_nothing_is_nothing() -> None:
    assert stack_elements([None, None]) is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_has_memory_of_its_own(count: int) -> None:
    """Also one of a single element: whoever writes to it leaves the source as it was."""
    for source in (np.zeros((4, 3)), [np.zeros(3) for _ in range(4)], [{"x": np.zeros(3)}] * 4):
        batch = MapDataset.source(source).batch(count)[0]
        for leaf in jax.tree.leaves(batch):
            leaf[...] = 7
        assert all(leaf.sum() == 0 for leaf in jax.tree.leaves(list(source)))


DIFFERENT = "^Expected all input elements to have the same structure but got:"


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        (
            [np.zeros(2), np.zeros(3)],
            r" a leaf of shape \(2,\) in element 0, .* \(3,\) in element 1",
        ),
        ([0, np.zeros(1)], r" a leaf of shape \(\) in element 0, .* \(1,\) in element 1"),
        (
            [{"a": np.zeros(2)}, {"a": np.zeros(2)}, {"a": np.zeros((2, 1))}],
            r" leaf \['a'\] of shape \(2,\) in element 0, and of shape \(2, 1\) in element 2",
        ),
        (
            [{"a": [0, (np.zeros(2),)]}, {"a": [0, (np.zeros(3),)]}],
            r" leaf \['a'\]\[1\]\[0\] of shape \(2,\) in element 0, and of shape \(3,\)",
        ),
        ([{"a": 1}, {"b": 1}], r" leaves \['a'\] in element 0, and leaves \['b'\] in element 1"),
        (
            [{"a": 1}, {"a": 1, "b": 1}],
            r" leaves \['a'\] in element 0, and leaves \['a'\], \['b'\]",
        ),
        (
            [{"a": 1, "b": 1}, {"a": 1}],
            r" leaves \['a'\], \['b'\] in element 0, and leaves \['a'\]",
        ),
        ([(1, 2), [1, 2]], r".* containers are tuple\(a leaf, a leaf\) and list\(a leaf, a leaf\)"),
        ([1, None], " leaves itself in element 0, and leaves none in element 1"),
        ([{"a": None}, {"a": 1}], r" leaves none in element 0, and leaves \['a'\] in element 1"),
    ],
)
def test_what_does_not_stack_is_named(elements: list[Any], message: str) -> None:
    """The leaf, the elements, and both shapes or structures."""
    with pytest.raises(ValueError, match=DIFFERENT + message):
        MapDataset.source(elements).batch(len(elements))[0]


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 7])
def test_each_epoch_is_cut_up_on_its_own(size: int, drop: bool) -> None:
    """A smaller batch at its end, or none; whole ones across epochs after `repeat`."""
    base = MapDataset.range(5).shuffle(seed=1)
    dataset = base.batch(size, drop_remainder=drop)
    count = 5 // size if drop else -(-5 // size)
    assert len(dataset) == count
    for epoch in (-1, 0, 1) if count else ():
        found = [x for k in range(count) for x in dataset[epoch * count + k].tolist()]
        assert found == [base[5 * epoch + k] for k in range(len(found))]
        assert len(found) == (count * size if drop else 5)
    assert base.repeat(3).batch(size)[0].tolist() == [base[k] for k in range(size)]


def test_batches_of_what_is_infinite() -> None:
    """Their number is exact where floating point is not."""
    dataset = MapDataset.range(5).repeat().batch(2)
    assert len(dataset) == -(-sys.maxsize // 2)
    assert dataset[10**17].tolist() == [2 * 10**17 % 5, (2 * 10**17 + 1) % 5]


def test_a_batch_function_gets_a_list() -> None:
    """And makes of it what it likes."""
    dataset = MapDataset.range(5).batch(2, batch_fn=lambda x: (type(x), x))
    assert list(dataset) == [(list, [0, 1]), (list, [2, 3]), (list, [4])]
    arrays = MapDataset.source(np.arange(4)).batch(3, batch_fn=sum)
    assert list(arrays) == [3, 3]


@pytest.mark.parametrize("size", [0, -2])
def test_a_batch_has_elements(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
        MapDataset.range(5).batch(size)


def test_batches_cannot_follow_a_filter() -> None:
    """However far above it is; on an `IterDataset` they can."""
    odd = MapDataset.range(6).filter(lambda x: x % 2)
    mixed = MapDataset.mix([MapDataset.range(6), odd.map(abs).repeat(2)])
    for dataset in (odd, odd.map(abs).shuffle(seed=1), mixed):
        with pytest.raises(ValueError, match=r"write `.to_iter_dataset\(\).batch\(...\)`"):
            dataset.batch(2)
    assert [batch.tolist() for batch in odd.to_iter_dataset().batch(2)] == [[1, 3], [5]]


# one gather


class Watched(np.ndarray):
    """An array that is not asked for rows at once."""


ARRAYS: dict[str, np.ndarray] = {
    "rows": np.arange(300, dtype=np.float32).reshape(100, 3),
    "numbers": np.arange(100, dtype=np.int8),
    "bools": np.arange(100) % 3 == 0,
    "times": np.arange(100).astype("datetime64[s]"),
    "strings": np.array(["x" * (k % 7) for k in range(100)]),
    "objects": np.array([{"k": k} for k in range(100)], dtype=object),
    "records": np.array([(k, k / 2) for k in range(100)], dtype=[("a", "i4"), ("b", "f8")]),
    "swapped": np.arange(100, dtype=">i8"),
    "strided": np.arange(600).reshape(100, 6)[:, ::2],
    "subclass": np.arange(100).view(Watched),
}
PIPELINES: dict[str, Any] = {
    "source": lambda ds: ds,
    "shuffle": lambda ds: ds.shuffle(seed=1),
    "slice": lambda ds: ds.shuffle(seed=1)[90:3:-2],
    "repeat": lambda ds: ds.shuffle(seed=1).repeat(3),
    "same epochs": lambda ds: ds.shuffle(seed=1).repeat(3, reseed_each_epoch=False),
    "mix": lambda ds: type(ds).mix([ds.shuffle(seed=1), ds[::2], ds.repeat()], [1, 2, 0.5]),
    "concatenate": lambda ds: type(ds).concatenate([ds[:7], ds.shuffle(seed=2), ds[50:]]),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("array", ARRAYS)
def test_gathering_changes_nothing(array: str, pipeline: str) -> None:
    """Batches of an array are what stacking its elements one by one gives, to the bit."""
    make = PIPELINES[pipeline]
    gathered = make(MapDataset.source(ARRAYS[array])).batch(8)
    singly = make(MapDataset.source(list(ARRAYS[array]))).batch(8)
    assert len(gathered) == len(singly)
    for index in (-1, 0, 1, len(singly) - 1, len(singly), 3 * len(singly) + 2, 10**15):
        one, other = gathered[index], singly[index]
        assert same(one, other), index


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_an_array_is_read_by_one_gather(pipeline: str) -> None:
    """And none of its elements alone: stacking them would call the stage's `_each`."""
    dataset = PIPELINES[pipeline](MapDataset.source(ARRAYS["rows"]))
    assert dataset._stacked(range(8)).shape == (8, 3)


def test_arrays_in_files_are_gathered_into_memory(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "x", np.int32, "w+", shape=(10, 2))
    mapped[...] = np.arange(20).reshape(10, 2)
    batch = MapDataset.source(mapped).shuffle(seed=1).batch(4)[0]
    assert type(batch) is np.ndarray
    assert batch.tolist() == [mapped[i].tolist() for i in MapDataset.range(10).shuffle(seed=1)[:4]]


def test_indices_beyond_those_of_numpy_are_exact() -> None:
    """In a batch as for one element."""
    dataset = MapDataset.source(np.arange(7)).shuffle(seed=3)[1:6].repeat()
    batches = dataset.batch(4)
    beyond = len(batches)  # the first one that is after `sys.maxsize` elements
    assert batches[beyond].tolist() == [dataset[sys.maxsize + k] for k in range(4)]
    far = MapDataset.range(7).batch(3)
    assert far[3 * 2**70].tolist() == [0, 1, 2]
