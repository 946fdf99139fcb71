from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitrail.models.families import build_on_meta
from vitrail.models.modern import ModernViT
from vitrail.settings.modern import ModernConfig, parse_modern_name

OURS: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 24, "num_classes": 5}
THEIRS: dict[str, Any] = {"dynamic_img_size": True, **OURS}
VARIANTS = [  # one of each kind
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb",
    "vit_small_patch16_lingbot",
    "eva_giant_patch14_224",
    "eva02_small_patch14_224",
    "eva02_base_patch14_224",
    "eva02_base_patch16_clip_224",
    "eva02_enormous_patch14_clip_224",
    "vit_pe_core_base_patch16_224",
    "vit_pe_core_gigantic_patch14_448",
    "vit_pe_lang_large_patch14_448",
    "vit_pe_spatial_base_patch16_512",
    "vit_betwixt_patch16_rope_reg4_gap_256",
    "vit_small_patch16_rope_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_small_patch16_rope_mixed_ape_224",
    "vit_base_patch16_sapiens2",
    "aimv2_large_patch14_224",
]
SIZES = [(24, 24), (32, 20), (16, 40)]


def random(model: nn.Module) -> Any:
    """With weights that tell everything apart."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if "gamma" in name else 0.1)
    return model.eval()


def tiny(name: str, **fields: Any) -> ModernViT:
    more: dict[str, Any] = {"mlp_ratio": 2.0, **fields}
    if "sapiens2" in name:
        more |= {"kv_heads": 1, "full_attention_blocks": 1, "depth": 3}
    if "pe_core" in name:
        more |= {"pool_mlp_ratio": 4.0}
    model: ModernViT = random(ModernViT(ModernConfig(**{**(parse_modern_name(name) or {}), **OURS, **more})))
    return model


def of_timm(name: str) -> nn.Module:
    more: dict[str, Any] = {"mlp_ratio": 2.0}
    if "sapiens2" in name:
        more |= {"num_kv_heads": (2, 1, 2), "depth": 3}
    return timm.create_model(name, **{**THEIRS, **more}).eval()


def some_images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@functools.cache
def names_of_timm() -> list[str]:
    return [*timm.list_models(module="eva"), *timm.list_models("aimv2*")]


# --------------------------------------------------------------------------------------------------------------------
# Parity


@pytest.mark.parametrize("name", VARIANTS)
def test_same_outputs_and_gradients_as_timm(name: str) -> None:
    ours, theirs = tiny(name), of_timm(name)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for size in SIZES:
        images = some_images(*size)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
            features = ours.features(images)
            torch.testing.assert_close(features.tokens, theirs.forward_features(images), atol=1e-5, rtol=1e-5)
            pooled = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
            torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=1e-5)
    for model in (ours, theirs):
        model(some_images(32, 20)).square().sum().backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_all_architectures_of_timm_have_their_tensors() -> None:
    """Every architecture of timm's module `eva`, and AIMv2, on the meta device."""
    assert len(names_of_timm()) >= 77
    for name in names_of_timm():
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=1000)
        ours = build_on_meta(ModernConfig(**(parse_modern_name(name) or {})))
        shapes = [{key: tuple(value.shape) for key, value in model.state_dict().items()} for model in (ours, theirs)]
        assert shapes[0] == shapes[1], name
