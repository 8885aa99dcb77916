"""Explaining: errors that name group, batch, row and item, and say where it happened."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from session_bench import tickets

from aioloader._engine.explaining import explain
from aioloader.errors import AioLoaderError, ItemError, LoadError, WorkerDied

TICKET = replace(tickets(1)[0], group=2, epoch=3, group_index=17)


def item_error(row: int = 1, **options: Any) -> ItemError:
    error = ItemError("ValueError: broken", row=row, **options)
    error.__cause__ = ValueError("broken")
    return error


def test_a_row_that_failed_is_named_with_its_item() -> None:
    explained = explain(item_error(remote_traceback="Traceback: in load"), TICKET, "abcd")
    assert type(explained) is LoadError
    assert isinstance(explained, AioLoaderError)
    assert (explained.group, explained.batch) == ("training group 2", 17)
    assert (explained.row, explained.item) == (1, "b")
    assert str(explained) == (
        "batch 17 of training group 2, epoch 3 could not be loaded: "
        "row 1 (item 'b'): ValueError: broken"
    )
    assert explained.__notes__ == ["Where it happened:\nTraceback: in load"]
    assert isinstance(explained.__cause__, ValueError)


def test_validation_is_called_validation() -> None:
    explained = explain(item_error(), replace(TICKET, validation=True), "abcd")
    assert explained.group == "validation group 2"
    assert "batch 17 of validation group 2, run 3" in str(explained)


def test_a_worker_that_died_is_told_apart() -> None:
    explained = explain(item_error(pid=4711, exitcode=-9), TICKET, "abcd")
    assert isinstance(explained, WorkerDied)
    assert (explained.pid, explained.exitcode) == (4711, -9)


def test_a_failure_of_no_row_in_particular_names_none() -> None:
    """Such as workers that cannot start."""
    explained = explain(item_error(row=-1), TICKET, "abcd")
    assert (explained.row, explained.item) == (None, None)
    assert str(explained).endswith("could not be loaded: ValueError: broken")


@pytest.mark.parametrize("stage", ["load", "place"])
def test_any_other_error_concerns_the_batch(stage: str) -> None:
    error = OSError("no disk")
    explained = explain(error, TICKET, "abcd", stage=stage)
    assert (explained.batch, explained.row, explained.item) == (17, None, None)
    assert f"{stage} failed: OSError: no disk" in str(explained)
    assert explained.__cause__ is error


def test_an_item_that_is_not_known_does_not_matter() -> None:
    """The items themselves may have been what failed."""
    explained = explain(item_error(row=5), TICKET, ())
    assert (explained.row, explained.item) == (5, None)


def test_a_long_item_is_shortened_in_the_message_and_whole_in_the_error() -> None:
    item = "x" * 100_000
    explained = explain(item_error(row=0), TICKET, [item])
    assert len(str(explained)) < 1000
    assert explained.item is item


def test_what_the_error_held_is_let_go_of() -> None:
    """Its frames hold views of the slot; whoever keeps the error would keep the slot."""

    class View:
        alive = True

        def __del__(self) -> None:
            View.alive = False

    def fill() -> None:
        view = View()
        raise item_error() if view.alive else AssertionError

    try:
        fill()
    except ItemError as error:
        explained = explain(error, TICKET, "abcd")
    assert not View.alive
    assert explained.row == 1
