"""The story of a dozen requests, against the records it is told from."""

import itertools

import numpy as np
import pytest
from panel_table import table_in
from PIL import Image

from llminfer import SimulationConfig
from llminfer.experiment import simulate
from llminfer.panels.story import (
    PHASE_COLORS,
    StoryPanel,
    StoryPicture,
    _in_words,
    phase_spans,
)

FEW = SimulationConfig.from_preset(
    "llama-3.1-8b-rtx4090",
    server="static",
    arrival_rate=3.0,
    prompt_dist_params={"mu": 5, "sigma": 1, "max": 8192},
    output_length_dist="lognormal",
    output_dist_params={"mu": 3.9, "sigma": 0.8, "max": 400},
    batch_size=4,
    batch_timeout=0.0,
    num_requests=12,
    warmup_requests=0,
    random_seed=42,
)


@pytest.mark.parametrize("server", ["static", "continuous"])
def test_phases_follow_each_other_from_arrival_to_end(server):
    record = simulate(FEW.replace(server=server))
    spans = list(phase_spans(record, FEW.step_time).values())
    assert (spans[0][0] == record.arrival_time).all()
    assert (spans[-1][1] == record.processing_end_time).all()
    for (start, end), (following, _) in itertools.pairwise(spans):
        assert (end == following).all()
        assert (start <= end).all()


def test_only_the_longest_of_a_static_batch_is_not_held():
    record = simulate(FEW)
    done, end = phase_spans(record, FEW.step_time)["held by its batch"]
    for start in np.unique(record.processing_start_time):
        mine = record.processing_start_time == start
        outputs = record.output_length[mine]
        assert ((end - done)[mine] == 0).tolist() == (outputs == outputs.max()).tolist()


def test_a_request_alone_in_its_batch_is_done_when_its_steps_are():
    pair = FEW.replace(batch_size=2, delta=0.5, kappa=0.25)
    record = simulate(pair)
    done, _ = phase_spans(record, pair.step_time)["held by its batch"]
    for i in range(12):
        batch = record.processing_start_time == record.processing_start_time[i]
        cached, time = record.prompt_length[batch].sum(), record.first_token_time[i]
        for _ in range(record.output_length[i]):
            b = int(batch.sum())
            time += pair.gamma + pair.delta * b + pair.kappa * cached
            cached += b
        assert done[i] == pytest.approx(time, rel=1e-12)


def test_each_moment_moves_picture_and_words_and_the_last_has_all_done():
    panel = StoryPanel(FEW)
    seen = set()
    for moment in range(panel.moment.max + 1):
        panel.moment.value = moment
        seen.add((panel.image.value, panel.text.value))
        assert panel.image.tooltip == panel.picture.alt
    assert len(seen) == panel.moment.max + 1
    assert "A bar a request" in panel._repr_mimebundle_()[1]["image/png"]["alt"]
    last = table_in(panel.text)
    assert set(last["done"].values()) == {"12"}
    panel.moment.value = 0
    first = table_in(panel.text)
    assert all(its.startswith("arrives: 1") for its in first["just now"].values())
    assert set(first["done"].values()) == {"0"}
    assert list(first) == list(last)  # so what is below stays in its place


def test_the_animation_shows_every_moment(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMINFER_FIGURES", str(tmp_path))
    monkeypatch.setattr(StoryPicture, "requests", 3)
    picture = StoryPicture(FEW)
    with Image.open(picture.save_animation("story")) as shown:
        assert shown.n_frames == len(picture.moments)
    assert picture.now == len(picture.moments) - 1


def test_the_table_has_a_row_a_request_phase_and_server():
    frame = StoryPicture(FEW).to_frame()
    assert len(frame) == 12 * len(PHASE_COLORS) * 2
    assert not frame.duplicated(["server", "request", "phase"]).any()


@pytest.mark.parametrize("server", ["static", "continuous"])
def test_at_each_moment_everybody_who_came_is_somewhere_or_done(server):
    record = simulate(FEW.replace(server=server))
    spans = phase_spans(record, FEW.step_time)
    moments = {time for pair in spans.values() for times in pair for time in times}
    for now in sorted(moments):
        done = int(np.sum(record.processing_end_time <= now))
        words = _in_words(spans, now)
        assert words["done"] == str(done)
        inside = sum(int(words[phase]) for phase in spans)
        came = int(np.sum(record.arrival_time <= now))
        assert inside + done == came, words
