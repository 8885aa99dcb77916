"""The web server: what tests of sources take for granted."""

from __future__ import annotations

import http.client
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from support import is_alive, script, until

from servers.fixtures import Served, content, serving, web, web_folder, web_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["web", "web_folder", "web_process"]


@pytest.fixture
def client(web: Served) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
    yield connection
    connection.close()


def ask(client: http.client.HTTPConnection, path: str, **headers: str) -> tuple[int, bytes, Any]:
    method = "HEAD" if headers.pop("method", "") else "GET"
    client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = client.getresponse()
    return answer.status, answer.read(), answer.headers


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bytes=10-19", slice(10, 20)),
        ("bytes=500-9999", slice(500, None)),
        ("bytes=-7", slice(-7, None)),
    ],
)
def test_ranges_are_served(client: Any, asked: str, expected: slice) -> None:
    whole = content(3)
    status, body, headers = ask(client, "/o/003", Range=asked)
    assert (status, body) == (206, whole[expected])
    assert headers["Content-Range"].endswith(f"/{len(whole)}")


def test_one_connection_serves_many_and_knows_tags(client: Any, web: Served) -> None:
    status, body, headers = ask(client, "/o/001")
    assert (status, body) == (200, content(1))
    tag = headers["ETag"]
    assert ask(client, "/o/001", method="HEAD")[:2] == (200, b"")
    assert ask(client, "/o/001", If_Match=tag)[0] == 200
    assert ask(client, "/o/002", If_Match=tag)[0] == 412
    assert ask(client, "/o/001", If_None_Match=tag)[0] == 304
    assert ask(client, "/o/001", Range="bytes=100000-")[0] == 416
    assert ask(client, "/none")[0] == 404
    assert ask(client, "/../servers")[0] == 404
    counts = web.counts()
    assert (counts["requests"], counts["heads"], counts["paths"]["/o/001"]) == (8, 1, 5)


def test_listings_come_in_pages(client: Any) -> None:
    first = json.loads(ask(client, "/?list=o/0&limit=60")[1])
    second = json.loads(ask(client, f"/?list=o/0&limit=60&after={first['next']}")[1])
    keys = [each["key"] for each in first["objects"] + second["objects"]]
    assert keys == [f"o/{number:03}" for number in range(100)]
    assert second["next"] is None
    assert first["objects"][3]["size"] == len(content(3))


@pytest.mark.parametrize("kind", ["408", "429", "500", "503"])
def test_refusals(client: Any, web: Served, kind: str) -> None:
    web.set(faults=1, kinds=kind)
    status, _, headers = ask(client, "/o/001")
    assert status == int(kind)
    assert headers.get("Retry-After") == ("0" if kind in ("429", "503") else None)
    assert web.counts()[f"fault {kind}"] == 1


def test_faults_of_the_connection(client: Any, web: Served) -> None:
    web.set(faults=1, kinds="lie")
    assert ask(client, "/o/001")[:2] == (200, content(1)[: len(content(1)) // 2])
    web.set(kinds="truncate")
    with pytest.raises(http.client.IncompleteRead):
        ask(client, "/o/001")
    client.close()
    web.set(kinds="reset")
    with pytest.raises(ConnectionResetError):
        ask(client, "/o/001")
    client.close()
    web.set(kinds="stall")
    client.request("GET", "/o/001")
    client.sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.getresponse()


def test_what_becomes_of_a_request_does_not_depend_on_the_order(client: Any, web: Served) -> None:
    """The same paths meet the same faults, forwards and backwards."""
    outcomes = []
    for numbers in (range(60), reversed(range(60))):
        web.set(faults=0.3, kinds="500,503")
        web.counts(reset=True)
        outcomes.append({n: ask(client, f"/o/{n:03}")[0] for n in numbers})
    assert outcomes[0] == outcomes[1]
    assert 5 < sum(status != 200 for status in outcomes[0].values()) < 35


def test_it_can_be_killed_and_restarted_in_its_place(web_folder: Path) -> None:
    with serving(web_folder) as served:
        url = served.url
        served.kill()
        with pytest.raises(OSError, match="refused"):
            served.counts()
        served.restart()
        assert served.url == url
        assert served.counts()["accepted"] == 1


async def test_it_ends_with_whoever_started_it(tmp_path: Path, web_folder: Path) -> None:
    program = "\n".join(
        [
            "import sys, time",
            "from pathlib import Path",
            "from servers.fixtures import Served",
            "served = Served(Path(sys.argv[1]))",
            "print(served._process.pid, flush=True)",
            "time.sleep(60)",
        ]
    )
    parent = script(tmp_path, program, os.fspath(web_folder))
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
    await until(lambda: not is_alive(pid))
