"""What every method begins with: which model, which images, which token asks, which class is meant."""

# B batch · C channels · H W image · T prefix tokens · L patches · N tokens = T + L

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from vitrail.config import Pair, Preprocessing, nearest, pair
from vitrail.data.augment import normalise
from vitrail.data.decode import Picture, eval_view
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.models import ViT
from vitrail.models.vit import grid_of

Images = Tensor | Picture | Sequence[Picture]
"""Normalised, (B, C, H, W); or pictures, which pass through the model's own evaluation view."""
Query = Literal["cls"] | tuple[int, int]
"""The class token; or the patch that holds the pixel (x, y), counted from the upper left corner."""
Target = int | str | Sequence[int | str] | None
"""A class by number or by name, for all images or for each; None is the one that the model predicts."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A model in front of images."""

    model: ViT
    images: Float[Tensor, "B C H W"]
    """As the model takes them, on its device and in its type; padded where that was asked for."""
    sizes: Int64[Tensor, "B 2"] | None
    """Height and width of each image on its canvas, where the model is told them."""
    own: Int64[Tensor, "B 2"]
    """Height and width of what is an image, without padding."""
    patch: Pair
    """What the images are cut into, (height, width)."""
    grid: Pair
    """Patches down and across."""
    pixels: UInt8[Tensor, "B C H W"] | None
    """What the model sees, as it is drawn; None where the model does not say how its images are normalised."""
    names: tuple[str, ...]
    """What the images are called."""

    def embed(self) -> tuple[Float[Tensor, "B N D"], Tensor | None]:
        """The tokens before the first block, and the mask of those that are there."""
        return self.model.embed(self.images, pad=False, sizes=self.sizes, patch_size=self.patch)

    def patches(self, rows: Float[Tensor, "B N"]) -> Float[Tensor, "B gh gw"]:
        """What rows over the tokens say of the patches, as a grid on the CPU in float32."""
        return rows[:, self.model.prefix_tokens :].unflatten(1, self.grid).float().cpu()

    def token(self, query: tuple[int, int]) -> int:
        """The token of the patch at a pixel (x, y). Raises ValueError for one outside, or in some image's padding."""
        x, y = query
        height, width = self.images.shape[-2:]
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"query {x},{y} is outside the image of {width}x{height} px; "
                f"use x from 0 to {width - 1}, y from 0 to {height - 1}"
            )
        for number, (height, width) in enumerate(self.own.tolist()):
            if x >= width or y >= height:
                raise ValueError(
                    f"query {x},{y} is in the padding of image {number} ({width}x{height} px); use one inside all images"
                )
        return self.model.prefix_tokens + y // self.patch[0] * self.grid[1] + x // self.patch[1]

    def targets(self, target: Target, logits: Float[Tensor, "B K"]) -> Int64[Tensor, " B"]:
        """The class that is meant for each image, as a number.

        Raises ValueError for one that the model has not, and for logits that are not finite: they speak for no class.
        """
        require_finite_output(logits, "output", so="it speaks for no class")
        if target is None:
            return logits.argmax(dim=1)
        each = [target] * len(logits) if isinstance(target, int | str) else list(target)
        if len(each) != len(logits):
            raise ValueError(f"{len(each)} classes for {len(logits)} images; give one, or one for each")
        return torch.tensor([self.number(one) for one in each], device=logits.device)

    def number(self, target: int | str) -> int:
        """A class as a number."""
        classes, count = self.model.classes, self.model.config.num_classes
        if isinstance(target, str):
            if target in classes:
                return classes.index(target)
            if not target.isdecimal():
                known = nearest(target, list(classes)) or f"; it has {count} classes, by number or by name"
                raise ValueError(f'class "{target}" is none of this model\'s{known}')
        number = int(target)
        if not 0 <= number < count:
            raise ValueError(f"class {number} does not exist; this model has classes 0 to {count - 1}")
        return number

    def called(self, number: int) -> str:
        """A class's name, where it has one."""
        return self.model.classes[number] if self.model.classes else f"class {number}"


def require_finite_output(values: Float[Tensor, B * rest], name: str, *, so: str) -> None:
    """Raise ValueError where some value of an image is not finite: what would be shown of it means nothing."""
    if wrong := int((~values.isfinite().flatten(1).all(dim=1)).sum()):
        raise ValueError(
            f"the model's {name} is not finite for {wrong} of {len(values)} images, so {so}; "
            "look whether the weights are finite"
        )


@contextmanager
def scene(
    model: nn.Module,
    images: Images,
    *,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Iterator[Scene]:
    """The model without what wraps it, in evaluation mode as long as this lasts, and the images as it takes them.

    `pad`, `sizes` and `patch_size` are as `ViT.forward` takes them; with `img_size`, pictures get another size than the
    model's own. Raises ValueError for a model that is no ViT, and for images that it can't take.
    """
    vit = unwrapped(model)
    weight = next(vit.parameters())
    names: tuple[str, ...]
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"images of shape {tuple(images.shape)} are not (B, C, H, W); one image is images[None]")
        if not images.is_floating_point():
            raise ValueError(f"images of type {images.dtype} are no normalised tensor; give pictures, or normalise them")
        if img_size is not None:
            raise ValueError(f"img_size {img_size} is for pictures, and these are a tensor already; leave it out")
        names = tuple(f"#{index}" for index in range(len(images)))
    else:
        images, names = viewed(vit, [images] if _is_one(images) else list(images), img_size)  # type: ignore[arg-type, list-item]
    images = images.to(weight.device, weight.dtype)
    images = images.clone() if images.is_inference() else images
    patch = pair(vit.config.patch_size if patch_size is None else patch_size)
    height, width = images.shape[-2:]
    if min(height, width) < 1 or height < patch[0] or width < patch[1]:
        raise ValueError(
            f"an image of {width}x{height} px is smaller than one patch of {patch[1]}x{patch[0]}; "
            "use a larger one, or another model"
        )
    own = torch.tensor([height, width]).expand(len(images), 2) if sizes is None else sizes.cpu()
    if pad:
        images = nn.functional.pad(images, (0, -width % patch[1], 0, -height % patch[0]))
    if sizes is not None and bool(((own < 1) | (own > torch.tensor([height, width]))).any()):
        raise ValueError(
            f"sizes from {own.min().item()} to {own.max().item()} px are not those of images on a canvas of {width}x{height}"
        )
    grid = grid_of((images.shape[-2], images.shape[-1]), patch, or_else="pad=True" if img_size is None else "another img_size")
    sizes = None if sizes is None else sizes.to(images.device)
    with torch.inference_mode(False), torch.no_grad(), in_eval_mode(vit):  # gradients need what inference mode leaves out
        yield Scene(vit, images, sizes, own, patch, grid, shown(images, vit.preprocessing), names)


def viewed(
    model: ViT, pictures: Sequence[Picture], img_size: int | Pair | None
) -> tuple[Float[Tensor, "B C H W"], tuple[str, ...]]:
    """Pictures as the model takes them, and what they are called."""
    if not pictures:
        raise ValueError("there are no images; give at least one")
    if model.preprocessing is None:
        raise ValueError("this model does not say what happens to its images; give them as a normalised tensor (B, C, H, W)")
    how = model.preprocessing
    if img_size is not None:
        how = Preprocessing(**{**vars(how), "img_size": pair(img_size)})
    views = torch.stack([eval_view(picture, how) for picture in pictures])
    names = (
        str(picture) if isinstance(picture, str | Path) else str(getattr(picture, "filename", "") or f"#{index}")
        for index, picture in enumerate(pictures)
    )
    return normalise(views, how), tuple(names)


def unwrapped(model: nn.Module) -> ViT:
    """The ViT itself, out of what `torch.compile` or DDP makes of it. Raises ValueError for another model."""
    while not isinstance(model, ViT):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            name = getattr(getattr(model, "config", None), "name", None) or type(model).__name__
            raise ValueError(f"{name} has no tokens that attend to each other; maps are made of Vision Transformers")
        model = inner
    return model


def shown(images: Float[Tensor, "B C H W"], how: Preprocessing | None) -> UInt8[Tensor, "B C H W"] | None:
    """Normalised images as pixels again, on the CPU."""
    if how is None or images.shape[1] != len(how.mean):
        return None
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (how.mean, how.std))
    return ((images.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def require_layer(model: ViT, layer: int) -> int:
    """The layer, counted from 0. Raises ValueError for one that does not exist."""
    depth = model.config.depth
    if not -depth <= layer < depth:
        raise ValueError(f"layer {layer} does not exist; this model has layers 0 to {depth - 1} (or -{depth} to -1)")
    return layer % depth


def require_head(model: ViT, head: int) -> int:
    """The head, counted from 0. Raises ValueError for one that does not exist."""
    heads = model.config.num_heads
    if not 0 <= head < heads:
        raise ValueError(f'head {head} does not exist; this model has heads 0 to {heads - 1}, or "mean", "max", "min" of them')
    return head


def _is_one(images: object) -> bool:
    return isinstance(images, str | Path | bytes | Image.Image | np.ndarray)


def joined(notes: Iterable[str]) -> str:
    """Notes that say something, one behind the other."""
    return "; ".join(note for note in notes if note)
