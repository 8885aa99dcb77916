"""Trees: containers are taken apart and put together as JAX does it, without jax."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioloader._memory.tree import flatten, paths, stack, unflatten

Pair = namedtuple("Pair", ["left", "right"])
TREES = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
        | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(TREES)
def test_it_is_as_jax_does_it(tree: Any) -> None:
    """The same leaves in the same order, and the same paths to them."""
    structure, leaves = flatten(tree)
    assert leaves == jax.tree.leaves(tree)
    assert unflatten(structure, leaves) == tree
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    assert list(paths(structure)) == [jax.tree_util.keystr(path) for path, _ in flat]


@given(TREES, st.integers(1, 4))
def test_stacking_is_numpys_own_leaf_by_leaf(tree: Any, count: int) -> None:
    expected = jax.tree.map(lambda x: np.stack([x] * count), tree)
    assert str(stack([tree] * count)) == str(expected)


@dataclasses.dataclass(frozen=True)
class Sample:
    image: Any
    unit: str = dataclasses.field(default="px", metadata={"static": True})
    scale: float = dataclasses.field(default=1.0, metadata={"pytree_node": False})

    def __post_init__(self) -> None:
        if isinstance(self.image, np.ndarray) and self.image.ndim > 1:
            raise ValueError("one image")


def test_containers_keep_their_types() -> None:
    first: defaultdict[str, int] = defaultdict(int, a=1)
    trees = [[OrderedDict(b=2, a=1), first, Pair(1, 2), Sample(np.zeros(2))]] * 2
    ordered, default, pair, sample = stack(trees)
    assert (type(ordered), type(default), type(pair)) == (OrderedDict, defaultdict, Pair)
    assert default.default_factory is int
    assert (sample.unit, sample.scale, sample.image.shape) == ("px", 1.0, (2, 2))


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([], "no elements to stack"),
        ([{"a": 1}, {"b": 1}], r"element 1 has another structure .*\['b'\].*\['a'\]"),
        ([Sample(1), Sample(1, unit="mm")], "element 1 has another structure"),
        (
            [{"a": [np.zeros(3)]}, {"a": [np.zeros(3)]}, {"a": [np.zeros((2, 2))]}],
            r"leaf \['a'\]\[0\] has the shape \(3,\) in element 0 and \(2, 2\) in element 2",
        ),
        ([np.zeros(1), np.zeros(2)], r"it has the shape \(1,\)"),
    ],
)
def test_what_does_not_stack_is_named(elements: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack(elements)
