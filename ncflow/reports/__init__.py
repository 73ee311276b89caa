"""Reports that compare runs: tables, figures and one self-contained page, from run folders only.

`ncflow.reports.page` has the page. It imports matplotlib and pandas, which most commands do not need.
"""

from ncflow.reports.arms import arms
from ncflow.reports.findings import findings, verdict
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
    "verdict",
]
