"""Execute notebooks in place: ``python notebooks/execute.py [NOTEBOOK ...]``.

What is written is the same, byte for byte, as long as the results are: times,
versions and widgets, which show nothing without a kernel, are left out.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from llminfer.data.public import DATASETS, DataMissing, fetch

_AT_ONCE = 2  # notebooks
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_WIDGET = "application/vnd.jupyter.widget-view+json"
_NEEDED = re.compile(r"\bneeded\(([^)]*)\)")  # the data that a notebook asks for
_WARNING = re.compile(r"^\S+:\d+: (\w*Warning: .*)$", re.MULTILINE)


class CallbackError(Exception):
    """A widget's callback raised; the cell that shows the widget did not."""


def lacking(path: Path) -> str | None:
    """What data the notebook at ``path`` needs and cannot get, in one line.

    None if it has all, and in continuous integration, where it is to fail instead.
    """
    if os.environ.get("CI"):
        return None
    asked = " ".join(_NEEDED.findall(path.read_text("utf-8")))
    try:
        for name in DATASETS:
            if name in asked:
                fetch(name)
    except DataMissing as missing:
        return str(missing)
    return None


def execute(path: Path) -> None:
    """Run the notebook at ``path`` and store its outputs in it.

    Raises:
        CellExecutionError: A cell failed; the file is left as it was.
        CallbackError: A callback failed; the file is left as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name=_KERNEL["name"],
        extra_arguments=["--log-level=40"],  # errors; warnings break up our lines
        resources={"metadata": {"path": str(path.parent)}},
        coalesce_streams=True,
        record_timing=False,
    )
    # Acting for Output widgets, the client writes to the socket on which it waits for
    # the reply, and can miss it for ever. Without, their outputs go to the cell.
    client.widget_registry.clear()
    client.execute()
    if tracebacks := list(_callback_errors(notebook)):
        raise CallbackError(tracebacks[0])
    tidy(notebook)
    nbformat.write(notebook, path)


def tidy(notebook: NotebookNode) -> None:
    """Leave out what differs from run to run or shows nothing without a kernel.

    Of a panel its picture stays.
    """
    notebook.metadata.kernelspec = _KERNEL
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata.pop("execution", None)
            is_panel = "widget" in cell.metadata.get("tags", [])
            cell.outputs = list(_kept(cell.outputs, is_panel))


def _kept(outputs: Sequence[NotebookNode], is_panel: bool) -> Iterator[NotebookNode]:
    """No progress bars; of stderr the warnings, without the path they came from."""
    for output in outputs:
        data = output.get("data", {})
        if data.pop(_WIDGET, is_panel) and "image/png" not in data:
            continue
        if output.get("name") != "stderr":
            yield output
        elif warnings := _WARNING.findall(output.text):
            output.text = "".join(f"{warning}\n" for warning in warnings)
            yield output


def _callback_errors(notebook: NotebookNode) -> Iterator[str]:
    """Tracebacks that a widget caught, in cells that went on nevertheless."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield "\n".join(output.traceback)


def main(names: Sequence[str]) -> int:
    """Execute the named notebooks, or all, two at once; 1 if one fails.

    Much of a notebook runs on one core. After a failure no other begins.
    """
    here = Path(__file__).parent
    # From the last to the first: the long ones begin first, the short ones fill gaps.
    all_of_them = sorted(here.glob("*.ipynb"), reverse=True)
    paths = [Path(name) for name in names] or all_of_them
    failed = threading.Event()

    def run(number: int, path: Path) -> None:
        if failed.is_set():
            return
        said, start = f"[{number}/{len(paths)}] {path} ...", time.perf_counter()
        if without := lacking(path):
            print(f"{said} left as it is: {without}", flush=True)
            return
        try:
            execute(path)
        except (CellExecutionError, CallbackError) as error:
            failed.set()
            print(f"{said} failed\n{error}", file=sys.stderr)
        else:
            print(f"{said} {time.perf_counter() - start:.1f} s", flush=True)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(run, range(1, len(paths) + 1), paths))
    return int(failed.is_set())


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    sys.exit(main(sys.argv[1:]))
