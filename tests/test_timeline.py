"""Who is where in a run: the phases of requests against what the record says."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from llminfer import ConfigError, RunRecord, SimulationConfig, simulate
from llminfer.experiment import metrics_of
from llminfer.report import timeline
from llminfer.timeseries import kv_occupancy, running

SHORT_OF_MEMORY = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    server="continuous",
    prompt_length_dist="uniform",
    prompt_dist_params={"min": 20, "max": 400},
    arrival_rate=2.5,
    batch_size=8,
    kv_blocks=64,
    max_batched_tokens=256,
    num_requests=200,
    warmup_requests=0,
    random_seed=42,
)


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return simulate(SHORT_OF_MEMORY)


def spent(table, phase):
    rows = table[table["phase"] == phase]
    return float((rows["end"] - rows["begin"]).sum())


def test_the_phases_of_a_request_follow_each_other_from_arrival_to_end(record):
    table = timeline.phases(record)
    assert set(table["phase"]) == set(timeline.LOOKS)
    for i, rows in table.groupby("request"):
        assert rows["begin"].iloc[0] == record.arrival_time[i]
        assert rows["end"].iloc[-1] == record.processing_end_time[i]
        assert (rows["begin"].to_numpy()[1:] == rows["end"].to_numpy()[:-1]).all()


def test_each_phase_lasts_as_long_as_the_record_says(record):
    table, log = timeline.phases(record), record.steps
    wait = record.processing_start_time - record.arrival_time
    assert spent(table, "waiting") == pytest.approx(wait.sum())
    away = (log.resumed_time - log.preempted_time).sum()
    assert spent(table, "preempted") == pytest.approx(away)
    busy = [name for name in timeline.LOOKS if name not in ("waiting", "preempted")]
    series = running(record)
    in_service = float(series.integral(series.times[-1:])[0])
    assert sum(spent(table, name) for name in busy) == pytest.approx(in_service)


def test_who_was_never_preempted_waits_prefills_and_decodes(record):
    table = timeline.phases(record)
    calm = np.flatnonzero(record.preemptions == 0)
    rows = table[table["request"].isin(calm)]
    assert set(rows["phase"]) == {"waiting", "prefilling", "decoding"}
    begins = rows[rows["phase"] == "decoding"].set_index("request")["begin"]
    assert (begins == record.first_token_time[begins.index]).all()


def test_a_preempted_request_prefills_again_and_then_decodes(record):
    table = timeline.phases(record)
    after = table.groupby("request")["phase"].shift(-1)
    assert set(after[table["phase"] == "preempted"]) == {"prefilling again"}
    assert set(after[table["phase"] == "prefilling again"]) == {"decoding"}


def test_who_is_preempted_before_it_has_caught_up_is_preempted_twice():
    tight = SHORT_OF_MEMORY.replace(kv_blocks=60, max_batched_tokens=64)
    record = simulate(tight.replace(reserve_full_prompt=False))
    again = np.isnan(record.steps.caught_up_time).sum()
    table = timeline.phases(record)
    after = table.groupby("request")["phase"].shift(-1)
    both = (table["phase"] == "prefilling again") & (after == "preempted")
    assert both.sum() == again > 0


def test_a_window_cuts_what_it_does_not_show(record):
    everything, some = timeline.phases(record), timeline.phases(record, 3.0, 7.0)
    assert some["begin"].min() == 3.0
    assert some["end"].max() == 7.0
    seen = everything[(everything["begin"] < 7.0) & (everything["end"] > 3.0)]
    assert len(some) == len(seen)
    with pytest.raises(ConfigError, match=r"end=3.0: must be above start=3"):
        timeline.phases(record, 3.0, 3.0)


def test_a_static_run_has_a_timeline_too():
    static = SHORT_OF_MEMORY.replace(server="static", batch_timeout=0.0)
    table = timeline.phases(simulate(static))
    assert set(table["phase"]) == {"waiting", "prefilling", "decoding"}


def test_bars_are_drawn_where_the_phases_are(record):
    ax = Figure().subplots()
    table = timeline.phases(record, 3.0, 7.0)
    timeline.draw(ax, table)
    bars = {
        (
            round(bar.get_y() + bar.get_height() / 2.0, 9),  # the first request is 1
            round(bar.get_x(), 9),
            round(bar.get_x() + bar.get_width(), 9),
        )
        for bar in ax.patches
    }
    assert bars == {
        (row.request + 1, round(row.begin, 9), round(row.end, 9))
        for row in table.itertuples()
    }
    assert ax.get_legend_handles_labels()[1] == list(timeline.LOOKS)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top


def test_over_time_has_the_means_of_the_run(record):
    table = timeline.over_time(record, points=50)
    steps = np.diff(table["time"], prepend=record.arrival_time[0])
    series = running(record)
    total = float(series.integral(series.times[-1:])[0])
    assert (table["running"] * steps).sum() == pytest.approx(total)
    wait = (record.waits[1] - record.waits[0]).sum()
    assert (table["waiting"] * steps).sum() == pytest.approx(wait)
    assert table["held"].between(0.0, 1.0).all()
    lasted = record.processing_end_time.max() - record.arrival_time[0]
    held = metrics_of(SHORT_OF_MEMORY, record)["avg_kv_occupancy"] * lasted
    assert (table["held"] * steps).sum() == pytest.approx(held)
    times, path = kv_occupancy(record)
    fine = np.linspace(*table["time"].iloc[19:21], 2001)
    mean = np.interp(fine, times, path).mean()
    assert table["held"].iloc[20] == pytest.approx(mean, abs=0.005)
    free = timeline.over_time(simulate(SHORT_OF_MEMORY.replace(kv_blocks=None)))
    assert free["held"].isna().all()
