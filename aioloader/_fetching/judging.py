"""Judging: whether an error of a request may pass, whoever's client raised it."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import http.client
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

__all__ = ["Judgement", "judge"]

_PASSING = {408, 425, 429}
_LASTING = {501, 505}
_THROTTLED = {429, 503}

# Clients' own errors of the connection, by the name of the class: none of them is imported.
_CONNECTION = {
    "aiohttp.ClientConnectionError",
    "aiohttp.ClientPayloadError",
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "botocore.IncompleteReadError",
    "httpcore.NetworkError",
    "httpcore.ProtocolError",
    "httpcore.TimeoutException",
    "httpx.TransportError",
    "obstore.GenericError",
    "requests.ChunkedEncodingError",
    "requests.ConnectionError",
    "requests.Timeout",
    "ssl.SSLEOFError",
    "urllib3.HTTPError",
}
# Those among them that the next attempt meets again.
_NO_CONNECTION = {
    "aiohttp.ClientConnectorCertificateError",
    "aiohttp.ServerFingerprintMismatch",
    "botocore.SSLError",
    "httpcore.LocalProtocolError",
    "httpx.LocalProtocolError",
    "httpx.UnsupportedProtocol",
    "requests.SSLError",
    "ssl.SSLCertVerificationError",
    "urllib3.LocationValueError",
    "urllib3.SSLError",
}
_ERRORS = (
    ConnectionError,
    TimeoutError,
    asyncio.IncompleteReadError,
    http.client.IncompleteRead,
    http.client.RemoteDisconnected,
)
_ERRNOS = {errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH}

# AWS says some of what passes with status 400.
_CODES = {
    "InternalError",
    "RequestLimitExceeded",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
}
_THROTTLING_CODES = _CODES - {"InternalError", "RequestTimeout"}


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
    code = _code(error)
    status = _status(error)
    if code in _CODES or status is not None:
        passes = code in _CODES or status in _PASSING
        passes |= status is not None and 500 <= status < 600 and status not in _LASTING
        throttled = code in _THROTTLING_CODES or status in _THROTTLED
        return Judgement(passes, throttled, _retry_after(error) if passes else 0.0)
    if isinstance(error, BaseExceptionGroup):
        return _of_all([judge(each) for each in error.exceptions])
    if isinstance(reason := getattr(error, "reason", None), OSError):  # urllib's
        return judge(reason)
    return Judgement(_is_of_connection(error))


def _of_all(judgements: list[Judgement]) -> Judgement:
    return Judgement(
        all(each.passes for each in judgements),
        any(each.throttled for each in judgements),
        max(each.retry_after for each in judgements),
    )


def _is_of_connection(error: BaseException) -> bool:
    names = _names(error)
    if not names.isdisjoint(_NO_CONNECTION):
        return False
    if isinstance(error, _ERRORS) or not names.isdisjoint(_CONNECTION):
        return True
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return isinstance(error, OSError) and error.errno in _ERRNOS


def _part(error: BaseException, name: str) -> Mapping[str, Any]:
    """Return a part of a botocore error's response, empty for all others."""
    response = getattr(error, "response", None)
    part = response.get(name) if isinstance(response, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _code(error: BaseException) -> str:
    code = _part(error, "Error").get("Code")
    return code if isinstance(code, str) else ""


def _status(error: BaseException) -> int | None:
    for status in _statuses(error):
        if isinstance(status, int) and 100 <= status < 600:
            return status
    return None


def _statuses(error: BaseException) -> Iterator[object]:
    response = getattr(error, "response", None)
    for holder in (error, response):
        yield getattr(holder, "status", None)
        yield getattr(holder, "status_code", None)
    yield _part(error, "ResponseMetadata").get("HTTPStatusCode")
    yield getattr(error, "code", None)  # google.api_core's; aiohttp warns of its own


def _retry_after(error: BaseException) -> float:
    response = getattr(error, "response", None)
    holders = [getattr(error, "headers", None), getattr(response, "headers", None)]
    holders += [_part(error, "ResponseMetadata").get("HTTPHeaders")]
    for headers in holders:
        get = getattr(headers, "get", lambda name: None)
        value = get("Retry-After") or get("retry-after")
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
    # Submodules vary between versions: the package counts.
    kinds = type(error).__mro__
    return {f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}" for kind in kinds}
