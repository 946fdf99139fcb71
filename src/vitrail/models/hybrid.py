"""The hybrid ViT (Dosovitskiy et al. 2021, section 3.1): tokens are cut from the feature map of a convolutional network.

    images (B, C, H, W) -> CNN -> projection -> + position -> blocks -> norm -> pool -> head -> logits (B, K)

State-dict keys are timm's. The passes are those of `ViT`; the CNNs are in `models.resnet_stem`. A CNN sees beyond each patch,
so patches can be neither hidden from it nor cut otherwise for one call.
"""

# B batch · C channels · H W image · h w feature map · L patches · D width

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.attention import Tokens
from vitrail.models.backbone import Context, Images, MaskedPatches, Stage
from vitrail.models.resnet_stem import build_cnn, reset_cnn
from vitrail.models.vit import Patch, PatchEmbed, Sizes, Visible, ViT
from vitrail.settings import Pair, ViTConfig, pair
from vitrail.settings.hybrid import HybridConfig

_CNN = "patch_embed.backbone"


class HybridEmbed(PatchEmbed):
    """Patch embedding of a CNN's feature map."""

    recompute = False
    """Compute the CNN's stages once more in the backward pass."""

    def __init__(self, cfg: HybridConfig) -> None:
        cnn = build_cnn(cfg)
        height, width = pair(cfg.patch_size)
        patch = height // cfg.cnn_stride, width // cfg.cnn_stride  # cells of the map
        fields: dict[str, Any] = {"embed_dim": cfg.embed_dim, "num_heads": 1, "pre_norm": cfg.pre_norm}
        super().__init__(ViTConfig(in_channels=cnn.out_channels, patch_size=patch, **fields))
        if cfg.cnn == "patches":
            self.proj = nn.Identity()  # type: ignore[assignment]
        self.backbone = cnn

    def forward(self, images: Images, patch: Pair | None = None) -> Float[Tensor, "B L D"]:
        """Project the cells of the feature map; `patch` is always None."""
        x = self.proj(self.backbone(images, recompute=self.recompute))  # (B, D, gh, gw)
        return x.flatten(2).transpose(1, 2)


class Hybrid(ViT):
    """Hybrid ViT of a HybridConfig, or of its fields by keyword: `Hybrid(cnn_depths=(2, 2, 2, 2), patch_size=32)`."""

    config: HybridConfig
    patch_embed: HybridEmbed
    any_size_in_graph = False

    def __init__(self, config: HybridConfig | None = None, **fields: Any) -> None:
        super().__init__(HybridConfig() if config is None else config, **fields)
        self.no_decay = ViT.no_decay & dict(self.named_parameters()).keys()
        self.stems = (f"{_CNN}.{self.patch_embed.backbone.first_conv}",)

    @staticmethod
    def one_of_each(config: HybridConfig) -> tuple[HybridConfig, list[int]]:
        """See `BackboneBuilder.one_of_each`: every stage of the CNN is a kind of its own."""
        shallow, blocks = ViT.one_of_each(config)
        return shallow, [1] * len(config.cnn_depths) + blocks

    def make_patch_embed(self) -> HybridEmbed:
        return HybridEmbed(self.config)

    def reset_parameters(self, only: Collection[str] | None = None) -> None:
        """Initialise all layers, or those with tensors in `only`, as `ViT.reset_parameters` and `reset_cnn` do."""
        only = set(self.state_dict()) if only is None else only
        super().reset_parameters({name for name in only if not name.startswith(_CNN)})
        reset_cnn(self.patch_embed.backbone, {name.removeprefix(f"{_CNN}.") for name in only})

    def check_patch(self, patch: Pair) -> None:
        """See Backbone.check_patch."""
        if patch != (own := pair(self.config.patch_size)):
            cuts = f"cuts its own patches of {own[0]}x{own[1]} and no others, not {patch[0]}x{patch[1]}"
            raise ValueError(f"a model with a CNN before its patches {cuts}; leave the other patch out")

    def stages(self) -> list[Stage]:
        """Return the CNN's first layer, its stages, each block (the first with the tokens' projection and positions), and the
        head."""
        tokens, first, *others = super().stages()
        cnn = self.patch_embed.backbone
        stem = Stage("stem", tuple(f"{_CNN}.{path}" for path in cnn.root_paths))
        parts = [Stage(f"{_CNN}.{path}", (f"{_CNN}.{path}",), cnn.get_submodule(path)) for path in cnn.stage_paths]
        return [stem, *parts, first._replace(paths=("patch_embed.proj", *tokens.paths[1:], *first.paths)), *others]

    def stem_tokens(self, img_size: Pair) -> tuple[Pair, int]:
        """See Backbone.stem_tokens."""
        raise ValueError("a hybrid's CNN looks beyond each patch, so masked ones would show; use a plain ViT")

    def embed(
        self,
        images: Images,
        *,
        pad: bool,
        sizes: Sizes = None,
        patch_size: Patch = None,
        visible: Visible = None,
        masked: MaskedPatches | None = None,
    ) -> tuple[Tokens, Context]:
        """Return tokens and context as `ViT.embed` does. Raises ValueError, beside, for hidden patches and for `sizes`."""
        if visible is not None or masked is not None:
            raise ValueError("a hybrid's CNN looks beyond each patch, so hidden ones would show; use a plain ViT")
        if sizes is not None:
            raise ValueError(
                "a hybrid's CNN sees whole canvases, so images on them would change; pack images, or use a plain ViT"
            )
        self.patch_embed.recompute = self.checkpointing and self.training
        return super().embed(images, pad=pad, patch_size=patch_size, sizes=None)
