"""Pictures of reconstructions: original, what the model sees, and its prediction, one image in each row."""

# B batch · C channels · H W image

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor

from vitrail.data.augment import normalise
from vitrail.data.dataset import Split
from vitrail.settings import Preprocessing

PICTURED = 8
"""Maximum number of images of a split that a picture shows."""
_GAP_PX, _SIDE_PX, _HIDDEN = 4, 96, 128
Images = Float[Tensor, "B C H W"]


def pictured_images(
    split: Split, preprocessing: Preprocessing, device: torch.device
) -> tuple[Images, Int64[Tensor, " B"]] | None:
    """Read the normalised images of a picture, spread over the split; return them and their indexes, or None without any."""
    chosen = torch.linspace(0, len(split) - 1, min(PICTURED, len(split))).round().long()
    raw, failures = split.read(chosen)
    split.record(failures)
    if not len(raw):
        return None
    return normalise(raw.images.to(device), preprocessing), raw.indexes.cpu()


def reconstruction_sheet(
    images: Images, predicted: Images, hidden: Bool[Tensor, "B 1 H W"], *, preprocessing: Preprocessing
) -> Image.Image:
    """Draw images, the same with hidden pixels grey, and the same with the prediction there. All are normalised.

    Images of 1 or 3 channels have their colours; of others, the mean of all channels is shown.
    """
    whole = _to_bytes(images.float(), preprocessing)
    rebuilt = _to_bytes(torch.where(hidden, predicted.float(), images.float()), preprocessing)
    return _sheet([whole, torch.where(hidden, torch.full_like(whole, _HIDDEN), whole), rebuilt])


def _to_bytes(images: Images, preprocessing: Preprocessing) -> Tensor:
    """Convert normalised images to pixels 0 … 255 (B, 1 or 3, H, W)."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    pixels = (images * std + mean).clamp(0, 1) * 255
    return (pixels if pixels.shape[1] in (1, 3) else pixels.mean(dim=1, keepdim=True)).round().byte()


def _sheet(columns: list[Tensor]) -> Image.Image:
    """Arrange columns of images (B, c, H, W) on white; small ones are enlarged by a whole factor."""
    count, channels, height, width = columns[0].shape
    factor = max(1, _SIDE_PX // max(height, width))
    tall, wide = height * factor + _GAP_PX, width * factor + _GAP_PX
    mode = "L" if channels == 1 else "RGB"
    sheet = Image.new(mode, (len(columns) * wide + _GAP_PX, count * tall + _GAP_PX), "white")
    for place, column in enumerate(columns):
        for row, pixels in enumerate(column.cpu().permute(0, 2, 3, 1).numpy()):
            tile = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            sheet.paste(tile, (_GAP_PX + place * wide, _GAP_PX + row * tall))
    return sheet
