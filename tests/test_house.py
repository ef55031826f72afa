"""The house: which room may import which, and that no door leads in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import llminfer

HOME = Path(llminfer.__file__).parent

# A room may use itself and what is named here; the files at the top and the servers
# are one floor, on which single files stand in order.
CORE = {"base", "laws", "servers", "core"}
MAY_USE = {
    "base": set(),
    "laws": {"base"},
    "stats": {"base"},
    "servers": CORE,
    "core": CORE,
    "experiment": CORE | {"stats", "theory"},
    "theory": CORE,
    "data": CORE,
    "course": CORE | {"experiment", "stats"},
    "engineer": CORE | {"experiment", "stats", "theory", "data"},
    "report": CORE | {"stats"},
    "plan": CORE | {"experiment", "stats", "data", "engineer", "report"},
    "study": CORE | {"experiment", "stats", "theory", "data", "engineer", "report"},
    "panels": CORE
    | {"experiment", "stats", "theory", "data", "engineer", "report", "study"},
}
ON_TOP = {"study", "panels"}  # they come in by the front door, as notebooks do
AT_THE_TOP = {
    "experiment": "experiment",
    "course": "course",
    "capacity": "engineer",
    "calibrate": "engineer",
    "plan": "plan",
}


def room(module: str) -> str:
    """The room of ``llminfer.x.y``: its folder, or the floor of a file at the top."""
    _, first, *rest = module.split(".")
    return first if rest or (HOME / first).is_dir() else AT_THE_TOP.get(first, "core")


def imports(path: Path) -> list[tuple[str, str]]:
    """The modules of this package that a file imports, each with the name it takes."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module.split(".")[0] != "llminfer":
                continue
            for alias in node.names:
                inner = HOME.parent / node.module.replace(".", "/") / alias.name
                inside = inner.is_dir() or inner.with_suffix(".py").exists()
                where = f"{node.module}.{alias.name}" if inside else node.module
                found.append((where, alias.name))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert not any(n.split(".")[0] == "llminfer" for n in names), path
    return found


def name_of(path: Path) -> str:
    parts = ["llminfer", *path.relative_to(HOME).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(HOME.rglob("*.py"))}
DOORS = {name: imports(path) for name, path in FILES.items()}


def test_every_room_is_on_the_plan():
    assert {room(name) for name in FILES if name != "llminfer"} == set(MAY_USE)


@pytest.mark.parametrize("name", [name for name in FILES if name != "llminfer"])
def test_imports_go_downwards(name):
    here = room(name)
    wrong = [
        where
        for where, _ in DOORS[name]
        if (where == "llminfer" and here not in ON_TOP)
        or (where != "llminfer" and room(where) not in MAY_USE[here] | {here})
    ]
    assert wrong == [], f"{name} ({here}) may use {sorted(MAY_USE[here])}"


def test_no_circle():
    graph = {name: {where for where, _ in doors} for name, doors in DOORS.items()}
    TopologicalSorter(graph).prepare()


def test_nobody_takes_a_private_name():
    private = [(name, w, n) for name, d in DOORS.items() for w, n in d if n[0] == "_"]
    assert private == []


def test_what_is_offered_is_listed() -> None:
    assert dir(llminfer) == sorted(llminfer.__all__)
