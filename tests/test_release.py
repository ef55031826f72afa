"""What is released: one version everywhere, and a small wheel, the same each time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

import llminfer
from llminfer.__main__ import ROOT

VERSION = llminfer.__version__
MOST = 700_000  # bytes, with the packaged runs of an engine


def test_all_name_one_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## ([\d.]+)", changes, re.M)[0] == VERSION
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == VERSION
    assert citation["license"] == "MIT"
    assert f'"{VERSION}"' not in (ROOT / "pyproject.toml").read_text("utf-8")


def built(folder: Path) -> Path:
    """The wheel of a copy of the package."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)  # with times of their own
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "llminfer", folder / "llminfer", ignore=ignored)
    for path in folder.rglob("*.py"):
        path.touch()
    build = "import sys; from setuptools.build_meta import build_wheel as b; b('dist')"
    subprocess.run(
        [sys.executable, "-c", build],
        cwd=folder,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def test_the_wheel_is_small_and_the_same_each_time(tmp_path: Path) -> None:
    wheels = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        wheels.append(built(tmp_path / name))
    assert wheels[0].name == f"llminfer-{VERSION}-py3-none-any.whl"
    assert wheels[0].read_bytes() == wheels[1].read_bytes()
    names = zipfile.ZipFile(wheels[0]).namelist()
    assert {name.split("/")[0] for name in names} == {
        "llminfer",
        f"llminfer-{VERSION}.dist-info",
    }
    here = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("llminfer/**/*.py")}
    assert here == {name for name in names if name.endswith(".py")}
    assert wheels[0].stat().st_size < MOST
