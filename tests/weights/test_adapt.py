"""The stem for other channels and patches, and positions for other grids: as timm makes them, and as the papers define them."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from vitrail.models.positions import resize_patch, resize_positions
from vitrail.settings import Pair
from vitrail.weights.adapt import adapt_channels

SIDES = st.integers(1, 20)
WIDTHS = st.integers(2, 20)  # what becomes one column, torch 2.14's antialiased resize gets wrong: it repeats the first row


def stem(channels: int = 3, patch: Pair = (4, 4), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(8, channels, *patch, generator=torch.Generator().manual_seed(0)).to(dtype)


# --------------------------------------------------------------------------------------------------------------------
# Channels


@pytest.mark.parametrize("to", [1, 2, 3, 4, 5, 6, 7, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_repeated_channels_are_timm_s(to: int, dtype: torch.dtype) -> None:
    weight = stem(dtype=dtype)
    ours = adapt_channels(weight, to=to, how="repeat")
    assert (ours.shape, ours.dtype) == ((8, to, 4, 4), dtype)
    torch.testing.assert_close(ours, adapt_input_conv(to, weight))


@pytest.mark.parametrize(("channels", "to"), [(3, 1), (3, 3), (3, 6), (3, 9), (1, 3), (1, 5), (2, 4), (4, 1)])
def test_a_grey_image_in_all_channels_gives_the_same_activations(channels: int, to: int) -> None:
    weight, grey = stem(channels), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = F.conv2d(grey.expand(-1, channels, -1, -1), weight, stride=4)
    after = F.conv2d(grey.expand(-1, to, -1, -1), adapt_channels(weight, to=to, how="repeat"), stride=4)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("to", [4, 7])
def test_kept_channels_start_as_the_model_they_were(to: int) -> None:
    weight, images = stem(), torch.randn(2, to, 8, 8, generator=torch.Generator().manual_seed(1))
    kept = adapt_channels(weight, to=to, how="keep")
    assert torch.equal(kept[:, :3], weight)
    assert not kept[:, 3:].any()
    torch.testing.assert_close(F.conv2d(images, kept, stride=4), F.conv2d(images[:, :3], weight, stride=4))


@pytest.mark.parametrize("how", ["repeat", "keep"])
def test_as_many_channels_are_the_same_tensor(how: Literal["repeat", "keep"]) -> None:
    weight = stem()
    assert adapt_channels(weight, to=3, how=how) is weight


def test_channels_that_can_t_be() -> None:
    with pytest.raises(ValueError, match=r'^1 channels can\'t keep the filters of all 3; take "repeat", or 3 and more$'):
        adapt_channels(stem(), to=1, how="keep")
    with pytest.raises(ValueError, match=r"^in_channels 0 must be at least 1$"):
        adapt_channels(stem(), to=0, how="repeat")


# --------------------------------------------------------------------------------------------------------------------
# Patches


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, WIDTHS)
def test_resized_patches_are_timm_s(h: int, w: int, new_h: int, new_w: int) -> None:
    weight = stem(2, (h, w))
    ours = resize_patch(weight, to=(new_h, new_w))
    try:
        theirs = resample_patch_embed(weight.double(), [new_h, new_w])
    except torch.linalg.LinAlgError:  # of one large matrix in single precision, for a few sizes
        reject()
    assert ours.shape == (8, 2, new_h, new_w)
    torch.testing.assert_close(ours, theirs.float(), atol=5e-5, rtol=1e-4)  # timm's pseudo-inverse has single precision


@pytest.mark.parametrize(
    ("old", "new"), [((16, 16), (32, 32)), ((16, 16), (14, 14)), ((14, 14), (16, 16)), ((32, 32), (8, 12))]
)
def test_patches_in_use_are_timm_s(old: Pair, new: Pair) -> None:
    weight = 0.05 * stem(3, old)  # about what trained projections measure
    torch.testing.assert_close(resize_patch(weight, to=new), resample_patch_embed(weight, list(new)), atol=1e-5, rtol=1e-5)


def resized(images: Tensor, size: Pair) -> Tensor:
    return F.interpolate(images, size=size, mode="bicubic", antialias=True)


@settings(max_examples=30, deadline=None)
@given(SIDES, WIDTHS, st.integers(0, 12), st.integers(0, 12))
def test_a_grown_patch_has_exactly_its_old_embedding(h: int, w: int, more_h: int, more_w: int) -> None:
    weight = stem(2, (h, w), torch.float64)
    patches = torch.randn(5, 2, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    larger = h + more_h, w + more_w
    before = F.conv2d(patches, weight)
    after = F.conv2d(resized(patches, larger), resize_patch(weight, to=larger))
    torch.testing.assert_close(after, before, atol=1e-9, rtol=1e-9)


def test_a_shrunk_patch_has_the_nearest_embedding() -> None:
    """On white noise, no other filters come closer on average: the gradient of the squared distance is zero."""
    weight, small = stem(1, (8, 8), torch.float64), (5, 4)
    basis = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)  # E over white noise is the sum over a basis
    filters = resize_patch(weight, to=small).requires_grad_()
    distance = (F.conv2d(resized(basis, small), filters) - F.conv2d(basis, weight)).square().sum()
    distance.backward()
    assert filters.grad is not None
    assert distance > 1
    assert filters.grad.abs().max() < 1e-9


def test_patches_of_one_column_are_patches_of_one_row_turned() -> None:
    weight = stem(2, (8, 1))
    turned = resize_patch(weight.transpose(2, 3), to=(1, 12)).transpose(2, 3)
    torch.testing.assert_close(resize_patch(weight, to=(12, 1)), turned)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_patches_keep_their_type(dtype: torch.dtype) -> None:
    assert resize_patch(stem(dtype=dtype), to=(6, 3)).dtype == dtype


def test_a_patch_of_the_same_size_is_the_same_tensor() -> None:
    weight = stem(3, (4, 6))
    assert resize_patch(weight, to=(4, 6)) is weight
    with pytest.raises(ValueError, match=r"^patch_size \(0, 4\) must be at least 1 pixel$"):
        resize_patch(weight, to=(0, 4))


# --------------------------------------------------------------------------------------------------------------------
# Positions


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, WIDTHS, st.sampled_from([0, 1, 5]), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_positions_of_a_square_are_resized_as_timm_does(
    side: int, new_h: int, new_w: int, prefix: int, dtype: torch.dtype
) -> None:
    table = torch.randn(1, prefix + side * side, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    theirs = resample_abs_pos_embed(table, [new_h, new_w], num_prefix_tokens=prefix)
    assert torch.equal(resize_positions(table, old=(side, side), new=(new_h, new_w), prefix=prefix), theirs)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, WIDTHS, st.sampled_from([0, 1, 5]))
def test_positions_of_a_rectangle_are_resized_as_timm_does(h: int, w: int, new_h: int, new_w: int, prefix: int) -> None:
    table = torch.randn(1, prefix + h * w, 6, generator=torch.Generator().manual_seed(0))
    theirs = resample_abs_pos_embed(table, [new_h, new_w], old_size=[h, w], num_prefix_tokens=prefix)
    assert torch.equal(resize_positions(table, old=(h, w), new=(new_h, new_w), prefix=prefix), theirs)
