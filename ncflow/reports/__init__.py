"""Reports that compare runs: tables, figures and one self-contained page, from run folders only."""

from ncflow.reports.arms import arms
from ncflow.reports.findings import findings
from ncflow.reports.page import write_report
from ncflow.reports.posthoc import posthoc_table
from ncflow.reports.tables import Table, as_html, as_markdown, as_text, summary_table

__all__ = [
    "Table",
    "arms",
    "as_html",
    "as_markdown",
    "as_text",
    "findings",
    "posthoc_table",
    "summary_table",
    "write_report",
]
