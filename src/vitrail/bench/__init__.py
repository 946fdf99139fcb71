"""Speed of this machine: products of matrices, our training step and prediction, and those of other libraries."""

from __future__ import annotations

from vitrail.bench.run import Report, bench

__all__ = ["Report", "bench"]
