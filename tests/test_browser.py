"""Sliders in a real browser: each is in sight, and moves its readout and picture."""

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from browser import WIDTHS, find_faults, for_panels, panels_in
from lab import Lab, running_chromium, running_lab, running_page
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import BrowserContext, Page, expect

from llminfer.__main__ import find_chromium
from llminfer.panels.gallery import start_panel

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    executable = find_chromium()
    if executable is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("no chromium on the PATH: on Debian, apt-get install chromium")
    with running_chromium(executable) as running:
        yield running


@pytest.fixture(scope="module")
def lab(
    browser: BrowserContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    # Started before any test gets a store of its own, so that all notebooks share one.
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="module")
def page(browser: BrowserContext) -> Page:
    """One for all notebooks: to start Lab takes longer than to look at one."""
    return browser.new_page()


@pytest.fixture
def shots() -> Path | None:
    if not (named := os.environ.get("LLMINFER_SHOTS")):
        return None
    Path(named).mkdir(parents=True, exist_ok=True)
    return Path(named)


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if panels_in(path)], ids=lambda path: path.stem
)
def test_panels_answer_their_sliders(
    path: Path, lab: Lab, page: Page, shots: Path | None
) -> None:
    """A fault is what happens twice: three programs share two cores while this runs.

    What happened once is said at the end, as a warning.
    """
    if faults := find_faults(lab, page, path, shots):
        warnings.warn(f"{path.stem}: seen once: {faults}", stacklevel=1)
        page.goto("about:blank")  # so that Lab is started anew
        assert find_faults(lab, page, path, shots) == []


SETUP = """\
import io
import ipywidgets as w
from PIL import Image
from traitlets import Unicode

class Named(w.Image):
    description = Unicode("").tag(sync=True)

def png(grey):
    file = io.BytesIO()
    Image.new("L", (300, 100), int(grey)).save(file, "png")
    return file.getvalue()

def panel(draw, kind=w.FloatSlider, hold=w.VBox, **options):
    picture = Named(value=png(0), tooltip="grey", layout={"max_width": "100%"})
    slider = kind(description="grey", continuous_update=False, **options)
    show = lambda x: setattr(picture, "value", draw(x))
    slider.observe(lambda change: show(change["new"]), "value")
    return hold([slider, picture])
"""
GOOD = [
    "panel(png, step=1)",
    "panel(png, w.IntSlider, max=200, value=200)",
    "panel(png, w.FloatLogSlider, min=0, max=2, step=0.5)",
    "panel(png, w.SelectionSlider, options=[10, 20, 30, 40, 50])",
]
CAUGHT = """\
def with_output(two):
    out = w.interactive_output(lambda x: 1 / (x == 0), {"x": two[0]})
    return w.VBox([*two, out])

panel(png, hold=with_output)
"""
NUMBER = "panel(png, step=1, hold=lambda two: w.VBox([*two, w.HTML('mean 3 s')]))"
FORGETS = """\
def with_reset(two):
    button = w.Button(description="Reset")
    button.on_click(lambda _: setattr(two[0], "value", two[0].value + 5))
    return w.VBox([*two, button])

panel(png, step=1, hold=with_reset)
"""
NAMELESS = """\
def without(two):
    two[1].tooltip = None
    return w.VBox(two)

panel(png, step=1, hold=without)
"""
SQUEEZED = "panel(png, step=1, hold=lambda two: w.HBox(two, layout={'width': '200px'}))"
FAULTY = {
    "panel(lambda x: 1 / 0)": "ZeroDivisionError",
    CAUGHT: "it says 'ZeroDivisionError",
    "panel(png, max=200, value=100, step=1, readout_format='.0e')": "readout does not",
    SQUEEZED: "clipped",
    "panel(lambda x: png(0) + bytes(int(10 * x)))": "the picture stays",
    NUMBER: "the numbers stay",
    FORGETS: "after a reset",
    NAMELESS: "no alternative text",
}


def test_a_reader_would_stumble_over_each_planted_fault(
    tmp_path: Path, lab: Lab, page: Page
) -> None:
    shown = [*GOOD, *FAULTY]
    panels = [new_code_cell(cell, metadata={"tags": ["widget"]}) for cell in shown]
    path = tmp_path / "faulty.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(SETUP), *panels]), path)
    faults = find_faults(lab, page, path)
    print(*faults, sep="\n")
    for number, (cell, fault) in enumerate(FAULTY.items(), len(GOOD) + 1):
        told = [text for panel, text in faults if panel == number]
        for width in WIDTHS:
            assert any(f"{width} px" in text and fault in text for text in told), cell
    assert {panel for panel, _ in faults} == set(range(5, 13))


def test_a_failing_cell_is_told(tmp_path: Path, lab: Lab, page: Page) -> None:
    path = tmp_path / "failing.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), path)
    assert find_faults(lab, page, path) == [(0, "ZeroDivisionError: division by zero")]


def test_the_stand_alone_page_answers_its_sliders(
    tmp_path: Path, browser: BrowserContext
) -> None:
    page = browser.new_page()
    page.set_viewport_size({"width": WIDTHS[1], "height": 1400})
    with running_page(FOLDER / "app.ipynb", tmp_path) as site:
        page.goto(site.url)
        panels = page.locator(".widget-vbox:has(> img.widget-image)")
        expect(panels).to_have_count(panels_in(FOLDER / "app.ipynb"), timeout=60_000)
        for panel in panels.all():
            picture = panel.locator("img.widget-image")
            before = picture.get_attribute("src") or ""
            panel.locator(".noUi-handle").first.press("ArrowRight")
            expect(picture).not_to_have_attribute("src", before)
        assert "Error" not in page.inner_text("body")
    page.close()


def test_a_move_sends_the_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page decodes and paints it anew for each message, whatever that says."""
    panel, sent = start_panel(), []
    monkeypatch.setattr(panel.image, "send_state", lambda key: sent.append(str(key)))
    panel.controls["arrival_rate"].value *= 1.2
    assert len(sent) == 1
    assert {"value", "tooltip"} <= set(re.findall(r"\w+", sent[0]))


def test_only_what_a_panel_needs_is_run_for_it() -> None:
    sources = ["import a", "b = a.b()", "c = 3", "def d():\n    return b", "d()", "c"]
    cells = [new_code_cell(source) for source in sources]
    cells[4].metadata["tags"] = ["widget"]
    kept = for_panels(cells)
    assert [cell.source for cell in kept] == ["import a", *sources[1:2], *sources[3:5]]
    assert for_panels(cells[:3]) == cells[:3]
