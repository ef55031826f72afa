"""Every check, two programs at a time: ``python tests/run.py``, or ``make test``.

What waits more than it computes, the browser and then the tests that start programs,
runs beside these. Each test file and each notebook is in one part. At the end, what
the parts ran is held beside what ``pytest --collect-only`` finds over everything: a
difference is a failure.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
AT_ONCE = 2  # programs: more do not pay on two cores
UNIT_PARTS = 5  # each loads for some seconds; fewer, and the last would run alone
LIMIT = 900.0  # seconds a part may take: one that hangs is a failure, and shows where
GRACE = 15.0  # seconds from an interrupt until what still runs is killed
BROWSER, NOTEBOOKS, UNITS = "browser tests", "notebook cells", "unit tests"
COLLECT = "collected"  # the name of the part that only counts
_QUICK = ["-p", "tests.quick_start", "-p", "no:anyio"]
_PYTEST = ["-m", "pytest", *_QUICK, "-p", "no:cacheprovider"]
_NBVAL = ["-p", "no:hypothesispytest", "--nbval-lax", "--nbval-current-env"]
_NO_NBVAL = ["-p", "no:nbval"]  # to load it costs two seconds
_TOOLS = re.compile(r"^(?:from|import) (?:lab|nbformat|notebooks)\b", re.MULTILINE)
_FOUND = re.compile(r"^(\d+) tests? collected", re.MULTILINE)


class Part(NamedTuple):
    """Something to run with Python, and what its tests are called, if it has any."""

    name: str
    arguments: list[str]
    kind: str = ""
    waits: str = ""  # the kind of those that must have ended before it begins
    beside: bool = False  # the two that compute


class Ended(NamedTuple):
    """A part that has ended: its exit status, wall-clock seconds and output."""

    part: Part
    status: int
    seconds: float
    output: str
    report: Path

    def tests(self) -> tuple[int, list[str]]:
        """How many tests there were, and those that were skipped, with the reason."""
        if not self.report.exists():
            return 0, []
        (suite,) = ElementTree.parse(self.report).getroot()
        skips = [
            f"{case.get('classname')}::{case.get('name')}: {skip.get('message')}"
            for case in suite.iter("testcase")
            for skip in case.iter("skipped")
        ]
        return int(suite.get("tests", 0)), skips


def parts(root: Path) -> list[Part]:
    """What can run in any order, each file in one part; the long ones come first.

    The browser goes through the notebooks from the first to the last while they are
    checked from the last to the first: they find each other's runs in the cache.
    """
    alone = {"test_browser.py", "test_latex.py"}
    files = sorted((root / "tests").glob("test_*.py"))
    units = _dealt([path for path in files if path.name not in alone])
    notebooks = sorted((root / "notebooks").glob("*.ipynb"), reverse=True)
    return [
        *_alone(files, "browser", BROWSER, beside=True),
        *(_notebook(path) for path in notebooks),
        # What the notebooks wrote for the report must compile.
        *_alone(files, "LaTeX", "LaTeX tests", waits=NOTEBOOKS),
        *units,
        Part("types", ["-m", "mypy"]),
        Part(COLLECT, [*_PYTEST, "--collect-only", *_NBVAL, "tests", "notebooks"]),
        Part("style", ["-m", "ruff", "check", "."]),
        Part("format", ["-m", "ruff", "format", "--check", "."]),
    ]


def _dealt(files: Sequence[Path]) -> list[Part]:
    """Unit tests in parts; those that start notebooks or Lab, and wait, in one."""
    wait = [path for path in files if _TOOLS.search(path.read_text("utf-8"))]
    rest = [path for path in files if path not in wait]
    among = UNIT_PARTS - 1
    parts = [
        _tests(f"unit tests {i} of {UNIT_PARTS}", UNITS, [*_NO_NBVAL, *its])
        for i, its in enumerate([*(rest[i::among] for i in range(among)), wait], 1)
        if its
    ]
    if wait:
        parts[-1] = parts[-1]._replace(waits=BROWSER, beside=True)
    return parts


def _alone(files: Sequence[Path], name: str, kind: str, **how: Any) -> list[Part]:
    """The part of the test file of that name, if it is there."""
    its = [path for path in files if path.name == f"test_{name.lower()}.py"]
    return [_tests(name, kind, [*_NO_NBVAL, path])._replace(**how) for path in its]


def _tests(name: str, kind: str, arguments: Sequence[str | Path]) -> Part:
    return Part(name, [*_PYTEST, *map(str, arguments)], kind)


def _notebook(path: Path) -> Part:
    options = [*_NBVAL, "--nbval-cell-timeout=600", path]
    return _tests(f"notebook {path.stem}", NOTEBOOKS, options)


def run(todo: Sequence[Part], root: Path, scratch: Path) -> Iterator[Ended]:
    """Run parts, ``AT_ONCE`` at a time beside what waits, and tell of each as it ends.

    Whichever way this is left, nothing of it runs on.
    """
    waiting = list(todo)
    running: dict[subprocess.Popen[bytes], tuple[Part, float]] = {}
    try:
        while waiting or running:
            busy = [part for part, _ in running.values()]
            while part := _next(waiting, busy):
                waiting.remove(part)
                busy.append(part)
                running[_start(part, root, scratch)] = part, time.perf_counter()
            time.sleep(0.05)
            since = time.perf_counter() - LIMIT
            _end([one for one, (_, began) in running.items() if began < since])
            for process in [one for one in running if one.poll() is not None]:
                part, began = running.pop(process)
                seconds = time.perf_counter() - began
                output = _file(part, scratch, "log").read_text("utf-8", "replace")
                report = _file(part, scratch, "xml")
                yield Ended(part, process.returncode, seconds, output, report)
    finally:
        _end(list(running))


def _next(waiting: Sequence[Part], running: Sequence[Part]) -> Part | None:
    """The first that may begin beside those that run, if any."""
    full = sum(not part.beside for part in running) >= AT_ONCE
    left = {part.kind for part in (*waiting, *running) if part.kind}
    for its in waiting:
        if (its.beside or not full) and its.waits not in left:
            return its
    return None


def _file(part: Part, scratch: Path, suffix: str) -> Path:
    return scratch / f"{part.name.replace(' ', '_')}.{suffix}"


def _start(part: Part, root: Path, scratch: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, *part.arguments]
    # One thread each: to share two cores, those of linear algebra wait and burn time.
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    # What one has compiled is there for the next: else each compiles for five seconds.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if part.kind:
        command.append(f"--junitxml={_file(part, scratch, 'xml')}")
    if part.kind == NOTEBOOKS:  # one process each, and no bars in its outputs
        environment |= {"LOKY_MAX_CPU_COUNT": "1", "TQDM_DISABLE": "1"}
    with _file(part, scratch, "log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt programs, so that they can end their own, and then kill the rest."""
    for process in processes:
        _signal(process, "SIGINT")
    until = time.monotonic() + GRACE
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.wait(max(0.0, until - time.monotonic()))
    for process in processes:
        _signal(process, "SIGKILL")
        process.wait()


def _signal(process: subprocess.Popen[bytes], name: str) -> None:
    """Send a signal to a program and to what it started; on Windows, end it."""
    if os.name != "posix":
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, getattr(signal, name))


def say(its: Ended) -> list[str]:
    """What is worth saying of a part: a line, and all of its output if it failed."""
    lines = [line for line in its.output.splitlines() if line.strip()] or [""]
    closing = lines[-1] if its.status == 0 else f"FAILED, exit status {its.status}"
    said = [f"{its.seconds:6.1f} s  {its.part.name:28} {closing}"]
    said += [f"          {line}" for line in lines if "seen once" in line]
    said += [f"          skipped: {which}" for which in its.tests()[1]]
    return said if its.status == 0 else [its.output, *said]


def check(root: Path, scratch: Path) -> int:
    """Run everything below ``root`` and say what came of it; 0 if all is well."""
    began, ran = time.perf_counter(), Counter[str]()
    failed, there = [], -1
    with contextlib.closing(run(parts(root), root, scratch)) as ends:
        for its in ends:
            print(*say(its), sep="\n", flush=True)
            ran[its.part.kind] += its.tests()[0]
            if its.status:
                failed.append(its.part.name)
            if its.part.name == COLLECT and (found := _FOUND.search(its.output)):
                there = int(found[1])
    counts = ", ".join(f"{n:,} {kind}" for kind, n in ran.items() if kind)
    minutes, seconds = divmod(round(time.perf_counter() - began), 60)
    print(f"{counts}: {ran.total():,} of {there:,}, in {minutes} min {seconds} s")
    if ran.total() != there:
        failed.append(f"the count: {ran.total():,} ran, pytest finds {there:,}")
    if failed:
        print("FAILED: " + "; ".join(failed))
    return int(bool(failed))


def main() -> int:
    """Check the working copy, with a cache and figures that are gone at the end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name in ("cache", "figures"):
            os.environ.setdefault(f"LLMINFER_{name.upper()}", str(Path(folder, name)))
        try:
            return check(ROOT, Path(folder))
        except KeyboardInterrupt:
            print("interrupted")
            return 130


if __name__ == "__main__":
    sys.exit(main())
