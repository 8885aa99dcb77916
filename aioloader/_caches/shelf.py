"""The shelf: kept values by index, never more bytes than it has room for."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

if TYPE_CHECKING:
    from aioloader._caches.keeping import Kept

__all__ = ["POLICIES", "Entry", "Policy", "Shelf"]

Policy = Literal["lru", "fifo", "none"]
POLICIES: tuple[Policy, ...] = ("lru", "fifo", "none")


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of one row, and the bytes that it is charged with."""

    kept: Kept
    nbytes: int


@final
class Shelf:
    """Entries by index. Not thread-safe: the cache that owns it has the lock.

    ``"lru"`` gives up the entry that was used least recently, ``"fifo"`` the oldest one, and
    ``"none"`` none: what does not fit is refused.
    """

    def __init__(self, max_bytes: int | None, policy: Policy) -> None:
        self._max_bytes = max_bytes
        self._policy = policy
        self.entries: OrderedDict[int, Entry] = OrderedDict()
        self.nbytes = 0
        self.inserts = self.replaced = self.evictions = self.refusals = 0

    def find(self, index: int) -> Entry | None:
        """Return an entry, which counts as a use of it."""
        entry = self.entries.get(index)
        if entry is not None and self._policy == "lru":
            self.entries.move_to_end(index)
        return entry

    def put(self, index: int, entry: Entry, *, evict: bool = True) -> tuple[bool, list[Entry]]:
        """Keep an entry in the place of any older one, if there is or can be made room.

        Returns whether it is kept, and what was given up: to be dropped when the lock has been
        released, for the end of a value may run any code. An older entry of the index is given
        up in any case; without ``evict`` it is the only one.
        """
        older = self.entries.pop(index, None)
        given_up = [] if older is None else [older]
        self.nbytes -= sum(gone.nbytes for gone in given_up)
        may_evict = evict and self._policy != "none"
        if not self._fits(entry.nbytes, within=0 if may_evict else self.nbytes):
            self.refusals += 1
            self.evictions += len(given_up)
            return False, given_up
        self.replaced += len(given_up)
        while not self._fits(entry.nbytes, within=self.nbytes):
            _, evicted = self.entries.popitem(last=False)
            self.nbytes -= evicted.nbytes
            self.evictions += 1
            given_up.append(evicted)
        self.entries[index] = entry
        self.nbytes += entry.nbytes
        self.inserts += 1
        return True, given_up

    def could_hold(self, entry: Entry) -> bool:
        """Tell whether an entry would fit an empty shelf."""
        return self._fits(entry.nbytes, within=0)

    def _fits(self, nbytes: int, *, within: int) -> bool:
        return self._max_bytes is None or within + nbytes <= self._max_bytes

    def drop(self, index: int, entry: Entry) -> None:
        """Give an entry up, if it is still this one."""
        if self.entries.get(index) is entry:
            del self.entries[index]
            self.nbytes -= entry.nbytes
            self.evictions += 1

    def clear(self) -> list[Entry]:
        """Give everything up, and return it."""
        given_up = [*self.entries.values()]
        self.entries.clear()
        self.nbytes = 0
        self.evictions += len(given_up)
        return given_up
