"""Every patch lies on its own pixels, colours say what they should, and a sheet shows all of it, whole."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from vitrail.explain import draw
from vitrail.explain.draw import Panel, Placed, SheetRow, at_cell_size, overlay, picture, save, sheet, wrapped


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def photo(height: int, width: int, seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def grey(height: int, width: int, value: int = 128) -> Image.Image:
    return Image.new("RGB", (width, height), (value,) * 3)


def blocks(values: NDArray[np.float32], down: int, across: int) -> NDArray[np.float32]:
    return values.repeat(down, axis=0).repeat(across, axis=1)


# --------------------------------------------------------------------------------------------------------------------
# Places


def test_each_patch_covers_exactly_its_own_pixels() -> None:
    values = numbers(3, 4)
    np.testing.assert_array_equal(Placed(values, (4, 2), (12, 8)).spread(smooth=False), blocks(values, 4, 2))


def test_padding_is_cut_off() -> None:
    values = numbers(5, 6)  # two rows and a column lie beyond the image, and its last patches jut out
    placed = Placed(values, (4, 3), (11, 13))
    np.testing.assert_array_equal(placed.cropped, values[:3, :5])
    np.testing.assert_array_equal(placed.spread(smooth=False), blocks(values, 4, 3)[:11, :13])


@pytest.mark.parametrize("padding", [1e9, np.nan])
@pytest.mark.parametrize("smooth", [True, False])
def test_what_lies_in_the_padding_changes_nothing(padding: float, smooth: bool) -> None:
    values = numbers(3, 3)
    filled = np.pad(values, ((0, 2), (0, 1)), constant_values=np.float32(padding))
    clean, padded = (Placed(one, (4, 4), (11, 12)) for one in (values, filled))
    over = photo(11, 12)
    assert overlay(over, padded, smooth=smooth).tobytes() == overlay(over, clean, smooth=smooth).tobytes()


@pytest.mark.parametrize("grid", [(3, 4), (1, 5), (2, 1)])
def test_smooth_is_bilinear_between_the_centres_and_level_at_the_edges(grid: tuple[int, int]) -> None:
    values = numbers(*grid)
    size = grid[0] * 6, grid[1] * 5
    expected = F.interpolate(torch.from_numpy(values)[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    spread = Placed(values, (6, 5), size).spread()
    np.testing.assert_allclose(spread, expected.numpy(), atol=1e-6)
    assert len(np.unique(spread[:3, :2].round(6))) == 1


def test_a_cut_patch_keeps_its_centre() -> None:
    values = numbers(2, 2)
    whole, cut = (Placed(values, (6, 6), (side, side)).spread() for side in (12, 8))
    np.testing.assert_allclose(cut, whole[:8, :8], atol=1e-6)


@pytest.mark.parametrize("size", [(24, 36), (12, 18), (4, 6), (28, 42)])
def test_a_picture_of_any_resolution(size: tuple[int, int]) -> None:
    """Its pixels have the patch that their centre lies in."""
    values = numbers(2, 3)
    y, x = (((np.arange(count) + 0.5) / count * side).astype(int) for count, side in zip(size, values.shape, strict=True))
    spread = Placed(values, (4, 4), (8, 12)).spread(size, smooth=False)
    np.testing.assert_array_equal(spread, values[y][:, x])


# --------------------------------------------------------------------------------------------------------------------
# Pictures and overlays


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_channels_of_a_picture(channels: int, shown: list[int]) -> None:
    pixels = torch.randint(0, 256, (channels, 4, 6), dtype=torch.uint8)
    made = picture(pixels)
    assert (made.mode, made.size) == ("RGB", (6, 4))
    np.testing.assert_array_equal(np.asarray(made), pixels[shown].permute(1, 2, 0).numpy())
    assert picture(pixels.numpy()).tobytes() == made.tobytes()


def test_a_note_names_the_bands_that_are_shown() -> None:
    assert [draw.shown_bands(count) for count in (1, 3)] == ["", ""]
    assert draw.shown_bands(2) == "the picture shows band 1 of 2"
    assert draw.shown_bands(13) == "the picture shows bands 1 to 3, as red, green, blue, of 13"


@pytest.mark.parametrize("size", [(12, 16), (60, 80), (13, 17)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_overlay_has_the_pictures_size(size: tuple[int, int], mode: str) -> None:
    made = overlay(photo(*size).convert(mode), Placed(numbers(3, 4), (4, 4), (12, 16)))
    assert (made.mode, made.size) == ("RGB", size[::-1])


def test_an_overlay_at_a_higher_resolution_covers_the_same_place() -> None:
    placed = Placed(numbers(3, 4), (4, 4), (11, 16))
    small, large = (np.asarray(overlay(grey(11 * k, 16 * k), placed, smooth=False)) for k in (1, 3))
    np.testing.assert_array_equal(large, blocks(small, 3, 3))


def test_colours_are_the_colour_maps_and_grow_with_the_value() -> None:
    values = np.linspace(0, 7, 8, dtype=np.float32)[None]
    placed = Placed(values, (1, 1), (1, 8))
    opaque, usual = (np.asarray(overlay(grey(1, 8), placed, alpha=alpha, smooth=False)) for alpha in (1, draw.ALPHA))
    inferno = (255 * np.asarray(colormaps["inferno"](1.0)[:3])).round()
    assert np.abs(opaque[0, -1] - inferno).max() <= 1
    light = np.asarray(Image.fromarray(usual).convert("L"), dtype=int)[0]
    assert light[-1] > 200
    assert light[0] < 100  # dimmed
    assert (np.diff(light[2:]) > 0).all()


def test_the_photograph_shows_where_the_map_is_low_and_hardly_where_it_is_high() -> None:
    over = photo(8, 16)
    made = np.asarray(overlay(over, Placed(np.array([[0, 1]], dtype=np.float32), (8, 8), (8, 16)), smooth=False), dtype=float)
    before = np.asarray(over.convert("L"), dtype=float)
    low, high = (made[:, side].mean(axis=2).std() / before[:, side].std() for side in (slice(8), slice(8, 16)))
    assert low > 0.6
    assert high < 0.2


def test_no_alpha_is_the_picture_in_grey() -> None:
    over = photo(8, 8)
    assert overlay(over, Placed(numbers(2, 2), (4, 4), (8, 8)), alpha=0).tobytes() == over.convert("L").convert("RGB").tobytes()


@pytest.mark.parametrize("values", [[[3.5, 3.5]], [[-1, -1]], [[0, 0]], [[1 / 196, (1 + 1e-7) / 196]]])
def test_a_map_that_is_the_same_everywhere_is_low_everywhere(values: list[list[float]]) -> None:
    made = overlay(grey(8, 8), Placed(np.array(values, dtype=np.float32), (8, 4), (8, 8)))
    rising = overlay(grey(8, 8), Placed(np.array([[0, 1]], dtype=np.float32), (8, 4), (8, 8)), smooth=False)
    assert made.getcolors() == [(64, rising.getpixel((0, 0)))]


def test_values_that_are_all_above_zero_begin_at_the_least() -> None:
    values = numbers(3, 3)
    first, second = (overlay(grey(12, 12), Placed(one, (4, 4), (12, 12))) for one in (values, 8 + 4 * values))
    assert np.abs(np.asarray(first, dtype=int) - np.asarray(second, dtype=int)).max() <= 2


def test_zero_is_neutral_where_signs_count() -> None:
    over = photo(4, 12)
    placed = Placed(np.array([[-1, 0, 4]], dtype=np.float32), (4, 4), (4, 12))
    made, bare = np.asarray(overlay(over, placed, signed=True, smooth=False)), np.asarray(over.convert("L").convert("RGB"))
    np.testing.assert_array_equal(made[:, 4:8], bare[:, 4:8])
    red, blue = (made[..., channel].astype(int) - bare[..., channel] for channel in (0, 2))
    assert (blue - red)[:, :4].min() > 0  # against
    assert (red - blue)[:, 8:].min() > 0  # for
    assert (red - blue)[:, 8:].mean() > 2 * (blue - red)[:, :4].mean()  # one scale for both sides


def test_a_signed_map_of_zeros_is_the_picture_in_grey() -> None:
    over = photo(8, 8)
    made = overlay(over, Placed(np.zeros((2, 2), np.float32), (4, 4), (8, 8)), signed=True)
    assert made.tobytes() == over.convert("L").convert("RGB").tobytes()


def test_patches_with_colours_of_their_own() -> None:
    colors = numbers(3, 3, 3)
    placed = Placed(np.zeros((3, 3), np.float32), (4, 4), (10, 8))  # the last column is padding
    made = np.asarray(overlay(photo(10, 8), placed, colors=colors, alpha=1, smooth=False))
    expected = (255 * colors).round().astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)[:10, :8]
    np.testing.assert_array_equal(made, expected)


def test_nothing_depends_on_the_day() -> None:
    first, second = (overlay(photo(12, 12), Placed(numbers(3, 3), (4, 4), (12, 12))).tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("size", "fine"), [((224, 224), True), ((1000, 1000), True), ((999, 1000), True), ((900, 1000), False), ((300, 100), False)]
)
def test_a_picture_of_another_shape_is_refused(size: tuple[int, int], fine: bool) -> None:
    placed = Placed(numbers(14, 14), (16, 16), (224, 224))
    if fine:
        overlay(grey(*size), placed)
        return
    with pytest.raises(ValueError, match=f"a picture of {size[1]}x{size[0]} px has not the shape .* 224x224 px; crop") as error:
        overlay(grey(*size), placed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    values = numbers(2, 3)
    values[1, 1] = bad
    with pytest.raises(ValueError, match=r"^1 of the map's 6 numbers are not finite; compute it in float32$"):
        Placed(values, (4, 4), (8, 12))
    colors = numbers(2, 3, 3)
    colors[0, 0, 0] = bad
    with pytest.raises(ValueError, match="colours are not finite"):
        overlay(grey(8, 12), Placed(numbers(2, 3), (4, 4), (8, 12)), colors=colors)


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"alpha {alpha} must be from 0 to 1"):
        overlay(grey(4, 4), Placed(numbers(1, 1), (4, 4), (4, 4)), alpha=alpha)


# --------------------------------------------------------------------------------------------------------------------
# Sheets


def panel(label: str = "attention\nlayer 3, mean of 12 heads, class token", *, side: int = 28, signed: bool = False) -> Panel:
    return Panel(Placed(numbers(7, 7), (4, 4), (side, side)), label, "insertion 0.71 · deletion 0.12", signed)


def said(figure: draw.Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((28, 28), (252, 252)),
        ((32, 96), (128, 384)),
        ((96, 32), (384, 128)),
        ((224, 224), (224, 224)),
        ((9, 160), (18, 320)),
    ],
)
def test_small_pictures_are_enlarged_by_whole_factors(size: tuple[int, int], shown: tuple[int, int]) -> None:
    small = photo(*size)
    made = at_cell_size(small)
    assert made.size == shown[::-1]
    np.testing.assert_array_equal(np.asarray(made), blocks(np.asarray(small), shown[0] // size[0], shown[1] // size[1]))


@pytest.mark.parametrize(("size", "shown"), [((512, 512), (256, 256)), ((300, 900), (128, 384)), ((1, 3000), (1, 384))])
def test_large_pictures_are_shrunk(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert at_cell_size(photo(*size)).size == shown[::-1]


@pytest.mark.parametrize("grid", [False, True])
def test_a_sheet_holds_what_the_model_saw_and_the_overlay_pixel_by_pixel(grid: bool, tmp_path: Path) -> None:
    seen, one = photo(28, 28), panel()
    with Image.open(save(sheet([SheetRow(seen, "a.png", [one])], grid=grid), tmp_path / "sheet.png")) as image:
        pixels = np.asarray(image.convert("RGB"))
    large = at_cell_size(seen)
    over = np.asarray(overlay(large, one.placed))
    left, right = (slice(start, start + 252) for start in (draw._MARGIN, draw._MARGIN + 252 + draw._GAP))
    tops = [top for top in range(len(pixels) - 252) if np.array_equal(pixels[top : top + 252, left], np.asarray(large))]
    assert len(tops) == 1
    changed = (pixels[tops[0] : tops[0] + 252, right] != over).any(axis=2)
    if not grid:
        assert not changed.any()
        return
    near = np.zeros(252, dtype=bool)
    for edge in range(36, 252, 36):
        near[edge - 2 : edge + 2] = True
        assert changed[edge - 2 : edge + 2].any(axis=0).all()
        assert changed[:, edge - 2 : edge + 2].any(axis=1).all()
    assert not changed[~near][:, ~near].any()


@pytest.mark.parametrize(("panels", "rows"), [(1, 1), (12, 1), (1, 8)])
def test_nothing_is_cut_off_and_nothing_too_wide(panels: int, rows: int, tmp_path: Path) -> None:
    """Long names, labels and notes leave a margin of blank pixels on all four sides."""
    words = "a rather long label that says more than one wants to know"
    figure = sheet([SheetRow(photo(28, 28), "x" * 90, [panel(words)] * panels, label=words)] * rows, note=f"{words}; " * 8)
    with Image.open(save(figure, tmp_path / "sheet.png")) as image:
        assert image.size == (round(figure.get_figwidth() * draw.DPI), round(figure.get_figheight() * draw.DPI))
        assert image.width < 2000
        ink = np.asarray(image.convert("L")) < 250
    assert not any(edge.any() for edge in (ink[:4], ink[-4:], ink[:, :4], ink[:, -4:]))
    columns = figure.axes[0].images
    assert len(columns) == rows * (1 + panels) + 1  # and the legend's bar


def test_words_stand_around_their_pictures() -> None:
    figure = sheet([SheetRow(photo(28, 28), "boot.png", [panel("rollout")], label="ankle boot, 99 %")], note="read me")
    boot, rollout, label, line = (
        next(text for text in figure.axes[0].texts if text.get_text() == words)
        for words in ("boot.png", "rollout", "ankle boot, 99 %", "insertion 0.71 · deletion 0.12")
    )
    left, right, bottom, top = figure.axes[0].images[0].get_extent()  # y goes down
    assert boot.get_position()[0] == label.get_position()[0] == left
    assert rollout.get_position()[0] == line.get_position()[0] > right
    assert boot.get_position()[1] == rollout.get_position()[1] < top
    assert label.get_position()[1] == line.get_position()[1] > bottom
    assert said(figure)[-1] == "read me"


def test_the_legend_says_what_the_colours_mean() -> None:
    plain, signed = panel(), panel(signed=True)
    coloured = Panel(plain.placed, colors=numbers(7, 7, 3))
    named = Panel(plain.placed, signed=True, legend=("unlike", "alike"))
    ends = {"low", "high", "against", "for", "unlike", "alike"}
    for panels, expected, bars in (
        ([plain], {"low", "high"}, 1),
        ([plain, signed, signed], {"low", "high", "against", "for"}, 2),
        ([signed, named], {"against", "for", "unlike", "alike"}, 2),
        ([coloured], set(), 0),
        ([], set(), 0),
    ):
        figure = sheet([SheetRow(photo(28, 28), "boot.png", panels)])
        assert set(said(figure)) & ends == expected
        assert len(figure.axes[0].images) == 1 + len(panels) + bars
        assert any("like colour" in words for words in said(figure)) == (coloured in panels)


@pytest.mark.parametrize("name", ["$5 a_b^c x$\\frac$", "靴 T恤 🙂", "", "two\nlines"])
def test_names_are_not_markup_and_need_no_font(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(sheet([SheetRow(photo(28, 28), name, [panel(name)], label=name)], note=name), tmp_path / "sheet.png")


@pytest.mark.parametrize("width", [60, 168, 900])
def test_wrapped_lines_fit_and_lose_no_letter(width: int) -> None:
    text = "layer 11, mean of 12 heads, class token\n" + "photographs/" * 9 + " and the rest of it"
    lines = wrapped(text, width=width)
    assert all(draw._measured(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert len(lines) >= 2


def test_a_name_that_is_no_text_is_drawn(tmp_path: Path) -> None:
    """As Python gives a file's name that is not UTF-8."""
    assert wrapped("a\udcffb", width=100) == ["a\\udcffb"]
    name = "b\udcffd.png"
    save(sheet([SheetRow(photo(28, 28), name, [panel(name)], label=name)], note=name), tmp_path / "sheet.png")


def test_too_many_lines_end_in_dots() -> None:
    lines = wrapped("one two three four five six seven eight nine ten", width=60, most=2)
    assert len(lines) == 2
    assert lines[1].endswith("…")
    assert all(draw._measured(line) <= 60 for line in lines)


def test_the_same_sheet_has_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        save(sheet([SheetRow(photo(28, 28), "a", [panel()])], grid=True), tmp_path / f"{name}.png").read_bytes()
        for name in "ab"
    )
    assert first == second


def test_errors_of_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        sheet([])
    with pytest.raises(ValueError, match=r'"sheet.jpg" does not end in \.png'):
        save(sheet([SheetRow(photo(28, 28), "a", [])]), tmp_path / "sheet.jpg")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(draw, "_LONGEST", 600)
    with pytest.raises(ValueError, match="is larger than 600 px a side; draw fewer images at a time"):
        sheet([SheetRow(photo(28, 28), "a", [])] * 3)
