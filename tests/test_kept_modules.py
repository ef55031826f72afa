"""What modules hold from their import on is what was looked at and found right.

Constants, tables of them, and what is taken where nothing is said.
``python tests/test_kept_modules.py`` keeps what there is now: where a change is meant.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
from kept_text import Kept, text_of

import llminfer

NAMES = sorted(
    module.name.removeprefix("llminfer.")
    for module in pkgutil.walk_packages(llminfer.__path__, "llminfer.")
    if not module.ispkg and not module.name.endswith("__main__")
)
# The sources themselves, what Python has, and what was written so far.
OTHERS = {("base.cache", "SOURCE"), ("base.workers", "_NOT_THEIRS")}
OTHERS |= {("report.tables", "_begun")}
PLAIN = bool | int | float | str | tuple | dict | list
KEPT = Kept("modules")


def assigned(module: ModuleType) -> set[str]:
    """The names that a module's own lines give a value."""
    tree = ast.parse(inspect.getsource(module))
    lines = (its for its in tree.body if not isinstance(its, ast.Import | ast.Try))
    names = (its for line in lines for its in ast.walk(line))
    stored = (its for its in names if isinstance(its, ast.Name))
    return {its.id for its in stored if isinstance(its.ctx, ast.Store)}


def held(name: str) -> Iterator[str]:
    """Constants of a module, and what its functions and classes take by default."""
    module = importlib.import_module(f"llminfer.{name}")
    own = assigned(module)
    for called, value in vars(module).items():
        if isinstance(value, type | FunctionType):
            if value.__module__ == module.__name__:
                yield from taken(called, value)
        elif called in own and (name, called) not in OTHERS:
            text = text_of(value)
            if not text.isidentifier() or isinstance(value, bool | None):
                yield f"{called} = {text}"  # and no name of a type


def taken(where: str, its: Any) -> Iterator[str]:
    """What is taken where nothing is said, and what a class has."""
    given = []
    if isinstance(its, FunctionType) or {"__init__", "__new__"} & vars(its).keys():
        parameters = inspect.signature(its).parameters.values()
        given = [one for one in parameters if one.default is not one.empty]
    if said := ", ".join(map(default, given)):
        yield f"{where}() = {said}"
    for name, value in vars(its).items() if isinstance(its, type) else ():
        its_own = getattr(value, "__func__", value)  # of the class, or of none
        if isinstance(its_own, FunctionType) and not name.startswith("__"):
            yield from taken(f"{where}.{name}", its_own)
        elif isinstance(value, PLAIN) and not name.startswith("_"):
            yield f"{where}.{name} = {text_of(value)}"


def default(one: inspect.Parameter) -> str:
    how = " by name" if one.kind is one.KEYWORD_ONLY else ""
    made_new = type(one.default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS"
    return f"{one.name}{how}: {'a new one' if made_new else text_of(one.default)}"


def lines_of(name: str) -> Any:
    def lines() -> Iterator[str]:
        return held(name)

    lines.__name__ = name
    return lines


for each in NAMES:
    KEPT.part(lines_of(each))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_module_holds_from_its_import_on(name):
    assert KEPT.differs(name) == []


if __name__ == "__main__":
    KEPT.write()
