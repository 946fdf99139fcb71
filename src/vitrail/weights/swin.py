"""Swin Transformer checkpoints: infer the shape, and resize the relative position bias."""

from __future__ import annotations

from torch import Tensor

from vitrail.models.windows import resize_bias_table
from vitrail.settings.swin import SwinConfig
from vitrail.weights.family import FamilyFile, FamilyReader


def infer(file: FamilyFile) -> SwinConfig:
    """Infer the config of the model in a file. Raises ValueError for tensors that are not all of a Swin Transformer."""
    stages = file.count("layers.{}.blocks.0.norm1.weight")
    dim, channels, patch, _ = file.shape("patch_embed.proj.weight")
    tables = [file.shape(f"layers.{stage}.blocks.0.attn.relative_position_bias_table") for stage in range(stages)]
    windows = tuple((round(rows**0.5) + 1) // 2 for rows, _ in tables)
    return SwinConfig(
        img_size=file.stated.get("img_size", 224),
        patch_size=patch,
        in_channels=channels,
        num_classes=file.shape("head.fc.weight")[0] if "head.fc.weight" in file else 0,
        embed_dim=dim,
        depths=tuple(file.count(f"layers.{stage}.blocks.{{}}.norm1.weight") for stage in range(stages)),
        num_heads=tuple(heads for _, heads in tables),
        final_norm=file.stated.get("final_norm", True),
        window_size=max(windows),
        window_sizes=windows if len(set(windows)) > 1 else (),  # timm's are smaller where a map is
        mlp_ratio=file.shape("layers.0.blocks.0.mlp.fc1.weight")[0] / dim,
    )


def resize(name: str, value: Tensor, stored: SwinConfig, config: SwinConfig) -> tuple[Tensor, str]:
    """Resize the relative position bias to windows of another side."""
    if not name.endswith("relative_position_bias_table"):
        return value, ""
    stage = int(name.split(".")[1])
    if stored.window(stage) == config.window(stage):
        return value, ""
    return resize_bias_table(value, window=config.window(stage)), f"window {stored.window(stage)} -> {config.window(stage)}"


SWIN = FamilyReader(infer, resize)
