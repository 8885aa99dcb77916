"""Failures: an exception as a record that always crosses a process boundary."""

from __future__ import annotations

import pickle
import reprlib
import traceback
from dataclasses import dataclass
from typing import final

import cloudpickle

from aioloader.errors import ItemError

__all__ = ["Failure", "short"]

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 200


def short(value: object) -> str:
    """Return a short ``repr``, also of values whose own ``repr`` raises."""
    return _shortener.repr(value)


@final
@dataclass(frozen=True, slots=True)
class Failure:
    """What is known of an exception, as plain text.

    The exception itself travels only when it survives a round trip where it was raised,
    because one that does not would break whatever unpickles it on the other side.
    """

    summary: str
    remote_traceback: str
    pickled: bytes | None = None

    @classmethod
    def capture(cls, error: BaseException) -> Failure:
        """Record ``error``, with its traceback, causes and notes."""
        summary = "".join(_safely(traceback.format_exception_only, error)).strip()
        text = "".join(_safely(traceback.format_exception, error))
        return cls(summary or type(error).__name__, text, _pickle(error))

    def to_item_error(self, row: int) -> ItemError:
        """Return the :class:`ItemError` of ``row``, with the original exception as its cause."""
        error = ItemError(self.summary, row=row, remote_traceback=self.remote_traceback)
        error.__cause__ = self._unpickle()
        return error

    def _unpickle(self) -> BaseException | None:
        if self.pickled is None:
            return None
        try:
            error = pickle.loads(self.pickled)
        except Exception:  # the text is enough
            return None
        return error if isinstance(error, BaseException) else None


def _pickle(error: BaseException) -> bytes | None:
    for dumps in (pickle.dumps, cloudpickle.dumps):  # the second for classes of `__main__`
        try:
            pickled: bytes = dumps(error)
            if isinstance(pickle.loads(pickled), BaseException):
                return pickled
        except Exception:
            continue
    return None


def _safely(formatter: object, error: BaseException) -> list[str]:
    try:
        assert callable(formatter)
        return list(formatter(error))
    except Exception:  # an exception whose own __str__ raises
        return [f"{type(error).__name__}: <unprintable>\n"]
