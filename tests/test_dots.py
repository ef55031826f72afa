"""Summaries with their intervals: curves in panels, and marks below each other."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from llminfer.report import figures, tables


def test_marks_stand_in_order_with_their_intervals():
    rows = {"policy": ["SJF", "FCFS"], "mean": [2.0, 5.0]}
    table = pd.DataFrame({**rows, "ci_lower": [1.0, 4.0], "ci_upper": [4.0, 6.0]})
    fig, ax = figures.new()
    figures.dots(ax, table, "policy", ["FCFS", "SJF"], 0, label="mean")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FCFS", "SJF"]
    marks = ax.get_lines()[0]
    assert marks.get_xdata().tolist() == [5.0, 2.0]
    assert (marks.get_linestyle(), marks.get_marker()) == ("None", "o")  # not joined
    assert to_hex(marks.get_color()).upper() == figures.COLORS[0]
    spans = ax.collections[0].get_segments()
    assert [[x for x, _ in span] for span in spans] == [[4.0, 6.0], [1.0, 4.0]]
    top, bottom = (ax.transData.transform((0, y))[1] for y in (0, 1))
    assert top > bottom
    plt.close(fig)


def test_a_new_figure_is_drawn_as_it_is_printed():
    with mpl.rc_context():
        mpl.rcdefaults()
        usual = dict(mpl.rcParams)
        fig, _ = figures.new(width=figures.COLUMN, height=2.0)
        ours = {key: mpl.rcParams[key] for key in figures.STYLE}
    assert ours == dict(figures.STYLE)
    assert ours["font.size"] != usual["font.size"]
    assert fig.get_size_inches().tolist() == [figures.COLUMN, 2.0]
    plt.close(fig)


def test_a_summary_is_drawn_with_its_bands_in_our_colours_and_dashes():
    cases = pd.MultiIndex.from_product(
        [["a", "b"], ["mean", "p99"], ["one", "two"], [1, 2]],
        names=["rule", "what", "panel", "B"],
    )
    table = pd.DataFrame({"mean": range(16)}, index=cases).reset_index()
    table = table.assign(ci_lower=table["mean"] - 1, ci_upper=table["mean"] + 1)
    named = {"color": "rule", "linestyle": "what", "panel": "panel"}
    axes = {"labels": ("B", "seconds"), "log_x": [1, 2], "log_y": (0.5, 50)}
    fig = figures.draw_summary(table, "B", **named, **axes)
    assert [ax.get_ylim() for ax in fig.axes] == [(0.5, 50)] * 2
    assert [ax.get_xticks().tolist() for ax in fig.axes] == [[1, 2]] * 2
    assert fig.get_figwidth() == figures.PAGE
    assert [ax.get_title() for ax in fig.axes] == ["one", "two"]
    assert [len(ax.patches) for ax in fig.axes] == [4, 4]
    lines = [line for line in fig.axes[0].get_lines() if len(line.get_xdata())]
    assert [line.get_ydata().tolist() for line in lines] == [
        [0, 1], [4, 5], [8, 9], [12, 13],
    ]  # fmt: skip
    colors = [to_hex(line.get_color()).upper() for line in lines[1:3]]
    assert colors == list(figures.COLORS[:2])
    (legend,) = fig.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["a", "b", "mean", "p99"]
    keys = [(key.get_linestyle(), key.get_marker()) for key in legend.get_lines()]
    assert keys == [("-", "o"), ("-", "s"), ("-", "None"), ("--", "None")]
    assert [line.get_marker() for line in lines] == ["o", "o", "s", "s"]
    plt.close(fig)


def test_what_differs_in_one_way_differs_in_colour_marker_and_dashes():
    rows = {"rule": ["a", "a", "b", "b"], "B": [1, 2, 1, 2], "mean": range(4)}
    table = pd.DataFrame({**rows, "ci_lower": range(4), "ci_upper": range(4)})
    fig = figures.draw_summary(table, "B", color="rule")
    lines = [line for line in fig.axes[0].get_lines() if len(line.get_xdata())]
    for its in (lines, fig.legends[0].get_lines()):
        assert [key.get_marker() for key in its] == ["o", "s"]
        assert [key._dash_pattern[1] is None for key in its] == [True, False]
        assert to_hex(its[1].get_color()).upper() == figures.COLORS[1]
    plt.close(fig)


def test_a_summary_without_alternatives_is_one_curve():
    rows = {"B": [1, 2], "mean": [1.0, 2.0], "ci_lower": [0, 1], "ci_upper": [2, 3]}
    fig = figures.draw_summary(pd.DataFrame(rows), "B")
    assert len(fig.axes[0].patches) == 1
    assert not fig.legends
    plt.close(fig)


def test_a_point_of_runs_too_short_looks_hollow():
    rows = {"B": [1, 2], "mean": [1.0, 2.0], "ci_lower": [0, 1], "ci_upper": [2, 3]}
    table = pd.DataFrame({**rows, "sound": [True, False]})
    fig = figures.draw_summary(table, "B")
    fig.canvas.draw()
    (hollow,), (line, *_) = fig.axes[0].collections, fig.axes[0].get_lines()
    place = fig.axes[0].transData.transform((2, 2.0)).round().astype(int)
    pixels = np.asarray(fig.canvas.buffer_rgba())
    assert list(pixels[pixels.shape[0] - place[1], place[0]][:3]) == [255] * 3
    assert hollow.get_zorder() > line.get_zorder()
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "runs too short"
    ]
    plt.close(fig)


def test_the_style_has_only_what_its_file_names():
    file = Path(figures.__file__).with_name("print.mplstyle")
    rows = [row for row in file.read_text("utf-8").splitlines() if row.strip()]
    named = {row.partition(":")[0] for row in rows if not row.startswith("#")}
    assert {*figures.STYLE} == named


def test_a_curve_stands_in_its_band_by_the_order_of_x():
    rows = {"B": [4, 1, 2], "mean": [3.0, 1.0, 2.0]}
    table = pd.DataFrame({**rows, "ci_lower": [2, 0, 1], "ci_upper": [6, 4, 5]})
    fig, ax = figures.new()
    figures.curve(ax, table, "B", 1, "mean", linewidth=3.0)
    (line,), (band,) = ax.get_lines(), ax.collections
    assert np.transpose(line.get_data()).tolist() == [[1, 1], [2, 2], [4, 3]]
    assert to_hex(line.get_color()).upper() == figures.COLORS[1]
    assert (line.get_label(), line.get_linewidth()) == ("mean", 3.0)
    assert to_hex(band.get_facecolor()[0]).upper() == figures.COLORS[1]
    corners = {(*its,) for its in band.get_paths()[0].vertices.tolist()}
    assert {(1, 0), (1, 4), (2, 1), (2, 5), (4, 2), (4, 6)} <= corners
    plt.close(fig)


def test_without_a_folder_for_figures_it_is_said_how_to_name_one(tmp_path, monkeypatch):
    monkeypatch.delenv("LLMINFER_FIGURES", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=f"'figures' at or above {tmp_path.name}/"
    ):
        tables.figures_dir()
    (tmp_path / "figures").mkdir()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert tables.figures_dir() == tmp_path / "figures"
    monkeypatch.setenv("LLMINFER_FIGURES", str(tmp_path / "mine"))
    assert tables.figures_dir() == tmp_path / "mine"
    assert (tmp_path / "mine").is_dir()


def test_numbers_behind_a_figure_are_saved_with_nine_digits(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMINFER_FIGURES", str(tmp_path))
    fig = Figure()
    figures.save(fig, "00_digits", pd.DataFrame({"x": [1.0 / 3.0, 1e6 / 7.0]}))
    text = (tmp_path / "00_digits.csv").read_text()
    assert text.split() == ["x", "0.333333333", "142857.143"]
