"""The rules that keep the code one way down, checked on the syntax trees of all modules."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = {"errors": 0, "storage": 1, "tasks": 2, "flows": 3, "command_line": 4}
HOMES = {
    "prefect": {"flows"},
    "prefect_dask": {"flows"},
    "dask": {"flows"},
    "distributed": {"flows"},
    "zarr": {"storage"},
    "pyarrow": {"storage"},
    "torch": {"tasks"},
    "openTSNE": {"tasks"},
    "matplotlib": {"tasks"},
    "plotly": {"tasks"},
}
LATE = {"matplotlib", "plotly", "openTSNE"}
MODULES = sorted(
    path
    for folder in ("storage", "tasks", "flows", "src/stratascope/command_line")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "command_line" if parts[0] == "src" else parts[0]


def imports(tree: ast.AST, top_only: bool = False) -> list[str]:
    found = []
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    nodes = tree.body if top_only else list(ast.walk(tree))  # type: ignore[attr-defined]
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_stands_below_it(path: Path):
    layer = layer_of(path)
    for name in imports(ast.parse(path.read_text())):
        first = name.split(".")[0]
        assert first not in ("flows", "tasks", "storage"), f"{name}: import stratascope.{name}"
        if first == "stratascope" and "." in name:
            target = name.split(".")[1]
            assert LAYERS.get(target, 0) <= LAYERS[layer], f"{layer} imports {name}"
        if first in HOMES:
            assert layer in HOMES[first], f"{name} belongs in {HOMES[first]}, not in {layer}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_drawing_libraries_are_imported_inside_functions(path: Path):
    late = {name.split(".")[0] for name in imports(ast.parse(path.read_text()), top_only=True)} & LATE
    assert not late


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_short_enough_to_read(path: Path):
    assert len(path.read_text().splitlines()) <= 420


@pytest.mark.parametrize("folder", ["flows", "tasks", "storage"])
def test_the_links_for_editors_point_at_the_root_folders(folder: str):
    link = ROOT / "src" / "stratascope" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{folder}"


def test_every_package_is_listed_in_the_project_file():
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {"stratascope", "stratascope.command_line"}
    for folder in ("flows", "tasks", "storage"):
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join(("stratascope", *init.parent.relative_to(ROOT).parts)))
    assert found == listed
