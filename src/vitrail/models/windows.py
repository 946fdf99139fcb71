"""Shifted windows of a feature map: partition, mask and relative position bias (Liu et al. 2021, section 3.2)."""

# B batch · H W feature map · L positions = H W · D width · w side of a window · n windows of an image · h heads

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.settings import Pair, pair

Map = Float[Tensor, "B L D"]
"""Feature map, row by row."""


class WindowLayout(NamedTuple):
    """Partition of a feature map into windows."""

    grid: Pair
    padded: Pair
    window: int
    shift: Pair

    @classmethod
    def of(cls, grid: Pair, *, window: int, shifted: bool) -> WindowLayout:
        """Compute the layout: sides are padded to whole windows; a side of one window is not shifted."""
        padded = tuple(-(-side // window) * window for side in grid)
        shift = tuple(window // 2 if shifted and side > window else 0 for side in padded)
        return cls(grid, (padded[0], padded[1]), window, (shift[0], shift[1]))

    def cut(self, x: Map) -> Float[Tensor, "B n _w D"]:
        """Cut a map into windows, row by row."""
        (height, width), w = self.grid, self.window
        x = x.unflatten(1, self.grid)  # (B, H, W, D)
        if self.padded != self.grid:  # padding by nothing, and a roll by nothing, would copy the map
            x = F.pad(x, (0, 0, 0, self.padded[1] - width, 0, self.padded[0] - height))
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), dims=(1, 2))
        return x.unflatten(1, (-1, w)).unflatten(3, (-1, w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, n, w w, D)

    def join(self, windows: Float[Tensor, "B n _w D"]) -> Map:
        """Join windows to a map: the inverse of `cut`."""
        (height, width), w = self.grid, self.window
        x = windows.unflatten(1, (-1, self.padded[1] // w)).unflatten(3, (w, w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x.roll(self.shift, dims=(1, 2)) if any(self.shift) else x
        return x[:, :height, :width].flatten(1, 2)

    def mask(self, device: torch.device) -> Bool[Tensor, "n _w _w"] | None:
        """Attention mask: True for positions that the shift joined from opposite edges of the map; None without shift."""
        if not any(self.shift):
            return None
        regions = []
        for side, shift in zip(self.padded, self.shift, strict=True):
            at = torch.arange(side, device=device)
            regions.append((at >= side - self.window).long() + (at >= side - shift).long() if shift else torch.zeros_like(at))
        ids = regions[0][:, None] * 3 + regions[1]  # (H, W), padded
        w = self.window
        ids = ids.unflatten(0, (-1, w)).unflatten(2, (-1, w)).transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (n, w w)
        return ids[:, :, None] != ids[:, None, :]


def relative_index(window: int | Pair, *, device: torch.device | None = None) -> Int64[Tensor, "_w _w"]:
    """Return the row of the bias table for each pair of positions in a window: one for each relative offset."""
    height, width = pair(window)
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    y, x = y.flatten(), x.flatten()
    down, across = y[:, None] - y[None, :] + height - 1, x[:, None] - x[None, :] + width - 1
    return down * (2 * width - 1) + across


def resize_bias_table(table: Float[Tensor, "_rows h"], *, window: int) -> Float[Tensor, "_new h"]:
    """Resize the relative position bias to another window side: bicubic over the offsets, as in the paper's code."""
    old = (round(table.shape[0] ** 0.5) + 1) // 2
    if old == window:
        return table
    side, new = 2 * old - 1, 2 * window - 1
    grid = table.T.reshape(1, -1, side, side).float()
    return F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)[0].flatten(1).T.to(table.dtype)
