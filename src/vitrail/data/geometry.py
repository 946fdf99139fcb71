"""Geometric augmentation: crop, flip, rotation, shear and translation of each sample in one resampling.

Coordinates are in pixels with edges at whole numbers, so the centre of the first pixel is 0.5. A matrix maps an output
position to the input position it is read from, as grid_sample does; "first a, then b" is therefore the product `a @ b`.
"""

# B batch · C channels · H W canvas · h w output

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from vitrail.settings import Pair


def affine(
    *,
    degrees: Float[Tensor, " B"],
    shear_x: Float[Tensor, " B"],
    shear_y: Float[Tensor, " B"],
    right: Float[Tensor, " B"],
    down: Float[Tensor, " B"],
    size: Pair,
) -> Float[Tensor, "B 3 3"]:
    """Return matrices that rotate counter-clockwise about the centre, shear about the upper left corner, then move (pixels).

    A shear is the tangent: row y moves by shear_x · y to the left, as in Pillow's affine transform and RandAugment.
    """
    one, nil = torch.ones_like(degrees), torch.zeros_like(degrees)
    middle_y, middle_x = size[0] / 2, size[1] / 2
    cos, sin = torch.cos(degrees * (math.pi / 180)), torch.sin(degrees * (math.pi / 180))
    rotate = _matrix(
        (cos, -sin, middle_x - cos * middle_x + sin * middle_y),
        (sin, cos, middle_y - sin * middle_x - cos * middle_y),
    )
    shear = _matrix((one, shear_x, nil), (shear_y, one, nil))
    move = _matrix((one, nil, -right), (nil, one, -down))
    return rotate @ shear @ move


def mirror(flips: Bool[Tensor, " B"], *, width: int) -> Float[Tensor, "B 3 3"]:
    """Return matrices that flip the marked samples horizontally."""
    one, nil = torch.ones(len(flips), device=flips.device), torch.zeros(len(flips), device=flips.device)
    sign = torch.where(flips, -one, one)
    return _matrix((sign, nil, flips * float(width)), (nil, one, nil))


def _matrix(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Tensor:
    last = (torch.zeros_like(first[0]), torch.zeros_like(first[0]), torch.ones_like(first[0]))
    return torch.stack([torch.stack(row, dim=1) for row in (first, second, last)], dim=1)  # (B, 3, 3)


def resample(
    images: UInt8[Tensor, "B C H W"],
    *,
    sizes: Int64[Tensor, "B 2"],
    boxes: Float[Tensor, "B 4"],
    matrices: Float[Tensor, "B 3 3"],
    out: Pair,
    fill: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, "B C h w"]:
    """Resize each box to `out` and apply its matrix, in one bilinear resampling; values stay in 0 … 255.

    Positions outside of the box are `fill`, as if crop and resize came first (None: no matrix leaves the box, as with flips
    alone). Pixels of a box beyond the image's edge are zero, as in a crop with padding. A box of twice the output's side or
    more is first halved by averaging, against aliasing; below twice, plain bilinear interpolation is used. With sizes, boxes
    and matrices on the CPU, the device of the images is never waited for.
    """
    pixels, boxes = _halve_large(images.float(), sizes, boxes, out)
    boxes, matrices = boxes.to(images.device, non_blocking=True), matrices.to(images.device, non_blocking=True)
    (height, width), (top, left, tall, wide) = pixels.shape[-2:], boxes.unbind(1)
    x, y = _positions(matrices, out)  # (B, h, w), in the window
    inside = _coverage(x, out[1]) * _coverage(y, out[0]) if fill is not None else None
    x = _to_canvas(x.mul_((wide / out[1])[:, None, None]), left, wide).mul_(2 / width).sub_(1)
    y = _to_canvas(y.mul_((tall / out[0])[:, None, None]), top, tall).mul_(2 / height).sub_(1)
    read = F.grid_sample(pixels, torch.stack((x, y), dim=-1), mode="bilinear", padding_mode="zeros", align_corners=False)
    if fill is None or inside is None:
        return read
    return torch.lerp(fill.view(-1, 1, 1).expand_as(read), read, inside[:, None])


def _positions(matrices: Tensor, out: Pair) -> tuple[Tensor, Tensor]:
    """Return x and y of the input position of each output pixel's centre."""
    rows = torch.arange(out[0], device=matrices.device)[:, None] + 0.5
    columns = torch.arange(out[1], device=matrices.device) + 0.5
    entries = matrices[:, :2, :, None, None]  # (B, 2, 3, 1, 1)
    both = entries[:, :, 0] * columns + (entries[:, :, 1] * rows + entries[:, :, 2])  # (B, 2, h, w)
    return both[:, 0], both[:, 1]


def _coverage(position: Tensor, side: int) -> Tensor:
    """Return the weight of a bilinear sample within 0 … side."""
    return torch.minimum(position + 0.5, side + 0.5 - position).clamp_(0, 1)


def _to_canvas(position: Tensor, start: Tensor, extent: Tensor) -> Tensor:
    """Map a coordinate of the box to the canvas, clamped to the centres of the box's outermost pixels."""
    start, extent = start[:, None, None], extent[:, None, None]
    return torch.maximum(torch.minimum(position + start, start + extent - 0.5), start + 0.5)


def _halve_large(pixels: Tensor, sizes: Tensor, boxes: Tensor, out: Pair) -> tuple[Tensor, Tensor]:
    """Average pairs of rows and columns of each sample until no box is twice `out` or more."""
    times = torch.log2(boxes[:, 2:] / torch.tensor(out, device=boxes.device)).floor().clamp_(min=0).long()  # (B, 2)
    most = times.amax(0).tolist()
    if not any(most):
        return pixels, boxes
    sizes, boxes = sizes.clone(), boxes.clone()
    for axis, count in enumerate(most):
        for done in range(count):
            rows = (times[:, axis] > done).nonzero()[:, 0]
            at, extents = (value.to(pixels.device, non_blocking=True) for value in (rows, sizes[rows, axis]))
            pixels[at] = _halve_axis(pixels[at], extents, dim=2 + axis)
            sizes[rows, axis] = (sizes[rows, axis] + 1) // 2
            boxes[rows[:, None], torch.tensor([axis, axis + 2], device=rows.device)] /= 2
    return pixels, boxes


def _halve_axis(pixels: Tensor, extents: Tensor, *, dim: int) -> Tensor:
    """Halve images in one direction, on a canvas of the same size. A last row without a partner is kept."""
    side = pixels.shape[dim]
    pixels = pixels.movedim(dim, -1)  # the direction to halve comes last
    even = F.pad(pixels, (0, side % 2))
    even = even.reshape(*even.shape[:-1], -1, 2)  # (b, C, ?, side/2, 2)
    present = torch.arange(even.shape[-2] * 2, device=pixels.device) < extents[:, None]
    partners = present.view(-1, 1, 1, even.shape[-2], 2).sum(-1).clamp_(min=1)
    return F.pad(even.sum(-1) / partners, (0, side - even.shape[-2])).movedim(-1, dim)


def is_shift(boxes: Float[Tensor, "B 4"], *, out: Pair) -> bool:
    """Return True if every box has the output's size and integer position, so that no resampling is needed."""
    same = boxes[:, 2:] == torch.tensor(out, device=boxes.device)
    return bool((same & (boxes[:, :2] == boxes[:, :2].round())).all())


def shift(
    images: UInt8[Tensor, "B C H W"], *, boxes: Float[Tensor, "B 4"], flips: Bool[Tensor, " B"], out: Pair
) -> UInt8[Tensor, "B C h w"]:
    """Compute `resample` for boxes that pass `is_shift` by moving whole pixels: exact, and many times as fast."""
    count, channels, height, width = images.shape
    framed = F.pad(images, (1, 1, 1, 1))  # one pixel of zeros represents everything outside
    start = (boxes[:, :2].long() + 1).to(images.device, non_blocking=True)
    flips = flips.to(images.device, non_blocking=True)
    rows = torch.arange(out[0], device=images.device) + start[:, :1]  # (B, h)
    columns = torch.arange(out[1], device=images.device).expand(count, -1)
    columns = torch.where(flips[:, None], out[1] - 1 - columns, columns) + start[:, 1:]  # (B, w)
    rows, columns = rows.clamp_(0, height + 1), columns.clamp_(0, width + 1)
    places = rows[:, :, None] * (width + 2) + columns[:, None, :]  # (B, h, w)
    places = places.view(count, 1, -1).expand(-1, channels, -1)
    return framed.flatten(2).gather(2, places).view(count, channels, *out)
