"""The pinned packages: with hashes, from no place in particular, within the bounds."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llminfer.__main__ import ROOT

TEXT = (ROOT / "requirements.txt").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LINES = re.sub(r" *\\\n *", " ", TEXT).splitlines()
PINS = [line for line in LINES if line.strip() and not line.lstrip().startswith("#")]
PYTHONS = ["3.11.0", "3.11.7", "3.12.1", "3.13.0"]


def asked() -> list[str]:
    """What the project, its extras and its developers ask for."""
    groups = PROJECT["dependency-groups"]
    extras = PROJECT["project"].get("optional-dependencies", {})
    every = [PROJECT["project"]["dependencies"], *groups.values(), *extras.values()]
    return [one for its in every for one in its if isinstance(one, str)]


def pinned(python: str) -> dict[str, str]:
    """The version of each package that a Python on Linux gets; each comes once."""
    machine = {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
    }
    its = [Requirement(line.partition(" --hash")[0]) for line in PINS]
    here = [one for one in its if one.marker is None or one.marker.evaluate(machine)]
    found = {canonicalize_name(one.name): str(one.specifier)[2:] for one in here}
    assert len(found) == len(here)
    return found


def test_each_pin_is_one_version_with_its_hashes() -> None:
    assert len(PINS) > 100
    for line in PINS:
        requirement, *hashes = line.split(" --hash=")
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .*)?", requirement.strip()), line
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64} ?", one) for one in hashes), line


def test_they_come_from_whatever_index_is_set() -> None:
    assert not re.search(r"://|--(?:extra-)?index|--find-links|--trusted|\.org\b", TEXT)


@pytest.mark.parametrize("python", PYTHONS)
def test_all_that_is_asked_for_is_pinned_within_its_bounds(python: str) -> None:
    there = pinned(python)
    for one in map(Requirement, asked()):
        assert one.specifier.contains(there[canonicalize_name(one.name)]), one


@pytest.mark.parametrize("python", PYTHONS)
def test_no_version_that_was_taken_back(python: str) -> None:
    """Broken on Python 3.11.0 to 3.11.4, as Debian 12 has it."""
    assert pinned(python)["soupsieve"] not in ("3.0", "3.0.1")
