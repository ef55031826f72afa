"""Curves and bars can be told apart without colour, and read at the size shown."""

import itertools
import re

import matplotlib.colors
import numpy as np
import pytest

from llminfer import SimulationConfig
from llminfer.panels import html, story
from llminfer.panels.gallery import ContinuousPicture
from llminfer.panels.picture import BatchSizePicture, LatencyPicture
from llminfer.panels.policy import PolicyPicture
from llminfer.panels.ramp import RampPicture
from llminfer.panels.wave import WavePicture
from llminfer.panels.workload import WorkloadPicture
from llminfer.report import figures, timeline

PICTURES = (
    BatchSizePicture,
    ContinuousPicture,
    LatencyPicture,
    PolicyPicture,
    RampPicture,
    WavePicture,
    WorkloadPicture,
)


@pytest.fixture(scope="module", params=PICTURES, ids=lambda kind: kind.__name__)
def figure(request):
    return request.param().figure


def luminance(color):
    """Of a colour as a screen shows it, 0 (black) to 1 (white): WCAG 2.1."""
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in matplotlib.colors.to_rgb(color)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_no_two_curves_of_an_axes_differ_by_colour_alone(figure):
    for ax in figure.axes:
        named = [li for li in ax.get_lines() if not li.get_label().startswith("_")]
        looks = [(str(li._dash_pattern), li.get_marker()) for li in named]
        assert len(set(looks)) == len(looks), [li.get_label() for li in named]


def test_no_dash_is_drawn_as_an_unbroken_line():
    assert len(set(figures.DASHES)) == len(figures.DASHES)
    lengths = [n for its in figures.DASHES if isinstance(its, tuple) for n in its[1]]
    assert min(lengths) >= 1


def test_each_axis_says_what_it_is_of(figure):
    """Or the one below it in its column, or beside it in its row, says it for both."""
    places = {ax: ax.get_subplotspec() for ax in figure.axes}
    for ax, its in places.items():
        column = [a for a, b in places.items() if b.colspan.start == its.colspan.start]
        row = [a for a, b in places.items() if b.rowspan.start == its.rowspan.start]
        assert ax.get_xlabel() or any(a.get_xlabel() for a in column if a is not ax)
        shares = ax.get_shared_y_axes().get_siblings(ax)
        scales = [a for a in row if a in shares or a.get_ylim() == ax.get_ylim()]
        assert any(a.get_ylabel() for a in scales)


def test_no_text_is_smaller_than_nine_points_on_the_screen(figure):
    texts = [
        text
        for ax in figure.axes
        for text in (ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels())
    ]
    texts += [
        text
        for ax in figure.axes
        if ax.get_legend()
        for text in ax.get_legend().get_texts()
    ]
    assert min(text.get_fontsize() for text in texts) >= 9.0


def test_words_are_read_on_a_light_page_and_on_a_dark_one():
    """They have the page's own colour; an alarm brings its ground with it."""
    said = (
        html.gauge(SimulationConfig(arrival_rate=50.0)),
        html.table({"a": {"b": "c"}}, "d"),
    )
    own = [re.findall(r"(?<![-\w])color:[^;\"']+", its) for its in said]
    assert own == [["color:white"], []]
    ground = re.findall(r"background:(#\w+);color:white", said[0])
    assert 1.05 / (luminance(ground[0]) + 0.05) > 4.5  # WCAG 2.1


def grey(color):
    """How light a colour is in a print without colour, 0 to 1: Rec. 601."""
    return float(np.dot(matplotlib.colors.to_rgb(color), (0.299, 0.587, 0.114)))


SHADES = dict(enumerate(figures.SHADES))


@pytest.mark.parametrize("looks", [story.PHASE_COLORS, timeline.LOOKS, SHADES])
def test_bars_differ_in_print_without_colour(looks):
    for (one, a), (other, b) in itertools.combinations(looks.items(), 2):
        assert abs(grey(a) - grey(b)) > 0.1, (one, other)
