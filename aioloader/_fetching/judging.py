"""Judging: whether an error of a request may pass, whoever's client raised it."""

from __future__ import annotations

import asyncio
import email.utils
import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

__all__ = ["Judgement", "judge"]

_PASSING = {408, 425, 429}
_LASTING = {501, 505}
_THROTTLED = {429, 503}

# Clients' own errors of the connection, by the name of the class: none of them is imported.
_CONNECTION = {
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "botocore.exceptions.HTTPClientError",
    "httpcore.NetworkError",
    "httpcore.ProtocolError",
    "httpcore.TimeoutException",
    "httpx.TransportError",
    "obstore.exceptions.GenericError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
    "urllib3.exceptions.HTTPError",
}
_ERRORS = (
    ConnectionError,
    TimeoutError,
    asyncio.IncompleteReadError,
    http.client.IncompleteRead,
    http.client.RemoteDisconnected,
)


@final
@dataclass(frozen=True, slots=True)
class Judgement:
    """What to do about an error: try again or not, and when at the earliest.

    ``throttled`` tells that the store asked for fewer requests.
    """

    passes: bool
    throttled: bool = False
    retry_after: float = 0.0


def judge(error: BaseException) -> Judgement:
    """Tell whether ``error`` may pass by itself.

    It goes by the HTTP status where the error carries one (as those of aiohttp, httpx,
    requests, botocore and `aioloader.sources` do), else by its type. What is not known is
    taken to stay.

    >>> judge(ConnectionResetError()).passes, judge(FileNotFoundError()).passes
    (True, False)
    """
    passes = getattr(error, "passes", None)  # the sources' own errors say so
    if isinstance(passes, bool):
        after = getattr(error, "retry_after", None) or 0.0
        return Judgement(passes, getattr(error, "status", None) in _THROTTLED, after)
    status = _status(error)
    if status is not None:
        passes = status in _PASSING or (500 <= status < 600 and status not in _LASTING)
        return Judgement(passes, status in _THROTTLED, _retry_after(error))
    return Judgement(isinstance(error, _ERRORS) or not _names(error).isdisjoint(_CONNECTION))


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    candidates = [getattr(error, "status", None), getattr(error, "status_code", None)]
    candidates += [getattr(response, "status_code", None), getattr(response, "status", None)]
    candidates += [getattr(error, "code", None)]  # urllib's
    if isinstance(response, Mapping):  # botocore's
        candidates.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for status in candidates:
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def _retry_after(error: BaseException) -> float:
    holders = (error, getattr(error, "response", None))
    for holder in holders:
        headers: Any = getattr(holder, "headers", None)
        value = None
        if hasattr(headers, "get"):
            value = headers.get("Retry-After") or headers.get("retry-after")
        if value is not None:
            return parse_retry_after(str(value))
    return 0.0


def parse_retry_after(value: str) -> float:
    """Return the seconds that a ``Retry-After`` header asks for: a number, or a date.

    >>> parse_retry_after("2"), parse_retry_after("soon")
    (2.0, 0.0)
    """
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _names(error: BaseException) -> set[str]:
    names = set()
    for kind in type(error).__mro__:
        names.add(f"{kind.__module__}.{kind.__qualname__}")
        # Private submodules vary between versions: the package counts.
        names.add(f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}")
    return names
