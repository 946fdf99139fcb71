"""Families of backbones: their names, and the dataclass of the `model` section that a name selects.

`models.families.BUILDERS` builds the models. A family is a row here, a row there, and a file with its config and its model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from vitrail.settings.baseline import BaselineConfig, BaselineModelConfig, parse_baseline_name
from vitrail.settings.beit import BEIT_CUSTOM, BEIT_SIZES, BeitConfig, BeitModelConfig, beit_name, parse_beit_name
from vitrail.settings.cait import CAIT_CUSTOM, CAIT_SIZES, CaitConfig, CaitModelConfig, cait_name, parse_cait_name
from vitrail.settings.cvt import CVT_CUSTOM, CVT_SIZES, CvtConfig, CvtModelConfig, cvt_name, parse_cvt_name
from vitrail.settings.hybrid import (
    HYBRID_CUSTOM,
    HYBRID_SIZES,
    HybridConfig,
    HybridModelConfig,
    hybrid_name,
    parse_hybrid_name,
)
from vitrail.settings.model import ModelSection
from vitrail.settings.modern import (
    MODERN_CUSTOM,
    MODERN_SIZES,
    ModernConfig,
    ModernModelConfig,
    modern_name,
    parse_modern_name,
)
from vitrail.settings.swin import SWIN_CUSTOM, SWIN_SIZES, SwinConfig, SwinModelConfig, parse_swin_name, swin_name
from vitrail.settings.swin_v2 import (
    SWIN_V2_CUSTOM,
    SWIN_V2_SIZES,
    SwinV2Config,
    SwinV2ModelConfig,
    parse_swin_v2_name,
    swin_v2_name,
)
from vitrail.settings.swin_v2_cr import (
    SWIN_V2_CR_CUSTOM,
    SWIN_V2_CR_SIZES,
    SwinV2CrConfig,
    SwinV2CrModelConfig,
    parse_swin_v2_cr_name,
    swin_v2_cr_name,
)
from vitrail.settings.values import OTHER_SPELLINGS, nearest, pair
from vitrail.settings.vit import CUSTOM, PATCHES, RECIPE_NAMES, SIZES, ModelConfig, ViTConfig, parse_vit_name, vit_name
from vitrail.settings.vitdet import (
    VITDET_SIZES,
    VitDetConfig,
    VitDetModelConfig,
    parse_vitdet_name,
    vitdet_name,
)


class Words(NamedTuple):
    """Human-readable description of a model."""

    name: str
    """Name, such as "ViT-B/16"."""
    title: str
    """Architecture, such as "Vision Transformer"."""
    shape: str
    """Shape, such as "12 blocks of width 768, 12 heads"."""
    tags: tuple[str, ...]
    """Tags on the Hub."""
    stem: str = ""
    """What makes the tokens, where it is not one convolution of the patch's size, such as "a ResNet-D"."""


@dataclass(frozen=True)
class Family:
    """Settings of one family: dataclass, names and description."""

    section: type[ModelSection]
    """Dataclass of the `model` section: the family's config with a name and weights."""
    parse: Callable[[str], dict[str, Any] | None]
    """Return the fields that a name decides; None for another family's name. May raise ValueError for a misspelt name."""
    name_of: Callable[[Any], str]
    """Return the name of a config, which `parse` accepts."""
    noun: str
    """Noun for messages, such as "a ViT"."""
    words: Callable[[Any], Words]
    """Describe a config for a model card."""
    stored_as: str
    """Key of the config in a run's config.json."""
    names: tuple[str, ...] = ()
    """Names to suggest where one is mistyped."""
    paper: str = ""
    """Authors, year and address of the paper, for the table of sizes."""

    @property
    def config(self) -> type[Any]:
        """Config class of the family's models."""
        return self.section.config_type

    def fields(self) -> tuple[str, ...]:
        """Return the field names of the config."""
        return tuple(field.name for field in dataclasses.fields(self.config))


def _vit_words(config: ViTConfig) -> Words:
    patch = "x".join(map(str, dict.fromkeys(pair(config.patch_size))))
    name, stem = vit_name(config), "+" if config.stem == "conv" else ""
    size = f"ViT with patch {patch}" if name == CUSTOM else f"ViT-{name.partition('/')[0]}{stem}/{patch}"
    shape = f"{config.depth} blocks of width {config.embed_dim}, {config.num_heads} heads"
    return Words(size, "Vision Transformer", shape, ("vision-transformer",))


def _swin_words(config: SwinConfig) -> Words:
    name = swin_name(config)
    blocks = "-".join(map(str, config.depths))
    size = "Swin Transformer" if name == SWIN_CUSTOM else f"Swin-{name[-1].upper()}"
    shape = f"{blocks} blocks from width {config.embed_dim}, window {config.window_size}"
    return Words(size, "Swin Transformer", shape, ("swin",))


def _cait_words(config: CaitConfig) -> Words:
    name = cait_name(config)
    size = "CaiT" if name == CAIT_CUSTOM else f"CaiT-{name.removeprefix('cait_').upper()}"
    blocks = f"{config.depth} blocks of width {config.embed_dim} and {config.class_depth} for the class"
    return Words(size, "CaiT", f"{blocks}, {config.num_heads} heads", ("cait",))


def _cvt_words(config: CvtConfig) -> Words:
    name = cvt_name(config)
    size = "CvT" if name == CVT_CUSTOM else f"CvT-{name.removeprefix('cvt_').upper()}"
    shape = f"{'-'.join(map(str, config.depths))} blocks of widths {'-'.join(map(str, config.embed_dims))}"
    return Words(size, "Convolutional vision Transformer", shape, ("cvt",))


def _modern_words(config: ModernConfig) -> Words:
    name = modern_name(config)
    size = "Vision Transformer with rotary positions" if name == MODERN_CUSTOM else name
    shape = f"{config.depth} blocks of width {config.embed_dim}, {config.num_heads} heads"
    return Words(size, "Vision Transformer", shape, ("vision-transformer",))


def _swin_v2_words(config: SwinV2Config) -> Words:
    name = swin_v2_name(config)
    blocks = "-".join(map(str, config.depths))
    size = "Swin Transformer V2" if name == SWIN_V2_CUSTOM else f"SwinV2-{name[-1].upper()}"
    windows = "-".join(map(str, config.window_sizes or (config.window_size,)))
    return Words(size, "Swin Transformer V2", f"{blocks} blocks from width {config.embed_dim}, window {windows}", ("swinv2",))


def _swin_v2_cr_words(config: SwinV2CrConfig) -> Words:
    name = swin_v2_cr_name(config)
    size = "Swin Transformer V2-CR" if name == SWIN_V2_CR_CUSTOM else f"SwinV2-CR-{name.removeprefix('swinv2_cr_').upper()}"
    blocks, window = "-".join(map(str, config.depths)), "x".join(map(str, dict.fromkeys(config.whole_window())))
    shape = f"{blocks} blocks from width {config.embed_dim}, window {window}"
    return Words(size, "Swin Transformer V2-CR", shape, ("swinv2_cr",))


def _beit_words(config: BeitConfig) -> Words:
    name = beit_name(config)
    size = f"BEiT with patch {config.patch_size}" if name == BEIT_CUSTOM else f"BEiT-{name[5].upper()}/{config.patch_size}"
    return Words(size, "BEiT", f"{config.depth} blocks of width {config.embed_dim}, {config.num_heads} heads", ("beit",))


def _vitdet_words(config: VitDetConfig) -> Words:
    name, titles = vitdet_name(config), {"sam": "SAM", "sam3": "SAM 3", "vitdet": "ViTDet"}
    kind, _, size = name.partition("_")
    title = titles.get(kind, "ViTDet") if name in VITDET_SIZES else "ViTDet"
    patch = "x".join(map(str, dict.fromkeys(pair(config.patch_size))))
    named = f"{title}-{size[0].upper()}/{patch}" if name in VITDET_SIZES else f"{title} with patch {patch}"
    blocks = f"{config.depth} blocks of width {config.embed_dim}, {config.num_heads} heads, window {config.window_size}"
    return Words(named, title, blocks, ("vitdet",))


def _hybrid_words(config: HybridConfig) -> Words:
    name = hybrid_name(config)
    size = "Hybrid ViT" if name == HYBRID_CUSTOM else name.replace("+", "+ViT-")
    cnn = {"bit": "a ResNet with GroupNorm", "resnet-d": "a ResNet-D", "patches": "three convolutions"}[config.cnn]
    stages = f" of {'-'.join(map(str, config.cnn_depths))} blocks" if config.cnn_depths else ""
    shape = f"{cnn}{stages}, then {config.depth} blocks of width {config.embed_dim}, {config.num_heads} heads"
    return Words(size, "Hybrid Vision Transformer", shape, ("vision-transformer", "hybrid"), stem=f"{cnn}{stages}")


def _baseline_words(config: BaselineConfig) -> Words:
    return Words(config.theirs, f"model of {config.library}", f"as in {config.library}", ())


_SHOWN = 16  # fields that a message lists
FAMILIES: dict[str, Family] = {
    "vit": Family(
        section=ModelConfig,
        parse=parse_vit_name,
        name_of=vit_name,
        noun="a ViT",
        words=_vit_words,
        stored_as="model",
        names=(*(f"{size}/{patch}" for size in SIZES for patch in PATCHES), *RECIPE_NAMES),
        paper="Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; DeiT III: Touvron et al. 2022; "
        "FlexiViT: Beyer et al. 2023",
    ),
    "swin_v2": Family(  # before "swin", which takes every other name that starts with "swin_"
        section=SwinV2ModelConfig,
        parse=parse_swin_v2_name,
        name_of=swin_v2_name,
        noun="a Swin Transformer V2",
        words=_swin_v2_words,
        stored_as="swin_v2",
        names=tuple(SWIN_V2_SIZES),
        paper="Liu et al. 2022, https://arxiv.org/abs/2111.09883",
    ),
    "swin_v2_cr": Family(
        section=SwinV2CrModelConfig,
        parse=parse_swin_v2_cr_name,
        name_of=swin_v2_cr_name,
        noun="a Swin Transformer V2-CR",
        words=_swin_v2_cr_words,
        stored_as="swin_v2_cr",
        names=tuple(SWIN_V2_CR_SIZES),
        paper="Liu et al. 2022, https://arxiv.org/abs/2111.09883, in Christoph Reich's implementation for timm",
    ),
    "swin": Family(
        section=SwinModelConfig,
        parse=parse_swin_name,
        name_of=swin_name,
        noun="a Swin Transformer",
        words=_swin_words,
        stored_as="swin",
        names=tuple(SWIN_SIZES),
        paper="Liu et al. 2021, https://arxiv.org/abs/2103.14030",
    ),
    "cait": Family(
        section=CaitModelConfig,
        parse=parse_cait_name,
        name_of=cait_name,
        noun="a CaiT",
        words=_cait_words,
        stored_as="cait",
        names=tuple(CAIT_SIZES),
        paper="Touvron et al. 2021, https://arxiv.org/abs/2103.17239",
    ),
    "cvt": Family(
        section=CvtModelConfig,
        parse=parse_cvt_name,
        name_of=cvt_name,
        noun="a CvT",
        words=_cvt_words,
        stored_as="cvt",
        names=tuple(CVT_SIZES),
        paper="Wu et al. 2021, https://arxiv.org/abs/2103.15808",
    ),
    "modern": Family(
        section=ModernModelConfig,
        parse=parse_modern_name,
        name_of=modern_name,
        noun="a modern ViT",
        words=_modern_words,
        stored_as="modern",
        names=tuple(MODERN_SIZES),
        paper="DINOv3: Siméoni et al. 2025, https://arxiv.org/abs/2508.10104; EVA-02: Fang et al. 2024; Perception Encoder: "
        "Bolya et al. 2025; AIMv2: Fini et al. 2025; RoPE-ViT: Heo et al. 2024",
    ),
    "beit": Family(
        section=BeitModelConfig,
        parse=parse_beit_name,
        name_of=beit_name,
        noun="a BEiT",
        words=_beit_words,
        stored_as="beit",
        names=tuple(BEIT_SIZES),
        paper="Bao et al. 2022, https://arxiv.org/abs/2106.08254; BEiT v2: Peng et al. 2022; data2vec: Baevski et al. 2022",
    ),
    "vitdet": Family(
        section=VitDetModelConfig,
        parse=parse_vitdet_name,
        name_of=vitdet_name,
        noun="a ViTDet",
        words=_vitdet_words,
        stored_as="vitdet",
        names=tuple(VITDET_SIZES),
        paper="Li et al. 2022, https://arxiv.org/abs/2203.16527; SAM: Kirillov et al. 2023; SAM 3: Carion et al. 2025",
    ),
    "hybrid": Family(
        section=HybridModelConfig,
        parse=parse_hybrid_name,
        name_of=hybrid_name,
        noun="a hybrid ViT",
        words=_hybrid_words,
        stored_as="hybrid",
        names=tuple(HYBRID_SIZES),
        paper="Dosovitskiy et al. 2021, section 3.1, https://arxiv.org/abs/2010.11929; AugReg: Steiner et al. 2022; "
        "MobileCLIP: Vasu et al. 2024",
    ),
    "baseline": Family(
        section=BaselineModelConfig,
        parse=parse_baseline_name,
        name_of=lambda config: str(config.name),
        noun="another library's model",
        words=_baseline_words,
        stored_as="baseline",
    ),
}


def family_of(name: str) -> Family:
    """Return the family of a model's name. Raises ValueError for an unknown name, with the nearest known one."""
    return _resolve(name)[0]


def parse_name(name: str) -> dict[str, Any]:
    """Return the fields of the family's config that a model's name decides. Raises ValueError as `family_of` does."""
    return _resolve(name)[1]


def _resolve(name: str) -> tuple[Family, dict[str, Any]]:
    for family in FAMILIES.values():
        fields = family.parse(name)
        if fields is not None:
            return family, fields
    hint = nearest(name, [known for family in FAMILIES.values() for known in family.names])
    raise ValueError(f'model "{name}" is not a name such as "B/16", "vit_base_patch16_224", "swin_t" or "timm:resnet50"{hint}')


def family_of_config(config: Any) -> Family:
    """Return the family of a config."""
    return next(family for family in FAMILIES.values() if type(config) is family.config)


def name_of(config: Any) -> str:
    """Return the name of a model's config; "custom" or the like for a shape without a name."""
    return family_of_config(config).name_of(config)


def require_fields(name: str, fields: Iterable[str], *, section: str = "") -> None:
    """Raise ValueError for a field that a named model's family does not have; `section` comes before it, "model."."""
    family = family_of(name)
    for field in fields:
        if field not in family.fields() and (section == "" or field not in ("name", "weights")):
            owner = next(other for other in FAMILIES.values() if field in other.fields())
            known = [one for one in family.fields() if one != "name"]
            takes = f": it takes {', '.join(known)}" if len(known) <= _SHOWN else nearest(field, known)
            raise ValueError(f"{section}{field} is a part of {owner.noun}, and {name} is none{takes}; leave it out")


def check_fields(fields: Iterable[str]) -> None:
    """Raise ValueError for a name that is not a field of any family's config."""
    known = list(dict.fromkeys(name for family in FAMILIES.values() for name in family.fields()))
    for name in fields:
        if name not in known:
            spelling = OTHER_SPELLINGS.get(name)
            hint = f'; did you mean "{spelling}"?' if spelling in known else nearest(name, known)
            raise ValueError(f'"{name}" is not a field of a model{hint}')
