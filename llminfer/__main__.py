"""What make does, without make, in a clone of the project: ``python -m llminfer test``.

Plain Python, so that it runs wherever Python does: no shell, no make.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TASKS = {
    "report": "run every notebook, draw every figure, and bind them in one page",
    "test": "check all: unit, property, doc and browser tests, notebooks, style, types",
    "lab": "open the notebooks in JupyterLab, on this machine only",
    "app": "the panels alone, as a page in the browser, on this machine only",
    "bench": "measure speed and memory, beside brute-force twins",
    "lint": "check format, style and types",
}
_REPORT = ["execute", "fill_readme", "workbook"]
_LINT = ["ruff format --check .", "ruff check .", "mypy"]
_BENCH = [[""], ["_continuous"], ["_memory", "--most", "100000"], ["_browser"]]
_APP = [
    "--Voila.ip=127.0.0.1",
    # No (an empty value): who came by another name than this machine's gets a 403.
    "--Voila.tornado_settings=allow_remote_access=",
    # Seconds; a kernel with a page is connected, and stays.
    "--MappingKernelManager.cull_idle_timeout=120",
    "--MappingKernelManager.cull_interval=30",
]


def commands(task: str) -> list[list[str]]:
    """What a task runs, one after the other, as arguments of Python below ``ROOT``.

    >>> commands("test")
    [['tests/run.py']]
    """
    lab = ["-m", "jupyterlab", "--ip=127.0.0.1", "--notebook-dir=notebooks"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # as in a container
        lab.append("--allow-root")
    return {
        "report": [[f"notebooks/{name}.py"] for name in _REPORT],
        "test": [["tests/run.py"]],
        "lab": [lab],
        "app": [["-m", "voila", *_APP, "notebooks/app.ipynb"]],
        "bench": [[f"tests/bench{of}.py", *rest] for of, *rest in _BENCH],
        "lint": [["-m", *of.split()] for of in _LINT],
    }[task]


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


def main(arguments: Sequence[str]) -> int:
    """Run a task up to its first failure: the exit status, 2 if there is no such task.

    More arguments go to the last of its commands.
    """
    if not arguments or arguments[0] not in TASKS:
        said = [f"  {task:8} {does}" for task, does in TASKS.items()]
        print("python -m llminfer TASK, where TASK is one of", *said, sep="\n")
        return 2
    if not (ROOT / "notebooks").is_dir():
        print(f"{ROOT}: no clone of the project, so there are no notebooks to work on")
        return 2
    todo = commands(arguments[0])
    todo[-1] += arguments[1:]
    return next(filter(None, map(_python, todo)), 0)


def _python(command: Sequence[str]) -> int:
    """Run Python and wait for its end, whoever asks for that end."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # it has the same from the console
            return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
