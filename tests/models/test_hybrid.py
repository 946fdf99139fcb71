"""Hybrids beside timm's: the same outputs and gradients, at any image size, and what a backbone has to do."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import pad_same
from torch import Tensor, nn

import vitrail
from timm_hybrid import KINDS, SHAPE, WIDTH, randomise, timm_hybrid
from vitrail.explain import METHODS
from vitrail.explain.statistics import filter_components, first_convolution
from vitrail.models.backbone import View
from vitrail.models.counts import count
from vitrail.models.hybrid import Hybrid
from vitrail.models.positions import resize_positions
from vitrail.models.resnet_stem import StdConv, same_pad
from vitrail.settings import OptimConfig
from vitrail.settings.hybrid import HYBRID_SIZES, TIMM_NAMES, HybridConfig, parse_hybrid_name
from vitrail.train.optim import group_table

SIZES = [(64, 64), (96, 96), (32, 80)]


def hybrid(kind: str = "bit", **fields: Any) -> Hybrid:
    torch.manual_seed(0)
    model: Hybrid = randomise(Hybrid(**{"img_size": 64, "cnn_width": WIDTH, **SHAPE, **KINDS[kind], **fields}))
    return model


def images(height: int = 64, width: int = 64, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------------------------------------------
# Equal to timm


@pytest.mark.parametrize("name", HYBRID_SIZES)
def test_sizes_have_timm_s_parameters(name: str) -> None:
    published = {
        "R+Ti/16": 6_337_704,
        "R26+S/32": 36_431_912,
        "R26+B/32": 101_383_976,
        "R50+B/16": 98_659_112,
        "R50+L/32": 328_994_856,
        "vit_small_resnet26d": 63_608_392,
        "vit_small_resnet50d_s16": 57_531_976,
        "vit_base_resnet26d": 101_403_208,
        "vit_base_resnet50d": 110_965_064,
        "vit_base_mci": 86_724_328,
    }
    assert count(HybridConfig(**HYBRID_SIZES[name]._asdict())).parameters == published[name]


@pytest.mark.parametrize("name", ["R+Ti/16", "R26+S/32", "vit_small_resnet50d_s16", "vit_base_mci"])
def test_tensors_are_timm_s(name: str) -> None:
    long = {ours: theirs for theirs, ours in TIMM_NAMES.items()}.get(name, name)
    with torch.device("meta"):
        model = vitrail.create_model(name, depth=1)
        theirs = timm.create_model(f"{long}_224", depth=1, num_classes=1000)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


def test_every_hybrid_of_timm_has_its_name() -> None:
    for name in timm.list_models(module="vision_transformer_hybrid"):
        fields = parse_hybrid_name(name)
        assert fields is not None, name
        assert fields["img_size"] == int(name.rpartition("_")[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_same_outputs_as_timm(kind: str, size: tuple[int, int]) -> None:
    ours, theirs, x = hybrid(kind), timm_hybrid(kind, img_size=size), images(*size)
    state = ours.state_dict()
    grid = theirs.patch_embed.grid_size
    state["pos_embed"] = resize_positions(state["pos_embed"], old=ours.grid, new=grid, prefix=ours.placed_tokens)
    theirs.load_state_dict(state, strict=True)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 0.05
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
        seen = ours.features(x)
        torch.testing.assert_close(seen.tokens, theirs.forward_features(x), atol=1e-5, rtol=1e-5)
    assert (seen.prefix, seen.grid) == (1, grid)
    assert seen.pyramid is not None
    assert [one.shape for one in seen.pyramid] == [(2, 24, *grid)]


@pytest.mark.parametrize("kind", ["bit", "resnet-d", "patches"])
def test_gradients_and_statistics_are_timm_s(kind: str) -> None:
    """In double precision: where a ReLU or a maximum decides between nearly equal values, single precision tosses a coin."""
    ours, theirs = hybrid(kind).double(), timm_hybrid(kind).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for model in (ours, theirs):
        model.train()(images(count=4).double()).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-7, rtol=1e-7)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name), atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# The CNN


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(7, 2), (3, 2), (1, 2), (3, 1)]))
@settings(max_examples=25, deadline=None)
def test_padding_gives_a_cell_for_every_stride_begun(height: int, width: int, geometry: tuple[int, int]) -> None:
    kernel, stride = geometry
    x = torch.randn(1, 1, height, width)
    padded = same_pad(x, kernel=kernel, stride=stride)
    assert torch.equal(padded, pad_same(x, [kernel, kernel], [stride, stride]))
    cells = nn.functional.max_pool2d(padded, kernel, stride).shape[2:]
    assert cells == (-(-height // stride), -(-width // stride))


@pytest.mark.parametrize("eps", ["timm", "google"])
def test_filters_have_mean_zero_and_variance_one(eps: Any) -> None:
    layer = StdConv(8, 16, 3, cfg=HybridConfig(cnn_eps=eps))
    nn.init.normal_(layer.weight, mean=3.0, std=0.5)
    filters = layer.standardised().flatten(1)
    torch.testing.assert_close(filters.mean(1), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(filters.var(1, correction=0), torch.ones(16), atol=1e-4, rtol=0)
    deviations = layer.weight.double().flatten(1).std(1, correction=0)
    expected = deviations / (deviations + 1e-5) if eps == "google" else deviations / (deviations**2 + 1e-8).sqrt()
    torch.testing.assert_close(filters.double().std(1, correction=0), expected, atol=1e-6, rtol=0)


def test_a_fresh_cnn_begins_as_its_shortcuts() -> None:
    torch.manual_seed(0)
    for kind in ("bit", "resnet-d"):
        model = Hybrid(img_size=64, cnn_width=WIDTH, **SHAPE, **KINDS[kind])
        last = [value for name, value in model.named_parameters() if name.endswith(("norm3.weight", "bn3.weight"))]
        assert last
        assert not any(value.any() for value in last)
    weight = model.get_parameter("patch_embed.backbone.layer2.0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / weight[:, 0].numel()) ** 0.5, rel=0.1)


def test_one_layer_is_initialised_alone() -> None:
    model = hybrid("bit")
    name = "patch_embed.backbone.stages.0.blocks.0.conv1.weight"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.reset_parameters({name})
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])] == [name]


# --------------------------------------------------------------------------------------------------------------------
# The contract of a backbone


@pytest.mark.parametrize("kind", KINDS)
def test_the_cnn_is_the_first_stages(kind: str) -> None:
    model = hybrid(kind)
    stages = model.stages()
    cnn = [f"patch_embed.backbone.{path}" for path in model.patch_embed.backbone.stage_paths]
    assert [stage.name for stage in stages] == ["stem", *cnn, "blocks.0", "blocks.1", "head"]
    assert len(model.blocks_in_order()) == len(KINDS[kind]["cnn_depths"]) + 2
    for name, _ in model.named_parameters():
        assert sum(stage.owns(name) for stage in stages) == 1, name
    assert stages[0].owns(f"{model.stems[0]}.weight")
    rows = {row.name: row for row in group_table(model, OptimConfig(layer_decay=0.5, freeze=len(cnn)))}
    frozen = {name for name, row in rows.items() if row.optimizer == "frozen"}
    assert frozen == ({name for name in rows if "backbone" in name} if cnn else set())
    assert rows["cls_token"].lr_factor == rows["blocks.0.norm1.weight"].lr_factor == 0.25


@pytest.mark.parametrize("kind", ["bit", "resnet-d", "patches"])
def test_recomputing_changes_neither_gradients_nor_statistics(kind: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = hybrid(kind).train()
        model.checkpointing = recompute
        model(images()).square().sum().backward()
        gradients.append([*(parameter.grad for parameter in model.parameters()), *model.buffers()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_a_recomputed_cnn_keeps_no_activations() -> None:
    kept: list[int] = []
    for recompute in (False, True):
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        model = hybrid("bit").train()
        model.checkpointing = recompute
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(images())
        kept.append(total)
    assert kept[1] < kept[0] / 3


def test_a_fresh_head() -> None:
    for kind in ("bit", "patches"):
        model = hybrid(kind)
        model.reset_head(7)
        assert model(images()).shape == (2, 7)
        model.reset_head(0)
        torch.testing.assert_close(model(images()), model.embedding(images()))


def test_padded_images_and_packed_ones() -> None:
    model = hybrid("bit")
    padded = nn.functional.pad(images(60, 50), (0, 6, 0, 4))
    assert torch.equal(model(images(60, 50), pad=True), model(padded))
    with pytest.raises(ValueError, match=r"image side 60 is not a multiple of patch 8; use 64, or pad=True"):
        model(images(60, 50))
    canvas = images(64, 64)
    packed = model.packed_logits(canvas, [(64, 64), (32, 48)])
    torch.testing.assert_close(packed[1:], model(canvas[1:, :, :32, :48]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (
            View(visible=torch.zeros(2, 1, dtype=torch.long)),
            "a hybrid's CNN looks beyond each patch, so hidden ones would show",
        ),
        (View(sizes=torch.full((2, 2), 32)), "a hybrid's CNN sees whole canvases, so images on them would change; pack images"),
        (View(patch_size=16), "with a CNN before its patches cuts its own patches of 8x8 and no others, not 16x16"),
    ],
)
def test_views_that_a_hybrid_does_not_have(view: View, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hybrid("bit").features(images(), view)
    with pytest.raises(ValueError, match="images have 1 channels, and the model takes 3"):
        hybrid("bit")(torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_explanation_runs(method: str) -> None:
    assert METHODS[method].run(hybrid("bit", cnn_depths=(1,), patch_size=16), images(32, 48)).maps.isfinite().all()


def test_the_filters_shown_are_those_of_the_first_convolution() -> None:
    sides = {kind: first_convolution(hybrid(kind)).kernel_size for kind in KINDS}
    assert sides == dict(zip(KINDS, [(7, 7), (7, 7), (7, 7), (3, 3), (4, 4)], strict=True))
    assert filter_components(hybrid("bit"))[0].shape[1:] == (3, 7, 7)


def test_maps_of_attention_are_those_of_the_pass() -> None:
    model, x = hybrid("resnet-d"), images(32, 48)
    weights = model.attention_maps(x, queries="all")[-1]
    assert weights.shape == (2, 3, 1 + 2 * 3, 1 + 2 * 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7))


# --------------------------------------------------------------------------------------------------------------------
# Names and shapes


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("R50+B/16", {"cnn_depths": (3, 4, 9), "patch_size": 16, "embed_dim": 768}),
        ("vit_base_r50_s16_384", {"cnn_depths": (3, 4, 9), "img_size": 384}),
        ("vit_tiny_r_s16_p8_224", {"cnn_depths": (), "patch_size": 32}),
        ("vit_small_resnet26d", {"mlp_ratio": 3.0, "depth": 8}),
        ("vit_base_mci_224", {"cnn": "patches", "no_embed_class": True}),
    ],
)
def test_names(name: str, fields: dict[str, Any]) -> None:
    parsed = parse_hybrid_name(name)
    assert parsed is not None
    assert {key: parsed[key] for key in fields} == fields


@pytest.mark.parametrize("name", ["R50+H/14", "vit_base_resnet18d_224", "vit_huge_r50_s16", "R5+B/16"])
def test_names_that_are_nearly_right(name: str) -> None:
    with pytest.raises(ValueError, match=r'^model ".*" is none of R\+Ti/16, R26\+S/32, .*'):
        vitrail.create_model(name)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"patch_size": 12}, "patch_size 12 must be a multiple of the stride of the CNN, which is 8"),
        ({"cnn_width": 24}, 'cnn_width 24 is not a multiple of 32, which cnn "bit" needs; use 32'),
        ({"cnn_depths": (1, 0)}, r"cnn_depths \(1, 0\) must be at least 1 each"),
        ({"cnn": "resnet-d", "cnn_depths": ()}, 'cnn "resnet-d" needs cnn_depths'),
        ({"cnn": "patches"}, r'cnn_depths \(2, 1\) is no part of cnn "patches"; leave it at \(\)'),
        ({"cnn": "patches", "cnn_depths": (), "patch_size": 32}, "patch_size 32 must be the stride of the CNN, which is 16"),
        ({"stem": "conv"}, "stem conv is no part of a hybrid; leave it at patch"),
        ({"img_size": 60}, "image side 60 is not a multiple of patch 8"),
        ({"num_heads": 5}, "embed_dim 24 is not a multiple of num_heads 5"),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hybrid("bit", **fields)
