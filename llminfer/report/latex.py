"""Numbers as a reader wants them, and any text as LaTeX."""

import math
import re
import tomllib
from numbers import Integral, Real
from pathlib import Path
from typing import Any
from unicodedata import name

from llminfer.base.errors import ConfigError, fail
from llminfer.stats.intervals import Estimate

_MINUS = "\N{MINUS SIGN}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SIGNS = Path(__file__).with_name("latex.toml").read_text("utf-8")
_IN_LATEX: dict[str, str | int | None] = tomllib.loads(_SIGNS)
# And back: the first sign of those that are printed alike, and spaces stay.
_IN_TEXT = {str(its): c for c, its in reversed(_IN_LATEX.items()) if its != " "}


def shown(value: Any, spec: str = "") -> str:
    """A value as text: three significant digits, no exponent where it can be helped.

    Args:
        value: A number; text stays as it is.
        spec: Python's format for a number instead, such as ``.1%``.

    >>> shown(0.59612), shown(10500), shown(0.2834, ".1%"), shown(1.5e9)
    ('0.596', '10,500', '28.3%', '1.50×10⁹')
    """
    if hasattr(value, "item"):
        value = value.item()  # numpy's scalars as Python's
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if not isinstance(value, Real):
        return str(value)
    if math.isinf(value):
        text = "∞" if float(value) > 0.0 else "-∞"
    elif spec or isinstance(value, Integral):
        text = format(value, spec or ",")
    else:
        text = _three_digits(float(value))
    return text.replace("-", _MINUS)


def _three_digits(value: float) -> str:
    mantissa, _, power = f"{value:.2e}".partition("e")
    exponent = int(power)
    if value == 0.0:
        return "0"
    if -4 <= exponent <= 6:
        return f"{value:,.{max(2 - exponent, 0)}f}"
    return f"{mantissa}×10{str(exponent).translate(_RAISED)}"


def shown_with_bounds(found: Estimate, spec: str = "") -> tuple[str, str, str]:
    """An estimate and its bounds as text, as precise as the interval knows them.

    They get one digit of the half-width, two if those are below 36, as the Particle
    Data Group rounds. Where there is no width to go by, see ``shown``.

    >>> shown_with_bounds(Estimate(5.961, 5.901, 6.021))
    ('5.96', '5.90', '6.02')
    """
    half = (found.upper - found.lower) / 2.0
    if not spec and math.isfinite(half) and half > 0.0:
        decimals = -math.floor(math.log10(half / 3.55))
        spec = f"z,.{max(decimals, 0)}f" if decimals <= 6 else ""
    return shown(found.value, spec), shown(found.lower, spec), shown(found.upper, spec)


def escape(text: str) -> str:
    r"""``text`` as LaTeX that prints it.

    >>> print(escape("p99_latency < 50%"))
    p99\_latency \ensuremath{<} 50\%

    Raises:
        ConfigError: A character LaTeX does not know by itself; names it.
    """
    for c in set(text) - _IN_LATEX.keys():
        if not (c.isascii() or (c.isalpha() and ord(c) < 0x180)):
            code = f"U+{ord(c):04X}"
            raise ConfigError(f"text: {c!r} ({code}) in LaTeX: must be put in words")
    return text.translate(str.maketrans(_IN_LATEX))


def plain(latex: str) -> str:
    r"""A number of ``numbers.tex`` as text again.

    >>> plain(r"\ensuremath{-}28.3\%"), plain(escape("1.5×10⁹ s"))
    ('−28.3%', '1.5×10⁹ s')
    """
    by_length = sorted(_IN_TEXT, key=len, reverse=True)
    pattern = "|".join(map(re.escape, by_length))
    return re.sub(pattern, lambda found: _IN_TEXT[found[0]], latex)


def macro_name(given: str) -> str:
    """A name LaTeX takes, of letters only.

    >>> macro_name("p99_at_16")
    'pNineNineAtOneSix'

    Raises:
        ConfigError: It holds anything but letters, digits and underscores, or does
            not begin with a letter.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", given):
        raise fail("name", given, "letters, digits and underscores, a letter first")
    head, *rest = given.split("_")
    camel = head + "".join(part[:1].upper() + part[1:] for part in rest)
    return re.sub(r"\d", lambda digit: name(digit[0]).split()[-1].title(), camel)
