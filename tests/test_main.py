"""The tasks without make: what they run, and how they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llminfer.__main__ import ROOT, TASKS, commands, main
from notebooks import execute

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def test_make_has_the_same_tasks() -> None:
    told = re.findall(r"^\t@echo 'make (\w+) ", MAKEFILE, re.M)
    assert re.findall(r"^TASKS := (.*)$", MAKEFILE, re.M) == [" ".join(TASKS)]
    assert told == [*TASKS, "clean"]


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_runs_is_there(task: str) -> None:
    for first, *rest in commands(task):
        if first != "-m":
            assert (ROOT / first).is_file()
        for name in rest:
            if name.endswith(".ipynb"):
                assert (ROOT / name).is_file()
    stays = [part for command in commands(task) for part in command if "ip=" in part]
    assert stays == {"lab": ["--ip=127.0.0.1"], "app": ["--Voila.ip=127.0.0.1"]}.get(
        task, []
    )


def test_the_report_is_of_all_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Path] = []
    monkeypatch.setattr(execute, "execute", ran.append)
    assert commands("report")[0] == ["notebooks/execute.py"]
    assert execute.main([]) == 0
    assert sorted(ran) == sorted(ROOT.glob("notebooks/*.ipynb"))


@pytest.mark.parametrize("arguments", [[], ["reprot"]])
def test_without_a_task_they_are_told(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().out
    assert all(f"\n  {task} " in said for task in TASKS)


def test_an_installed_package_has_no_notebooks_and_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("llminfer.__main__.ROOT", tmp_path)
    assert main(["report"]) == 2
    assert "no clone of the project" in capsys.readouterr().out


def test_a_failure_ends_a_task_and_arguments_go_to_its_last_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    say = "import sys; print(sys.argv[1:]); sys.exit({})"
    codes = [0, 3, 0]
    monkeypatch.setattr(
        "llminfer.__main__.commands",
        lambda task: [["-c", say.format(code), str(code)] for code in codes],
    )
    assert main(["lint", "more"]) == 3
    assert capfd.readouterr().out.split("\n") == ["['0']", "['3']", ""]
    codes[1] = 0
    assert main(["lint", "more"]) == 0
    assert capfd.readouterr().out.split("\n")[-2] == "['0', 'more']"


WAITS = """\
import sys, llminfer.__main__ as of
last = "import os, time; print(os.getpid(), flush=True); time.sleep({})"
end = "try: exec(sys.argv[1])\\nexcept KeyboardInterrupt: time.sleep(1); sys.exit(7)"
of.commands = lambda task: [["-c", f"import sys, time\\n{end}", last.format(300)]]
sys.exit(of.main(["test"]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("sign", "status"), [(signal.SIGINT, 7), (signal.SIGTERM, 256 - signal.SIGTERM)]
)
def test_a_task_ends_before_what_started_it(sign: signal.Signals, status: int) -> None:
    """An interrupt from the console, which all get; and a SIGTERM to it alone."""
    starter = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert starter.stdout
    try:
        pid = int(starter.stdout.readline())
        if sign == signal.SIGINT:
            os.killpg(starter.pid, sign)
        else:
            os.kill(starter.pid, sign)
        assert starter.wait(120) == status
    finally:
        if starter.poll() is None:
            os.killpg(starter.pid, signal.SIGKILL)
    until = time.monotonic() + 120.0
    while psutil.pid_exists(pid):
        assert time.monotonic() < until
        time.sleep(0.02)
