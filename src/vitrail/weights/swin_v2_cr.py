"""Swin Transformer V2-CR checkpoints: infer the shape. Its relative positions are computed, so no tensor is resized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vitrail.settings import Pair, pair
from vitrail.settings.swin_v2_cr import SwinV2CrConfig
from vitrail.weights.family import FamilyFile, FamilyReader
from vitrail.weights.library import Question

FIELDS = ("img_size", "window_size", "window_ratio", "norm_eps")
ANSWERS = {"img_size", "window_size"}
"""Fields of which one determines the windows."""
IMG_SIZE = "no tensor shows the side of a window, which is an eighth of the patches along the image's side"


def infer(file: FamilyFile) -> SwinV2CrConfig:
    """Infer the config of the model in a file.

    Raises ValueError for tensors that are not all of a Swin Transformer V2-CR, for windows or norms that follow no rule of its
    settings, and, with the answers, if nothing tells the image size, from which windows follow.
    """
    stages = file.count("layers.{}.blocks.0.norm1.weight")
    dim, channels, patch, _ = file.shape("patch_embed.proj.weight")
    known = {key: value for key, value in file.stated.items() if key in FIELDS}
    if not ANSWERS & known.keys():
        known |= {key: value for key, value in file.overrides.items() if key in ANSWERS}
    if not ANSWERS & known.keys():
        question = Question("img_size", IMG_SIZE, (224, 384))
        raise ValueError(f"{file.checkpoint.file} does not tell {question}, or the config.json beside it")
    shape: dict[str, Any] = {
        "patch_size": patch,
        "in_channels": channels,
        "num_classes": file.shape("head.fc.weight")[0] if "head.fc.weight" in file else 0,
        "embed_dim": dim,
        "depths": tuple(file.count(f"layers.{stage}.blocks.{{}}.norm1.weight") for stage in range(stages)),
        "num_heads": tuple(file.shape(f"layers.{stage}.blocks.0.attn.logit_scale")[0] for stage in range(stages)),
        "mlp_ratio": file.shape("layers.0.blocks.0.mlp.fc1.weight")[0] / dim,
    }
    config = with_norms(SwinV2CrConfig(**{**shape, **known}), file)
    blocks = file.stated.get("block_windows")  # of a live model: those of every block
    return with_windows(config, [pair(side) for side, _ in blocks]) if blocks else config


def with_norms(config: SwinV2CrConfig, file: FamilyFile) -> SwinV2CrConfig:
    """Return the config with norms behind the blocks that have them. Raises ValueError if they follow no rule."""
    places = [(stage, index) for stage, depth in enumerate(config.depths) for index in range(depth)]
    present = {(stage, index) for stage, index in places if f"layers.{stage}.blocks.{index}.norm3.weight" in file}
    for period in range(max(config.depths) + 1):
        for everywhere in (False, True):
            one = replace(config, extra_norm_period=period, extra_norm_stage=everywhere)
            if present == {place for place in places if one.has_extra_norm(*place)}:
                return one
    blocks = ", ".join(f"{stage}.{index}" for stage, index in sorted(present)) or "no block"
    where = f"{file.checkpoint.file} has norm3 in {blocks}"
    raise ValueError(f"{where}, which is neither every so many blocks nor the end of the stages; give a whole file")


def with_windows(config: SwinV2CrConfig, blocks: Sequence[Pair]) -> SwinV2CrConfig:
    """Return the config with the windows of each block. Raises ValueError if they differ by more than the stages' maps."""
    sides = [blocks[sum(config.depths[:stage])] for stage in range(len(config.depths))]
    for one in (config, replace(config, window_size=sides[0])):
        if sides == [one.window(stage) for stage in range(len(sides))]:
            return one
    listed = ", ".join(f"{height}x{width}" for height, width in sides)
    raise ValueError(f"windows of {listed} in the stages are not one window_size; build the model with one")


def implied(stored: SwinV2CrConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that follow from another ratio: windows of a fixed size no longer are."""
    return {"window_size": None} if "window_ratio" in changes and "window_size" not in changes else {}


SWIN_V2_CR = FamilyReader(infer, implied=implied)
