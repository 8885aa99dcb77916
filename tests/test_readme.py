"""The pages tell the truth: their code runs, and what they name exists."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import aioloader
from aioloader import Batch, DataGroup, Loader, LoaderStatistics, sources, testing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
README, TOUR = ROOT / "README.md", ROOT / "aioloader" / "README.md"

# A block of code, perhaps under a comment that says what to do with it: `skip` it (it is no
# program), or have it go on where the block before it on the page ended (`continues`).
BLOCK = re.compile(r"^(?:<!-- (\w+) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Runs blocks one after the other, each in a namespace of its own or in its predecessor's, and
# says of each what went wrong. The tests of classes that a block defines are run, too.
RUNNER = """
import json, sys, traceback
from pathlib import Path

import jax  # as it would be in a training script

results = {}
for block in json.load(sys.stdin):
    if not block["continues"]:
        space = {"__name__": "__main__"}
    before = set(space)
    try:
        code = "\\n" * block["line"] + block["code"]
        exec(compile(code, block["page"], "exec"), space)
        for kind in [space[name] for name in space.keys() - before if name.startswith("Test")]:
            for name in [name for name in dir(kind) if name.startswith("test_")]:
                getattr(kind(), name)()
    except BaseException:
        results[block["name"]] = traceback.format_exc()
Path(sys.argv[1]).write_text(json.dumps(results))
"""


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    name: str
    page: str
    line: int
    continues: bool
    code: str


def blocks_of(page: Path) -> Iterator[Block]:
    """Find the blocks that are to run."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        mark, code = found.groups()
        assert mark in (None, "skip", "continues"), f"{page}: what is <!-- {mark} -->?"
        if mark != "skip":
            line = text.count("\n", 0, found.start(2))
            name = f"{page.relative_to(ROOT)}:{line + 1}"
            yield Block(name, str(page), line, mark == "continues", code)


PAGES = (README, TOUR, *sorted((ROOT / "docs").glob("*.md")))
BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    """Run all blocks in one program; returns what went wrong with each, and its stderr."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "runner.py").write_text(RUNNER)
    program = subprocess.run(
        [sys.executable, "-W", "error", "runner.py", "results.json"],
        input=json.dumps([vars(block) for block in BLOCKS]),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert program.returncode == 0, program.stderr
    results: dict[str, str] = json.loads((folder / "results.json").read_text())
    return results, program.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_code_on_the_pages_runs(block: Block, outcome: tuple[dict[str, str], str]) -> None:
    """As it stands, with warnings as errors."""
    results, _ = outcome
    assert block.name not in results, results[block.name]


@pytest.mark.timeout(120)
def test_code_on_the_pages_says_nothing_on_stderr(outcome: tuple[dict[str, str], str]) -> None:
    """No warning that nobody could raise, and nothing that was never closed."""
    assert outcome[1] == ""


def test_both_pages_have_code_to_run() -> None:
    """The pattern finds every block, and so would notice one that it cannot read."""
    for page in (README, TOUR):
        count = page.read_text().count("```python")
        assert count == len(BLOCK.findall(page.read_text())) > 1


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of the first table of a section of the README, without its head."""
    section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = section[section.index("|") :].split("\n\n")[0]
    return [row.strip("|").split("|") for row in table.splitlines()[2:]]


def names_in(text: str) -> set[str]:
    """Return what a text sets as code, without arguments: `depth` for ``depth=3``."""
    return {re.split(r"[=(]", code)[0] for code in re.findall(r"`([^`]+)`", text)}


def test_every_public_name_is_listed_and_every_listed_name_is_public() -> None:
    """The table of names is `__all__`."""
    listed = [name for row in rows_of("The names") for name in sorted(names_in(row[0]))]
    assert sorted(listed) == sorted(aioloader.__all__)
    for name in listed:
        assert getattr(aioloader, name) is not None


def test_what_the_feature_table_names_exists() -> None:
    """Public names, parameters of loaders and groups, and members of what they give."""
    known = {*aioloader.__all__, *sources.__all__, "load", "async def"}
    known |= {f"aioloader.testing.{name}" for name in testing.__all__}
    for kind in (Loader, DataGroup):
        known |= {*inspect.signature(kind).parameters}
    for members in (Loader, DataGroup, Batch):
        known |= {*dir(members)}
    for what, how in rows_of("What it does"):
        named = names_in(how)
        assert named <= known, (what, named - known)
        assert named, what


def test_the_figures_and_errors_that_are_explained_exist() -> None:
    """Verdicts and fields of the statistics, and the errors with their bases."""
    source = inspect.getsource(sys.modules[LoaderStatistics.__module__])
    verdicts = [name for row in rows_of("What limits the rate") for name in names_in(row[0])]
    bound = re.search(r"^Bound = Literal\[(.*)\]$", source, re.MULTILINE)
    assert bound is not None
    assert sorted(verdicts) == sorted(bound[1].split(", "))
    fields = {"idle_share", "bound_by", "waiting", "loading", "ready", "on_loan", "load_seconds"}
    assert fields <= {*LoaderStatistics.__dataclass_fields__}
    for error, when, _ in rows_of("Errors"):
        (name,) = names_in(error)
        kind = getattr(aioloader, name)
        assert issubclass(kind, aioloader.AioLoaderError)
        base = re.match(r" an? `(\w+Error)`", when)
        if base is not None:
            ancestors = {ancestor.__name__ for ancestor in kind.__mro__}
            assert base[1] in ancestors


def test_the_tour_names_every_module_and_no_other() -> None:
    """A file that comes or goes is told of."""
    package = TOUR.parent
    tree = TOUR.read_text().split("## The layers")[1].split("## The flow")[0].split("```")[3]
    folder, told = "", set()
    for line in tree.splitlines():
        if found := re.match(r"(\w+/)", line):
            folder = found[1]
        elif found := re.match(r"( +)?(\w+\.py) ", line):
            told.add((folder if found[1] else "") + found[2])
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    assert told == {path for path in modules if not path.endswith("__init__.py")}


def test_files_that_the_pages_point_to_exist() -> None:
    """Relative links, and paths set as code."""
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / target).exists(), target
        for path in re.findall(r"`([\w./]+/[\w.]*)`", text):
            assert (page.parent / path).exists() or (ROOT / path).exists(), path


def test_the_version_is_the_same_everywhere() -> None:
    """In the package, in its metadata, and at the top of the changes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert aioloader.__version__ == project["version"] == newest[1]
