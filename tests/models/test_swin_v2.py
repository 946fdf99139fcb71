from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2 as TorchvisionMerging
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from torchvision.models.swin_transformer import SwinTransformerBlockV2

import vitrail
from vitrail.models.swin_v2 import SwinV2, log_offsets
from vitrail.models.windows import relative_index
from vitrail.settings.swin_v2 import SWIN_V2_SIZES, SwinV2Config, parse_swin_v2_name

SHAPE: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (2, 2, 4), "num_classes": 5, "window_size": 4}
SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 3, "window_size": 4}
SIZES = [(64, 64), (128, 64), (64, 192)]


def random(model: nn.Module) -> Any:
    """With weights that tell everything apart, and scales on both sides of the clamp."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
        if name.endswith("logit_scale"):
            nn.init.uniform_(parameter, 1, 6, generator=generator)
    return model.eval()


@functools.cache
def swin() -> SwinV2:
    model: SwinV2 = random(SwinV2(**SHAPE))
    return model


def some_images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def of_timm(size: tuple[int, int] = (64, 64), **fields: Any) -> Any:
    return timm.create_model("swinv2_tiny_window8_256", img_size=size, **{**SHAPE, **fields}).eval()


def torchvisions_names(name: str) -> str:
    """Test's own reading of torchvision's names."""
    name = re.sub(r"layers\.(\d+)\.downsample\.", lambda at: f"features.{2 * int(at[1])}.", name)
    name = re.sub(r"layers\.(\d+)\.blocks\.", lambda at: f"features.{2 * int(at[1]) + 1}.", name)
    for ours, theirs in {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3", "head.fc": "head"}.items():
        name = name.replace(ours, theirs)
    return name.replace("patch_embed.proj", "features.0.0").replace("patch_embed.norm", "features.0.2")


def torchvisions(ours: SwinV2) -> Any:
    arguments = [[4, 4], 16, [2, 2, 2], [2, 2, 4], [4, 4]]
    options = {"num_classes": 5, "block": SwinTransformerBlockV2, "downsample_layer": TorchvisionMerging}
    theirs = TorchvisionSwin(*arguments, **options).eval()  # type: ignore[arg-type]
    state: dict[str, Tensor] = {}
    weights = ours.state_dict()
    for name, value in weights.items():
        if name.endswith("q_bias"):
            value = torch.cat([value, torch.zeros_like(value), weights[name.replace("q_bias", "v_bias")]])
        if not name.endswith("v_bias"):
            state[torchvisions_names(name.replace("q_bias", "qkv.bias"))] = value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("relative_" in name for name in missing)
    return theirs


def transformers_s(ours: SwinV2, size: tuple[int, int]) -> Any:
    shape = {"embed_dim": 16, "depths": [2, 2, 2], "num_heads": [2, 2, 4], "num_labels": 5}
    config = transformers.Swinv2Config(**shape, window_size=4, image_size=size, pretrained_window_sizes=[0, 0, 0])
    theirs = transformers.Swinv2ForImageClassification(config).eval()
    state: dict[str, Tensor] = {}
    for name, value in ours.state_dict().items():
        name = re.sub(r"layers\.(\d+)\.downsample", lambda at: f"swinv2.encoder.layers.{int(at[1]) - 1}.downsample", name)
        name = re.sub(r"^layers", "swinv2.encoder.layers", name)
        name = re.sub(r"^norm", "swinv2.layernorm", name)
        for one, other in {
            "patch_embed.proj": "swinv2.embeddings.patch_embeddings.projection",
            "patch_embed.norm": "swinv2.embeddings.norm",
            "attn.cpb_mlp": "attention.self.continuous_position_bias_mlp",
            "attn.logit_scale": "attention.self.logit_scale",
            "attn.q_bias": "attention.self.query.bias",
            "attn.v_bias": "attention.self.value.bias",
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "head.fc": "classifier",
        }.items():
            name = name.replace(one, other)
        parts = ("query", "key", "value")
        if "attn.qkv" in name:
            names = [name.replace("attn.qkv", f"attention.self.{part}") for part in parts]
            state |= dict(zip(names, value.chunk(3), strict=True))
        else:
            state[name] = value
    theirs.load_state_dict(state, strict=True)
    return theirs


# --------------------------------------------------------------------------------------------------------------------
# Equal to the other libraries


@pytest.mark.parametrize("name", SWIN_V2_SIZES)
def test_sizes_have_the_published_parameters(name: str) -> None:
    published = {"swinv2_t": 28_347_154, "swinv2_s": 49_728_418, "swinv2_b": 87_918_816, "swinv2_l": 196_739_932}
    with torch.device("meta"):
        model = SwinV2(SwinV2Config(**SWIN_V2_SIZES[name]._asdict()))
    assert sum(parameter.numel() for parameter in model.parameters()) == published[name]


@pytest.mark.parametrize("size", SIZES)
def test_same_outputs_as_timm(size: tuple[int, int]) -> None:
    """At sizes without padding; with it, timm shifts before it pads."""
    theirs, images = of_timm(size), some_images(*size)
    theirs.load_state_dict(swin().state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(swin()(images), theirs(images), atol=1e-5, rtol=1e-5)
        features = swin().features(images)
        torch.testing.assert_close(features.tokens, theirs.forward_features(images).flatten(1, 2), atol=1e-5, rtol=1e-5)


def test_windows_of_timm_and_of_the_pre_training() -> None:
    """A window cut down to a small map, and offsets measured by the windows of the pre-training."""
    theirs = random(of_timm(window_size=8, pretrained_window_sizes=(6, 6, 3)))
    ours = SwinV2(**{**SHAPE, "window_size": 8, "window_sizes": (8, 8, 4), "pretrained_window_sizes": (6, 6, 3)}).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(some_images(64, 64)), theirs(some_images(64, 64)), atol=1e-5, rtol=1e-5)


def test_a_model_without_biases_of_queries_and_values() -> None:
    theirs = random(of_timm(qkv_bias=False))
    ours = SwinV2(**SHAPE, qkv_bias=False).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(some_images(64, 64)), theirs(some_images(64, 64)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [*SIZES, (100, 60), (24, 40)])
def test_same_outputs_as_torchvision(size: tuple[int, int]) -> None:
    images = some_images(*size)
    with torch.no_grad():
        torch.testing.assert_close(swin()(images), torchvisions(swin())(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (128, 192)])
def test_same_outputs_as_transformers(size: tuple[int, int]) -> None:
    images = some_images(*size)
    with torch.no_grad():
        logits = transformers_s(swin(), size)(images).logits
        torch.testing.assert_close(swin()(images), logits, atol=1e-5, rtol=1e-5)


def test_gradients_are_timm_s_and_torchvision_s() -> None:
    images, ours, theirs = some_images(64, 128), random(SwinV2(**SHAPE)), of_timm((64, 128))
    ours.load_state_dict(swin().state_dict())
    theirs.load_state_dict(swin().state_dict())
    others = torchvisions(ours)
    for model in (ours, theirs, others):
        model(images).square().sum().backward()
    expected, also = dict(theirs.named_parameters()), dict(others.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4)
        if not name.endswith(("q_bias", "v_bias")):
            torch.testing.assert_close(parameter.grad, also[torchvisions_names(name)].grad, atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------------
# Parts


@given(st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_offsets_are_logarithms_in_the_order_of_the_index(window: int, unit: int) -> None:
    offsets = log_offsets(window, unit=unit)
    assert offsets.shape == ((2 * window - 1) ** 2, 2)
    index, at = relative_index(window), torch.cartesian_prod(torch.arange(window), torch.arange(window)).view(-1, 2)
    apart = (at[:, None] - at[None]) * 8 / max(unit - 1, 1)
    expected = apart.sign() * (1 + apart.abs()).log() / torch.log(torch.tensor(8.0))
    torch.testing.assert_close(offsets[index], expected, atol=1e-5, rtol=1e-5)


def test_the_temperature_is_clamped() -> None:
    model = random(SwinV2(**SMALL))
    images = some_images(32, 32)
    outputs = []
    for scale in (4.7, 9.0):  # log(100) is 4.605
        for block in model.blocks_in_order():
            nn.init.constant_(block.attn.logit_scale, scale)
        outputs.append(model(images))
    assert torch.equal(*outputs)


def test_a_fresh_model_begins_with_branches_that_add_nothing() -> None:
    model = SwinV2(**SMALL).eval()
    x = torch.randn(2, 64, 8)
    assert torch.equal(model.layers[0].blocks[0](x, (8, 8)), x)


def test_stages_hold_every_parameter_once() -> None:
    model = SwinV2(**SMALL)
    stages = model.stages()
    assert [stage.name for stage in stages] == [
        "stem",
        *(f"layers.{layer}.blocks.{block}" for layer in (0, 1) for block in (0, 1)),
        "head",
    ]
    for name, parameter in model.named_parameters():
        assert sum(stage.owns(name) for stage in stages) == 1, name
        assert (name in model.no_decay) == ("cpb_mlp" in name or "logit_scale" in name)
        assert parameter.requires_grad


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=10, deadline=None)
def test_any_size_gives_a_pyramid(height: int, width: int) -> None:
    model = random(SwinV2(**SMALL))
    features = model.features(torch.randn(1, 3, height, width))
    down, across = -(-height // 4), -(-width // 4)
    assert [tuple(one.shape) for one in features.pyramid] == [(1, 8, down, across), (1, 16, -(-down // 2), -(-across // 2))]
    assert features.pooled.isfinite().all()


def test_recomputing_the_blocks_changes_no_gradient() -> None:
    images, gradients = some_images(40, 40), []
    for recompute in (False, True):
        model = random(SwinV2(**SMALL)).train()
        model.checkpointing = recompute
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_a_fresh_head() -> None:
    model = random(SwinV2(**SMALL))
    model.reset_head(7)
    assert model(some_images(32, 32)).shape == (2, 7)
    model.reset_head(0)
    torch.testing.assert_close(model(some_images(32, 32)), model.embedding(some_images(32, 32)))


# --------------------------------------------------------------------------------------------------------------------
# Names and shapes


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("swinv2_t", {}),
        ("swin_v2_s", {"depths": (2, 2, 18, 2)}),
        ("swinv2_tiny_window8_256", {"window_size": 8, "window_sizes": (), "img_size": 256}),
        ("swinv2_tiny_patch4_window8_256", {"window_size": 8, "patch_size": 4}),
        ("swinv2_small_window16_256", {"window_size": 16, "window_sizes": (16, 16, 16, 8)}),
        ("swinv2_base_window12_192", {"window_sizes": (12, 12, 12, 6)}),
        (
            "swinv2_large_window12to24_192to384",
            {"img_size": 384, "window_sizes": (24, 24, 24, 12), "pretrained_window_sizes": (12, 12, 12, 6), "embed_dim": 192},
        ),
    ],
)
def test_names(name: str, fields: dict[str, Any]) -> None:
    parsed = parse_swin_v2_name(name)
    assert parsed is not None
    assert {key: parsed[key] for key in fields} == fields
    SwinV2Config(**parsed)


@pytest.mark.parametrize("name", ["swinv2_tiny_window16_256"])
def test_a_name_builds_timm_s_model(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name)
        ours = vitrail.create_model(name)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    for stage, layer in enumerate(theirs.layers):
        assert layer.blocks[0].window_size == (ours.config.window(stage),) * 2
        unit = layer.blocks[0].attn.pretrained_window_size[0]
        assert unit in (0, ours.config.pretrained_window(stage))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_sizes": (8, 8)}, r"window_sizes \(8, 8\) must have one number of at least 1 for each of 4 stages"),
        (
            {"window_sizes": (16, 16, 16, 8)},
            r"window_size 8 is not the largest of window_sizes \(16, 16, 16, 8\); set both, or",
        ),
        ({"pretrained_window_sizes": (8, 8, 8, -1)}, "must have one number of at least 0 for each of 4 stages"),
        ({"num_heads": (5, 6, 12, 24)}, "num_heads 5 does not divide the width 96 of stage 0"),
        ({"windows": 3}, '"windows" is not a field of SwinV2Config; did you mean "window'),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinV2(**fields)


def test_a_name_that_is_nearly_right() -> None:
    with pytest.raises(ValueError, match='model "swinv2_x" is none of swinv2_t, swinv2_s, swinv2_b, swinv2_l'):
        vitrail.create_model("swinv2_x")
