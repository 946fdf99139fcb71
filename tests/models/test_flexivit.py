"""One model, many patches: the projection is resized for a call, as FlexiViT does, and learns through it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vitrail
from vitrail.models import ViT, positions
from vitrail.models import vit as vit_module
from vitrail.models.positions import resize_patch
from vitrail.models.vit import PatchEmbed
from vitrail.settings import Pair

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def tiny(**fields: object) -> ViT:
    """A small model whose every part matters to the logits."""
    torch.manual_seed(0)
    model = ViT(**TINY | fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images(height: int = 16, width: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def patches_resized(x: Tensor, *, old: Pair, new: Pair) -> Tensor:
    """The images (B, C, H, W) with each of their patches resized by itself, so that no patch sees its neighbours."""
    batch, channels, height, width = x.shape
    grid = height // old[0], width // old[1]
    parts = F.unfold(x, old, stride=old).transpose(1, 2).reshape(-1, channels, *old)  # (B L, C, h, w)
    parts = F.interpolate(parts, size=new, mode="bicubic", antialias=True)
    columns = parts.reshape(batch, grid[0] * grid[1], -1).transpose(1, 2)
    return F.fold(columns, (grid[0] * new[0], grid[1] * new[1]), new, stride=new)


def test_the_model_s_own_patch_takes_the_path_that_it_always_took(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr(vit_module, "resize_patch", lambda *_, **__: pytest.fail("nothing is to be resized"))
    with torch.no_grad():
        plain = model(images())
        assert torch.equal(model(images(), patch_size=4), plain)
        assert torch.equal(model(images(), patch_size=(4, 4)), plain)
    for fields in ({"stem": "conv"}, {"patch_norm": True}):
        other = tiny(**fields)
        with torch.no_grad():
            assert torch.equal(other(images(), patch_size=4), other(images()))


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(2, 7), st.integers(2, 7)), st.tuples(st.integers(0, 9), st.integers(0, 9)), st.sampled_from([1, 3])
)
def test_a_resized_image_has_the_embedding_that_it_had(old: Pair, more: Pair, across: int) -> None:
    """FlexiViT's reason for the pseudo-inverse: where patches grow, not a bit of what the tokens say changes."""
    new = old[0] + more[0], old[1] + more[1]
    model = tiny(img_size=(2 * old[0], across * old[1]), patch_size=old).double()
    x = images(2 * old[0], across * old[1], torch.float64)
    larger = patches_resized(x, old=old, new=new)
    assert larger.shape[2:] == (2 * new[0], across * new[1])
    with torch.no_grad():
        torch.testing.assert_close(
            model.outputs(larger, patch_size=new).features[-1], model.outputs(x).features[-1], atol=1e-8, rtol=1e-8
        )


def explicitly(embed: PatchEmbed, x: Tensor, patch: Pair) -> Tensor:
    """x · (Bᵀ)⁺ w + b, with B the whole matrix that resizes a patch: section 3.4 word for word."""
    old = embed.proj.kernel_size
    unit = torch.eye(old[0] * old[1], dtype=x.dtype).view(-1, 1, *old)
    matrix = F.interpolate(unit, size=patch, mode="bicubic", antialias=True).flatten(1).T  # B: (new pixels, old pixels)
    filters = embed.proj.weight.flatten(2) @ torch.linalg.pinv(matrix.T).T  # (D, C, new pixels)
    pixels = F.unfold(x, patch, stride=patch).transpose(1, 2)  # (B, L, C · pixels)
    return F.linear(pixels, filters.flatten(1), embed.proj.bias)


@pytest.mark.parametrize("patch", [(8, 8), (2, 2), (3, 4), (5, 3), (4, 8), (1, 4)])
def test_values_and_gradients_are_those_of_the_formula(patch: Pair) -> None:
    embed = tiny().double().patch_embed
    x = images(2 * patch[0], 3 * patch[1], torch.float64).requires_grad_()
    weights = torch.randn(2, 6, 24, dtype=torch.float64)
    results = []
    for tokens in (embed(x, patch), explicitly(embed, x, patch)):
        gradients = torch.autograd.grad((tokens * weights).sum(), [x, embed.proj.weight, embed.proj.bias])  # type: ignore[list-item]
        results.append((tokens, *gradients))
    for ours, formula in zip(*results, strict=True):
        torch.testing.assert_close(ours, formula, atol=1e-9, rtol=1e-9)


def test_every_patch_teaches_the_one_projection() -> None:
    model = tiny().train()
    for patch in (2, 4, 8):
        model.zero_grad()
        model(images(), patch_size=patch).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


@pytest.mark.parametrize(("patch", "size"), [(8, (32, 16)), (2, (16, 8)), ((2, 4), (8, 16))])
def test_a_call_gives_what_weights_resized_for_good_give(patch: int | Pair, size: Pair) -> None:
    model = tiny(reg_tokens=1, pool="avg")
    loaded = vitrail.load(model, img_size=size, patch_size=patch).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        torch.testing.assert_close(model(images(*size), patch_size=patch), loaded(images(*size)))


def test_all_calls_take_a_patch() -> None:
    model, x = tiny(reg_tokens=2), images(16, 24)
    with torch.no_grad():
        out = model.outputs(x, patch_size=(8, 6))
        assert out.tokens.shape == (2, 3 + 2 * 4, 24)
        assert torch.equal(model(x, patch_size=(8, 6)), out.logits)
        assert torch.equal(model.forward_features(x, patch_size=(8, 6)), out.tokens)
        assert model.attention_maps(x, patch_size=(8, 6))[-1].shape == (2, 3, 1, 11)


def test_padding_and_masks_go_by_the_patch_of_the_call() -> None:
    model, x = tiny(), images(14, 17)
    padded = F.pad(x, (0, 1, 0, 1))
    with torch.no_grad():
        assert torch.equal(model(x, pad=True, patch_size=3), model(padded, patch_size=3))
        sizes = torch.tensor([[7, 18], [8, 6]])  # of 3-pixel patches: 3 x 6, and 3 x 2
        garbage = padded.clone()
        garbage[0, :, 9:], garbage[1, :, 9:], garbage[1, :, :, 6:] = 1e3, 1e3, 1e3
        clean = model(padded, sizes=sizes, patch_size=3)
        assert torch.equal(model(garbage, sizes=sizes, patch_size=3), clean)
        assert not torch.equal(clean, model(padded, patch_size=3))


@pytest.mark.parametrize(
    ("fields", "patch", "said"),
    [
        ({"stem": "conv"}, 8, r'a model with stem "conv" cuts its own patches of 4x4 and no others, not 8x8; leave the'),
        ({"patch_norm": True}, (4, 2), r"a model with patch_norm true cuts its own patches of 4x4 and no others, not 4x2; "),
        ({}, 0, r"patch_size \(0, 0\) must be at least 1 pixel$"),
        ({}, 5, r"image side 16 is not a multiple of patch 5; use 15, or pad=True$"),
    ],
)
def test_a_patch_that_can_t_be(fields: dict[str, object], patch: int | Pair, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}") as error:
        tiny(**fields)(images(), patch_size=patch)
    assert "\n" not in str(error.value)


def test_inference_mode_then_gradients() -> None:
    positions._INVERSES.clear()
    model = tiny()
    with torch.inference_mode():
        model(images(), patch_size=8)
    model(images(), patch_size=8).sum().backward()  # matrices kept from inference_mode would not be allowed here
    assert model.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    model, x = tiny(), images()
    with torch.no_grad():
        reference = model(x, patch_size=8)
        assert torch.equal(resize_patch(model.patch_embed.proj.weight, to=(8, 8)).to(dtype), low_filters(model, dtype))
        torch.testing.assert_close(model.to(dtype)(x.to(dtype), patch_size=8).float(), reference, atol=0.15, rtol=0.1)


def low_filters(model: ViT, dtype: torch.dtype) -> Tensor:
    """What a convolution under autocast is given: the filters of full precision, rounded once."""
    seen: list[Tensor] = []

    def noted(x: Tensor, weight: Tensor, *_: object, stride: Pair) -> Tensor:
        seen.append(weight)
        return convolve(x, weight, stride=stride)

    convolve: Callable[..., Tensor] = F.conv2d
    with pytest.MonkeyPatch.context() as patched, torch.autocast("cpu", dtype):
        patched.setattr(vit_module.F, "conv2d", noted)
        model(images(), patch_size=8)
    return seen[0].to(dtype)


def test_a_trace_leaves_no_empty_tensors_behind() -> None:
    """torch.export runs the model on tensors without numbers: a matrix or a position kept from there would break the model."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x, patch_size=8)

    positions._INVERSES.clear()
    fixed, x = Fixed(), images(32, 24)
    for _ in range(2):  # nothing is kept yet; then there is
        with torch.no_grad():
            exported = torch.export.export(fixed, (x,)).module()
            torch.testing.assert_close(exported(x), fixed(x))
