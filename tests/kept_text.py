"""What there is as lines of text, and such lines beside those that were kept.

``tests/kept/*.txt`` hold what was looked at and found right. Where a change is meant,
``python tests/test_kept_modules.py``, and so on, writes its file anew: look at what git
says of it. Other versions of what we use may round the last digits differently.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd

FOLDER = Path(__file__).with_name("kept")
_NUMBER = re.compile(r"(?<![\w#.])[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan)(?![\w.])")
_CLOSE = 1e-7  # relative: the last bits are other ones with other versions
_NOISE = 1e-12  # what is left of a difference
_WHOLE = 12  # numbers that are shown one by one
_LONG = 200  # characters of a line
Lines = Callable[[], Iterator[str]]


def text_of(value: Any) -> str:
    """A value as one line: numbers to nine digits, many of them by their sums."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = {its.name: getattr(value, its.name) for its in fields(value)}
        return f"{type(value).__name__}{text_of(shown)}"
    for kind, text in _TEXTS.items():
        if isinstance(value, kind):
            return text(value)
    if hasattr(value, "get_state") and not isinstance(value, type):  # a layout
        state = value.get_state()
        return text_of({k: v for k, v in state.items() if v and not k.startswith("_")})
    return getattr(value, "__name__", type(value).__name__)


def _many(values: Iterable[Any]) -> str:
    return f"({', '.join(map(text_of, values))})"


def _by_key(values: Mapping[Any, Any]) -> str:
    return f"{{{', '.join(f'{k}: {text_of(its)}' for k, its in values.items())}}}"


def _text_of_array(its: np.ndarray) -> str:
    """A few numbers as they are; of many how many, ends, mean, and mean by place."""
    if its.dtype.kind not in "biufc":
        return text_of([str(one) for one in its.ravel()[:_WHOLE]])
    flat = its.ravel()
    if flat.dtype.kind == "c":
        flat = np.concatenate([flat.real, flat.imag])
    if flat.size <= _WHOLE:
        return text_of(flat.tolist())
    flat = flat.astype(np.float64)
    finite = np.isfinite(flat)
    known = np.where(finite, flat, 0.0)
    place = np.linspace(1.0, 2.0, flat.size)
    odd = flat.size - np.count_nonzero(finite)
    told = [known.min(), known.max(), known.mean(), (known * place).mean()]
    told.append((np.abs(known) * place**2).mean())
    return f"{'x'.join(map(str, its.shape))} [{odd}] {text_of(told)}"


_TEXTS: dict[Any, Callable[[Any], str]] = {
    NoneType | bool | str | bytes: repr,
    Enum: str,
    np.bool_: lambda its: str(bool(its)),
    Integral: lambda its: str(int(its)),
    Real: lambda its: f"{float(its) if abs(its) > _NOISE else 0.0:.9g}",
    complex: lambda its: _many((its.real, its.imag)),
    pd.DataFrame: lambda its: _by_key({str(n): its[n].to_numpy() for n in its}),
    pd.Series | np.ndarray: lambda its: _text_of_array(np.asarray(its)),
    functools.partial: lambda its: _many((its.func, its.args, its.keywords)),
    Mapping: _by_key,
    Set: lambda its: f"{{{', '.join(sorted(map(text_of, its)))}}}",
    list | tuple | range: _many,
    re.Pattern: lambda its: repr(its.pattern),
}


class Kept:
    """Parts of what there is, each a function that yields lines ``what = text``.

    Args:
        name: Of the file in ``tests/kept``.
    """

    def __init__(self, name: str) -> None:
        self.path = FOLDER / f"{name}.txt"
        self.parts: dict[str, Lines] = {}

    def part(self, make: Lines) -> Lines:
        """Add a part, by the function's name."""
        self.parts[make.__name__] = make
        return make

    def differs(self, part: str) -> list[str]:
        """What of a part is another than what was kept."""
        start, text = f"{part}: ", self.path.read_text("utf-8")
        before = _by_name(x for x in text.splitlines() if x.startswith(start))
        now = _by_name(f"{start}{line}" for line in self.parts[part]())
        return [
            f"was {before.get(what, 'nothing')}\nis  {now.get(what, 'nothing')}"
            for what in dict.fromkeys([*before, *now])
            if not _same(before.get(what, ""), now.get(what, ""))
        ]

    def write(self) -> None:
        """Keep what there is now."""
        FOLDER.mkdir(exist_ok=True)
        lines = (f"{p}: {its}" for p, make in self.parts.items() for its in make())
        rows = _by_name(lines).values()
        self.path.write_text("".join(f"{row}\n" for row in rows), "utf-8")


def _by_name(lines: Iterable[str]) -> dict[str, str]:
    """Lines by what stands before their ``=``, and of long ones a part."""
    found: dict[str, str] = {}
    for line in lines:
        what, _, text = line.partition(" = ")
        assert what not in found, what
        found[what] = line if len(text) < _LONG else f"{what} = {_short(text)}"
    return found


def _short(text: str) -> str:
    """The beginning of a text, and a sum over all of it."""
    rounded = _NUMBER.sub(lambda it: f"{float(it[0]):.6g}", text)
    return f"{rounded[: _LONG // 2]} ... #{zlib.crc32(rounded.encode()):08x}"


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    if _NUMBER.sub("0", one) != _NUMBER.sub("0", other):
        return False
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    return all(a == b or _near(float(a), float(b)) for a, b in pairs)


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=_NOISE)
