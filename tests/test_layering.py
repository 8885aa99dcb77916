"""The layers: every import points down, none hides in a function, jax is in one folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import aioloader

ROOT = Path(aioloader.__file__).parent
FLOORS = {
    "errors": 1,
    "_census": 1,
    "_audit": 2,
    "_faults": 2,
    "_iterating": 2,
    "metrics": 2,
    "protocols": 2,
    "_order": 3,
    "_memory": 3,
    "_device": 3,
    "_executors": 4,
    "_caches": 4,
    "_fetching": 4,
    "_engine": 5,
    "_datasets": 6,
    "sources": 6,
    "_loaders": 7,
    "transforms": 7,
    "testing": 8,
}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
HEAVY_ONLY_IN = {"jax": "_device", "aiofiles": "_caches"}


def _imports(tree: ast.AST) -> list[tuple[str, bool]]:
    found = []
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.append((node.module or "", id(node) in inside))
    return found


def _at_run_time(tree: ast.Module) -> ast.Module:
    body = [
        n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))
    ]
    return ast.Module(body=body, type_ignores=[])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    """A layer knows only those below it; siblings on one floor do not know each other."""
    tree = ast.parse(path.read_text())
    home = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if home == "__main__":
        return
    for name, in_function in _imports(tree):
        assert not in_function, f"{name} is imported inside a function"
        if name.startswith("aioloader"):
            target = name.split(".")[1]
            assert target == home or FLOORS[target] < FLOORS[home], f"{home} imports {name}"
    for name, _ in _imports(_at_run_time(tree)):
        allowed = HEAVY_ONLY_IN.get(name.split(".")[0])
        assert allowed in (None, home), f"{name} belongs into {allowed} alone"


def test_modules_do_not_import_each_other_in_circles() -> None:
    """Within a folder, too, imports have a direction."""
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        module = "aioloader." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        graph[module] = {name for name, _ in _imports(ast.parse(path.read_text()))}
    while leaves := [m for m, needs in graph.items() if not needs & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph, f"a circle among {sorted(graph)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    """A file is under 400 lines, a function under 40 (its docstring aside)."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{node.name} has {lines} lines"
