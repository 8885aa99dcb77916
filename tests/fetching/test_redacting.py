"""Redacting: whatever holds credentials, nothing of them is left."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioloader._fetching.redacting import is_clean, redact

SECRETS = st.text(string.ascii_letters + string.digits + "+=%-_~.", min_size=6, max_size=40).map(
    lambda text: f"Zq{text}"
)
NAMES = (
    "Authorization",
    "X-Amz-Security-Token",
    "x-amz-server-side-encryption-customer-key",
    "Signature",
    "Credential",
    "aws_secret_access_key",
    "AWS_SESSION_TOKEN",
    "secret_access_key",
    "access_key_id",
    "account_key",
    "api_key",
    "apikey",
    "password",
    "Cookie",
    "refresh_token",
    "client_secret",
)


@given(SECRETS, st.sampled_from(["s3", "https", "gs", "postgresql+x"]))
def test_urls_keep_their_host_and_path(secret: str, scheme: str) -> None:
    for url in (
        f"{scheme}://user:{secret}@host:80/path/x.tar",
        f"{scheme}://{secret}@host:80/path/x.tar",
        f"{scheme}://a:b@{secret}@host:80/path/x.tar",
        f"{scheme}://host:80/path/x.tar?X-Amz-Signature={secret}&b=2",
        f"{scheme}://host:80/path/x.tar?sig={secret}",
    ):
        for text in (url, f"GET {url} failed", f"<Response [{url!r}]>", f"({url})"):
            told = redact(text)
            assert secret not in told
            assert "host:80/path/x.tar" in told


@pytest.mark.parametrize("name", NAMES)
@given(secret=SECRETS)
def test_values_of_headers_and_settings_are_left_out(name: str, secret: str) -> None:
    for text in (
        f"{name}: {secret}",
        f"{name}={secret}, region=eu",
        f"{name}: Bearer {secret}",
        f"{{'{name}': 'Basic {secret}', 'a': 'b'}}",
        f'{{"{name}": "{secret}"}}',
        f"{{'{name}': 'two words {secret}'}}",
        f"[('{name}', '{secret}')]",
        f"[(b'{name}', b'{secret}')]",
        f"?{name}={secret}&x=1",
        f"{name.lower()}={secret}",
    ):
        assert secret not in redact(text), text


def test_aws_signatures_are_left_out() -> None:
    told = redact(
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7/20130524/us-east-1/s3, "
        "SignedHeaders=host;range, Signature=fe5f80f77d5fa3beca038a248ff027d0"
    )
    assert "AKIA" not in told
    assert "fe5f80" not in told


@pytest.mark.parametrize(
    "text",
    [
        "",
        "images/000123.jpg could not be fetched: 3 attempts in 1.2 s",
        "https://host/path/x.tar: status 503",
        "s3://bucket/keys/token-lists/a.txt",
        "the author: me; the design: good",
    ],
)
def test_what_holds_none_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=80))
def test_it_never_fails_and_is_done_at_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_an_error_is_clean_only_with_all_that_led_to_it() -> None:
    secret = ValueError("https://me:pw@host/")
    assert is_clean(ValueError("fine"))
    assert not is_clean(secret)
    for error in (ValueError("a"), ExceptionGroup("b", [secret])):
        error.__context__ = secret
        assert not is_clean(error)
    assert not is_clean(ExceptionGroup("b", [secret]))
    noted = ValueError("c")
    noted.add_note("token=abc")
    assert not is_clean(noted)
    circle = ValueError("d")
    circle.__context__ = KeyError("e")
    circle.__context__.__context__ = circle
    assert is_clean(circle)
