"""Redacting: no user name, password or signature of a URL gets into a message."""

from __future__ import annotations

import re

__all__ = ["is_clean", "redact"]

_USER = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#'\"<>]*@")
_QUERY = re.compile(r"(?P<url>\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?'\"<>]*)\?[^\s'\"<>)\],]*")
_NAMES = (
    r"(?:proxy-)?authorization|(?:set-)?cookie|signature|sig|credential|"
    r"x-(?:amz|goog|ms)-[a-z-]*(?:signature|credential|token|key)|"
    r"(?:aws_?)?(?:access_?key(?:_?id)?|secret_?access_?key|session_?token)|"
    r"(?:account|shared|storage|api|private)[_-]?key|apikey|"
    r"[a-z_-]*(?:password|passwd|token|secret)"
)
# What follows a name: a value in quotes, or one without, and before that the kind of it.
_SECRET = re.compile(
    rf"(?P<name>\b(?:{_NAMES})(?:[\"']?\s*[:=]\s*|[\"']\s*,\s*(?=b?[\"']))(?:b(?=[\"']))?)"
    r"(?:\"[^\"]*\"|'[^']*'|"
    r"(?:(?:basic|bearer|digest|negotiate|token|aws4-hmac-sha256)\s+)?[^\s&,;}\])'\"<>]+)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return ``text`` without what URLs and headers in it hold of credentials.

    >>> redact("GET https://me:pw@host/key?X-Amz-Signature=abc: 403")
    'GET https://…@host/key?… 403'
    >>> redact("{'Authorization': 'Bearer abc', 'Range': 'bytes=0-9'}")
    "{'Authorization': …, 'Range': 'bytes=0-9'}"
    """
    text = _USER.sub(r"\g<scheme>…@", text)
    text = _QUERY.sub(r"\g<url>?…", text)
    return _SECRET.sub(r"\g<name>…", text)


def is_clean(error: BaseException | None) -> bool:
    """Tell whether nothing would be redacted of ``error``, nor of what led to it."""
    seen: set[int] = set()
    found = [error]
    while found:
        error = found.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        texts = (str(error), *getattr(error, "__notes__", ()))
        if any(redact(text) != text for text in texts):
            return False
        found += [error.__cause__, error.__context__, *getattr(error, "exceptions", ())]
    return True
