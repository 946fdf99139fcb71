"""Attention as torch has it by hand, as transformers and timm have it, and rollout as ten lines of NumPy."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import ViTConfig as TheirConfig
from transformers import ViTModel

import vitrail
from vitrail.explain import METHODS, attention, attention_sheet, faithfulness, gradcam, relevance, rollout
from vitrail.models import ViT

DEPTH, HEADS, DIM = 3, 2, 16


def vit(**fields: Any) -> ViT:
    torch.manual_seed(0)
    base = {"img_size": 16, "patch_size": 4, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": 5}
    made = ViT(**base | fields).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def images(height: int = 16, width: int = 16, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def whole(model: ViT, x: Tensor, **options: Any) -> list[Tensor]:
    """Every layer's full attention, (B, h, N, N)."""
    with torch.no_grad():
        return list(model.attention_maps(x, layers=range(DEPTH), queries="all", **options).values())


# --------------------------------------------------------------------------------------------------------------------
# Attention


@pytest.mark.parametrize("fields", [{}, {"reg_tokens": 2}, {"dist_token": True}], ids=["plain", "registers", "distilled"])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_the_class_tokens_rows_of_every_layer_and_head(fields: dict[str, Any], size: tuple[int, int]) -> None:
    model, x = vit(**fields), images(*size)
    grid = size[0] // 4, size[1] // 4
    expected = whole(model, x)
    sheet = attention_sheet(model, x, layers="all", heads="all")
    assert [found.labels[0] for found in sheet[:3]] == [
        "layer 0, head 0, class token",
        "layer 0, head 1, class token",
        "layer 1, head 0, class token",
    ]
    for place, found in enumerate(sheet):
        layer, head = divmod(place, HEADS)
        assert found.maps.shape == (2, *grid)
        row = expected[layer][:, head, 0, model.prefix_tokens :]
        torch.testing.assert_close(found.maps.flatten(1), row, atol=1e-6, rtol=1e-5)


def test_heads_are_fused_as_asked() -> None:
    model, x = vit(), images()
    row = whole(model, x)[1][:, :, 0, 1:]
    for heads, expected in (("mean", row.mean(1)), ("max", row.amax(1)), ("min", row.amin(1))):
        found = attention(model, x, layer=1, heads=heads)  # type: ignore[arg-type]
        torch.testing.assert_close(found.maps.flatten(1), expected, atol=1e-6, rtol=1e-5)
        assert found.labels == (f"layer 1, {heads} of 2 heads, class token",) * 2


def test_a_patch_asks_by_its_pixel() -> None:
    """x goes across and y down: in a rectangle, one can't be taken for the other."""
    model, x = vit(reg_tokens=1), images(8, 24)
    found = attention(model, x, layer=-1, heads=1, query=(21, 6))  # row 1, column 5 of 2 x 6
    expected = whole(model, x)[-1][:, 1, 2 + 1 * 6 + 5, 2:]
    torch.testing.assert_close(found.maps.flatten(1), expected, atol=1e-6, rtol=1e-5)
    assert found.labels[0] == "layer 2, head 1, patch at 21,6"
    corner = attention(model, x, layer=-1, heads=1, query=(0, 0))
    torch.testing.assert_close(corner.maps.flatten(1), whole(model, x)[-1][:, 1, 2, 2:], atol=1e-6, rtol=1e-5)


def test_without_a_class_token_the_rows_of_all_patches_are_averaged() -> None:
    model, x = vit(class_token=False, pool="avg"), images()
    found = attention(model, x, layer=1, heads=0)
    torch.testing.assert_close(found.maps.flatten(1), whole(model, x)[1][:, 0].mean(1), atol=1e-6, rtol=1e-5)
    assert found.labels[0].endswith("head's view")
    assert found.note == "no class token is read: the mean over the tokens that the head averages"


def test_with_attention_pooling_rows_weigh_what_it_gives_them() -> None:
    model, x = vit(class_token=False, pool="map"), images()
    found = attention(model, x, layer=1)
    pool = model.attn_pool
    assert pool is not None
    with torch.no_grad():
        tokens = model.forward_features(x)
        q = pool.q(pool.latent).unflatten(2, (HEADS, -1)).transpose(1, 2)
        k = pool.kv(tokens).unflatten(2, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)[0]
        row = (q @ k.mT / (DIM // HEADS) ** 0.5).softmax(-1).mean(1)  # (B, 1, N)
    expected = (row @ whole(model, x)[1].mean(1))[:, 0]
    torch.testing.assert_close(found.maps.flatten(1), expected, atol=1e-6, rtol=1e-4)
    assert "attention pooling" in found.note


def test_padding_and_masked_patches() -> None:
    model, x = vit(), images(13, 10)
    found = attention(model, x, pad=True)
    assert found.maps.shape == (2, 4, 3)
    assert found.image_sizes.tolist() == [[13, 10], [13, 10]]
    sizes = torch.tensor([[16, 5], [3, 16]])
    found = attention(model, images(), sizes=sizes)
    assert not found.maps[0, :, 2:].any()
    assert not found.maps[1, 1:].any()
    expected = whole(model, images(), sizes=sizes)[-1].mean(1)[:, 0, 1:]
    torch.testing.assert_close(found.maps.flatten(1), expected, atol=1e-6, rtol=1e-5)


def test_another_patch_size() -> None:
    model, x = vit(), images(16, 16)
    assert attention(model, x, patch_size=8).maps.shape == (2, 2, 2)


def test_the_model_is_left_as_it_was_and_dropout_is_off() -> None:
    model = vit(attn_drop_rate=0.5, proj_drop_rate=0.5).train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    first, second = attention(model, images()), attention(model, images())
    assert torch.equal(first.maps, second.maps)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("layers", ["all", [1], [-1, 0]])
def test_a_pass_in_bf16_is_near(layers: Any) -> None:
    model, x = vit(), images()
    exact = attention_sheet(model, x, layers=layers)
    rounded = attention_sheet(model.to(torch.bfloat16), x, layers=layers)
    for ours, theirs in zip(exact, rounded, strict=True):
        assert theirs.maps.dtype == torch.float32
        torch.testing.assert_close(ours.maps, theirs.maps, atol=0.02, rtol=0.1)


@pytest.mark.parametrize("hold", [False, True], ids=["free", "held"])
def test_a_compiled_model_gives_the_same(hold: bool) -> None:
    """In blocks or as a whole; what is compiled has no place for what a map needs, so the plain pass is taken."""
    model, x = vit(), images()
    methods = {name: row.run for name, row in METHODS.items() if row.evidence}
    methods |= {"relevance": partial(relevance, hold_norms=hold), "gradcam": partial(gradcam, hold_norms=hold)}
    plain = {name: method(model, x) for name, method in methods.items()}
    scores = {name: faithfulness(model, x, maps, steps=2).insertion_curves for name, maps in plain.items()}
    compiled = torch.compile(model, backend="eager")
    assert not isinstance(compiled, ViT)
    for name, method in methods.items():
        torch.testing.assert_close(method(compiled, x).maps, plain[name].maps)
    for block in model.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        model(x)
    for name, method in methods.items():
        torch.testing.assert_close(method(model, x).maps, plain[name].maps)
        torch.testing.assert_close(faithfulness(model, x, plain[name], steps=2).insertion_curves, scores[name])


def test_sizes_are_those_of_images_on_the_canvas() -> None:
    for sizes, said in (([[20, 16], [3, 16]], "sizes from 3 to 20 px"), ([[0, 16], [3, 16]], "sizes from 0 to 16 px")):
        with pytest.raises(ValueError, match=rf"^{said} are not those of images on a canvas of 16x16$"):
            attention(vit(), images(), sizes=torch.tensor(sizes))


def test_a_patch_is_called_by_its_pixel_where_it_is_the_first_token() -> None:
    model = vit(class_token=False, pool="avg")
    assert attention(model, images(), query=(0, 0)).labels[0].endswith("patch at 0,0")
    assert attention(model, images()).labels[0].endswith("head's view")


def test_asking_does_not_write_on_the_model() -> None:
    model, x = vit(), images()
    with torch.no_grad():
        before = model(x)
        attention_sheet(model, x, heads="all")
        rollout(model, x)
        assert torch.equal(model(x), before)
    assert all(parameter.grad is None for parameter in model.parameters())


# --------------------------------------------------------------------------------------------------------------------
# As the others have it


def test_attention_is_transformers_eager_attention() -> None:
    torch.manual_seed(0)
    config = TheirConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        initializer_range=0.4,
    )
    config._attn_implementation = "eager"
    theirs = ViTModel(config, add_pooling_layer=False).eval()
    model, x = vitrail.load(theirs.state_dict(), num_heads=HEADS, norm_eps=1e-12), images()
    with torch.no_grad():
        expected = theirs(x, output_attentions=True).attentions
    assert expected[0].std() > 1e-2
    _same_everywhere(model, x, expected)


def test_attention_is_timms_with_its_fused_attention_off() -> None:
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "reg_tokens": 2}
    theirs = timm.models.vision_transformer.VisionTransformer(**shape, num_classes=3).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    kept: list[Tensor] = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, taken, given: kept.append(given))
    x = images()
    with torch.no_grad():
        theirs(x)
    _same_everywhere(vitrail.load(theirs.state_dict(), num_heads=HEADS), x, kept)


def _same_everywhere(model: nn.Module, x: Tensor, expected: Any) -> None:
    """All layers and heads, every token's row."""
    assert isinstance(model, ViT)
    first = model.prefix_tokens
    for place, found in enumerate(attention_sheet(model, x, heads="all")):
        layer, head = divmod(place, HEADS)
        torch.testing.assert_close(found.maps.flatten(1), expected[layer][:, head, 0, first:], atol=1e-5, rtol=0)
    for token in range(16):
        sheet = attention_sheet(model, x, heads="all", query=(token % 4 * 4 + 1, token // 4 * 4 + 2))
        for place, found in enumerate(sheet):
            layer, head = divmod(place, HEADS)
            torch.testing.assert_close(
                found.maps.flatten(1), expected[layer][:, head, first + token, first:], atol=1e-5, rtol=0
            )


# --------------------------------------------------------------------------------------------------------------------
# Rollout


def numpy_rollout(attentions: list[np.ndarray], fuse: str, discard: float) -> np.ndarray:
    """Abnar & Zuidema 2020, one image: attentions are (h, N, N)."""
    result = np.eye(attentions[0].shape[-1])
    for each in attentions:
        matrix = {"mean": each.mean(0), "max": each.max(0), "min": each.min(0)}[fuse].astype(np.float64)
        count = int(discard * matrix.size)
        if count:
            matrix[matrix <= np.sort(matrix, axis=None)[count - 1]] = 0
        matrix = (matrix + np.eye(len(matrix))) / 2
        result = matrix / matrix.sum(-1, keepdims=True) @ result
    return result


@pytest.mark.parametrize("fuse", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", [0.0, 0.3, 0.9])
def test_rollout_is_ten_lines_of_numpy(fuse: Any, discard: float) -> None:
    model, x = vit(reg_tokens=1), images(8, 16)
    found = rollout(model, x, heads=fuse, discard_ratio=discard)
    from_patch = rollout(model, x, heads=fuse, discard_ratio=discard, query=(13, 5))
    attentions = whole(model, x)
    for index in range(2):
        expected = numpy_rollout([layer[index].numpy() for layer in attentions], fuse, discard)
        np.testing.assert_allclose(found.maps[index].flatten(), expected[0, 2:], atol=1e-6)
        np.testing.assert_allclose(from_patch.maps[index].flatten(), expected[2 + 4 + 3, 2:], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({"class_token": False, "pool": "avg"}, slice(0, 16)),
        ({"pool": "avg"}, slice(1, 17)),
        ({"dist_token": True}, [0, 1]),
    ],
    ids=["no class token", "mean beside a class token", "distilled"],
)
def test_rollout_begins_with_what_the_head_reads(fields: dict[str, Any], rows: Any) -> None:
    model, x = vit(**fields), images()
    found = rollout(model, x)
    assert found.note
    for index in range(2):
        expected = numpy_rollout([layer[index].numpy() for layer in whole(model, x)], "mean", 0.0)
        row = expected[rows].mean(0)
        np.testing.assert_allclose(found.maps[index].flatten(), row[model.prefix_tokens :], atol=1e-6)


def test_a_part_of_the_rows_at_a_time_is_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = vit(class_token=False, pool="avg"), images()
    at_once = [rollout(model, x).maps, attention(model, x).maps]
    monkeypatch.setattr("vitrail.explain.passes.CHUNK_BYTES", 2000)
    for before, now in zip(at_once, [rollout(model, x).maps, attention(model, x).maps], strict=True):
        torch.testing.assert_close(now, before, atol=1e-6, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# What can't be


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 3}, r"^layer 3 does not exist; this model has layers 0 to 2 \(or -3 to -1\)$"),
        ({"heads": 2}, r'^head 2 does not exist; this model has heads 0 to 1, or "mean", "max", "min" of them$'),
        ({"query": (16, 3)}, r"^query 16,3 is outside the image of 16x16 px; use x from 0 to 15, y from 0 to 15$"),
        ({"query": (0, -1)}, r"^query 0,-1 is outside the image"),
    ],
)
def test_what_does_not_exist(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attention(vit(), images(), **options)


def test_images_that_can_not_be_looked_at() -> None:
    with pytest.raises(ValueError, match=r"^an image of 3x16 px is smaller than one patch of 4x4; use a larger one"):
        attention(vit(), images(16, 3))
    with pytest.raises(ValueError, match=r"^image side 18 is not a multiple of patch 4; use 16, or pad=True$"):
        attention(vit(), images(18, 16))
    with pytest.raises(
        ValueError, match=r"^images of shape \(3, 16, 16\) are not \(B, C, H, W\); one image is images\[None\]$"
    ):
        attention(vit(), images()[0])
    with pytest.raises(ValueError, match=r"^images of type torch.uint8 are no normalised tensor; give pictures, or normalise"):
        attention(vit(), images().byte())
    with pytest.raises(ValueError, match=r"^img_size 32 is for pictures, and these are a tensor already; leave it out$"):
        attention(vit(), images(), img_size=32)
    with pytest.raises(ValueError, match=r"^this model does not say what happens to its images; give them as a normalised"):
        attention(vit(), "photo.jpg")
    with pytest.raises(
        ValueError,
        match=r"^Conv2d is no backbone of Vitrail, so it says nothing of tokens and feature maps; use a model of vitrail.load",
    ):
        attention(nn.Conv2d(3, 3, 1), images())


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_ratio_that_leaves_nothing(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"^discard_ratio {ratio} must be at least 0 and below 1$"):
        rollout(vit(), images(), discard_ratio=ratio)
