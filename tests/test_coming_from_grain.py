"""The page for those who come from Grain names everything, and what it names exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import aioloader
import aioloader.transforms

PAGE = Path(__file__).parent.parent / "docs" / "coming_from_grain.md"
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| `")
]
SPAN = re.compile(r"`([^`]+)`")

# The members that Grain's reference page documents.
DOCUMENTED = {
    "MapDataset": "concatenate mix range select_from_datasets source __getitem__ __iter__ __len__ "
    "batch filter map map_with_index parents pipe random_map repeat seed shuffle slice "
    "to_iter_dataset",
    "IterDataset": "mix __iter__ batch filter map map_with_index mp_prefetch parents pipe prefetch "
    "random_map seed",
    "DatasetIterator": "__iter__ get_state load save set_state start_prefetch",
}


def found(name: str) -> Any:
    """Return what a dotted name stands for."""
    value: Any = aioloader
    for part in name.split("."):
        value = getattr(value, part)
    return value


def own_name(row: list[str], grain: str) -> str:
    """Return under which name something of Grain's is here."""
    bare = grain.split("(")[0]
    if row[1] == "the same":
        return bare
    return next(name for name in SPAN.findall(row[1]) if name.split(".")[-1] == bare.split(".")[-1])


def test_the_page_names_all_that_is_documented() -> None:
    """Each class, and each of its members."""
    named = {name.split("(")[0] for row in ROWS for name in SPAN.findall(row[0])}
    for kind, members in DOCUMENTED.items():
        assert kind in named
        assert {f"{kind}.{member}" for member in members.split()} <= named


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_what_the_page_names_exists(row: list[str]) -> None:
    """With the parameters that it has in Grain: their names, kinds and defaults."""
    for name in SPAN.findall(row[1]):
        assert found(name) is not None
    for grain in SPAN.findall(row[0]):
        value = found(own_name(row, grain))
        if grain.endswith(")"):
            check_parameters(value, grain[grain.index("(") :])


def check_parameters(value: Any, text: str) -> None:
    """Check that all parameters of Grain's are there, in their order."""
    space: dict[str, Any] = {"BOSHandling": aioloader.BOSHandling}
    exec(f"def theirs{text}: ...", space)
    expected = inspect.signature(space["theirs"]).parameters.values()
    parameters = inspect.signature(value).parameters
    if "self" in parameters:
        parameters = dict(list(parameters.items())[1:])
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    positional = [name for name, kind in kinds.items() if kind is kind.POSITIONAL_OR_KEYWORD]
    wanted = [p.name for p in expected if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional[: len(wanted)] == wanted
    for parameter in expected:
        own = parameters[parameter.name]
        assert own.kind == parameter.kind
        if parameter.default is not parameter.empty:
            assert own.default == parameter.default
