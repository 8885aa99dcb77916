"""Matching: which keys a pattern chooses."""

from __future__ import annotations

import re

__all__ = ["pattern_regex"]


def pattern_regex(pattern: str) -> re.Pattern[str]:
    """Return what matches the keys that a glob does.

    ``*`` and ``?`` stay within a folder, ``**/`` is any number of folders, ``[a-z]`` and
    ``[!a-z]`` one character, ``{jpg,png}`` one of several.

    Raises:
        ValueError: A bracket or brace is not closed.

    >>> regex = pattern_regex("**/*.{jpg,png}")
    >>> [bool(regex.fullmatch(key)) for key in ("a.jpg", "a/b/c.png", "a/b.gif")]
    [True, True, False]
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern={pattern!r} must be text")
    parts, place = [], 0
    while place < len(pattern):
        part, place = _translated(pattern, place)
        parts.append(part)
    return re.compile("".join(parts), re.DOTALL)


def _translated(pattern: str, place: int) -> tuple[str, int]:
    """Return the expression for what is at a place, and the place after it."""
    begins_folder = place == 0 or pattern[place - 1] == "/"
    if begins_folder and pattern.startswith("**/", place):
        return "(?:.*/)?", place + 3
    if pattern.startswith("**", place):
        return ".*", place + 2
    character = pattern[place]
    if character == "*":
        return "[^/]*", place + 1
    if character == "?":
        return "[^/]", place + 1
    if character == "[":
        end = _end(pattern, place, "]", place + 2)
        inside = pattern[place + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
        inside = "^" + inside[1:] if inside.startswith("!") else inside
        return f"(?!/)[{inside}]", end + 1
    if character == "{":
        end = _end(pattern, place, "}", place + 1)
        choices = pattern[place + 1 : end].split(",")
        return f"(?:{'|'.join(pattern_regex(choice).pattern for choice in choices)})", end + 1
    return re.escape(character), place + 1


def _end(pattern: str, place: int, closing: str, first: int) -> int:
    end = pattern.find(closing, first)
    if end < 0:
        raise ValueError(f"pattern={pattern!r}: {pattern[place]!r} is not closed")
    return end
