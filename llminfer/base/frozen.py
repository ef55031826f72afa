"""Parameters of a configuration: by name, plain, and fixed once they are there."""

from collections.abc import Mapping
from typing import Any, Self

from llminfer.base.errors import fail


class Params(dict[str, Any]):
    """Parameters by name that cannot be changed, and can be hashed."""

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise TypeError("a configuration is frozen: use config.replace(...)")

    __setitem__ = __delitem__ = clear = update = _refuse
    pop = popitem = setdefault = __ior__ = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)


class Classes(Params):
    """Request classes by name; their order numbers them, so that it counts too."""

    __hash__ = Params.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and [*self.items()] == [*other.items()]

    def __ne__(self, other: object) -> bool:
        return not self == other


def plain(value: Any, deep: int = 9) -> Any:
    """Numbers as Python's own; lists, arrays and dicts as what cannot change.

    Args:
        value: What is given.
        deep: So many lists in lists; what lies deeper is no parameter.
    """
    if type(value) is Params:
        return value  # as this has made it
    if hasattr(value, "tolist"):
        value = value.tolist()
    if deep and isinstance(value, Mapping):
        return Params({key: plain(its, deep - 1) for key, its in value.items()})
    listed = deep and isinstance(value, (list, tuple))
    if listed and {*map(type, value)} <= {int, float}:
        return tuple(value)
    return tuple(plain(its, deep - 1) for its in value) if listed else value


def thawed(value: Any) -> Any:
    """Parameters as plain dicts, however deep."""
    frozen = isinstance(value, Params)
    return {k: thawed(v) for k, v in value.items()} if frozen else value


def frozen_params(name: str, given: Any) -> Params:
    """``given`` as it is kept, if it is a dict of parameters.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(given, Mapping) or not all(isinstance(k, str) for k in given):
        raise fail(name, given, "a dict of parameters by name")
    return Params(plain(given))


def frozen_classes(name: str, given: Any) -> Classes:
    """``given`` as it is kept, if it is a dict of classes.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(given, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Mapping) for k, v in given.items()
    ):
        must = 'a dict such as {"chat": {"share": 2}, "batch": {"share": 1}}'
        raise fail(name, given, must)
    return Classes({key: frozen_params(name, its) for key, its in given.items()})
