"""A frozen dataclass of settings: its names are checked, and it is written as JSON."""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Number
from pathlib import Path
from typing import Any, Self

from llminfer.base.errors import ConfigError, fail, nearest, shown
from llminfer.base.frozen import Params, thawed

_WRITTEN = (str, Number, tuple, Params, type(None))
_NAMES = Path(__file__).with_name("settings.toml").read_text("utf-8")
_CALLED: Mapping[str, str] = tomllib.loads(_NAMES)  # elsewhere


class Named:
    """A frozen dataclass whose fields all have defaults, given by names it checks."""

    __slots__ = ()

    def __new__(cls, /, *_: Any, **given: Any) -> Self:
        """Checks the names; the dataclass takes the values."""
        cls.check_names(given)
        return super().__new__(cls)

    @classmethod
    def check_names(cls, given: Mapping[str, Any]) -> None:
        """Refuse what is no field, naming the nearest that is.

        Raises:
            ConfigError: A name is none.
        """
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for name, value in given.items():
            if name not in names:
                owns = (own for own, its in _CALLED.items() if name in its.split())
                meant = next(owns, name)
                hint = nearest(meant, names) or f": help({cls.__name__}) lists them"
                raise ConfigError(f"{name}={shown(value)}: no such field{hint}")


class Settings(Named):
    """One that can be written down."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as plain values.

        Raises:
            ConfigError: A policy is an object, which has no name to write down.
        """
        values = self._values()
        for name, value in values.items():
            if not isinstance(value, _WRITTEN):
                raise fail(name, value, "a name to be written")
        return {name: thawed(value) for name, value in values.items()}

    def to_json(self, path: str | Path | None = None) -> str:
        """This configuration as JSON, also written to ``path`` if given."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        if path is not None:
            Path(path).write_text(text)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> Self:
        """The configuration in a JSON file or in a string that starts with ``{``.

        Raises:
            ConfigError: It is no JSON object, or a field is unknown or bad.

        >>> from llminfer import SimulationConfig
        >>> SimulationConfig.from_json('{"batch_size": 4}')
        SimulationConfig(batch_size=4)
        """
        if not isinstance(source, (str, os.PathLike)):
            raise fail("configuration", source, "a path, or JSON")
        inline = isinstance(source, str) and source.lstrip().startswith("{")
        try:
            text = str(source) if inline else Path(source).read_text("utf-8-sig")
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # no text, or nested too deep
            raise ConfigError(f"configuration: not JSON: {error}") from None
        if not isinstance(values, dict):
            raise fail("configuration", values, "a JSON object of fields")
        return cls(**values)

    def __repr__(self) -> str:
        """The call that makes this, without what is default; long lists are cut."""
        usual = type(self)()._values()
        own = {k: v for k, v in self._values().items() if v != usual[k]}
        text = ", ".join(f"{name}={value!r}" for name, value in own.items())
        cut = re.sub(r"((?:[^(), ]+, ){3})[^()]{400,}\)", r"\1...)", text)
        return f"{type(self).__name__}({cut})"

    def _values(self) -> dict[str, Any]:
        names = (f.name for f in fields(self))  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names}


def check_axes(over: Mapping[str, Any], taken: Iterable[str] = ()) -> None:
    """Refuse what is no dict of lists by names that are not taken.

    Raises:
        ConfigError: It is none.
    """
    if not (isinstance(over, Mapping) and all(isinstance(name, str) for name in over)):
        raise fail("over", over, "a dict of lists by field")
    for name, values in over.items():
        if name in taken:
            raise ConfigError(f"{name}: must be renamed: the results have it too")
        listed = hasattr(values, "__len__") and not isinstance(values, (str, bytes))
        if not listed or not getattr(values, "ndim", 1) or not len(values):
            raise fail(name, values, "a list of at least one value")
