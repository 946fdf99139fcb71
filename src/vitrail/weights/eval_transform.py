"""Evaluation transform of a checkpoint: values that config files state, and the default of each library's own code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Numbers = tuple[float, ...]
CropMode = Literal["center", "squash"]
Filter = Literal["bilinear", "bicubic"]

IMAGENET: tuple[Numbers, Numbers] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: tuple[Numbers, Numbers] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP: tuple[Numbers, Numbers] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class EvalTransform(NamedTuple):
    """Resize, crop and normalisation of images, for the channels that the source states."""

    mean: Numbers
    std: Numbers
    crop_pct: float
    crop_mode: CropMode
    interpolation: Filter
    source: str
    """Source of the values, in a few words, with what had to be approximated."""
    range: tuple[float, float] | None = None


class DefaultTransform(NamedTuple):
    """Evaluation transform of a repository's own code, for checkpoints whose files state none."""

    word: str
    """Part of a layout's name, or of the model_type in config.json."""
    whose: str
    mean_std: tuple[Numbers, Numbers]
    crop_pct: float
    crop_mode: CropMode
    interpolation: Filter
    above_224: tuple[float, Filter] | None = None
    """Crop and filter of checkpoints for larger images, if they differ."""
    mode_above_224: CropMode | None = None
    """Crop mode of checkpoints for larger images, if it differs."""

    def at(self, img_size: tuple[int, int]) -> EvalTransform:
        """Return the transform for checkpoints of an image size."""
        crop_pct, interpolation, mode = self.crop_pct, self.interpolation, self.crop_mode
        if self.above_224 and max(img_size) > 224:
            (crop_pct, interpolation), mode = self.above_224, self.mode_above_224 or mode
        return EvalTransform(*self.mean_std, crop_pct, mode, interpolation, f"built in for {self.whose}")


_PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # filters by their number
_NEAREST: dict[str, Filter] = {
    **dict.fromkeys(("bicubic", "lanczos", "random"), "bicubic"),  # timm trains with random ones
    **dict.fromkeys(("bilinear", "hamming", "box", "nearest"), "bilinear"),
}


def filter_of(value: Any, notes: list[str]) -> Filter:
    """Return our filter for a filter's name or Pillow number; append a note if it is another one."""
    name = _PILLOW[value] if isinstance(value, int) and 0 <= value < len(_PILLOW) else str(value).lower()
    nearest = _NEAREST.get(name, "bicubic")
    if nearest != name:
        notes.append(f'its filter "{name}" is read as "{nearest}"')
    return nearest


def numbers(value: Any, what: str, *, above_zero: bool = False) -> Numbers:
    """Return one number or several as floats. Raises ValueError for anything else, naming `what`."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    valid = all(isinstance(v, int | float) and math.isfinite(v) and (v > 0 or not above_zero) for v in values)
    if not values or not valid:
        rule = "numbers above 0" if above_zero else "numbers"
        raise ValueError(f"{what} {value!r} must be {rule}; mend the file, or leave it out")
    return tuple(map(float, values))


def with_notes(source: str, notes: Sequence[str]) -> str:
    """Append notes to the name of a source."""
    return f"{source} ({'; '.join(notes)})" if notes else source
