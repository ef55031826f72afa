"""A notebook as a reader meets it: in JupyterLab, by keyboard, at two widths."""

from __future__ import annotations

import ast
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
from lab import Lab
from nbformat import NotebookNode
from playwright.sync_api import Locator, Page

WIDTHS, HEIGHT = (1280, 900), 1400  # CSS pixels
PRESSES = 3  # of one in a hurry
RUN_LIMIT, PATIENCE = 600_000, 10_000  # milliseconds, wall-clock
_SCRIPT = Path(__file__).with_name("browser.js").read_text()
_KEYS = ("ArrowRight", "ArrowLeft"), ("ArrowLeft", "ArrowRight")  # by width
# Others may bind where it stands: each is moved by itself in test_panel_controls.
_LIMIT = re.compile("KV blocks|queue limit|token budget|replicas|≤")
_RAISED = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .*")


class Fault(NamedTuple):
    """What a reader would stumble over; panels count from 1, 0 is the notebook."""

    panel: int
    text: str


class Look(NamedTuple):
    """What a panel shows at rest: all that the kernel was asked is answered."""

    picture: str  # a digest of its pixels
    words: list[str]
    readouts: list[str]  # of its sliders
    errors: list[str]  # that were raised since the last look


def panels_in(path: Path) -> int:
    """How many cells of a notebook are tagged ``widget``."""
    cells = nbformat.read(path, as_version=4).cells
    return sum("widget" in cell.metadata.get("tags", []) for cell in cells)


def for_panels(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells that panels need: theirs, and those that make a name one of them uses.

    In a notebook without panels, all.
    """
    wanted: set[str] = set()
    kept: list[NotebookNode] = []
    for cell in reversed(cells):
        made, used = _names(cell.source) if cell.cell_type == "code" else (set(), set())
        if "widget" in cell.metadata.get("tags", []) or made & wanted:
            kept.insert(0, cell)
            wanted |= used
    return kept or cells


def _names(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell makes, and those that it uses."""
    made, used = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.alias):
            made.add(node.asname or node.name.split(".")[0])
    return made, used


def find_faults(
    lab: Lab, page: Page, path: Path, shots: Path | None = None
) -> list[Fault]:
    """Run a copy of a notebook, move every slider at every width, and look.

    Of the copy only the cells run that a panel needs, but all for a picture of it: that
    every cell runs is what nbval checks.

    Args:
        lab: Where to open it.
        page: What to open it in; if it shows this Lab, without another notebook, it
            is opened there, as from Lab's list of files.
        path: The notebook; it is not changed.
        shots: A folder for pictures of the notebook and its panels, if wanted.
    """
    blank = nbformat.read(path, as_version=4)
    blank.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    if shots is None:
        blank.cells = for_panels(blank.cells)
    for cell in blank.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(blank, lab.root / path.name)
    page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
    _open(page, lab, path.name)
    try:
        if errors := page.evaluate("limit => workbook.runAll(limit)", RUN_LIMIT):
            return [Fault(0, error) for error in errors]
        if shots is not None:
            _picture_of_all(page, shots / f"{path.stem}.png")
        return list(_walk(page, path.stem, shots))
    finally:
        page.evaluate("workbook.close()")


def _open(page: Page, lab: Lab, name: str) -> None:
    if not page.evaluate("window.workbook?.free()"):
        page.goto(f"{lab.url}/lab?token={lab.token}&reset")
        page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=60_000)
        page.evaluate(_SCRIPT)
    page.evaluate("name => workbook.within(60_000, workbook.open(name))", name)


def _picture_of_all(page: Page, file: Path) -> None:
    """The whole notebook, in a window that is high enough for it."""
    last = page.locator(".jp-Notebook .jp-Cell").last
    end = last.evaluate("cell => cell.offsetTop + cell.offsetHeight")
    page.set_viewport_size({"width": WIDTHS[0], "height": int(end) + 200})
    page.locator(".jp-WindowedPanel-outer").evaluate("outer => outer.scrollTo(0, 0)")
    page.wait_for_timeout(500)
    page.locator(".jp-NotebookPanel").screenshot(path=file)


def _walk(page: Page, stem: str, shots: Path | None) -> Iterator[Fault]:
    """Every panel at every width, and every slider at one of them."""
    marked = page.evaluate("workbook.markPanels()")
    panels = [page.locator(f"[data-panel='{i}']") for i in marked]
    for turn, width in enumerate(WIDTHS):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        for number, panel in enumerate(panels, 1):
            for text in _try_panel(panel, turn):
                yield Fault(number, f"at {width} px {text}")
            if shots is not None:
                panel.screenshot(path=shots / f"{stem}_{number}_{width}.png")


def _try_panel(panel: Locator, turn: int) -> Iterator[str]:
    """What is wrong; the first slider is moved, and every second of the others."""
    panel.evaluate("(panel, limit) => workbook.drawn(panel, limit)", PATIENCE)
    start = now = _look(panel)
    if not start.picture:
        yield "there is no picture"
    yield from start.errors
    yield from panel.evaluate("panel => workbook.unnamed(panel)")
    sliders = panel.evaluate("panel => workbook.sliders(panel)")
    yield from () if sliders else ("there is no slider",)
    for number, (label, in_sight) in enumerate(sliders):
        name = f"slider {label!r}"
        if not in_sight:
            yield f"{name} is out of sight"
        elif number == 0 or number % 2 == turn:
            now = yield from _try_slider(panel, number, name, turn, now)
    yield from panel.evaluate("panel => workbook.clipped(panel)")
    if (reset := panel.get_by_role("button", name="Reset")).count():
        reset.click()
        if (now := _look(panel)).picture != start.picture:
            yield f"after a reset the picture is not that of the start, but {now.words}"
    if said := _RAISED.search(panel.locator(".jp-OutputArea").first.inner_text()):
        yield f"it says {said[0]!r}"


def _look(panel: Locator) -> Look:
    return Look(*panel.evaluate("panel => workbook.look(panel)"))


def _try_slider(
    panel: Locator, number: int, name: str, turn: int, before: Look
) -> Generator[str, None, Look]:
    """What is wrong; the last look.

    It is moved by a step, or the other way from an end, and to both ends if the picture
    stays. The first is moved by one in a hurry, who does not wait for the answer.
    """
    handle = panel.locator(".widget-slider .noUi-handle").nth(number)
    looks, may_stay = [before], _LIMIT.search(name)
    for key in _KEYS[turn]:
        if looks[-1].readouts[number] == before.readouts[number]:
            for _ in range(1 if number else PRESSES):
                handle.press(key)
            looks.append(_look(panel))
    if looks[-1].readouts[number] == before.readouts[number]:
        yield f"{name}: its readout does not move"
    for end in ("Home", "End"):
        if looks[-1].picture == before.picture and not may_stay:
            handle.press(end)
            looks.append(_look(panel))
    after = looks[-1]
    if after.picture == before.picture and not may_stay:
        yield f"{name}: the picture stays, at both ends too"
    if before.words and after.words == before.words and not may_stay:
        yield f"{name}: the numbers stay"
    yield from {f"{name}: {error}" for look in looks[1:] for error in look.errors}
    return after
