"""A notebook as a reader meets it: JupyterLab in a headless Chromium, by keyboard."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from playwright.sync_api import Browser, Locator, Page, TimeoutError, sync_playwright

WIDTHS = (1280, 900)  # CSS pixels
PRESSES = 3
RUN_LIMIT, PATIENCE, POLL = 300.0, 2.0, 0.1  # seconds, wall-clock
_FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update""".split()
_LAB = """--no-browser --allow-root --ip=127.0.0.1 --ServerApp.port_retries=0
    --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate
    --LabApp.expose_app_in_browser=True""".split()
_SETTINGS = {
    # A toast would lie over the pictures, and a cell out of sight must be drawn too.
    "apputils-extension/notification": '{"fetchNews": "false", "doNotDisturbMode": true}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}
_SCRIPTS = (Path(__file__).with_name("browser.js")).read_text()
_RAISED = re.compile(r"\b[A-Z]\w*(?:Error|Exception): .*")


class Fault(NamedTuple):
    """What a reader would stumble over; panels count from 1, 0 is the notebook."""

    panel: int
    text: str


class Lab(NamedTuple):
    """A running JupyterLab, and the folder that it shows."""

    url: str
    token: str
    root: Path


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def running_lab(scratch: Path) -> Iterator[Lab]:
    """JupyterLab on a free port, with settings, kernels and files of its own."""
    root = scratch / "notebooks"
    root.mkdir()
    for name, text in _SETTINGS.items():
        file = scratch / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    folders = {
        name: str(scratch / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    } | {
        "JUPYTERLAB_SETTINGS_DIR": str(scratch / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(scratch / "workspaces"),
        "IPYTHONDIR": str(scratch / "ipython"),
        "LLMINFER_FIGURES": str(scratch / "figures"),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), root)
    own = [
        f"--port={port}",
        f"--IdentityProvider.token={lab.token}",
        f"--ServerApp.root_dir={root}",
    ]
    with (scratch / "lab.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *_LAB, *own],
            env=os.environ | folders,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_for(process, lab, scratch / "lab.log")
            yield lab
        finally:
            _stop(process)


def _wait_for(process: subprocess.Popen[bytes], lab: Lab, log: Path) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{lab.url}/api?token={lab.token}", timeout=2).read()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab does not answer:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End our own process group, kindly first, so that Lab can end its kernels."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def running_chromium(executable: str) -> Iterator[Browser]:
    """A headless browser with an empty profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield browser
        browser.close()


def panels_in(path: Path) -> int:
    """How many cells of a notebook are tagged ``widget``."""
    cells = nbformat.read(path, as_version=4).cells
    return sum("widget" in cell.metadata.get("tags", []) for cell in cells)


def find_faults(
    lab: Lab, browser: Browser, path: Path, shots: Path | None = None
) -> list[Fault]:
    """Run a copy of a notebook, move every slider at every width, and look.

    Args:
        lab: Where to open it.
        browser: What to open it in.
        path: The notebook; it is not changed.
        shots: A folder for pictures of each panel, if wanted.
    """
    blank = nbformat.read(path, as_version=4)
    blank.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    for cell in blank.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(blank, lab.root / path.name)
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 1400})
    try:
        _open(page, lab, path.name)
        if faults := _run_all(page):
            return faults
        return list(_walk(page, path.stem, shots))
    finally:
        _call(page, "shutDown")
        page.close()


def _call(page: Page, function: str) -> Any:
    return page.evaluate(f"async () => await workbook.{function}()")


def _open(page: Page, lab: Lab, name: str) -> None:
    page.add_init_script(_SCRIPTS)
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


def _walk(page: Page, stem: str, shots: Path | None) -> Iterator[Fault]:
    """Every slider of every panel at every width, there and back again."""
    panels = [page.locator(f"[data-panel='{i}']") for i in _call(page, "markPanels")]
    for width, keys in zip(WIDTHS, (("Right", "Left"), ("Left", "Right")), strict=True):
        page.set_viewport_size({"width": width, "height": 1400})
        for number, panel in enumerate(panels, 1):
            for text in _try_panel(page, panel, keys):
                yield Fault(number, f"at {width} px {text}")
            if shots is not None:
                panel.screenshot(path=shots / f"{stem}_{number}_{width}.png")


def _try_panel(page: Page, panel: Locator, keys: tuple[str, str]) -> Iterator[str]:
    picture = _next_picture(page, panel, before="")
    if not picture:
        yield "there is no picture"
    sliders = panel.locator(".widget-slider").all()
    if not sliders:
        yield "there is no slider"
    for slider in sliders:
        name = f"slider {slider.locator('.widget-label').inner_text()!r}"
        if not slider.is_visible():
            yield f"{name} is out of sight"
            continue
        if not _press(slider, keys):
            yield f"{name}: its readout does not move"
        before, picture = picture, _next_picture(page, panel, picture)
        if picture == before:
            yield f"{name}: the picture stays"
        yield from (f"{name}: {error}" for error in set(_call(page, "takeErrors")))
    yield from panel.evaluate("panel => workbook.clipped(panel)")
    if said := _RAISED.search(panel.locator(".jp-OutputArea").first.inner_text()):
        yield f"it says {said[0]!r}"


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
