"""Identity: the settings under which a cache was made, and without which it is not read."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import msgspec

from aioloader.errors import CacheCorrupt, CacheMismatch

if TYPE_CHECKING:
    from aioloader._order.group_order import GroupOrder
    from aioloader.protocols import Layouts

__all__ = ["FORMAT", "LARGEST", "Identity", "show"]

FORMAT = 1
"""The version of everything that is on disk."""

LARGEST = 1 << 20
"""The bytes of an identity's file are not more than this."""

_LONGEST = 400

_LABELS = {
    "format": "format of the files",
    "name": "group",
    "batch_size": "batch_size",
    "length": "length of the data",
    "drop_remainder": "drop_remainder",
    "seed": "seed",
    "shuffle_first": "shuffle_first",
    "shuffle_later": "shuffle_later",
    "order": "version of the order",
    "arrays": "arrays (dtype, elements)",
    "data": "data",
}


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What has to be the same for a cache's entries to be those of a group.

    ``arrays`` are the dtype and the number of elements of each array of a batch, in their
    order: names and shapes may change. ``data`` is what `fingerprint` returns, and ``order``
    the version of the arithmetic that decides which items a batch holds.
    """

    format: int = FORMAT
    name: str
    batch_size: int
    length: int
    drop_remainder: bool
    seed: int
    shuffle_first: bool
    shuffle_later: str
    arrays: tuple[tuple[str, int], ...]
    data: str
    order: int = 0

    @classmethod
    def of(
        cls, name: str, order: GroupOrder, layouts: Layouts, *, data: str, version: int
    ) -> Identity:
        """Return the identity of a group in its order, whose cached arrays lie so."""
        return cls(
            name=name,
            batch_size=order.batch_size,
            length=order.length,
            drop_remainder=order.drop_remainder,
            seed=order.seed,
            shuffle_first=order.shuffle_first,
            shuffle_later=order.shuffle_later,
            arrays=tuple((a.numpy_dtype.name, a.count) for a in layouts.values()),
            data=data,
            order=version,
        )

    def to_json(self) -> bytes:
        """Return it as the text that lies in a cache.

        >>> order = {"drop_remainder": True, "shuffle_first": False, "shuffle_later": "repeat"}
        >>> sizes = {"batch_size": 2, "length": 4, "seed": 0, "arrays": (("int8", 2),)}
        >>> one = Identity(name="training-0", **order, **sizes, data="version 1")
        >>> Identity.from_json(one.to_json(), "here") == one
        True
        """
        text = json.dumps(msgspec.structs.asdict(self), indent=1)
        return text.encode() + b"\n"

    @classmethod
    def from_json(cls, raw: bytes, where: str) -> Identity:
        """Read one; ``where`` is what messages call it.

        Raises:
            CacheCorrupt: It is not an identity.
            CacheMismatch: It is of another version of the format.
        """
        try:
            version = msgspec.json.decode(raw, type=_Version).format
            if version == FORMAT:
                return msgspec.json.decode(raw, type=cls)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise CacheCorrupt(
                f"{where} is not the identity of a cache ({error}): remove the cache's directory, "
                "and it is made anew"
            ) from None
        raise CacheMismatch(
            f"{where} has version {version} of the format, and this aioloader reads and writes "
            f"version {FORMAT}: use another cache_location, or remove the cache's directory"
        )

    @property
    def digest(self) -> bytes:
        """Sixteen bytes that stand for it in each entry."""
        plain = json.dumps(msgspec.structs.asdict(self), sort_keys=True)
        return hashlib.blake2b(plain.encode(), digest_size=16).digest()

    def differences(self, other: Identity) -> list[str]:
        """Return a line for each field in which ``other``, the cache's, is not the same.

        >>> order = {"drop_remainder": True, "shuffle_first": False, "shuffle_later": "repeat"}
        >>> sizes = {"batch_size": 2, "length": 4, "seed": 0, "arrays": (("int8", 2),)}
        >>> one = Identity(name="training-0", **order, **sizes, data="version 1")
        >>> one.differences(msgspec.structs.replace(one, seed=7))
        ['seed: 7 in the cache, 0 here']
        """
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return [
            f"{label}: {show(theirs[name])} in the cache, {show(mine[name])} here"
            for name, label in _LABELS.items()
            if mine[name] != theirs[name]
        ]

    def require_same(self, other: Identity, where: str) -> None:
        """Raise CacheMismatch, with all differences, unless the cache's identity is this one."""
        if differences := self.differences(other):
            raise CacheMismatch(
                f"the cache in {where} was made under other settings:\n"
                + "".join(f"  {line}\n" for line in differences)
                + "Use the same settings, or another cache_location, or remove that directory; "
                "where the data are known to be the same, a data_version says so."
            )


class _Version(msgspec.Struct):
    format: int


def show(value: Any) -> str:
    """Return a field as messages have it, on one line; it may be anybody's, and of any length."""
    if isinstance(value, tuple):
        text = "[" + ", ".join(f"{dtype!r} x {count}" for dtype, count in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
