"""The view in a graph is Pillow's, level by level; and a resize is torch's, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.augment import normalise
from vitrail.data.decode import eval_view
from vitrail.deploy.export.raw import RawImages, middle_size, view
from vitrail.models.positions import RESIZES, resize_positions, resize_positions_in_graph
from vitrail.models.resampling import antialiased_matrix, plain_matrix
from vitrail.settings import Preprocessing

SIDES = st.integers(1, 90)
VIEWS = st.builds(
    Preprocessing,
    img_size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    in_channels=st.just(1),
    mean=st.just((0.5,)),
    std=st.just((0.5,)),
    crop_pct=st.sampled_from([1.0, 0.95, 0.9, 0.875]),
    crop_mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)


def across_first(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """The evaluation view by Pillow, one direction after the other."""
    old = [torch.tensor([float(side)], dtype=torch.float64) for side in pixels.shape]
    middle_h, middle_w = (float(side) for side in middle_size(*old, preprocessing))
    (rows, columns), (height, width) = pixels.shape, preprocessing.img_size
    top, left = round((middle_h - height) / 2), round((middle_w - width) / 2)
    down, across = rows / middle_h, columns / middle_w
    how = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[preprocessing.interpolation]
    image = Image.fromarray(pixels).resize((width, rows), how, box=(left * across, 0, (left + width) * across, rows))
    return np.asarray(image.resize((width, height), how, box=(0, top * down, width, (top + height) * down)))


@given(rows=SIDES, columns=SIDES, preprocessing=VIEWS, seed=st.integers(0, 9))
@settings(max_examples=100)
def test_the_view_is_pillow_s(rows: int, columns: int, preprocessing: Preprocessing, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, columns), dtype=np.uint8)
    ours = view(torch.from_numpy(pixels)[None, None].float(), preprocessing)[0, 0]
    assert np.array_equal(ours.numpy(), across_first(pixels, preprocessing))


@pytest.mark.parametrize("size", [(480, 640), (37, 53), (32, 32)])
def test_the_view_is_that_of_predict(size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(img_size=(32, 32), in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), crop_pct=0.9)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    kept: list[torch.Tensor] = []

    class Keep(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            kept.append(images)
            return images.flatten(1)

    RawImages(Keep(), preprocessing)(torch.from_numpy(pixels)[None])
    expected = normalise(eval_view(pixels, preprocessing)[None], preprocessing)
    torch.testing.assert_close(kept[0], expected, atol=1e-6, rtol=0)


@given(old=st.integers(1, 20), new=st.integers(1, 40), way=st.sampled_from(sorted(RESIZES)))
def test_a_matrix_resizes_as_torch(old: int, new: int, way: str) -> None:
    arguments = RESIZES[way]
    cubic, corners = arguments["mode"] == "bicubic", bool(arguments.get("align_corners"))
    if arguments.get("antialias"):
        matrix = antialiased_matrix(old, new, cubic=cubic)
    else:
        matrix = plain_matrix(old, new, cubic=cubic, corners=corners)
    unit = torch.eye(old)[None, :, :, None].expand(1, old, old, 2)
    expected = F.interpolate(unit, size=(new, 2), **arguments)[0, :, :, 0].T
    torch.testing.assert_close(matrix, expected, atol=1e-5, rtol=0)


@given(old=st.tuples(st.integers(2, 8), st.integers(2, 8)), new=st.tuples(st.integers(2, 12), st.integers(2, 12)))
def test_positions_are_those_that_torch_resizes(old: tuple[int, int], new: tuple[int, int]) -> None:
    positions = torch.randn(1, 1 + old[0] * old[1], 6, generator=torch.Generator().manual_seed(0))
    for how in RESIZES:
        ours = resize_positions_in_graph(positions, old=old, new=new, prefix=1, how=how, square=False)
        torch.testing.assert_close(ours, resize_positions(positions, old=old, new=new, prefix=1, how=how), atol=1e-5, rtol=0)
