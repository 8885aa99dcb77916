"""Trees: nested containers of arrays, taken apart and put together again, without jax."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Structure", "flatten", "paths", "stack", "unflatten"]

Structure: TypeAlias = tuple[Any, ...]
"""What is left of a tree without its leaves: a value that compares and pickles."""

_LEAF: Structure = ("leaf",)
_NONE: Structure = ("none",)


def flatten(tree: Any) -> tuple[Structure, list[Any]]:
    """Return the structure of ``tree`` and its leaves.

    Mappings, lists, tuples, named tuples and dataclasses are taken apart as JAX does it: in
    the order of sorted keys, None is no leaf, and fields with ``metadata={"static": True}``
    (or ``"pytree_node": False``) belong to the structure. Anything else is a leaf.

    >>> structure, leaves = flatten({"b": [1, 2], "a": (3, None)})
    >>> leaves, unflatten(structure, [10, 20, 30])
    ([3, 1, 2], {'a': (10, None), 'b': [20, 30]})
    """
    leaves: list[Any] = []
    return _flatten(tree, leaves), leaves


def _flatten(tree: Any, leaves: list[Any]) -> Structure:
    kind = type(tree)
    if kind is np.ndarray:
        leaves.append(tree)
        return _LEAF
    if tree is None:
        return _NONE
    if isinstance(tree, Mapping):
        keys = _in_order(tree)
        factory = tree.default_factory if isinstance(tree, defaultdict) else None
        return "mapping", kind, factory, keys, tuple(_flatten(tree[k], leaves) for k in keys)
    if kind in (list, tuple) or (isinstance(tree, tuple) and hasattr(kind, "_fields")):
        return "sequence", kind, tuple(_flatten(x, leaves) for x in tree)
    if dataclasses.is_dataclass(kind):
        return _flatten_dataclass(tree, kind, leaves)
    leaves.append(tree)
    return _LEAF


def _flatten_dataclass(tree: Any, kind: type, leaves: list[Any]) -> Structure:
    names, static, children = [], [], []
    for field in dataclasses.fields(kind):
        value = getattr(tree, field.name)
        if field.metadata.get("static") or not field.metadata.get("pytree_node", True):
            static.append((field.name, value))
        else:
            names.append(field.name)
            children.append(_flatten(value, leaves))
    return "dataclass", kind, tuple(names), tuple(static), tuple(children)


def unflatten(structure: Structure, leaves: Sequence[Any]) -> Any:
    """Return the tree of ``structure`` with other leaves."""
    return _unflatten(structure, iter(leaves))


def _unflatten(structure: Structure, leaves: Iterator[Any]) -> Any:
    kind = structure[0]
    if kind == "leaf":
        return next(leaves)
    if kind == "none":
        return None
    children = [_unflatten(child, leaves) for child in structure[-1]]
    container = structure[1]
    if kind == "sequence":
        return container(*children) if hasattr(container, "_fields") else container(children)
    if kind == "mapping":
        _, _, factory, keys, _ = structure
        pairs = dict(zip(keys, children, strict=True))
        return defaultdict(factory, pairs) if factory is not None else container(pairs)
    _, _, names, static, _ = structure
    tree = object.__new__(container)  # it may check in `__init__` what holds for single elements
    for name, value in (*static, *zip(names, children, strict=True)):
        object.__setattr__(tree, name, value)
    return tree


def paths(structure: Structure, prefix: str = "") -> Iterator[str]:
    """Yield where each leaf is, as one would write it.

    >>> list(paths(flatten({"a": [1, 2], "b": 3})[0]))
    ["['a'][0]", "['a'][1]", "['b']"]
    """
    kind = structure[0]
    if kind == "leaf":
        yield prefix
    elif kind != "none":
        for step, child in zip(_steps(structure), structure[-1], strict=True):
            yield from paths(child, prefix + step)


def _steps(structure: Structure) -> list[str]:
    if structure[0] == "mapping":
        return [f"[{key!r}]" for key in structure[3]]
    if structure[0] == "dataclass":
        return [f".{name}" for name in structure[2]]
    names = getattr(structure[1], "_fields", None)
    return [f".{n}" for n in names] if names else [f"[{k}]" for k in range(len(structure[-1]))]


def stack(elements: Sequence[Any]) -> Any:
    """Stack trees of one structure along a new first axis, leaf by leaf, into numpy arrays.

    Raises :class:`ValueError` for elements of different structures, and where a leaf has
    several shapes; it names the leaf, the elements and the shapes.

    >>> stack([{"x": [1, 2], "y": 1}, {"x": [3, 4], "y": 2}])
    {'x': [array([1, 3]), array([2, 4])], 'y': array([1, 2])}
    """
    if not elements:
        raise ValueError("there are no elements to stack")
    structure, _ = flatten(elements[0])
    columns: list[list[Any]] = []
    for number, element in enumerate(elements):
        other, leaves = flatten(element)
        if other != structure:
            raise ValueError(
                f"element {number} has another structure than element 0: its leaves are "
                f"{_names(other)}, and those of element 0 are {_names(structure)}"
            )
        columns.append(leaves)
    return unflatten(
        structure,
        [
            _stack_leaf(path, [leaves[k] for leaves in columns])
            for k, path in enumerate(paths(structure))
        ],
    )


def _stack_leaf(path: str, column: list[Any]) -> np.ndarray:
    arrays = [np.asarray(leaf) for leaf in column]
    for number, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            where = f"leaf {path}" if path else "it"
            raise ValueError(
                f"{where} has the shape {arrays[0].shape} in element 0 and {array.shape} in "
                f"element {number}: they do not stack"
            )
    return np.stack(arrays)


def _names(structure: Structure) -> str:
    return ", ".join(path or "itself" for path in paths(structure)) or "none"


def _in_order(tree: Mapping[Any, Any]) -> tuple[Any, ...]:
    try:
        return tuple(sorted(tree))
    except TypeError:
        return tuple(tree)
