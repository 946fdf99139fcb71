"""Every explanation method on modern ViTs: the contract of global attention, with rotations beside the tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vitrail.explain import METHODS, head_statistics
from vitrail.explain.methods.attention import attention_sheet
from vitrail.models.modern import ModernViT
from vitrail.settings import Preprocessing
from vitrail.settings.modern import parse_modern_name

BLOCKS = ("vit_dpwee_patch16_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256", "vit_small_patch16_18x2_224", "test_vit_relpos")
PUBLISHED = ("dinov3_s16", "pe_core_b16", "vit_small_patch16_rope_mixed", "aimv2_l14", "eva02_e14_clip")
NAMES = (*PUBLISHED, *BLOCKS, "vit_srelpos_small_patch16_224")
SHAPE = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32, "num_classes": 3, "mlp_ratio": 2.0}


def model_of(name: str) -> ModernViT:
    torch.manual_seed(0)
    model = ModernViT(**{**(parse_modern_name(name) or {}), **SHAPE}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.preprocessing = Preprocessing(img_size=(32, 32), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return model


def images() -> Tensor:
    return torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(name: str, method: str) -> None:
    options = {"query": (20, 20)} if method == "similarity" else {}
    maps = METHODS[method].run(model_of(name), images(), **options)
    assert maps.maps.shape[0] == 2
    assert maps.maps.isfinite().all()
    assert maps.maps.std() > 0


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_rows_of_the_attention(name: str) -> None:
    model = model_of(name)
    rows = model.attention_maps(images(), layers=[0, 1], queries=[model.prefix_tokens + 7])
    for layer in (0, 1):
        (sheet,) = attention_sheet(model, images(), layers=[layer], heads=[1], query=(20, 12))  # row 1, column 2 of 5
        expected = rows[layer][:, 1, 0, model.prefix_tokens :].unflatten(1, (4, 5))
        torch.testing.assert_close(sheet.maps, expected, atol=1e-5, rtol=1e-4)


def test_statistics_of_heads() -> None:
    for name in ("dinov3_s16", *BLOCKS):
        assert head_statistics(model_of(name), images()).images == 2
