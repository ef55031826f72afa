"""The executed notebooks in one page."""

from __future__ import annotations

import html
import os
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, output_from_msg

from notebooks import workbook

FIRST = """# 01 First: what?

At $\\lambda \\ge 3$ see [the second](02_second.ipynb) and [another](03_third.ipynb).
"""


def shown(text):
    content = {"data": {"text/plain": text}, "metadata": {}}
    message = {"header": {"msg_type": "display_data"}, "content": content}
    return [output_from_msg(message)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two notebooks with cells of the same names, and a template that is none."""
    for name, head in [("01_first", FIRST), ("02_second", "# 02 Second: which?")]:
        cells = [
            new_markdown_cell(head, id="same"),
            new_code_cell("1 + 1", id="twin", outputs=shown(f"out of {name}")),
        ]
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    nbformat.write(new_notebook(), tmp_path / "99_mine.ipynb")
    monkeypatch.setattr(workbook, "HERE", tmp_path)
    return tmp_path


def test_all_notebooks_are_in_it_in_order(folder):
    page = folder / "workbook.html"
    workbook.write(page)
    text = page.read_text("utf-8")
    places = [text.index(f"out of {name}") for name in ("01_first", "02_second")]
    assert places == sorted(places)
    assert text.index('href="#01_first"') < text.index('id="01_first"') < places[0]


def test_links_between_them_stay_on_the_page(folder):
    cells = workbook.bound(workbook.chapters(folder)).cells
    text = "".join(cell.source for cell in cells)
    assert "[the second](#02_second)" in text
    assert "[another](03_third.ipynb)" in text  # which is not bound in


def test_it_is_a_valid_notebook_though_two_name_their_cells_alike(folder):
    book = workbook.bound(workbook.chapters(folder))
    nbformat.validate(book)
    assert len({cell.id for cell in book.cells}) == len(book.cells) == 7


def test_a_formula_is_a_picture_with_its_text(folder):
    cells = workbook.bound(workbook.chapters(folder)).cells
    source = next(cell.source for cell in cells if "First" in cell.source[:20])
    assert "$" not in source
    assert r'alt="\lambda \ge 3"' in source
    assert "data:image/svg+xml;base64," in source


def test_a_picture_keeps_its_text(folder):
    book = nbformat.read(folder / "01_first.ipynb", as_version=4)
    data = {"image/png": "aGVsbG8=\n", "text/plain": "<Image>"}
    text = {"image/png": {"alt": "A line, < steep & straight"}}
    content = {"data": data, "metadata": text}
    message = {"header": {"msg_type": "display_data"}, "content": content}
    book.cells[1].outputs = [output_from_msg(message)]
    nbformat.write(book, folder / "01_first.ipynb")
    workbook.write(folder / "workbook.html")
    page = (folder / "workbook.html").read_text("utf-8")
    (alt,) = re.findall(
        r'<img alt="([^"]*)" src="data:image/png;base64,aGVsbG8="', page
    )
    assert html.unescape(alt) == "A line, < steep & straight"


def test_each_formula_of_the_workbook_can_be_drawn():
    cells = workbook.bound(workbook.chapters(workbook.HERE)).cells
    sources = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert sum('class="math"' in source for source in sources) > 20
    assert not [s for s in sources if re.search(r"\$[^$\n]+\$", s)]


def test_where_a_browser_is_it_prints(folder):
    if workbook.find_chromium() is None and not os.environ.get("CI"):
        pytest.skip("no chromium on the PATH")
    page = folder / "workbook.html"
    page.write_text("<h1>One</h1><h1 style='break-before: page'>Two</h1>")
    pdf = workbook.printed(page)
    assert pdf.read_bytes().count(b"/Type /Page\n") == 2


def test_without_a_browser_there_is_no_pdf(folder, monkeypatch):
    monkeypatch.setattr(workbook, "find_chromium", lambda: "/nowhere/chromium")
    page = folder / "workbook.html"
    page.write_text("<h1>One</h1>")
    assert workbook.printed(page) is None
