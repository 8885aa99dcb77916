"""Judging: which errors may pass, by the clients' own classes and by what they carry."""

from __future__ import annotations

import asyncio
import errno
import http.client
import io
import socket
import ssl
import time
import urllib.error
from email.message import Message
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions as botocore
import obstore.exceptions as obstore
import pytest

from aioloader._fetching.judging import Judgement, judge, parse_retry_after

PASSING = (408, 425, 429, 500, 502, 503, 504, 507, 599)
LASTING = (301, 304, 400, 401, 403, 404, 405, 409, 410, 412, 416, 501, 505)


def of_aiohttp(status: int, headers: Any = None) -> Exception:
    return aiohttp.ClientResponseError(None, (), status=status, headers=headers)  # type: ignore[arg-type]


def of_urllib(status: int, headers: Any = None) -> Exception:
    message = Message()
    for name, value in (headers or {}).items():
        message[name] = value
    return urllib.error.HTTPError("http://host/", status, "no", message, io.BytesIO())


def of_httpx(status: int, headers: Any = None) -> Exception:
    error = named("httpx._exceptions", "HTTPStatusError")
    error.response = SimpleNamespace(status_code=status, headers=headers or {})
    return error


def of_botocore(status: int, headers: Any = None) -> Exception:
    about = {
        "HTTPStatusCode": status,
        "HTTPHeaders": {k.lower(): v for k, v in (headers or {}).items()},
    }
    response: Any = {"Error": {"Code": str(status)}, "ResponseMetadata": about}
    return botocore.ClientError(response, "GetObject")


def of_a_store(status: int, headers: Any = None) -> Exception:
    error: Any = OSError("no")
    error.passes, error.status = status in PASSING, status
    error.retry_after = float(headers["Retry-After"]) if headers else None
    return error  # type: ignore[no-any-return]


def kind(module: str, name: str, *bases: type[Exception]) -> type[Exception]:
    """Return a class that is called so."""
    return type(name, bases or (Exception,), {"__module__": module})


def named(module: str, name: str, *bases: type[Exception]) -> Any:
    """Return an error whose class is called so."""
    return kind(module, name, *bases)()


KINDS = (of_aiohttp, of_urllib, of_httpx, of_botocore, of_a_store)


@pytest.mark.parametrize("of", KINDS)
def test_by_the_status(of: Any) -> None:
    for status in PASSING:
        assert judge(of(status)).passes, status
    for status in LASTING:
        assert judge(of(status)) == Judgement(passes=False), status


@pytest.mark.parametrize("of", KINDS)
def test_a_store_that_asks_for_patience_is_heard(of: Any) -> None:
    assert judge(of(429, {"Retry-After": "7"})) == Judgement(True, True, 7.0)
    assert judge(of(503, {"Retry-After": "7"})) == Judgement(True, True, 7.0)
    assert not judge(of(500)).throttled


def of_errno(number: int) -> OSError:
    return OSError(number, "no")


CONNECTION = [
    ConnectionResetError(),
    ConnectionRefusedError(),
    BrokenPipeError(),
    TimeoutError(),
    asyncio.IncompleteReadError(b"", 5),
    http.client.IncompleteRead(b""),
    http.client.RemoteDisconnected(),
    of_errno(errno.EHOSTUNREACH),
    of_errno(errno.ETIMEDOUT),
    socket.gaierror(socket.EAI_AGAIN, "later"),
    ssl.SSLEOFError(),
    urllib.error.URLError(ConnectionRefusedError()),
    urllib.error.URLError(TimeoutError()),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientOSError(),
    aiohttp.ClientPayloadError(),
    aiohttp.ServerTimeoutError(),
    obstore.GenericError(),
    botocore.EndpointConnectionError(endpoint_url="http://host"),
    botocore.ReadTimeoutError(endpoint_url="http://host"),
    botocore.ConnectionClosedError(endpoint_url="http://host"),
    named("httpx", "ReadTimeout", kind("httpx", "TransportError")),
    named("httpcore._exceptions", "ReadError", kind("httpcore", "NetworkError")),
    named("requests.exceptions", "ConnectionError"),
    named(
        "urllib3.exceptions", "ProtocolError", named("urllib3.exceptions", "HTTPError").__class__
    ),
    ExceptionGroup("both", [ConnectionResetError(), TimeoutError()]),
]
OTHERS = [
    ValueError(),
    KeyError(),
    AssertionError(),
    FileNotFoundError(),
    PermissionError(),
    of_errno(errno.ENOSPC),
    socket.gaierror(socket.EAI_NONAME, "never"),
    ssl.SSLCertVerificationError(),
    urllib.error.URLError(ssl.SSLCertVerificationError()),
    urllib.error.URLError("unknown url type"),
    aiohttp.InvalidURL("x"),
    aiohttp.ServerFingerprintMismatch(b"", b"", "host", 1),
    obstore.NotFoundError(),
    obstore.PermissionDeniedError(),
    botocore.NoCredentialsError(),
    botocore.SSLError(endpoint_url="http://host", error="x"),
    named("httpx", "UnsupportedProtocol", kind("httpx", "TransportError")),
    named("mine", "ConnectionError"),
    ExceptionGroup("both", [ConnectionResetError(), ValueError()]),
]


@pytest.mark.parametrize("error", CONNECTION, ids=lambda e: f"{type(e).__module__}.{e!r}"[:60])
def test_errors_of_the_connection_may_pass(error: Exception) -> None:
    assert judge(error).passes


@pytest.mark.parametrize("error", OTHERS, ids=lambda e: f"{type(e).__module__}.{e!r}"[:60])
def test_others_stay(error: Exception) -> None:
    assert judge(error) == Judgement(passes=False)


@pytest.mark.parametrize(("code", "throttled"), [("SlowDown", True), ("RequestTimeout", False)])
def test_what_aws_says_with_status_400(code: str, throttled: bool) -> None:
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    assert judge(botocore.ClientError(response, "GetObject")) == Judgement(True, throttled)


def test_a_response_of_any_form_is_no_trouble() -> None:
    for response in ({}, {"Error": None}, {"ResponseMetadata": 5}, "text", None, 7):
        error: Any = ValueError()
        error.response = response
        assert not judge(error).passes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("120", 120.0), (" 3 ", 3.0), ("-1", 0.0), ("1.5", 0.0), ("", 0.0), ("soon", 0.0)],
)
def test_seconds_to_wait(text: str, seconds: float) -> None:
    assert parse_retry_after(text) == seconds


def test_dates_to_wait_for() -> None:
    assert 50 < parse_retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert parse_retry_after(formatdate(time.time() - 60, usegmt=True)) == 0.0
    assert parse_retry_after("Fri, 99 Jan 2026 00:00:00 GMT") == 0.0
