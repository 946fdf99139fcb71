from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vitrail
from vitrail.models.swin_v2_cr import SwinV2Cr
from vitrail.settings.swin_v2_cr import SWIN_V2_CR_SIZES, SwinV2CrConfig, parse_swin_v2_cr_name

SHAPE: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (2, 2, 4), "num_classes": 5}
SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 3, "window_size": 4}


def random(model: nn.Module) -> Any:
    """With weights that tell everything apart, and scales on both sides of the clamp."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
        if name.endswith("logit_scale"):
            nn.init.uniform_(parameter, 1, 6, generator=generator)
    return model.eval()


@functools.cache
def weights(*, norms: bool = False) -> dict[str, Tensor]:
    state: dict[str, Tensor] = random(SwinV2Cr(**SHAPE, extra_norm_stage=norms)).state_dict()
    return state


def of_timm(size: tuple[int, int], *, norms: bool = False, **fields: Any) -> Any:
    model = timm.create_model("swinv2_cr_tiny_224", img_size=size, extra_norm_stage=norms, **{**SHAPE, **fields}).eval()
    model.load_state_dict({name.replace("layers.", "stages."): value for name, value in weights(norms=norms).items()})
    return model


def of_ours(size: tuple[int, int], *, norms: bool = False, **fields: Any) -> SwinV2Cr:
    model = SwinV2Cr(img_size=size, extra_norm_stage=norms, **SHAPE, **fields).eval()
    model.load_state_dict(weights(norms=norms))
    return model


def some_images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------------------------------------------
# Equal to timm


@pytest.mark.parametrize("name", SWIN_V2_CR_SIZES)
def test_sizes_have_timm_s_parameters(name: str) -> None:
    counts = {
        "swinv2_cr_t": 28_332_124,
        "swinv2_cr_t_ns": 28_333_468,
        "swinv2_cr_s": 49_695_100,
        "swinv2_cr_s_ns": 49_696_444,
        "swinv2_cr_b": 87_877_464,
        "swinv2_cr_b_ns": 87_879_256,
        "swinv2_cr_l": 196_682_512,
        "swinv2_cr_h": 657_829_928,
        "swinv2_cr_h11": 657_938_780,
        "swinv2_cr_g": 2_598_761_896,
    }
    with torch.device("meta"):
        model = SwinV2Cr(SwinV2CrConfig(**SWIN_V2_CR_SIZES[name]._asdict()))
    assert sum(parameter.numel() for parameter in model.parameters()) == counts[name]


@pytest.mark.parametrize("name", ["tiny_224", "tiny_384", "tiny_ns_224", "small_ns_256", "huge_224", "huge_384"])
def test_a_name_builds_timm_s_model(name: str) -> None:
    with torch.device("meta"):
        theirs: Any = timm.create_model(f"swinv2_cr_{name}")
        ours = vitrail.create_model(f"swinv2_cr_{name}")
    assert {key.replace("layers.", "stages."): value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert (ours.config.img_size,) * 2 == theirs.img_size
    for stage, layer in enumerate(theirs.stages):
        assert [(block.window_size, block.shift_size) for block in layer.blocks[:2]] == [
            (ours.config.window(stage), (0, 0)),
            (ours.config.window(stage), ours.config.shift(stage)),
        ]


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ((96, 96), {}),
        ((128, 256), {}),
        ((80, 112), {"window_ratio": 5}),  # maps that windows do not divide
        ((64, 96), {"window_size": (4, 5)}),
        ((48, 32), {"window_size": 10}),  # larger than most maps
    ],
)
@pytest.mark.parametrize("norms", [False, True])
def test_same_outputs_as_timm(size: tuple[int, int], fields: dict[str, Any], norms: bool) -> None:
    ours, theirs, images = of_ours(size, norms=norms, **fields), of_timm(size, norms=norms, **fields), some_images(*size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
        features = ours.features(images)
        assert features.pyramid is not None
        last, maps = theirs.forward_intermediates(images)
        for one, other in zip((*features.pyramid, features.tokens), (*maps, last.flatten(2).mT), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (72, 200)])
def test_windows_stay_at_images_of_another_size_as_in_timm(size: tuple[int, int]) -> None:
    ours, theirs = of_ours((64, 96)), of_timm((64, 96), dynamic_img_size=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(some_images(*size)), theirs(some_images(*size)), atol=1e-5, rtol=1e-5)


def test_gradients_are_timm_s() -> None:
    images, ours, theirs = some_images(64, 96), of_ours((64, 96), norms=True), of_timm((64, 96), norms=True)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[name.replace("layers.", "stages.")].grad
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------------
# Parts


def test_norms_behind_blocks() -> None:
    config = SwinV2CrConfig(embed_dim=8, depths=(1, 2, 7), num_heads=(1, 1, 1))

    def behind(**fields: Any) -> list[str]:
        model = vitrail.create_model("swinv2_cr_custom", **{**vars(config), **fields})
        names = model.state_dict()
        return [name.removeprefix("layers.").replace(".blocks", "")[:3] for name in names if name.endswith("norm3.weight")]

    assert behind() == ["2.6"]
    assert behind(final_norm=False) == []
    assert behind(extra_norm_stage=True) == ["0.0", "1.1", "2.6"]
    assert behind(extra_norm_period=3) == ["2.2", "2.5", "2.6"]


def test_a_fresh_model_begins_with_branches_that_add_nothing() -> None:
    model = SwinV2Cr(**SMALL).eval()
    x = torch.randn(2, 64, 8)
    assert torch.equal(model.layers[0].blocks[0](x, (8, 8)), x)  # type: ignore[index, union-attr]


def test_stages_hold_every_parameter_once() -> None:
    model = SwinV2Cr(**SMALL)
    stages = model.stages()
    assert [stage.name for stage in stages] == [
        "stem",
        *(f"layers.{layer}.blocks.{block}" for layer in (0, 1) for block in (0, 1)),
        "head",
    ]
    for name, parameter in model.named_parameters():
        assert sum(stage.owns(name) for stage in stages) == 1, name
        assert (name in model.no_decay) == ("meta_mlp" in name or "logit_scale" in name)
        assert parameter.requires_grad


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=10, deadline=None)
def test_any_size_gives_a_pyramid(height: int, width: int) -> None:
    model = random(SwinV2Cr(**SMALL))
    features = model.features(torch.randn(1, 3, height, width))
    down, across = -(-height // 4), -(-width // 4)
    assert [tuple(one.shape) for one in features.pyramid] == [(1, 8, down, across), (1, 16, -(-down // 2), -(-across // 2))]
    assert features.pooled.isfinite().all()


def test_recomputing_the_blocks_changes_no_gradient() -> None:
    images, gradients = some_images(40, 40), []
    for recompute in (False, True):
        model = random(SwinV2Cr(**SMALL)).train()
        model.checkpointing = recompute
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


# --------------------------------------------------------------------------------------------------------------------
# Names and shapes


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 12), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_windows_fit_their_maps(height: int, width: int, ratio: int, stages: int) -> None:
    config = SwinV2CrConfig(
        img_size=(height, width), window_ratio=ratio, depths=(1,) * stages, num_heads=(1,) * stages, embed_dim=8
    )
    for stage in range(stages):
        for window, shift, side in zip(config.window(stage), config.shift(stage), config.map_at(stage), strict=True):
            assert 1 <= window <= side
            assert shift == (0 if window == side else window // 2)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("swinv2_cr_t", {"embed_dim": 96, "extra_norm_stage": False}),
        ("swinv2_cr_tiny_ns", {"depths": (2, 2, 6, 2), "extra_norm_stage": True}),
        ("swinv2_cr_small_ns_256", {"depths": (2, 2, 18, 2), "extra_norm_stage": True, "img_size": 256}),
        ("swinv2_cr_huge", {"num_heads": (8, 16, 32, 64), "extra_norm_period": 6}),
        ("swinv2_cr_huge_384", {"num_heads": (11, 22, 44, 88), "img_size": 384}),
        ("swinv2_cr_giant_224", {"depths": (2, 2, 42, 2), "img_size": 224}),
    ],
)
def test_names(name: str, fields: dict[str, Any]) -> None:
    parsed = parse_swin_v2_cr_name(name)
    assert parsed is not None
    assert {key: parsed[key] for key in fields} == fields
    SwinV2CrConfig(**parsed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_size": (4, 0)}, r"window_size \(4, 0\) must be at least 1"),
        ({"window_ratio": 0}, "window_ratio 0 must be at least 1"),
        ({"extra_norm_period": -1}, "extra_norm_period -1 must not be negative; 0 is none"),
        ({"num_heads": (5, 6, 12, 24)}, "num_heads 5 does not divide the width 96 of stage 0"),
        ({"window_sizes": (7,)}, '"window_sizes" is not a field of SwinV2CrConfig; did you mean "window'),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinV2Cr(**fields)


@pytest.mark.parametrize("name", ["swinv2_cr_x", "swinv2_cr_large_ns_224", "swinv2_cr_tiny_window7_224"])
def test_a_name_that_is_nearly_right(name: str) -> None:
    with pytest.raises(ValueError, match=f'model "{name}" is none of swinv2_cr_t, swinv2_cr_t_ns, .*"swinv2_cr_tiny_ns_224"'):
        vitrail.create_model(name)
