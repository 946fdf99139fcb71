"""Digital corruptions: contrast, elastic transform, pixelate and JPEG compression."""

# B batch · C channels · H W image

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.data.draws import Draws
from vitrail.evaluate.corruptions.filters import Images, gaussian_filter


def contrast(images: Images, draws: Draws, *, factor: float) -> Images:
    """Bring each channel nearer to its mean over the image."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)


def elastic_transform(images: Images, draws: Draws, *, amount: float, sigma: float, affine: float) -> Images:
    """Move every pixel by smoothed noise, after an affine map that moves three points at random.

    All three are shares of the short side: the noise is uniform within ± amount, and the points move by ± affine.
    """
    height, width = images.shape[2:]
    side = min(height, width)
    if affine:
        images = draw_affine(images, draws, reach=affine * side)
    if not amount:
        return images
    moves = [
        gaussian_filter(
            2 * draws.uniform(f"elastic {axis}", height * width).view(-1, 1, height, width) - 1,
            sigma * side,
            truncate=3.0,
            edge="symmetric",
        )[:, 0]
        * (amount * side)
        for axis in ("x", "y")
    ]
    rows, columns = (torch.arange(length, device=images.device) + 0.5 for length in (height, width))
    x, y = 2 * (columns + moves[0]) / width - 1, 2 * (rows[:, None] + moves[1]) / height - 1
    return F.grid_sample(images, torch.stack((x, y), dim=-1), padding_mode="reflection", align_corners=False)


def draw_affine(images: Images, draws: Draws, *, reach: float) -> Images:
    """Apply the affine map that moves three corners of a square in the middle by up to `reach` pixels each way."""
    height, width = images.shape[2:]
    x, y, half = width // 2, height // 2, max(1, min(height, width) // 3)
    points = torch.tensor([[x + half, y + half], [x + half, y - half], [x - half, y - half]], dtype=torch.float32)
    moved = points + reach * (2 * draws.uniform("elastic points", 6).view(-1, 3, 2).cpu() - 1)
    back = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), points.expand_as(moved))  # (B, 3, 2): moved -> points
    rows, columns = (torch.arange(length, dtype=torch.float32) for length in (height, width))
    place = torch.stack((columns.expand(height, -1), rows[:, None].expand(-1, width), torch.ones(height, width)), dim=-1)
    read = (place.view(1, -1, 3) @ back).view(-1, height, width, 2)
    grid = 2 * read / torch.tensor([max(1, width - 1), max(1, height - 1)]) - 1
    return F.grid_sample(images, grid.to(images), padding_mode="reflection", align_corners=True)


def pixelate(images: Images, draws: Draws, *, factor: float) -> Images:
    """Shrink by averaging whole pixels, and enlarge by repeating them."""
    for dim in (2, 3):
        old = images.shape[dim]
        new = max(1, int(old * factor))
        small = (box_weights(old, new).to(images) @ images.movedim(dim, -2)).movedim(-2, dim)
        place = ((torch.arange(old, device=images.device) + 0.5) * (new / old)).long().clamp(max=new - 1)
        images = small.index_select(dim, place)
    return images


def box_weights(old: int, new: int) -> Float[Tensor, "{new} {old}"]:
    """Return the matrix that shrinks one side by the mean of the pixels whose centres lie in a new one, as Pillow's BOX."""
    scale = old / new
    inside = (torch.arange(old, dtype=torch.float64) + 0.5) / scale - (torch.arange(new, dtype=torch.float64)[:, None] + 0.5)
    weights = ((inside > -0.5) & (inside <= 0.5)).float()
    return weights / weights.sum(1, keepdim=True)


# --------------------------------------------------------------------------------------------------------------------
# JPEG

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Steps of the coefficients of brightness at quality 50 (ITU-T T.81, table K.1)."""
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)
"""The same of colour (table K.2)."""
TO_COLOUR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""Y, Cb and Cr of RGB (JFIF)."""


def jpeg_compression(images: Images, draws: Draws, *, quality: int) -> Images:
    """Compress and decompress: RGB with colours at half the resolution, as Pillow does; other channels one by one."""
    levels = (images * 255).round()
    if images.shape[1] != 3:
        return code_plane(levels, LUMINANCE, quality=quality) / 255
    matrix = torch.tensor(TO_COLOUR, device=images.device)
    planes = torch.einsum("dc,bchw->bdhw", matrix, levels).round()  # colours around 0
    height, width = images.shape[2:]
    light = code_plane(planes[:, :1], LUMINANCE, quality=quality)
    colours = F.avg_pool2d(F.pad(planes[:, 1:], (0, width % 2, 0, height % 2), mode="replicate"), 2).round()
    colours = code_plane(colours + 128, CHROMINANCE, quality=quality) - 128
    colours = F.interpolate(colours, scale_factor=2, mode="bilinear", align_corners=False)[:, :, :height, :width]
    back = torch.linalg.inv(matrix.double().cpu()).float().to(images.device)
    return torch.einsum("dc,bchw->bdhw", back, torch.cat((light, colours.round()), dim=1)).round().clamp(0, 255) / 255


def code_plane(
    levels: Float[Tensor, "B C H W"], table: tuple[tuple[int, ...], ...], *, quality: int
) -> Float[Tensor, "B C H W"]:
    """Quantise the cosine transform of blocks of 8x8 levels from 0 to 255, and return the levels that are read back."""
    height, width = levels.shape[2:]
    full = F.pad(levels, (0, -width % 8, 0, -height % 8), mode="replicate") - 128
    blocks = full.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (B, C, rows, columns, 8, 8)
    cosines = cosine_matrix().to(levels)
    steps = quantisation(table, quality=quality).to(levels)
    coefficients = (cosines @ blocks @ cosines.T / steps).round() * steps
    read = (cosines.T @ coefficients @ cosines + 128).round().clamp(0, 255)
    return read.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def cosine_matrix() -> Float[Tensor, "8 8"]:
    """Return the orthogonal cosine transform of eight values (DCT-II)."""
    places = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos(math.pi / 8 * (places + 0.5) * places[:, None]) / 2
    cosines[0] /= math.sqrt(2)
    return cosines.float()


def quantisation(table: tuple[tuple[int, ...], ...], *, quality: int) -> Float[Tensor, "8 8"]:
    """Return the steps of a quality from 1 to 100, as the Independent JPEG Group scales them."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * percent + 50) // 100).clamp(1, 255).float()
