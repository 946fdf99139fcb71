"""View.masked: a mask token in the place of patches, before positions are added."""

from __future__ import annotations

import pytest
import torch

from vitrail.models import create_model
from vitrail.models.backbone import Backbone, MaskedPatches, View

MODELS = {
    "vit": ("Ti/4", {"img_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "beit": ("beit_base_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "dinov3": ("dinov3_vits16", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}),
    "swin": (
        "swin_t",
        {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2},
    ),
    "vitdet": (
        "vitdet_b16",
        {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "window_size": 2, "global_blocks": (1,)},
    ),
    "swin_v2_cr": (
        "swinv2_cr_t",
        {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2},
    ),
    "cait": ("cait_xxs24", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}),
}


def build(name: str) -> Backbone:
    torch.manual_seed(0)
    model, fields = MODELS[name]
    return create_model(model, num_classes=0, **fields).eval()


@pytest.mark.parametrize("name", MODELS)
def test_masked_patches_do_not_show(name: str) -> None:
    model = build(name)
    grid, width = model.stem_tokens((16, 16))
    mask = torch.zeros(2, grid[0] * grid[1], dtype=torch.bool)
    mask[:, 0] = True  # the upper left patch
    view, images = View(masked=MaskedPatches(mask, torch.randn(width))), torch.randn(2, 3, 16, 16)
    patch = 16 // grid[0], 16 // grid[1]
    changed = images.clone()
    changed[:, :, : patch[0], : patch[1]] = 0
    with torch.no_grad():
        assert model.features(images, view).pooled.equal(model.features(changed, view).pooled)
        assert not model.features(images).pooled.equal(model.features(changed).pooled)
        assert not model.features(images, view).pooled.equal(model.features(changed).pooled)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_the_token(name: str) -> None:
    model = build(name)
    grid, width = model.stem_tokens((16, 16))
    token = torch.zeros(width, requires_grad=True)
    mask = torch.arange(grid[0] * grid[1]).expand(2, -1) % 2 == 0
    pooled = model.features(torch.randn(2, 3, 16, 16), View(masked=MaskedPatches(mask, token))).pooled
    (pooled * torch.randn(pooled.shape)).sum().backward()
    assert token.grad is not None
    assert token.grad.abs().sum() > 0


def test_no_mask_is_the_plain_pass() -> None:
    model, images = build("vit"), torch.randn(1, 3, 16, 16)
    view = View(masked=MaskedPatches(torch.zeros(1, 16, dtype=torch.bool), torch.randn(24)))
    with torch.no_grad():
        assert model.features(images, view).pooled.equal(model.features(images).pooled)


def test_others_refuse() -> None:
    cvt = create_model("cvt_13", img_size=32, num_classes=0)
    with pytest.raises(ValueError, match="use a ViT"):
        cvt.stem_tokens((32, 32))
    with pytest.raises(ValueError, match="no sizes, visible, masked"):
        cvt.features(
            torch.zeros(1, 3, 32, 32), View(masked=MaskedPatches(torch.zeros(1, 64, dtype=torch.bool), torch.zeros(64)))
        )
    with pytest.raises(ValueError, match="beyond each patch"):
        create_model("Ti+/16", img_size=32, num_classes=0).stem_tokens((32, 32))
    hybrid = create_model("R+Ti/16", img_size=32, num_classes=0, depth=1)
    with pytest.raises(ValueError, match="use a plain ViT"):
        hybrid.stem_tokens((32, 32))
    with pytest.raises(ValueError, match="use a plain ViT"):
        hybrid.features(
            torch.zeros(1, 3, 32, 32), View(masked=MaskedPatches(torch.zeros(1, 4, dtype=torch.bool), torch.zeros(192)))
        )
