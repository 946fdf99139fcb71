"""The norms that a config chooses between."""

from __future__ import annotations

from torch import nn

from vitrail.settings.modern import ModernConfig


def make_norm(cfg: ModernConfig, dim: int) -> nn.LayerNorm | nn.RMSNorm:
    """Build LayerNorm or RMSNorm over `dim` channels."""
    return nn.RMSNorm(dim, eps=cfg.norm_eps) if cfg.norm == "rms" else nn.LayerNorm(dim, eps=cfg.norm_eps)
