"""Shifted windows of a feature map: partition, mask and relative position bias (Liu et al. 2021, section 3.2)."""

# B batch · H W feature map · L positions = H W · D width · w positions of a window · n windows of an image · h heads

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
    window: Pair
    shift: Pair
    pad_first: bool = True
    """True to pad the map before it is shifted, as in the paper's code for detection; timm pads it afterwards."""

    @classmethod
    def of(cls, grid: Pair, *, window: int | Pair, shifted: bool) -> WindowLayout:
        """Compute the layout: sides are padded to whole windows; a side of one window is not shifted."""
        whole = cls.shifted_by(grid, window=pair(window), shift=(0, 0))
        down, across = (w // 2 if shifted and side > w else 0 for w, side in zip(whole.window, whole.padded, strict=True))
        return whole._replace(shift=(down, across))

    @classmethod
    def shifted_by(cls, grid: Pair, *, window: Pair, shift: Pair, pad_first: bool = True) -> WindowLayout:
        """Compute the layout of a given shift: sides are padded to whole windows."""
        height, width = (-(-side // w) * w for side, w in zip(grid, window, strict=True))
        return cls(grid, (height, width), window, shift, pad_first)

    def cut(self, x: Map) -> Float[Tensor, "B n _w D"]:
        """Cut a map into windows, row by row."""
        down, across = self.window
        x = x.unflatten(1, self.grid)  # (B, H, W, D)
        x = self._roll(self._pad(x)) if self.pad_first else self._pad(self._roll(x))
        return x.unflatten(1, (-1, down)).unflatten(3, (-1, across)).transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, n, w, D)

    def join(self, windows: Float[Tensor, "B n _w D"]) -> Map:
        """Join windows to a map: the inverse of `cut`."""
        height, width = self.grid
        x = windows.unflatten(1, (-1, self.padded[1] // self.window[1])).unflatten(3, self.window)
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # (B, H, W, D), padded
        x = self._roll(x, back=True)[:, :height, :width] if self.pad_first else self._roll(x[:, :height, :width], back=True)
        return x.flatten(1, 2)

    def _pad(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B _H _W D"]:
        if self.padded == self.grid:  # padding by nothing, and a roll by nothing, would copy the map
            return x
        return F.pad(x, (0, 0, 0, self.padded[1] - self.grid[1], 0, self.padded[0] - self.grid[0]))

    def _roll(self, x: Float[Tensor, "B H W D"], *, back: bool = False) -> Float[Tensor, "B H W D"]:
        if not any(self.shift):
            return x
        return x.roll(self.shift if back else (-self.shift[0], -self.shift[1]), dims=(1, 2))

    def mask(self, device: torch.device) -> Bool[Tensor, "n _w _w"] | None:
        """Attention mask: True for positions that the shift joined from opposite edges of the map; None without shift."""
        if not any(self.shift):
            return None
        regions = []
        for side, shift, window in zip(self.padded, self.shift, self.window, strict=True):
            at = torch.arange(side, device=device)
            regions.append((at >= side - window).long() + (at >= side - shift).long() if shift else torch.zeros_like(at))
        ids = regions[0][:, None] * 3 + regions[1]  # (H, W), padded
        down, across = self.window
        ids = ids.unflatten(0, (-1, down)).unflatten(2, (-1, across)).transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (n, w)
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
