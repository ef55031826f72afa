"""Executing notebooks in place."""

import re
from base64 import b64decode
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook

from notebooks.execute import execute, main

CHATTY = """\
import os, sys, warnings
from tqdm.auto import tqdm
for i in tqdm(range(3)):
    print(f"{os.getpid()} on its way", file=sys.stderr)
warnings.warn("take care")
print("one", flush=True)
print("two", flush=True)
"""
PANEL = """\
import ipywidgets as w
slider = w.FloatSlider(value={value}, min=0.0)
w.VBox([slider, w.interactive_output(lambda x: print(1.0 / x), {{"x": slider}})])
"""
PICTURE = """\
from llminfer import SimulationConfig
from llminfer.panels.panel import Panel
from llminfer.panels.picture import BatchSizePicture
Panel(SimulationConfig(batch_timeout=0.0, random_seed=1), BatchSizePicture())
"""


def write(path: Path, *cells: tuple[str, list[str]]) -> Path:
    made = [new_code_cell(source, metadata={"tags": tags}) for source, tags in cells]
    nbformat.write(new_notebook(cells=made), path)
    return path


def test_two_runs_write_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    panel = (PANEL.format(value=1.0), ["widget"])
    path = write(tmp_path / "00_good.ipynb", (CHATTY, []), panel)
    assert main([str(path)]) == 0
    once = path.read_bytes()
    assert capsys.readouterr().out.startswith(f"[1/1] {path} ... ")
    both = [path, write(tmp_path / "01_same.ipynb", (CHATTY, []), panel)]
    assert main([str(each) for each in both]) == 0
    assert path.read_bytes() == once
    one, other = (nbformat.read(each, as_version=4).cells for each in both)
    assert [cell.outputs for cell in one] == [cell.outputs for cell in other]
    said = sorted(capsys.readouterr().out.splitlines())
    assert [line.split(" ...")[0] for line in said] == [
        f"[{i}/2] {each}" for i, each in enumerate(both, 1)
    ]
    chatty, shown = nbformat.read(path, as_version=4).cells
    texts = sorted((out.name, out.text) for out in chatty.outputs)
    assert texts == [("stderr", "UserWarning: take care\n"), ("stdout", "one\ntwo\n")]
    assert shown.outputs == []


def test_of_a_panel_its_picture_and_what_it_shows_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "00_panel.ipynb", (PICTURE, ["widget"]))
    execute(path)
    once = path.read_bytes()
    (cell,) = nbformat.read(path, as_version=4).cells
    (output,) = cell.outputs
    assert set(output.data) == {"image/png", "text/plain"}
    alt = output.metadata["image/png"]["alt"]
    assert alt == output.data["text/plain"].strip("'")
    assert "p99 latency: now" in alt
    assert b64decode(output.data["image/png"]).startswith(b"\x89PNG")
    shown, _ = HTMLExporter(template_name="classic").from_filename(str(path))
    (picture,) = re.findall(r"<img[^>]*>", shown)
    assert "Left: mean and p99 latency" in picture
    execute(path)
    assert path.read_bytes() == once


@pytest.mark.parametrize("source", ["1 / 0", PANEL.format(value=0.0)])
def test_failure_is_told_and_the_notebook_left_as_it_was(
    source: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notebooks.execute._AT_ONCE", 1)  # else one more has begun
    bad = write(tmp_path / "01_bad.ipynb", ("x = 1", []), (source, []))
    later = write(tmp_path / "02_later.ipynb", ("x = 1", []))
    before = bad.read_bytes(), later.read_bytes()
    assert main([str(bad), str(later)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert (bad.read_bytes(), later.read_bytes()) == before


def test_cells_run_in_the_folder_of_their_notebook(tmp_path: Path) -> None:
    path = write(tmp_path / "00_here.ipynb", ("open('made', 'w').close()", []))
    assert main([str(path)]) == 0
    assert (tmp_path / "made").exists()


NEEDY = """\
from llminfer.data.public import needed
places = needed(
    "azure-2023-code"
)
"""


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No data in reach, and nobody's continuous integration."""
    monkeypatch.delenv("LLMINFER_DATA", raising=False)
    monkeypatch.delenv("CI", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    return monkeypatch


def test_a_notebook_without_its_data_is_left_as_it_is(
    without_data: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "00_needy.ipynb", (NEEDY, []), ("1 / 0", []))
    before = path.read_bytes()
    assert main([str(path)]) == 0
    assert path.read_bytes() == before
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "left as it is: azure-2023-code: not on disk" in said
    without_data.setenv("CI", "true")
    assert main([str(path)]) == 1


def test_cells_after_missing_data_do_nothing(
    without_data: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write(tmp_path / "00_needy.ipynb", (NEEDY, []), ("1 / 0", []))
    execute(path)
    asked, after = nbformat.read(path, as_version=4).cells
    assert asked.outputs[0].text.startswith("azure-2023-code: not on disk")
    assert asked.outputs[0].text.count("\n") == 1
    assert after.outputs == []
