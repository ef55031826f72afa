"""Fits, capacities, fleets and what is saved are what was looked at.

Of few requests and few rounds: what it takes to see that nothing has changed.
``python tests/test_kept_answers.py`` keeps what there is now: where a change is meant.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from kept_text import Kept, text_of

from llminfer import (
    SLO,
    ConfigError,
    ExperimentConfig,
    ExperimentRunner,
    RequestGenerator,
    SimulationConfig,
    Workload,
    calibrate,
    capacity,
    constant_rate,
    data,
    fewest_replicas,
    save_results,
    simulate,
    stats,
    sweep,
)
from llminfer.data import read_log, read_steps
from llminfer.data.logs import ServedLog
from llminfer.report import tables
from llminfer.report.verdict import Verdict
from llminfer.stats.intervals import Estimate
from llminfer.study.engine_clock import composed
from llminfer.study.measures import beside_long_runs, misses, observed_memories, tails

KEPT = Kept("answers")
ENGINE = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    server="continuous",
    arrival_rate=6.0,
    batch_size=12,
    kv_blocks=300,
    prompt_length_dist="empirical",
    prompt_dist_params={"values": [50, 200, 800]},
    output_length_dist="empirical",
    output_dist_params={"values": [20, 60]},
    num_requests=60,
    warmup_requests=0,
    random_seed=5,
)
SETTINGS = {"batch_size": 12, "kv_blocks": 300}
FEW = {"replications": 3, "n_jobs": 1}
STATIC = SimulationConfig(
    batch_size=4,
    batch_timeout=0.0,
    prompt_dist_params={"mu": 3, "sigma": 0.8, "max": 256},
    num_requests=180,
    random_seed=9,
    warmup_requests=10,
)


@contextmanager
def quick() -> Iterator[None]:
    """Runs, rounds and draws that are few; a store and figures of its own."""
    few = {
        "llminfer.stats.least_squares._ROUNDS": 2,
        "llminfer.stats.least_squares._CLOUDS": 1,
        "llminfer.capacity._FEWEST": 300,
        "llminfer.capacity._DRAWS": 2,
    }
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for name, value in few.items():
            where, _, what = name.rpartition(".")
            stack.enter_context(mock.patch.object(sys.modules[where], what, value))
        places = {"LLMINFER_CACHE": folder, "LLMINFER_FIGURES": f"{folder}/figures"}
        stack.enter_context(mock.patch.dict(os.environ, places))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        yield


def the_log(n=60, seed=5) -> ServedLog:
    return ServedLog.from_record(
        simulate(ENGINE.replace(num_requests=n, random_seed=seed))
    )


def rough(found: calibrate.Fitted) -> str:
    """A fit to three digits: what sums of rounded numbers may tell."""
    its = found.coefficients.items()
    told = {n: [f"{x:.3g}" for x in (e.value, e.lower, e.upper)] for n, e in its}
    laws = {name: f"{error:.3g}" for name, error in found.laws.items()}
    return text_of([told, found.unidentified, dict(found.settings), laws])


@KEPT.part
def fits() -> Iterator[str]:
    log = the_log()
    found = calibrate.fit(log, {**SETTINGS, "step_law": "sum"})
    yield f"sum = {rough(found)}"
    yield f"errors = {text_of(found.errors().map('{:.3f}'.format))}"
    yield f"held back = {text_of(found.fitted)}"
    names = list(calibrate.MEASURES)
    off = [calibrate.mean_error(log, found.simulated, ~found.fitted, n) for n in names]
    said = [[f"{its.value:.3f}", f"{its.upper:.3f}"] for its in off]
    yield f"mean errors = {text_of(said)}"
    draws = [f"{its.gamma:.3g}, {its.alpha:.3g}" for its in found.draws(3)]
    yield f"draws = {text_of(draws)}"
    inside = found.interval(lambda its: its.gamma + its.alpha, 4)
    yield f"interval = {text_of([f'{x:.3g}' for x in (inside.lower, inside.upper)])}"
    told = found.predict(Workload.generate(ENGINE.replace(num_requests=20)), 3)
    yield f"predicted = {text_of(told.map('{:.3g}'.format))}"
    own = found.config()
    yield f"config = {text_of([own.num_requests, own.warmup_requests])}"
    yield f"rate = {own.arrival_rate:.6g}"
    yield f"words = {text_of(str(found).splitlines()[-1][:20])}"
    yield f"table = {text_of(found.table().columns.tolist())}"


@KEPT.part
def fits_of_tables() -> Iterator[str]:
    table = pd.DataFrame({"rate": [1.0, 8.0], "requests": 40, "prompt_length": 300})
    table = table.assign(output_length=30, mean_ttft=[0.04, np.nan], p99_tpot=0.012)
    found = calibrate.fit_table(table, {"batch_size": 64})
    yield f"rates = {rough(found)}"
    rng = np.random.default_rng(1)
    p = 9 * rng.integers(0, 99, 60) * (rng.random(60) < 0.3)
    b = rng.integers(1, 64, 60)
    steps = pd.DataFrame({"prefill_tokens": p, "pairs": p**2 / 2, "decode_seqs": b})
    steps["decode_kv"] = 500 * b * rng.random(60)
    steps["seconds"] = 1e-4 * p + 0.02 * (p > 0) + 0.01 + 1e-7 * steps["decode_kv"]
    for law, stretch in (("sum", 1), ("roofline", 3)):
        found = calibrate.fit_steps(steps, law, stretch, 32)
        yield f"steps {law} {stretch} = {rough(found)}"
    logs = [the_log(40), the_log(50, 6)]
    law = {**SETTINGS, "step_law": "sum"}
    both = calibrate.fit_jointly(logs, [law, {**law, "kv_blocks": 250}])
    for i, its in enumerate(both):
        yield f"jointly {i} = {rough(its)}"


@KEPT.part
def senders() -> Iterator[str]:
    closed = ENGINE.replace(clients=5, num_requests=80)
    for name, config in {
        "open": ENGINE,
        "closed": closed,
        "thinks": closed.replace(think_time=0.3),
        "even": ENGINE.replace(arrival_cv=0.0),
        "few": closed.replace(clients=1),
    }.items():
        log = ServedLog.from_record(simulate(config))
        n = calibrate.users(log)
        after = calibrate.think_time(log, n) if n else 0.0
        yield f"{name} = {text_of([n, after, calibrate.sent_on_answers(log)])}"


@KEPT.part
def capacities() -> Iterator[str]:
    asked = {
        "ttft": (STATIC, SLO(ttft=1.5)),
        "mean": (STATIC, SLO(latency={"mean": 2.0, "p90": 5.0}, tpot=0.05)),
        "goodput": (STATIC.replace(queue_limit=9), SLO(ttft=2.0, goodput=0.9)),
        "full": (STATIC.replace(batch_timeout=None), SLO(ttft=4.0)),
        "engine": (ENGINE.replace(num_requests=150), SLO(ttft=0.4, itl=0.08)),
    }
    for name, (config, slo) in asked.items():
        found = capacity(config, slo, **FEW)
        yield f"{name} = {text_of([found.rate, found.bracket, found.interval])}"
        yield f"{name} row = {text_of([found.row(), found.slack, found.memories])}"
        yield f"{name} words = {text_of(str(found))}"
        yield f"{name} tried = {text_of(found.evaluated)}"
    near = capacity(STATIC, SLO(ttft=1.5), **FEW, near=1.0, tolerance=0.3)
    yield f"near = {text_of([near.rate, near.bracket, near.interval])}"
    base = capacity(STATIC, SLO(ttft=1.5), **FEW)
    more = capacity(STATIC.replace(batch_size=6), SLO(ttft=1.5), **FEW)
    yield f"more = {text_of(more.against(base))}"
    over = {"batch_size": [1, 4], "gamma": [5e-4, 1.0]}
    table = capacity(STATIC, SLO(ttft=1.5), over=over, **FEW)
    yield f"table = {text_of(table)}"


@KEPT.part
def capacities_of_logs() -> Iterator[str]:
    trace = Workload.generate(STATIC.replace(num_requests=350))
    found = capacity(STATIC, SLO(ttft=1.5), trace, **FEW)
    yield f"trace = {text_of([found.rate, found.bracket, found.interval])}"
    yield f"trace words = {text_of(str(found))}"
    fitted = calibrate.fit(the_log(), {**SETTINGS, "step_law": "sum"})
    answer = capacity(fitted, SLO(ttft=0.6), replications=1, n_jobs=1)
    yield f"fitted = {text_of([f'{x:.3g}' for x in (answer.rate, *answer.bracket)])}"
    yield f"fitted words = {text_of(str(answer).splitlines()[1:])}"
    try:
        capacity(STATIC.replace(gamma=0.5), SLO(ttft=1e-4), **FEW)
    except ConfigError as error:
        yield f"nowhere = {text_of(str(error))}"


@KEPT.part
def fleets() -> Iterator[str]:
    engine = ENGINE.replace(num_requests=150, router="least_loaded")
    for name, rate, options in (
        ("one", 1.0, {}),
        ("three", 20.0, {"price_per_gpu_hour": 2.0, "gpus_per_replica": 2}),
        ("watts", 20.0, {"watts_per_gpu": 700.0}),
    ):
        found = fewest_replicas(engine, SLO(ttft=0.4), rate, **FEW, **options)
        bill = [found.cost_per_hour, found.cost_per_million_tokens]
        bill += [found.kilowatts, found.kwh_per_million_tokens]
        counts = [found.replicas, found.gpus, found.sure]
        yield f"{name} = {text_of([counts, bill, str(found)])}"
        yield f"{name} tried = {text_of(found.evaluated)}"


@KEPT.part
def sweeps() -> Iterator[str]:
    base = STATIC.replace(num_requests=60)
    over = {"batch_size": [1, 4], "server": {"usual": {}, "slow": {"gamma": 0.01}}}
    table = sweep(base, over, replications=3, n_jobs=1)
    yield f"columns = {text_of(table.columns.tolist())}"
    yield f"table = {text_of(table.select_dtypes('number'))}"
    yield f"names = {text_of(table[['server', 'batch_size']].astype(str))}"
    loads = {x: base.replace(arrival_rate=x * base.max_stable_rate) for x in (0.3, 0.9)}
    runs = sweep(base, {"load": loads}, 6, 1, 7, measure=tails)
    yield f"tails = {text_of(runs.select_dtypes('number'))}"
    yield f"memories = {text_of(observed_memories(runs, ['load'], 'ttft'))}"
    rows = stats.summarize(runs, "load", "p99_latency").set_index("load")
    published = {str(x): (loads[x], rows.loc[x]) for x in loads}
    alone = lambda *its, **how: sweep(*its[:3], 1, *its[4:], **how)  # noqa: E731
    with mock.patch("llminfer.study.measures.sweep", alone):
        checked = beside_long_runs(published, "p99_latency", longer=2.0, replications=2)
    yield f"long runs = {text_of([checked, misses(checked)])}"
    experiment = ExperimentConfig("a", "b", base, 3, 5)
    results = ExperimentRunner(experiment, n_jobs=1).run_all()
    plain = [{k: v for k, v in its.items() if "quantiles" not in k} for its in results]
    yield f"course = {text_of(ExperimentRunner.aggregate_results(plain))}"
    work = RequestGenerator(constant_rate(3.0), random_seed=4).generate(30)
    yield f"generated = {text_of(work.columns)}"
    folder = Path(os.environ["LLMINFER_CACHE"])
    for name, its in (("a.csv", table), ("b.json", plain), ("c.json", plain[0])):
        path = save_results(its, folder / name, base)
        yield f"{name} = {text_of(path.read_text('utf-8'))}"


@KEPT.part
def clocks_of_engines() -> Iterator[str]:
    folder = Path(data.__file__).parent / "vllm-h200" / "256x2048-closed-16"
    steps = read_steps(folder)
    found = composed(read_log(folder), steps.head(150))
    yield f"steps = {text_of(found)}"


@KEPT.part
def what_is_saved() -> Iterator[str]:
    frame = pd.DataFrame({"policy": ["FCFS", "a & b"], "p99_wait": [0.12345, 2e6]})
    frame = frame.assign(mean=[1.0, 2.0], ci_lower=[0.9, 2.0], ci_upper=[1.1, 2.0])
    frame = frame.assign(count=[3, 40000], words=["no", "a sentence " * 5])
    folder = tables.figures_dir()
    tables.save_table(frame, "01_a")
    found = tables.save_table(
        frame.set_index("policy"),
        "01_b",
        "Of 5% & more",
        formats={"p99_wait": ".1f"},
        names={"count": "how many"},
    )
    yield f"html = {text_of(found._repr_html_())}"
    yield f"text = {text_of(found.reset_index())}"
    narrow = tables.save_table(frame[["policy", "count"]], "01_c", "narrow")
    yield f"narrow = {text_of(narrow._repr_html_())}"
    verdicts = {
        "isIt": Verdict.that_above("a > b", Estimate(3.0, 2.5, 3.5), 2.0, unit="s"),
        "isNot": Verdict.that_below("a < b", Estimate(3.0, 2.5, 3.5), 2.0),
        "maybe": Verdict.that_between("near", Estimate(3.0, 2.5, 3.5), 3.0, 9.0),
    }
    shown = tables.save_verdicts(verdicts, "02", "Verdicts.")
    yield f"verdicts = {text_of(shown._repr_html_())}"
    tables.save_numbers({"best1": 16, "of_it": 0.5, "word": "a_b"}, "02")
    answer = tables.save_answer("{bestOne} is best, {isIt}.", "02")
    yield f"answer = {answer}"
    for path in sorted(folder.iterdir()):
        if path.suffix in (".tex", ".csv", ".md"):
            yield f"{path.name} = {text_of(path.read_text('utf-8'))}"
    runs = pd.DataFrame(
        {
            "load": [0.9, 0.5] * 9,
            "policy": np.repeat(["a", "b", "c"], 6),
            "replication": np.tile(np.repeat([0, 1, 2], 2), 3),
            "wait": np.arange(18.0) ** 1.5,
        }
    )
    yield f"against = {text_of(tables.against(runs, 'wait', 'policy', 'a', 'load'))}"
    yield f"glossary = {text_of(tables.glossary()._repr_html_())}"


@pytest.mark.parametrize("part", KEPT.parts)
def test_each_answer_is_what_was_looked_at(part):
    with quick():
        assert KEPT.differs(part) == []


if __name__ == "__main__":
    with quick():
        KEPT.write()
