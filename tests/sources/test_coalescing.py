"""Coalescing: the plan by properties, and ranges gathered in one turn of the loop."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both_loops, run_on, until

from aioloader import FetchError
from aioloader.sources.coalescing import Gatherer, Span, coalesce
from aioloader.sources.turns import Call, Turns

SPANS = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 60)).map(lambda s: (s[0], s[0] + s[1])),
    max_size=30,
)
DATA = bytes(random.Random(1).randbytes(4096))


def _disjoint(lengths: list[tuple[int, int]]) -> list[Span]:
    spans, at = [], 0
    for gap, length in lengths:
        spans.append((at + gap, at + gap + length))
        at += gap + length
    return spans


@given(SPANS, st.integers(0, 50), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_each_range_lies_in_one_read_within_the_limits(
    spans: list[Span], gap: int, most: int
) -> None:
    """No read is over the limit unless for one range, nor spans a gap over the bound."""
    reads = coalesce(spans, gap=gap, most=most)
    assert sorted(part for read in reads for part in read.parts) == list(range(len(spans)))
    for read in reads:
        inside = sorted(spans[part] for part in read.parts)
        assert (read.start, read.stop) == (inside[0][0], max(stop for _, stop in inside))
        longest = max(stop - start for start, stop in inside)
        assert read.stop - read.start <= max(most, longest)
        end = inside[0][1]
        for start, stop in inside[1:]:
            assert start - end <= gap
            end = max(end, stop)


@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 60)), max_size=25),
    st.integers(0, 50),
    st.integers(1, 200),
    st.randoms(use_true_random=False),
)
@settings(max_examples=100, deadline=None)
def test_bytes_of_separate_ranges_are_read_once_and_no_read_could_take_another_in(
    lengths: list[tuple[int, int]], gap: int, most: int, rng: random.Random
) -> None:
    """Reads do not overlap where ranges do not, whatever their order; merging any two breaks."""
    spans = _disjoint(lengths)
    shuffled = rng.sample(spans, len(spans))
    reads = coalesce(shuffled, gap=gap, most=most)
    assert [read[:2] for read in reads] == [
        read[:2] for read in coalesce(spans, gap=gap, most=most)
    ]
    for one, other in itertools.pairwise(reads):
        assert one.stop <= other.start
        first = min(shuffled[part] for part in other.parts)
        assert first[0] - one.stop > gap or first[1] - one.start > most


def test_limits_are_reached_and_a_range_over_them_is_a_request_of_its_own() -> None:
    """It neither is cut, nor takes others along, unless they lie in it."""
    reads = coalesce([(0, 10), (10, 500), (20, 30), (500, 510)], gap=10, most=100)
    assert [(read.start, read.stop) for read in reads] == [(0, 10), (10, 500), (500, 510)]
    assert reads[1].parts == (1, 2)
    reads = coalesce([(0, 50), (50, 100), (100, 101), (111, 112), (123, 124)], gap=10, most=100)
    assert [(read.start, read.stop) for read in reads] == [(0, 100), (100, 112), (123, 124)]


class _Source:
    """Serves ``DATA``, and counts."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self.gate: asyncio.Event | None = None
        self.running = 0
        self.error: Exception | None = None

    async def __call__(self, request: tuple[Any, int, int]) -> memoryview:
        self.asked.append(request)
        self.running += 1
        try:
            await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        finally:
            for _ in range(5):  # as the end of a request may take a while
                await asyncio.sleep(0)
            self.running -= 1
        if self.error is not None:
            raise self.error
        return memoryview(DATA)[request[1] : request[2]]


@both_loops
def test_ranges_of_one_turn_are_planned_together(loop: str) -> None:
    """As many requests as the plan says, and each part a slice of what came."""
    source = _Source()
    gatherer = Gatherer(source, gap=64, most=512)
    rng = random.Random(2)
    spans = [(start, start + rng.randrange(40)) for start in rng.sample(range(4000), 200)]
    keys = [rng.choice("ab") for _ in spans]

    async def main() -> list[list[memoryview]]:
        return await asyncio.gather(
            *(gatherer.read(k, [s]) for k, s in zip(keys, spans, strict=True))
        )

    for (start, stop), (part,) in zip(spans, run_on(loop, main()), strict=True):
        assert part == DATA[start:stop]
        assert part.obj is DATA
    expected = []
    for key in "ab":
        mine = [s for k, s in zip(keys, spans, strict=True) if k == key]
        expected += [(key, *read[:2]) for read in coalesce(mine, gap=64, most=512)]
    assert sorted(source.asked) == sorted(expected)


def test_several_ranges_of_one_call_come_in_their_order() -> None:
    """One request where they are near, as many as needed where they are not."""
    source = _Source()
    gatherer = Gatherer(source, gap=10, most=1000)
    parts = asyncio.run(gatherer.read("a", [(3000, 3010), (0, 5), (8, 20)]))
    assert parts == [DATA[3000:3010], DATA[0:5], DATA[8:20]]
    assert sorted(source.asked) == [("a", 0, 20), ("a", 3000, 3010)]
    assert asyncio.run(gatherer.read("a", [])) == []


@both_loops
def test_a_cancelled_call_takes_no_other_along(loop: str) -> None:
    """Its request goes on for those who still wait, and has ended once nobody does."""
    source = _Source()
    gatherer = Gatherer(source, gap=10, most=1000)

    async def main() -> None:
        source.gate = asyncio.Event()
        one, two = (asyncio.ensure_future(gatherer.read("a", [(i, i + 5)])) for i in (0, 5))
        await until(lambda: source.running == 1)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert source.running == 1
        source.gate.set()
        assert (await two)[0] == DATA[5:10]
        source.gate.clear()
        far = asyncio.ensure_future(gatherer.read("a", [(0, 5), (2000, 2005)]))
        await until(lambda: source.running == 2)
        far.cancel()
        with pytest.raises(asyncio.CancelledError):
            await far
        assert source.running == 0
        assert len(asyncio.all_tasks()) == 1

    run_on(loop, main())


def test_one_cancelled_in_its_first_turn_is_never_asked_for() -> None:
    """Only what somebody waits for is planned."""
    source = _Source()
    gatherer = Gatherer(source, gap=10, most=1000)

    async def main() -> None:
        one, two = (asyncio.ensure_future(gatherer.read("a", [(i, i + 5)])) for i in (90, 100))
        asyncio.get_running_loop().call_soon(one.cancel)
        # It was called after both had begun, and before their ranges are planned.
        assert (await two)[0] == DATA[100:105]

    asyncio.run(main())
    assert source.asked == [("a", 100, 105)]


def test_an_error_reaches_all_who_wait_each_with_one_of_its_own() -> None:
    """And ends the other requests of those who asked for more."""
    source = _Source()
    source.error = FetchError("a", 3, 0.5, "ShortRead")
    gatherer = Gatherer(source, gap=10, most=1000)

    async def main() -> list[Any]:
        calls = [gatherer.read("a", [(i, i + 5)]) for i in range(3)]
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = asyncio.run(main())
    assert [type(error) for error in errors] == [FetchError] * 3
    assert len({id(error) for error in errors}) == 3
    assert {str(error) for error in errors} == {str(source.error)}


def test_an_error_of_the_plan_reaches_all_who_asked() -> None:
    """And nobody waits for ever."""

    def plan(key: str, wants: Any) -> list[Call]:
        raise LookupError(f"{key} cannot be planned")

    async def main() -> list[Any]:
        turns = Turns(plan)
        return await asyncio.gather(*(turns.get(k, [1]) for k in "aab"), return_exceptions=True)

    assert [str(error) for error in asyncio.run(main())] == [
        "a cannot be planned",
        "a cannot be planned",
        "b cannot be planned",
    ]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"gap": -1}, ValueError, "coalesce_gap=-1"),
        ({"most": 0}, ValueError, "coalesce_most=0"),
        ({"gap": 1.5}, TypeError, "coalesce_gap=1.5"),
        ({"most": True}, TypeError, "coalesce_most=True"),
    ],
)
def test_wrong_limits_are_named(options: Any, error: type[Exception], text: str) -> None:
    """At once, with their value."""
    with pytest.raises(error, match=text):
        Gatherer(_Source(), **options)
