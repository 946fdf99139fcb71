"""Microsoft's own files: Swin Transformers, whose names timm before version 0.9 has too, and CvT; the evaluation of BEiT."""

from __future__ import annotations

import re

from vitrail.settings.cvt import CvtConfig
from vitrail.settings.swin import SwinConfig
from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.weights.eval_transform import IMAGENET, DefaultTransform
from vitrail.weights.library import FamilyLayout, Library


def swin_names(name: str) -> tuple[str, ...]:
    """Return the name in the paper's files: patch merging stands at the end of a stage, not at the start of the next."""
    if merging := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return (f"layers.{int(merging[1]) - 1}.downsample.{merging[2]}",)
    return (name.replace("head.fc.", "head."),)


SHOWS = ("layers.0.blocks.0.attn.relative_position_bias_table", "layers.1.downsample.reduction.weight")
SWIN_LAYOUT = FamilyLayout(SwinConfig, "Microsoft", SHOWS, swin_names, ignored=r"relative_position_index$|attn_mask$")
CVT_LAYOUT = FamilyLayout(
    CvtConfig, "Microsoft", shows=("stage0.patch_embed.proj.weight", "stage0.blocks.0.attn.conv_proj_q.conv.weight")
)
SWIN_V2_LAYOUT = FamilyLayout(
    SwinV2Config,
    "Microsoft",
    shows=("layers.0.blocks.0.attn.cpb_mlp.0.weight", "layers.1.downsample.reduction.weight"),
    names=swin_names,
    ignored=r"relative_position_index$|relative_coords_table$|attn_mask$",
)
MICROSOFT = Library(
    family_layouts=(SWIN_LAYOUT, SWIN_V2_LAYOUT, CVT_LAYOUT),
    default_transforms=(  # CvT: lib/dataset/transformas/build.py, and TEST.CENTER_CROP of the experiments
        DefaultTransform("cvt", "CvT's checkpoints", IMAGENET, 0.875, "center", "bicubic", (1.0, "bicubic"), "squash"),
    ),
)
