"""Corruptions of images (Hendrycks and Dietterich 2019), in batches on the device, with draws of its own for every image."""

from vitrail.evaluate.corruptions.table import CORRUPTIONS, SEVERITIES, Corruption, corrupt

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "corrupt"]
