"""Figures, tables, verdicts and macros for a LaTeX report.

``figures`` and ``timeline`` draw, and are imported by name.
"""

from llminfer.report.tables import (
    against,
    begin,
    save_numbers,
    save_table,
    save_verdicts,
)
from llminfer.report.verdict import (
    Verdict,
)

__all__ = [
    "Verdict",
    "against",
    "begin",
    "save_numbers",
    "save_table",
    "save_verdicts",
]
