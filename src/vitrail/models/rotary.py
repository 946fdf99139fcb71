"""Rotary positions in two dimensions: angles of every patch, and the rotation of queries and keys by them.

RoFormer (Su et al. 2021) on the two axes of an image: each pair of channels of a head is turned by its frequency times the row
or the column of the patch. A product of two turned vectors depends on their distance alone. Prefix tokens are not turned.
"""

# B batch · b 1, or B where images have grids of their own · k 1, or one for each block · h 1, or heads
# N tokens (prefix + patches) · L patches = gh gw · d width of a head · f frequencies = d / 2, of both axes

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vitrail.models.packing import BlockDiagonal
from vitrail.models.relative_mlp import RelativePlaces
from vitrail.settings import Pair, pair
from vitrail.settings.modern import ModernConfig

Coordinates = tuple[Float[Tensor, "b gh"], Float[Tensor, "b gw"]]


class Rotation(NamedTuple):
    """Sine and cosine of the angles of every token and channel, as `rotate` takes them."""

    cos: Float[Tensor, "b k h N d"]
    sin: Float[Tensor, "b k h N d"]

    def of_block(self, index: int) -> Rotation:
        """Return the rotation of one block, without the axis of blocks."""
        index = index if self.cos.shape[1] > 1 else 0
        return Rotation(self.cos[:, index], self.sin[:, index])

    def of_tokens(self, tokens: Int64[Tensor, "B n"]) -> Rotation:
        """Return the rotation of some tokens of each image."""
        index = tokens[:, None, None, :, None]

        def take(values: Tensor) -> Tensor:
            shape = (tokens.shape[0], *values.shape[1:3], tokens.shape[1], values.shape[4])
            return values.expand(tokens.shape[0], -1, -1, -1, -1).gather(3, index.expand(shape))

        return Rotation(take(self.cos), take(self.sin))


class RotaryContext(NamedTuple):
    """Second input of the blocks of a modern ViT."""

    mask: Bool[Tensor, "B N"] | BlockDiagonal | None
    """True for valid tokens; several images in one sequence; None: all are valid."""
    rotation: Rotation | None
    """None without rotary positions."""
    relative: RelativePlaces | None = None
    """None without relative positions."""


def rotate(x: Float[Tensor, "B h N d"], rotation: Rotation, *, half: bool) -> Float[Tensor, "B h N d"]:
    """Turn the pairs of channels: neighbours, or with `half` those half a head apart. The angles are in fp32."""
    if half:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
    else:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return (x * rotation.cos + turned * rotation.sin).to(x.dtype)


class Rotary(nn.Module):
    """The rotations of a model's tokens at any patch grid; with rope "mixed", their frequencies are learned."""

    def __init__(self, cfg: ModernConfig) -> None:
        super().__init__()
        self.cfg, self.quarter = cfg, cfg.head_width // 4
        if cfg.rope == "mixed":
            self.freqs = nn.Parameter(torch.empty(2, cfg.depth, cfg.num_heads, 2 * self.quarter))
        if cfg.rope_class:
            self.cls = nn.Parameter(torch.empty(1, 2 * self.quarter))
        self._fixed: dict[tuple[Pair, int, torch.device], Rotation] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the class token's angles, and for the frequencies a random pair of directions, at right angles, for each
        head (Heo et al. 2024)."""
        if self.cfg.rope_class:
            nn.init.trunc_normal_(self.cls, std=(2 * self.quarter) ** -0.5)
        if self.cfg.rope == "mixed":
            turn = torch.rand(*self.freqs.shape[1:3], 1, device=self.freqs.device) * 2 * math.pi
            directions = torch.cat([turn, turn + math.pi / 2], dim=2).repeat_interleave(self.quarter, dim=2)  # (k, h, f)
            sizes = self.frequencies(self.freqs.device).repeat(2)
            with torch.no_grad():
                self.freqs.copy_(torch.stack([directions.cos() * sizes, directions.sin() * sizes]))

    def frequencies(self, device: torch.device, *, shift: float = 0.0) -> Float[Tensor, " _quarter"]:
        """Return the frequencies of one axis, from 1 down to nearly 1 / temperature; `shift` counts steps."""
        steps = torch.arange(self.quarter, dtype=torch.float32, device=device) + shift
        return self.cfg.rope_temperature ** -(steps / self.quarter)

    def forward(self, grid: Pair, *, prefix: int, device: torch.device, sides: Float[Tensor, "B 2"] | None = None) -> Rotation:
        """Return the rotation of `prefix` tokens, which is none, and of the patches of a grid.

        `sides` are the grid's rows and columns that each image takes, where that differs: positions are spread over them.
        """
        cfg, key = self.cfg, (grid, prefix, device)
        moved = self.training and any(value is not None for value in (cfg.rope_shift, cfg.rope_jitter, cfg.rope_rescale))
        learned = cfg.rope == "mixed" or cfg.rope_class
        if moved or learned or sides is not None or torch.compiler.is_compiling():
            return self.rotation(grid, prefix=prefix, device=device, sides=sides, moved=moved)
        if key not in self._fixed:
            with torch.inference_mode(False):  # what is kept must do for a call that learns, too
                rotation = self.rotation(grid, prefix=prefix, device=device, sides=None, moved=False)
            if type(rotation.cos) is not Tensor:  # torch.export computes with tensors that hold no numbers
                return rotation
            self._fixed[key] = rotation
        return self._fixed[key]

    def rotation(
        self, grid: Pair, *, prefix: int, device: torch.device, sides: Float[Tensor, "B 2"] | None, moved: bool
    ) -> Rotation:
        """Compute sine and cosine of the angles, in the layout of the channels."""
        coordinates = self.coordinates(grid, device=device, sides=sides)
        coordinates = self.move(coordinates) if moved else coordinates
        if self.cfg.rope == "video":
            each = F.pad(self.video_angles(coordinates), (0, 0, prefix, 0))
            return Rotation(each.cos(), each.sin())
        angles = F.pad(self.angles(coordinates), (0, 0, prefix, 0))  # (b, k, h, N, f)
        if self.cfg.rope_class:
            angles = torch.cat([self.cls.float().expand(*angles.shape[:3], 1, -1), angles[..., 1:, :]], dim=-2)
        half = self.cfg.rope_layout == "half"
        cos, sin = (torch.cat([v, v], -1) if half else v.repeat_interleave(2, -1) for v in (angles.cos(), angles.sin()))
        return Rotation(cos, sin)

    def coordinates(self, grid: Pair, *, device: torch.device, sides: Float[Tensor, "B 2"] | None) -> Coordinates:
        """Return the positions of rows and columns."""
        cfg, both = self.cfg, []
        reference = None if cfg.rope_ref_grid is None else pair(cfg.rope_ref_grid)
        for axis, count in enumerate(grid):
            at = torch.arange(count, dtype=torch.float32, device=device)[None]  # (1, count)
            side: Tensor | int = count if sides is None else sides[:, axis, None].to(device)  # (B, 1)
            if cfg.rope == "centred":
                at = 2 * ((at + 0.5) / side) - 1
            elif cfg.rope == "grid":
                at = at + cfg.rope_offset
                at = at if reference is None else at / side * reference[axis]
            both.append(at)
        return both[0], both[1]

    def move(self, coordinates: Coordinates) -> Coordinates:
        """Shift and scale the coordinates at random, as in DINOv3's training: one draw for the whole batch."""
        cfg, both = self.cfg, list(coordinates)
        for axis, at in enumerate(both):
            draw = torch.rand(2, device=at.device) * 2 - 1
            both[axis] = (at + (cfg.rope_shift or 0.0) * draw[0]) * (math.log(cfg.rope_jitter or 1.0) * draw[1]).exp()
        scale = (math.log(self.cfg.rope_rescale or 1.0) * (torch.rand(1, device=both[0].device) * 2 - 1)).exp()
        return both[0] * scale, both[1] * scale

    def angles(self, coordinates: Coordinates) -> Float[Tensor, "b k h L f"]:
        """Return the angle of every patch and frequency."""
        cfg, (y, x) = self.cfg, coordinates
        down, across = y[:, :, None, None], x[:, None, :, None]  # (b, gh, 1, 1), (b, 1, gw, 1)
        first, second = (down, across) if cfg.rope_axes == "yx" else (across, down)
        if cfg.rope == "mixed":
            learned = self.freqs.float()[:, :, :, None, None]  # (2, k, h, 1, 1, f)
            return (first[:, None, None] * learned[0] + second[:, None, None] * learned[1]).flatten(3, 4)
        shift = 0.5 if cfg.rope == "alternating" else 0.0
        unit = 2 * math.pi if cfg.rope == "centred" else 1.0
        one, other = (unit * axis * self.frequencies(y.device, shift=at) for axis, at in ((first, 0.0), (second, shift)))
        return torch.cat(torch.broadcast_tensors(one, other), dim=-1).flatten(1, 2)[:, None, None]

    def video_angles(self, coordinates: Coordinates) -> Float[Tensor, "b k h L d"]:
        """Return the angle of every patch and channel: time, which is 0, rows and columns have a third of the channels each.

        The frequencies of a third are there twice, one run after the other, although it is neighbours that are turned together:
        so the two of a pair have different angles, in the published weights as here.
        """
        y, x = coordinates
        count = self.cfg.head_width // 6  # of an axis
        steps = torch.arange(count, dtype=torch.float32, device=y.device)
        frequencies = (self.cfg.rope_temperature ** -(steps / count)).repeat(2)
        rows, columns = torch.broadcast_tensors(y[:, :, None, None] * frequencies, x[:, None, :, None] * frequencies)
        turned = torch.cat([torch.zeros_like(rows), rows, columns], dim=-1)  # (b, gh, gw, 6 count)
        return F.pad(turned, (0, self.cfg.head_width - 6 * count)).flatten(1, 2)[:, None, None]
