"""Laws of people: how long they think or wait, and how often they ask back."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from scipy.special import ndtri

from llminfer.base.arrays import FloatArray
from llminfer.base.errors import build, choice, fail, number
from llminfer.base.frozen import plain
from llminfer.laws.lengths import LENGTH_LAWS, LengthLaw

Quantile = Callable[[FloatArray], FloatArray]
_LOGS = ("mu", "sigma")  # parameters that are logarithms

# By name: the parameters, each at least 0 but mu, and the quantile at u in [0, 1).
_LAWS: Mapping[str, tuple[set[str], Callable[..., FloatArray]]] = {
    "constant": ({"value"}, lambda u, value: np.full(u.shape, value)),
    "exponential": ({"mean"}, lambda u, mean: -mean * np.log1p(-u)),
    "lognormal": ({"mu", "sigma"}, lambda u, mu, sigma: np.exp(mu + sigma * ndtri(u))),
    "uniform": ({"min", "max"}, lambda u, min, max: min + (max - min) * u),
}


def seconds_law(field: str, given: Any) -> Quantile:
    """The quantile function of a law of times, seconds.

    Args:
        field: The configuration's field, for messages.
        given: A number, which is constant, or a law's name as ``dist`` beside its
            parameters: constant (value), exponential (mean), lognormal (mu, sigma) or
            uniform (min, max).

    Raises:
        ConfigError: No such law, a parameter that it has not, or a bad value.

    >>> law = seconds_law("think_time", {"dist": "exponential", "mean": 2.0})
    >>> law(np.array([0.0, 0.5])).round(3).tolist()
    [0.0, 1.386]
    """
    if not isinstance(given, Mapping):
        given = {"dist": "constant", "value": given}
    name = choice(f"{field}.dist", given.get("dist"), _LAWS)
    takes, quantile = _LAWS[name]
    params = {k: v for k, v in given.items() if k != "dist"}
    if params.keys() != takes:
        raise fail(field, dict(given), f"{name} with {', '.join(sorted(takes))}")
    for key, value in params.items():
        least, most = -1e3 if key == "mu" else 0.0, 30.0 if key in _LOGS else 1e15
        number(f"{field}.{key}", value, least=least, most=most)
    return partial(quantile, **params)


def turns_law(given: Any) -> LengthLaw:
    """The law of turns in a conversation: a number, or a law of whole numbers.

    Raises:
        ConfigError: No such law, a parameter that it has not, or a bad value.
    """
    own = dict(given) if isinstance(given, Mapping) else {"value": given}
    name = choice("turns.dist", own.pop("dist", "constant"), LENGTH_LAWS)
    return build(LENGTH_LAWS[name], name, own, "turns")


def people_law(field: str, given: Any) -> Any:
    """``given`` as a configuration keeps it, fixed, if it is a law for ``field``.

    Raises:
        ConfigError: It is none.
    """
    if field != "turns" and not isinstance(given, Mapping):
        number(field, given, least=0.0)
    turns_law(given) if field == "turns" else seconds_law(field, given)
    return plain(given)
