"""Batching: elements stacked leaf by leaf, and a batch that stands for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aioloader._memory.tree import flatten, paths, unflatten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioloader._memory.tree import Structure

__all__ = ["stack_elements"]

_DIFFERENT = "Expected all input elements to have the same structure but got:"

# What NumPy makes of a list of one of these it would make of them one by one, too.
_KINDS = {int: "i", float: "f", bool: "b"}


def stack_elements(elements: Sequence[Any]) -> Any:
    """Return a pytree whose leaves are those of ``elements``, stacked along a new first axis.

    Leaves become numpy arrays of their own memory, strings and numbers too; None stays None.
    Raises :class:`ValueError` where structures or shapes differ, and names the leaf.

    >>> stack_elements([{"x": (1, "a"), "y": None}, {"x": (2, "bc"), "y": None}])
    {'x': (array([1, 2]), array(['a', 'bc'], dtype='<U2')), 'y': None}
    """
    if not elements:
        raise ValueError("there are no elements to stack")
    kinds = {type(element) for element in elements}
    if len(kinds) == 1:
        kind = next(iter(kinds))
        if kind is np.ndarray or kind in _KINDS:
            return _stack_leaf("", elements)
        if kind is dict:
            stacked = _stack_dicts(elements)
            if stacked is not None:
                return stacked
    return _stack_trees(elements)


def _stack_dicts(elements: Sequence[dict[Any, Any]]) -> dict[Any, Any] | None:
    """Stack flat dictionaries, which are most elements there are; None if they are not flat."""
    first = elements[0]
    for value in first.values():
        if type(value) is not np.ndarray and type(value) not in _KINDS:
            return None
    columns = {}
    for key in first:
        try:
            column = [element[key] for element in elements]
        except KeyError:
            return None
        kinds = {type(leaf) for leaf in column}
        if len(kinds) > 1:
            return None
        columns[key] = column
    if any(len(element) != len(first) for element in elements):
        return None
    structure, _ = flatten(first)
    return {key: _stack_leaf(f"[{key!r}]", columns[key]) for key in structure[3]}


def _stack_trees(elements: Sequence[Any]) -> Any:
    structure, _ = flatten(elements[0])
    columns: list[list[Any]] = []
    for number, element in enumerate(elements):
        other, leaves = flatten(element)
        if other != structure:
            raise ValueError(
                f"{_DIFFERENT} leaves {_names(structure)} in element 0, and leaves "
                f"{_names(other)} in element {number}{_containers(structure, other)}"
            )
        columns.append(leaves)
    stacked = [
        _stack_leaf(path, [leaves[k] for leaves in columns])
        for k, path in enumerate(paths(structure))
    ]
    return unflatten(structure, stacked)


def _stack_leaf(path: str, column: Sequence[Any]) -> np.ndarray:
    kind = type(column[0])
    if kind in _KINDS and all(type(leaf) is kind for leaf in column):
        together = np.array(column)
        if together.dtype.kind == _KINDS[kind] and together.dtype.itemsize in (1, 8):
            return together
    arrays = [np.asarray(leaf) for leaf in column]
    shape = arrays[0].shape
    for number, array in enumerate(arrays):
        if array.shape != shape:
            where = f"leaf {path}" if path else "a leaf"
            raise ValueError(
                f"{_DIFFERENT} {where} of shape {shape} in element 0, and of shape "
                f"{array.shape} in element {number}"
            )
    return np.stack(arrays)


def _names(structure: Structure) -> str:
    return ", ".join(path or "itself" for path in paths(structure)) or "none"


def _containers(one: Structure, other: Structure) -> str:
    """Say what differs where the names of leaves do not."""
    if _names(one) != _names(other):
        return ""
    return f": the containers are {_describe(one)} and {_describe(other)}"


def _describe(structure: Structure) -> str:
    kind = structure[0]
    if kind in ("leaf", "none"):
        return "a leaf" if kind == "leaf" else "None"
    inside = ", ".join(_describe(child) for child in structure[-1])
    return f"{structure[1].__name__}({inside})"
