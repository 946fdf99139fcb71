"""Principal components of patch tokens as colours (Oquab et al. 2023): which patches have like features."""

# B batch · gh gw grid · D width · M patches of all images together

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vitrail.explain.inputs import Images, layer_label, open_scene, require_layer
from vitrail.explain.maps import Maps, maps_of
from vitrail.explain.tokens import tokens_behind
from vitrail.settings import Pair

SAME = 1e-12
"""Share of the features' square below which a variance is rounding in float32."""
FLAT = 1e-5
"""Share of the widest component's range below which another one is rounding, and no colour."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenPca(Maps):
    """Principal components of patch tokens: `maps` is the first, in standard deviations, `colors` three of the foreground."""

    foreground: Bool[Tensor, "_ gh gw"]  # not B: `at` cuts the maps first
    """True where the first component is above the threshold."""
    explained: tuple[float, ...]
    """Shares of variance: of the first component over all patches, then of red, green and blue over the foreground."""

    def at(self, index: int) -> TokenPca:
        """Return the map of one image."""
        one, position = super().at(index), self.position(index)
        assert isinstance(one, TokenPca)
        return replace(one, foreground=self.foreground[position : position + 1])


@torch.no_grad()
def pca(
    model: nn.Module,
    images: Images,
    *,
    layer: int = -1,
    threshold: float = 0.0,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> TokenPca:
    """Return the foreground by the first component, and three components of it as colours.

    As in Oquab et al. 2023, section 7.5, figure 1. The components are those of all patches of all images of the call: what is
    alike in several images gets one colour. The tokens are those behind a layer; behind the last one, after the last norm too.
    A component's sign is arbitrary: the foreground is the side that lies less on the images' border, by the mean of the
    component. `threshold`, in standard deviations, is where it begins; 0 is the mean of all patches, as in the paper. A colour
    runs from 0 to 1 over its component, whose largest loading is positive.
    Raises ValueError for a layer that does not exist, tokens that are all the same, a threshold that leaves no foreground, and
    a model without patch tokens.
    """
    with open_scene(model, images, method="pca", pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as scene:
        index, here = require_layer(scene.model, layer), scene.present()  # (B, gh, gw)
        tokens = tokens_behind(scene, index)[:, scene.prefix :].unflatten(1, scene.grid)
        rows = tokens.cpu()[here].double()  # (M, D)
        first, share = components(rows, 1)
        deviation = first.square().mean().sqrt()
        if deviation.square() <= SAME * rows.square().sum(dim=1).mean():
            raise ValueError(
                f"all patches have the same token behind layer {index}, which has no components; use another image"
            )
        first, note = off_border(first[:, 0] / deviation, border(here)[here])
        front = first > threshold
        if not front.any():
            raise ValueError(
                f"threshold {threshold} leaves no foreground, for the first component ends at {first.max():.2f} standard "
                "deviations; use a lower one"
            )
        parts, shares = components(rows[front], 3)
        foreground = on_grid(front, here)
        name = layer_label(scene.model, index)
        maps = maps_of(
            scene,
            on_grid(first, here),
            method="pca",
            labels=tuple(
                f"{name}, {(ahead.sum() / one.sum()).item():.0%} foreground"
                for ahead, one in zip(foreground, here, strict=True)
            ),
            notes=(note, f"colours: the foreground's first components, {sum(shares):.0%} of its variance"),
            signed=True,
            colors=on_grid(to_unit_range(parts), foreground).float(),
        )
        return TokenPca(**vars(maps), foreground=foreground, explained=share + shares)


def border(here: Bool[Tensor, "B gh gw"]) -> Bool[Tensor, "B gh gw"]:
    """True for the patches at the edge of their image."""
    around = F.pad(here, (1, 1, 1, 1), value=False)
    inner = around[:, :-2, 1:-1] & around[:, 2:, 1:-1] & around[:, 1:-1, :-2] & around[:, 1:-1, 2:]
    return here & ~inner


def on_grid(values: Tensor, here: Bool[Tensor, "B gh gw"]) -> Tensor:
    """Put values of the patches that are there, (M, …), in their places, (B, gh, gw, …); zero elsewhere."""
    grid = values.new_zeros(*here.shape, *values.shape[1:])
    grid[here] = values
    return grid


def components(rows: Float[Tensor, "M D"], count: int) -> tuple[Float[Tensor, "M {count}"], tuple[float, ...]]:
    """Return the first principal components of rows, and the share of the variance of each.

    From the covariance's eigenvectors, in the type of the rows; the largest loading of each is positive.
    """
    centred = rows - rows.mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.mT @ centred)  # ascending
    variances, axes = variances.flip(0).clamp(min=0), axes.flip(1)[:, :count]  # (D,) and (D, count)
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    total = variances.sum().clamp(min=torch.finfo(rows.dtype).tiny)
    return centred @ axes, tuple((variances[:count] / total).tolist())


def off_border(first: Float[Tensor, " M"], edge: Bool[Tensor, " M"]) -> tuple[Float[Tensor, " M"], str]:
    """Return a component with the sign that makes it smaller on the border than inside, and a note."""
    if edge.all():
        return first, "all patches are at the border, so which side is the foreground is arbitrary"
    sign = -1 if first[edge].mean() > first[~edge].mean() else 1
    return sign * first, "foreground: the side of the first component that lies less on the border"


def to_unit_range(parts: Float[Tensor, "M 3"]) -> Float[Tensor, "M 3"]:
    """Scale each column to 0 to 1; to a half where it does not vary."""
    low, span = parts.amin(dim=0), parts.amax(dim=0) - parts.amin(dim=0)
    return torch.where(span > FLAT * span.max(), (parts - low) / span, 0.5)
