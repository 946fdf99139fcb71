"""microsoft/Swin-Transformer: the paper's own files, whose names timm before version 0.9 has too."""

from __future__ import annotations

import re

from vitrail.settings.swin import SwinConfig
from vitrail.weights.library import FamilyLayout, Library


def swin_names(name: str) -> tuple[str, ...]:
    """Return the name in the paper's files: patch merging stands at the end of a stage, not at the start of the next."""
    if merging := re.fullmatch(r"layers\.(\d+)\.downsample\.(.*)", name):
        return (f"layers.{int(merging[1]) - 1}.downsample.{merging[2]}",)
    return (name.replace("head.fc.", "head."),)


SHOWS = ("layers.0.blocks.0.attn.relative_position_bias_table", "layers.1.downsample.reduction.weight")
SWIN_LAYOUT = FamilyLayout(SwinConfig, "Microsoft", SHOWS, swin_names, ignored=r"relative_position_index$|attn_mask$")
MICROSOFT = Library(family_layouts=(SWIN_LAYOUT,))
