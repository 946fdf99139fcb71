"""The modern Vision Transformer: a plain one with rotary positions, gated MLPs, RMSNorm, and norms in other places.

DINOv3 (Siméoni et al. 2025), EVA (Fang et al. 2023) and EVA-02 (Fang et al. 2024), Perception Encoder (Bolya et al. 2025),
AIMv2 (Fini et al. 2025), RoPE-ViT (Heo et al. 2024), Pixtral, InternViT, Sapiens2: one model, whose config says which parts.

    images (B, C, H, W) -> PatchEmbed -> + position -> blocks, turned by position -> norm -> pool -> head -> logits (B, K)

State-dict keys are timm's, those of its Eva where its classes differ. The passes are those of `ViT`; its parts are here.
"""

# B batch · C channels · H W image · P patch · N tokens (prefix + patches) · D width · M hidden width of the MLP
# h heads · d width of a head · E width of the embedding

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.models.attention import Attended, KeyMask, Tokens, attend
from vitrail.models.backbone import Context, Images, Stage
from vitrail.models.linear import Linear
from vitrail.models.norms import make_norm
from vitrail.models.parallel import make_block
from vitrail.models.positions import is_symbolic, positions_at, sincos_2d, token_mask
from vitrail.models.relative_mlp import RelativeMlp, RelativePlaces, places_of
from vitrail.models.rotary import Rotary, RotaryContext, Rotation
from vitrail.models.vit import AttentionPool, PatchEmbed, Sizes, ViT
from vitrail.settings import Pair, pair
from vitrail.settings.modern import ModernConfig

# --------------------------------------------------------------------------------------------------------------------
# The block and its parts


class NormedPatchEmbed(PatchEmbed):
    """Patch embedding with a norm of the tokens."""

    def __init__(self, cfg: ModernConfig) -> None:
        super().__init__(cfg)
        self.norm = make_norm(cfg, cfg.embed_dim)  # type: ignore[assignment]

    def forward(self, images: Images, patch: Pair | None = None) -> Float[Tensor, "B L D"]:
        return self.norm(super().forward(images, patch))  # type: ignore[misc]


class LatentPool(nn.Module):
    """Attention pooling whose learned query is not projected, without an MLP (AIMv2's head)."""

    def __init__(self, cfg: ModernConfig) -> None:
        super().__init__()
        self.num_heads = cfg.pool_heads or cfg.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, cfg.embed_dim))
        self.kv = Linear(cfg.embed_dim, 2 * cfg.embed_dim, bias=cfg.qkv_bias)
        self.proj = nn.Linear(cfg.embed_dim, cfg.embed_dim)

    def forward(self, x: Tokens, mask: KeyMask | None = None, kept: list[Attended] | None = None) -> Float[Tensor, "B D"]:
        q = self.latent.expand(x.shape[0], -1, -1).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, h, 1, d)
        k, v = self.kv(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, N, d) each
        out = attend(q, k, v, mask, dropout=0.0)
        if kept is not None:
            kept.append(Attended(x, q, k, v, out))
        return self.proj(out.transpose(1, 2).flatten(1))


# --------------------------------------------------------------------------------------------------------------------
# The model


_NO_ROPE: dict[str, Any] = {"rope": "none", "rope_ref_grid": None, "kv_heads": None}  # heads of the pooling are not turned


class ModernViT(ViT):
    """Modern Vision Transformer of a ModernConfig, or of its fields by keyword: `ModernViT(rope="centred", norm="rms")`."""

    config: ModernConfig
    stems = ("patch_embed.proj",)

    def __init__(self, config: ModernConfig | None = None, **fields: Any) -> None:
        super().__init__(ModernConfig() if config is None else config, **fields)
        cfg = self.config
        self.rope = None if cfg.rope == "none" else Rotary(cfg)
        self.pos_grid = self.grid if cfg.pos_grid is None else pair(cfg.pos_grid)
        if self.pos_grid != self.grid:
            rows = self.placed_tokens + self.pos_grid[0] * self.pos_grid[1]
            self.pos_embed = nn.Parameter(torch.zeros(1, rows, cfg.embed_dim))
            self.reset_parameters({"pos_embed"})
        self.pairwise_context = cfg.relative_bias != "none"
        self.shared_rel_pos = None
        if cfg.relative_bias == "shared":
            self.shared_rel_pos = RelativeMlp(cfg.num_heads, cfg.relative_hidden)
            self.reset_parameters({name for name in self.state_dict() if name.startswith("shared_rel_pos.")})
        if cfg.pool == "map":
            ratio = cfg.mlp_ratio if cfg.pool_mlp_ratio is None else cfg.pool_mlp_ratio
            shape = dataclasses.replace(cfg, num_heads=cfg.pool_heads or cfg.num_heads, mlp_ratio=ratio, **_NO_ROPE)
            self.attn_pool = AttentionPool(shape) if cfg.pool_block else LatentPool(cfg)  # type: ignore[assignment]
            self.reset_parameters({name for name in self.state_dict() if name.startswith("attn_pool.")})
        self.no_decay = (ViT.no_decay | {"rope.freqs", "rope.cls"}) & dict(self.named_parameters()).keys()

    def make_patch_embed(self) -> PatchEmbed:
        return NormedPatchEmbed(self.config) if self.config.embed_norm else PatchEmbed(self.config)

    def make_norm(self) -> nn.Module:
        return make_norm(self.config, self.config.embed_dim)

    def make_block(self, index: int, drop_path: float) -> nn.Module:
        return make_block(self.config, index, drop_path=drop_path)

    def reset_parameters(self, only: Collection[str] | None = None) -> None:
        """Initialise all layers, or those with tensors in `only`, as `ViT.reset_parameters` does; biases and norms as new."""
        only = set(self.state_dict()) if only is None else only
        super().reset_parameters(only)
        for path, module in self.named_modules():
            names = {name for name, _ in module.named_parameters(recurse=False) if f"{path}.{name}" in only}
            if names and isinstance(module, nn.RMSNorm | Rotary):
                module.reset_parameters()
            for name in names & {"q_bias", "v_bias", "mlp_bias"}:
                nn.init.zeros_(module.get_parameter(name))
            for name in names & {"lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"}:
                nn.init.normal_(module.get_parameter(name), std=0.1)
            for name in names & {"gamma_1", "gamma_2"}:
                nn.init.constant_(module.get_parameter(name), self.config.init_values or 0.0)
            if "latent" in names:
                nn.init.trunc_normal_(module.get_parameter("latent"), std=0.02)

    @staticmethod
    def one_of_each(config: ModernConfig) -> tuple[ModernConfig, list[int]]:
        """See `BackboneBuilder.one_of_each`: heads of blocks may differ, and mixed frequencies are all in the stem."""
        if config.kv_heads is None and config.rope != "mixed":
            return ViT.one_of_each(config)
        return config, [1] * config.depth

    def stages(self) -> list[Stage]:
        """Return the stages of ViT; learned frequencies and a shared bias belong to the stem."""
        stem, *others = super().stages()
        return [Stage(stem.name, (*stem.paths, "rope", "shared_rel_pos")), *others]

    def attention_heads(self) -> int:
        """Return the number of attention maps in a block: a head has two if attention is differential or comes in pairs."""
        return self.config.num_heads * (2 if self.config.block == "pair" or self.config.attention == "differential" else 1)

    # ---- positions

    def context(self, grid: Pair, *, patch: Pair, sizes: Sizes, device: torch.device) -> RotaryContext:
        """Return mask and rotation. Positions are those on each image, not on its canvas."""
        mask = None if sizes is None else token_mask(sizes, grid=grid, patch=patch, prefix=self.prefix_tokens)
        relative = None
        if self.config.relative_bias != "none":
            places = places_of(grid, prefix=self.prefix_tokens, device=device)
            relative = self.with_shared(RelativePlaces.of(places, grid))
        if self.rope is None:
            return RotaryContext(mask, None, relative)
        sides = None if sizes is None else (sizes / sizes.new_tensor(patch)).ceil().float()
        return RotaryContext(mask, self.rope(grid, prefix=self.prefix_tokens, device=device, sides=sides), relative)

    def with_shared(self, relative: RelativePlaces) -> RelativePlaces:
        """Add the bias that all blocks share, if there is one."""
        return relative if self.shared_rel_pos is None else relative._replace(shared=self.shared_rel_pos(relative))

    def score_bias(self, layer: int, context: Context) -> Float[Tensor, "*B h N N"] | None:
        """See Backbone.score_bias."""
        bias: Tensor | None = self.blocks[layer].bias(context)  # type: ignore[operator]
        return bias

    def valid_tokens(self, context: Context) -> KeyMask | None:
        """See Backbone.valid_tokens."""
        return None if context is None else context.mask

    def context_tensors(self, context: RotaryContext) -> tuple[Tensor, ...]:
        """See Backbone.context_tensors."""
        return () if context.rotation is None else tuple(context.rotation)

    def make_context(self, mask: Any, tensors: Sequence[Tensor]) -> RotaryContext:
        """See Backbone.make_context."""
        return RotaryContext(mask, Rotation(*tensors) if tensors else None)

    def keep_patches(
        self, x: Tokens, context: Context, patches: Int64[Tensor, "B _L"]
    ) -> tuple[Float[Tensor, "B _ D"], RotaryContext]:
        """Return the prefix tokens and the given patches, in that order, and their context."""
        x, mask = super().keep_patches(x, context.mask, patches)
        prefix = torch.arange(self.prefix_tokens, device=x.device).expand(x.shape[0], -1)
        chosen = torch.cat([prefix, patches + self.prefix_tokens], dim=1)
        rotation, relative = (None if one is None else one.of_tokens(chosen) for one in context[1:])
        return x, RotaryContext(mask, rotation, None if relative is None else self.with_shared(relative))

    def positions(self, grid: Pair) -> Float[Tensor, "1 _ D"]:
        """Return the absolute positions at this grid; sine-cosine ones are computed, not resized."""
        cfg, prefix = self.config, self.placed_tokens
        if cfg.pos_embed == "sincos2d" and (is_symbolic(grid) or grid != self.grid):
            rows = self.get_buffer("pos_embed")[:, :prefix]
            return torch.cat([rows, sincos_2d(grid, cfg.embed_dim).to(rows)[None]], dim=1)
        assert self.pos_embed is not None
        ways: dict[str, Any] = {"how": cfg.pos_resize, "square": cfg.pos_square, "cache": self._positions}
        return positions_at(grid, self.pos_embed, trained=self.pos_grid, prefix=prefix, **ways)
