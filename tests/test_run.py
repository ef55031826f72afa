"""The runner of all checks: each file once, counts that add up, and a clean end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import run
from nbformat.v4 import new_code_cell, new_notebook
from run import COLLECT, ROOT, Part, check, parts

LINTERS = ["types", "style", "format"]


def test_each_file_is_in_one_part() -> None:
    todo = parts(ROOT)
    assert len({part.name for part in todo}) == len(todo)
    named = [
        Path(argument)
        for part in todo
        for argument in part.arguments
        if argument.endswith((".py", ".ipynb"))
    ]
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "tests").rglob("*_test.py")]
    assert Counter(named) == Counter([*files, *(ROOT / "notebooks").rglob("*.ipynb")])
    assert all(part.kind or part.name in [*LINTERS, COLLECT] for part in todo)
    waiting = [(part.name, part.waits) for part in todo if part.beside]
    assert waiting == [("browser", ""), ("unit tests 5 of 5", "browser tests")]


def one_line(name: str, code: str) -> Part:
    return Part(name, ["-c", code])


def of_file(folder: Path, name: str, code: str) -> Part:
    path = folder / f"test_{name}.py"
    path.write_text(code)
    return Part(name, ["-m", "pytest", "-q", str(path)], "unit tests")


def found(count: int) -> Part:
    return one_line(COLLECT, f"print('{count} tests collected in 1 s')")


Checked = Callable[[list[Part]], tuple[int, str]]


@pytest.fixture
def checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Checked:
    """A function of parts: the exit status of their check, and what it says."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they start sooner

    def check_them(todo: list[Part]) -> tuple[int, str]:
        monkeypatch.setattr(run, "parts", lambda root: todo)
        return check(tmp_path, tmp_path), capsys.readouterr().out

    return check_them


SKIPS = """\
import pytest
def test_a(): pass
@pytest.mark.skip(reason="no such machine")
def test_b(): pass
"""


def test_what_ran_is_counted_and_what_was_skipped_is_named(
    tmp_path: Path, checked: Checked
) -> None:
    todo = [of_file(tmp_path, "some", SKIPS), one_line("ok", "print('fine')"), found(2)]
    status, said = checked(todo)
    assert status == 0
    assert re.search(r"^ +[\d.]+ s  ok +fine$", said, re.M)
    assert "skipped: test_some::test_b: no such machine" in said
    assert re.search(r"^2 unit tests: 2 of 2, in 0 min \d+ s$", said, re.M)


@pytest.mark.parametrize(
    ("code", "count", "why"),
    [
        ("def test_a(): pass", 2, r"the count: 1 ran, pytest finds 2"),
        ("def test_a(): pass\ndef test_b(): assert 1 > 2", 2, r"some$"),
        ("", 0, r"some$"),  # nothing in it is a failure too
        ("import nothing_of_that_name", 1, r"some"),
        ("import os\ndef test_a(): os._exit(0)", 1, r"the count: 0 ran"),
    ],
)
def test_what_fails_is_shown_and_told(
    code: str, count: int, why: str, tmp_path: Path, checked: Checked
) -> None:
    todo = [of_file(tmp_path, "some", code), found(count)]
    status, said = checked(todo)
    assert status == 1
    assert re.search(rf"^FAILED: .*{why}", said, re.M)
    if "assert" in code:
        assert "assert 1 > 2" in said


def test_other_parts_go_on_after_a_failure_and_two_run_at_once(
    tmp_path: Path, checked: Checked
) -> None:
    # Each of these two ends only if the other runs beside it.
    meet = "import sys, time, pathlib as p\np.Path(sys.argv[1]).touch()\n"
    meet += "while not p.Path(sys.argv[2]).exists(): time.sleep(0.01)\nprint('met')"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    todo = [
        one_line("broken", "print('out of order'); raise SystemExit(3)"),
        Part("one", ["-c", meet, a, b]),
        Part("other", ["-c", meet, b, a]),
        found(0),
    ]
    status, said = checked(todo)
    assert status == 1
    assert said.count("met") == 2
    assert re.search(
        r"^out of order\n\n +[\d.]+ s  broken +FAILED, exit.* 3$", said, re.M
    )
    assert said.endswith("FAILED: broken\n")


def test_what_never_ends_is_a_failure_and_the_others_go_on(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LIMIT", 4.0)
    endless = [one_line(name, "import time; time.sleep(300)") for name in "ab"]
    status, said = checked([*endless, one_line("later", "print('done')"), found(0)])
    assert status == 1
    assert re.search(r"later +done$", said, re.M)
    assert said.endswith("FAILED: a; b\n")


def test_never_more_than_two_beside_what_waits(
    tmp_path: Path, checked: Checked
) -> None:
    # Each says how many there were while it ran, itself among them; none is done before
    # the browser has seen two.
    code = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1]); mine = folder / f"{sys.argv[2]}.runs"; mine.touch()
seen, met = 0, folder / "met"
while not met.exists():
    if sys.argv[2] == "browser" and len(list(folder.glob("*.runs"))) == 3: met.touch()
    time.sleep(0.01)
for _ in range(20):
    seen = max(seen, len(list(folder.glob("[!b]*.runs")))); time.sleep(0.01)
mine.unlink(); print("beside", seen)
"""
    todo = [
        Part(name, ["-c", code, str(tmp_path), name], beside=name == "browser")
        for name in ["browser", *(f"p{i}" for i in range(5))]
    ]
    status, said = checked([*todo, found(0)])
    assert status == 0
    assert {int(n) for n in re.findall(r"beside (\d+)$", said, re.M)} <= {1, 2}
    assert said.count("beside") == 6


def test_one_that_waits_begins_when_those_it_waits_for_have_ended(
    tmp_path: Path, checked: Checked
) -> None:
    """And not when all have: another ends only if it has begun."""
    a, latex = tmp_path / "a", tmp_path / "latex"
    see = "import pathlib as p, time\nwhile not p.Path({}).exists(): time.sleep(0.01)"
    do = f"import pathlib as p\nprint(p.Path({str(a)!r}).exists())\n"
    report = Part("LaTeX", ["-c", f"{do}p.Path({str(latex)!r}).touch()"], waits="note")
    notebook = f"import pathlib as p, time; time.sleep(0.5); p.Path({str(a)!r}).touch()"
    other = one_line("other", f"{see.format(repr(str(latex)))}\nprint('seen')")
    todo = [report, Part("a", ["-c", notebook], "note"), other, found(0)]
    status, said = checked(todo)
    assert status == 0
    assert re.search(r"LaTeX +True$", said, re.M)
    assert re.search(r"other +seen$", said, re.M)


def test_what_is_compiled_is_kept(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    said = checked([one_line("a", "import sys; print(sys.flags)"), found(0)])[1]
    assert "dont_write_bytecode=0" in said


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


SLEEPS = """\
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
pathlib.Path({pids!r}).write_text(f"{{os.getpid()}} {{child.pid}}")
time.sleep(300)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("sign", "notebooks"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)]
)
def test_an_interrupt_ends_all(
    sign: signal.Signals, notebooks: int, tmp_path: Path
) -> None:
    """A test, what the test started, and a notebook's kernel."""
    for folder in ("tests", "notebooks"):
        (tmp_path / folder).mkdir()
    for name in ("run.py", "quick_start.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    pids = [tmp_path / name for name in ("test", "kernel")[: 1 + notebooks]]
    body = SLEEPS.format(pids=str(pids[0])).replace("\n", "\n    ")
    (tmp_path / "tests" / "test_sleeps.py").write_text(f"def test_it():\n    {body}\n")
    for path in pids[1:]:
        cell = f"import os, time\nopen({str(path)!r}, 'w').write(str(os.getpid()))\n"
        sleeper = new_notebook(cells=[new_code_cell(f"{cell}time.sleep(300)")])
        nbformat.write(sleeper, tmp_path / "notebooks" / "00_sleeps.ipynb")
    command = [sys.executable, str(tmp_path / "tests" / "run.py")]
    runner = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        until = time.monotonic() + 120.0
        while not all(path.exists() and path.read_text() for path in pids):
            assert runner.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        there = [int(pid) for path in pids for pid in path.read_text().split()]
        os.kill(runner.pid, sign)
        said = runner.communicate(timeout=120)[0]
    finally:
        if runner.poll() is None:
            os.killpg(runner.pid, signal.SIGKILL)
    assert runner.returncode == 130
    assert said.endswith("interrupted\n")  # mypy finds nothing there, and ends
    while any(map(alive, there)) and time.monotonic() < until:
        time.sleep(0.05)  # the kernel of a killed test ends within a second
    assert [pid for pid in there if alive(pid)] == []
