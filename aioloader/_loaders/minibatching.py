"""Minibatching: from a dataset and an order to tickets, recipes and trees."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from aioloader._engine.stages import Placed
from aioloader._memory.declaring import make_layouts
from aioloader._memory.layout import layout_bytes
from aioloader._memory.tree import Structure, flatten, stack, unflatten
from aioloader._order.arguments import whole_number
from aioloader.errors import LayoutError
from aioloader.protocols import Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aioloader._memory.arena import ArenaSlot
    from aioloader.protocols import Arrays, Extras, Layouts

__all__ = [
    "MinibatchFeed",
    "MinibatchTicket",
    "Probe",
    "Recipe",
    "check_shuffle_seed",
    "count_minibatches",
    "make_tickets",
    "shuffled",
    "take",
    "take_async",
]

_MISFIT = "misfit"
_NO_ARRAYS = {"-": ((0,), "uint8", "uint8")}
_QUICK_BYTES = 64 * 1024


def shuffled(length: int, shuffle_seed: int | None) -> range | np.ndarray:
    """Return the order of an epoch: fifteen's own for a seed, and the data's without one.

    >>> shuffled(10, 0).tolist()
    [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    """
    if shuffle_seed is None:
        return range(length)
    order = np.arange(length)
    np.random.default_rng(seed=shuffle_seed).shuffle(order)
    return order


def check_shuffle_seed(shuffle_seed: object) -> None:
    """Raise for anything but None and a whole number from 0 on."""
    if shuffle_seed is not None:
        whole_number("shuffle_seed", shuffle_seed, at_least=0)


def count_minibatches(length: int, size: int, drop_last: bool) -> int:
    """Return how many minibatches of ``size`` there are among ``length`` elements.

    >>> count_minibatches(10, 4, True), count_minibatches(10, 4, False)
    (2, 3)
    """
    return length // size if drop_last else -(-length // size)


@final
@dataclass(frozen=True, slots=True, eq=False)
class MinibatchTicket(Ticket):
    """One minibatch of an epoch; ``whole`` where a collate function makes it in one piece."""

    whole: bool

    @property
    def rows(self) -> int:
        """How many rows its slot has."""
        return 1 if self.whole else len(self.indices)

    def describe(self) -> str:
        """Name it as messages do."""
        return f"minibatch {self.position}"

    def describe_group(self) -> str:
        """There are no groups."""
        return ""


def make_tickets(
    order: range | np.ndarray, size: int, count: int, *, whole: bool
) -> Iterator[MinibatchTicket]:
    """Yield the minibatches of an order; the last one takes what is left."""
    for k in range(count):
        indices = order[k * size : (k + 1) * size]
        yield MinibatchTicket(k, False, 0, 0, k, k, k, indices, None, None, whole)


@final
@dataclass(frozen=True, slots=True)
class Probe:
    """What the first element, or the first minibatch made by a collate function, looks like.

    ``names`` has the name of each leaf's array, and None for leaves that are none.
    """

    structure: Structure
    names: tuple[str | None, ...]
    layouts: Layouts
    whole: bool

    @classmethod
    def of(cls, tree: Any, rows: int, *, whole: bool) -> Probe:
        """Look at a tree, of which a slot is to hold ``rows``."""
        structure, leaves = flatten(tree)
        arrays: dict[str, Any] = {}
        names: list[str | None] = []
        for k, leaf in enumerate(leaves):
            array = _as_array(leaf, whole=whole)
            names.append(None if array is None else str(k))
            if array is not None:
                arrays[str(k)] = (array.shape, array.dtype, array.dtype)
        layouts = make_layouts(arrays or _NO_ARRAYS, rows, "dataset")
        return cls(structure, tuple(names), layouts, whole)

    def write(self, tree: Any, arrays: Arrays) -> dict[str, object] | None:
        """Write a tree into a row; returns what does not go there, or all of it if it differs."""
        structure, leaves = flatten(tree)
        if structure != self.structure:
            return {_MISFIT: (tree,)}
        beside: dict[str, object] = {}
        for k, (name, leaf) in enumerate(zip(self.names, leaves, strict=True)):
            if name is None:
                beside[str(k)] = leaf
                continue
            array, target = _to_stack(leaf, whole=self.whole), arrays[name]
            if array is None or array.shape != target.shape or array.dtype != target.dtype:
                return {_MISFIT: (tree,)}
            target[...] = array
        return beside or None

    def read(self, arrays: Arrays, extras: Extras, rows: int) -> Any:
        """Return the tree of a slot, its arrays not copied."""
        misfits = extras.get(_MISFIT, ())
        if self.whole:
            if any(m is not None for m in misfits):
                return misfits[0][0]  # type: ignore[index]
            return unflatten(self.structure, self._row(0, arrays, extras))
        if any(m is not None for m in misfits):
            return stack(
                [
                    unflatten(self.structure, self._row(row, arrays, extras))
                    if misfits[row] is None
                    else misfits[row][0]  # type: ignore[index]
                    for row in range(rows)
                ]
            )
        leaves = [
            stack(extras[str(k)]) if name is None else arrays[name]
            for k, name in enumerate(self.names)
        ]
        return unflatten(self.structure, leaves)

    def _row(self, row: int, arrays: Arrays, extras: Extras) -> list[Any]:
        return [
            extras[str(k)][row] if name is None else arrays[name][row, ...]
            for k, name in enumerate(self.names)
        ]


def _to_stack(leaf: Any, *, whole: bool) -> np.ndarray | None:
    if type(leaf) is np.ndarray:
        return leaf
    # What is stacked becomes an array anyhow; a minibatch has to stay what it is.
    if whole or not (isinstance(leaf, (int, float, complex)) or hasattr(leaf, "__array__")):
        return None
    return np.asarray(leaf)


def _as_array(leaf: Any, *, whole: bool) -> np.ndarray | None:
    array = _to_stack(leaf, whole=whole)
    if array is not None:
        try:
            make_layouts({"x": (array.shape, array.dtype, array.dtype)}, 1, "dataset")
        except LayoutError:
            return None
    return array


@final
@dataclass(frozen=True, slots=True)
class Recipe:
    """Elements of a dataset into rows, or through a collate function into one minibatch."""

    dataset: Any
    collate: Callable[[list[Any]], Any]
    probe: Probe

    def __call__(self, item: Any, arrays: Arrays, seed: int | None) -> dict[str, object] | None:
        if not self.probe.whole:
            return self.probe.write(self.dataset[item], arrays)
        return self.probe.write(self.collate(take(self.dataset, item)), arrays)

    async def on_loop(
        self, item: Any, arrays: Arrays, seed: int | None
    ) -> dict[str, object] | None:
        """Do the same where ``dataset[index]`` has to be awaited."""
        if not self.probe.whole:
            return self.probe.write(await self.dataset[item], arrays)
        return self.probe.write(self.collate(await take_async(self.dataset, item)), arrays)


def take(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Return the elements at ``indices``; an exception says which of them it was."""
    elements = []
    for index in indices:
        try:
            elements.append(dataset[index])
        except Exception as error:
            error.add_note(f"at index {index}")
            raise
    return elements


async def take_async(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Return the elements at ``indices``, all awaited at once."""

    async def one(index: int) -> Any:
        try:
            return await dataset[index]
        except Exception as error:
            error.add_note(f"at index {index}")
            raise

    tasks = [asyncio.ensure_future(one(index)) for index in indices]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


@final
class MinibatchFeed:
    """Items and trees of minibatches (see :class:`aioloader._engine.session.Feed`).

    Trees are views of their slot, which stays on loan for as long as any of their arrays
    lives. A program may keep as many as it likes: past ``views`` of them they are copied.
    """

    tickets_are_slow = False

    def __init__(self, probe: Probe, views: int) -> None:
        self._probe = probe
        self._views = views
        self._leases: list[weakref.ref[Any]] = []
        self._is_quick = layout_bytes(probe.layouts) <= _QUICK_BYTES

    def layout_key(self, ticket: Ticket) -> int:
        """There is one layout."""
        return 0

    def items(self, ticket: Ticket) -> Sequence[Any]:
        """Return the ticket's indices, in one piece where the minibatch is made in one."""
        indices = [int(index) for index in ticket.indices]
        return [indices] if self._probe.whole else indices

    def items_are_quick(self, ticket: Ticket) -> bool:
        """Tell whether that takes well under a millisecond."""
        return len(ticket.indices) <= 8192

    def place(self, ticket: Ticket, slot: ArenaSlot, extras: Extras) -> Placed:
        """Return the minibatch as the array ``tree``."""
        self._leases = [lease for lease in self._leases if lease() is not None]
        arrays = slot.arrays
        if len(self._leases) >= self._views:
            arrays = {name: array.copy() for name, array in arrays.items()}
        else:
            self._leases.append(weakref.ref(slot.hold))
        return Placed({"tree": self._probe.read(arrays, extras, ticket.rows)}, slot.layouts)

    def place_is_quick(self, slot: ArenaSlot) -> bool:
        """Tell whether that takes well under a millisecond."""
        return self._is_quick
