"""How soon a slider's move is seen in the browser: ``python tests/bench_browser.py``.

From the key press to the new picture, by the page's own clock, on the page that
``make app`` shows.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from browser import panels_in
from lab import running_chromium, running_page
from playwright.sync_api import expect

from llminfer.__main__ import find_chromium

MOVES = 20
APP = Path(__file__).parents[1] / "notebooks" / "app.ipynb"
PRESS = """([panel, key]) => new Promise((seen) => {
  const begun = performance.now();
  panel.querySelector("img").addEventListener(
    "load", () => seen(performance.now() - begun), { once: true });
  panel.querySelector(".noUi-handle").dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true }));
})"""


def in_browser():
    """Milliseconds from key to picture for each panel, median of twenty."""
    executable = find_chromium()
    if executable is None:
        print("no chromium on the PATH: the browser is not timed")
        return
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_chromium(executable) as browser,
        running_page(APP, Path(scratch)) as site,
    ):
        page = browser.new_page()
        page.goto(site.url)
        panels = page.locator(".widget-vbox:has(> img.widget-image)")
        expect(panels).to_have_count(panels_in(APP), timeout=60_000)
        for number, found in enumerate(panels.all(), 1):
            panel = found.element_handle()
            times = []
            for move in range(MOVES):
                key = ("ArrowRight", "ArrowLeft")[move % 2]
                times.append(page.evaluate(PRESS, [panel, key]))
            name = f"panel {number} of the page, in Chromium"
            print(f"{name:32}{statistics.median(times):12.0f} ms")


if __name__ == "__main__":
    in_browser()
