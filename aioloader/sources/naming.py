"""Naming: which objects of a store a source is of, by keys and patterns."""

from __future__ import annotations

import fnmatch
import os
import re
from typing import TYPE_CHECKING, Any

from aioloader.sources.ranges import in_order
from aioloader.sources.seam import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aioloader.sources.ranges import Ranges

__all__ = ["are_named_by", "name_objects", "split_place"]

_WILD = re.compile(r"[*?\[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_SEQUENCE = re.compile(r"(\d+)\.\.(\d+)")


async def name_objects(
    ranges: Ranges, names: str | Sequence[str | ObjectInfo], parameter: str
) -> list[ObjectInfo]:
    """Return what is known of each object: patterns are listed, and others asked for one by one.

    Raises:
        ValueError: There are none, or some are named twice.
    """
    infos: list[ObjectInfo] = []
    unknown: list[int] = []
    for name in _each(names):
        if isinstance(name, ObjectInfo):
            infos.append(name)
        elif _WILD.search(name):
            listed = await ranges.list(_WILD.split(name, maxsplit=1)[0])
            found = [info for info in listed if fnmatch.fnmatchcase(info.key, name)]
            if not found:
                raise ValueError(f"{parameter}={name!r} matches no object")
            infos += found
        else:
            unknown.append(len(infos))
            infos.append(ObjectInfo(name, -1))
    keys = [infos[number].key for number in unknown]
    heads = await in_order(ranges.head, keys, at_once=ranges.policy.concurrency)
    for number, head in zip(unknown, heads, strict=True):
        infos[number] = ObjectInfo(infos[number].key, head.size, head.etag)
    if not infos:
        raise ValueError(f"{parameter}={names!r} names no object")
    if len({info.key for info in infos}) < len(infos):
        raise ValueError(f"{parameter}={names!r} names an object more than once")
    return infos


def are_named_by(names: str | Sequence[str | ObjectInfo], infos: Sequence[ObjectInfo]) -> bool:
    """Tell whether an index of ``infos`` may be one of these names; nothing is asked for."""
    at = 0
    for name in _each(names):
        begin = at
        if isinstance(name, str) and _WILD.search(name):
            while at < len(infos) and fnmatch.fnmatchcase(infos[at].key, name):
                at += 1
        elif at < len(infos):
            at += (infos[at].key if isinstance(name, str) else infos[at]) == name
        if at == begin:
            return False
    return at == len(infos)


def split_place(place: Any, pattern: str) -> tuple[Any, str]:
    """Return a store and the names of objects in it, from what may be a URL or path of either.

    >>> split_place("s3://bucket/a/b.parquet", "*")
    ('s3://bucket/a', 'b.parquet')
    >>> split_place("s3://bucket/a", "*")
    ('s3://bucket/a', '*')
    """
    if not isinstance(place, str | os.PathLike):
        return place, pattern
    text = os.fspath(place)
    scheme, mark, path = text.rpartition("://")
    folder, slash, last = path.rpartition("/")
    is_file = "." in last or _WILD.search(last) is not None
    if not is_file or (mark and not slash) or (not mark and os.path.isdir(text)):
        return text, pattern
    return f"{scheme}{mark}{folder or slash or '.'}", last


def _each(names: str | Sequence[str | ObjectInfo]) -> Iterator[str | ObjectInfo]:
    for name in [names] if isinstance(names, str) else names:
        if isinstance(name, str):
            yield from _unfolded(name)
        elif isinstance(name, ObjectInfo):
            yield name
        else:
            raise TypeError(f"{name!r} is neither a key nor an ObjectInfo")


def _unfolded(name: str) -> Iterator[str]:
    """Yield what a name with braces stands for, as in a shell.

    >>> list(_unfolded("{a,b}-{08..10}.tar"))[:4]
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar']
    """
    found = _BRACES.search(name)
    if found is None:
        yield name
        return
    numbers = _SEQUENCE.fullmatch(found[1])
    if numbers:
        width, last = len(numbers[1]), int(numbers[2])
        words = [f"{number:0{width}}" for number in range(int(numbers[1]), last + 1)]
    else:
        words = found[1].split(",")
    for word in words:
        yield from _unfolded(name[: found.start()] + word + name[found.end() :])
