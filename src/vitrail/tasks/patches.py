"""Pixels and patches: cutting images into patches, joining them again, and statistics of a patch."""

# B batch · C channels · H W image · P patch · gh gw grid · L patches = gh gw · X numbers in a patch = P P C

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from vitrail.settings import Pair

Images = Float[Tensor, "B C H W"]


def to_patches(images: Images, patch: Pair) -> Float[Tensor, "B L X"]:
    """Cut images into patches, row by row; the pixels of a patch are row by row too, the channels of a pixel side by side."""
    x = images.unflatten(2, (-1, patch[0])).unflatten(4, (-1, patch[1]))  # (B, C, gh, P, gw, P)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, L, X)


def from_patches(patches: Float[Tensor, "B L X"], *, patch: Pair, grid: Pair) -> Images:
    """Join patches to images: the inverse of `to_patches`."""
    x = patches.unflatten(1, grid).unflatten(3, (*patch, -1))  # (B, gh, gw, P, P, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, C, H, W)


def shuffle_pixels(x: Float[Tensor, "B _ gh gw"], patch: Pair) -> Images:
    """Spread the channels of each cell, (C, P, P), over its pixels, as torch's `pixel_shuffle` does for squares."""
    x = x.unflatten(1, (-1, *patch))  # (B, C, P, P, gh, gw)
    return x.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)  # (B, C, H, W)


def pixels_of(mask: Bool[Tensor, "B L"], *, patch: Pair, grid: Pair) -> Bool[Tensor, "B 1 H W"]:
    """Return the mask of the pixels of the patches of a mask."""
    return mask.unflatten(1, (1, *grid)).repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)


def patch_statistics(patches: Float[Tensor, "B L X"]) -> tuple[Float[Tensor, "B L 1"], Float[Tensor, "B L 1"]]:
    """Return mean and standard deviation of each patch: √(unbiased variance + 1e-6), as in the code of MAE (He et al. 2022)."""
    return patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + 1e-6).sqrt()
