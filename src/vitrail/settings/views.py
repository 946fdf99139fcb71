"""The `views` section: random crops and colours of the methods that compare views of one image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """The `views` section: views of one image for `vitrail pretrain --method dino|lejepa`. Defaults as in DINO's multi-crop."""

    global_crops: int = 2
    """Views of the model's image size."""
    local_crops: int = 6
    """Smaller views of smaller crops."""
    local_size: float = 0.43
    """Side of the smaller views as a share of the image's side, rounded to whole patches (Caron et al. 2021: 96 of 224 px)."""
    global_scale: tuple[float, float] = (0.3, 1.0)
    """Global views: minimum and maximum area of the crop, as a share of the image."""
    local_scale: tuple[float, float] = (0.05, 0.3)
    """Local views: minimum and maximum area of the crop, as a share of the image."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter_prob: float = 0.8
    """Probability of colour jitter: brightness, contrast, saturation and hue, in random order."""
    brightness: float = 0.4
    """Brightness: the factor is drawn from 1 ± this value."""
    contrast: float = 0.4
    """Contrast: the factor is drawn from 1 ± this value."""
    saturation: float = 0.2
    """Saturation: the factor is drawn from 1 ± this value; no effect on images that are not RGB."""
    hue: float = 0.1
    """Hue: shift by up to this share of the colour circle, at most 0.5; no effect on images that are not RGB."""
    grey_prob: float = 0.2
    """Probability of a grey view."""
    blur_probs: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur: the first global view, the other global ones, the local ones."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Minimum and maximum standard deviation of the blur, in pixels."""
    solarize_probs: tuple[float, float, float] = (0.0, 0.2, 0.0)
    """Probability of solarisation at level 128: the first global view, the other global ones, the local ones."""
    canvas: float = 1.5
    """Whole images are decoded to this multiple of the image size, and all views are cut from there."""

    def __post_init__(self) -> None:
        if self.global_crops < 1 or self.local_crops < 0:
            raise ValueError(
                f"views: global_crops {self.global_crops} must be at least 1, and local_crops {self.local_crops} not negative"
            )
        if self.views < 2:
            raise ValueError("views: one view has nothing to be compared with; use global_crops 2, or some local_crops")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"views.{name} {(low, high)} must be two numbers, 0 < least <= greatest <= 1")
        for name in ("flip", "jitter_prob", "grey_prob", "local_size"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"views.{name} {getattr(self, name)} must be between 0 and 1")
        for name in ("blur_probs", "solarize_probs"):
            if not all(0 <= prob <= 1 for prob in getattr(self, name)):
                raise ValueError(f"views.{name} {getattr(self, name)} must be between 0 and 1")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"views.{name} {getattr(self, name)} must not be negative")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"views.hue {self.hue} must be between 0 and 0.5")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1] <= 2:
            raise ValueError(f"views.blur_sigma {self.blur_sigma} must be two numbers, 0 < least <= greatest <= 2")
        if self.canvas < 1:
            raise ValueError(f"views.canvas {self.canvas} must be at least 1")

    @property
    def views(self) -> int:
        """Number of views of an image."""
        return self.global_crops + self.local_crops
