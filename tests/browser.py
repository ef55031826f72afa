"""A notebook as a reader meets it: in JupyterLab, by keyboard, at two widths."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from lab import Lab
from nbformat import NotebookNode
from playwright.sync_api import BrowserContext, Locator, Page, TimeoutError

WIDTHS, HEIGHT = (1280, 900), 1400  # CSS pixels
PRESSES = 3
QUIET = 5  # looks at an idle kernel
RUN_LIMIT, PATIENCE, POLL = 600.0, 3.0, 0.1  # seconds, wall-clock
_SCRIPT = Path(__file__).with_name("browser.js").read_text()
_RAISED = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .*")


class Fault(NamedTuple):
    """What a reader would stumble over; panels count from 1, 0 is the notebook."""

    panel: int
    text: str


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
    lab: Lab, browser: BrowserContext, path: Path, shots: Path | None = None
) -> list[Fault]:
    """Run a copy of a notebook, move every slider at every width, and look.

    Of the copy only the cells run that a panel needs, but all for a picture of it: that
    every cell runs is what nbval checks.

    Args:
        lab: Where to open it.
        browser: What to open it in.
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
    page = browser.new_page()
    page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
    try:
        _open(page, lab, path.name)
        if faults := _run_all(page):
            return faults
        if shots is not None:
            _picture_of_all(page, shots / f"{path.stem}.png")
        return list(_walk(page, path.stem, shots))
    finally:
        _call(page, "shutDown")
        page.close()


def _call(page: Page, function: str) -> Any:
    return page.evaluate(f"async () => await workbook.{function}()")


def _open(page: Page, lab: Lab, name: str) -> None:
    page.add_init_script(_SCRIPT)
    page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
    page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=60_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_function("async () => await workbook.ready()", timeout=60_000)


def _run_all(page: Page) -> list[Fault]:
    _call(page, "runAll")
    try:
        page.wait_for_function("workbook.finished()", timeout=RUN_LIMIT * 1000)
    except TimeoutError:
        return [Fault(0, f"still running after {RUN_LIMIT:g} s")]
    return [Fault(0, error) for error in _call(page, "takeErrors")]


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
    panels = [page.locator(f"[data-panel='{i}']") for i in _call(page, "markPanels")]
    for turn, width in enumerate(WIDTHS):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        for number, panel in enumerate(panels, 1):
            for text in _try_panel(page, panel, turn):
                yield Fault(number, f"at {width} px {text}")
            if shots is not None:
                panel.screenshot(path=shots / f"{stem}_{number}_{width}.png")


# Each of them is moved by itself in test_panel_controls.
_LIMIT = re.compile("KV blocks|queue limit|token budget|replicas|≤")


def _try_panel(page: Page, panel: Locator, turn: int) -> Iterator[str]:
    """What is wrong; the first slider is moved, and every second of the others."""
    keys = (("Right", "Left"), ("Left", "Right"))[turn]
    start = picture = _at_rest(page, panel)
    if not picture:
        yield "there is no picture"
    yield from panel.evaluate("panel => workbook.unnamed(panel)")
    sliders = panel.locator(".widget-slider").all()
    yield from () if sliders else ("there is no slider",)
    for number, slider in enumerate(sliders):
        name = f"slider {slider.locator('.widget-label').inner_text()!r}"
        if not slider.is_visible():
            yield f"{name} is out of sight"
            continue
        if number and number % 2 != turn:
            continue
        said = _said(panel)
        if not _press(slider, keys):
            yield f"{name}: its readout does not move"
        before, picture = picture, _next_picture(page, panel, picture)
        if _LIMIT.search(name):  # where others stand now it may not bind
            continue
        for end in ("Home", "End"):
            if picture == before:
                slider.locator(".noUi-handle").press(end)
                picture = _next_picture(page, panel, picture)
        if picture == before:
            yield f"{name}: the picture stays, at both ends too"
        if said and not _says_other(page, panel, said):
            yield f"{name}: the numbers stay"
        yield from (f"{name}: {error}" for error in set(_call(page, "takeErrors")))
    yield from panel.evaluate("panel => workbook.clipped(panel)")
    if (reset := panel.get_by_role("button", name="Reset")).count() and not any(
        _resets(page, panel, reset, start) for _ in range(2)
    ):
        yield f"after a reset the picture is not that of the start, but {_said(panel)}"
    if said := _RAISED.search(panel.locator(".jp-OutputArea").first.inner_text()):
        yield f"it says {said[0]!r}"


def _said(panel: Locator) -> list[str]:
    """What the panel says in words and numbers."""
    return panel.locator(".widget-html").all_inner_texts()


def _says_other(page: Page, panel: Locator, than: list[str]) -> bool:
    """Whether the words change; they come a little after the picture."""
    end = time.monotonic() + PATIENCE
    while _said(panel) == than:
        if time.monotonic() > end:
            return False
        page.wait_for_timeout(POLL * 1000)
    return True


def _press(slider: Locator, keys: tuple[str, str]) -> bool:
    """Press the first arrow a few times, or at the end of the range the other."""
    # Not aria-valuenow: it is rounded to one decimal.
    readout = slider.locator(".widget-readout")
    before = readout.inner_text()
    for key in keys:
        for _ in range(PRESSES):
            slider.locator(".noUi-handle").press(f"Arrow{key}")
        if readout.inner_text() != before:
            return True
    return False


def _at_rest(page: Page, panel: Locator) -> str:
    """A digest of the panel's pixels once no press is on its way any more.

    The kernel is idle then, and the picture the same at every look.
    """
    idle, last, now = 0, "", ""
    while idle < QUIET:
        page.wait_for_timeout(POLL * 1000)
        last, now = now, str(panel.evaluate("panel => workbook.pixels(panel)"))
        idle = idle + 1 if _call(page, "idle") and now == last else 0
    return now


def _resets(page: Page, panel: Locator, reset: Locator, start: str) -> bool:
    """Does a press of reset bring the start back, to stay?

    Twice pressed at most: a move that was still on its way comes after the first press.
    """
    _at_rest(page, panel)
    reset.click()
    return _becomes(page, panel, start) and _at_rest(page, panel) == start


def _becomes(page: Page, panel: Locator, picture: str) -> bool:
    """Does the panel show this picture before the kernel has long been idle?

    On a slow machine others may come first, of moves that were still on their way.
    """
    idle_since = time.monotonic()
    while panel.evaluate("panel => workbook.pixels(panel)") != picture:
        if not _call(page, "idle"):
            idle_since = time.monotonic()
        if time.monotonic() - idle_since > PATIENCE:
            return False
        page.wait_for_timeout(POLL * 1000)
    return True


def _next_picture(page: Page, panel: Locator, before: str) -> str:
    """A digest of the panel's pixels, once they have changed and come to rest.

    That of ``before`` if they do not change although the kernel has long been idle.
    """
    last, now, idle_since = before, before, time.monotonic()
    while now == before or now != last:
        page.wait_for_timeout(POLL * 1000)
        if not _call(page, "idle"):
            idle_since = time.monotonic()
        last, now = now, panel.evaluate("panel => workbook.pixels(panel)")
        if time.monotonic() - idle_since > PATIENCE:
            break
    return now
