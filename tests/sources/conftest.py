"""Stores that tests share: an S3 server, a web server, and what lies in them."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import obstore
import pytest
from obstore.store import S3Store
from servers.fixtures import web, web_folder, web_process
from servers.keys import ACCESS_KEY, SECRET_KEY

from aioloader.sources.object_store import wake_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["web", "web_folder", "web_process"]


class S3:
    """An S3 server, in which every test has buckets of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._numbers = itertools.count()

    @property
    def options(self) -> dict[str, Any]:
        """What a client has to be told."""
        return {
            "aws_endpoint": self.url,
            "aws_access_key_id": ACCESS_KEY,
            "aws_secret_access_key": SECRET_KEY,
            "aws_region": "us-east-1",
        }

    def bucket(self, objects: Mapping[str, bytes]) -> str:
        """Make a bucket with objects; returns its URL."""
        name = f"bucket-{os.getpid()}-{next(self._numbers)}"
        client = S3Store(
            name,
            config=self.options,
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
        )
        urlopen(Request(f"{self.url}/{name}", method="PUT")).close()
        for key, content in objects.items():
            obstore.put(client, key, content)
        return f"s3://{name}"


@pytest.fixture(scope="session", autouse=True)
def _runtime_is_up() -> None:
    """obstore starts threads when first used, and keeps them; they are nobody's leak."""
    wake_runtime()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 server."""
    program = Path(__file__).with_name("s3_server.py")
    process = subprocess.Popen(
        (sys.executable, str(program)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            yield S3(process.stdout.readline().strip())
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
