"""Colours of a set beside the normalisation that training would choose, and the range of values in use."""

# C channels

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vitrail.check.finding import DataFinding
from vitrail.check.scan import Moments, mean_and_deviation
from vitrail.data.bands import ValuesInUse
from vitrail.data.dataset import Source

SHIFT = 1.0
"""Mean of the normalised pixels, in deviations, from which the normalisation does not fit."""
STRETCH = (0.5, 2.0)
"""Deviation of the normalised pixels outside of which it does not fit."""


@dataclass(frozen=True)
class ColourStatistics:
    """Mean and standard deviation of each channel over some training images, for pixels from 0 to 1."""

    images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: int
    high: int
    """Least and greatest value of 8 bits."""
    normal_mean: tuple[float, ...]
    normal_std: tuple[float, ...]
    """Normalisation that training would choose."""

    @property
    def shift(self) -> tuple[float, ...]:
        """Mean of the normalised pixels."""
        return tuple((m - n) / s for m, n, s in zip(self.mean, self.normal_mean, self.normal_std, strict=True))

    @property
    def stretch(self) -> tuple[float, ...]:
        """Deviation of the normalised pixels."""
        return tuple(d / s for d, s in zip(self.std, self.normal_std, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            "images": self.images,
            "mean": list(self.mean),
            "std": list(self.std),
            "low": self.low,
            "high": self.high,
            "normalisation": {"mean": list(self.normal_mean), "std": list(self.normal_std)},
        }

    def __str__(self) -> str:
        measured = f"mean {_figures(self.mean)}, deviation {_figures(self.std)}, values {self.low} to {self.high}"
        chosen = f"mean {_figures(self.normal_mean)}, deviation {_figures(self.normal_std)}"
        return f"{measured} ({self.images} images); training normalises by {chosen}"


def measure_colours(moments: Sequence[Moments], source: Source) -> ColourStatistics | None:
    """Summarise the statistics of some images of 8 bits; None without such images, and for bands that are no colours."""
    measured = mean_and_deviation(moments)
    if measured is None or source.channels not in (1, 3):
        return None
    mean, std = ([round(float(value), 4) for value in values] for values in measured)
    if len(mean) != source.channels:  # grey images of a colour set, or the reverse: read as the set is
        mean, std = ([sum(values) / len(values)] * source.channels for values in (mean, std))
    low, high = min(each.low for each in moments), max(each.high for each in moments)
    return ColourStatistics(len(moments), tuple(mean), tuple(std), low, high, source.mean, source.std)


def find_colour_faults(statistics: ColourStatistics | None, values: dict[Any, ValuesInUse]) -> Iterator[DataFinding]:
    """Yield findings about the whole set: a normalisation that does not fit, and a range with few levels."""
    if statistics is not None:
        off = max(map(abs, statistics.shift)) > SHIFT
        if off or min(statistics.stretch) < STRETCH[0] or max(statistics.stretch) > STRETCH[1]:
            mean, std = (f"[{', '.join(f'{value:.4g}' for value in each)}]" for each in (statistics.mean, statistics.std))
            yield DataFinding(
                kind="colours",
                evidence=f"normalised images have mean {_figures(statistics.shift)}, deviation {_figures(statistics.stretch)}",
                suggestion=f'train with --data.mean "{mean}" --data.std "{std}", unless weights are fine-tuned',
            )
    used = values.get("train")
    if used is not None and (few := used.few_levels(used.range)):
        yield DataFinding(kind="few-levels", evidence=few)


def _figures(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
