"""Failures: any exception becomes text that travels, and comes back itself where it can."""

from __future__ import annotations

import pickle
from typing import Any, NoReturn

import pytest

from aioloader._executors.failures import Failure, short


class Plain(Exception):
    """One that pickles like any other."""


class HasArguments(Exception):
    """One whose state is rebuilt in full."""

    def __init__(self, code: int, *, why: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.why = why


class FailsAtDump(Exception):
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("not to be pickled")


class FailsAtLoad(Exception):
    """Pickling it works; unpickling calls it with an argument too few."""

    def __init__(self, one: object, two: object) -> None:
        super().__init__(one)


class LoadsAsSomethingElse(Exception):
    def __reduce__(self) -> Any:
        return str, ("no exception any more",)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class UnprintableName(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def raised(error: BaseException) -> BaseException:
    """Return the exception as it is when it has been raised: with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def travelled(error: BaseException) -> Failure:
    """Capture an exception and send it through pickle, as to another process."""
    failure: Failure = pickle.loads(pickle.dumps(Failure.capture(raised(error))))
    return failure


def test_the_exception_itself_comes_back_as_the_cause() -> None:
    """With its type, its arguments and its attributes."""
    error = travelled(HasArguments(7, why="so")).to_item_error(3)
    assert isinstance(error.__cause__, HasArguments)
    assert (error.__cause__.code, error.__cause__.why) == (7, "so")
    assert (error.row, error.died) == (3, False)
    assert str(error) == "test_failures.HasArguments: 7"


def test_the_text_says_where_it_was_raised() -> None:
    failure = travelled(Plain("broken"))
    assert failure.summary == "test_failures.Plain: broken"
    assert "in raised" in failure.remote_traceback
    assert "raise error" in failure.remote_traceback
    assert failure.to_item_error(0).remote_traceback == failure.remote_traceback


@pytest.mark.parametrize(
    "error",
    [
        FailsAtDump("text"),
        FailsAtLoad("text", 2),
        LoadsAsSomethingElse("text"),
        Plain("text", (n for n in ())),
    ],
    ids=lambda error: f"{type(error).__name__}{len(error.args)}",
)
def test_an_exception_that_does_not_pickle_is_told_in_words(error: Exception) -> None:
    """Nothing is lost but the object."""
    failure = travelled(error)
    item_error = failure.to_item_error(1)
    assert type(error).__name__ in str(item_error)
    assert "text" in str(item_error)
    assert "in raised" in item_error.remote_traceback
    assert item_error.__cause__ is None


@pytest.mark.parametrize("error", [Unprintable(), UnprintableName()], ids=["str", "str and repr"])
def test_an_exception_without_a_text_is_named_by_its_type(error: Exception) -> None:
    failure = travelled(error)
    assert type(error).__name__ in failure.summary
    assert type(error).__name__ in str(failure.to_item_error(0))


def test_notes_and_causes_are_in_the_text() -> None:
    try:
        try:
            raise KeyError("the first")
        except KeyError as first:
            raise Plain("the second") from first
    except Plain as second:
        second.add_note("a note of the user's")
        failure = Failure.capture(second)
    for part in ("the first", "direct cause", "the second", "a note of the user's"):
        assert part in failure.remote_traceback
    cause = failure.to_item_error(0).__cause__
    assert cause is not None
    assert cause.__notes__ == ["a note of the user's"]


def test_groups_of_exceptions_arrive_with_all_that_is_in_them() -> None:
    failure = travelled(ExceptionGroup("many", [Plain("one"), ValueError("two")]))
    assert "one" in failure.remote_traceback
    assert "two" in failure.remote_traceback
    assert isinstance(failure.to_item_error(0).__cause__, ExceptionGroup)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_exceptions_that_end_programs_are_captured_like_others(error: BaseException) -> None:
    """In a worker they end an item; they must not end what unpickles them."""
    item_error = travelled(error).to_item_error(0)
    assert type(item_error.__cause__) is type(error)
    assert type(error).__name__ in str(item_error)


def test_an_exception_whose_text_is_empty_still_has_a_message() -> None:
    assert str(travelled(ValueError()).to_item_error(0)) == "ValueError"


def test_a_chain_that_leads_back_to_itself_is_captured() -> None:
    one, two = Plain("one"), Plain("two")
    one.__cause__, two.__cause__ = two, one
    assert "one" in Failure.capture(one).remote_traceback


def test_short_is_short_for_any_value() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    for value in ("x" * 10_000, list(range(10_000)), b"x" * 10_000, {n: n for n in range(1000)}):
        assert len(short(value)) < 300
    assert "Rude" in short(Rude())
    assert short({"a": 1}) == "{'a': 1}"
