"""Blocks side by side and in pairs, differential attention and relative positions: equal to timm's, and in every view."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vitrail.models.backbone import View
from vitrail.models.families import build_on_meta
from vitrail.models.modern import ModernViT
from vitrail.models.relative_mlp import RelativePlaces
from vitrail.settings.modern import ModernConfig, modern_name, parse_modern_name

OURS: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 24, "num_classes": 5}
BLOCKS = [
    "vit_base_patch16_xp_224",
    "vit_base_patch16_rpn_224",
    "vit_small_patch16_18x2_224",
    "vit_dwee_patch16_reg1_gap_256",
    "vit_pwee_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256",
    "beit3_base_patch16_224",
]
RELATIVE = [
    "test_vit_relpos",
    "vit_relpos_base_patch16_plus_240",
    "vit_srelpos_small_patch16_224",
    "vit_relpos_medium_patch16_cls_224",
    "vit_relpos_base_patch16_clsgap_224",
    "vit_relpos_small_patch16_rpn_224",
]
KINDS = [*BLOCKS, *RELATIVE]
ALL_OF_TIMM = ["*_xp_*", "vit_base_patch16_rpn_224", "*18x2*", "vit_d*wee*", "vit_pwee*", "vit_dlittle*", "beit3*", "*relpos*"]


def random(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if "gamma" in name or "lambda" in name or "rel_pos" in name else 0.1)
    return model.eval()


def tiny(name: str, **fields: Any) -> ModernViT:
    model: ModernViT = random(ModernViT(**{**(parse_modern_name(name) or {}), **OURS, "mlp_ratio": 2.0, **fields}))
    return model


def of_timm(name: str) -> Any:
    more: dict[str, Any] = {"mlp_ratio": 2.0, **OURS}
    if "relpos" not in name:
        more["dynamic_img_size"] = True
    return timm.create_model(name, **more).eval()


def some_images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------------------------------------------
# Parity


@pytest.mark.parametrize("name", KINDS)
def test_same_outputs_and_gradients_as_timm(name: str) -> None:
    ours, theirs = tiny(name), of_timm(name)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for size in [(24, 24), (32, 20), (16, 40)]:
        if "relpos" in name:
            theirs.set_input_size(size)
        images = some_images(*size)
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
            features, tokens = ours.features(images), theirs.forward_features(images)
            torch.testing.assert_close(features.tokens, tokens, atol=1e-5, rtol=1e-5)
            pooled = theirs.forward_head(tokens, pre_logits=True)
            torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=1e-5)
    for model in (ours, theirs):
        model(some_images(16, 40)).square().sum().backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_all_architectures_of_timm_have_their_tensors() -> None:
    names = timm.list_models(ALL_OF_TIMM)
    assert len(names) == 28
    for name in names:
        with torch.device("meta"):
            theirs = timm.create_model(name)
        config = ModernConfig(**(parse_modern_name(name) or {}))
        shapes = [
            {key: tuple(value.shape) for key, value in model.state_dict().items()} for model in (build_on_meta(config), theirs)
        ]
        assert shapes[0] == shapes[1], name
        assert parse_modern_name(modern_name(config)) is not None


# --------------------------------------------------------------------------------------------------------------------
# Views


@pytest.mark.parametrize("name", KINDS)
def test_visible_patches_attend_to_each_other_alone(name: str) -> None:
    model, x = tiny(name), some_images(24, 16)
    order = torch.stack([torch.randperm(24), torch.randperm(24)])
    whole, shuffled = model.features(x), model.features(x, View(visible=order))
    assert whole.tokens is not None
    assert shuffled.tokens is not None
    torch.testing.assert_close(shuffled.pooled, whole.pooled, atol=1e-5, rtol=1e-5)
    patches = whole.tokens[:, whole.prefix :].gather(1, order[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(shuffled.tokens[:, whole.prefix :], patches, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_vit_relpos", "vit_srelpos_small_patch16_224", "vit_relpos_medium_patch16_cls_224"])
def test_relative_positions_are_those_on_the_image(name: str) -> None:
    model, x = tiny(name), some_images(16, 24)
    canvas = torch.randn(2, 3, 32, 28)
    canvas[:, :, :16, :24] = x
    sizes = torch.tensor([[16, 24], [16, 24]])
    torch.testing.assert_close(model(canvas, sizes=sizes), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_images_of_many_sizes_are_packed_or_refused(name: str) -> None:
    model, sizes = tiny(name), [(24, 16), (16, 24), (8, 8)]
    canvas = torch.randn(3, 3, 24, 24)
    if "relpos" in name:
        with pytest.raises(ValueError, match="ModernViT has a bias for pairs of tokens, so images can't be packed"):
            model.packed_logits(canvas, sizes)
        return
    alone = torch.cat([model(canvas[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(sizes)])
    torch.testing.assert_close(model.packed_logits(canvas, sizes), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_attention_maps_are_those_of_the_pass(name: str) -> None:
    model, x = tiny(name), some_images(24, 24)
    tokens, heads = model.prefix_tokens + 36, model.attention_heads()
    (maps,) = model.attention_maps(x, layers=[0], queries="all").values()
    assert maps.shape == (2, heads, tokens, tokens)
    tokens_in, context = model.embed(x, pad=False, sizes=None)
    kept: list[Any] = []
    model.blocks[0](tokens_in, context, kept)
    torch.testing.assert_close(maps @ kept[0].values, kept[0].out, atol=1e-5, rtol=1e-5)


def test_pairs_with_a_prefix_token_have_no_bias() -> None:
    model = tiny("vit_srelpos_small_patch16_224", class_token=True)
    relative = model.context((6, 6), patch=(4, 4), sizes=None, device=torch.device("cpu")).relative
    assert isinstance(relative, RelativePlaces)
    assert relative.shared is not None
    assert relative.shared.shape == (1, 2, 37, 37)
    assert not relative.shared[..., 0, :].any()
    assert not relative.shared[..., 0].any()
    assert relative.shared[..., 1:, 1:].any()


# --------------------------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize("name", KINDS)
def test_stages_hold_every_parameter_and_every_layer_starts_anew(name: str) -> None:
    model = tiny(name, drop_path_rate=0.1)
    for key, _ in model.named_parameters():
        assert sum(stage.owns(key) for stage in model.stages()) == 1, key
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.reset_parameters()
    for key, value in model.state_dict().items():
        assert not torch.equal(value, before[key]), key
    assert all(value.abs().max() < 2 for value in model.state_dict().values())


@pytest.mark.parametrize("name", ["vit_dpwee_patch16_reg1_gap_256", "vit_small_patch16_18x2_224", "test_vit_relpos"])
def test_recomputing_the_blocks_changes_no_gradient(name: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = tiny(name).train()
        model.checkpointing = recompute
        model(some_images(24, 24)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"block": "parallel"}, r'rope "centred" does not go with block "parallel"; use "none"'),
        ({"block": "pair", "rope": "none"}, r'key_bias false does not go with block "pair"; use true'),
        (
            {"attention": "differential", "rope": "none", "qkv": "split"},
            'qkv "split" does not go with attention "differential"; use "fused"',
        ),
        (
            {"attention": "differential", "rope": "none", "key_bias": True, "embed_dim": 6, "num_heads": 2},
            'attention "differential" halves a head of 3 channels; use an even number',
        ),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ModernViT(**fields)
