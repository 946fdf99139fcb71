"""Principal components of patch features as colours, at every evaluation of a run: pca.png, one column more each time.

Each column is also kept as pca-columns/step_….png with one pixel for each patch, which is all that the next column, and a
resumed run, needs of it.
"""

# B images · N tokens · D width · gh gw grid · M patches of all images

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vitrail.data.augment import normalise
from vitrail.data.dataset import Split
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.models.backbone import Backbone, Features
from vitrail.models.device import autocast
from vitrail.settings import Preprocessing
from vitrail.train.folder import PATCH_COLORS, PATCH_COLUMNS
from vitrail.weights.run_folder import write_atomically

PICTURED = 8
"""Maximum number of images."""
COLUMNS = 12
"""Maximum number of evaluations in the picture, spread evenly from the first to the last."""
_SIDE_PX, _GAP_PX, _TEXT_PX = 72, 4, 22


@dataclass(frozen=True, eq=False)
class PatchColors:
    """Images, and three principal components of their patches."""

    pictures: UInt8[Tensor, "B C H W"]
    components: Float[Tensor, "B gh gw 3"]
    """From 0 to 1, in any order and with any sign."""


@torch.no_grad()
def draw_patch_colors(
    model: Backbone,
    split: Split,
    *,
    preprocessing: Preprocessing,
    device: torch.device,
    autocast_dtype: torch.dtype | None = None,
) -> PatchColors | None:
    """Compute three principal components over all patches of some images of a split in evaluation view.

    The patches are tokens, or the cells of the last feature map. None for a model without either, and without readable images.
    """
    from vitrail.explain.methods.pca import components, to_unit_range  # matplotlib's import takes a second

    chosen = torch.linspace(0, len(split) - 1, min(PICTURED, len(split))).round().long()
    raw, failures = split.read(chosen)
    split.record(failures)
    if not len(raw):
        return None
    with in_eval_mode(model), autocast(device, autocast_dtype):
        features = model.features(normalise(raw.images.to(device), preprocessing))
    cells = patch_features(features)
    if cells is None or cells.shape[1] * cells.shape[2] < 2:
        return None
    rows = cells.flatten(0, 2).cpu().double()  # (M, D)
    parts = to_unit_range(components(rows, 3)[0])
    return PatchColors(raw.images.cpu(), parts.float().unflatten(0, cells.shape[:3]))


def patch_features(features: Features) -> Float[Tensor, "B gh gw D"] | None:
    """Return tokens on their grid, or the last feature map; None for features without either."""
    if features.tokens is not None and features.grid is not None:
        return features.tokens[:, features.prefix :].unflatten(1, features.grid).float()
    return None if features.pyramid is None else features.pyramid[-1].permute(0, 2, 3, 1).float()


def align(now: Float[np.ndarray, "M 3"], before: Float[np.ndarray, "M 3"]) -> Float[np.ndarray, "M 3"]:
    """Permute and invert components from 0 to 1, so that each is as much as possible like that of the column before.

    Of the six orders the one with the greatest sum of absolute correlations is taken, then the sign of each correlation.
    """
    centred = [values - values.mean(axis=0) for values in (now, before)]
    a, b = (values / np.maximum(np.linalg.norm(values, axis=0), 1e-12) for values in centred)
    likeness = a.T @ b  # (now, before)
    order = max(itertools.permutations(range(3)), key=lambda order: sum(abs(likeness[order[k], k]) for k in range(3)))
    turned = [now[:, order[k]] if likeness[order[k], k] >= 0 else 1 - now[:, order[k]] for k in range(3)]
    return np.stack(turned, axis=1)


def write_strip(folder: Path, colors: PatchColors, *, step: int) -> Path:
    """Write the column of a step, aligned to the one before, and the picture of all columns. Return the picture's path."""
    columns = folder / PATCH_COLUMNS
    columns.mkdir(exist_ok=True)
    images, height, width, _ = colors.components.shape
    now, earlier = colors.components.flatten(0, 2).numpy(), steps_of(columns, before=step)
    if earlier:
        before = read_column(columns, earlier[-1]).reshape(-1, 3)
        if len(before) == len(now):  # the images may be others where some could not be read
            now = align(now, before)
    tiles = (255 * now).round().astype(np.uint8).reshape(images * height, width, 3)
    with write_atomically(columns / column_name(step)) as draft:
        Image.fromarray(tiles).save(draft, format="PNG")
    shown = thin([*earlier, step], COLUMNS)
    tall = [read_column(columns, each) for each in shown]
    tall = [column for column in tall if column.shape == (images * height, width, 3)]
    picture = strip(colors.pictures, tall, titles=[f"{each:,}" for each in shown[-len(tall) :]])
    with write_atomically(folder / PATCH_COLORS) as draft:
        picture.save(draft, format="PNG")
    return folder / PATCH_COLORS


def column_name(step: int) -> str:
    """Return the file name of a step's column."""
    return f"step_{step:06d}.png"


def steps_of(columns: Path, *, before: int) -> list[int]:
    """Return the steps of the columns before a step, in order: later ones are of a part that a resumed run repeats."""
    found = (re.fullmatch(r"step_(\d+)\.png", path.name) for path in columns.iterdir())
    return sorted(step for match in found if match and (step := int(match[1])) < before)


def read_column(columns: Path, step: int) -> Float[np.ndarray, "rows columns 3"]:
    """Read the colours of a step, from 0 to 1: the images are below each other, one pixel for each patch."""
    with Image.open(columns / column_name(step)) as picture:
        return np.asarray(picture, dtype=np.float32) / 255


def thin(steps: list[int], most: int) -> list[int]:
    """Return at most `most` of the steps, spread evenly, with the first and the last."""
    if len(steps) <= most:
        return steps
    return [steps[round(k * (len(steps) - 1) / (most - 1))] for k in range(most)]


def strip(pictures: UInt8[Tensor, "B C H W"], columns: list[np.ndarray], *, titles: list[str]) -> Image.Image:
    """Draw images below each other, and beside each one its colours at every step. A title is above each column."""
    from vitrail.explain.draw import picture as to_picture

    rows = len(pictures)
    height, width = pictures.shape[-2:]
    scale = _SIDE_PX / max(height, width)
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    size = (1 + len(columns)) * (cell[0] + _GAP_PX) + _GAP_PX, rows * (cell[1] + _GAP_PX) + _GAP_PX + _TEXT_PX
    sheet = Image.new("RGB", size, "white")
    for row in range(rows):
        top = _TEXT_PX + _GAP_PX + row * (cell[1] + _GAP_PX)
        original = to_picture(pictures[row]).convert("RGB").resize(cell, Image.Resampling.BILINEAR)
        sheet.paste(original, (_GAP_PX, top))
        for place, column in enumerate(columns, start=1):
            part = np.split(column, rows)[row]
            tile = Image.fromarray((255 * part).round().astype(np.uint8)).resize(cell, Image.Resampling.NEAREST)
            sheet.paste(tile, (_GAP_PX + place * (cell[0] + _GAP_PX), top))
    write_titles(sheet, ["step", *titles], step=cell[0] + _GAP_PX)
    return sheet


def write_titles(sheet: Image.Image, titles: list[str], *, step: int) -> None:
    """Write a title above each column."""
    from PIL import ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for place, title in enumerate(titles):
        draw.text((_GAP_PX + place * step, 4), title, fill=(40, 40, 40), font=font)
