"""Worker processes: what they are, what reaches them, and what comes back."""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import os
import signal
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
from executor_bench import LAYOUTS, ROWS, Bench, bench
from support import until

from aioloader._executors.forkserver import server
from aioloader._executors.process import ProcessExecutor
from aioloader._memory.declaring import make_layouts
from aioloader.errors import ItemError
from aioloader.protocols import Work

if TYPE_CHECKING:
    from pathlib import Path

ON_LOOPS = ["asyncio"]  # but for what is marked otherwise
on_both_loops = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


def plain(item: Any, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item


async def ask(question: Any, **options: Any) -> list[Any]:
    """Return what ``question()`` returns in workers, once for each row."""
    async with bench(lambda *_: {"answer": question()}, **options) as b:
        return list((await b.fill(range(ROWS))).extras["answer"])


# What workers are ---------------------------------------------------------------------------------


async def test_load_may_import_jax_in_a_worker() -> None:
    """Nothing keeps the user from it."""
    assert set(await ask(lambda: __import__("jax").__name__, num_workers=1)) == {"jax"}


@pytest.mark.parametrize(("dtype", "expected"), [("int32", []), ("bfloat16", ["ml_dtypes"])])
async def test_rare_dtypes_are_imported_once_for_all_workers(
    monkeypatch: pytest.MonkeyPatch, dtype: str, expected: list[str]
) -> None:
    """By their server, and only where a layout has any."""
    preloaded: list[str] = []
    monkeypatch.setattr(server, "preload", preloaded.append)
    layouts = (make_layouts({"x": ((), dtype, dtype)}, ROWS, "arrays"),)
    executor = ProcessExecutor(Work(plain, layouts, num_workers=1))
    segment = executor.allocate(4096)
    async with executor:
        await until(lambda: len(executor.worker_pids) == 1)
    segment.close()
    assert preloaded == expected


@pytest.mark.parametrize("nice", [0, 10, 19])
async def test_workers_are_as_nice_as_they_were_asked_to_be(nice: int) -> None:
    """Beyond what the program is itself."""
    mine = os.nice(0)
    answers = await ask(lambda: os.nice(0), worker_nice=nice)
    assert set(answers) == {min(mine + nice, 19)}
    assert os.nice(0) == mine


async def test_workers_are_other_processes_and_there_are_as_many_as_asked_for() -> None:
    """The same ones from fill to fill: an epoch does not start them anew."""

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, int]:
        return {"pid": os.getpid()}

    async with bench(load, num_workers=3) as b:
        seen: set[Any] = set()
        for _ in range(30):
            seen |= set((await b.fill(range(ROWS))).extras["pid"])
        await until(lambda: len(b.executor.worker_pids) == 3)
        assert seen <= set(b.executor.worker_pids)
        assert os.getpid() not in seen
    assert b.executor.worker_pids == []


async def test_an_interrupt_does_not_end_workers() -> None:
    """Ctrl-C reaches every process of the terminal, and is the program's to handle."""
    async with bench(plain) as b:
        await b.fill(range(ROWS))
        pids = b.executor.worker_pids
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        for _ in range(3):
            assert (await b.fill(range(ROWS))).x == list(range(ROWS))
        assert b.executor.worker_pids == pids
        assert b.executor.worker_deaths == 0


async def test_workers_draw_different_random_numbers() -> None:
    """Though they were all forked from one process."""

    def draw() -> Any:
        import random

        import numpy

        return os.getpid(), numpy.random.randint(2**60), random.random()

    async with bench(lambda *_: {"answer": draw()}, num_workers=3) as b:
        drawn: list[Any] = []
        while len({pid for pid, _, _ in drawn}) < 2:
            drawn += (await b.fill(range(ROWS))).extras["answer"]
    assert len({number for _, number, _ in drawn}) == len(drawn)
    assert len({number for _, _, number in drawn}) == len(drawn)


async def test_workers_know_that_they_are_workers() -> None:
    from aioloader._executors.worker import is_worker

    assert set(await ask(lambda: is_worker())) == {True}
    assert not is_worker()


async def test_workers_start_where_the_program_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In its directory, with what it imports from."""
    (tmp_path / "beside_the_program.py").write_text("VALUE = 41")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def look() -> Any:
        import beside_the_program  # type: ignore[import-not-found]

        return os.getcwd(), beside_the_program.VALUE

    assert set(await ask(look)) == {(str(tmp_path), 41)}


@on_both_loops
async def test_a_program_with_very_many_descriptors_has_workers_too() -> None:
    """A server, say: some system calls cannot take numbers beyond 1023."""
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        async with bench(plain, item_timeout=5) as b:
            await b.fill(range(ROWS))
            os.kill(b.executor.worker_pids[0], signal.SIGKILL)
            assert (await b.fill(range(ROWS))).x == list(range(ROWS))
    finally:
        for number in opened:
            os.close(number)


# What reaches them --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1 << 16, 1 << 20, 1 << 25], ids=["64 KiB", "1 MiB", "32 MiB"])
@pytest.mark.parametrize("kind", [bytes, bytearray, "array", "nested"])
async def test_payloads_arrive_whole(size: int, kind: Any) -> None:
    """Whatever their size and however they are wrapped."""
    data = np.random.default_rng(size).bytes(size)
    payload: Any = {
        bytes: lambda: data,
        bytearray: lambda: bytearray(data),
        "array": lambda: np.frombuffer(data, "uint8"),
        "nested": lambda: {"a": [data[: size // 2], np.frombuffer(data[size // 2 :], "uint8")]},
    }[kind]()

    def load(item: Any, arrays: Any, seed: int | None) -> dict[str, str]:
        import hashlib

        parts = item["a"] if isinstance(item, dict) else [item]
        digest = hashlib.blake2b()
        for part in parts:
            digest.update(part)
        arrays["x"][...] = sum(len(part) for part in parts)
        return {"digest": digest.hexdigest()}

    async with bench(load) as b:
        result = await b.fill([payload, payload])
    assert result.x[:2] == [size, size]
    assert set(result.extras["digest"]) == {hashlib.blake2b(data).hexdigest()}


async def test_a_small_payload_before_large_ones_does_not_matter() -> None:
    async with bench(lambda item, arrays, _: arrays["x"].fill(len(item))) as b:
        result = await b.fill([b"", b"x" * 3_000_000, b"abc", bytearray(400_000)])
    assert result.x[:4] == [0, 3_000_000, 3, 400_000]


@on_both_loops
async def test_large_extras_come_back_whole() -> None:
    size = 50_000_000

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        import numpy

        if item == 0:
            return {"blob": bytes(range(256)) * (size // 256)}
        return {"array": numpy.arange(size // 8)}

    async with bench(load) as b:
        result = await b.fill([0, 1])
    assert result.extras["blob"][0] == bytes(range(256)) * (size // 256)
    assert (result.extras["array"][1] == np.arange(size // 8)).all()


async def test_payloads_leave_no_descriptors() -> None:
    """Neither here nor in the workers, and the memory is given back."""

    def count() -> Any:
        return os.getpid(), len(os.listdir("/proc/self/fd"))

    async with bench(lambda *_: {"count": count()}, num_workers=1) as b:
        before = dict((await b.fill([bytes(1 << 20)])).extras["count"])
        mine = os.listdir("/proc/self/fd")
        for _ in range(20):
            after = dict((await b.fill([bytes(1 << 20)] * ROWS)).extras["count"])
        assert after == before
        assert os.listdir("/proc/self/fd") == mine


async def test_an_item_that_cannot_be_sent_is_named() -> None:
    """Before anything reaches a worker; the rest of the fill does not matter."""
    items: list[Any] = list(range(ROWS))
    items[5] = (n for n in ())
    async with bench(plain) as b:
        with pytest.raises(ItemError, match=r"generator.*cannot be sent to a worker") as caught:
            await b.fill(items)
        assert caught.value.row == 5
        assert isinstance(caught.value.__cause__, TypeError)
        assert (await b.fill(range(ROWS))).x == list(range(ROWS))


class FailsToArrive:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


@pytest.mark.parametrize("size", [0, 100_000], ids=["small", "large"])
async def test_an_item_that_does_not_arrive_is_an_error(size: int) -> None:
    async with bench(plain) as b:
        with pytest.raises(ItemError, match="ValueError: invalid literal") as caught:
            await b.fill([(FailsToArrive(), bytes(size))])
        assert (caught.value.row, caught.value.died) == (0, False)
        assert (await b.fill(range(ROWS))).x == list(range(ROWS))


async def test_functions_travel_in_every_form() -> None:
    """Lambdas, closures, methods, partials, and callable objects."""

    class Loader:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def method(self, item: int, arrays: Any, seed: int | None) -> None:
            arrays["x"][...] = item * self.factor

        def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
            self.method(item, arrays, seed)

    def scaled(factor: int, item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item * factor

    factor = 3
    functions: list[Any] = [
        lambda item, arrays, seed: arrays["x"].fill(item * factor),
        Loader(3).method,
        Loader(3),
        functools.partial(scaled, 3),
    ]
    for function in functions:
        async with bench(function, num_workers=1) as b:
            assert (await b.fill(range(4))).x[:4] == [0, 3, 6, 9]


async def test_a_large_closure_travels() -> None:
    """A table that the function looks things up in."""
    table = np.arange(4_000_000)
    async with bench(lambda item, arrays, _: arrays["x"].fill(table[item])) as b:
        assert (await b.fill([5, 3_999_999])).x[:2] == [5, 3_999_999]


@pytest.mark.parametrize("name", ["load", "startup"])
def test_a_function_that_cannot_travel_is_named(name: str) -> None:
    """When the executor is made, and not when a worker fails to start."""
    lock = asyncio.Lock()
    generator = (n for n in ())

    def refers_to_it(*_: object) -> None:
        next(generator)
        lock.locked()

    functions: dict[str, Any] = {"load": plain, "startup": None, name: refers_to_it}
    with pytest.raises(TypeError, match=rf"^{name}=.*refers_to_it.*cannot be sent"):
        ProcessExecutor(Work(layouts=LAYOUTS, **functions))


@on_both_loops
async def test_a_function_that_does_not_arrive_is_an_error_of_every_fill() -> None:
    """It pickled here; the worker could not make it whole again."""

    class Broken:
        def __call__(self, *_: object) -> None: ...
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    async with bench(Broken()) as b:
        for _ in range(2):
            with anyio.fail_after(10):
                with pytest.raises(ItemError, match=r"a worker could not start.*invalid literal"):
                    await b.fill(range(ROWS))
            await asyncio.sleep(0.01)


# What comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [lambda: (n for n in ()), lambda: __import__("threading").Lock()],
    ids=["generator", "lock"],
)
async def test_a_result_that_cannot_be_sent_is_an_error(result: Any) -> None:
    """It names the row that returned it."""

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        arrays["x"][...] = item
        return {"result": result()} if item == 5 else {"result": item}

    async with bench(load, num_workers=1) as b:
        if (await answers(b, range(5))) != [0, 1, 2, 3, 4]:
            raise AssertionError
        with pytest.raises(ItemError) as caught:
            await b.fill(range(ROWS))
        assert caught.value.row == 5
        assert "pickle" in str(caught.value)
        assert (await answers(b, range(5))) == [0, 1, 2, 3, 4]


async def answers(b: Bench, items: Any) -> list[Any]:
    return list((await b.fill(items)).extras["result"])


@on_both_loops
@pytest.mark.parametrize("size", [0, 100_000], ids=["small", "large"])
async def test_a_result_that_does_not_arrive_is_an_error(size: int) -> None:
    """It pickled in the worker and does not unpickle here; nobody waits for it for ever."""

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        class FailsToArrive:
            def __reduce__(self) -> Any:
                return int, ("not a number",)

        arrays["x"][...] = item
        return {"result": FailsToArrive() if item == 5 else item, "bytes": bytes(size)}

    async with bench(load, num_workers=1) as b:
        assert (await answers(b, range(5))) == [0, 1, 2, 3, 4]
        with anyio.fail_after(5):
            with pytest.raises(ItemError, match="invalid literal"):
                await b.fill(range(ROWS))
            assert (await answers(b, range(5))) == [0, 1, 2, 3, 4]


async def test_answers_that_nobody_reads_any_more_are_given_back() -> None:
    """They had arrived when the executor was left, and were waiting to be decoded."""

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        class Slow:
            def __reduce__(self) -> Any:
                return __import__("time").sleep, (0.05,)

        return {"slow": Slow(), "bytes": bytes(100_000)}

    before = set(os.listdir("/proc/self/fd"))
    async with bench(load) as b:
        filling = [asyncio.ensure_future(b.fill(range(ROWS))) for _ in range(4)]
        await until(lambda: len(set(os.listdir("/proc/self/fd")) - before) > 12)
        await until(lambda: any(task.done() for task in filling))
        for task in filling:
            task.cancel()
        await asyncio.wait(filling)
    gc.collect()

    def parcels() -> list[str]:
        links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
        return [n for n in links if os.path.islink(n) and "parcel" in os.readlink(n)]

    await until(lambda: parcels() == [], seconds=5)


async def test_what_workers_are_sent_is_let_go_of() -> None:
    """A worker that has been busy is no larger than before, and the loader neither."""

    def load(item: Any, arrays: Any, seed: int | None) -> dict[str, int]:
        with open("/proc/self/smaps_rollup") as lines:
            sizes = {line.split()[0]: int(line.split()[1]) for line in list(lines)[1:]}
        return {"kib": sizes["Pss:"]}

    async with bench(load, num_workers=1) as b:
        for _ in range(3):
            (before,) = (await b.fill([bytes(1 << 23)])).extras["kib"]
        for _ in range(12):
            (after,) = (await b.fill([bytes(1 << 23)])).extras["kib"]
        assert after - before < 4096
        gc.collect()
        with open("/proc/self/maps") as maps:
            assert "aioloader-parcel" not in maps.read()


@on_both_loops
async def test_more_chunks_than_the_queue_holds_are_all_done() -> None:
    """What does not fit waits in order; nothing is sent twice."""
    async with bench(plain, depth=2) as b:
        fills = [b.fill([n] * ROWS) for n in range(3000)]
        results = await asyncio.gather(*fills)
    assert [result.x for result in results] == [[n] * ROWS for n in range(3000)]


def test_the_memory_is_allocated_before_entering() -> None:
    async def main() -> None:
        executor = ProcessExecutor(Work(plain, LAYOUTS))
        with pytest.raises(RuntimeError, match="allocate"):
            async with executor:
                pass

    asyncio.run(main())
