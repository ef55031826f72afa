"""How large the house is. ``python tests/test_house_size.py`` prints the table.

A code line is a line with code on it: no blank one, comment or docstring.
"""

from __future__ import annotations

import ast
import doctest
import functools
import io
import tokenize
from pathlib import Path

import llminfer

HOME = Path(llminfer.__file__).parent
NINE = [
    "request",
    "config",
    "workload",
    "policies",
    "timing",
    "record",
    "metrics",
    "experiment",
    "servers/static",
]
FLOOR = ("servers/*.py", "laws/*.py")  # beside the nine: the servers and their laws
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def code_lines(source: str) -> frozenset[int]:
    """The numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines -= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return frozenset(lines)


def functions(source: str) -> list[tuple[str, int]]:
    """Each function and its code lines, those of functions inside it too."""
    lines = code_lines(source)
    return [
        (node.name, len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1))))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def examples(source: str) -> int:
    """How many docstrings of a file hold an example."""
    parser = doctest.DocTestParser()
    texts = (
        ast.get_docstring(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, DOCUMENTED)
    )
    return sum(bool(text and parser.get_examples(text)) for text in texts)


def measured() -> dict[str, tuple[int, int]]:
    """What is counted: how much there is, and the most (for examples, the least)."""
    text = {path: path.read_text() for path in sorted(HOME.rglob("*.py"))}
    size = {path: len(code_lines(source)) for path, source in text.items()}
    nine = [HOME / f"{name}.py" for name in NINE]
    core = {*nine, *(path for places in FLOOR for path in HOME.glob(places))}
    long = [n for source in text.values() for _, n in functions(source) if n > 30]
    return {
        "code lines of the nine core files": (sum(size[path] for path in nine), 1_350),
        "code lines of the core and the servers": (sum(size[p] for p in core), 4_656),
        "code lines of all": (sum(size.values()), 11_277),
        "files in the top folder": (len(list(HOME.glob("*.py"))), 15),
        "functions of over 30 code lines": (len(long), 5),
        "names in llminfer": (len(llminfer.__all__), 25),
        "docstrings with an example": (sum(map(examples, text.values())), 60),
    }


def test_the_counter_counts_code():
    doc = '"""Doc.\n\nMore."""\n'
    source = f"{doc}# comment\nx = (\n    1\n)\n\ndef f():\n    {doc}    return 1\n"
    assert code_lines(source) == {5, 6, 7, 9, 13}
    assert functions(source) == [("f", 2)]
    assert examples('"""Doc.\n\n>>> 1 + 1\n2\n"""\n') == 1


def test_the_house_stays_small():
    for what, (there, bound) in measured().items():
        if what == "docstrings with an example":
            assert there >= bound, what
        else:
            assert there <= bound, what


if __name__ == "__main__":
    for what, (there, bound) in measured().items():
        print(f"{what:40} {there:6,} {bound:6,}")
    for path in sorted(HOME.rglob("*.py")):
        for name, lines in functions(path.read_text()):
            if lines > 30:
                print(f"  {path.relative_to(HOME)}: {name}: {lines}")
