"""The report of a run folder: one self-contained HTML page and its figures. Never imports torch."""

from hneurons.report.page import write_report

__all__ = ["write_report"]
