"""Alternatives one below the other, each a mark with its interval."""

import pandas as pd
from matplotlib import pyplot as plt

from llminfer.report import figures


def test_marks_stand_in_order_with_their_intervals():
    rows = {"policy": ["SJF", "FCFS"], "mean": [2.0, 5.0]}
    table = pd.DataFrame({**rows, "ci_lower": [1.0, 4.0], "ci_upper": [4.0, 6.0]})
    fig, ax = figures.new()
    figures.dots(ax, table, "policy", ["FCFS", "SJF"], 0, label="mean")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FCFS", "SJF"]
    assert ax.get_lines()[0].get_xdata().tolist() == [5.0, 2.0]
    spans = ax.collections[0].get_segments()
    assert [[x for x, _ in span] for span in spans] == [[4.0, 6.0], [1.0, 4.0]]
    top, bottom = (ax.transData.transform((0, y))[1] for y in (0, 1))
    assert top > bottom
    plt.close(fig)
