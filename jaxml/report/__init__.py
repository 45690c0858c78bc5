"""Floor 3: claims, figures, tables and the HTML page, from plain arrays and dicts."""

from jaxml.report.claims import Claim, difference_claim, ratio_claim
from jaxml.report.html import Section, render, summary
from jaxml.report.plots import image_grid, lines, panels, to_png
from jaxml.report.tables import to_markdown, write_csv

__all__ = [
    "Claim",
    "Section",
    "difference_claim",
    "image_grid",
    "lines",
    "panels",
    "ratio_claim",
    "render",
    "summary",
    "to_markdown",
    "to_png",
    "write_csv",
]
