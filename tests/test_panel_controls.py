"""What a panel has to move: under which heading, and what a move of it says."""

from __future__ import annotations

import ipywidgets as w
import numpy as np
import pytest
from panel_table import table_in

from llminfer import PRESETS, SimulationConfig, Workload, goodput, simulate
from llminfer.data.logs import ServedLog
from llminfer.panels import gallery, policy, traffic
from llminfer.panels.controls import CONTROLS, GROUPS, OUTPUTS, OWN, PROMPTS
from llminfer.panels.engine_log import LogPicture
from llminfer.panels.panel import Panel
from llminfer.panels.picture import LatencyPicture
from llminfer.panels.workload import SHAPES

pytestmark = pytest.mark.usefixtures("unpainted")

ENGINE = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    arrival_rate=3.0,
    batch_size=16,
    kv_blocks=2588,
    gamma=0.0181,  # of no preset
    num_requests=300,
    warmup_requests=0,
    random_seed=7,
)
GOODPUT = "goodput (TTFT ≤ {:.3g} s, TPOT ≤ {:.3g} s)"


@pytest.fixture(autouse=True)
def forgets(monkeypatch):
    monkeypatch.setattr(Panel, "memory", {})


@pytest.fixture(scope="module")
def log():
    served = simulate(ENGINE.replace(gamma=0.03), Workload.generate(ENGINE))
    return ServedLog.from_record(served)


@pytest.fixture
def of_log(log):
    return Panel(ENGINE, LogPicture(log), ["alpha", "beta", "gamma", "delta", "kappa"])


@pytest.fixture
def static(monkeypatch):
    monkeypatch.setattr(LatencyPicture, "requests", 400)
    return gallery.start_panel()


@pytest.fixture
def users(monkeypatch):
    monkeypatch.setattr(gallery.UsersPicture, "requests", 350)
    return gallery.users_panel()


@pytest.fixture
def continuous(monkeypatch):
    monkeypatch.setattr(gallery.ContinuousPicture, "requests", 250)
    return gallery.continuous_panel()


def headings(panel):
    """What stands under which heading, by the labels."""
    found: dict[str, list[str]] = {}
    (grid,) = [its for its in panel.children if isinstance(its, w.GridBox)]
    for part in grid.children:
        if isinstance(part, w.HTML):
            title = part.value.split(">")[1].split("<")[0]
            found[title] = []
        else:
            found[title].append(part.description)
    return found


def test_controls_stand_under_headings_in_one_order_in_every_panel(
    static, continuous, users, of_log
):
    every = [headings(panel) for panel in (static, continuous, users, of_log)]
    for panel, found in zip((static, continuous, users, of_log), every, strict=True):
        order = [list(GROUPS).index(title) for title in found]
        assert order == sorted(order)
        assert all(found.values())
        assert sum(map(len, found.values())) == len(panel.controls)
        assert found["Engine"][0] == "coefficients"
    assert every[1]["Load"] == ["λ (requests/s)"]
    assert every[1]["Memory"] == ["KV blocks"]
    assert every[1]["SLO"] == ["TTFT ≤ (s)", "TPOT ≤ (s)"]
    assert every[2]["Load"] == ["users N", "think time (s)", "patience"]
    assert "replicas" in every[2]["Engine"]
    assert every[3]["Workload"] == ["prompt, × the log's", "output, × the log's"]
    assert every[3]["Memory"] == ["KV blocks"]


def test_a_heading_takes_a_whole_row(continuous):
    (grid,) = [its for its in continuous.children if isinstance(its, w.GridBox)]
    rows = [its.layout.grid_area for its in grid.children if isinstance(its, w.HTML)]
    assert rows == ["auto / 1 / auto / -1"] * 5


def test_an_engine_has_its_presets_name_until_a_hand_moves_a_coefficient(continuous):
    named = continuous.preset
    assert named.value == "llama-3.1-8b-rtx4090"
    continuous.controls["gamma"].value = 0.02
    assert named.value == OWN
    named.value = "report"
    law = PRESETS["report"].coefficients
    assert {name: getattr(continuous.config, name) for name in law} == law
    assert continuous.controls["kappa"].label == "0"
    assert continuous.controls["gamma"].value == law["gamma"]
    named.value = OWN  # there is nothing to choose
    assert named.value == "report"
    continuous.reset.click()
    assert named.value == "llama-3.1-8b-rtx4090"


def test_however_many_controls_move_a_picture_is_drawn_once(static, monkeypatch):
    drawn, update = [], static.picture.update
    monkeypatch.setattr(
        static.picture, "update", lambda its: drawn.append(its) or update(its)
    )
    static.preset.value = "opt-13b-a100"  # which moves those of its coefficients
    assert len(drawn) == 1
    static.controls["arrival_rate"].value = 2.0
    assert len(drawn) == 2
    static.reset.click()
    assert len(drawn) == 3
    static.keep.click()
    assert len(drawn) == 4


def test_coefficients_of_no_preset_come_back_with_a_reset(of_log):
    assert of_log.preset.value == OWN
    of_log.preset.value = "opt-13b-a100"
    assert of_log.config.epsilon == PRESETS["opt-13b-a100"].epsilon
    of_log.reset.click()
    assert of_log.config == ENGINE
    assert of_log.preset.value == OWN
    assert of_log.controls["gamma"].value == ENGINE.gamma


def test_the_slo_is_moved_and_counts_as_goodput_does(static):
    start = table_in(static.readings)
    record = simulate(static.picture.short(static.config))
    for ttft, tpot in ((0.1, 0.1), (10.0, 0.1), (10.0, 1e-4)):
        static.controls["ttft_limit"].value = ttft
        static.controls["tpot_limit"].value = tpot
        said = table_in(static.readings)
        good = goodput(record, ttft, tpot, static.picture.warmup)
        name = GOODPUT.format(ttft, tpot)
        assert said.pop(name)["now"] == f"{good:.3g} requests/s"
        assert {row: its["now"] for row, its in said.items()}.items() <= {
            row: its["now"] for row, its in start.items()
        }.items()  # it changes no other number
        within = (record.ttft <= ttft) & ~(record.tpot > tpot)
        (x,), (share,) = static.picture.lines["now good"].get_data()
        assert (x, share) == (ttft, within[static.picture.warmup :].mean())


@pytest.mark.parametrize("name", [PROMPTS, OUTPUTS])
def test_longer_requests_are_those_of_a_law_with_that_median(continuous, name):
    rest = continuous.config.replace(**{name: 0.0})
    continuous.controls[name].value = 1000.0
    config = continuous.config
    assert config.replace(**{name: 0.0}) == rest
    drawn = Workload.generate(config.replace(num_requests=20_000))
    which = drawn.prompt_length if name == PROMPTS else drawn.output_length
    assert np.median(which) == pytest.approx(1000.0, rel=0.03)
    record = simulate(continuous.picture.short(config))
    p99 = np.quantile(record.latency[continuous.picture.warmup :], 0.99)
    said = table_in(continuous.readings)["p99 latency"]["continuous"]
    assert said == f"{p99:.3g} s"


def test_less_memory_and_more_replicas_are_simulated_on_the_logs_requests(of_log, log):
    seen = []
    for name, value in (("kv_blocks", 640), ("replicas", 3), ("batch_size", 1)):
        of_log.controls[name].value = value
        assert getattr(of_log.config, name) == value
        found = ServedLog.from_record(simulate(of_log.config, log.workload))
        said = table_in(of_log.readings)["mean latency"]
        assert said["simulated"] == f"{found.latency.mean():.3g} s"
        assert said["measured"] == f"{log.latency.mean():.3g} s"
        off = found.latency.mean() / log.latency.mean() - 1.0
        assert said["difference"] == f"{off:+.1%}"
        seen.append(said["simulated"])
    assert len(set(seen)) == 3


def test_the_logs_requests_come_faster_and_longer(of_log, log):
    of_log.controls["pace"].value = 2.0
    of_log.controls["output_factor"].value = 1.5
    work = Workload.from_arrays(
        log.workload.arrival_time / 2.0,
        log.workload.prompt_length,
        np.rint(1.5 * log.workload.output_length),
    )
    found = ServedLog.from_record(simulate(of_log.config, work))
    said = table_in(of_log.readings)["mean latency"]["simulated"]
    assert said == f"{found.latency.mean():.3g} s"
    of_log.controls["prompt_factor"].value = 0.1
    prompts = of_log.picture.asked().prompt_length
    assert prompts.min() >= 1
    assert prompts.sum() == pytest.approx(0.1 * work.prompt_length.sum(), rel=0.03)
    of_log.reset.click()
    asked = of_log.picture.asked()
    for name, column in log.workload.columns.items():
        np.testing.assert_array_equal(asked.columns[name], column)


def test_kept_numbers_stand_beside_the_present_ones(static):
    before = table_in(static.readings)["mean latency"]
    assert before["now"] == before["kept (grey)"]
    static.controls["arrival_rate"].value = 5.0
    after = table_in(static.readings)["mean latency"]
    assert after["now"] != after["kept (grey)"] == before["now"]
    static.keep.click()
    kept = table_in(static.readings)["mean latency"]
    assert kept["now"] == kept["kept (grey)"] == after["now"]


def ends(widget):
    if isinstance(widget, w.FloatLogSlider):
        return [widget.base**widget.min, widget.base**widget.max]
    if isinstance(widget, w.FloatSlider):
        return [widget.min, widget.max]
    stops = [stop for _, stop in widget._options_full]
    return stops if isinstance(widget, w.Dropdown) else [stops[0], stops[-1]]


@pytest.mark.parametrize("which", ["static", "continuous", "users", "of_log"])
def test_every_control_goes_to_both_ends(which, request):
    """Each end has numbers, and what is drawn, or a word on why not."""
    panel = request.getfixturevalue(which)
    start = panel.readings.value, panel.code.value
    for name, widget in panel.controls.items():
        moved = False
        for value in ends(widget):
            widget.value = value
            assert "Error" not in panel.load.value, (name, value)
            assert "nan" not in panel.readings.value
            moved |= panel.readings.value != start[0]
        assert moved or name in ("batch_size", "kv_blocks"), name
        panel.reset.click()
        assert (panel.readings.value, panel.code.value) == start


def test_what_cannot_be_run_is_said_and_what_is_shown_is_of_before(static):
    seen = static.readings.value, static.image.value
    static.config = static.config.replace(server="continuous", kv_blocks=10)
    static.controls["arrival_rate"].value = 5.0
    assert "ConfigError: kv_blocks=10" in static.load.value
    assert "is from before" in static.load.value
    assert (static.readings.value, static.image.value) == seen


def test_each_named_control_is_under_one_heading():
    for control in CONTROLS.values():
        name = control.name.rpartition(".")[2]
        assert sum(name in its.split() for its in GROUPS.values()) <= 1
        assert control.group in GROUPS


STOPS = {
    "batch_size": "1 2 4 8 16 32 64 128 256 512",
    "batch_timeout": "at once, 0.1 s, 0.3 s, 1 s, 3 s, 10 s, until full",
    "max_batched_tokens": "256 512 1024 2048 4096 8192 16384",
    "replicas": "1 2 3 4 5 6 7 8",
    "queue_limit": "1 2 4 16 none",
    "kv_blocks": "640, 800, 1024, 1280, 1536, 2048, 4096, 8192, 16384, 32768, no limit",
    "clients": "1 2 4 8 16 32 64 128 256 512 1024",
    "patience": "0.1 s, 0.3 s, 1 s, 10 s, no end",
    "scheduling_policy": "FCFS SJF Predicted-SJF Priority SJF-Aging Class-RR WFQ",
    "policy: prediction_sigma": "0.0 0.1 0.25 0.5 1.0 2.0",
    "traffic: batch_size": "1 2 4 8 16 32 64 128 256",
}
SLIDERS = {  # from, to, a key press: powers of 10
    "arrival_rate": (-1, 2, 0.02),
    PROMPTS: (1, 3.5, 0.05),
    OUTPUTS: (1, 3.5, 0.05),
    "think_time.mean": (-1, 3, 0.05),
    "alpha": (-5, -2, 0.05),
    "beta": (-4, 0, 0.05),
    "gamma": (-5, -1, 0.05),
    "ttft_limit": (-2, 3, 0.1),
    "tpot_limit": (-4, 1, 0.1),
    "pace": (-1, 1, 0.05),
    "prompt_factor": (-1, 1, 0.05),
    "output_factor": (-1, 1, 0.05),
    "arrival_pattern_params.end_rate": (-1, 2, 0.02),
    "arrival_pattern_params.duration": (2, 3.5, 0.05),
    "policy: aging_rate": (-3, 1, 0.1),
    "traffic: pace": (-2, 0.5, 0.05),
}


def controls_of_panels(monkeypatch):
    """By name what is moved: in any panel, and in the two that have their own."""
    monkeypatch.setattr(
        traffic.Panel, "__init__", lambda self, *its: setattr(self, "its", its)
    )
    monkeypatch.setattr(traffic, "TrafficPicture", lambda traces: traces)
    panels = {"traffic": traffic.TrafficPanel(ENGINE, {"log": None})}
    panels["policy"] = policy.PolicyPanel(ENGINE)
    found = dict(CONTROLS)
    for of, panel in panels.items():
        own = (its for its in panel.its[2] if not isinstance(its, str))
        found |= {f"{of}: {its.name.rpartition('.')[2]}": its for its in own}
    return found


def test_a_control_stops_where_it_is_said_to(monkeypatch):
    controls = controls_of_panels(monkeypatch)
    for name, said in STOPS.items():
        given = controls[name].options["options"]
        labels = [str(its[0] if isinstance(its, tuple) else its) for its in given]
        assert labels == said.split(", " if "," in said else " "), name
        for stop in given:
            if (
                isinstance(stop, tuple)
                and stop[0].split()[0].replace(".", "").isdigit()
            ):
                assert float(stop[0].split()[0]) == stop[1]
    for name, (low, high, step) in SLIDERS.items():
        its = controls[name].options
        assert (its["min"], its["max"], its["step"]) == (low, high, step), name
    for name, low, high in (("delta", 1e-7, 8.91e-3), ("kappa", 1e-9, 8.91e-5)):
        (_, zero), (_, least), *_, (_, most) = controls[name].options["options"]
        assert (zero, least, most) == (0.0, low, high)
    chunks = [("in chunks", True), ("whole", False)]
    assert controls["chunked_prefill"].options == {"options": chunks}
    assert controls["preset"].options == {"options": [*PRESETS, OWN]}
    told = {*STOPS, *SLIDERS, "delta", "kappa", "preset", "chunked_prefill"}
    assert controls.keys() - told == {"traffic: trace", "traffic: server"}


def test_a_shape_begins_at_one_of_its_stops():
    ends = {"uniform": (50, 1000, 50), "lognormal": (0.1, 2.5, 0.1)}
    ends |= {"powerlaw": (1.1, 4.0, 0.1)}
    for law, its in SHAPES.items():
        assert its.start[its.parameter] in its.values
        assert (its.values[0], its.values[-1]) == ends[law][:2]
        np.testing.assert_allclose(np.diff(its.values), ends[law][2])
    assert SHAPES["uniform"].start == {"min": 10, "max": 500}
    assert SHAPES["lognormal"].start == {"mu": 4, "sigma": 1.5, "max": 8192}
    assert SHAPES["powerlaw"].start == {"alpha": 2, "min": 10, "max": 8192}


def test_panels_begin_with_the_reports_server_and_with_an_rtx_4090(monkeypatch):
    monkeypatch.setattr(gallery, "Panel", lambda server, *_: server)
    report = SimulationConfig(
        arrival_rate=4.0,
        prompt_dist_params={"mu": 4, "sigma": 1.5, "max": 8192},
        batch_size=32,
        batch_timeout=0.0,
        num_requests=10_500,
        random_seed=42,
    )
    assert gallery.start_panel() == report
    rtx = report.replace(
        **PRESETS["llama-3.1-8b-rtx4090"].coefficients,
        server="continuous",
        output_length_dist="lognormal",
        output_dist_params={"mu": 5, "sigma": 0.8, "max": 2048},
    )
    assert gallery.continuous_panel() == rtx.replace(
        arrival_rate=2.2, batch_size=128, kv_blocks=1024, num_requests=3_500
    )
    assert gallery.users_panel() == rtx.replace(
        clients=32,
        think_time={"dist": "exponential", "mean": 5.0},
        prompt_dist_params={"mu": 5.5, "sigma": 1.0, "max": 8192},
        batch_size=16,
        num_requests=8_000,
    )
