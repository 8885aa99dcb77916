"""The order policy of one group: how it is cut, shuffled and seeded, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, final, get_args

from aioloader._order.arguments import whole_number
from aioloader._order.group_epoch import GroupBatch, GroupEpoch, counter
from aioloader._order.permutation import LONGEST, Permutation, derive_key
from aioloader.protocols import Seeds

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GroupOrder", "ShuffleLater"]

ShuffleLater: TypeAlias = Literal["repeat", "reseed", "itemwise", "batchwise"]


@final
@dataclass(frozen=True, slots=True)
class GroupOrder:
    """How ``length`` items are cut into batches, shuffled and seeded.

    The first epoch, number 0, goes in the order of the data, or shuffled item by item with
    ``shuffle_first``. ``shuffle_later`` says what later epochs do:

    - ``"repeat"``: the same again, seeds included;
    - ``"reseed"``: the order of the first epoch, with new seeds;
    - ``"itemwise"``: all items shuffled anew before they are cut, with new seeds;
    - ``"batchwise"``: the batches of the first epoch, with their contents, seeds and group
      indices, in another order.

    With ``drop_remainder`` items that do not fill a batch are left out (others in each
    epoch, if items are shuffled); otherwise they make a shorter batch.

    >>> order = GroupOrder(length=10, batch_size=4, shuffle_later="batchwise", drop_remainder=False)
    >>> [batch.indices for batch in order.read(epoch=0)]
    [range(0, 4), range(4, 8), range(8, 10)]
    >>> sorted(batch.indices.start for batch in order.read(epoch=7))
    [0, 4, 8]
    """

    length: int
    batch_size: int
    seed: int = 0
    shuffle_first: bool = False
    shuffle_later: ShuffleLater = "itemwise"
    drop_remainder: bool = True

    def __post_init__(self) -> None:
        checked = {
            "length": whole_number("length", self.length, at_least=1, at_most=LONGEST),
            "batch_size": whole_number("batch_size", self.batch_size, at_least=1),
            "seed": whole_number("seed", self.seed),
            "shuffle_first": bool(self.shuffle_first),
            "drop_remainder": bool(self.drop_remainder),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.shuffle_later not in get_args(ShuffleLater):
            modes = ", ".join(map(repr, get_args(ShuffleLater)))
            raise ValueError(f"shuffle_later must be one of {modes}, got {self.shuffle_later!r}")
        if self.batch_count == 0:
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {self.length} items there are, "
                "which leaves no batch: pass drop_remainder=False for one short batch"
            )

    @property
    def batch_count(self) -> int:
        """How many batches an epoch has."""
        if self.drop_remainder:
            return self.length // self.batch_size
        return -(-self.length // self.batch_size)

    def read(
        self, epoch: int, start: int = 0, *, stream: int | None = None
    ) -> Iterator[GroupBatch]:
        """Yield the batches of an epoch from number ``start`` on.

        Nothing is worked out before the first one is asked for. ``stream`` is as in
        :meth:`epoch`.
        """
        yield from self.epoch(epoch, stream=stream).read(start)

    def epoch(self, number: int, *, stream: int | None = None) -> GroupEpoch:
        """Return epoch ``number``.

        ``stream`` tells apart the seeds of groups whose ``seed`` is the same: the group's
        ordinal among the training groups. None is for validation, which has no seeds.
        """
        batch_seeds, item_seeds = (None, None) if stream is None else self._seeds(number, stream)
        return GroupEpoch(
            self.length,
            self.batch_size,
            self.batch_count,
            items=self._item_permutation(number),
            batches=self._batch_permutation(number),
            batch_seeds=batch_seeds,
            item_seeds=item_seeds,
        )

    def _item_permutation(self, epoch: int) -> Permutation | None:
        shuffling = epoch if self.shuffle_later == "itemwise" else 0
        if shuffling == 0 and not self.shuffle_first:
            return None
        return Permutation(self.length, derive_key("items", self.seed, shuffling))

    def _batch_permutation(self, epoch: int) -> Permutation | None:
        if epoch == 0 or self.shuffle_later != "batchwise":
            return None
        return Permutation(self.batch_count, derive_key("batches", self.seed, epoch))

    def _seeds(self, epoch: int, stream: int) -> tuple[Seeds, Seeds]:
        """Return the seeds of the epoch's batches, and those of its rows.

        Each is a run of counters under a key of its own, and epochs follow one another
        (a short batch takes up as many counters as a full one): no two batches or rows of
        a group have the same counter, whatever their epochs.
        """
        seeding = epoch if self.shuffle_later in ("reseed", "itemwise") else 0
        batches = self.batch_count
        rows = batches * self.batch_size
        return (
            Seeds(derive_key("batch-seed", self.seed, stream), counter(seeding * batches), batches),
            Seeds(derive_key("items-seeds", self.seed, stream), counter(seeding * rows), rows),
        )
