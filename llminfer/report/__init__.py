"""Figures, tables, verdicts and macros for a LaTeX report.

``figures`` and ``timeline`` draw, and are imported by name.
"""

from llminfer.report.tables import against as against
from llminfer.report.tables import begin as begin
from llminfer.report.tables import glossary as glossary
from llminfer.report.tables import save_answer as save_answer
from llminfer.report.tables import save_numbers as save_numbers
from llminfer.report.tables import save_table as save_table
from llminfer.report.tables import save_verdicts as save_verdicts
