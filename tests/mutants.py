"""Small faults put into the package on purpose: do the tests notice each?

    python tests/mutants.py --seed 7 --modules capacity,metrics --number 40

A fault changes one place of a module: a comparison, a sign, a constant, an ``and``,
a condition, a keyword that is left out, a statement that is. The tests that run its
line, by name those of the module first, then the quickest, are run on a copy until one
fails. Those that do not fail leave a survivor, which is shown: a missing test, or a
place where it makes no difference. The same seed draws the same faults.

A test that takes ten times as long as it should, and some seconds, hangs, and counts
as one that failed: of a fault that has it wait for ever nobody else would tell.

The first run finds out which tests run which line (minutes; a third of them with
COVERAGE_CORE=sysmon, from Python 3.12 on) and keeps that in ``--map``, with the code
that it saw. Only files of tests that changed are read again; where the package changed,
a line keeps the tests of the line that it was. Remove the file for a map from nothing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import difflib
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import coverage
import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = ("browser", "notebooks", "latex", "execute", "readme", "house", "house_size")
HEAVY = "scipy.stats scipy.optimize scipy.signal pandas matplotlib.pyplot seaborn simpy"
HEAVY += " ipywidgets joblib hypothesis jinja2 nbformat tqdm.auto pooch coverage"
OPERATORS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
PAIRS = "min max,minimum maximum,floor ceil,any all,first last,argmin argmax,head tail"
PAIRS += ",left right,lower upper,expm1 exp,log1p log,cumsum asarray,mean sum"
NAMES = {a: b for its in PAIRS.split(",") for a, b in (its.split(), its.split()[::-1])}
QUIET = ["-q", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
ASKS = [*QUIET, "-x", "--hypothesis-profile=mutants"]
_LONGEST, _NEAR = 40.0, 3  # seconds of a file; files that are asked first
_MEMORY = 8 * 2**30  # bytes that a faulty package may ask for
_HELD = "tests/test_kept_modules.py::test_what_a_module_holds_from_its_import_on"
NO_FAULT = ("strict", "stacklevel")  # keywords that guard, and change no result
Mutant = tuple[Path, range, str]  # a module, the lines that differ, its text
DROPPED = (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break)


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What a node could wrongly be."""

    def changed(**fields: Any) -> ast.AST:
        other = copy.copy(node)
        vars(other).update(fields)
        return other

    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield changed(ops=[*ops[:i], OPERATORS[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            if type(op) in OPERATORS:
                yield changed(op=OPERATORS[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=value):
            yield from (changed(value=other) for other in others(value))
        case ast.Attribute(attr=name) if name in NAMES:
            yield changed(attr=NAMES[name])
        case ast.Name(id=name) if name in NAMES:
            yield changed(id=NAMES[name])
        case ast.IfExp(body=body, orelse=orelse):
            yield changed(body=orelse, orelse=body)
        case ast.Call(keywords=keywords):
            left = [its for its in keywords if its.arg not in NO_FAULT]
            yield from (changed(keywords=_without(keywords, its)) for its in left)
    if isinstance(node, DROPPED) and not isinstance(
        getattr(node, "value", None), ast.Constant
    ):
        yield ast.Pass()


def _without(its: list[ast.keyword], one: ast.keyword) -> list[ast.keyword]:
    return [other for other in its if other is not one]


def others(value: Any) -> list[Any]:
    """What a constant could wrongly be."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, float):
        return [value + 1.0, 2.0 * value] if value else [1.0]
    if isinstance(value, int):
        return [value + 1, value - 1]
    return [NAMES[value]] if value in NAMES else []


def faults(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """All below a node that a run could show, and what it could wrongly be."""
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "bases"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not is_no_fault(child):
                    yield from ((child, new) for new in changes(child))
                    yield from faults(child)
    if isinstance(node, ast.If | ast.While):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)


def is_no_fault(node: ast.AST) -> bool:
    """Words in messages, and keywords that guard."""
    guards = isinstance(node, ast.keyword) and node.arg in NO_FAULT
    return guards or isinstance(node, ast.JoinedStr)


def mutants(path: Path) -> list[Mutant]:
    """Every fault of a module: its lines, and the whole text with it."""
    text, found = path.read_bytes(), []
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for old, new in faults(ast.parse(text)):
        a = starts[old.lineno - 1] + old.col_offset
        b = starts[old.end_lineno - 1] + old.end_col_offset
        other = text[:a] + ast.unparse(new).encode() + text[b:]
        lines = range(old.lineno, old.end_lineno + 1)
        found.append((path, lines, other.decode()))
    return found


def in_a_child(work: Path, seconds: float, run: Callable[[], int]) -> int | None:
    """What ``run`` returns in a process of its own, None if it takes too long."""
    if not (child := os.fork()):
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds),) * 2)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY,) * 2)
        log = os.open(work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(work)
        sys.path[:0] = [str(work), str(work / "tests")]
        os._exit(run())
    until, status = time.monotonic() + 10 * seconds, None
    while status is None and time.monotonic() < until:
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what it started
    if status is None:
        os.waitpid(child, 0)
    return None if status is None or os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class Asked:
    """Of the tests collected those that are asked, in that order, each in its time."""

    def __init__(self, tests: dict[str, float]) -> None:
        self.place, self.seconds = {name: i for i, name in enumerate(tests)}, tests

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        asked = [item for item in items if item.nodeid in self.place]
        items[:] = sorted(asked, key=lambda item: self.place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        limit = 25.0 + 10.0 * self.seconds[item.nodeid]  # what a file shares, too
        signal.setitimer(signal.ITIMER_PROF, limit)  # its signal ends the process
        return (yield)


class Lines:
    """Which lines of the package each passing test runs, and how long it takes.

    A file that takes longer than ``_LONGEST`` seconds is read no further.
    """

    def __init__(self, work: Path) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()
        self.work, self.until = work, time.process_time() + _LONGEST
        self.traced = coverage.Coverage(None, source=[str(work / "llminfer")])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.traced.erase()
        began = time.process_time()
        self.traced.start()
        its = yield
        self.traced.stop()
        data = self.traced.get_data()
        rows = {name: sorted(data.lines(name) or ()) for name in data.measured_files()}
        lines = {os.path.relpath(name, self.work): its for name, its in rows.items()}
        self.found[item.nodeid] = {"s": time.process_time() - began, "lines": lines}
        if time.process_time() > self.until:
            item.session.shouldstop = "enough"
        return its

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        passed = {k: v for k, v in self.found.items() if k not in self.failed}
        (self.work / "lines.json").write_text(json.dumps(passed))


def tests_of_lines(work: Path, kept: Path) -> dict[str, dict[str, Any]]:
    """By test its seconds and its lines; only files that ``kept`` lacks are run."""
    known = json.loads(kept.read_text()) if kept.exists() else {"code": {}, "files": {}}
    files, code = known["files"], code_of(work)
    follow(files, known["code"], code)
    for path in sorted(work.glob("tests/test_*.py")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = str(path.relative_to(work))
        left_out = path.stem.removeprefix("test_") in LEFT_OUT
        if left_out or files.get(name, {}).get("digest") == digest:
            continue
        print("reads", name, flush=True)
        (work / "lines.json").write_text("{}")
        in_a_child(work, 600, partial(pytest.main, [*QUIET, name], [Lines(work)]))
        its = json.loads((work / "lines.json").read_text())
        files[name] = {"digest": digest, "tests": its}
        kept.write_text(json.dumps({"code": code, "files": files}))
    return {k: v for its in files.values() for k, v in its["tests"].items()}


def code_of(work: Path) -> dict[str, list[str]]:
    """The lines of each module of the package."""
    modules = sorted(work.glob("llminfer/**/*.py"))
    return {str(p.relative_to(work)): p.read_text().splitlines() for p in modules}


def follow(files: Any, before: dict[str, list[str]], now: dict[str, list[str]]) -> None:
    """Numbers of lines as they stand in the code now: each test's lines have moved."""
    changed = {name for name in before if before[name] != now.get(name)}
    whither = {name: places(before[name], now.get(name, [])) for name in changed}
    for test in (its for file in files.values() for its in file["tests"].values()):
        for name in changed & test["lines"].keys():
            moved = whither[name]
            rows = {new for row in test["lines"][name] for new in moved.get(row, ())}
            test["lines"][name] = sorted(rows)


def places(before: list[str], now: list[str]) -> dict[int, range]:
    """Where each line went; one that changed became all lines that replaced it."""
    found: dict[int, range] = {}
    told = difflib.SequenceMatcher(None, before, now, autojunk=False)
    for kind, a, b, c, d in told.get_opcodes():
        for i in range(a, b):
            same = range(c + i - a + 1, c + i - a + 2)
            found[i + 1] = same if kind == "equal" else range(c + 1, d + 1)
    return found


def asked_of(
    module: str, lines: range, tests: dict[str, dict[str, Any]], budget: float
) -> list[list[str]]:
    """The tests that run a line, or else the module: those of a few files, the rest.

    What runs as a module is imported no test may run: one reads what that leaves.
    """
    on = {k: its["lines"].get(module, ()) for k, its in tests.items()}
    if not (asked := [k for k, rows in on.items() if any(i in rows for i in lines)]):
        asked = [k for k, rows in on.items() if rows]
    name = module.removeprefix("llminfer/").removesuffix(".py").replace("/", ".")
    holds = f"{_HELD}[{name}]"
    asked += [holds] * (holds in tests and holds not in asked)
    own = f"test_{Path(module).stem}"
    asked.sort(key=lambda k: tests[k]["s"] + 0.05 - 0.05 * (own in k))
    spent = itertools.accumulate(tests[k]["s"] for k in asked)
    asked = asked[: max(1, sum(so_far <= budget for so_far in spent))]
    near = list(dict.fromkeys(k.partition("::")[0] for k in asked))[:_NEAR]
    first = [k for k in asked if k.partition("::")[0] in near]
    return [first, [k for k in asked if k not in first]]


def verdict(work: Path, mutant: Mutant, tests: dict[str, float]) -> str:
    """What comes of a fault: killed, hung or survived."""
    path, _, text = mutant
    before = path.stat(), path.read_text()
    path.write_text(text)
    os.utime(path, (1, random.randrange(2**30)))  # never the compiled file's
    files = list(dict.fromkeys(name.partition("::")[0] for name in tests))
    sys.dont_write_bytecode = True
    ask = partial(pytest.main, [*ASKS, *files], [Asked(tests)])
    seconds = 20.0 + 10.0 * sum(tests.values())
    code = in_a_child(work, seconds, ask) if tests else 0
    sys.dont_write_bytecode = False
    path.write_text(before[1])
    os.utime(path, ns=(before[0].st_atime_ns, before[0].st_mtime_ns))
    return "hung" if code is None else "survived" if code == 0 else "killed"


def main() -> None:
    """Draw faults, ask the tests, show who survived."""
    say = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    say.add_argument("--seed", type=int, default=1)
    say.add_argument("--modules", default="", help="their names, all by default")
    say.add_argument("--number", type=int, default=40)
    say.add_argument("--after", type=int, default=0, help="those judged already")
    say.add_argument("--budget", type=float, default=60.0, help="seconds of tests each")
    say.add_argument(
        "--map", type=Path, default=Path(tempfile.gettempdir(), "llminfer-lines.json")
    )
    its = say.parse_args()
    for name in HEAVY.split():
        importlib.import_module(name)  # once, not for each fault
    first = [Phase.explicit, Phase.generate]  # a failure need not be the simplest
    settings.register_profile("mutants", deadline=None, derandomize=True, phases=first)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        work = copied(Path(folder))
        tests = tests_of_lines(work, its.map)
        compiled = [*QUIET, "--collect-only"]  # once, too
        in_a_child(work, 600, partial(pytest.main, compiled))
        modules = sorted(work.glob("llminfer/**/*.py"))
        names = set(filter(None, its.modules.split(",")))
        chosen = [p for p in modules if not names or {p.stem, p.parent.name} & names]
        every = [mutant for path in chosen for mutant in mutants(path)]
        drawn = random.Random(its.seed).sample(every, min(its.number, len(every)))
        counts: Counter[str] = Counter()
        for number, mutant in enumerate(drawn[its.after :], its.after + 1):
            module = str(mutant[0].relative_to(work))
            groups = asked_of(module, mutant[1], tests, its.budget)
            for asked in groups:
                said = verdict(work, mutant, {k: tests[k]["s"] for k in asked})
                if said != "survived":
                    break
            counts[said] += 1
            print(number, said, f"{module}:{mutant[1].start}", flush=True)
            if said != "killed":
                shown(mutant, sum(map(len, groups)))
        print(f"of {counts.total()} faults (seed {its.seed}):", dict(counts))


def copied(folder: Path) -> Path:
    """A copy of the package and its tests; what else they read is linked."""
    skip = shutil.ignore_patterns("__pycache__")
    for path in ROOT.iterdir():
        if path.name in ("llminfer", "tests"):
            shutil.copytree(path, folder / path.name, ignore=skip)
        elif path.is_file():
            shutil.copy2(path, folder)
        elif not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    os.environ["PYTHONPATH"] = str(folder)
    return folder


def shown(mutant: Mutant, asked: int) -> None:
    """A survivor as the lines that differ."""
    path, _, text = mutant
    print(f"    {asked} tests were asked")
    rows = path.read_text().splitlines(), text.splitlines()
    for row in difflib.unified_diff(*rows, n=0, lineterm=""):
        if not row.startswith(("---", "+++", "@@")):
            print("   ", row, flush=True)


if __name__ == "__main__":
    main()
