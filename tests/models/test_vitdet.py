"""ViTDet and SAM's image encoders beside timm and transformers, and what a backbone has to do."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vitrail
from vitrail.explain import METHODS
from vitrail.models.backbone import View
from vitrail.models.vitdet import Bottleneck, VitDet, decomposed_bias, resize_offsets
from vitrail.settings.families import family_of_config
from vitrail.settings.vitdet import VITDET_SIZES, VitDetConfig, parse_vitdet_name, spread_blocks, vitdet_name
from vitrail.weights.libraries.transformers.vitdet import SAM3_LAYOUT, SAM_LAYOUT, VITDET_LAYOUT
from vitrail.weights.targets import rename_family

SHAPE: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5, "img_size": 96, "window_size": 4}
SHAPE |= {"global_blocks": (1,), "neck_channels": 8}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # our fields, and timm's arguments
    "SAM": ({}, {}),
    "one norm, no positions": ({"neck": "norm", "pos_embed": "none"}, {"neck_chans": 0, "use_abs_pos": False}),
    "no tables, norm before": ({"relative": "none", "pre_norm": True}, {"use_rel_pos": False, "pre_norm": True}),
    "no windows, no bias": ({"window_size": 0, "qkv_bias": False}, {"window_size": 0, "qkv_bias": False}),
}
SIZES = [(96, 96), (64, 160), (128, 80)]


def random(model: nn.Module) -> Any:
    """With weights that tell everything apart."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if "rel_pos" in name else 0.2, generator=generator)
    return model.eval()


def vitdet(**fields: Any) -> VitDet:
    model: VitDet = random(VitDet(**{**SHAPE, **fields}))
    return model


def images(height: int = 96, width: int = 96, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def of_timm(ours: VitDet, **arguments: Any) -> Any:
    shape = {"img_size": 96, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5, "window_size": 4, "neck_chans": 8}
    theirs = timm.create_model("samvit_base_patch16", **{**shape, "global_attn_indexes": (1,), **arguments}).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


# --------------------------------------------------------------------------------------------------------------------
# Equal to the other libraries


@pytest.mark.parametrize("name", VITDET_SIZES)
def test_sizes_have_the_published_parameters(name: str) -> None:
    published = {"vitdet_b16": 89_653_992, "vitdet_l16": 308_452_328, "vitdet_h16": 637_391_080}
    published |= {"sam_b16": 89_927_912, "sam_l16": 308_535_272, "sam_h16": 637_283_048, "sam3_l14": 447_261_672}
    with torch.device("meta"):
        model = vitrail.create_model(name)
        if name == "sam3_l14":
            peer: Any = transformers.Sam3ViTModel(transformers.Sam3ViTConfig())
            peer.head = nn.Linear(1024, 1000)
        else:
            size = {"b": "base", "l": "large", "h": "huge"}[name[-3]]
            neck = {"neck_chans": 0} if name.startswith("vitdet") else {}
            peer = timm.create_model(f"samvit_{size}_patch16", num_classes=1000, **neck)
            shapes = {key: value.shape for key, value in peer.state_dict().items()}
            assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    counts = [sum(parameter.numel() for parameter in one.parameters()) for one in (model, peer)]
    assert counts == [published[name]] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_same_outputs_as_timm(kind: str) -> None:
    fields, arguments = KINDS[kind]
    ours = vitdet(**{"norm_eps": 1e-5, **fields})
    theirs = of_timm(ours, **{"use_rel_pos": True, **arguments})
    for size in SIZES:
        x = images(*size)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ours.features(x).pyramid, (theirs.forward_features(x),), atol=1e-5, rtol=1e-5)
            behind = ours.features(x, View(blocks=(0, 2))).pyramid
            expected = theirs.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
            torch.testing.assert_close(behind, tuple(expected), atol=1e-5, rtol=1e-5)


def test_gradients_are_timm_s() -> None:
    ours, x = vitdet(), images(64, 96)
    theirs = of_timm(ours)
    for model in (ours, theirs):
        model(x).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4)


def peer_of_transformers(ours: VitDet, kind: str, *, image: int = 96) -> Any:
    """transformers' model with our weights."""
    shape: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "layer_norm_eps": 1e-5}
    shape |= {"image_size": image, "window_size": 4}
    makes: dict[str, Any] = {
        "SamVision": lambda: (SAM_LAYOUT, {"output_channels": 8, "global_attn_indexes": [1]}),
        "SamHQVision": lambda: (SAM_LAYOUT, {"output_channels": 8, "global_attn_indexes": [1]}),
        "VitDet": lambda: (
            VITDET_LAYOUT,
            {
                "window_block_indices": [0, 2],
                "residual_block_indices": [0],
                "pretrain_image_size": 48,
                "use_relative_position_embeddings": True,
            },
        ),
        "Sam3ViT": lambda: (
            SAM3_LAYOUT,
            {"patch_size": 16, "global_attn_indexes": [1], "intermediate_size": 96, "pretrain_image_size": 64},
        ),
    }
    layout, more = makes[kind]()
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**shape, **more)).eval()
    theirs.load_state_dict(rename_family(ours, layout), strict=True)
    return theirs


def tokens_of(theirs: Any, x: Tensor) -> Tensor:
    out: Tensor = theirs(x).last_hidden_state
    return out.flatten(2).mT if out.ndim == 4 else out


@pytest.mark.parametrize("kind", ["SamVision", "SamHQVision"])
def test_same_outputs_as_sam_of_transformers(kind: str) -> None:
    """At the size that it is built for: others it refuses."""
    ours, x = vitdet(num_classes=0), images()
    theirs = peer_of_transformers(ours, kind)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(x).tokens, tokens_of(theirs, x), atol=1e-5, rtol=1e-5)
        if kind == "SamHQVision":  # it takes the maps behind the blocks over the whole image, too
            (behind,) = ours.features(x, View(blocks=(1,))).pyramid or ()
            torch.testing.assert_close(behind.permute(0, 2, 3, 1), theirs(x).intermediate_embeddings[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_same_outputs_as_vitdet_of_transformers(size: tuple[int, int]) -> None:
    fields = {"neck": "none", "num_classes": 0, "pos_grid": 3, "pos_resize": "cubic", "residual_blocks": (0,)}
    ours, x = vitdet(**fields), images(*size)
    theirs = peer_of_transformers(ours, "VitDet")
    with torch.no_grad():
        torch.testing.assert_close(ours.features(x).tokens, tokens_of(theirs, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [64, 96, 144])
def test_same_outputs_as_sam_3_of_transformers(side: int) -> None:
    """Each at the size that it is built for; positions are repeated, and rotations stretched."""
    fields = {"neck": "none", "num_classes": 0, "pos_grid": 4, "pos_resize": "tile", "relative": "rotary", "pre_norm": True}
    ours, x = vitdet(**fields), images(side, side)
    theirs = peer_of_transformers(ours, "Sam3ViT", image=side)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(x).tokens, tokens_of(theirs, x), atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Relative positions


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_the_bias_of_a_pair_is_that_of_its_offsets(height: int, width: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 2, height * width, dim, generator=generator)
    rows, columns = (torch.randn(2 * side - 1, dim, generator=generator) for side in (height, width))
    bias = decomposed_bias(q, rows, columns, (height, width))
    for i in range(height * width):
        for j in range(height * width):
            (y, x), (v, u) = divmod(i, width), divmod(j, width)
            expected = q[:, :, i] @ (rows[y - v + height - 1] + columns[x - u + width - 1])
            torch.testing.assert_close(bias[:, :, i, j], expected)


@given(st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_resized_offsets_keep_constants_and_the_middle(old: int, new: int) -> None:
    table = torch.linspace(-1, 1, 2 * old - 1)[:, None] if old > 1 else torch.zeros(1, 1)
    resized = resize_offsets(table, side=new)
    assert resized.shape == (2 * new - 1, 1)
    assert resized[new - 1].item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(resize_offsets(torch.ones_like(table), side=new), torch.ones_like(resized))
    assert resize_offsets(table, side=old) is table


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (32, (7, 15, 23, 31)), (6, (1, 2, 4, 5)), (2, (0, 1))]
)
def test_blocks_over_the_whole_image_are_the_papers(depth: int, blocks: tuple[int, ...]) -> None:
    assert spread_blocks(depth) == blocks


# --------------------------------------------------------------------------------------------------------------------
# The contract of a backbone


def test_stages_hold_every_parameter_once() -> None:
    model = VitDet(**SHAPE, residual_blocks=(0,), pre_norm=True)
    stages = model.stages()
    assert [stage.name for stage in stages] == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    for name, _ in model.named_parameters():
        assert sum(stage.owns(name) for stage in stages) == 1, name
        assert (name in model.no_decay) == name.endswith(("rel_pos_h", "rel_pos_w", "pos_embed"))


def test_recomputing_the_blocks_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        model = vitdet(relative="rotary", embed_dim=36).train()
        model.checkpointing = recompute
        model(images(64, 96)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_gradients_of_the_logits_reach_the_map() -> None:
    model, x = vitdet(), images()
    features = model.features(x)
    assert features.pyramid is not None
    (gradient,) = torch.autograd.grad(model.head(features.pooled).sum(), features.pyramid)
    assert gradient.abs().sum() > 0
    assert (features.prefix, features.grid) == (0, (6, 6))
    assert features.tokens is not None
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


def test_a_fresh_bottleneck_changes_nothing() -> None:
    model = VitDet(**SHAPE, residual_blocks=(0,))
    bottleneck = model.blocks[0].residual
    assert isinstance(bottleneck, Bottleneck)
    x = torch.randn(1, 24, 6, 6)
    assert torch.equal(bottleneck(x), x)


def test_padded_images() -> None:
    model, x = vitdet(), images(60, 50)
    assert torch.equal(model.features(x, View(pad=True)).pooled, model.embedding(nn.functional.pad(x, (0, 14, 0, 4))))
    with pytest.raises(ValueError, match=r"image side 60 is not a multiple of patch 16; use 64, or pad=True"):
        model(x)


@pytest.mark.parametrize(
    "view", [View(sizes=torch.tensor([[64, 64]] * 2)), View(patch_size=8), View(visible=torch.tensor([[0]] * 2))]
)
def test_views_that_windows_do_not_have(view: View) -> None:
    with pytest.raises(ValueError, match="no sizes, visible or patch_size; use a ViT"):
        vitdet().features(images(), view)


def test_blocks_and_channels_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="block 3 does not exist; this model has blocks 0 to 2"):
        vitdet().features(images(), View(blocks=(3,)))
    with pytest.raises(ValueError, match="images have 1 channels, and the model takes 3"):
        vitdet()(torch.zeros(1, 1, 96, 96))


@pytest.mark.parametrize("method", METHODS)
def test_methods_of_maps_run_and_those_of_attention_say_why_not(method: str) -> None:
    model, x = vitdet(), images(64, 96)
    if method in ("attention", "rollout", "relevance"):
        with pytest.raises(ValueError, match=f'"{method}" needs'):
            METHODS[method].run(model, x)
    else:
        assert METHODS[method].run(model, x, **({"query": (0, 0)} if method == "similarity" else {})).maps.isfinite().all()


# --------------------------------------------------------------------------------------------------------------------
# Names and shapes


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("samvit_large_patch16", {"embed_dim": 1024, "depth": 24, "neck": "conv"}),
        ("samvit_base_patch16_224", {"img_size": 224, "neck": "norm", "pos_embed": "none"}),
        ("sam3_l14", {"relative": "rotary", "window_size": 24, "patch_size": 14}),
    ],
)
def test_names(name: str, fields: dict[str, Any]) -> None:
    parsed = parse_vitdet_name(name)
    assert parsed is not None
    assert {key: parsed[key] for key in fields} == fields


def test_a_shape_has_its_name_at_any_image_size() -> None:
    row = parse_vitdet_name("samvit_base_patch16") or {}
    config = VitDetConfig(**{**row, "img_size": 512, "global_blocks": (2, 5, 8, 11)})
    assert vitdet_name(config) == "sam_b16"
    words = family_of_config(config).words(config)
    assert (words.name, words.title) == ("SAM-B/16", "SAM")
    assert vitdet_name(VitDetConfig(depth=13)) == "vitdet_custom"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 5}, "embed_dim 24 is not a multiple of num_heads 5"),
        ({"img_size": 60}, "image side 60 is not a multiple of patch 16"),
        ({"global_blocks": (3,)}, "global_blocks has 3, which does not exist; the blocks are 0 to 2"),
        ({"relative": "rotary", "num_heads": 4}, "a head of 6 channels can't be turned along two axes"),
        (
            {"relative": "rotary", "window_size": 0, "embed_dim": 36},
            'relative "rotary" counts in windows, and window_size is 0',
        ),
        ({"pos_grid": 3, "pos_embed": "none"}, 'pos_grid 3 must be at least 1 patch, and needs pos_embed "learn"'),
        ({"window_size": -1}, "window_size -1 must not be negative; 0 is none"),
        ({"depth": 0}, "depth 0 must be at least 1"),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VitDet(**{**SHAPE, **fields})


def test_a_name_that_is_nearly_right() -> None:
    with pytest.raises(ValueError, match=r'model "sam_x16" is none of vitdet_b16, .*did you mean'):
        vitrail.create_model("sam_x16")
