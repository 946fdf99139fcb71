"""Swin Transformer V2 checkpoints: infer the shape. Its relative positions are computed, so no tensor is resized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.weights.family import FamilyFile, FamilyReader
from vitrail.weights.library import Question

FIELDS = ("window_size", "window_sizes", "pretrained_window_sizes", "norm_eps")
WINDOW = "no tensor shows the side of a window"


def infer(file: FamilyFile) -> SwinV2Config:
    """Infer the config of the model in a file.

    Windows are in a config.json, or in tables that torchvision and the paper's code store beside the weights. Raises
    ValueError for tensors that are not all of a Swin Transformer V2, and, with the answers, if nothing tells the windows.
    """
    stages = file.count("layers.{}.blocks.0.norm1.weight")
    dim, channels, patch, _ = file.shape("patch_embed.proj.weight")
    first = "layers.0.blocks.0"
    shape = {
        "img_size": file.stated.get("img_size", 256),
        "patch_size": patch,
        "in_channels": channels,
        "num_classes": file.shape("head.fc.weight")[0] if "head.fc.weight" in file else 0,
        "embed_dim": dim,
        "depths": tuple(file.count(f"layers.{stage}.blocks.{{}}.norm1.weight") for stage in range(stages)),
        "num_heads": tuple(file.shape(f"layers.{stage}.blocks.0.attn.logit_scale")[0] for stage in range(stages)),
        "mlp_ratio": file.shape(f"{first}.mlp.fc1.weight")[0] / dim,
        "qkv_bias": f"{first}.attn.q_bias" in file,
    }
    return SwinV2Config(**{**shape, **(stored_windows(file, stages) or stated_windows(file, shape["depths"]))})


def stored_windows(file: FamilyFile, stages: int) -> dict[str, Any]:
    """Return the fields of windows that the tables of offsets in a file show; {} without such tables."""
    windows, units = [], []
    for stage in range(stages):
        attn = f"layers.{stage}.blocks.0.attn"
        if f"{attn}.relative_coords_table" not in file:
            return {}
        table = file.read(f"{attn}.relative_coords_table")  # (1, 2 w - 1, 2 w - 1, 2), down and across
        window = (table.shape[1] + 1) // 2
        farthest = torch.exp2(3 * table.max().double()) - 1  # 8 (w - 1) / (w' - 1), w' of the pre-training
        windows.append(window)
        units.append(window if window == 1 else round(1 + 8 * (window - 1) / float(farthest)))
    return fields_of(windows, units)


def fields_of(windows: Sequence[int], units: Sequence[int]) -> dict[str, Any]:
    """Return the fields of the windows of each stage, and of those in pre-training."""
    own = all(unit in (0, window) for window, unit in zip(windows, units, strict=True))
    return {
        "window_size": max(windows),
        "window_sizes": () if len(set(windows)) == 1 else tuple(windows),
        "pretrained_window_sizes": () if own else tuple(units),
    }


def stated_windows(file: FamilyFile, depths: Sequence[int]) -> dict[str, Any]:
    """Return the fields of windows that config.json or the caller states. Raises ValueError if neither does."""
    if blocks := file.stated.get("block_windows"):  # (height, width), and those of the pre-training, of a live model
        firsts = [blocks[sum(depths[:stage])] for stage in range(len(depths))]
        if wrong := [sides for sides, _ in firsts if sides[0] != sides[1]]:
            raise ValueError(f"windows of {wrong[0][0]}x{wrong[0][1]} are not square; build the model for another img_size")
        return fields_of([sides[0] for sides, _ in firsts], [units[0] for _, units in firsts])
    fields = {key: value for key, value in file.stated.items() if key in FIELDS}
    if fields:
        return fields
    if "window_size" not in file.overrides and "window_sizes" not in file.overrides:
        question = Question("window_size", WINDOW, (8, 16))
        raise ValueError(f"{file.checkpoint.file} does not tell {question}, or the config.json beside it")
    return {key: value for key, value in file.overrides.items() if key in FIELDS}


def implied(stored: SwinV2Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that follow from other windows: offsets are still measured by the stored ones (section 3.3)."""
    if not {"window_size", "window_sizes"}.intersection(changes):
        return {}
    fields: dict[str, Any] = {"window_sizes": ()} if "window_sizes" not in changes else {}
    if "pretrained_window_sizes" not in changes:
        fields["pretrained_window_sizes"] = tuple(stored.pretrained_window(stage) for stage in range(len(stored.depths)))
    return fields


SWIN_V2 = FamilyReader(infer, implied=implied)
