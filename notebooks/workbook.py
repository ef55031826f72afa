"""The executed workbook in one page: ``python notebooks/workbook.py``.

``report/workbook.html`` has all notebooks, their pictures within, and needs no kernel;
``report/workbook.pdf`` is the same on paper, where a browser is that can print it.
"""

from __future__ import annotations

import html
import re
from base64 import b64encode
from collections.abc import Collection, Iterator
from io import BytesIO
from pathlib import Path

import nbformat
from matplotlib.mathtext import math_to_image
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from playwright.sync_api import Error, sync_playwright

from llminfer.__main__ import find_chromium

HERE = Path(__file__).parent
PAGE = HERE.parent / "report" / "workbook.html"
TITLE = "llminfer: the executed workbook"
_MATH = re.compile(r"\$([^$\n]+)\$")
_LINK = re.compile(r"\]\((?:\.\./notebooks/)?(\w+)\.ipynb\)")  # to another notebook
_HEAD = """<style>
@page { size: A4; margin: 15mm 12mm; }
img.math { display: inline !important; margin: 0 !important; }
@media print {
  body { font-size: 10pt; }
  .jp-InputPrompt, .jp-OutputPrompt { display: none !important; }
  .jp-Cell { break-inside: auto; }
  h1 { break-before: page; }
  h1, h2, h3 { break-after: avoid; }
  img, tr { break-inside: avoid; }
  pre { white-space: pre-wrap !important; }
  img { max-width: 100% !important; height: auto !important; }
  .jp-OutputArea-output { overflow: visible !important; }
}
</style>
"""


def chapters(folder: Path) -> list[Path]:
    """The numbered notebooks in their order; the last, a template, is none."""
    return sorted(folder.glob("[0-8]*.ipynb")) + sorted(folder.glob("1*.ipynb"))


def bound(paths: list[Path]) -> NotebookNode:
    """One notebook of several, each from its anchor on, after a list of them all."""
    books = {path.stem: nbformat.read(path, as_version=4) for path in paths}
    titles = {
        name: book.cells[0].source.splitlines()[0].lstrip("# ")
        for name, book in books.items()
    }
    items = [f"- [{title}](#{name})" for name, title in titles.items()]
    cells = [new_markdown_cell("\n".join([_HEAD, f"# {TITLE}", "", *items]))]
    for name, book in books.items():
        cells.append(new_markdown_cell(f'<a id="{name}"></a>'))
        cells += _within(book, books.keys())
    for number, cell in enumerate(cells):  # those of two notebooks may be the same
        cell["id"] = f"cell-{number}"
    whole: NotebookNode = new_notebook(cells=cells, metadata={"title": TITLE})
    return whole


def _within(book: NotebookNode, names: Collection[str]) -> Iterator[NotebookNode]:
    """The cells of a notebook, whose links to another lead to its place on the page."""

    def place(link: re.Match[str]) -> str:
        return f"](#{link[1]})" if link[1] in names else link[0]

    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = _MATH.sub(_drawn, _LINK.sub(place, cell.source))
        for output in cell.get("outputs", []):
            if text := output.get("metadata", {}).get("image/png", {}).get("alt"):
                output.data = {"text/html": _picture(output.data["image/png"], text)}
        yield cell


def _picture(data: str, text: str) -> str:
    """A picture with its text, which nbconvert would leave out."""
    alt = html.escape(text)
    return f'<img alt="{alt}" src="data:image/png;base64,{data.strip()}">'


def _drawn(formula: re.Match[str]) -> str:
    """A formula as a picture, so that the page needs nothing from elsewhere."""
    drawing = BytesIO()
    known = re.sub(r"\\([gl]e)(?![a-z])", r"\\\1q", formula[0])  # by another name
    depth = math_to_image(known, drawing, format="svg", dpi=72)
    data = b64encode(drawing.getvalue()).decode()
    text = html.escape(formula[1])
    return (
        f'<img class="math" alt="{text}" style="vertical-align:-{depth:.1f}pt" '
        f'src="data:image/svg+xml;base64,{data}">'
    )


def write(path: Path) -> None:
    """Write the page."""
    exporter = HTMLExporter(embed_images=True)
    where = {"metadata": {"path": str(HERE), "name": TITLE}}
    text, _ = exporter.from_notebook_node(bound(chapters(HERE)), where)
    path.write_text(text, "utf-8")


def printed(page: Path) -> Path | None:
    """The page as a PDF beside it; None where no browser is."""
    pdf, path = page.with_suffix(".pdf"), find_chromium()
    try:
        with (
            sync_playwright() as play,
            play.chromium.launch(executable_path=path) as browser,
        ):
            sheet = browser.new_page()
            sheet.goto(page.as_uri())
            sheet.pdf(path=pdf, prefer_css_page_size=True, print_background=True)
    except Error:
        return None
    return pdf


if __name__ == "__main__":
    write(PAGE)
    pdf = printed(PAGE)
    without = "no PDF, for lack of a browser: python -m playwright install chromium"
    print(f"The workbook: {PAGE} and {pdf or without}")
