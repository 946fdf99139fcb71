from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vitrail.models import ViT
from vitrail.models.modern import ModernViT
from vitrail.models.packing import _one_sequence, buckets, embed_by_size, pack_images, packed_logits
from vitrail.models.swin import Swin

SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
SIZES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=7)


def vit(**fields: Any) -> ViT:
    torch.manual_seed(0)
    model = ViT(**{**SHAPE, **fields})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def images_of(grids: list[tuple[int, int]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 4 * rows, 4 * columns, generator=generator) for rows, columns in grids]


def alone(model: ViT, images: list[Tensor]) -> Tensor:
    return torch.cat([model(image[None]) for image in images])


MODERN: tuple[dict[str, Any], ...] = (
    {"reg_tokens": 2},
    {"rope": "mixed", "rope_layout": "interleaved", "pool": "avg", "class_token": False},
    {"rope": "grid", "rope_ref_grid": 4, "rope_layout": "interleaved", "pos_embed": "learn", "pool": "map"},
    {"rope": "none", "pos_embed": "learn", "norm": "rms"},
)


@pytest.mark.parametrize("fields", MODERN)
def test_rotations_are_packed_too(fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, images = ModernViT(**{**SHAPE, **fields}), images_of([(4, 4), (2, 5), (6, 3), (1, 1), (5, 2), (4, 4)])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.eval()
    with torch.no_grad():
        expected = alone(model, images)
        torch.testing.assert_close(packed_logits(model, *pack_images(images)), expected, atol=1e-5, rtol=1e-5)
        sequence = model.read(*_one_sequence(model, embed_by_size(model, *pack_images(images))))
    torch.testing.assert_close(sequence, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "avg", "class_token": False, "qk_norm": True},
        {"pool": "map", "reg_tokens": 2},
        {"pool": "cls+avg", "pos_embed": "sincos2d", "init_values": 0.1},
        {"no_embed_class": True, "fc_norm": True, "pool": "avg", "mlp": "swiglu"},
    ],
)
def test_packed_logits_are_those_of_each_image_alone(fields: dict[str, Any]) -> None:
    model, images = vit(**fields), images_of([(4, 4), (2, 5), (6, 3), (1, 1), (5, 2), (4, 4)])
    with torch.no_grad():
        expected = alone(model, images)
        torch.testing.assert_close(packed_logits(model, *pack_images(images)), expected, atol=1e-5, rtol=1e-5)
        sequence = model.read(*_one_sequence(model, embed_by_size(model, *pack_images(images))))
    torch.testing.assert_close(sequence, expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(grids=SIZES)
def test_any_sizes(grids: list[tuple[int, int]]) -> None:
    model, images = vit(), images_of(grids)
    with torch.no_grad():
        torch.testing.assert_close(packed_logits(model, *pack_images(images)), alone(model, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_each_image_alone(checkpointing: bool) -> None:
    images = images_of([(4, 4), (2, 5), (6, 3)])
    one, many = vit().train(), vit().train()
    many.checkpointing = checkpointing
    alone(one, images).square().sum().backward()
    packed_logits(many, *pack_images(images)).square().sum().backward()
    for (name, expected), parameter in zip(one.named_parameters(), many.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, atol=1e-5, rtol=1e-5, msg=name)


def test_patches_are_dropped_before_packing() -> None:
    model = vit(patch_drop_rate=0.5).train()
    tokens = embed_by_size(model, *pack_images(images_of([(4, 4), (2, 6)])))
    assert [len(one.tokens) for one in tokens] == [1 + 8, 1 + 6]
    assert packed_logits(model, *pack_images(images_of([(4, 4), (2, 6)]))).shape == (2, 3)


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=60), padding=st.floats(0, 0.5))
def test_buckets_hold_each_image_once_with_little_padding(lengths: list[int], padding: float) -> None:
    groups = buckets(lengths, padding)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[row] for row in group)
        assert sum(lengths[row] for row in group) >= (1 - padding) * longest * len(group) - 1e-6


def test_models_that_cannot_be_packed() -> None:
    images = pack_images(images_of([(8, 8)]))
    with pytest.raises(ValueError, match="Swin's images can't be packed"):
        packed_logits(Swin(embed_dim=8, depths=(1,), num_heads=(1,)), *images)
    with pytest.raises(ValueError, match=r"ViT's images can't be packed: .* one head"):
        packed_logits(vit(dist_token=True), *images)
    with pytest.raises(ValueError, match="1 sizes for 2 images"):
        packed_logits(vit(), images[0].repeat(2, 1, 1, 1), images[1])
