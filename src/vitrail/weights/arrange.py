"""Answers that no field of a config holds: how a file's numbers are arranged, and what its code does with them."""

# D width · h heads · d = D / h · P patch · C channels

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.settings import nearest
from vitrail.weights.eval_transform import HALF, IMAGENET, EvalTransform, Numbers
from vitrail.weights.library import Question
from vitrail.weights.names import CHANNELS_FIRST_PATCH, LINEAR_PATCH, Form

QKV = tuple("".join(order) for order in itertools.permutations("qkv"))
QKV_ORDERS = tuple(order.replace("qkv", qkv) for qkv in QKV for order in ("qkv h d", "h qkv d", "h d qkv"))
PIXEL_SCALES = {"unit": ((0.0,), (1.0,)), "half": HALF, "imagenet": IMAGENET, "byte": ((0.0,), (1 / 255,)), "unknown": None}

ANSWERS: dict[str, tuple[Any, ...]] = {
    "patch_order": ("c p1 p2", "p1 p2 c"),
    "qkv_order": QKV_ORDERS,
    "attn_scale": ("head", "width", "after", "none"),
    "norm_first": (True, False),
    "pixel_scale": tuple(PIXEL_SCALES),
}
"""Answers and their values. The orders are einops': pixels of a flattened patch, outputs of one projection of q, k and v."""

PATCH_ORDER = Question("patch_order", "order of the pixels in a flattened patch, as einops writes it", ("p1 p2 c", "c p1 p2"))
QKV_ORDER = Question("qkv_order", "order of the outputs of the one projection of q, k and v", ("qkv h d", "h qkv d", "h d qkv"))
ATTN_SCALE = Question(
    "attn_scale",
    "softmax of q k / sqrt(d) of a head, of q k / sqrt(D), or division by sqrt(D) after it",
    ("head", "width", "after"),
)
NORM_FIRST = Question("norm_first", "whether norms stand before attention and MLP", (True, False))
ACTIVATION = Question("mlp", "activation of the MLP", ("gelu", "relu"))
PIXEL_SCALE = Question(
    "pixel_scale",
    "scale of the pixels in training: 0 to 1, -1 to 1, ImageNet's mean and std, others as '0.13/0.31'",
    ("unit", "half", "imagenet"),
)


def check_answers(answers: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that an answer can't have."""
    for name, value in answers.items():
        if value not in ANSWERS[name] and not (name == "pixel_scale" and mean_std(value)):
            shown = ", ".join(str(one) for one in ANSWERS[name][:6])
            raise ValueError(f'{name} "{value}" is none of {shown}{nearest(str(value), [str(one) for one in ANSWERS[name]])}')


# --------------------------------------------------------------------------------------------------------------------
# Forms


def arranged(ours: str, form: Form, parts: int, answers: Mapping[str, Any]) -> Form:
    """Return the form of a tensor of ours, made of so many tensors of the file, under the answers."""
    if ours == "patch_embed.proj.weight" and form is LINEAR_PATCH and answers.get("patch_order") == "c p1 p2":
        return CHANNELS_FIRST_PATCH
    if not re.fullmatch(r"blocks\.\d+\.attn\.qkv\.(weight|bias)", ours):
        return form
    order = answers.get("qkv_order", QKV_ORDERS[0]) if parts == 1 else QKV_ORDERS[0]
    scale = answers.get("attn_scale", "head")
    if (order, scale) == (QKV_ORDERS[0], "head"):
        return form
    return form._replace(per_head=lambda value, heads: scaled(in_order(value, heads, order), heads, scale))


def in_order(value: Tensor, heads: int, order: str) -> Tensor:
    """Rearrange the outputs of one projection of q, k and v, which come in `order`, to (qkv h d)."""
    axes = order.split(" ")
    letters = next(axis for axis in axes if len(axis) == 3)
    sizes = {"h": heads, "d": len(value) // (3 * heads), letters: 3}
    parted = value.unflatten(0, [sizes[axis] for axis in axes])
    parted = parted.movedim([axes.index(axis) for axis in (letters, "h", "d")], [0, 1, 2])
    return parted[[letters.index(letter) for letter in "qkv"]].flatten(0, 2)


def scaled(value: Tensor, heads: int, scale: str) -> Tensor:
    """Scale queries and values such that attention with 1 / sqrt(d) computes what attention with another scale does."""
    q, k, v = value.chunk(3)
    width = len(q)
    if scale == "width":
        return torch.cat([q * heads**-0.5, k, v])
    if scale in ("after", "none"):
        return torch.cat([q * (width / heads) ** 0.5, k, v * width**-0.5 if scale == "after" else v])
    return value


# --------------------------------------------------------------------------------------------------------------------
# Pixels


def mean_std(value: Any) -> tuple[Numbers, Numbers] | None:
    """Return mean and std of a pixel scale, a name or "MEAN/STD" with commas between channels; None for other text."""
    if value in PIXEL_SCALES:
        return PIXEL_SCALES[value]
    parts = re.fullmatch(r"([-\d.,e ]+)/([\d.,e -]+)", str(value))
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in parts.groups()) if parts else ((), ())
    except ValueError:
        return None
    return (mean, std) if mean and len(mean) == len(std) and min(std) > 0 else None


def pixel_transform(answers: Mapping[str, Any]) -> EvalTransform | None:
    """Return the evaluation transform of an answered pixel scale; None for an open or an unknown one."""
    value = answers.get("pixel_scale", "unknown")
    numbers = mean_std(value)
    if numbers is None:
        return None
    return EvalTransform(*numbers, 1.0, "squash", "bilinear", f"pixel_scale {value} as answered; squashed to size, a guess")
