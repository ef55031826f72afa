"""Hostile inputs: each is refused in our words, or does just what it says.

CI tries some 10^4, the same each time: drawn by hypothesis, which writes down each draw
to make it smaller, they took half as long again. By hand, from a seed that is printed:

    python tests/test_fuzz.py 1000000
    LLMINFER_FUZZ=100000 pytest tests/test_fuzz.py

Of 4,000 inputs (seed 7) so many were faults before what they found was mended:

    kind                tries  faults   of which, the most frequent
    try_configuration   1,600      10   hangs, lists without end, 10^5000
    try_json              520     116   bytes that are no text, nested too deep
    try_cells             520       3   dates before 1677
    try_file              520       0   (the readers were rewritten before)
    try_settings          120       0
    try_arrays            480      62   masks, dates, truths, texts, 10^400
    try_axes              120      17   seeds, names of columns, axes that are none
    try_numbers            80      47   NaN in quantiles, limits and axes of a kind
    try_figure             40      25   dots, slashes, no names

Of 60,000 after that (seed 11) three kinds were faults and are mended: a line end in a
header, a list for a number of users, an array for a server. Of 100,000 after that (seed
20261127) one hung: of a law in two parts the first was the longer, and its mean wrong.
Of 900,000 after that (seed 20261128) 60 were faults of three kinds, and are mended: an
array of no dimension for a list, an array or NA for n_jobs, a number for parameters. Of
100,000 cells (seed 20261129), the rest of that million, none was.
Known, and left out: controllers that act at each of 10^8 ticks or steps.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import decimal
import io
import json
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import fields
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings
from test_read_log import LOGS, TABLES, WORKLOADS
from test_traces import LIMITS, ROW, STEP_COLUMNS, STEPS

from llminfer import (
    SLO,
    ConfigError,
    SimulationConfig,
    TraceError,
    Workload,
    capacity,
    fewest_replicas,
    simulate,
    sweep,
)
from llminfer.data import ServedLog, read_settings, read_steps
from llminfer.data.readers import read_log
from llminfer.experiment import metrics_of
from llminfer.laws.fields import _SWITCHES, CACHE_ROUTERS, ROUTERS
from llminfer.record import COMPLETED
from llminfer.report import figures
from llminfer.stats.intervals import pooled_quantile
from llminfer.stats.run_length import mser5

FIELDS = [f.name for f in fields(SimulationConfig)]
TOO_LONG = 60  # s; an input that takes so long hangs

NUMBERS = [
    *(0, 1, 2, 3, 7, 16, 100, -1, 2.0, 0.5, 1e-3, 1e6, -0.0, -0.5),
    *(5e-324, 1e-320, 1e-307, 1e-100, 1e-16, 1e-15, 1e-9, 1.0 - 1e-16, 1.0 + 1e-15),
    *(1e9, 1e12, 1e15, 1e16, 1e100, 1e306, 1e308, math.inf, -math.inf, math.nan),
    *(10**9, 2**31, 2**40, 2**53, 2**63, 2**64, 10**30, 10**400, -(10**400), 10**5000),
]
DEEP: object = 1
for _ in range(100_000):
    DEEP = [DEEP]
NESTED = {"a": 1}
for _ in range(900):
    NESTED = {"a": NESTED}
ENDLESS: list[object] = []
ENDLESS.append(ENDLESS)
OTHERS = [
    *(True, False, None, "", "x", "7", "nan", "\ud800", "a\0b", b"7", "y" * 10**5),
    *([], [1], [0], [math.nan], [1, 10**400], (), {}, {"a": 1}, {1: 2}, {"": {}}),
    *({"dist": "x"}, {"dist": ["x"]}, {"dist": "constant"}, range(3), {1, 2}),
    *(DEEP, NESTED, ENDLESS, object(), object, len, 1j, decimal.Decimal("NaN")),
    *(np.float64(math.nan), np.int64(3), np.float32(0.1), np.bool_(True)),
    *(np.array(3.0), np.array([1.0, 2.0]), np.array(["x"]), np.ma.masked, pd.NA),
    *(pd.NaT, datetime.datetime(2023, 11, 16), datetime.timedelta(1), Path("x")),
    *(np.datetime64("2023-11-16"), np.timedelta64(5, "s"), pd.Timestamp(0)),
]

# Parameters that a field of them may have, so that what is wrong is one of them.
LAWS = {
    "lognormal": {"mu": 2, "sigma": 1.0, "min": 1, "max": 60},
    "uniform": {"min": 1, "max": 30},
    "truncated_normal": {"mu": 10, "sigma": 6, "min": 1, "max": 25},
    "powerlaw": {"alpha": 1.5, "min": 1, "max": 60},
    "bimodal": {"short_min": 1, "short_max": 4, "long_min": 20, "long_max": 40}
    | {"short_prob": 0.7},
    "geometric": {"mean": 7, "max": 40},
    "constant": {"value": 5},
    "empirical": {"values": [1, 4, 30], "weights": [5, 3, 1]},
    "paired": {"values": [1, 4, 30], "weights": [5, 3, 1]},
}
PATTERNS = {
    "constant": {},
    "step": {"step_time": 2.0, "step_rate": 40.0},
    "sinusoidal": {"amplitude": 5.0, "period": 3.0, "phase": 1.0},
    "ramp": {"end_rate": 0.7, "duration": 4.0},
}
POLICIES = {
    "FCFS": {},
    "SJF": {},
    "Predicted-SJF": {"prediction_sigma": 0.8, "alpha": 0.1, "random_seed": 1},
    "Priority": {"aging_rate": 2.0, "urgency_weight": 0.3, "base_priority": 4}
    | {"gamma": 0.2, "request_classes": ()},
    "SJF-Aging": {"aging_rate": 1.0, "beta": 0.1},
    "Class-RR": {},
    "WFQ": {"request_classes": ()},
}
CONTROLS = {
    "static": {},
    "queue": {"k": 0.5, "min_size": 1, "max_size": 8, "interval": 0.0},
    "rate": {"headroom": 1.2, "window": 2.0, "max_size": 8, "interval": 1.0},
    "latency": {"target": 0.5, "step": 1.0, "backoff": 0.5, "interval": 0.0}
    | {"window": 3.0},
}
PEOPLE = {
    "constant": {"value": 2},
    "exponential": {"mean": 2.0},
    "lognormal": {"mu": 0.5, "sigma": 1.0},
    "uniform": {"min": 0.1, "max": 3.0},
}
CLASSES = {
    "chat": {"share": 2.0, "weight": 1.0, "base_priority": 3.0},
    "batch": {"share": 1.0, "weight": 4.0},
}
USUAL = {  # values of the fields that have no table above
    "arrival_rate": [2.0, 10, 100.0],
    "arrival_cv": [0.0, 0.5, 1.0, 3.0],
    "arrival_gaps": [None, [1.0, 3.0, 0.5]],
    "max_concurrency": [None, 3],
    "clients": [None, None, 2],
    "queue_limit": [None, 3],
    "batch_size": [1, 4],
    "batch_timeout": [None, 0.0, 0.3],
    "step_law": ["sum", "roofline"],
    "launch": [0.0, 0.02],
    "graph_tokens": [0, 20, 512],
    "server": ["static", "continuous"],
    "max_batched_tokens": [8, 2048],
    "kv_blocks": [None, 60],
    "block_size": [1, 16],
    "replicas": [1, 2],
    "router": [*ROUTERS, *CACHE_ROUTERS],
    "num_requests": [600, 2000],
    "warmup_requests": [0, 5],
    "random_seed": [0, 1, None, 2**70],
    **{name: [0.0, 0.001, 0.05] for name in ("alpha", "beta", "gamma")},
    **{name: [0.0, 1e-5] for name in ("delta", "kappa", "epsilon")},
    **{name: [True, False] for name in (*_SWITCHES, "async_scheduling")},
}
NAMED = {  # fields that name a law, the field of its parameters, and those
    "arrival_pattern": ("arrival_pattern_params", PATTERNS),
    "prompt_length_dist": ("prompt_dist_params", LAWS),
    "output_length_dist": ("output_dist_params", LAWS),
    "batch_control": ("batch_control_params", CONTROLS),
    "scheduling_policy": ("scheduling_policy_params", POLICIES),
}
ONLY_CONTINUOUS = FIELDS[-12:-3]


class Fault(AssertionError):
    """An input that breaks what must hold."""


def must_hold(fact, what):
    if not fact:
        raise Fault(what)


def in_our_words(make):
    """What ``make`` gives, and None; or None, and the line that refuses it."""
    try:
        return make(), None
    except (ConfigError, TraceError) as error:
        said = str(error)
        must_hold(said and "\n" not in said[:-1], f"not a line: {said!r:.300}")
        must_hold(len(said) < 600, f"too long a line: {said:.300}")
        return None, said


@contextlib.contextmanager
def noted(what):
    """Whatever is raised inside says of what."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{what()!r:.1500}")
        raise


def hostile(draw):
    return draw.choice(NUMBERS if draw.random() < 0.6 else OTHERS)


def some_of(draw, params):
    """Parameters, of which one is hostile, is lacking or is too much."""
    params, kind = dict(params), draw.random()
    name = draw.choice([*params, "colour"])
    if kind < 0.15:
        params.pop(name, None)
    elif kind < 0.8:
        params[name] = draw.choice(NUMBERS) if kind < 0.7 else hostile(draw)
        if isinstance(LAWS.get("empirical", {}).get(name), list) and kind < 0.5:
            params[name] = [hostile(draw), 2, 3]
    return params


def people(draw, length=False):
    table = LAWS if length else PEOPLE
    name = draw.choice(sorted(table))
    return {"dist": name, **some_of(draw, table[name])}


def plausible(draw):
    """Fields of a configuration that mostly can be run."""
    its = {name: draw.choice(values) for name, values in USUAL.items()}
    for name, (owner, table) in NAMED.items():
        its[name] = draw.choice([k for k in sorted(table) if k != "paired"])
        its[owner] = table[its[name]]
    if its["server"] == "static":
        its = {k: v for k, v in its.items() if k not in ONLY_CONTINUOUS}
    if draw.random() < 0.3:
        its["request_classes"] = CLASSES
    for name in ("patience", "request_timeout"):
        if draw.random() < 0.1:
            its[name] = {"dist": "exponential", "mean": 2.0}
    if its["clients"]:
        its |= {"think_time": 0.5, "turns": 2}
    if draw.random() < 0.2:
        its["shared_prefixes"] = {"count": 3, "tokens": 20, "zipf": 1.0}
    if its["arrival_gaps"]:
        its["arrival_cv"] = 1.0
    if its["step_law"] == "sum":
        its["launch"] = 0.0
    if its.get("router") == "longest_prefix":
        its["prefix_caching"] = True
    if its.get("replicas", 1) > 1:
        its |= {"batch_control": "static", "batch_control_params": {}}
    return its | {"max_batched_tokens": 2048} if its["server"] != "static" else its


def spoilt(draw, its):
    """Fields with one to three that are hostile, by their names."""
    names = [draw.choice(FIELDS) for _ in range(draw.choice([0, 1, 1, 1, 2, 3]))]
    for name in names:
        owners = {owner: table for owner, table in NAMED.values()}
        if draw.random() < 0.1:
            its[name] = hostile(draw)
        elif name in owners:
            law = next(k for k, (owner, _) in NAMED.items() if owner == name)
            its[law] = draw.choice(sorted(owners[name]))
            its[name] = some_of(draw, owners[name][its[law]])
        elif name in ("think_time", "patience", "request_timeout", "turns"):
            its[name] = people(draw, name == "turns")
        elif name == "shared_prefixes":
            its[name] = some_of(draw, {"count": 3, "tokens": 20, "zipf": 1.0})
        elif name == "request_classes":
            its[name] = {**CLASSES, "odd": some_of(draw, CLASSES["chat"])}
        elif name == "arrival_gaps":
            its[name] = [draw.choice(NUMBERS), draw.choice(NUMBERS), 1.0]
        else:
            its[name] = draw.choice(USUAL.get(name, OTHERS) + NUMBERS[:28])
    return its, names


def run_ends_well(config):
    """A run of it serves everybody, in finite time, in order."""
    most = {"num_requests": 12, "clients": 3, "replicas": 3}
    less = {k: min(its, n) for k, n in most.items() if (its := getattr(config, k))}
    config = config.replace(warmup_requests=0, **less)
    if config.batch_control != "static":  # it acts at every tick, or step
        slowest = min(config.arrivals.mean(12), config.max_stable_rate)
        tokens = max(config.prompts.expectation(), config.outputs.expectation())
        interval = config.batch_control_params.get("interval", 300.0)
        if 12 / slowest > 1e4 * interval > 0 or tokens > 1e6 or config.clients:
            return
    record, _ = in_our_words(lambda: simulate(config))  # memory may be too small
    if record is None:
        return
    n = config.num_requests
    must_hold(len(record.arrival_time) == n, "requests are lost or made up")
    ended = [np.full(n, True), np.full(n, True)]
    if record.outcome is not None:
        ended = [record.outcome == COMPLETED, record.outcome >= COMPLETED]
    before = np.zeros(n)
    for name in ("arrival", "queue_entry", "processing_start", "first_token"):
        times = getattr(record, f"{name}_time")
        known = ended["arrival" != name != "queue_entry"]
        known = ended[0] if name in ("processing_start", "first_token") else ended[1]
        fine = np.isfinite(times) & (times >= before - 1e-9 * np.abs(before))
        must_hold(fine[known].all(), f"{name}: {times} after {before}")
        before = np.where(known, times, before)
    end = record.processing_end_time
    must_hold(np.isfinite(end).all(), f"ends: {end}")
    must_hold((end >= before * (1.0 - 1e-9)).all(), f"ends {end} before {before}")
    must_hold((record.batch_end >= record.batch_start).all(), "a batch ends too early")
    metrics, _ = in_our_words(lambda: metrics_of(config, record))
    for name, value in (metrics or {}).items():
        must_hold(not value < -1e-15 * end.max(), f"{name}={value}")
    must_hold(not config.offered_load < 0.0, f"load {config.offered_load}")


def try_configuration(draw):
    its, names = spoilt(draw, plausible(draw))
    with noted(lambda: {name: its.get(name) for name in names}):
        config, said = in_our_words(lambda: SimulationConfig(**its))
    if config is None:
        first = re.match(r"[a-z_]+", said)
        must_hold(first and first[0] in FIELDS, f"{names}: no field is named: {said}")
        return "refused"
    must_hold(hash(config) == hash(config.replace()), "no hash")
    by_name = isinstance(its.get("scheduling_policy"), str)
    if by_name and config.scheduling_policy not in ("Priority", "WFQ"):
        again = SimulationConfig.from_json(config.to_json())
        must_hold(again == config, f"{config} comes back from JSON as {again}")
    with noted(lambda: config):
        run_ends_well(config)
    return "ran"


SIGNS = b'0123456789-+.,;:e"\n\r\t{}[]nNaA\x00\xff'


def broken(draw, data: bytes) -> bytes:
    """Bytes with some that are changed, lost, doubled or new."""
    data = bytearray(data)
    for _ in range(draw.choice([0, 1, 1, 2, 5])):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind == 1:
            del data[at : at + draw.choice([1, 1, 9])]
        elif kind == 2:
            data[at:at] = bytes(
                [draw.choice(b'0123456789-+.,;:e"\n\r\t{}[]nNaA\x00\xff')]
            )
        elif kind == 3:
            data[at:at] = data[at : at + draw.choice([1, 5, 30])]
        elif kind == 4:
            data = data[:at]
    return bytes(data)


TEXTS = ["NaN", "-Infinity", "1e999", "9" * 500, "1e-320", '"x"', "true", "null"]
TEXTS += ["[" * 3000 + "]" * 3000, '{"a":' * 500 + "1" + "}" * 500, "[]", "{}", "-0"]


def try_json(draw):
    config, _ = in_our_words(lambda: SimulationConfig(**plausible(draw)))
    text = (config or SimulationConfig()).to_json()
    for _ in range(draw.choice([0, 1, 1, 2])):
        values = [*re.finditer(r"(?<=: )(?:[\w.+-]+|\"[\w-]*\"|\{\})", text)]
        at = draw.choice(values)
        text = text[: at.start()] + draw.choice(TEXTS) + text[at.end() :]
    raw = broken(draw, text.encode()) if draw.random() < 0.5 else text.encode()
    if draw.random() < 0.05:
        raw = b'{"a":' * 100_000
    if draw.random() < 0.02:
        raw = b'{"self": 1, "cls": 2, "name": 3}'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        path.write_bytes(raw)
        found, _ = in_our_words(lambda: SimulationConfig.from_json(path))
    if found is None:
        return "refused"
    same = json.loads(raw.decode("utf-8-sig"))
    must_hold(SimulationConfig(**same) == found, "another configuration than it says")
    if draw.random() < 0.2:
        run_ends_well(found)
    return "read"


TIMES = [
    "",
    "nan",
    "inf",
    "-1",
    "-0.5",
    "1e5",
    " 3 ",
    "3,5",
    "0x1",
    "1_0",
    "NaT",
    "now",
]
TIMES += ["now", "today"]
TIMES += ["2023-13-01", "2023-11-16", "20231116", "20231116181546", "1e400"]
TIMES += ["\u0663", "3.", ".5", "+4", "1e-320", "-0", "true", "1700000000", "1.5e-3"]
TIMES += ["2023-11-16 18:15:46.123456789", "2023-11-16T18:15:46Z", "1500-01-01", "1e15"]
TIMES += ["9999-12-31", "0001-01-01", "2262-04-12", "1677-09-21", "1970-01-01", "1e16"]
COUNTS = ["", "0", "-3", "2.5", "3.0", "1e3", "1,000", "1.000", "nan", "9" * 400, " 7"]
COUNTS += ["7 ", "+7", "0x7", "1_0", "true", "\u0663", "1e0", "inf", "1099511627777"]
HEADERS = ["arrival_time", "prompt_length", "output_length"]
AZURE = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


def moment(cell):
    """Seconds that a cell stands for, exactly; None of no number and no date."""
    text = cell.strip()
    with contextlib.suppress(ValueError):
        its = datetime.datetime.fromisoformat(text[:26] if len(text) > 26 else text)
        zone = its if its.tzinfo else its.replace(tzinfo=datetime.UTC)
        if "-" in text:
            epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
            return decimal.Decimal(repr((zone - epoch).total_seconds()))
    return count(cell)


def count(cell):
    """The number that a cell stands for, exactly; None of no number."""
    try:
        if not re.fullmatch(r"\s*[-+]?[0-9.]+(e[-+]?[0-9]+)?\s*", cell, re.IGNORECASE):
            return None
        return decimal.Decimal(cell.strip())
    except decimal.InvalidOperation:
        return None


def expected(rows):
    """The arrivals and lengths that cells stand for, in order; None if any does not."""
    rows = [(moment(t), count(p), count(o)) for t, p, o in rows]
    kept = [row for row in rows if row[2] != 0] or rows  # the others failed
    if any(None in row for row in kept):
        return None
    return sorted(kept, key=lambda row: row[0])


def try_cells(draw):
    """A CSV of requests with cells that are not what they should be."""
    ours, apart = draw.random() < 0.5, draw.choice(",;\t|")
    dates = not ours and draw.random() < 0.5
    rows = []
    for i in range(draw.randint(1, 5)):
        at = f"2023-11-16 18:15:4{i}.5" if dates else f"{draw.choice([i, 5 * i])}.25"
        rows.append([at, str(draw.randint(1, 900)), str(draw.randint(1, 90))])
    for _ in range(draw.choice([0, 1, 1, 2])):
        column = draw.randrange(3)
        draw.choice(rows)[column] = draw.choice(COUNTS if column else TIMES)
    if draw.random() < 0.1:
        cell = draw.choice(TIMES)
        rows = [[cell, *rest] for _, *rest in rows]
    file = io.StringIO()
    csv.writer(file, delimiter=apart).writerows([HEADERS if ours else AZURE, *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        path.write_text(file.getvalue(), encoding="utf-8", newline="")
        work, said = in_our_words(lambda: Workload.from_csv(path))
    if apart != ",":  # a comma may be a decimal point there
        rows = [
            [re.sub(r"^\s*(-?\d+),(\d+)\s*$", r"\1.\2", c) for c in r] for r in rows
        ]
    wanted = expected(rows)
    if work is None:
        named = re.search(r"trace\.csv(, row \d+|: empty)|\w+\[\d+\]=", said)
        must_hold(named, f"no row is named: {said}")
        return "refused"
    must_hold(wanted is not None, f"{rows} are read as {work.to_frame()}")
    dated = dates_in([row for row in rows if count(row[2]) != 0] or rows)
    first = decimal.Decimal(0) if ours and not dated else wanted[0][0]
    found = work.to_frame()[HEADERS].to_numpy(dtype=object)
    pairs = zip(found, wanted, strict=True)
    for (arrival, prompt, output), (time_, p, o) in pairs:
        must_hold((prompt, output) == (p, o), f"{rows}: {found}")
        near = abs(arrival - float(time_ - first)) <= 1e-6 + 1e-12 * float(
            time_ - first
        )
        must_hold(near or of_another_unit(wanted), f"{rows}: {found}")
    return "read"


def dates_in(rows):
    return any("-" in row[0].strip()[1:] and "e" not in row[0] for row in rows)


def of_another_unit(wanted):
    """Clock times of so many digits that they can be no seconds."""
    return 1e12 <= float(sorted(row[0] for row in wanted)[len(wanted) // 2]) < 4e18


VLLM = [ROW | {"request_id": f"r{i}", "arrival_time": 1.7e9 + i} for i in range(4)]
CONTENTS = [content for content, *_ in [*WORKLOADS.values(), *LOGS.values()]]
CONTENTS += [content for content, _ in TABLES.values()]
CONTENTS += [VLLM, "\n".join([STEP_COLUMNS, *STEPS])]
FILES = [it if isinstance(it, str) else json.dumps(it) for it in CONTENTS]
FILES += ["\n".join(map(json.dumps, it)) for it in CONTENTS if isinstance(it, list)]


def swapped(draw, part):
    """A JSON value with one of those inside replaced by a hostile one."""
    odd = [0, -1, 1e308, 5e-324, math.nan, "", "x", None, True, [], {}, [[]], 2**70]
    if isinstance(part, (dict, list)) and part and draw.random() < 0.95:
        part = part.copy()
        key = draw.choice([*(part if isinstance(part, dict) else range(len(part)))])
        if draw.random() < 0.1:
            del part[key]
        else:
            part[key] = swapped(draw, part[key])
        return part
    return draw.choice(odd)


def try_file(draw):
    """A file of any format with bytes or values that are not what they should be."""
    text = draw.choice(FILES)
    raw = text.encode()
    if draw.random() < 0.5 and text[0] in "[{":
        with contextlib.suppress(json.JSONDecodeError):
            raw = json.dumps(swapped(draw, json.loads(text))).encode()
    else:
        raw = broken(draw, raw)
    if draw.random() < 0.01:
        raw = draw.choice([b"[" * 10**5, b'{"a":' * 10**5, b'{"requests":' * 400, b""])
    name = draw.choice(["requests.jsonl", "trace.csv", "result.json", "a.gz", "b.xz"])
    reader = draw.choice([read_log, read_log, read_log, Workload.from_csv, read_steps])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(raw)
        found, _ = in_our_words(lambda: reader(path))
    if found is None:
        return "refused"
    if isinstance(found, pd.DataFrame):
        must_hold(len(found), "an empty table")
        return "read"
    work = found.workload if isinstance(found, ServedLog) else found
    must_hold(isinstance(work, Workload), f"{type(work)}")
    times = work.arrival_time
    must_hold(np.isfinite(times).all() and (np.diff(times) >= 0.0).all(), f"{times}")
    must_hold(min(work.prompt_length.min(), work.output_length.min()) > 0, f"{work}")
    return "read"


def try_settings(draw):
    value = draw.choice([*NUMBERS[:-1], "x", "", None, True, [], {}, [[1]]])
    said = LIMITS | {draw.choice(["block_size", "--max-num-seqs", "kv"]): value}
    said = swapped(draw, said | {"engine_kwargs": {"max_num_seqs": 4}})
    if not isinstance(said, dict):
        return "no settings"
    settings_, _ = in_our_words(lambda: read_settings(said))
    if settings_ is not None:
        in_our_words(lambda: SimulationConfig(**settings_))
    return "refused" if settings_ is None else "read"


def column(draw, n):
    numbers = sorted(draw.choice([1, 2, 5, 900]) for _ in range(n))
    return odd_column(draw, numbers) if draw.random() < 0.35 else numbers


def odd_column(draw, numbers):
    kind = draw.randrange(6)
    if kind == 0:
        return [hostile(draw) for _ in numbers]
    if kind == 1:
        spot = draw.randrange(len(numbers))
        return [hostile(draw) if i == spot else x for i, x in enumerate(numbers)]
    if kind == 2:
        dtype = draw.choice(
            ["f4", "i8", "u8", "c16", "?", "M8[s]", "m8[us]", "O", "S", "U"]
        )
        return np.array(numbers).astype(dtype)
    if kind == 3:
        return np.ma.array(numbers, mask=[draw.random() < 0.2 for _ in numbers])
    if kind == 4:
        series = pd.Series(numbers, dtype=draw.choice(["Int64", "float", "object"]))
        return series.where(series != draw.choice([5, 7]))
    return hostile(draw)


def try_arrays(draw):
    n = draw.randint(1, 4)
    given_ = [column(draw, n) for _ in range(3)]
    given_ += [None if draw.random() < 0.5 else column(draw, n)]
    paths = draw.choice([None, None, [[(1, 2)]] * n, [[(1.5, 2)]] * n, hostile(draw)])
    work, said = in_our_words(lambda: Workload.from_arrays(*given_, paths))
    if work is None:
        columns = r"(arrival_time|prompt_length|output_length|request_class|segments)"
        must_hold(re.match(columns, said), f"no column is named: {said}")
        return "refused"
    for name, cells in zip(work.columns, given_, strict=True):
        if cells is None:
            continue
        for cell, its in zip(cells, getattr(work, name), strict=True):
            known = isinstance(cell, (int, float, np.number, np.bool_, np.ndarray))
            must_hold(known and cell == its, f"{name}: {cells!r} is read as {its}")
    config = SimulationConfig(batch_size=2, warmup_requests=0)
    record = simulate(config, work)
    must_hold(np.isfinite(record.processing_end_time).all(), f"{record.to_frame()}")
    in_our_words(lambda: SimulationConfig(**work.law()))
    in_our_words(lambda: work.scaled(hostile(draw)))
    return "ran"


FEW = SimulationConfig(arrival_rate=3.0, num_requests=4, warmup_requests=0)
AXES = ["batch_size", "random_seed", "seed", "replication", "avg_latency", "memories"]
AXES += ["prompt_dist_params.sigma", "server", "x", "", "a.b", "quantiles_latency", 5]


def try_axes(draw):
    over = {}
    for _ in range(draw.choice([1, 1, 2])):
        change = {draw.choice(FIELDS): hostile(draw)} if draw.random() < 0.5 else {}
        values = [[hostile(draw), 4], [2, 4], {"a": {"batch_size": 3}, "b": change}]
        over[draw.choice([*AXES, "x", "batch_size"])] = draw.choice(values)
        if draw.random() < 0.1:
            over[draw.choice(AXES)] = hostile(draw)
    over = hostile(draw) if draw.random() < 0.05 else over
    n, first = draw.choice([1, 1, 2]), draw.choice([42, 42, hostile(draw)])
    n = hostile(draw) if draw.random() < 0.1 else n
    if isinstance(n, (int, np.integer)) and 2 < n <= 10**6:
        n = 1  # so many are run
    runs, _ = in_our_words(lambda: sweep(FEW, over, n, 1, first))
    if runs is None:
        return "refused"
    must_hold(
        len(runs) == n * math.prod(map(len, over.values())), f"{over}: {len(runs)}"
    )
    must_hold(list(runs.columns).count("seed") == 1, "two columns of a name")
    for name, values in over.items():
        must_hold(len(set(map(repr, runs[name]))) == len(set(map(repr, values))), name)
    return "ran"


def try_numbers(draw):
    """Quantiles, limits, goodput, capacities."""
    samples = [np.arange(1000.0), np.arange(1000.0) + 1.0]
    if draw.random() < 0.3:
        samples[1][draw.randrange(1000)] = draw.choice(NUMBERS[:-6])
    q = draw.choice([0.5, 0.9, hostile(draw)])
    found, _ = in_our_words(lambda: pooled_quantile(samples, q))
    if found is not None and np.isfinite(samples[1]).all():
        everything = np.quantile(np.concatenate(samples), q)
        must_hold(found.value == everything, f"{found} of {q}")
    must_hold(found is None or not math.isnan(found.value), f"{found}")
    in_our_words(lambda: mser5(draw.choice(samples)[:60]))
    time_ = draw.choice(["ttft", "tpot", "latency", "itl", "goodput", "classes"])
    bound = hostile(draw) if draw.random() < 0.7 else {"p50": hostile(draw)}
    slo, _ = in_our_words(lambda: SLO(**{"ttft": 1.0, time_: bound}))
    server = SimulationConfig(batch_size=4, num_requests=2000, warmup_requests=0)
    name = draw.choice(["replications", "tolerance", "over", "workload", "n_jobs"])
    value = hostile(draw)
    if name == "workload" and value is None:
        value = 5
    if name in ("replications", "tolerance", "n_jobs") and value_is_fine(name, value):
        return "not run"
    more = {"replications": 1, "n_jobs": 1, name: value}
    if name == "over" and (value is None or (isinstance(value, dict) and not value)):
        return "not run"
    found, _ = in_our_words(lambda: capacity(server, slo or SLO(ttft=1.0), **more))
    must_hold(found is None, f"{name}: {type(value)} is accepted")
    prices = ["rate", "gpus_per_replica", "price_per_gpu_hour", "watts_per_gpu"]
    more = {"rate": -1.0, "replications": 1, "n_jobs": 1}
    more |= {draw.choice(prices[1:]): value}
    found, _ = in_our_words(lambda: fewest_replicas(server, SLO(ttft=1.0), **more))
    must_hold(found is None, f"{[*more]} is accepted")
    return "tried"


def value_is_fine(name, value):
    if isinstance(value, (bool, np.bool_, np.timedelta64)):
        return False
    if name == "tolerance":
        return isinstance(value, (int, float, np.number)) and 1e-4 <= value <= 1.0
    return isinstance(value, (int, np.integer)) and 1 <= value <= 2**53


NAMES = ["01_alpha0.5", "../x", "../../x", "/tmp/x", "a/b", "", ".", "..", "a b", "é"]
NAMES += ["01_x", "a-b", "A", "a\0", "x" * 300, "con", "a\n", "-a", "_a", "a.pdf"]


def try_figure(draw):
    name = draw.choice([*NAMES, draw.choice([*NUMBERS[:-1], *OTHERS[:10]])])
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "figures"
        old, os.environ["LLMINFER_FIGURES"] = figures_folder(), str(inside)
        try:
            figure = FIGURE[0] if FIGURE else plt.figure(figsize=(0.2, 0.2))
            FIGURE[:] = [figure]
            _, said = in_our_words(lambda: figures.save(figure, name))
        finally:
            restore(old)
        there = {its.name for its in inside.rglob("*")}
        must_hold({*Path(folder).iterdir()} <= {inside}, f"{name!r} leaves the folder")
    if said is not None:
        must_hold(not there, f"{name!r} is refused and written")
        return "refused"
    ends = {f"{name}{end}" for end in (".pdf", ".png", ".csv")}
    must_hold(there == ends, f"{name!r} is saved as {there}")
    return "saved"


FIGURE: list[object] = []


def figures_folder():
    return os.environ.get("LLMINFER_FIGURES")


def restore(old):
    os.environ.pop("LLMINFER_FIGURES", None)
    if old is not None:
        os.environ["LLMINFER_FIGURES"] = old


KINDS = {  # what tries an input, and the share of all that it tries
    try_configuration: 0.4,
    try_json: 0.13,
    try_cells: 0.1,
    try_file: 0.13,
    try_settings: 0.03,
    try_arrays: 0.15,
    try_axes: 0.03,
    try_numbers: 0.02,
    try_figure: 0.01,
}
INPUTS, SEED = int(os.environ.get("LLMINFER_FUZZ", "10000")), "1"


def guarded(tries, draw):
    """An input's outcome; one that hangs is a fault."""

    def hangs(*_):
        raise Fault("it hangs")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(TOO_LONG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tries(draw)
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("tries", KINDS, ids=lambda tries: tries.__name__)
def test_a_hostile_input_is_refused_in_our_words_or_does_what_it_says(tries):
    ends, seed = Counter(), SEED if settings().derandomize else os.urandom(4).hex()
    draw = random.Random(f"{seed} {tries.__name__}")
    for i in range(max(int(KINDS[tries] * INPUTS), 1)):
        try:
            ends[guarded(tries, draw)] += 1
        except Exception as error:
            error.add_note(
                f"input {i}; again: python tests/test_fuzz.py {INPUTS} {seed}"
            )
            raise
    assert len(ends) > 1  # some are refused, some are not


def by_hand(inputs, seed):
    """Tries so many inputs, and prints a table of what came of them."""
    print(f"seed {seed}\n{'':32}{'tries':>9}{'faults':>8}  ends")
    faults = Counter()
    for tries, share in KINDS.items():
        ends, draw = Counter(), random.Random(f"{seed} {tries.__name__}")
        begun = time.process_time()
        for i in range(max(int(share * inputs), 1)):
            try:
                ends[guarded(tries, draw)] += 1
            except Exception as error:
                places = traceback.extract_tb(error.__traceback__)
                ours = [its for its in places if "llminfer/" in its.filename]
                place = (ours or places)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                kind = f"{tries.__name__} {type(error).__name__} {where}"
                faults[kind] += 1
                ends["FAULT"] += 1
                if faults[kind] == 1:
                    notes = "\n".join(getattr(error, "__notes__", []))
                    print(f"--- input {i}: {kind}: {error!s:.400}\n{notes}")
        took = time.process_time() - begun
        wrong, n = ends.pop("FAULT", 0), max(int(share * inputs), 1)
        print(f"{tries.__name__:32}{n:9,}{wrong:8,}  {dict(ends)}, {took:.0f} s")
    for kind, many in faults.most_common():
        print(f"{many:8,}  {kind}")


if __name__ == "__main__":
    by_hand(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "1")
