"""The feed: what a session asks of the groups that a loader serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from aioloader._device.placement import Placer, check_placed
from aioloader._engine.stages import Placed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioloader._loaders.group import DataGroup
    from aioloader._memory.arena import ArenaSlot
    from aioloader.protocols import Extras, Layouts, Ticket

__all__ = ["GroupFeed"]

_QUICK_ROWS = 8192


@final
class GroupFeed:
    """Items, layouts and placement of batches of several groups."""

    def __init__(
        self,
        training: Sequence[DataGroup[Any]],
        validation: Sequence[DataGroup[Any]],
        placer: Placer,
    ) -> None:
        self._groups = (*training, *validation)
        self._first_validation = len(training)
        self._placer = placer
        for group in self._groups:
            placer.check(group.loader_layouts or {}, "loader_arrays")
            placer.check(group.cache_layouts or {}, "cache_arrays")
        self._quick = tuple(group.take_is_quick(group.batch_size) for group in self._groups)
        self.tickets_are_slow = any(group.batch_size > _QUICK_ROWS for group in self._groups)
        self.layouts: tuple[Layouts, ...] = tuple(_layouts(group) for group in self._groups)

    def group(self, ticket: Ticket) -> DataGroup[Any]:
        """Return the ticket's group."""
        offset = self._first_validation if ticket.validation else 0  # four times a batch: no call
        return self._groups[ticket.group + offset]

    def layout_key(self, ticket: Ticket) -> int:
        """Return the ordinal of the ticket's group among all."""
        return ticket.group + (self._first_validation if ticket.validation else 0)

    def items(self, ticket: Ticket) -> Sequence[Any]:
        """Return the ticket's items."""
        return self.group(ticket).take(ticket.indices)

    def items_are_quick(self, ticket: Ticket) -> bool:
        """Tell whether that takes well under a millisecond."""
        return self._quick[self.layout_key(ticket)]

    def place(self, ticket: Ticket, slot: ArenaSlot, extras: Extras) -> Placed:
        """Place a loaded batch, and check what a strategy of the user's made of it."""
        group = self.group(ticket)
        placed = self._placer.place(slot.arrays, slot.layouts, extras, group)
        if not self._placer.is_custom:  # as it was declared, by construction
            return Placed(placed, slot.layouts, cached=slot.adopted)
        candidates = {"cache_arrays" if slot.adopted else "loader_arrays": slot.layouts}
        if group.cache_size is not None and not slot.adopted:
            cached = group.layouts_of(ticket.rows, cached=True)
            assert cached is not None
            candidates["cache_arrays"] = cached
        matched = check_placed(placed, candidates, "what place returned")
        return Placed(placed, candidates[matched], cached=matched == "cache_arrays")

    def place_is_quick(self, slot: ArenaSlot) -> bool:
        """Tell whether placing takes well under a millisecond."""
        return self._placer.is_quick(slot.layouts)


def _layouts(group: DataGroup[Any]) -> Layouts:
    layouts = group.loader_layouts or group.cache_layouts
    assert layouts is not None  # a group has one of them
    return layouts
