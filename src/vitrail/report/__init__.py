"""Report of a run: run folder to one HTML page that stands alone."""

from __future__ import annotations

from vitrail.report.write import REPORT, try_report, write_report

__all__ = ["REPORT", "try_report", "write_report"]
