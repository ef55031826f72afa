"""The notebooks as they are stored: small cells, and outputs fit to be committed."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

import llminfer

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_FUNCTION, LONGEST_STDERR = 15, 6  # lines
# Files and memory of the machine that happened to run the notebook.
_OF_A_MACHINE = re.compile(
    r"/(?:home|Users|root|tmp|usr|var|opt)/\S+|\b[A-Z]:\\\S+|site-packages|"
    rf"\bat 0x[0-9a-f]{{6,}}|ipykernel_\d+|{re.escape(str(FOLDER.parent))}/"
)


def faults(notebook: NotebookNode) -> list[str]:
    """What is wrong with a stored notebook, a line each."""
    found = []
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    trees = [ast.parse(TransformerManager().transform_cell(c.source)) for c in cells]
    ours = {name for tree in trees for name in _imported(tree)} | set(llminfer.__all__)
    for number, (cell, tree) in enumerate(zip(cells, trees, strict=True), 1):
        where = f"code cell {number}"
        found += [f"{where}: {fault}" for fault in _fault_of_output(cell)]
        found += [f"{where}: {fault}" for fault in _fault_of_code(tree, ours)]
        # A figure is shown at the end of the cell that makes it, as it is then.
        if ".new(" in cell.source and ".save(" not in cell.source:
            found.append(f"{where}: shows a figure that is not finished")
    return found


def _fault_of_output(cell: NotebookNode) -> Iterator[str]:
    tags = cell.metadata.get("tags", [])
    if not cell.outputs and {"nbval-check-output", "widget"} & {*tags}:
        yield "to be checked or seen, but no output is stored"
    for output in cell.outputs if "widget" in tags else []:
        if not output.get("metadata", {}).get("image/png", {}).get("alt"):
            yield "tagged widget, but shows no picture with a text"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"error {output.ename}"
        text = _text(output)
        if output.get("name") == "stderr" and text.count("\n") > LONGEST_STDERR:
            yield "a wall of stderr"
        if part := _OF_A_MACHINE.search(text):
            yield f"one machine's {part[0]!r} in the output"


def _text(output: NotebookNode) -> str:
    data = output.get("data", {})
    return output.get("text", "") + "".join(
        str(data[mime]) for mime in sorted(data) if mime.startswith("text/")
    )


def _fault_of_code(tree: ast.Module, ours: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
            yield f"function {node.name} is long enough for the module"
        for name in _bound(node):
            if name in ours:
                yield f"redefines {name} of llminfer"


def _bound(node: ast.AST) -> list[str]:
    """Names to which a node gives another meaning; an import from us does not."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Name(ctx=ast.Store()):
            return [node.id]
        case ast.Import():
            return [alias.asname or alias.name for alias in node.names if alias.asname]
        case ast.ImportFrom() if not _is_ours(node):
            return [alias.asname or alias.name for alias in node.names]
    return []


def _is_ours(node: ast.ImportFrom) -> bool:
    return (node.module or "").split(".")[0] == "llminfer"


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names that a cell imports from llminfer."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_ours(node):
            yield from (alias.asname or alias.name for alias in node.names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_fit_to_be_committed(path: Path) -> None:
    assert faults(nbformat.read(path, as_version=4)) == []


def test_each_notebook_has_a_number_of_its_own() -> None:
    stems = [path.stem for path in NOTEBOOKS if path.stem != "app"]  # the page
    numbers = [re.match(r"(\d\d)_[a-z0-9_]+$", stem) for stem in stems]
    assert None not in numbers
    counts = Counter(number[1] for number in numbers if number)
    assert counts
    assert max(counts.values()) == 1


def test_cells_are_short() -> None:
    """Four lines in the median, ten at the ninetieth percentile, none over fifteen."""
    lines = sorted(
        sum(bool(line.strip()) for line in cell.source.splitlines())
        for path in NOTEBOOKS
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    )
    assert lines[len(lines) // 2] <= 4
    assert lines[len(lines) * 9 // 10] <= 10
    assert lines[-1] <= 15


LONG = "def f(x):\n" + "    x += 1\n" * 14 + "    return x"
STDOUT = {"output_type": "stream", "name": "stdout"}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}


@pytest.mark.parametrize(
    ("source", "tags", "outputs", "fault"),
    [
        ("1", ["nbval-check-output"], [], "no output is stored"),
        ("1", ["widget"], [], "no output is stored"),
        ("1", ["widget"], [STDOUT | {"text": "1"}], "tagged widget"),
        ("1", [], [ERROR], "error ValueError"),
        ("1", [], [STDOUT | {"text": "in /home/me/x.py"}], "one machine's"),
        ("1", [], [STDOUT | {"text": "<A at 0x7f3a5c0e>"}], "one machine's"),
        ("1", [], [STDOUT | {"name": "stderr", "text": "x\n" * 9}], "wall of stderr"),
        ("fig, ax = figures.new()", [], [], "not finished"),
        (LONG, [], [], "function f is long"),
        ("from llminfer.checks import fail\nfail = 1", [], [], "redefines fail"),
        ("for sweep in range(3): pass", [], [], "redefines sweep"),
        ("def simulate(): pass", [], [], "redefines simulate"),
        ("from simpy import Event as Workload", [], [], "redefines Workload"),
        ("import numpy as sweep", [], [], "redefines sweep"),
    ],
)
def test_guard_names_the_fault(
    source: str, tags: list[str], outputs: list[dict[str, object]], fault: str
) -> None:
    shown = [new_output(**output) for output in outputs]
    cell = new_code_cell(source, metadata={"tags": tags}, outputs=shown)
    (found,) = faults(new_notebook(cells=[cell]))
    assert fault in found


def test_guard_lets_a_decent_notebook_pass() -> None:
    source = "%matplotlib inline\nfrom llminfer import sweep\ntable = sweep(...)"
    text = STDOUT | {"text": "1.5 requests/s, see figures/ and 3/4"}
    good = new_code_cell(source, outputs=[new_output(**text)])
    named = {"image/png": {"alt": "Left: the p99."}}
    picture = new_output("execute_result", {"image/png": ""}, metadata=named)
    tags = {"tags": ["widget"]}
    panel = new_code_cell("Panel()", metadata=tags, outputs=[picture])
    assert faults(new_notebook(cells=[good, panel])) == []
