"""Redacting: no user name, password or signature of a URL gets into a message."""

from __future__ import annotations

import re

__all__ = ["redact"]

_USER = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#'\"<>@]*@")
_QUERY = re.compile(r"(?P<url>\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?'\"<>]*)\?[^\s'\"<>)\],]*")
_SECRET = re.compile(
    r"(?P<name>\b(?:authorization|x-amz-[a-z-]*(?:signature|credential|token)|signature|sig|"
    r"(?:aws_)?(?:access_key_id|secret_access_key|session_token)|account_key|api_key|apikey|"
    r"password|token|secret)[\"']?\s*[:=]\s*(?:(?:basic|bearer)\s+)?)[^\s&,;}\]]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Return ``text`` without what URLs and headers in it hold of credentials.

    >>> redact("GET https://me:pw@host/key?X-Amz-Signature=abc: 403")
    'GET https://…@host/key?… 403'
    >>> redact("Authorization: Bearer abc")
    'Authorization: Bearer …'
    """
    text = _USER.sub(r"\g<scheme>…@", text)
    text = _QUERY.sub(r"\g<url>?…", text)
    return _SECRET.sub(r"\g<name>…", text)
