"""The command that looks after caches: what it finds, says, removes, and returns."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from disk_bench import NAME, batch, fill, identity, key, opened, path_of, unfinished

from aioloader.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

KEYS = [key(0), key(1), key(1500), key(2, epoch=1), key(3)]


async def make(location: Path) -> None:
    """Fill a location with two groups."""
    async with opened(location) as cache:
        await fill(cache, *KEYS)
    other = identity(name="validation-0")
    async with opened(location, name="validation-0", identity=other) as cache:
        await fill(cache, key(0))


def damage(location: Path) -> None:
    """Flip a bit, put a link, misplace an entry, leave an unfinished file and a strange one."""
    path = path_of(location, KEYS[0])
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    path_of(location, KEYS[1]).unlink()
    path_of(location, KEYS[1]).symlink_to("/etc/passwd")
    path_of(location, KEYS[4]).rename(path_of(location, key(4)))
    (location / NAME / ".999999999-1-0.tmp").write_text("left over")
    (location / NAME / "\x1b[31mred").mkdir()


def as_json(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, Any]:
    status = main(["cache", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


async def test_a_whole_cache_is_found_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By all three, which return 0; and `info` does not read entries."""
    await make(tmp_path)
    nbytes = sum(path.stat().st_size for path in (tmp_path / NAME).rglob("*.batch"))
    status, said = as_json(capsys, "info", tmp_path)
    assert status == 0
    training, validation = said["groups"]
    assert (training["entries"], training["bytes"]) == (5, nbytes)
    assert training["identity"]["seed"] == 7
    assert "verdicts" not in training
    assert (validation["entries"], validation["identity"]["name"]) == (1, "validation-0")
    status, said = as_json(capsys, "verify", tmp_path)
    assert status == 0
    assert [each["entry"] for each in said["groups"][0]["verdicts"]] == [str(of) for of in
        (key(0), key(1), key(3), key(1500), key(2, epoch=1))]  # fmt: skip
    assert {each["verdict"] for each in said["groups"][0]["verdicts"]} == {"good"}
    before = sorted(tmp_path.rglob("*"))
    assert main(["cache", "prune", str(tmp_path)]) == 0
    assert "removed    0" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


async def test_damage_is_found_named_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the exit status 1 until it has gone; links are removed and not followed."""
    await make(tmp_path)
    damage(tmp_path)
    assert main(["cache", "info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 left by killed programs" in said
    assert "strange    \\x1b[31mred is no part of a cache" in said
    assert "\x1b" not in said
    status, report = as_json(capsys, "verify", tmp_path)
    assert status == 1
    verdicts = {each["entry"]: each for each in report["groups"][0]["verdicts"]}
    assert [each["verdict"] for each in verdicts.values()] == [
        "damaged", "damaged", "foreign", "good", "good",
    ]  # fmt: skip
    assert "block 0 of its arrays" in verdicts["0/0/0.batch"]["reason"]
    assert verdicts["0/0/1.batch"]["reason"] == "it is a symbolic link"
    assert "it is entry 0/0/3.batch" in verdicts["0/0/4.batch"]["reason"]
    assert not report["groups"][1]["is_damaged"]
    assert main(["cache", "verify", str(tmp_path)]) == 1
    assert "good       2 of 5" in capsys.readouterr().out
    before = sorted(tmp_path.rglob("*"))
    assert main(["cache", "prune", str(tmp_path), "--dry-run"]) == 1
    assert "to remove  3, and 1 unfinished" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    status, report = as_json(capsys, "prune", tmp_path)
    assert status == 0
    assert report["groups"][0]["removed"] == ["0/0/0.batch", "0/0/1.batch", "0/0/4.batch"]
    assert unfinished(tmp_path) == []
    assert not (tmp_path / NAME / "0" / "0").exists(), "it is empty"
    assert as_json(capsys, "verify", tmp_path)[0] == 0
    async with opened(tmp_path) as cache:
        assert await cache.read(key(1500)) is not None


async def test_one_group_may_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its own directory."""
    await make(tmp_path)
    status, said = as_json(capsys, "verify", tmp_path / "validation-0")
    assert (status, len(said["groups"])) == (0, 1)


async def test_names_of_groups_do_not_reach_the_terminal_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does what is said about them."""
    async with opened(tmp_path):
        pass
    (tmp_path / NAME).rename(tmp_path / "\x1b[2J\n")
    assert main(["cache", "verify", str(tmp_path)]) == 0
    (tmp_path / "\x1b[2J\n" / "identity.json").write_text("?")
    assert main(["cache", "verify", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.isascii()
    assert "\x1b" not in said
    assert "\\x1b[2J\\n" in said


async def test_an_identity_of_nonsense_is_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then nobody can tell whether entries are right, and none is removed."""
    await make(tmp_path)
    for text in ("{}", None):
        path = tmp_path / NAME / "identity.json"
        path.unlink()
        if text is not None:
            path.write_text(text)
        before = sorted(tmp_path.rglob("*"))
        for action in ("info", "verify", "prune"):
            status, said = as_json(capsys, action, tmp_path)
            assert status == 1
            assert "identity" in said["groups"][0]["problem"]
        assert main(["cache", "verify", str(tmp_path)]) == 1
        assert "damaged" in capsys.readouterr().out
        assert sorted(tmp_path.rglob("*")) == before


async def test_pickles_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An entry that has some is good, for those who allow them."""
    async with opened(tmp_path, allow_pickle=True) as cache:
        await cache.write(key(), batch(key()), {"odd": [{1}] * 4}, None)
    assert main(["cache", "verify", str(tmp_path)]) == 0


def test_where_there_is_no_cache_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the exit status 2, as for arguments that make no sense."""
    assert main(["cache", "info", str(tmp_path)]) == 2
    assert main(["cache", "info", str(tmp_path / "none")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "holds no cache" in said.err
    assert "No such file" in said.err
    for arguments in ([], ["cache"], ["cache", "mend", "x"], ["cache", "info"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


async def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    """On stderr, so that what is on stdout can be used."""
    await make(tmp_path)
    command = [sys.executable, "-W", "error", "-m", "aioloader", "cache", "verify", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    plain = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (plain.returncode, plain.stderr) == (0, "")
    master, terminal = pty.openpty()
    shown = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=terminal, env=environment, text=True
    )
    os.close(terminal)
    on_terminal = os.read(master, 100_000).decode()
    os.close(master)
    assert shown.stdout == plain.stdout
    assert "1/5 entries" in on_terminal
    assert on_terminal.endswith("\r\x1b[K")
