"""Inputs of every method: the backbone and what it offers, its images, their patch grid, query token and target class."""

# B batch · C channels · H W image · T prefix tokens · L patches · N tokens = T + L · gh gw grid · K classes

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from vitrail.data.augment import normalise
from vitrail.data.decode import Picture, eval_view
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.explain.table import NEEDS, Need, require_offered
from vitrail.models import ViT
from vitrail.models.backbone import Backbone, Features
from vitrail.models.vit import grid_of
from vitrail.settings import CUSTOM, Pair, Preprocessing, nearest, pair
from vitrail.settings.families import FAMILIES

Images = Tensor | Picture | Sequence[Picture]
"""Normalised, (B, C, H, W); or pictures, which pass through the model's own evaluation view."""
Query = Literal["cls"] | tuple[int, int]
"""The class token; or the patch that holds the pixel (x, y), counted from the upper left corner."""
Target = int | str | Sequence[int | str] | None
"""A class by number or by name, for all images or for each; None is the predicted one."""


# --------------------------------------------------------------------------------------------------------------------
# Backbones, and what they offer


def backbone_of(model: nn.Module) -> Backbone:
    """Return the backbone inside the wrappers of `torch.compile` and DDP. Raises ValueError for any other module."""
    while not isinstance(model, Backbone):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise ValueError(
                f"{model_name(model)} is no backbone of Vitrail, so it says nothing of tokens and feature maps; "
                "use a model of vitrail.load or vitrail.create_model"
            )
        model = inner
    return model


def model_name(model: nn.Module) -> str:
    """Return a model's name in messages: that of its config, or of its class where the shape has no name."""
    config = getattr(model, "config", None)
    family = next((family for family in FAMILIES.values() if type(config) is family.config), None)
    name = getattr(config, "name", None) if family is None else family.name_of(config)
    return type(model).__name__ if name is None or name.endswith(CUSTOM) else name


def require_global_attention(model: Backbone, what: str) -> ViT:
    """Return a backbone as what it promises to look like, a ViT. Raises ValueError for one without global attention."""
    if not model.global_attention:
        raise ValueError(f"{what} needs {NEEDS['attention']}, which {model_name(model)} does not have; use a ViT")
    return cast(ViT, model)


class Spatial(NamedTuple):
    """The grid of a backbone's features on its images, and what the backbone offers to methods."""

    offers: frozenset[Need]
    grid: Pair | None
    """Cells down and across of the coarsest features; None for features without places."""
    patch: Pair | None
    """Height and width of a cell, in pixels."""
    prefix: int
    """Tokens before the patch tokens."""
    positions: int
    """Tokens, or cells of the finest map, of one image: what the memory of a pass grows with."""


@torch.no_grad()
def spatial(model: Backbone, images: Float[Tensor, "B C H W"]) -> Spatial:
    """Run the backbone on one of the images and read the grid off its features.

    The cell of a pyramid's last map is the backbone's `stride`, or larger where the map would not cover the image. Where it
    states none, it is the product of the ratios of each level's side to the next, rounded up: exact for levels that pad what
    they do not divide.
    """
    head: frozenset[Need] = frozenset({"head"} if model.config.num_classes else ())
    features: Features = model.features(images[:1])
    if features.pyramid is not None:
        sides = [tuple(images.shape[-2:]), *(tuple(level.shape[-2:]) for level in features.pyramid)]
        down, across = (math.prod(-(-a[axis] // b[axis]) for a, b in pairwise(sides)) for axis in (0, 1))
        grid = (sides[-1][0], sides[-1][1])
        if features.stride is not None:
            down, across = (max(features.stride[axis], -(-sides[0][axis] // grid[axis])) for axis in (0, 1))
        patch = (down, across)
        positions = max(height * width for height, width in sides[1:])
    elif features.tokens is not None and features.grid is not None:
        grid = features.grid
        patch = (-(-images.shape[-2] // grid[0]), -(-images.shape[-1] // grid[1]))
        positions = features.tokens.shape[1]
    else:
        return Spatial(head, None, None, 0, 1)
    offers: set[Need] = {"grid", *head}
    if features.tokens is not None and features.grid == grid:
        offers |= {"tokens", "rows"} if model.class_attention_layers else {"tokens"}
    return Spatial(
        offers=frozenset(offers),
        grid=grid,
        patch=patch,
        prefix=features.prefix,
        positions=positions,
    )


def offers_of(model: nn.Module) -> frozenset[Need]:
    """Return what a model offers to methods. One with global attention offers everything; another is run on a blank image."""
    backbone = backbone_of(model)
    if backbone.global_attention:
        return frozenset(NEEDS) if backbone.config.num_classes else frozenset(NEEDS) - {"head"}
    weight = next(backbone.parameters())
    blank = weight.new_zeros(1, backbone.config.in_channels, *pair(backbone.config.img_size))
    with torch.inference_mode(False), in_eval_mode(backbone):
        return spatial(backbone, blank).offers


# --------------------------------------------------------------------------------------------------------------------
# The scene: a backbone and its images


@dataclass(frozen=True, eq=False)
class Scene:
    """A backbone, the images of one call, and their patch grid."""

    model: Backbone
    images: Float[Tensor, "B C H W"]
    """As the model takes them, on its device and in its type; padded where asked for."""
    sizes: Int64[Tensor, "B 2"] | None
    """Height and width of each image on its canvas, where the model gets them."""
    image_sizes: Int64[Tensor, "B 2"]
    """Height and width of each image in pixels, without padding."""
    patch: Pair
    """Height and width of a patch, in pixels."""
    grid: Pair
    """Patches down and across."""
    prefix: int
    """Tokens before the patch tokens."""
    positions: int
    """Tokens, or cells of the finest feature map, of one image."""
    pixels: UInt8[Tensor, "B C H W"] | None
    """The images as drawn; None where the model does not say how its images are normalised."""
    names: tuple[str, ...]
    """Names of the images."""

    @property
    def vit(self) -> ViT:
        """The model, for what is made of global attention. Raises ValueError for a model without."""
        return require_global_attention(self.model, "this map")

    def logits(self, images: Float[Tensor, "b C H W"], sizes: Int64[Tensor, "b 2"] | None) -> Float[Tensor, "b K"]:
        """Run the model on images of the scene's shape, cut into its patches."""
        if self.model.global_attention:
            return self.vit.forward(images, sizes=sizes, patch_size=self.patch)
        return self.model.forward(images)

    def patches(self, rows: Float[Tensor, "B N"]) -> Float[Tensor, "B gh gw"]:
        """Return the part of token rows that belongs to the patches, as a grid on the CPU in float32."""
        return rows[:, self.prefix :].unflatten(1, self.grid).float().cpu()

    def present(self) -> Bool[Tensor, "B gh gw"]:
        """True for the patches that hold a pixel of their image."""
        return present(self.image_sizes, self.patch, self.grid)

    def token(self, query: tuple[int, int]) -> int:
        """Return the index of the token whose patch holds a pixel (x, y).

        Raises ValueError for a pixel outside the canvas, or in some image's padding.
        """
        x, y = query
        height, width = self.images.shape[-2:]
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"query {x},{y} is outside the image of {width}x{height} px; "
                f"use x from 0 to {width - 1}, y from 0 to {height - 1}"
            )
        for number, (height, width) in enumerate(self.image_sizes.tolist()):
            if x >= width or y >= height:
                raise ValueError(
                    f"query {x},{y} is in the padding of image {number} ({width}x{height} px); use one inside all images"
                )
        return self.prefix + y // self.patch[0] * self.grid[1] + x // self.patch[1]

    def targets(self, target: Target, logits: Float[Tensor, "B K"]) -> Int64[Tensor, " B"]:
        """Return the target class of each image, the predicted one unless given.

        Raises ValueError for a class that the model does not have, and for logits that are not finite.
        """
        require_finite_output(logits, "output", so="it speaks for no class")
        if target is None:
            return logits.argmax(dim=1)
        each = [target] * len(logits) if isinstance(target, int | str) else list(target)
        if len(each) != len(logits):
            raise ValueError(f"{len(each)} classes for {len(logits)} images; give one, or one for each")
        return torch.tensor([self.class_number(one) for one in each], device=logits.device)

    def class_number(self, target: int | str) -> int:
        """Return a class's number. Raises ValueError for a class that the model does not have."""
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

    def class_name(self, number: int) -> str:
        """Return a class's name, or its number where it has none."""
        return self.model.classes[number] if self.model.classes else f"class {number}"


@contextmanager
def open_scene(
    model: nn.Module,
    images: Images,
    *,
    method: str | None = None,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Iterator[Scene]:
    """Prepare images for a model, which is unwrapped and in evaluation mode within the context.

    `method` is the one that is going to run. `pad`, `sizes` and `patch_size` are as `ViT.forward` takes them; with `img_size`,
    pictures get another size than the model's own. Raises ValueError for a model that does not offer what the method needs,
    and for images and views that the model does not take.
    """
    backbone = backbone_of(model)
    if method is not None and backbone.global_attention:
        require_offered(method, offers_of(backbone), model=model_name(backbone))
    images, names = _as_tensor(backbone, images, img_size)
    weight = next(backbone.parameters())
    images = images.to(weight.device, weight.dtype)
    images = images.clone() if images.is_inference() else images
    with torch.inference_mode(False), torch.no_grad(), in_eval_mode(backbone):  # gradients need more than inference mode keeps
        if backbone.global_attention:
            view: dict[str, Any] = {"pad": pad, "sizes": sizes, "patch_size": patch_size, "resizable": img_size is not None}
            yield _scene_of_tokens(cast(ViT, backbone), images, names, **view)
        else:
            if pad or sizes is not None or patch_size is not None:
                raise ValueError(
                    f"{model_name(backbone)} takes whole images in patches of its own; leave pad, sizes and patch_size out"
                )
            yield _scene_of_maps(backbone, images, names, method=method)


def _as_tensor(
    model: Backbone, images: Images, img_size: int | Pair | None
) -> tuple[Float[Tensor, "B C H W"], tuple[str, ...]]:
    """Return images as a normalised tensor, and their names."""
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"images of shape {tuple(images.shape)} are not (B, C, H, W); one image is images[None]")
        if not images.is_floating_point():
            raise ValueError(f"images of type {images.dtype} are no normalised tensor; give pictures, or normalise them")
        if img_size is not None:
            raise ValueError(f"img_size {img_size} is for pictures, and these are a tensor already; leave it out")
        return images, tuple(f"#{index}" for index in range(len(images)))
    return eval_views(model, [images] if is_picture(images) else list(images), img_size)  # type: ignore[arg-type, list-item]


def _scene_of_tokens(
    model: ViT,
    images: Float[Tensor, "B C H W"],
    names: tuple[str, ...],
    *,
    pad: bool,
    sizes: Int64[Tensor, "B 2"] | None,
    patch_size: int | Pair | None,
    resizable: bool,
) -> Scene:
    """Cut images into the patches of a model with global attention."""
    patch = pair(model.config.patch_size if patch_size is None else patch_size)
    height, width = images.shape[-2:]
    if min(height, width) < 1 or height < patch[0] or width < patch[1]:
        raise ValueError(
            f"an image of {width}x{height} px is smaller than one patch of {patch[1]}x{patch[0]}; "
            "use a larger one, or another model"
        )
    image_sizes = torch.tensor([height, width]).expand(len(images), 2) if sizes is None else sizes.cpu()
    if pad:
        images = nn.functional.pad(images, (0, -width % patch[1], 0, -height % patch[0]))
    if sizes is not None and bool(((image_sizes < 1) | (image_sizes > torch.tensor([height, width]))).any()):
        least, most = image_sizes.min().item(), image_sizes.max().item()
        raise ValueError(f"sizes from {least} to {most} px are not those of images on a canvas of {width}x{height}")
    grid = grid_of((images.shape[-2], images.shape[-1]), patch, or_else="another img_size" if resizable else "pad=True")
    return Scene(
        model=model,
        images=images,
        sizes=None if sizes is None else sizes.to(images.device),
        image_sizes=image_sizes,
        patch=patch,
        grid=grid,
        prefix=model.prefix_tokens,
        positions=model.prefix_tokens + grid[0] * grid[1],
        pixels=to_pixels(images, model.preprocessing),
        names=names,
    )


def _scene_of_maps(model: Backbone, images: Float[Tensor, "B C H W"], names: tuple[str, ...], *, method: str | None) -> Scene:
    """Find the grid of a model's own feature maps on whole images."""
    space = spatial(model, images)
    if method is not None:
        require_offered(method, space.offers, model=model_name(model))
    if space.grid is None or space.patch is None:
        raise ValueError(f"{model_name(model)} has no features with a place on the image; use a ViT or a Swin Transformer")
    return Scene(
        model=model,
        images=images,
        sizes=None,
        image_sizes=torch.tensor(images.shape[-2:]).expand(len(images), 2),
        patch=space.patch,
        grid=space.grid,
        prefix=space.prefix,
        positions=space.positions,
        pixels=to_pixels(images, model.preprocessing),
        names=names,
    )


def eval_views(
    model: Backbone, pictures: Sequence[Picture], img_size: int | Pair | None
) -> tuple[Float[Tensor, "B C H W"], tuple[str, ...]]:
    """Return pictures through the model's evaluation view, normalised, and their names."""
    if not pictures:
        raise ValueError("there are no images; give at least one")
    if model.preprocessing is None:
        raise ValueError("this model does not say what happens to its images; give them as a normalised tensor (B, C, H, W)")
    preprocessing = model.preprocessing
    if img_size is not None:
        preprocessing = Preprocessing(**{**vars(preprocessing), "img_size": pair(img_size)})
    views = torch.stack([eval_view(picture, preprocessing) for picture in pictures])
    names = (
        str(picture) if isinstance(picture, str | Path) else str(getattr(picture, "filename", "") or f"#{index}")
        for index, picture in enumerate(pictures)
    )
    return normalise(views, preprocessing), tuple(names)


def is_picture(images: object) -> bool:
    """Return whether this is one picture, not several."""
    return isinstance(images, str | Path | bytes | Image.Image | np.ndarray)


def to_pixels(images: Float[Tensor, "B C H W"], preprocessing: Preprocessing | None) -> UInt8[Tensor, "B C H W"] | None:
    """Return normalised images as pixels again, on the CPU; None where their normalisation is unknown."""
    if preprocessing is None or images.shape[1] != len(preprocessing.mean):
        return None
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return ((images.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def present(image_sizes: Int64[Tensor, "B 2"], patch: Pair, grid: Pair) -> Bool[Tensor, "B gh gw"]:
    """True for the patches that hold a pixel of their image, of these heights and widths."""
    down, across = (
        torch.arange(count) * side < image_sizes[:, axis, None]
        for axis, (count, side) in enumerate(zip(grid, patch, strict=True))
    )
    return down[:, :, None] & across[:, None, :]


# --------------------------------------------------------------------------------------------------------------------
# Checks and notes


def layer_count(model: Backbone, *, rows: bool = False) -> int:
    """Return the number of layers that can be explained: all blocks with global attention, else one, the last features.

    With `rows`, those whose attention can be shown: all blocks, or those of class attention.
    """
    if model.global_attention:
        return int(model.config.depth)
    return model.class_attention_layers if rows else 1


def require_layer(model: Backbone, layer: int, *, rows: bool = False) -> int:
    """Return the layer, counted from 0. Raises ValueError for one that does not exist. `rows` is as for `layer_count`."""
    depth = layer_count(model, rows=rows)
    if not model.global_attention and not rows and layer not in (0, -1):
        raise ValueError(f"layer {layer}: of {model_name(model)} only the last features are explained; leave the layer out")
    if not -depth <= layer < depth:
        raise ValueError(f"layer {layer} does not exist; this model has layers 0 to {depth - 1} (or -{depth} to -1)")
    return layer % depth


def layer_label(model: Backbone, layer: int) -> str:
    """Return the name of a layer, counted from 0, in labels."""
    return f"layer {layer}" if model.global_attention else "last features"


def has_class_token(model: Backbone) -> bool:
    """Return whether the first token is a class token."""
    return bool(model.config.class_token) if model.global_attention else model.class_attention_layers > 0


def require_head(head: int, *, heads: int) -> int:
    """Return the head, counted from 0. Raises ValueError for one that does not exist."""
    if not 0 <= head < heads:
        raise ValueError(f'head {head} does not exist; this model has heads 0 to {heads - 1}, or "mean", "max", "min" of them')
    return head


def require_finite_output(values: Float[Tensor, "B ..."], name: str, *, so: str) -> None:
    """Raise ValueError where some value of an image is not finite; `so` says what follows from it."""
    if wrong := int((~values.isfinite().flatten(1).all(dim=1)).sum()):
        raise ValueError(
            f"the model's {name} is not finite for {wrong} of {len(values)} images, so {so}; "
            "look whether the weights are finite"
        )


def join_notes(notes: Iterable[str]) -> str:
    """Join the notes that are not empty."""
    return "; ".join(note for note in notes if note)
