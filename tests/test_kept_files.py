"""What is read of files, and what is said of those that cannot be, is what it was.

Of the files of ``test_read_log.py``, of a log with each cell spoilt, and of our own.
``python tests/test_kept_files.py`` keeps what there is now: where a change is meant.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import test_read_log as cases
from kept_text import Kept, text_of

import llminfer.data
from llminfer import ConfigError, TraceError, Workload, read_settings
from llminfer.data import ServedLog, read_log, read_steps, read_vllm_log

KEPT = Kept("files")
OURS = Path(llminfer.data.__file__).parent / "vllm-h200"
LOG = """sent,isl,osl,ttft,tpot,e2e,error
0.5,9,5,0.25,0.1,0.65,
0.75,800,1,0.5,,0.5,
2,70,40,0.125,0.05,2.075,
3.5,12,3,1,0.2,1.4,
4,1,2,0.5,0.25,0.75,
"""
CELLS = ["", "nan", "-1", "0", "x", "2.5", "1,5", "1e16", "2026-01-01"]


def of_log(its: object) -> str:
    """A log, a workload or a table as a line."""
    if isinstance(its, ServedLog):
        told = {f.name: getattr(its, f.name) for f in fields(its)}
        told["workload"] = of_log(its.workload)
        shares = [its.first_completed(share) for share in (0.3, 0.4, 1.0)]
        return text_of([repr(its), told, its.ttft, its.tpot, its.latency, shares])
    if isinstance(its, Workload):
        return text_of([repr(its), its.columns])
    return text_of(its)


def came_of(content: object, **how: object) -> str:
    """What is read, with what is said of it, or why it is not."""
    with tempfile.TemporaryDirectory() as folder:
        text = cases.written(Path(folder), content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                its = of_log(read_log(text, **how))
            except (ConfigError, TraceError) as error:
                its = f"{type(error).__name__} {error}"
        words = [f"{one.category.__name__}: {one.message}" for one in said]
        return text_of([its, words]).replace(folder, "folder")


@KEPT.part
def of_other_tools() -> Iterator[str]:
    known = {"workload": cases.WORKLOADS, "log": cases.LOGS, "error": cases.ERRORS}
    for kind, some in known.items():
        for name, (content, how, *_) in some.items():
            yield f"{kind} {name} = {came_of(content, **how)}"
    for kind, some in (("table", cases.TABLES), ("guess", cases.GUESSES)):
        for name, (content, *_) in some.items():
            yield f"{kind} {name} = {came_of(content)}"
    rows = [cases.WARM_UP, cases.AIPERF, cases.CANCELLED]
    yield f"warm-up = {came_of(rows)}"


@KEPT.part
def of_spoilt_cells() -> Iterator[str]:
    yield f"right = {came_of(LOG)}"
    head, *lines = LOG.splitlines()
    row = 2
    for at, name in enumerate(head.split(",")):
        found = []
        for cell in CELLS:
            cells = lines[row].split(",")
            cells[at] = f'"{cell}"'
            spoilt = [*lines[:row], ",".join(cells), *lines[row + 1 :]]
            found.append(came_of("\n".join([head, *spoilt])))
        yield f"{name} = {text_of(found)}"
    for at, name in enumerate(head.split(",")):
        rows = [line.split(",") for line in LOG.split()]
        cut = [",".join([*row[:at], *row[at + 1 :]]) for row in rows]
        yield f"without {name} = {came_of(chr(10).join(cut))}"
    for unit in ("s", "ms", "us", "ns", "minutes"):
        yield f"in {unit} = {came_of(LOG, unit=unit)}"
    back = [head, *lines[::-1]]
    yield f"backwards = {came_of(chr(10).join(back))}"
    for mark in (";", "\t", "|"):
        yield f"by {mark!r} = {came_of(LOG.replace(',', mark))}"
    names = head.split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines]
    yield f"as JSON = {came_of(rows)}"


@KEPT.part
def of_our_own() -> Iterator[str]:
    for name in ("256x2048-closed-16", "256x512-prefix"):
        folder = OURS / name
        yield f"{name} = {of_log(read_vllm_log(folder))}"
        yield f"{name} steps = {text_of(read_steps(folder))}"
        yield f"{name} settings = {text_of(read_settings(folder))}"
    for given in (
        {"max_num_seqs": 256, "max_num_batched_tokens": 2048},
        {"max_num_seqs": "64", "num_gpu_blocks": 999, "block_size": 32},
        {"batch_size": 9, "kv_blocks": 70, "step_law": "sum"},
        {"enable_prefix_caching": True, "async_scheduling": False},
        {"enforce_eager": True, "max_num_seqs": 8, "tensor_parallel_size": 2},
        {"max_nums_seqs": 8},
        {"data_parallel_size": 3, "max_num_seqs": 8, "enable_chunked_prefill": False},
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                its = text_of(read_settings(given))
            except (ConfigError, TraceError) as error:
                its = str(error)
        yield f"{given} = {text_of([its, [str(one.message) for one in said]])}"


@pytest.mark.parametrize("part", KEPT.parts)
def test_each_file_says_what_it_said(part):
    assert KEPT.differs(part) == []


if __name__ == "__main__":
    KEPT.write()
