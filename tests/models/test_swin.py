from __future__ import annotations

import functools
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import SwinTransformer as TorchvisionSwin

from vitrail.models.backbone import View
from vitrail.models.swin import PatchMerging, Swin
from vitrail.models.windows import WindowLayout, relative_index, resize_bias_table
from vitrail.settings.swin import SWIN_SIZES, SwinConfig
from vitrail.weights.family import export_state

SHAPE: dict[str, Any] = {"embed_dim": 16, "depths": (2, 2, 2, 1), "num_heads": (2, 2, 4, 4), "num_classes": 5}
SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 3, "window_size": 4}


def random(model: nn.Module) -> Any:
    """With weights that tell everything apart."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


@functools.cache
def swin() -> Swin:
    model: Swin = random(Swin(**SHAPE))
    return model


def some_images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def torchvisions() -> nn.Module:
    theirs = TorchvisionSwin([4, 4], 16, [2, 2, 2, 1], [2, 2, 4, 4], [7, 7], num_classes=5).eval()
    state = export_state(swin(), "torchvision")
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("relative_position_index") for name in missing)
    return theirs


def transformers_s() -> nn.Module:
    config = transformers.SwinConfig(embed_dim=16, depths=[2, 2, 2, 1], num_heads=[2, 2, 4, 4], num_labels=5)
    theirs = transformers.SwinForImageClassification(config).eval()
    theirs.load_state_dict(export_state(swin(), "transformers"), strict=True)
    return theirs


@pytest.mark.parametrize("name", SWIN_SIZES)
def test_sizes_have_the_published_parameters(name: str) -> None:
    published = {"swin_t": 28_288_354, "swin_s": 49_606_258, "swin_b": 87_768_224, "swin_l": 196_532_476}
    with torch.device("meta"):
        model = Swin(SwinConfig(**SWIN_SIZES[name]._asdict()))
    assert sum(parameter.numel() for parameter in model.parameters()) == published[name]


@pytest.mark.parametrize("size", [(224, 224), (448, 224), (224, 672)])
def test_same_outputs_as_timm(size: tuple[int, int]) -> None:
    """At sizes without padding; with it, timm shifts before it pads."""
    theirs = timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False, **SHAPE).eval()
    theirs.load_state_dict(swin().state_dict(), strict=True)
    images = some_images(*size)
    with torch.no_grad():
        torch.testing.assert_close(swin()(images), theirs(images), atol=1e-5, rtol=1e-5)
        seen = swin().features(images)
        torch.testing.assert_close(seen.tokens, theirs.forward_features(images).flatten(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (200, 312), (96, 64)])
def test_same_outputs_as_torchvision(size: tuple[int, int]) -> None:
    images = some_images(*size)
    with torch.no_grad():
        torch.testing.assert_close(swin()(images), torchvisions()(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (256, 256)])
def test_same_outputs_as_transformers(size: tuple[int, int]) -> None:
    images = some_images(*size)
    with torch.no_grad():
        theirs = transformers_s()(images, interpolate_pos_encoding=False).logits
        torch.testing.assert_close(swin()(images), theirs, atol=1e-5, rtol=1e-5)


def test_gradients_are_torchvision_s() -> None:
    images, theirs, ours = some_images(64, 96), torchvisions(), random(Swin(**SHAPE))
    ours.load_state_dict(swin().state_dict())
    for model in (ours, theirs):
        model(images).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in export_gradients(ours).items():
        torch.testing.assert_close(parameter, expected[name].grad, atol=1e-5, rtol=1e-4)


def export_gradients(model: Swin) -> dict[str, Tensor]:
    shadow = Swin(model.config)
    with torch.no_grad():
        for to, of in zip(shadow.parameters(), model.parameters(), strict=True):
            assert of.grad is not None
            to.copy_(of.grad)
    return export_state(shadow, "torchvision")


WINDOWS = st.sampled_from([1, 2, 3, 4, 7])


@given(st.integers(1, 17), st.integers(1, 17), WINDOWS, WINDOWS, st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_windows_are_joined_as_they_were_cut(
    height: int, width: int, down: int, across: int, shifted: bool, pad_first: bool
) -> None:
    layout = WindowLayout.of((height, width), window=(down, across), shifted=shifted)._replace(pad_first=pad_first)
    x = torch.randn(2, height * width, 3)
    cut = layout.cut(x)
    assert cut.shape[2] == down * across
    assert torch.equal(layout.join(cut), x)
    mask = layout.mask(x.device)
    assert (mask is None) == (layout.shift == (0, 0))
    if mask is not None:
        assert mask.shape == (cut.shape[1], down * across, down * across)
        assert not mask.diagonal(dim1=1, dim2=2).any()
        ids = torch.arange(layout.padded[0] * layout.padded[1]).float().view(1, -1, 1)
        whole = WindowLayout(layout.padded, layout.padded, layout.window, layout.shift)
        at = whole.cut(ids)[0, :, :, 0].long()
        y, x_ = at // layout.padded[1], at % layout.padded[1]
        far = ((y[:, :, None] - y[:, None]).abs() >= down) | ((x_[:, :, None] - x_[:, None]).abs() >= across)
        assert torch.equal(mask, far), "positions that were no neighbours do not look at each other"


def test_the_relative_index_is_the_offset() -> None:
    index = relative_index(3)
    offsets = {}
    for i in range(9):
        for j in range(9):
            offset = (i // 3 - j // 3, i % 3 - j % 3)
            assert offsets.setdefault(offset, index[i, j].item()) == index[i, j].item()
    assert len(set(offsets.values())) == 25


def test_patch_merging_pads_an_odd_side() -> None:
    merging = random(PatchMerging(SwinConfig(**SMALL), 8))
    x = torch.randn(1, 15, 8)
    padded = torch.zeros(1, 4, 6, 8)
    padded[:, :3, :5] = x.unflatten(1, (3, 5))
    assert torch.equal(merging(x, (3, 5)), merging(padded.flatten(1, 2), (4, 6)))


def test_the_bias_table_at_its_own_window_is_itself() -> None:
    table = torch.randn(169, 3)
    assert resize_bias_table(table, window=7) is table
    larger = resize_bias_table(table, window=12)
    assert larger.shape == (23**2, 3)
    torch.testing.assert_close(larger.mean(0), table.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(resize_bias_table(torch.full((9, 1), 2.0), window=4), torch.full((49, 1), 2.0))


def test_stages_hold_every_parameter_once() -> None:
    model = Swin(**SMALL)
    stages = model.stages()
    assert [stage.name for stage in stages] == [
        "stem",
        *(f"layers.{layer}.blocks.{block}" for layer in (0, 1) for block in (0, 1)),
        "head",
    ]
    for name, parameter in model.named_parameters():
        assert sum(stage.owns(name) for stage in stages) == 1, name
        assert (name in model.no_decay) == name.endswith("table")
        assert parameter.requires_grad
    assert len(model.blocks_in_order()) == 4


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_any_size_gives_a_pyramid(height: int, width: int) -> None:
    model = random(Swin(**SMALL))
    seen = model.features(torch.randn(1, 3, height, width))
    assert seen.pyramid is not None
    assert seen.tokens is not None
    down, across = -(-height // 4), -(-width // 4)
    assert [tuple(one.shape) for one in seen.pyramid] == [(1, 8, down, across), (1, 16, -(-down // 2), -(-across // 2))]
    assert seen.grid == tuple(seen.pyramid[-1].shape[2:])
    assert seen.pooled.isfinite().all()
    torch.testing.assert_close(seen.tokens.mean(1), seen.pooled)


def test_recomputing_the_blocks_changes_no_gradient() -> None:
    images, gradients = some_images(40, 40), []
    for recompute in (False, True):
        model = random(Swin(**SMALL)).train()
        model.checkpointing = recompute
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_stochastic_depth_leaves_branches_out_in_training_only() -> None:
    torch.manual_seed(0)
    model = random(Swin(**SMALL, drop_path_rate=0.9))
    images = some_images(32, 32)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_a_fresh_head() -> None:
    model = random(Swin(**SMALL))
    model.reset_head(7)
    assert model(some_images(32, 32)).shape == (2, 7)
    assert model.config.num_classes == 7
    model.reset_head(0)
    torch.testing.assert_close(model(some_images(32, 32)), model.embedding(some_images(32, 32)))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"depths": (2, 2)}, "depths .* and num_heads .* must have one number for each stage"),
        ({"num_heads": (5, 6, 12, 24)}, "num_heads 5 does not divide the width 96 of stage 0"),
        ({"window_size": 0}, "window_size 0 must be at least 1"),
        ({"depths": (2, 2, 0, 2)}, "must be at least 1 in every stage"),
        ({"num_classes": -1}, "num_classes -1 must not be negative"),
        ({"depth": 3}, '"depth" is not a field of SwinConfig; did you mean "depths"'),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Swin(**fields)


def test_views_that_swin_does_not_have() -> None:
    model = Swin(**SMALL)
    for view in (View(visible=torch.zeros(1, 1, dtype=torch.long)), View(patch_size=2), View(sizes=torch.ones(1, 2).long())):
        with pytest.raises(ValueError, match="use a ViT"):
            model.features(torch.zeros(1, 3, 32, 32), view)
    with pytest.raises(ValueError, match=r"^Swin has a map after each of its \d stages: use them, and leave View.blocks out$"):
        model.features(torch.zeros(1, 3, 32, 32), View(blocks=(0,)))
    with pytest.raises(ValueError, match="images have 1 channels, and the model takes 3"):
        model(torch.zeros(1, 1, 32, 32))
