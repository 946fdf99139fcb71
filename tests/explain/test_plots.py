from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from PIL import Image

from vitrail.explain.plots import PLOTS, mosaic, save, single
from vitrail.explain.statistics import ModelStatistics, TokenNorms


def made(
    depth: int = 3, heads: int = 2, *, channels: int = 3, grid: tuple[int, int] = (4, 3), **others: Any
) -> ModelStatistics:
    """Numbers drawn at random, in the ranges that they have."""
    generator = torch.Generator().manual_seed(depth)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    alike = (drawn(depth, heads, heads) + 1) / 2
    shares = drawn(28).sort(descending=True).values
    median = 10 + 5 * drawn(depth + 1).cumsum(0)
    given: dict[str, Any] = {
        "distance": 60 * drawn(depth, heads),
        "entropy": 6 * drawn(depth, heads),
        "cls_to_patch": drawn(depth, heads),
        "patch_to_prefix": drawn(depth, heads),
        "head_similarity": (alike + alike.mT) / 2,
        "cka": drawn(depth + 1, depth + 1),
        "token_norms": TokenNorms(median=median, p99=4 * median, max=9 * median, outliers=0.03 * drawn(depth + 1)),
        "filters": drawn(28, channels, 8, 8) - 0.5,
        "filter_shares": 0.9 * shares / shares.sum(),
        "positions": drawn(*grid, *grid),
        "images": 32,
        "patch": (16, 16),
        "grids": (grid,),
        "prefix_tokens": 1,
        "even_distance": 33.0,
        "even_entropy": 6.5,
        "query_name": "class token",
        "notes": ("CKA is of 1,024 patch tokens, drawn from 6,272",),
    }
    return ModelStatistics(**given | others)


def words(figure: Figure) -> str:
    """All that stands in a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


@pytest.mark.parametrize("name", PLOTS)
def test_each_is_a_png_and_an_svg_of_the_same_bytes_each_time(name: str, tmp_path: Path) -> None:
    png = save(PLOTS[name](made()), tmp_path / "a.png")
    with Image.open(png) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert np.asarray(image.convert("L")).std() > 5
    once, twice = (save(PLOTS[name](made()), tmp_path / f"{i}.svg").read_bytes() for i in range(2))
    assert once == twice
    assert once.startswith(b"<?xml")
    assert b"<dc:date>" not in once


@pytest.mark.parametrize(("depth", "heads", "grid"), [(1, 1, (1, 1)), (2, 1, (1, 9)), (40, 24, (37, 37))])
def test_a_page_is_not_cut_off(depth: int, heads: int, grid: tuple[int, int], tmp_path: Path) -> None:
    page = made(depth, heads, grid=grid).save(tmp_path / "page.png")
    with Image.open(page) as image:
        ink = np.asarray(image.convert("L")) < 250
    assert not any(edge.any() for edge in (ink[:4], ink[-4:], ink[:, :4], ink[:, -4:]))


def test_the_page_says_what_the_numbers_say() -> None:
    stats = made(6)
    said = words(PLOTS["overview"](stats))
    assert "6 layers of 2 heads · 32 images · 4x3 patches of 16x16 px" in said
    whole = said.replace("\n", " ")
    for sentence in stats.early_and_late().sentences:
        assert sentence in whole
    assert stats.notes[0] in whole


def test_heads_are_dots_at_their_numbers() -> None:
    stats = made(3, 2)
    axes = single(stats, "distance").axes[0]
    dots = next(artist for artist in axes.collections if isinstance(artist, PathCollection))
    places = np.asarray(dots.get_offsets())
    np.testing.assert_allclose(places[:, 0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(places[:, 1], stats.distance.flatten().numpy(), rtol=1e-6)
    assert axes.get_ylabel() == "distance [px]"
    (patches,) = axes.child_axes
    patches.figure.draw_without_rendering()
    np.testing.assert_allclose(np.array(patches.get_ylim()), np.array(axes.get_ylim()) / 16)


def test_pairs_of_heads_are_the_different_ones() -> None:
    stats = made(3, 4)
    axes = single(stats, "redundancy").axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), stats.redundancy.numpy(), rtol=1e-5)
    spans = next(artist for artist in axes.collections if isinstance(artist, LineCollection)).get_segments()
    pairs = stats.head_similarity[0][torch.triu(torch.ones(4, 4), 1) > 0]
    np.testing.assert_allclose(np.asarray(spans[0])[:, 1], [pairs.min(), pairs.max()], rtol=1e-6)


def test_stages_begin_before_the_first_layer() -> None:
    stats = made(3)
    axes = single(stats, "cka").axes[0]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), stats.cka.numpy())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["in", "0", "1", "2"]
    lines = {str(line.get_label()): line for axes in single(stats, "token_norms").axes for line in axes.lines}
    np.testing.assert_allclose(lines["median"].get_ydata(), stats.token_norms.median.numpy())
    np.testing.assert_allclose(lines["median"].get_xdata(), [-1, 0, 1, 2])


def test_tiles_stand_at_their_places() -> None:
    tiles = np.arange(2 * 3 * 2 * 2, dtype=float).reshape(2, 3, 2, 2)
    whole = mosaic(tiles, fill=-1)
    assert whole.shape == (5, 8)
    np.testing.assert_array_equal(whole[:2, 3:5], tiles[0, 1])
    np.testing.assert_array_equal(whole[3:, 6:], tiles[1, 2])
    assert (whole[2] == -1).all()
    assert (whole[:, [2, 5]] == -1).all()


def test_positions_are_a_choice_of_rows_and_columns() -> None:
    stats = made(grid=(14, 3))
    axes = single(stats, "positions").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    rows = [int(label.get_text()) for label in axes.get_yticklabels()]
    assert (rows[0], rows[-1], len(rows)) == (0, 13, 7)
    assert stats.positions is not None
    drawn = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(drawn[15:29, 4:7], stats.positions[rows[1], 1].numpy())


@pytest.mark.parametrize(("channels", "said"), [(1, "8x8 px)"), (3, "8x8 px)"), (5, "8x8 px, mean of 5 channels)")])
def test_filters_of_any_channels(channels: int, said: str) -> None:
    figure = single(made(channels=channels), "filters")
    assert said in words(figure)
    picture = np.asarray(figure.axes[0].images[0].get_array())
    assert picture.shape == (4 * 9 - 1, 7 * 9 - 1, 3)
    assert (picture >= 0).all()
    assert (picture <= 1).all()


def test_filters_are_called_what_they_are() -> None:
    assert "of the patch filters (8x8 px)" in words(single(made(patch=(8, 8)), "filters"))
    assert "of the first convolution's filters (8x8 px)" in words(single(made(patch=(16, 16)), "filters"))


def test_what_is_not_there_is_said() -> None:
    stats = made(1, 1, positions=None, cka=torch.full((2, 2), torch.nan))
    stats = replace(stats, filters=torch.empty(0, 3, 4, 4), filter_shares=torch.empty(0))
    said = words(PLOTS["overview"](stats))
    for expected in (
        "this model has no position embedding",
        "CKA needs four patch tokens",
        "all filters are the same",
        "one head a layer: there is no other to be like",
        "one layer: there is no early and late",
    ):
        assert expected in said


def test_one_line_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'^"page.pdf" is neither .png nor .svg; name one of them$'):
        save(Figure(), tmp_path / "page.pdf")
    with pytest.raises(ValueError, match=r'^plot "distanc" is none of distance, entropy, cls_to_patch, redundancy, '):
        single(made(), "distanc")
