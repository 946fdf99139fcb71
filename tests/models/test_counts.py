"""Counts of a model with one block of each kind and no data, held to what torch counts on the whole model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitrail.models.backbone import Backbone
from vitrail.models.counts import Counts, count
from vitrail.models.families import BUILDERS, build_on_meta, one_of_each
from vitrail.settings import ViTConfig, pair
from vitrail.settings.baseline import BaselineConfig
from vitrail.settings.cait import CaitConfig
from vitrail.settings.cvt import CvtConfig
from vitrail.settings.families import FAMILIES, parse_name
from vitrail.settings.hybrid import HybridConfig
from vitrail.settings.modern import ModernConfig
from vitrail.settings.swin import SwinConfig
from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.settings.swin_v2_cr import SwinV2CrConfig
from vitrail.settings.vitdet import VitDetConfig

VIT = ViTConfig(img_size=32, patch_size=4, in_channels=3, num_classes=10, embed_dim=48, depth=3, num_heads=3)
SWIN = SwinConfig(img_size=64, num_classes=10, embed_dim=24, depths=(2, 1, 3), num_heads=(2, 3, 4), window_size=4)
CAIT = CaitConfig(img_size=32, patch_size=4, num_classes=10, embed_dim=24, depth=3, num_heads=3)
CVT = CvtConfig(img_size=64, num_classes=10, embed_dims=(8, 12, 16), depths=(1, 2, 3), num_heads=(1, 3, 2))
SWIN_V2 = SwinV2Config(img_size=64, num_classes=10, embed_dim=24, depths=(2, 1, 3), num_heads=(2, 3, 4), window_size=4)
VITDET = VitDetConfig(img_size=96, num_classes=10, embed_dim=24, depth=5, num_heads=3, window_size=4, global_blocks=(1, 4))
SWIN_V2_CR = SwinV2CrConfig(img_size=64, num_classes=10, embed_dim=24, depths=(2, 1, 3), num_heads=(2, 3, 4))
HYBRID = HybridConfig(
    img_size=64, num_classes=10, cnn_depths=(2, 1), cnn_width=32, patch_size=8, embed_dim=24, depth=2, num_heads=3
)
MODERN: dict[str, Any] = {"img_size": 32, "patch_size": 4, "num_classes": 10, "embed_dim": 48, "depth": 3, "num_heads": 3}
VARIANTS: list[Any] = [
    *(
        dataclasses.replace(VIT, **fields)
        for fields in (
            {},
            {"img_size": (24, 40), "patch_size": (4, 8)},
            {"pool": "map", "reg_tokens": 2},
            {"pool": "map", "pool_include_prefix": True, "mlp": "swiglu"},
            {"head": "mlp", "dist_token": True},
            {"pool": "cls+avg"},
            {"stem": "conv", "head_dim": 8, "qk_norm": True},
            {"patch_norm": True, "fc_norm": True, "pre_norm": True, "init_values": 1e-4},
            {"num_classes": 0, "pos_embed": "none", "depth": 0},
            {"pos_embed": "sincos2d", "qkv_bias": False},
        )
    ),
    *(
        dataclasses.replace(SWIN, **fields)
        for fields in ({}, {"img_size": (50, 71)}, {"img_size": 16}, {"num_classes": 0, "in_channels": 1, "mlp_ratio": 2.5})
    ),
    *(
        dataclasses.replace(CAIT, **fields)
        for fields in (
            {},
            {"img_size": (24, 40), "patch_size": (4, 8), "depth": 1},
            {"class_depth": 3, "num_classes": 0, "in_channels": 1, "mlp_ratio": 2.5, "qkv_bias": False},
        )
    ),
    *(
        dataclasses.replace(CVT, **fields)
        for fields in ({}, {"img_size": (50, 71)}, {"kv_stride": 1, "num_classes": 0, "in_channels": 1, "mlp_ratio": 2.5})
    ),
    *(
        dataclasses.replace(HYBRID, **fields)
        for fields in (
            {},
            {"img_size": (64, 96), "patch_size": (16, 8), "in_channels": 1},
            {"cnn_depths": (), "patch_size": 4, "pool": "map"},
            {"cnn": "resnet-d", "cnn_depths": (1, 2, 1), "patch_size": 32, "num_classes": 0},
            {"cnn": "patches", "cnn_depths": (), "patch_size": 16},
        )
    ),
    *(
        ModernConfig(**{**MODERN, **fields})
        for fields in (
            {},
            {"rope": "mixed", "rope_layout": "interleaved"},
            {"block": "pair", "rope": "none", "key_bias": True},
            {"block": "parallel", "rope": "none", "key_bias": True},
            {"qkv": "split", "kv_heads": 1, "full_attention_blocks": 1},
        )
    ),
    *(
        dataclasses.replace(SWIN_V2, **fields)
        for fields in ({}, {"img_size": (50, 71), "window_size": 5, "window_sizes": (5, 4, 2)})
    ),
    *(
        dataclasses.replace(VITDET, **fields)
        for fields in (
            {},
            {"img_size": (64, 80), "residual_blocks": (1, 3), "neck": "none", "pos_embed": "none", "num_classes": 0},
            {"window_size": 0, "neck": "norm", "relative": "none"},
            {"relative": "rotary", "pre_norm": True, "embed_dim": 36, "pos_grid": 3, "pos_resize": "tile", "neck_channels": 8},
        )
    ),
    *(
        dataclasses.replace(SWIN_V2_CR, **fields)
        for fields in (
            {},
            {"img_size": (50, 71), "window_size": (5, 4), "extra_norm_stage": True},
            {"extra_norm_period": 2, "final_norm": False, "window_ratio": 3},
        )
    ),
]


def count_pass(model: Backbone) -> Counts:
    """Count a whole model by torch's counter."""
    image = torch.empty(1, model.config.in_channels, *pair(model.config.img_size), device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Counts(parameters, sum(value.nbytes for value in model.state_dict().values()), counter.get_total_flops())


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_counts_are_what_torch_counts(config: Any) -> None:
    assert count(config) == count_pass(build_on_meta(config))


NAMED = ["Ti/16", "L/14", "swin_t", "swin_b", "swinv2_t", "swinv2_cr_h"]
NAMED += ["beit_b16", "cait_xxs24", "cvt_13", "cvt_w24", "sam_b16", "sam3_l14"]
NAMED += ["R50+B/16", "vit_small_resnet26d"]


@pytest.mark.parametrize("name", NAMED)
def test_a_named_size_is_counted_as_torch_counts_it(name: str) -> None:
    family = next(family for family in FAMILIES.values() if name in family.names)
    config = family.config(**parse_name(name))
    assert count(config) == count_pass(build_on_meta(config))


def test_every_family_with_a_table_of_sizes_builds_one_block_of_each_kind() -> None:
    """Whole models would take the table of sizes a minute."""
    named = {family.config for family in FAMILIES.values() if family.names}
    assert named == {config for config, builder in BUILDERS.items() if builder.one_of_each is not None}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_size_is_counted_on_one_block_of_a_kind(name: str) -> None:
    family = next(family for family in FAMILIES.values() if name in family.names)
    config = family.config(**parse_name(name))
    model, counts = one_of_each(config)
    assert len(model.blocks_in_order()) == len(counts) <= 8  # two of a stage
    assert sum(counts) == len(build_on_meta(config).blocks_in_order())


def test_another_librarys_model_is_counted_by_its_pass() -> None:
    config = BaselineConfig(name="torchvision:resnet18")
    assert count(config) == count_pass(build_on_meta(config))


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"img_size": 30}, "30 is not a multiple of patch 4"), ({"in_channels": 0}, "in_channels 0 must be at least 1")],
)
def test_an_invalid_shape_is_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        count(dataclasses.replace(VIT, **fields))
