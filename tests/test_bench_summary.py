"""The summary of a comparison: ours and the best of the others, and where it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.documents import END, put
from benchmarks.harness import Outcome
from benchmarks.summary import lines, summary

if TYPE_CHECKING:
    from pathlib import Path


def outcome(loader: str, case: str = "", **figures: Any) -> Outcome:
    return Outcome(0, case, loader, {"wrong": "", **figures})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ours_stands_beside_the_best_of_the_others() -> None:
    """The quickest, with its own share and CPU time; the limit is nobody's peer."""
    found = lines(
        "tiny",
        [
            outcome("pair", rate=100.0, cpu_us=1.0),
            outcome("ours", rate=80.0, cpu_us=1.5),
            outcome("torch", rate=20.0, cpu_us=9.0),
            outcome("grain_threads", rate=40.0, cpu_us=4.0),
        ],
    )
    (line,) = found
    assert cells(line)[1:] == (
        ["aioloader", "80", "0.80", "1.50", "Grain, threads", "40", "0.40", "4.00"]
    )


def test_each_of_our_ways_has_a_line() -> None:
    found = lines("tiny", [outcome("ours", rate=8.0), outcome("ours_vectorized", rate=9.0)])
    assert [cells(line)[2] for line in found] == ["8", "9"]
    assert all(cells(line)[5:] == [""] * 4 for line in found)


def test_slopes_are_left_to_the_whole_table() -> None:
    assert lines("growth_depth", [outcome("ours", "4", setup_ms=8.0)]) == []


def test_of_several_cases_the_worst_counts() -> None:
    """For everybody; and where less is better, the best of the others is who needs least."""
    found = lines(
        "resume",
        [
            outcome("ours", "1 % of 1e6", first_ms=10.0),
            outcome("ours", "99 % of 1e8", first_ms=30.0),
            outcome("hydrax", "1 % of 1e6", first_ms=5.0),
            outcome("hydrax", "99 % of 1e8", first_ms=90.0),
            outcome("grain_threads", "99 % of 1e8", first_ms=70.0),
        ],
    )
    (line,) = found
    assert (cells(line)[2], cells(line)[5], cells(line)[6]) == ("30", "Grain, threads", "70")


def test_it_says_what_it_was_measured_on() -> None:
    about = {"date": "a day", "cores": 2, "system": "Linux", "versions": {"jax": "1"}, "rounds": 5}
    text = summary({"tiny": [outcome("ours", rate=1.0)]}, about)
    assert "a day, 2 cores, Linux; jax 1. Medians of 5 rounds." in text


def test_a_page_has_it_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n<!-- it -->\nold\n{END}\nafter {END}\n")
    put(page, "<!-- it -->", "new", "text")
    assert page.read_text() == f"before\n<!-- it -->\n\nnew\n\ntext\n\n{END}\nafter {END}\n"
    with pytest.raises(SystemExit, match=r"page\.md has no place"):
        put(page, "<!-- another -->", "text")
