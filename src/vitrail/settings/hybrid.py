"""Shape of a hybrid ViT: a CNN whose feature map becomes the tokens (Dosovitskiy et al. 2021, section 3.1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from vitrail.settings.model import ModelSection
from vitrail.settings.values import Pair, nearest, pair
from vitrail.settings.vit import ViTConfig

CnnKind = Literal["bit", "resnet-d", "patches"]


class HybridSize(NamedTuple):
    """Row of the table of sizes."""

    cnn: CnnKind
    cnn_depths: tuple[int, ...]
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    no_embed_class: bool = False


_R26, _R50 = (2, 2, 2, 2), (3, 4, 6, 3)
HYBRID_SIZES = {  #                    CNN, its blocks, patch, width, depth, heads       parameters at 224 px, 1000 classes
    "R+Ti/16": HybridSize("bit", (), 32, 192, 12, 3),  #                                   6_337_704
    "R26+S/32": HybridSize("bit", _R26, 32, 384, 12, 6),  #                               36_431_912
    "R26+B/32": HybridSize("bit", _R26, 32, 768, 12, 12),  #                             101_383_976
    "R50+B/16": HybridSize("bit", (3, 4, 9), 16, 768, 12, 12),  #                         98_659_112
    "R50+L/32": HybridSize("bit", _R50, 32, 1024, 24, 16),  #                            328_994_856
    "vit_small_resnet26d": HybridSize("resnet-d", _R26, 32, 768, 8, 8, 3.0),  #           63_608_392
    "vit_small_resnet50d_s16": HybridSize("resnet-d", (3, 4, 6), 16, 768, 8, 8, 3.0),  #  57_531_976
    "vit_base_resnet26d": HybridSize("resnet-d", _R26, 32, 768, 12, 12),  #              101_403_208
    "vit_base_resnet50d": HybridSize("resnet-d", _R50, 32, 768, 12, 12),  #              110_965_064
    "vit_base_mci": HybridSize("patches", (), 16, 768, 12, 12, no_embed_class=True),  #   86_724_328
}
"""Google's names (the 16 of "R+Ti/16" is theirs, its patches have 32 pixels), and timm's where there is no other."""
TIMM_NAMES = {
    "vit_tiny_r_s16_p8": "R+Ti/16",
    "vit_small_r26_s32": "R26+S/32",
    "vit_base_r26_s32": "R26+B/32",
    "vit_base_r50_s16": "R50+B/16",
    "vit_large_r50_s32": "R50+L/32",
}
HYBRID_CUSTOM = "hybrid_custom"
"""Name of a shape that is not in the table."""
_LIKE_A_NAME = r"R\d*\+\w+/\d+|vit_[a-z]+_(?:r\d*_s\d|resnet\d|mci)\w*"


def parse_hybrid_name(name: str) -> dict[str, Any] | None:
    """Return the HybridConfig fields that a name decides; None for another family's name.

    "R50+B/16" and timm's "vit_base_r50_s16" are names of the same model, and so is the latter with an image size behind it:
    "vit_base_r50_s16_384". Raises ValueError for a size that does not exist.
    """
    if name == HYBRID_CUSTOM:
        return {}
    if not re.fullmatch(_LIKE_A_NAME, name):
        return None
    sized = re.fullmatch(r"(vit_.+)_(\d+)", name)
    stem, side = (sized[1], sized[2]) if sized else (name, "")
    size = TIMM_NAMES.get(stem, stem)
    if size not in HYBRID_SIZES:
        hint = nearest(stem, [*HYBRID_SIZES, *TIMM_NAMES])
        raise ValueError(f'model "{name}" is none of {", ".join(HYBRID_SIZES)}{hint}')
    return {**HYBRID_SIZES[size]._asdict(), **({"img_size": int(side)} if side else {})}


@dataclass(frozen=True, kw_only=True)
class HybridConfig(ViTConfig):
    """Shape of a hybrid ViT: a plain ViT's fields, and those below. The defaults are R50+B/16."""

    cnn: CnnKind = "bit"
    """Convolutional network: "bit", a ResNet with GroupNorm and standardised filters (Kolesnikov et al. 2020); "resnet-d", one
    with BatchNorm and three convolutions at its start (He et al. 2019); "patches", three convolutions that cut 4x4, 2x2 and
    2x2 pixels (MobileCLIP: Vasu et al. 2024)."""
    cnn_depths: tuple[int, ...] = (3, 4, 9)
    """Bottleneck blocks in each stage of the CNN, of strides 4, 8, 16 and 32 pixels; () is its first layer alone."""
    cnn_width: int = 64
    """Width of the CNN's first layer; its stages are 4, 8, 16 and 32 times as wide. "patches" has none: embed_dim / 4."""
    cnn_eps: Literal["timm", "google"] = "timm"
    """Epsilons of "bit": timm's, 1e-5 in GroupNorm and 1e-8 beside the variances of filters, or those of Google's code, 1e-6
    and 1e-5 beside the standard deviations."""
    patch_size: int | Pair = 16
    """Patch side in pixels: the CNN's stride, or a multiple of it, which is cut from its feature map."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _PLAIN:
            if getattr(self, name) != getattr(ViTConfig, name):
                raise ValueError(f"{name} {getattr(self, name)} is no part of a hybrid; leave it at {getattr(ViTConfig, name)}")
        if self.cnn_depths and min(self.cnn_depths) < 1:
            raise ValueError(f"cnn_depths {self.cnn_depths} must be at least 1 each")
        if self.cnn == "resnet-d" and not self.cnn_depths:
            raise ValueError('cnn "resnet-d" needs cnn_depths, such as (3, 4, 6); its first layer alone is no stage')
        if self.cnn == "patches" and self.cnn_depths:
            raise ValueError(f'cnn_depths {self.cnn_depths} is no part of cnn "patches"; leave it at ()')
        unit = {"bit": 32, "resnet-d": 2, "patches": 1}[self.cnn]  # GroupNorm has 32 groups
        if self.cnn_width < 1 or self.cnn_width % unit:
            fits = max(1, round(self.cnn_width / unit)) * unit
            raise ValueError(
                f'cnn_width {self.cnn_width} is not a multiple of {unit}, which cnn "{self.cnn}" needs; use {fits}'
            )
        if self.cnn == "patches" and self.embed_dim % 4:
            raise ValueError(f'embed_dim {self.embed_dim} is not a multiple of 4, which cnn "patches" needs')
        patch = pair(self.patch_size)
        wrong = any(side % self.cnn_stride for side in patch) or (self.cnn == "patches" and patch != (16, 16))
        if wrong:
            rule = "the stride" if self.cnn == "patches" else "a multiple of the stride"
            raise ValueError(f"patch_size {self.patch_size} must be {rule} of the CNN, which is {self.cnn_stride}")

    @property
    def cnn_stride(self) -> int:
        """Pixels from one cell of the CNN's feature map to the next."""
        return stride_of(self.cnn, self.cnn_depths)


def stride_of(cnn: CnnKind, depths: tuple[int, ...]) -> int:
    """Return the pixels from one cell of a network's feature map to the next."""
    return 16 if cnn == "patches" else 4 * 2 ** max(0, len(depths) - 1)


_PLAIN = ("stem", "patch_norm")
"""Fields that a hybrid has no other value of."""


def hybrid_name(config: HybridConfig) -> str:
    """Return the name of a shape in the table, at any image size; "hybrid_custom" for any other."""
    shape = HybridSize(**{name: getattr(config, name) for name in HybridSize._fields})
    names = [name for name, size in HYBRID_SIZES.items() if size == shape]
    return names[0] if names and (config.cnn == "patches" or config.cnn_width == HybridConfig.cnn_width) else HYBRID_CUSTOM


@dataclass(frozen=True, kw_only=True)
class HybridModelConfig(HybridConfig, ModelSection):
    """The `model` section of a hybrid ViT."""

    config_type = HybridConfig
    name: str = "R50+B/16"
    """Size: "R+Ti/16", "R26+S/32", "R26+B/32", "R50+B/16", "R50+L/32", or timm's name."""
