"""CaiT beside timm's: the same outputs and gradients, at any image size."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitrail
from vitrail.models.backbone import View
from vitrail.models.cait import Cait, mix_heads
from vitrail.models.positions import resize_positions
from vitrail.settings.cait import CAIT_SIZES, CaitConfig, parse_cait_name

SMALL: dict[str, Any] = {"img_size": 64, "embed_dim": 16, "depth": 3, "num_heads": 4, "num_classes": 5}


def random(model: nn.Module) -> Any:
    """With weights that tell everything apart."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def some_images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def both(size: tuple[int, int], **fields: Any) -> tuple[Any, Any]:
    """Ours, trained at 64 px, and timm's of the image size, with positions resized to it."""
    ours = random(Cait(**SMALL | fields))
    theirs: Any = timm.create_model("cait_xxs24_224", **{**SMALL, "img_size": size}).eval()
    state = ours.state_dict()
    grid = size[0] // 16, size[1] // 16
    state["pos_embed"] = resize_positions(state["pos_embed"], old=ours.grid, new=grid, prefix=0)
    theirs.load_state_dict(state, strict=True)
    return ours, theirs


@pytest.mark.parametrize("name", CAIT_SIZES)
def test_sizes_have_the_published_parameters(name: str) -> None:
    published = {
        "cait_xxs24": 11_956_264,
        "cait_xxs36": 17_299_720,
        "cait_xs24": 26_560_648,
        "cait_s24": 46_916_200,
        "cait_s36": 68_220_712,
        "cait_m36": 270_929_512,
        "cait_m48": 356_008_936,
    }
    with torch.device("meta"):
        model = Cait(CaitConfig(**CAIT_SIZES[name]._asdict()))
        side = {"cait_m48": 448, "cait_xs24": 384, "cait_s36": 384, "cait_m36": 384}.get(name, 224)
        theirs = timm.create_model(f"{name}_{side}", img_size=224)
    assert sum(parameter.numel() for parameter in model.parameters()) == published[name]
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (48, 80)])
def test_same_outputs_as_timm(size: tuple[int, int]) -> None:
    ours, theirs = both(size)
    images = some_images(*size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
        seen = ours.features(images)
        torch.testing.assert_close(seen.tokens, theirs.forward_features(images), atol=1e-5, rtol=1e-5)
        expected = theirs.forward_intermediates(images, indices=[0, 2], norm=True, intermediates_only=True)
        maps = ours.features(images, View(blocks=(-3, 2))).pyramid
        for one, other in zip((*maps, *seen.pyramid), (*expected, expected[-1]), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.pooled, seen.tokens[:, 0])
    assert (seen.prefix, seen.grid) == (1, (size[0] // 16, size[1] // 16))


def test_gradients_are_timm_s() -> None:
    ours, theirs = both((64, 64))
    images = some_images(64, 64)
    for model in (ours, theirs):
        model.train()(images).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4)


def test_mixed_heads_are_a_linear_layer_over_the_heads() -> None:
    torch.manual_seed(0)
    linear, weights = nn.Linear(4, 4), torch.randn(2, 4, 5, 5)
    expected = linear(0.5 * weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(mix_heads(weights, linear, scale=0.5), expected)


def test_class_attention_is_what_the_class_token_takes() -> None:
    """Weights of the patches' values: with them, the layer's output is that of its fused attention."""
    model, images = random(Cait(**SMALL)), some_images(48, 80)
    taken: list[Tensor] = []
    for block in model.blocks_token_only:
        block.attn.register_forward_hook(lambda module, args, out: taken.extend((args[0], out)))
    weights = model.class_attention(images)
    assert len(weights) == model.class_attention_layers == 2
    for index, (layer, block) in enumerate(zip(weights, model.blocks_token_only, strict=True)):
        u, out = taken[2 * index : 2 * index + 2]
        assert layer.shape == (2, 4, 1 + 3 * 5)
        torch.testing.assert_close(layer.sum(-1), torch.ones(2, 4))
        values = block.attn.heads(block.attn.v(u))
        expected = block.attn.proj((layer[:, :, None] @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("depth", "init"), [(1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (48, 1e-6)])
def test_layer_scale_starts_by_depth(depth: int, init: float) -> None:
    model = Cait(CaitConfig(**SMALL | {"embed_dim": 8, "depth": depth}))
    for name, parameter in model.named_parameters():
        assert "gamma" not in name or torch.equal(parameter, torch.full((8,), init))
    assert CaitConfig(depth=depth, init_values=0.5).layer_scale == 0.5


def test_recomputing_the_blocks_changes_no_gradient() -> None:
    images, gradients = some_images(64, 64), []
    for recompute in (False, True):
        model = random(Cait(**SMALL)).train()
        model.checkpointing = recompute
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_stochastic_depth_is_the_same_in_every_block_and_in_training_only() -> None:
    model, images = random(Cait(**SMALL, drop_path_rate=0.9)), some_images(64, 64)
    assert [block.drop_path.rate for block in model.blocks] == [0.9] * 3
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_sides_that_the_patch_does_not_divide_are_padded_if_asked() -> None:
    model, images = random(Cait(**SMALL)), some_images(50, 64)
    with pytest.raises(ValueError, match=r"^image side 50 is not a multiple of patch 16; use 48, or pad=True$"):
        model(images)
    padded = model.features(images, View(pad=True))
    assert padded.grid == (4, 4)
    torch.testing.assert_close(padded.pooled, model.embedding(nn.functional.pad(images, (0, 0, 0, 14))))


def test_names() -> None:
    assert parse_cait_name("cait_s24_384") == {**CAIT_SIZES["cait_s24"]._asdict(), "patch_size": 16, "img_size": 384}
    assert parse_cait_name("vit_base") is None
    assert isinstance(vitrail.create_model("cait_xxs24", depth=1, embed_dim=8, num_heads=2), Cait)
    with pytest.raises(ValueError, match=r'^model "cait_s12" is none of cait_xxs24, .*; did you mean "cait_'):
        parse_cait_name("cait_s12")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"embed_dim": 30}, "embed_dim 30 is not a multiple of num_heads 4; use 32"),
        ({"class_depth": 0}, "class_depth 0 must be at least 1"),
        ({"img_size": 0}, "img_size 0 must be at least 1 pixel"),
        ({"img_size": 50}, "image side 50 is not a multiple of patch 16; use 48"),
        ({"num_classes": -1}, "num_classes -1 must not be negative"),
        ({"drop_path_rate": 1.0}, "drop_path_rate 1.0 must be at least 0 and below 1"),
        ({"depht": 3}, '"depht" is not a field of CaitConfig; did you mean "depth"'),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Cait(**{**SMALL, **fields})


def test_views_that_cait_does_not_have() -> None:
    model = Cait(**SMALL)
    for view in (View(visible=torch.zeros(1, 1, dtype=torch.long)), View(patch_size=8), View(sizes=torch.ones(1, 2).long())):
        with pytest.raises(ValueError, match="use a ViT"):
            model.features(some_images(64, 64), view)
    with pytest.raises(ValueError, match="images have 1 channels, and the model takes 3"):
        model(torch.zeros(1, 1, 64, 64))
