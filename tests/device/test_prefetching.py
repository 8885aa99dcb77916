"""`prefetching_map`: order, how much is ready, devices, and who draws where."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest
from support import simple_group, simple_load, until

from aioloader import Loader, LoadError, prefetching_map

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

SIZES = range(9)
LIMIT = 20.0


class Element:
    """Something of which it can be seen whether anybody holds it."""

    def __init__(self, number: int) -> None:
        self.number = number


class Inputs:
    """Elements that are counted, from a generator that says when it is closed."""

    def __init__(self, length: int = 6) -> None:
        self.length = length
        self.drawn = 0
        self.closed = 0
        self.most = 0
        self.alive: weakref.WeakSet[Element] = weakref.WeakSet()

    def _draw(self) -> Element:
        element = Element(self.drawn)
        self.alive.add(element)
        self.most = max(self.most, len(self.alive))
        self.drawn += 1
        return element


class SyncInputs(Inputs):
    def __iter__(self) -> Iterator[Element]:
        try:
            for _ in range(self.length):
                yield self._draw()
        finally:
            self.closed += 1


class AsyncInputs(Inputs):
    async def __aiter__(self) -> AsyncIterator[Element]:
        try:
            for _ in range(self.length):
                await asyncio.sleep(0)
                yield self._draw()
        finally:
            self.closed += 1


BOTH = pytest.mark.parametrize("kind", [SyncInputs, AsyncInputs])


def until_blocking(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def numbers(length: int) -> AsyncIterator[int]:
    for number in range(length):
        yield number


async def collect(stream: Any) -> list[Any]:
    return [element async for element in stream]


class Stream:
    """Async inputs of plain numbers, with a length, to be iterated over again and again."""

    def __len__(self) -> int:
        return 6

    def __aiter__(self) -> AsyncIterator[int]:
        return numbers(6)


# Order, length, iterations -------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("inputs", [range(6), Stream()], ids=["sync", "async"])
def test_a_for_loop_gets_everything_in_order(inputs: Any, size: int) -> None:
    """First in, first out, at every size of the buffer."""
    assert list(prefetching_map(inputs, buffer_size=size)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("inputs", [range(6), Stream()], ids=["sync", "async"])
async def test_an_async_for_loop_gets_everything_in_order(inputs: Any, size: int) -> None:
    """The same on an event loop."""
    assert await collect(prefetching_map(inputs, buffer_size=size)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", [0, 3])
async def test_no_inputs_are_no_elements(size: int) -> None:
    """And who goes on asking gets the same answer."""
    iterator = iter(prefetching_map([], buffer_size=size))
    assert [next(iterator, "end") for _ in range(3)] == ["end"] * 3
    stream = aiter(prefetching_map(numbers(0), buffer_size=size))
    assert [await anext(stream, "end") for _ in range(3)] == ["end"] * 3


def test_there_is_a_length_exactly_if_the_inputs_have_one() -> None:
    """So that progress bars know when to ask."""
    sized = prefetching_map([1, 2, 3])
    assert len(sized) == len(prefetching_map(sized)) == 3
    assert len(prefetching_map(Stream())) == 6
    for unsized in (prefetching_map(iter([1])), prefetching_map(numbers(2))):
        assert not hasattr(unsized, "__len__")
        assert not hasattr(prefetching_map(unsized), "__len__")
    assert repr(sized) == "<prefetching_map of [1, 2, 3]>"


@pytest.mark.parametrize("size", [0, 2])
async def test_iterations_do_not_see_each_other(size: int) -> None:
    """After a break the next one starts anew, and several run side by side."""
    for inputs in (range(6), Stream()):
        mapped = prefetching_map(inputs, buffer_size=size)
        async for element in mapped:
            if element == 2:
                break
        assert await collect(mapped) == [*range(6)]
        first, second = aiter(mapped), aiter(mapped)
        for number in range(6):
            assert await anext(first) == number
            assert await anext(second) == number
    mapped = prefetching_map(range(6), buffer_size=size)
    assert [*zip(mapped, mapped, strict=True)] == [(k, k) for k in range(6)]


def test_what_can_be_iterated_over_once_can_be_once() -> None:
    """As without prefetching."""
    mapped = prefetching_map(iter(range(4)))
    assert list(mapped) == [0, 1, 2, 3]
    assert list(mapped) == []


def test_threads_that_share_an_iterator_get_each_element_once() -> None:
    """Whichever asks first."""
    iterator = iter(prefetching_map(range(500), buffer_size=3))
    got: list[list[int]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=lambda k=k: got[k].extend(iterator)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(number for part in got for number in part) == [*range(500)]


# How much is ready ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
@BOTH
def test_a_for_loop_has_so_many_ready_and_never_more(kind: Any, size: int) -> None:
    """While one is in use, exactly ``buffer_size`` others are drawn, without being asked for."""
    inputs = kind(12)
    for element in prefetching_map(inputs, buffer_size=size):
        number = element.number
        del element
        until_blocking(lambda n=number: inputs.drawn == min(12, n + 1 + size))
    assert inputs.most <= size + 1


@pytest.mark.parametrize("size", [1, 2, 5])
@BOTH
async def test_an_async_for_loop_has_so_many_ready_and_never_more(kind: Any, size: int) -> None:
    """The same, by a task or by a thread beside the loop."""
    inputs = kind(12)
    async for element in prefetching_map(inputs, buffer_size=size):
        number = element.number
        await until(lambda n=number: inputs.drawn == min(12, n + 1 + size))
        del element
    assert inputs.most == size + 1


@BOTH
async def test_without_a_buffer_nothing_is_drawn_before_it_is_asked_for(kind: Any) -> None:
    """``buffer_size=0`` passes through."""
    inputs = kind(5)
    async for element in prefetching_map(inputs, buffer_size=0):
        await asyncio.sleep(0)
        assert inputs.drawn == element.number + 1
        del element
    assert inputs.most == 1


@pytest.mark.parametrize("size", [0, 2])
def test_nothing_is_drawn_before_the_first_element_is_asked_for(size: int) -> None:
    """An iterator that is never used costs nothing."""
    inputs = SyncInputs()
    before = threading.active_count()
    iterator = iter(prefetching_map(inputs, buffer_size=size))
    assert (inputs.drawn, threading.active_count()) == (0, before)
    del iterator


# Where it is drawn ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 2])
async def test_the_loop_goes_on_while_inputs_block(size: int) -> None:
    """Inputs of a `for` loop, under `async for`, wait here for something that the loop does."""
    done = threading.Event()

    def blocking() -> Iterator[bool]:
        yield done.wait(LIMIT)

    asyncio.get_running_loop().call_later(0.01, done.set)
    assert await collect(prefetching_map(blocking(), buffer_size=size)) == [True]


async def test_a_consumer_that_never_waits_lets_others_run() -> None:
    """Though every element is ready when it asks."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    stream = aiter(prefetching_map(range(100), buffer_size=100))
    await anext(stream)
    before = turns
    for _ in range(99):
        await anext(stream)
    assert turns - before >= 99
    task.cancel()


@pytest.mark.parametrize("size", [0, 2])
@pytest.mark.parametrize("inputs", [[np.ones(3)] * 3, None], ids=["sync", "async"])
async def test_elements_are_put_onto_devices_off_the_loop(
    inputs: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the inputs are."""

    async def arrays() -> AsyncIterator[Any]:
        for _ in range(3):
            yield np.ones(3)

    put, threads = jax.device_put, []

    def recorded(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return put(*args)

    monkeypatch.setattr(jax, "device_put", recorded)
    await collect(prefetching_map(inputs or arrays(), jax.devices()[0], size))
    assert len(threads) == 3
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("size", [0, 2])
async def test_context_variables_reach_the_inputs(size: int) -> None:
    """As they would if the inputs were iterated over as they are."""
    variable = contextvars.ContextVar("variable", default="other")
    variable.set("mine")

    def seen() -> Iterator[str]:
        yield variable.get()

    assert list(prefetching_map(seen(), buffer_size=size)) == ["mine"]
    assert await collect(prefetching_map(seen(), buffer_size=size)) == ["mine"]


# Devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 2])
async def test_elements_come_as_they_are_or_on_their_device(size: int) -> None:
    """None, a device, a sharding, or a tree of them over a part of the element."""
    device = jax.devices()[0]
    one = jax.sharding.SingleDeviceSharding(device)
    trees = [{"x": np.arange(3.0), "y": (np.ones((2, 2), "int32"), k)} for k in range(3)]
    assert all(a is b for a, b in zip(trees, prefetching_map(trees, None, size), strict=True))
    for target in (device, one, {"x": device, "y": one}, {"x": one, "y": (device, device)}):
        for got in (
            list(prefetching_map(trees, target, size)),
            await collect(prefetching_map(trees, target, size)),
        ):
            for tree, placed in zip(trees, got, strict=True):
                assert jax.tree.structure(tree) == jax.tree.structure(placed)
                for leaf, array in zip(jax.tree.leaves(tree), jax.tree.leaves(placed), strict=True):
                    assert array.committed
                    assert array.devices() == {device}
                    assert (np.asarray(array) == leaf).all()


def test_what_cannot_be_put_onto_a_device_says_what_it_is() -> None:
    """With JAX's own error."""
    with pytest.raises(TypeError) as caught:
        list(prefetching_map([Element(0)], jax.devices()[0]))
    assert "an element, of type Element, onto device=" in caught.value.__notes__[0]


async def test_batches_of_a_loader_are_held_only_as_long_as_said() -> None:
    """A depth of ``buffer_size + 1`` is enough for a loader never to starve."""
    options = {"num_workers": 0, "end_at": ("epoch", 4), "timeout": LIMIT}
    group = simple_group(shuffle_later="repeat")
    async with Loader(simple_load, group, depth=3, **options) as loader:
        seen = []
        async for batch in prefetching_map(loader, buffer_size=2):
            seen.append(batch.arrays["x"][:, 0].tolist())
            del batch
    assert seen == [[*range(k, k + 8)] for k in range(0, 64, 8)] * 4


async def test_behind_an_error_it_goes_on_where_the_inputs_do() -> None:
    """A loader delivers the next batch after a `LoadError`."""

    def picky(item: int, arrays: Any, seed: int | None) -> None:
        if item == 20:
            raise ValueError("unreadable")
        simple_load(item, arrays, seed)

    outcomes: list[Any] = []
    async with Loader(picky, simple_group(), num_workers=0, depth=4, end_at=("epoch", 1)) as loader:
        stream = aiter(prefetching_map(loader, buffer_size=2))
        while len(outcomes) < 9:
            try:
                batch = await anext(stream, None)
            except LoadError as error:
                outcomes.append(error.batch)
            else:
                outcomes.append(batch and int(batch.arrays["x"][0, 0]))
                del batch
    assert outcomes == [0, 8, 2, 24, 32, 40, 48, 56, None]


# Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4])
async def test_an_exception_comes_in_its_turn_and_is_the_same(size: int) -> None:
    """Behind the elements before it, with the producer's traceback."""
    errors: list[OSError] = []

    def faulty() -> Iterator[int]:
        yield 0
        yield 1
        raise errors[-1]

    async def faulty_stream() -> AsyncIterator[int]:
        yield 0
        yield 1
        raise errors[-1]

    async def check(step: Callable[[], Any], name: str) -> None:
        got = []
        errors.append(OSError("gone"))
        with pytest.raises(OSError, match="gone") as caught:
            while True:
                value = step()
                got.append(await value if asyncio.iscoroutine(value) else value)
        assert got == [0, 1]
        assert caught.value is errors[-1]
        assert caught.traceback[-1].name == name

    await check(iter(prefetching_map(faulty(), buffer_size=size)).__next__, "faulty")
    await check(aiter(prefetching_map(faulty(), buffer_size=size)).__anext__, "faulty")
    await check(
        aiter(prefetching_map(faulty_stream(), buffer_size=size)).__anext__, "faulty_stream"
    )


class Fails:
    """Inputs of which iterating fails, with an error that ends loops."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self) -> Iterator[int]:
        raise self.error


class FailsAsync:
    """The same for `async for`."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __aiter__(self) -> AsyncIterator[int]:
        raise self.error


def stop(number: int) -> int:
    if number == 2:
        raise StopIteration(number)
    return number


@pytest.mark.parametrize("size", [0, 2])
async def test_a_stray_stop_iteration_does_not_look_like_the_end(size: int) -> None:
    """From a generator, from a function that `map` calls, from iterating itself."""
    cases: list[tuple[Callable[[], Any], list[int]]] = [
        (lambda: (stop(k) for k in range(4)), [0, 1]),
        (lambda: map(stop, range(4)), [0, 1]),
        (lambda: filter(stop, range(1, 4)), [1]),
        (lambda: Fails(StopIteration()), []),
        (lambda: Fails(StopAsyncIteration()), []),
    ]
    for make, before in cases:
        got: list[int] = []
        with pytest.raises(RuntimeError, match="Stop"):
            got.extend(prefetching_map(make(), buffer_size=size))
        assert got == before
        got = []
        with pytest.raises(RuntimeError, match="Stop"):
            async for element in prefetching_map(make(), buffer_size=size):
                got.append(element)
        assert got == before
    for error in (StopIteration(), StopAsyncIteration()):
        with pytest.raises(RuntimeError, match="Stop"):
            await collect(prefetching_map(FailsAsync(error), buffer_size=size))


def test_what_ends_as_it_should_is_not_taken_for_an_error() -> None:
    """Iterators written in Python, alone and inside of others, that end by StopIteration."""

    class Countdown:
        def __init__(self) -> None:
            self.left = 3

        def __iter__(self) -> Iterator[int]:
            return self  # type: ignore[return-value]

        def __next__(self) -> int:
            return self._next()

        def _next(self) -> int:
            if self.left == 0:
                raise StopIteration
            self.left -= 1
            return self.left

    for inputs in (Countdown(), map(abs, Countdown()), filter(None.__class__, [])):
        assert list(prefetching_map(inputs)) in ([2, 1, 0], [])
    assert list(prefetching_map(map(abs, Countdown()))) == [2, 1, 0]
    assert list(prefetching_map(zip(Countdown(), Countdown(), strict=True))) == [
        (2, 2),
        (1, 1),
        (0, 0),
    ]


async def test_inputs_that_are_cancelled_by_themselves_say_so() -> None:
    """As `async for` over them would; a task that is cancelled from outside is no end either."""

    async def cancelled() -> AsyncIterator[int]:
        yield 0
        raise asyncio.CancelledError

    stream = aiter(prefetching_map(cancelled()))
    assert await anext(stream) == 0
    with pytest.raises(asyncio.CancelledError):
        await anext(stream)
    endless = AsyncInputs(10**9)
    stream = aiter(prefetching_map(endless, buffer_size=1))
    await anext(stream)
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "prefetching_map"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        for _ in range(3):
            await anext(stream)
    assert endless.closed == 1


def test_a_for_loop_over_async_inputs_is_refused_in_a_running_loop() -> None:
    """Also through further maps; it says what to write."""

    async def main() -> None:
        for mapped in (
            prefetching_map(Stream()),
            prefetching_map(prefetching_map(Stream(), buffer_size=0)),
        ):
            with pytest.raises(RuntimeError, match=r"write `async for \.\.\. in prefetching_map"):
                list(mapped)
            assert await collect(mapped) == [*range(6)]

    asyncio.run(main())


def test_an_iterator_belongs_to_its_loop() -> None:
    """Another loop gets an error that says so."""
    stream = aiter(prefetching_map(range(9)))

    async def one() -> int:
        return await anext(stream)

    assert asyncio.run(one()) == 0
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(one())


@pytest.mark.parametrize("size", [-1, True, 1.5, "2", None])
def test_wrong_sizes_are_refused_at_once(size: Any) -> None:
    """With the parameter's name and the value."""
    with pytest.raises((TypeError, ValueError), match=rf"buffer_size must .*{size!r}"):
        prefetching_map([], buffer_size=size)


def test_wrong_inputs_and_devices_are_refused_at_once() -> None:
    """The same."""
    assert list(prefetching_map(range(2), buffer_size=np.int64(1))) == [0, 1]
    for inputs in (5, None, object()):
        with pytest.raises(TypeError, match="inputs must be"):
            prefetching_map(inputs)  # type: ignore[call-overload]
    for device in ("cpu", 0, {}, [jax.devices()[0], "cpu"]):
        with pytest.raises(TypeError, match="device must be"):
            prefetching_map([], device)
