"""Translating: errors of obstore into those of stores, without what they tell of credentials."""

from __future__ import annotations

import http
import re
from typing import TYPE_CHECKING, Any

from aioloader._fetching.redacting import redact
from aioloader.sources.errors import ObjectChanged, ObjectMissing, ShortRead, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["secrets_of", "translated"]

# obstore tells statuses and kinds in no other way than in its text. What servers and keys
# contribute to the second part of that is quoted there, so that it cannot be mistaken.
_DEBUG = "\n\nDebug source:\n"
_STATUS = re.compile(r"\bStatus \{\n\s+status: (\d{3}),")
_KIND = re.compile(r"\bHttpError \{\n\s+kind: (\w+),")
_DETAIL = re.compile(r'\b(?:message|error): "([^"\n]{1,200})"')
_WORD = re.compile(r"<Code>(\w{1,64})</Code>")  # AccessDenied, SlowDown and the like
_BEYOND = re.compile(r"\bStartTooLarge \{\n\s+requested: \d+,\n\s+length: (\d+),")
_KINDS = {
    "Connect": "no connection",
    "Decode": "an answer that makes no sense",
    "Interrupted": "the connection broke off",
    "Request": "the connection broke off",
    "Timeout": "the client's own time-out",
}
_LONGEST = 300
_LEAST_SECRET = 4


def translated(error: Exception, key: str, secrets: Iterable[str] = ()) -> StoreError:
    """Return what a store raises in place of an error of obstore's.

    It holds neither URLs nor the body of the answer, which may repeat what was signed, and
    nothing of ``secrets``.
    """
    text, _, debug = str(error).rpartition(_DEBUG)
    text = text or str(error)
    found = _STATUS.search(debug)
    status = int(found[1]) if found else None
    if isinstance(error, FileNotFoundError):
        word = _WORD.search(debug)
        return ObjectMissing(f"{key} is missing" + (f" ({word[1]})" if word else ""), status=status)
    if type(error).__name__ == "PreconditionError":
        return ObjectChanged(f"{key} is not the object that was listed", status=status)
    if beyond := _BEYOND.search(debug):
        return ShortRead(f"{key} has {beyond[1]} bytes, and the range lies beyond", passes=False)
    if status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return ShortRead(f"{key}: the range lies beyond its end", passes=False, status=status)
    if status is not None:
        return StoreError(f"{key}: the store answered {_answer(status, debug)}", status=status)
    if kind := _KIND.search(debug):
        return StoreError(f"{key}: {_broken(kind[1], debug)}", passes=kind[1] in _KINDS)
    return StoreError(f"{key}: {_short(text, secrets)}", passes=False)


def secrets_of(options: Any) -> Iterator[str]:
    """Yield all texts among options: which of them are secret nobody can tell."""
    if isinstance(options, dict):
        for value in options.values():
            yield from secrets_of(value)
    elif isinstance(options, bytes):
        yield options.decode(errors="replace")
    elif isinstance(options, str) and len(options) >= _LEAST_SECRET:
        yield options


def _answer(status: int, debug: str) -> str:
    try:
        phrase = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    word = _WORD.search(debug)
    return f"{phrase} ({word[1]})" if word else phrase


def _broken(kind: str, debug: str) -> str:
    what = _KINDS.get(kind, f"the request failed ({kind})")
    details = _DETAIL.findall(debug)
    return f"{what}: {redact(details[-1])}" if details else what


def _short(text: str, secrets: Iterable[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "…")
    text = redact(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
