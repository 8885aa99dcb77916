"""The table of faults: our row of it, and that it can tell better from worse."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from benchmarks.peers.enclosure import Outcome, enclosed
from benchmarks.peers.faulty import BAD, FAULTS, ITEMS
from benchmarks.peers.verdicts import Verdict, judge, worst

NAMED = "right error, names the item; all other batches arrive"
EXPECTED = {"exception": NAMED, "result": NAMED, "program": "nothing left"}


@pytest.mark.parametrize("fault", FAULTS)
def test_our_row_keeps_the_rule(fault: str) -> None:
    """Whatever goes wrong, all rows or all other batches arrive, and nothing is left."""
    outcome = enclosed(sys.executable, "aioloader", fault)
    if not outcome.private:  # what others keep there is not ours
        outcome.files = [name for name in outcome.files if not name.startswith("/dev/shm")]
    verdict = judge(fault, outcome)
    assert verdict.passed, verdict.text + outcome.errors
    assert verdict.text.startswith(EXPECTED.get(fault, "all rows"))
    assert "left" not in verdict.text.replace("nothing left", "")


def batches(*items: int) -> list[dict[str, Any]]:
    """Return the journal of a program that got these items."""
    return [{"batch": [item], "torn": 0, "waited": 0.1} for item in items]


def error(name: str, message: str) -> dict[str, Any]:
    """Return the entry of an error."""
    return {"error": name, "message": message, "text": "", "waited": 0.1}


END: dict[str, Any] = {"end": True, "waited": 0.1}
PART = batches(*ITEMS[:100])
OTHERS = batches(*ITEMS[:200], *ITEMS[208:])
RIGHT = error("LoadError", f"item {BAD} is unreadable: truncated")


@pytest.mark.parametrize(
    ("journal", "options", "passed", "text"),
    [
        ([*batches(*ITEMS), END], {}, True, "all rows, 0.10 s"),
        ([*OTHERS, RIGHT, END], {}, True, NAMED),
        ([*PART, RIGHT, END], {}, True, "right error, names the item; 300 rows lost"),
        ([*PART, END], {}, False, "300 rows lost, silently"),
        ([*PART, END], {"errors": "oh"}, False, "300 rows lost, only logged"),
        (PART, {"status": None}, False, "hangs, 300 rows lost"),
        ([*PART, RIGHT], {"status": None}, False, "hangs when asked again"),
        ([*batches(*ITEMS), END], {"status": None}, False, "does not exit"),
        ([*batches(*ITEMS, ITEMS[0]), END], {}, False, "1 rows twice"),
        ([*OTHERS, error("OSError", "broken"), END], {}, False, "`OSError`, does not say which"),
    ],
)
def test_a_verdict_says_what_happened(
    journal: list[dict[str, Any]], options: dict[str, Any], passed: bool, text: str
) -> None:
    """Loss, hanging and vague errors do not pass, however the program ended."""
    verdict = judge("exception", Outcome(journal, **{"status": 0, **options}))
    assert verdict.passed is passed
    assert text in verdict.text


def test_what_is_left_by_a_killed_program_is_counted() -> None:
    """Processes and memory each make the verdict worse; so does a kill that did not happen."""
    left = Outcome(status=-9, killed=1, processes=["a", "b"], files=["/dev/shm/x", "/tmp/y"])
    verdict = judge("program", left)
    assert not verdict.passed
    assert verdict.text == "2 processes, 1 object in shared memory, 1 temporary file left"
    assert not judge("program", Outcome([*PART, END], status=0)).passed


def test_the_worst_repetition_counts() -> None:
    """One failure outweighs any number of passes."""
    good, bad = Verdict(True, "good", (9,)), Verdict(False, "bad", (0,))
    assert worst([good, bad, good]) is bad
