"""The panel of users: what it says, beside the runs that it shows."""

import pytest
from panel_table import table_in

from llminfer.panels.gallery import users_panel
from llminfer.panels.panel import Panel

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture
def panel() -> Panel:
    Panel.memory.clear()
    return users_panel()


def number(text: str) -> float:
    return float(text.split(maxsplit=1)[0].replace(",", "").rstrip("%"))


def test_few_users_wait_less_than_a_stream_of_their_rate(panel):
    said = table_in(panel.readings)["mean TTFT"]
    assert number(said["users"]) < 0.5 * number(said["stream"])
    inside = panel.picture.lines["users inside"].get_ydata()
    assert 0 < max(inside) <= 32  # all of them, at most


def test_the_load_is_that_of_a_stream_at_the_rate_the_users_sent(panel):
    stream = panel.picture.stream
    assert (
        f"{stream.arrival_rate:.3g} requests/s"
        == table_in(panel.readings)["rate X"]["users"]
    )
    assert f"the stream: load ρ = λ/λ* = {stream.offered_load:.2f}" in panel.load.value


@pytest.mark.parametrize("think", [0.1, 10.0])
def test_the_interactive_law_is_read_off(panel, think):
    panel.controls["think_time.mean"].value = think
    assert panel.config.think_time["mean"] == pytest.approx(think)
    law = number(table_in(panel.readings)["Little's law, X (Z + R)"]["users"])
    assert law == pytest.approx(32.0, rel=0.05)


def test_a_full_queue_turns_people_away(panel):
    panel.controls["think_time.mean"].value = 1.0
    assert table_in(panel.readings)["turned away or gone"]["users"] == "0.0%"
    panel.controls["queue_limit"].value = 1
    assert number(table_in(panel.readings)["turned away or gone"]["users"]) > 5.0
    panel.controls["queue_limit"].value = float("inf")
    panel.controls["patience"].value = 0.3
    assert number(table_in(panel.readings)["turned away or gone"]["users"]) > 5.0


def test_reset_goes_back_to_the_users_of_the_start(panel):
    before = panel.readings.value
    panel.controls["clients"].value = 4
    assert panel.readings.value != before
    panel.reset.click()
    assert panel.config.clients == 32
    assert panel.readings.value == before
