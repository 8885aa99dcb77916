"""Checkpoints: `save` and `load` as Orbax calls them, from another thread's loop."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from loading import each
from support import ARRAYS, digest_of, simple_group, simple_load

from aioloader import DataGroup, Loader, StateError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path


class _Awaited:
    """A directory that somebody else is creating."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waited = 0

    async def await_creation(self) -> Path:
        self.waited += 1
        await asyncio.sleep(0)
        self.path.mkdir(parents=True)
        return self.path


class _Epath:
    """A path that is none of the standard library's, as Orbax has them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)


def _elsewhere(work: Coroutine[Any, Any, None]) -> None:
    """Run the work to its end on a loop of another thread, and raise what it raises."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def _loader(**options: Any) -> Loader[int]:
    groups = [
        simple_group(30, 4, shuffle_first=True, drop_remainder=False),
        simple_group(24, 8, shuffle_later="batchwise"),
    ]
    held_out = simple_group(10, 4)
    options = {"num_workers": 0, "end_at": ("epoch", 3)} | options
    return Loader(simple_load, groups, validation=("batch", 4, held_out), **options)


async def _resumed(path: Any, **options: Any) -> list[str]:
    loader = _loader(**options)
    _elsewhere(await loader.load(path))
    return await each(loader, digest_of)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 17])
async def test_a_run_goes_on_exactly_where_it_was_saved(tmp_path: Path, count: int) -> None:
    """Also before the first batch and in the middle of a validation run."""
    whole = await each(_loader(), digest_of)
    loader = _loader()
    async with loader:
        seen = [digest_of(await anext(loader)) for _ in range(count)]
        _elsewhere(await loader.save(_Awaited(tmp_path / "a")))
    assert seen + await _resumed(tmp_path / "a", depth=5) == whole
    assert seen + await _resumed(_Epath(tmp_path / "a"), num_workers=1) == whole


async def test_batches_that_came_out_of_order_are_not_delivered_again(tmp_path: Path) -> None:
    """Their positions are part of the state, and none is lost either."""
    opened = asyncio.Event()

    async def load(item: int, arrays: Any, seed: int | None) -> Any:
        if item in (0, 9):
            await opened.wait()
        return simple_load(item, arrays, seed)

    def make(load: Any) -> Loader[int]:
        group = simple_group(40, 4)
        return Loader(load, group, deterministic=False, depth=4, end_at=("epoch", 1))

    async with make(load) as loader:
        first = [(await anext(loader)).group_index for _ in range(5)]
        _elsewhere(await loader.save(_Awaited(tmp_path / "a")))
        opened.set()
    assert 0 not in first
    assert 2 not in first
    again = make(load)
    _elsewhere(await again.load(tmp_path / "a"))
    rest = await each(again, lambda b: b.group_index)
    assert sorted(first + rest) == list(range(10))


async def test_saved_is_the_moment_of_the_call(tmp_path: Path) -> None:
    """Not that of the writing, which may be much later and elsewhere."""
    loader = _loader()
    directory = _Awaited(tmp_path / "a")
    async with loader:
        await anext(loader)
        state = loader.get_state()
        writing = await loader.save(directory)
        assert inspect.isawaitable(writing)
        assert directory.waited == 0
        await anext(loader)
        _elsewhere(writing)
    assert directory.waited == 1
    (file,) = (tmp_path / "a").iterdir()
    assert file.name == "process_0-of-1.json"
    assert json.loads(file.read_text()) == state == json.loads(json.dumps(state))
    assert state["position"] == 1


async def test_loading_happens_when_it_is_awaited(tmp_path: Path) -> None:
    """And moves a loader that is running, too."""
    loader = _loader()
    whole = await each(_loader(), digest_of)
    async with loader:
        for _ in range(3):
            await anext(loader)
        await (await loader.save(_Awaited(tmp_path / "a")))
        for _ in range(4):
            await anext(loader)
        reading = await loader.load(tmp_path / "a")
        assert digest_of(await anext(loader)) == whole[7]
        _elsewhere(reading)
        assert loader.get_state()["position"] == 3
        assert [digest_of(batch) async for batch in loader] == whole[3:]


async def test_a_state_is_not_changed_by_what_the_loader_does_later() -> None:
    """`get_state` returns a value."""
    loader = _loader()
    async with loader:
        await anext(loader)
        state = loader.get_state()
        copied = json.loads(json.dumps(state))
        await anext(loader)
    assert state == copied != loader.get_state()


async def test_saving_twice_restores_the_last(tmp_path: Path) -> None:
    """Each call writes what was delivered up to it."""
    loader = _loader()
    async with loader:
        for name in ("a", "b"):
            await anext(loader)
            await (await loader.save(_Awaited(tmp_path / name)))
    for position, name in enumerate(("a", "b"), 1):
        other = _loader()
        await (await other.load(tmp_path / name))
        assert other.get_state()["position"] == position


DAMAGES: dict[str, bytes] = {
    "empty": b"",
    "torn": b'{"version": 1, "plan": "0123',
    "no object": b"[1, 2]",
    "null": b"null",
    "another version": b'{"version": 99}',
    "another file": b'{"version": 1, "position": 3}',
    "zeros": b"\0" * 100,
    "not text": b"\xff\xfe\x80state",
}


@pytest.mark.parametrize("kind", list(DAMAGES))
async def test_a_damaged_state_is_refused(tmp_path: Path, kind: str) -> None:
    """As a StateError, and the loader stays where it was."""
    loader = _loader()
    await (await loader.save(_Awaited(tmp_path / "a")))
    (file,) = (tmp_path / "a").iterdir()
    file.write_bytes(DAMAGES[kind])
    before = loader.get_state()
    with pytest.raises(StateError):
        await (await loader.load(tmp_path / "a"))
    assert loader.get_state() == before


async def test_a_state_that_is_not_there_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=str(tmp_path / "nowhere")):
        await (await _loader().load(tmp_path / "nowhere"))


async def test_a_state_of_another_plan_is_refused_with_both_sides(tmp_path: Path) -> None:
    """Other groups, seeds, shuffling or validation; more workers or another end are no matter."""
    await (await _loader().save(_Awaited(tmp_path / "a")))

    def group(**options: Any) -> DataGroup[int]:
        return DataGroup(4, range(30), loader_arrays=ARRAYS, **options)

    for training in (group(), [group(), group()], group(seed=1)):
        other = Loader(simple_load, training)
        with pytest.raises(StateError, match="this loader's"):
            await (await other.load(tmp_path / "a"))
    same = _loader(num_workers=3, depth=9, end_at=None, deterministic=False)
    await (await same.load(tmp_path / "a"))
