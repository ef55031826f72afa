"""What leaves a notebook for the report: tables, and the numbers it quotes."""

import inspect
import os
import re
import sqlite3
import string
import warnings
import zlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from llminfer.base.errors import OverloadWarning, choice, fail
from llminfer.config import SimulationConfig
from llminfer.metrics import MetricsCollector
from llminfer.report.latex import escape, macro_name, plain, shown, shown_with_bounds
from llminfer.report.verdict import COLORS, Verdict
from llminfer.stats.intervals import Estimate, bounds_of, require_columns
from llminfer.stats.paired import paired_differences

_HEADER = "% Written by the notebooks, a macro for each number the report quotes.\n"
_LINE = re.compile(r"\\newcommand\{\\([A-Za-z]+)\}\{(.*)\}% (\S+)")
_TERM = re.compile(r"^    (?!\w+Error)(\w+): (.*(?:\n     +.*)*)", re.MULTILINE)
_SENTENCE, _COLUMN = 30, 48  # characters: longer text is broken; one column's width
_RULE = (
    "Supported: the whole interval is within what is claimed. Refuted: all of it is "
    "outside, by more than the margin. Undecided: neither."
)
_begun: set[tuple[Path, str]] = set()  # sources this process has written from


def begin() -> None:
    """Set up a notebook: tables show whole sentences, and overload is not warned of.

    A notebook says with numbers where a server is overloaded.
    """
    pd.options.display.max_colwidth = None
    warnings.simplefilter("ignore", OverloadWarning)


def figures_dir() -> Path:
    """Where figures go: ``LLMINFER_FIGURES``, or the nearest ``figures`` upwards.

    Raises:
        FileNotFoundError: There is none.
    """
    if named := os.environ.get("LLMINFER_FIGURES"):
        Path(named).mkdir(parents=True, exist_ok=True)
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "figures").is_dir():
            return folder / "figures"
    raise FileNotFoundError(
        f"no folder 'figures' at or above {here.name}/: make one, or name one in "
        "LLMINFER_FIGURES"
    )


def save_table(
    frame: pd.DataFrame,
    name: str,
    caption: str = "",
    formats: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Write ``name.tex``, a booktabs table, and ``name.csv``, its exact numbers.

    Args:
        frame: What to show; an index with a name comes first. Numbers get three
            significant digits. ``mean`` with ``ci_lower`` and ``ci_upper``, and any
            ``x`` with ``x_lower`` and ``x_upper``, become one column.
        name: Begins with the number of its notebook; no figure may share it.
        caption: Makes it a floating table that is labelled ``tab:name``, across
            both columns of the page if it is too wide for one.
        formats: Python's format for a column's numbers, such as ``{"p": ".4f"}``.
        names: What a column is called in print; the ``.csv`` keeps its own.

    Returns:
        The table as it is printed: text, indexed as ``frame`` is.

    Raises:
        ConfigError: A name that makes no file or label, or an unknown column.
    """
    target = figures_dir() / safe_name("name", name)
    named = any(level is not None for level in frame.index.names)
    table = frame.reset_index() if named else frame
    require_columns(table, [*(formats or {}), *(names or {})])
    text = as_text(table, formats or {})
    kinds = [table[column] for column in text]
    text = text.rename(columns=dict(names or {}))
    alignment = "".join(map(_alignment, kinds, (text[column] for column in text)))
    printed = text.map(escape)
    printed.columns = [escape(str(column).replace("_", " ")) for column in text]
    latex = printed.style.hide(axis="index").to_latex(
        hrules=True, column_format=alignment, **_floating(text, name, caption)
    )
    target.with_suffix(".tex").write_text(latex, encoding="utf-8")
    table.to_csv(target.with_suffix(".csv"), index=False, float_format="%.9g")
    text = Printed(text.set_index(list(frame.index.names)) if named else text)
    text.attrs = {"caption": caption}
    return text


def as_text(table: pd.DataFrame, formats: Mapping[str, str]) -> pd.DataFrame:
    """Cells as a reader wants them, an estimate and its bounds in one.

    >>> rows = pd.DataFrame({"rate": [2.0], "rate_lower": [1.5], "rate_upper": [2.5]})
    >>> as_text(rows, {})["rate"].tolist()
    ['2.0 (1.5 to 2.5)']
    """
    columns: dict[Any, list[str]] = {}
    bounds: set[str] = set()
    for column in table.columns:
        lower, upper = bounds_of(str(column))
        spec = formats.get(column, "")
        if {lower, upper} <= set(table.columns):
            bounds |= {lower, upper}
            cells = zip(table[column], table[lower], table[upper], strict=True)
            texts = (shown_with_bounds(Estimate(*cell), spec) for cell in cells)
            columns[column] = [
                f"{value} ({a} to {b})" if a != b else value for value, a, b in texts
            ]
        else:
            columns[column] = [_minus(shown(cell, spec)) for cell in table[column]]
    return pd.DataFrame({c: cells for c, cells in columns.items() if c not in bounds})


def _minus(text: str) -> str:
    """A hyphen before a number as the minus sign it stands for."""
    return re.sub(r"(?<![\w.])-(?=[\d.∞])", "\N{MINUS SIGN}", text)


def _alignment(column: pd.Series, text: pd.Series) -> str:
    """Numbers to the right; words to the left, sentences in lines of their own."""
    if column.dtype.kind in "iuf":
        return "r"
    return r"p{0.35\linewidth}" if text.str.len().max() > _SENTENCE else "l"


def _floating(text: pd.DataFrame, name: str, caption: str) -> dict[str, Any]:
    """How a table floats; one without a caption does not."""
    if not caption:
        return {}
    longest = [max(len(str(c)), int(text[c].str.len().max())) for c in text]
    wide = sum(min(width, _SENTENCE) + 2 for width in longest) > _COLUMN
    return {
        "caption": escape(caption),
        "label": f"tab:{name}",
        "position_float": "centering",
        "environment": "table*" if wide else "table",
    }


def glossary() -> pd.DataFrame:
    """What each setting and each metric means, from their docstrings.

    >>> glossary().loc["alpha", "meaning"]
    'Prefill, seconds a prompt token.'
    >>> glossary().loc["ttft", "meaning"]
    'Time to first token, seconds from sending.'
    """
    texts = {"setting": SimulationConfig, "metric": MetricsCollector}
    rows = [
        (name, kind, " ".join(meaning.replace("``", "").split()))
        for kind, its in texts.items()
        for name, meaning in _TERM.findall(inspect.getdoc(its) or "")
    ]
    table = pd.DataFrame(rows, columns=["term", "kind", "meaning"])
    table = Printed(table.set_index("term"))
    table.attrs = {"words": True}
    return table


def against(
    frame: pd.DataFrame, metric: str, over: str, baseline: Any, setting: str
) -> pd.DataFrame:
    """How far each alternative lies from the baseline, as text, by setting.

    Args:
        frame: A table of sweeps; in each setting every alternative has the same
            replications.
        metric: What to compare.
        over: The column whose values are the alternatives: the rows of the answer.
        baseline: The alternative they are compared with.
        setting: The column whose values are the columns of the answer.

    Returns:
        ``+12%``, with ``*`` if the paired difference is significant after Holm's
        correction among the alternatives of its setting.

    >>> frame = pd.DataFrame(
    ...     {
    ...         "load": 0.9,
    ...         "policy": ["FCFS"] * 3 + ["SJF"] * 3,
    ...         "replication": [0, 1, 2] * 2,
    ...         "wait": [10.0, 11.0, 12.0, 5.0, 5.5, 6.0],
    ...     }
    ... )
    >>> against(frame, "wait", "policy", "FCFS", "load").to_dict()
    {0.9: {'SJF': '-50%*'}}
    """
    columns = {}
    for name, rows in frame.groupby(setting, sort=False):
        found = paired_differences(rows, metric, over, baseline)
        marks = ["*" if sure else "" for sure in found["significant"]]
        texts = found["relative"].map("{:+z.0%}".format) + marks
        columns[name] = texts.set_axis(found["alternative"])
    return pd.DataFrame(columns).rename_axis(over)


class Printed(pd.DataFrame):
    """A table as it is printed, shown whole: its caption, and outcomes in colour.

    Where ``attrs`` has ``caption`` it stands above; with ``words`` all is to the left.
    """

    def _repr_html_(self) -> str:
        words = self.to_csv().encode()  # for an id that no other table of a page has
        style: Any = self.style.set_uuid(f"{zlib.crc32(words):x}").format(escape="html")
        style = style.format_index(escape="html").format_index(escape="html", axis=1)
        if "words" in self.attrs:
            left = [("text-align", "left !important")]
            style = style.set_table_styles([{"selector": "th, td", "props": left}])
        if "outcome" in self:
            bold = "color: {}; font-weight: bold".format
            style = style.map(lambda it: bold(COLORS[it]), subset="outcome")
        if isinstance(self.index, pd.RangeIndex):  # which says nothing
            style = style.hide(axis="index")
        return str(style.set_caption(self.attrs.get("caption", "")).to_html())


def save_verdicts(
    verdicts: Mapping[str, Verdict], source: str, caption: str = ""
) -> pd.DataFrame:
    """A notebook's verdicts as a table, which is saved, and their macros with it.

    The table has a row a verdict: hypothesis, outcome, measured, claimed, and the
    margin that a refuted claim must have missed its bound by.

    Args:
        verdicts: By macro name, as in ``save_numbers``.
        source: The notebook's number: ``01`` writes ``01_verdicts.tex`` and ``.csv``.
        caption: As in ``save_table``.

    Raises:
        ConfigError: A name LaTeX cannot take, or one that is in use.
    """
    save_numbers(verdicts, source)
    columns = ["hypothesis", "outcome", "measured", "claimed", "margin"]
    said = [*columns[:-1], "spared"]
    rows = ([getattr(its, name) for name in said] for its in verdicts.values())
    table = Printed(rows, columns=columns)
    save_table(table, f"{source}_verdicts", caption)
    table.attrs = {"caption": f"{caption} {_RULE}", "words": True}
    return table


class Answer(str):
    """A sentence or two that a notebook shows as text."""

    def _repr_markdown_(self) -> str:
        return str(self)


def save_answer(text: str, source: str) -> Answer:
    r"""What a notebook found, in words whose numbers are filled in.

    Args:
        text: With names of the notebook's macros in braces: ``{bestBatch} is best``.
        source: The notebook's number: ``01`` writes ``01_answer.md``, with the numbers,
            and ``01_answer.tex``, with the macros.

    Returns:
        The text with the numbers.

    Raises:
        ConfigError: It names a number that this notebook has not saved.
    """
    folder = figures_dir()
    saved = _LINE.findall((folder / "numbers.tex").read_text("utf-8"))
    known = {name: plain(latex) for name, latex, by in saved if by == source}
    pieces = list(string.Formatter().parse(text))
    for _, name, *_ in pieces:
        if name is not None:
            choice("text", name, known)
    answer = Answer(text.format_map(known))
    latex = "".join(
        escape(words) + (f"\\{name}{{}}" if name else "") for words, name, *_ in pieces
    )
    folder.joinpath(f"{source}_answer.md").write_text(answer + "\n", "utf-8")
    folder.joinpath(f"{source}_answer.tex").write_text(latex + "\n", "utf-8")
    return answer


def save_numbers(
    values: Mapping[str, float | str | Estimate | Verdict], source: str
) -> Path:
    r"""Write macros for the report into ``figures/numbers.tex``.

    The first call of a process for a source takes away what that notebook wrote in
    earlier runs, later calls add to it; other notebooks' macros stay. Notebooks may
    run at the same time.

    Args:
        values: By macro name: ``{"bestBatch": 16}`` makes ``\bestBatch``; digits in
            a name are spelled out. Text is escaped. An ``Estimate`` makes
            ``\name``, ``\nameLow`` and ``\nameHigh``; a ``Verdict`` also
            ``\nameOutcome`` and ``\nameVerdict``, the sentence.
        source: The notebook's number, such as ``01``.

    Returns:
        The path of ``numbers.tex``.

    Raises:
        ConfigError: A name LaTeX cannot take, or one that is in use.
    """
    fresh = _macros(values)
    safe_name("source", source)
    path = (figures_dir() / "numbers.tex").resolve()
    with closing(sqlite3.connect(path.with_name(".numbers.lock"), timeout=60.0)) as own:
        own.execute("BEGIN EXCLUSIVE")  # nobody else writes; a crash lets go of it
        old = _LINE.findall(path.read_text("utf-8")) if path.exists() else []
        again = (path, source) in _begun
        kept = {n: (text, by) for n, text, by in old if by != source or again}
        for name, text in fresh.items():
            writer = kept.get(name, (text, source))[1]
            if writer != source:
                must = f"another name: notebook {writer} writes \\{name} too"
                raise fail("name", name, must)
            kept[name] = (text, source)
        _replace(path, kept)
        _begun.add((path, source))
    return path


def _macros(values: Mapping[str, Any]) -> dict[str, str]:
    """Macro names and the LaTeX they stand for."""
    found: dict[str, str] = {}
    for given, value in values.items():
        for name, text in _parts(macro_name(given), value).items():
            if name in found:
                raise fail("name", given, f"another name: \\{name} is there already")
            found[name] = escape(text)
    return found


def _parts(name: str, value: Any, spec: str = "") -> dict[str, str]:
    if isinstance(value, Verdict):
        said = {f"{name}Outcome": value.outcome, f"{name}Verdict": str(value)}
        return said | _parts(name, value.estimate, value.spec)
    if isinstance(value, Estimate):
        names = (name, f"{name}Low", f"{name}High")
        return dict(zip(names, shown_with_bounds(value, spec), strict=True))
    return {name: shown(value)}


def _replace(path: Path, macros: Mapping[str, tuple[str, str]]) -> None:
    """Write the file in one step: a reader sees the old one or the new one."""
    rows = sorted((source, name, text) for name, (text, source) in macros.items())
    lines = [f"\\newcommand{{\\{name}}}{{{text}}}% {at}\n" for at, name, text in rows]
    half = path.with_suffix(".tmp")
    half.write_text(_HEADER + "".join(lines), encoding="utf-8")
    os.replace(half, path)


def safe_name(field: str, name: str) -> str:
    """``name``, if a file and a label in LaTeX can have it.

    Raises:
        ConfigError: They cannot.
    """
    fine = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{,99}")
    if not (isinstance(name, str) and fine.fullmatch(name)):
        raise fail(field, name, "letters, digits, hyphens and underscores")
    return name
