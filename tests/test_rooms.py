"""Imports run one way: between packages, and between the rooms of a package."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("lopt_keras", "export", "meta")
"""Each may import those before it."""

FILES = {file for package in PACKAGES for file in (ROOT / package).rglob("*.py")}


def file_of(module):
    """The file of a module of these packages, or None."""
    path = ROOT.joinpath(*module.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f in FILES), None)


def imported(file):
    """The files that a file imports: set."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {file_of(name) or file_of(node.module) for name in named}
        elif isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
    return found - {None}


def room_of(file):
    """The folder of a file; the file itself, where the folder has folders with files."""
    has_folders = any(other.parent.parent == file.parent for other in FILES)
    room = file if has_folders else file.parent
    return room.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def imports():
    """Pairs of a file and one that it imports: set."""
    return {(file, other) for file in FILES for other in imported(file)}


def test_packages_import_those_before_them(imports):
    places = [[file.relative_to(ROOT).parts[0] for file in pair] for pair in imports]
    for importing, other in places:
        assert PACKAGES.index(other) <= PACKAGES.index(importing), (importing, other)
    assert ["meta", "lopt_keras"] in places


def test_rooms_have_no_circle(imports):
    graph = {}
    for file, other in imports:
        if room_of(file) != room_of(other):
            graph.setdefault(room_of(file), set()).add(room_of(other))
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"These rooms import each other in a circle: {error.args[1]}")
    assert order.index("meta/inner") < order.index("meta/estimators") < order.index("meta/training")
