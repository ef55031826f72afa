"""What the documentation shows is run as it stands."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

import llminfer
from llminfer import SimulationConfig
from llminfer.laws.arrivals import ARRIVAL_PATTERNS
from llminfer.laws.lengths import LENGTH_LAWS, Paired
from llminfer.policies import POLICIES
from llminfer.servers.batch_control import CONTROLLERS

ROOT = Path(__file__).parent.parent
MODULES = ["llminfer"] + [
    module.name for module in pkgutil.walk_packages(llminfer.__path__, "llminfer.")
]
README = ROOT / "README.md"
FAULTS = Path(__file__).with_name("FAULTS.md").read_text("utf-8")
RECIPES = re.findall(
    r"^## (.*)$(?:(?!^## )[\s\S])*?^```python\n([\s\S]*?)^```",
    (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
    re.M,
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_come_out_as_shown(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_importing_the_module_loads_nothing_that_draws_or_takes_long():
    code = "import sys, llminfer; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"matplotlib", "seaborn", "ipywidgets", "IPython", "scipy.signal"}
    assert not {*heavy, "scipy.stats"} & set(ran.stdout.split())


def test_the_readmes_python_runs(request, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert blocks
    if any("fetch(" in block for block in blocks):
        request.getfixturevalue("data")
    env = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = re.findall(r"^```text\n(.*?)^```", README.read_text(), re.M | re.S)
    assert said
    assert [text for text in said if text not in ran.stdout] == []


@pytest.mark.parametrize("code", [c for _, c in RECIPES], ids=[n for n, _ in RECIPES])
def test_the_recipe_for_contributors_runs(code):
    known = (POLICIES, LENGTH_LAWS, CONTROLLERS)  # which are as they were afterwards
    with ExitStack() as afterwards:
        for names in known:
            afterwards.enter_context(mock.patch.dict(names))
        exec(code, {"__name__": "__main__"})


def test_there_is_a_recipe_for_each_thing_to_add():
    things = ["policy", "length law", "controller", "experiment"]
    assert [any(thing in title for title, _ in RECIPES) for thing in things] == [
        True
    ] * 4


# Given by the configuration's own fields.
SHARED = {
    "Policies": ("alpha", "beta", "gamma", "random_seed", "request_classes"),
    "Patterns of arrivals": ("rate",),
}


def listed(title):
    """By name the parameters that ``help(SimulationConfig)`` shows under a title."""
    text = inspect.getdoc(SimulationConfig)
    block = re.search(rf"^{title}.*::\n\n((?:    .*\n)+)", text, re.M).group(1)
    joined = re.sub(r",\n +", ", ", block)
    rows = (line.split(maxsplit=1) for line in joined.splitlines())
    return {name: ", ".join(params) for name, *params in rows}


@pytest.mark.parametrize(
    ("title", "known"),
    [
        ("Laws of lengths", {**LENGTH_LAWS, "paired": Paired}),
        ("Patterns of arrivals", ARRIVAL_PATTERNS),
        ("Policies", POLICIES),
        ("Controllers", CONTROLLERS),
    ],
)
def test_help_lists_all_that_has_parameters(title, known):
    for name, law in known.items():
        its = inspect.signature(law).parameters.values()
        own = [one for one in its if one.name not in SHARED.get(title, ())]
        own.sort(key=lambda one: one.default is not one.empty)
        said = [str(one.replace(annotation=one.empty)) for one in own]
        assert listed(title)[name] == ", ".join(said).replace("*, ", "")
    assert listed(title).keys() == known.keys()


def test_each_fault_has_a_test_that_exists():
    tables = re.findall(r"^\|.*\btest \|\n\|[-|]+\n((?:\|.*\n)+)", FAULTS, re.M)
    rows = "".join(tables).splitlines()
    assert len(rows) > 50
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", row.split("|")[-2])
        assert named, row
        for file, name in named:
            source = Path(__file__).with_name(file).read_text("utf-8")
            assert f"\ndef {name}(" in source, row
