"""Whole-number arguments, checked where they come in."""

from __future__ import annotations

import operator
from typing import Any

__all__ = ["whole_number"]


def whole_number(
    name: str, value: Any, *, at_least: int | None = None, at_most: int | None = None
) -> int:
    """Return ``value`` as a plain ``int``, or say which argument is wrong and how.

    NumPy's integers are accepted and become Python's, which cannot overflow. Truth values are
    refused, though Python counts with them: ``depth=True`` is a mistake.

    >>> whole_number("batch_size", 0, at_least=1)
    Traceback (most recent call last):
    ValueError: batch_size must be at least 1, got 0
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    if at_most is not None and number > at_most:
        raise ValueError(f"{name} must be at most {at_most}, got {number}")
    return number
