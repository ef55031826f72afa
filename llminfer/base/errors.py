"""What is wrong, in one line: the errors, and the checks that raise them."""

import contextlib
import difflib
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

LARGEST = 1e15  # of any number; products of several are finite
# s, by name; whoever gives more has most likely given milliseconds
LONGEST = {"ttft": 60, "tpot": 4, "itl": 4, "batch_timeout": 60, "target": 900}
LONGEST |= dict.fromkeys(("latency", "think_time", "patience", "request_timeout"), 900)
_WHOLE = int, np.integer
_REALS = *_WHOLE, float, np.floating
_NONE = bool, np.timedelta64  # are of these types, and no numbers
_MOST_WHOLE = 2**53  # beyond it a float skips some
MOST_SEED = 2**128  # NumPy uses so much of one


class ConfigError(ValueError):
    """A setting that cannot be run: names the field, the value and what would do."""


class TraceError(ValueError):
    """A workload or trace that cannot be read: names the place and what is wrong."""


class OverloadWarning(UserWarning):
    """More work arrives than the server can carry: the queue grows for ever."""


def fail(name: str, value: object, must: str) -> ConfigError:
    """The error for one field: ``name=value: must be ...``."""
    return ConfigError(f"{name}={shown(value)}: must be {must}")


def shown(value: object) -> str:
    """A value in at most 80 characters, whatever it is.

    >>> shown([1, 2]), shown(10**5000)
    ('[1, 2]', 'a value of type int')
    """
    try:
        text = repr(value).replace("\n", " ")
    except Exception:  # too many digits, nested too deep, or a fault of its own
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def whole(name: str, value: Any, least: int, most: int = _MOST_WHOLE) -> int:
    """``value`` as an int in [least, most]; True and 2.5 are no whole numbers.

    Raises:
        ConfigError: It is not.
    """
    fine = isinstance(value, _WHOLE) and not isinstance(value, _NONE)
    if fine and least <= value <= most:
        return int(value)
    end = f" and at most {most}" * bool(fine and value > most)
    raise fail(name, value, f"a whole number of at least {least}{end}")


def number(
    name: str,
    value: object,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> float:
    """``value`` as a finite float in [least, most] and greater than ``above``.

    None is larger than ``LARGEST``, nor smaller than one over it where 0 is too small.

    Raises:
        ConfigError: It is not.

    Warns:
        UserWarning: A time so long that it looks like milliseconds.
    """
    result = math.nan
    if isinstance(value, _REALS) and not isinstance(value, _NONE):
        with contextlib.suppress(OverflowError):
            result = float(value)
    odd = abs(result) > LARGEST or above == 0.0 < result < 1.0 / LARGEST
    if least <= result <= most and result > above and not odd:
        if result > LONGEST.get(name.removesuffix("_limit"), math.inf):
            must = f"must be seconds: {result / 1e3:g} if {result:g} ms are meant"
            warnings.warn(f"{name}={result:g}: {must}", stacklevel=3)  # once a field
        return result
    ends = {" above ": above, " of at least ": least, " and at most ": most}
    said = [f"{words}{end:g}" for words, end in ends.items() if math.isfinite(end)]
    said += [f", {1.0 / LARGEST:g} to {LARGEST:g} in size"] * odd
    raise fail(name, value, "a finite number" + "".join(said))


def numbers(
    name: str, values: Any, least: float, most: float = math.inf
) -> tuple[float, ...]:
    """``values`` as a tuple of finite numbers in [least, most], of a sum above 0.

    Raises:
        ConfigError: They are not.
    """
    if isinstance(values, (str, bytes)) or not np.iterable(values):
        raise fail(name, values, "a list of numbers")
    if not (found := tuple(values)):
        raise fail(name, found, "a list of at least one number")
    plain = {*map(type, found)} <= {int, float}  # then a look at their ends will do
    plain = plain and least <= min(found) and max(found) <= min(most, LARGEST)
    for value in () if plain and not math.isnan(sum(found)) else found:
        number(name, value, least=least, most=most)
    if not sum(found) > 0.0:
        raise fail(name, found, "of a sum above 0")
    return found


def kind(name: str, value: object, cls: type[T], must: str) -> T:
    """``value`` if it is a ``cls``.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(value, cls):
        raise fail(name, value, must)
    return value


def truth(name: str, value: object) -> bool:
    """``value`` if it is True or False.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(value, bool):
        raise fail(name, value, "True or False")
    return value


def choice(name: str, value: object, known: Collection[str]) -> str:
    """``value`` if it is one of ``known``.

    Raises:
        ConfigError: It is not; the message has the nearest known name.
    """
    if isinstance(value, str) and value in known:
        return value
    must = "one of " + ", ".join(sorted(known)) + nearest(value, known)
    raise fail(name, value, must)


def build(cls: type[T], owner: str, params: Mapping[str, Any], field: str) -> T:
    """``cls(**params)`` of a dataclass, with messages that name ``field``.

    Args:
        cls: A dataclass whose fields are the parameters.
        owner: What the reader calls it.
        params: Its parameters by name.
        field: The configuration's field that holds them.

    Raises:
        ConfigError: An unknown or missing parameter, or a value ``cls`` refuses.
    """
    needed = {f.name: f.default is MISSING for f in fields(cls) if f.init}  # type: ignore[arg-type]
    for name, value in params.items():
        if name not in needed:
            takes = ", ".join(needed) or "no parameters"
            hint = nearest(name, needed)
            what = f"{field}.{name}={shown(value)}"
            raise ConfigError(f"{what}: {owner} takes {takes}{hint}")
    for name, required in needed.items():
        if required and name not in params:
            raise ConfigError(f"{field}.{name}=None: must be given for {owner}")
    try:
        return cls(**params)
    except ConfigError as error:
        raise ConfigError(f"{field}.{error}") from None


@contextlib.contextmanager
def inside(field: str) -> Iterator[None]:
    """What is wrong with a part of ``field`` names that too; nothing is no field.

    Raises:
        ConfigError: What is done inside did, longer by the field.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{field}.{error}" if field else str(error)) from None


def nearest(value: object, known: Collection[str]) -> str:
    """`` (did you mean X?)`` for the known name most like ``value``, or nothing."""
    if not isinstance(value, str):
        return ""
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(value.lower()[:80], list(folded), n=1, cutoff=0.5)
    return f" (did you mean {folded[close[0]]}?)" if close else ""
