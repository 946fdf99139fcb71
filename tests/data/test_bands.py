from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.bands import Bands, BandsError, TiffBands, merge_ranges, scaled, values_in_use
from vitrail.data.decode import BadImage, crop_view, decode, decode_planes, eval_view, read_bands, read_header, shrunk_view
from vitrail.settings import Preprocessing

RNG = np.random.default_rng(0)


def view(channels: int = 1, size: tuple[int, int] = (20, 30), value_range: tuple[float, float] | None = None) -> Preprocessing:
    half = (0.5,) * channels
    return Preprocessing(img_size=size, in_channels=channels, mean=half, std=half, crop_mode="squash", range=value_range)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def png16(values: np.ndarray) -> bytes:
    """A 16-bit colour PNG, which neither Pillow nor tifffile writes; rows have all five filters."""
    import struct
    import zlib

    height, width, bands = values.shape
    rows = values.astype(">u2").tobytes()
    stride, bpp = 2 * bands * width, 2 * bands
    above, lines = bytes(stride), []
    for y in range(height):
        row, kind = rows[y * stride : (y + 1) * stride], y % 5
        left, corner = bytes(bpp) + row[:-bpp], bytes(bpp) + above[:-bpp]

        def paeth(a: int, b: int, c: int) -> int:
            near = sorted(((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c)))
            return near[0][2]

        guess = {
            0: lambda a, b, c: 0,
            1: lambda a, b, c: a,
            2: lambda a, b, c: b,
            3: lambda a, b, c: (a + b) // 2,
            4: paeth,
        }[kind]
        lines.append(
            bytes([kind]) + bytes((x - guess(a, b, c)) % 256 for x, a, b, c in zip(row, left, above, corner, strict=True))
        )
        above = row
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6, 2: 4, 1: 0}[bands], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def pixels(source: bytes | Path, channels: int, value_range: tuple[float, float] | None = None) -> np.ndarray:
    return np.concatenate(
        [np.atleast_3d(np.asarray(plane)) for plane in decode_planes(source, channels=channels, value_range=value_range)],
        axis=2,
    )


# 8 bits


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "CMYK", "1", "LA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_8_bits_are_what_pillow_gives(mode: str, format: str) -> None:
    if mode == "CMYK" and format == "PNG":
        pytest.skip("there is none")
    image = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, format)
    for channels, name in ((1, "L"), (3, "RGB")):
        opaque = image.convert({"RGBA": "RGB", "LA": "L"}.get(mode, mode))
        expected = np.atleast_3d(np.asarray(opaque.convert("RGB").convert(name) if mode == "P" else opaque.convert(name)))
        seen = eval_view(file.getvalue(), view(channels)).permute(1, 2, 0).numpy()
        assert np.array_equal(seen, expected)
        assert np.array_equal(seen, eval_view(file.getvalue(), view(channels, value_range=(3.0, 9.0))).permute(1, 2, 0).numpy())


def test_views_of_8_bits_are_the_ones_of_before() -> None:
    """Written down: no run on 8-bit images may see other pixels than its predecessors."""
    y, x = np.mgrid[0:90, 0:120]
    image = Image.fromarray(np.stack([x * 2, y * 2, (x * y) % 256], -1).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    how = Preprocessing(img_size=(32, 32), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875)
    views = [
        eval_view(file.getvalue(), how),
        shrunk_view(file.getvalue(), short_side=48, preprocessing=how),
        crop_view(file.getvalue(), box=(5, 7, 61, 50), size=(90, 120), preprocessing=how),
        crop_view(file.getvalue(), box=(5.5, 7.25, 61.5, 50), size=(90, 120), preprocessing=how),
    ]
    assert [hashlib.sha256(one.numpy().tobytes()).hexdigest()[:12] for one in views] == BEFORE


BEFORE = ["7f97976aa48e", "e85969c5689a", "6c5594757b0e", "31870a3466fb"]


# More than 8 bits


def test_photographs_of_12_bits_differ() -> None:
    """Values from 1160 to 1200 in 16 bits, one with a square that is 100 brighter."""
    plain = RNG.integers(1160, 1201, (64, 64)).astype(np.uint16)
    marked = plain.copy()
    marked[20:30, 20:30] += 100
    files = [tiff(plain), tiff(marked)]
    used = merge_ranges(values_in_use(read_bands(file)) for file in files)
    assert used is not None
    assert used.range is not None
    assert 1160 <= used.low < 1163
    assert 1297 < used.high <= 1300
    assert (
        np.array_equal(pixels(files[0], 1), pixels(files[1], 1)) or np.ptp(pixels(files[1], 1)) <= 1
    )  # the whole range: nothing
    one, two = (pixels(file, 1, used.range)[:, :, 0].astype(int) for file in files)
    assert (two - one)[20:30, 20:30].mean() > 150
    assert not (two - one)[:20].any()
    assert np.ptp(one) > 60


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 10_000), (0, 4095), (1000, 1001), (0, 40_000), (200, 65_535)])
def test_auto_gives_the_values_in_use_all_levels(low: int, high: int) -> None:
    values = np.linspace(low, high, 4096).round().astype(np.uint16).reshape(64, 64)
    used = values_in_use(read_bands(tiff(values)))
    assert used is not None
    levels = len(np.unique(pixels(tiff(values), 1, used.range)))
    assert levels >= min(150, high - low + 1)
    assert (used.range is None) == (high - low >= 32768)
    assert pixels(tiff(values), 1, used.range)[0, 0, 0] <= 1


def test_a_hot_pixel_is_no_part_of_the_range() -> None:
    values = RNG.integers(1000, 2000, (200, 200)).astype(np.uint16)
    values[7, 9] = 65535
    used = values_in_use(read_bands(tiff(values)))
    assert used is not None
    assert used.high < 2000


@given(
    st.sampled_from([np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64]),
    st.floats(-30_000, 60_000),
    st.floats(1, 30_000),
)
@settings(max_examples=60, deadline=None)
def test_scaling_is_the_formula(kind: type, low: float, width: float) -> None:
    limits = (0, 60_000) if np.dtype(kind).kind == "u" else (-30_000, 30_000)
    values = RNG.integers(*limits, (7, 9, 2)).astype(kind)
    share = ((values.astype(float) - low) / width).clip(0, 1)
    assert np.abs(scaled(values, (low, low + width)) - 255 * share).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_16_bit_grey_in_any_order_and_compression(compression: str | None) -> None:
    values = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", compression=compression)
    expected = ((values.astype(int) + 128) // 257).astype(np.uint8)
    for source in (file.getvalue(), tiff(values, byteorder=">"), tiff(values, bigtiff=True), png16(values[:, :, None])):
        assert read_header(source).bits == 16
        assert read_header(source).bands == 1
        assert np.array_equal(pixels(source, 1)[:, :, 0], expected)
        assert np.array_equal(pixels(source, 3), np.repeat(expected[:, :, None], 3, 2))


def test_white_is_zero_is_inverted_at_every_depth() -> None:
    deep = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
    flat = (deep // 257).astype(np.uint8)
    assert np.array_equal(pixels(tiff(flat, photometric="miniswhite"), 1)[:, :, 0], 255 - flat)
    for order in "<>":
        source = tiff(deep, photometric="miniswhite", byteorder=order)
        assert np.array_equal(pixels(source, 1)[:, :, 0], 255 - pixels(tiff(deep), 1)[:, :, 0])
        assert np.array_equal(pixels(source, 1, (100, 9000)), 255 - pixels(tiff(deep), 1, (100, 9000)))
    floats = deep.astype(np.float32)
    assert np.array_equal(
        pixels(tiff(floats, photometric="miniswhite"), 1, (0, 65535)), 255 - pixels(tiff(floats), 1, (0, 65535))
    )


def test_signed_values_are_read() -> None:
    values = RNG.integers(-3000, 3000, (20, 30)).astype(np.int16)
    for order in "<>":
        source = tiff(values, byteorder=order)
        bands = read_bands(source)
        assert bands is not None
        assert bands.values.dtype == np.int16
        assert np.array_equal(bands.values[:, :, 0], values)
        expected = np.floor(255 * (values.astype(float) + 3000) / 6000 + 0.5)
        assert np.array_equal(pixels(source, 1, (-3000, 3000))[:, :, 0], expected)
        assert np.array_equal(pixels(source, 1)[:, :, 0], (values.astype(int) + 32768 + 128) // 257)
    assert np.array_equal(pixels(tiff(values.astype(np.int8)), 1)[:, :, 0], values.astype(np.int8).astype(int) + 128)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int32, np.uint32])
def test_numbers_without_a_range_of_their_own(kind: type) -> None:
    values = RNG.uniform(0, 2000 if kind == np.float16 else 3e5, (20, 30)).astype(kind)
    with pytest.raises(BadImage, match=r"whose range nobody knows; set data\.range, or save it with 8 or 16 bits") as error:
        pixels(tiff(values), 1)
    assert "\n" not in str(error.value)
    top = float(values.max())
    assert np.abs(pixels(tiff(values), 1, (0, top))[:, :, 0] - 255 * values.astype(float) / top).max() <= 0.51
    used = values_in_use(read_bands(tiff(values)))
    assert used is not None
    assert used.range is not None
    assert used.range[1] == pytest.approx(top, rel=0.01)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(wrong: float) -> None:
    values = RNG.uniform(0, 1, (20, 30)).astype(np.float32)
    values[3, 4:6] = wrong
    with pytest.raises(BadImage, match=r"2 of its 600 values are no numbers \(NaN or infinite\); fill them in before"):
        pixels(tiff(values), 1, (0, 1))
    assert values_in_use(read_bands(tiff(values))) is None


@pytest.mark.parametrize("alpha", [False, True])
def test_16_bit_colour_keeps_all_its_bits(alpha: bool) -> None:
    """Of which Pillow gives the upper bytes: 12 bits in them would be nearly black."""
    values = RNG.integers(0, 4096, (20, 30, 3)).astype(np.uint16)
    expected = np.floor(255 * (values.astype(float) / 4095) + 0.5)
    full = np.full((20, 30, 1), 65535, np.uint16)
    stored = np.concatenate([values, full], 2) if alpha else values
    extra: dict[str, Any] = {"photometric": "rgb"} | ({"extrasamples": ["unassalpha"]} if alpha else {})
    sources = [
        png16(stored),
        tiff(stored, **extra),
        tiff(stored, byteorder=">", **extra),
        tiff(stored, compression="zlib", **extra),
    ]
    sources.append(tiff(np.moveaxis(stored, 2, 0), planarconfig="separate", **extra))
    for source in sources:
        header = read_header(source)
        assert (header.size, header.bands, header.bits) == ((20, 30), 3, 16)
        assert np.array_equal(pixels(source, 3, (0, 4095)), expected)
        assert np.abs(pixels(source, 3).astype(int) - values / 257).max() <= 0.5
        used = values_in_use(read_bands(source))
        assert used is not None
        assert used.high <= 4095


def test_the_opacity_of_16_bits_shows_white() -> None:
    values = np.zeros((4, 4, 4), np.uint16)
    values[:, :2, 3] = 65535
    seen = pixels(png16(values), 3)
    assert (seen[:, :2] == 0).all()
    assert (seen[:, 2:] == 255).all()


# Bands


@pytest.mark.parametrize("count", [2, 4, 5, 13])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_bands_are_all_read(count: int, kind: type, planar: str, compression: str | None) -> None:
    values = RNG.integers(0, 120, (20, 30, count)).astype(kind)
    stored = values if planar == "contig" else np.moveaxis(values, 2, 0)
    source = tiff(
        stored,
        photometric="minisblack",
        planarconfig=planar,
        compression=compression,
        extrasamples=["unspecified"] * (count - 1),
        metadata=None,
    )
    header = read_header(source)
    assert (header.size, header.bands) == ((20, 30), count)
    value_range = None if kind == np.uint8 else (0.0, 255.0)
    assert np.array_equal(pixels(source, count, value_range), values.astype(np.uint8))
    for other in {1, 3, 6} - {count}:
        with pytest.raises(BadImage, match=rf"it has {count} bands, and the model takes {other} \(model\.in_channels\)"):
            pixels(source, other, value_range)


@pytest.mark.parametrize("shape", [(5, 20, 30), (20, 30, 5)])
def test_bands_as_pages_are_all_read(shape: tuple[int, ...]) -> None:
    """As `tifffile.imwrite` and scikit-image write an array, unless they are told otherwise."""
    values = RNG.integers(0, 256, shape).astype(np.uint8)
    source = tiff(values)
    assert (read_header(source).size, read_header(source).bands) == ((20, 30), 5)
    assert np.array_equal(pixels(source, 5), values if shape[2] == 5 else np.moveaxis(values, 0, 2))


def test_a_fourth_band_is_dropped_by_nobody() -> None:
    values = RNG.integers(0, 256, (20, 30, 4)).astype(np.uint8)
    near_infrared = tiff(values, photometric="rgb", extrasamples=["unspecified"])
    assert read_header(near_infrared).bands == 4
    assert np.array_equal(pixels(near_infrared, 4), values)
    with pytest.raises(BadImage, match="it has 4 bands, and the model takes 3"):
        decode(near_infrared, channels=3)
    see_through = tiff(values, photometric="rgb", extrasamples=["unassalpha"])
    assert read_header(see_through).bands == 3
    assert np.array_equal(pixels(see_through, 4), values)
    assert pixels(see_through, 3).shape == (20, 30, 3)


def test_a_compression_that_nobody_here_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.integers(0, 256, (20, 30, 5)).astype(np.uint8)

    def missing(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", missing)
    with pytest.raises(BadImage, match=r"compressed with .*, which needs a library: pip install imagecodecs"):
        pixels(tiff(values, photometric="minisblack", planarconfig="contig", metadata=None), 5)


@pytest.mark.parametrize("cut", [200, 900, 1600])
def test_a_truncated_file_is_a_bad_image(cut: int) -> None:
    values = RNG.integers(0, 256, (20, 30, 5)).astype(np.uint16)
    with pytest.raises(BadImage):
        pixels(tiff(values, photometric="minisblack", planarconfig="contig", metadata=None)[:cut], 5, (0, 255))


def test_a_file_without_rows_is_a_bad_image() -> None:
    """Which tifffile opens, and Pillow does not."""
    source = bytearray(tiff(np.ones((20, 30, 5), np.uint16), photometric="minisblack", planarconfig="contig", metadata=None))
    with tifffile.TiffFile(io.BytesIO(source)) as file:
        at = file.pages.first.tags["ImageLength"].valueoffset
    source[at : at + 2] = b"\0\0"
    for read in (read_header, read_bands, lambda file: eval_view(file, view(5))):
        with pytest.raises(BadImage, match=r"an array of shape \(0, 30, 5\) is no picture"):
            read(bytes(source))


def test_tifffile_does_not_log_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    source = bytearray(tiff(np.ones((20, 30, 5), np.uint16), photometric="minisblack", planarconfig="contig"))
    with tifffile.TiffFile(io.BytesIO(source)) as file:
        at = file.pages.first.tags["Software"].offset
    source[at + 8 : at + 12] = b"\xff\xff\xff\x7f"  # where its text is: behind the end of the file
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []  # pytest's own
    try:
        assert read_header(bytes(source)).bands == 5
    finally:
        root.handlers = handlers
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_raises_nothing_but_bad_image(data: st.DataObject) -> None:
    values = np.arange(8 * 9 * 5, dtype=np.uint16).reshape(8, 9, 5)
    stack = np.moveaxis(values, 2, 0)
    sources = [
        png16(values[:, :, :2]),
        tiff(values, photometric="minisblack", planarconfig="contig"),
        tiff(stack, imagej=True, metadata={"axes": "CYX"}),
        tiff(stack, ome=True, metadata={"axes": "CYX"}),
        tiff(values[:, :, :4], photometric="rgb", extrasamples=["assocalpha"]),
        tiff(values[:, :, 0].astype(np.int16), byteorder=">", compression="zlib"),
        with_nodata(values[:, :, 0].astype(np.float32), "-9999"),
    ]
    damaged = bytearray(data.draw(st.sampled_from(sources)))
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=6)):
        damaged[at] = byte
    source = bytes(damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))])
    for read in (read_header, read_bands, lambda file: eval_view(file, view(5, value_range=(0, 400)))):
        with contextlib.suppress(BadImage):
            read(source)


def test_views_of_bands_are_those_of_each() -> None:
    values = RNG.integers(0, 4096, (40, 60, 5)).astype(np.uint16)
    source = tiff(values, photometric="minisblack", planarconfig="contig", metadata=None)
    how = view(5, (16, 16), (0, 4095))
    one = view(1, (16, 16), (0, 4095))
    box = {"box": (3.0, 5.0, 30.0, 41.0), "size": (40, 60)}
    for band in range(5):
        alone = tiff(values[:, :, band])
        assert torch.equal(eval_view(source, how)[band], eval_view(alone, one)[0])
        assert torch.equal(
            shrunk_view(source, short_side=24, preprocessing=how)[band], shrunk_view(alone, short_side=24, preprocessing=one)[0]
        )
        assert torch.equal(crop_view(source, preprocessing=how, **box)[band], crop_view(alone, preprocessing=one, **box)[0])


def test_a_file_lies_as_its_orientation_says() -> None:
    values = RNG.integers(0, 256, (20, 30, 5)).astype(np.uint8)
    source = tiff(values, photometric="minisblack", planarconfig="contig", metadata=None, extratags=[(274, "H", 1, 6, True)])
    assert read_header(source).size == (30, 20)
    assert np.array_equal(pixels(source, 5), np.rot90(values, -1))


def test_arrays_of_more_than_8_bits() -> None:
    values = RNG.integers(0, 4096, (20, 30, 5)).astype(np.uint16)
    how = view(5, (20, 30), (0, 4095))
    expected = np.floor(255 * (values.astype(float) / 4095) + 0.5)
    assert np.array_equal(eval_view(values, how).permute(1, 2, 0).numpy(), expected)
    assert torch.equal(eval_view(values.astype(np.float64), how), eval_view(values, how))
    with pytest.raises(BadImage, match=r"an array \(20, 30, 5\) of float64 is no image; give bytes"):
        eval_view(values.astype(np.float64), view(5, (20, 30)))
    with pytest.raises(BadImage, match="it has 5 bands, and the model takes 3"):
        eval_view(values.astype(np.uint8), view(3, (20, 30)))


def test_a_picture_that_would_lose_its_bits_is_refused() -> None:
    values = RNG.integers(0, 4096, (20, 30, 3)).astype(np.uint16)
    with pytest.raises(BadImage, match="half of the bits of 16-bit colour; give the file, or its bytes"):
        eval_view(Image.open(io.BytesIO(png16(values))), view(3, value_range=(0, 4095)))
    assert eval_view(Image.open(io.BytesIO(png16(values))), view(3)).shape == (3, 20, 30)


def test_numbers_that_are_no_picture() -> None:
    with pytest.raises(BandsError, match="complex"):
        scaled(np.zeros((2, 2, 1), np.complex64), (0, 1))
    assert Bands(np.zeros((2, 2, 1), np.uint8)).extremes() is None
    assert TiffBands.format == "TIFF"


# Files whose bytes a decoder misreads


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("compression", "predictor"), [(None, None), ("zlib", None), ("zlib", 2)])
@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_of_any_type_order_and_compression(
    order: Any, compression: str | None, predictor: int | None, kind: type, photometric: str
) -> None:
    if predictor and np.dtype(kind).kind == "f":
        pytest.skip("a predictor of integers")
    values = RNG.integers(0, 3000, (20, 30)).astype(kind)
    source = tiff(values, byteorder=order, compression=compression, predictor=predictor, photometric=photometric)
    bands = read_bands(source)
    assert bands is not None
    assert bands.values.dtype == kind
    assert np.array_equal(bands.values[:, :, 0], values)
    expected = np.floor(255 * (values.astype(float) / 3000) + 0.5)
    assert np.array_equal(pixels(source, 1, (0, 3000))[:, :, 0], expected if photometric == "minisblack" else 255 - expected)


def test_a_picture_of_a_compressed_big_endian_file_has_its_values() -> None:
    values = RNG.integers(-3000, 3000, (20, 30)).astype(np.int16)
    source = tiff(values, byteorder=">", compression="zlib")
    how = view(1, value_range=(-3000, 3000))
    for picture in (source, Image.open(io.BytesIO(source))):
        assert torch.equal(eval_view(picture, how), eval_view(tiff(values), how))


def test_16_bit_grey_with_opacity_keeps_all_its_bits() -> None:
    """Pillow opens such a PNG as 8-bit colour."""
    grey = RNG.integers(1160, 1200, (20, 30)).astype(np.uint16)
    opacity = np.full((20, 30), 65535, np.uint16)
    opacity[:5] = 0
    source = png16(np.stack([grey, opacity], axis=2))
    header = read_header(source)
    assert (header.bands, header.bits) == (1, 16)
    bands = read_bands(source)
    assert bands is not None
    assert np.array_equal(bands.values, np.stack([grey, opacity], axis=2))
    assert values_in_use(bands) is not None
    expected = np.floor(255 * ((grey.astype(float) - 1160) / 40) + 0.5)
    expected[:5] = 255
    assert np.array_equal(pixels(source, 1, (1160, 1200))[:, :, 0], expected)
    assert np.array_equal(pixels(source, 3, (1160, 1200)), np.repeat(expected[:, :, None], 3, 2))
    with pytest.raises(BadImage, match="give the file, or its bytes"):
        eval_view(Image.open(io.BytesIO(source)), view(1, value_range=(1160, 1200)))


@pytest.mark.parametrize("bands", [1, 3])
def test_the_transparent_colour_of_a_16_bit_png_shows_white(bands: int) -> None:
    """As it does in a PNG of 8 bits."""
    import struct
    import zlib

    values = RNG.integers(0, 4096, (20, 30, bands)).astype(np.uint16)
    values[:5] = 4095
    plain = png16(values)
    key = struct.pack(">" + "H" * bands, *[4095] * bands)
    chunk = struct.pack(">I", len(key)) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    at = plain.index(b"IDAT") - 4
    source = plain[:at] + chunk + plain[at:]
    expected = np.floor(255 * (values.astype(float) / 8000) + 0.5)
    expected[(values == 4095).all(axis=2)] = 255
    assert read_header(source).bands == bands
    assert np.array_equal(pixels(source, bands, (0, 8000)), expected)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_colours_that_hold_their_opacity_are_divided_by_it(planar: str, count: int, kind: type) -> None:
    top = np.iinfo(kind).max
    colour = RNG.integers(0, top, (20, 30, count - 1)).astype(float)
    opacity = np.full((20, 30, 1), top // 2)
    opacity[:, :10] = top
    share = opacity / top
    stored = np.concatenate([np.rint(colour * share), opacity], axis=2).astype(kind)
    source = tiff(
        stored if planar == "contig" else np.moveaxis(stored, 2, 0),
        photometric="rgb" if count == 4 else "minisblack",
        planarconfig=planar,
        extrasamples=["assocalpha"],
        metadata=None,
    )
    assert read_header(source).bands == count - 1
    expected = 255 * (colour / top * share + 1 - share)
    assert np.abs(pixels(source, count - 1) - expected).max() <= 1.01


def test_the_opacity_of_floating_point_is_0_to_1() -> None:
    values = np.full((4, 4, 4), 50, np.float32)
    values[:, :, 3] = [[1, 1, 0, 0]] * 4
    seen = pixels(tiff(values, photometric="rgb", extrasamples=["unassalpha"]), 3, (0, 100))
    assert (seen[:, :2] == 128).all()
    assert (seen[:, 2:] == 255).all()


def test_opacity_as_a_fourth_band_has_16_bits_too() -> None:
    values = RNG.integers(0, 65536, (20, 30, 4)).astype(np.uint16)
    for source in (png16(values), tiff(values, photometric="rgb", extrasamples=["unassalpha"])):
        assert np.array_equal(pixels(source, 4), (values.astype(int) + 128) // 257)


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}])
def test_channels_as_pages_of_a_microscope_are_bands(options: dict[str, Any]) -> None:
    values = RNG.integers(0, 3000, (5, 20, 30)).astype(np.uint16)
    source = tiff(values, metadata={"axes": "CYX"}, **options)
    assert read_header(source).bands == 5
    assert np.array_equal(pixels(source, 5, (0, 255 * 12)), np.floor(np.moveaxis(values, 0, 2) / 12 + 0.5))
    with pytest.raises(BadImage, match="it has 5 bands, and the model takes 1"):
        pixels(source, 1)
    depths = tiff(values, metadata={"axes": "ZYX"}, **options)  # no bands: the first page, as of every file of pages
    assert np.array_equal(pixels(depths, 1, (0, 3000)), pixels(tiff(values[0]), 1, (0, 3000)))


def test_a_picture_that_lost_a_band_is_refused() -> None:
    values = RNG.integers(0, 256, (20, 30, 4)).astype(np.uint8)
    source = tiff(values, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(BadImage, match="Pillow does not give the bands of this TIFF as they are; give the file"):
        eval_view(Image.open(io.BytesIO(source)), view(3))
    pages = Image.open(io.BytesIO(tiff(values)))  # its pages one by one are what somebody asks for
    assert eval_view(pages, view(1)).shape == (1, 20, 30)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3), (20, 30, 5)])
@pytest.mark.parametrize("kind", ["uint16", ">u2", "int16", "int8"])
def test_an_array_is_what_its_file_is(shape: tuple[int, ...], kind: str) -> None:
    values = RNG.integers(0, 120, shape).astype(kind)
    channels = shape[2] if len(shape) == 3 else 1
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"} if channels > 1 else {}
    source = tiff(values.astype(values.dtype.newbyteorder("=")), metadata=None, **options)
    for value_range in (None, (3.0, 90.0)):
        how = view(channels, value_range=value_range)
        assert torch.equal(eval_view(values, how), eval_view(source, how))


# The range of values


def with_nodata(values: np.ndarray, text: str, **options: Any) -> bytes:
    return tiff(values, extratags=[(42113, "s", 0, text, True)], metadata=None, **options)


@pytest.mark.parametrize(
    ("kind", "text"),
    [(np.int16, "-9999"), (np.uint16, "65535"), (np.uint16, "0"), (np.float32, "-3.4028234663852886e+38"), (np.float32, "nan")],
)
@pytest.mark.parametrize("bands", [1, 5])
def test_pixels_that_are_declared_to_be_no_data(kind: type, text: str, bands: int) -> None:
    """GDAL's nodata: no part of the range, and black."""
    values = RNG.integers(500, 2500, (40, 50, bands)).astype(kind)
    values[:20] = kind(float(text))
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig"} if bands > 1 else {}
    source = with_nodata(values if bands > 1 else values[:, :, 0], text, **options)
    used = values_in_use(read_bands(source))
    assert used is not None
    assert 500 <= used.low < used.high <= 2500
    seen = pixels(source, bands, (500, 2500))
    assert (seen[:20] == 0).all()
    assert np.array_equal(seen[20:], np.floor(255 * ((values[20:].astype(float) - 500) / 2000) + 0.5))
    empty = with_nodata(np.full((20, 30), kind(float(text)), kind), text)
    assert values_in_use(read_bands(empty)) is None


def test_no_data_that_the_type_does_not_have() -> None:
    values = RNG.integers(500, 2500, (20, 30)).astype(np.uint16)
    for text in ("-9999", "nan", "none", "1e400"):
        assert np.array_equal(pixels(with_nodata(values, text), 1), pixels(tiff(values), 1))
    flat = RNG.integers(0, 256, (20, 30)).astype(np.uint8)
    assert np.array_equal(pixels(with_nodata(flat, "7"), 1)[:, :, 0], flat)  # 8 bits stay as they are


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("side", [8, 24, 64])
def test_a_hot_pixel_of_a_small_image_is_no_part_of_the_range(kind: type, side: int) -> None:
    values = RNG.integers(1160, 1201, (side, side)).astype(kind)
    low, high = float(values.min()), float(values.max())
    assert Bands(values[:, :, None]).extremes() == (low, high)
    values[3, 4] = 32000
    values[4, 3] = 0
    found = Bands(values[:, :, None]).extremes()
    assert found is not None
    assert low <= found[0] < found[1] <= high


def test_what_is_alone_in_an_even_image_is_the_picture() -> None:
    values = np.full((20, 30, 1), 1160, np.uint16)
    values[7, 9] = 1300
    assert Bands(values).extremes() == (1160, 1300)


def test_a_range_that_one_image_makes_wide_is_warned_of() -> None:
    dark = [tiff(RNG.integers(1160, 1201, (64, 64)).astype(np.uint16)) for _ in range(5)]
    bright = tiff(RNG.integers(0, 65536, (64, 64)).astype(np.uint16))
    used = merge_ranges(values_in_use(read_bands(file)) for file in [*dark, bright])
    assert used is not None
    assert used.range is None
    warning = used.few_levels(None)
    assert warning is not None
    assert re.fullmatch(
        r"-?\d+ to 65535 is wide: most values lie from 116\d to 1[12]\d\d, which become 1 of 256 levels; "
        r"give data\.range a narrower pair, such as \[116\d, 1[12]\d\d\]",
        warning,
    )
    assert used.few_levels((1160, 1200)) is None
    narrow = merge_ranges(values_in_use(read_bands(file)) for file in dark)
    assert narrow is not None
    assert narrow.few_levels(narrow.range) is None
    assert narrow.few_levels((0, 4095)) is not None
    mask = values_in_use(read_bands(tiff(RNG.integers(0, 2, (64, 64)).astype(np.uint16))))  # has two values, and gets them
    assert mask is not None
    assert mask.few_levels(mask.range) is None


@pytest.mark.parametrize(
    ("value_range", "beyond"), [((1160, 1200), False), ((0, 65535), False), ((0, 1000), True), ((1190, 9000), True)]
)
def test_values_beyond_a_range(value_range: tuple[float, float], beyond: bool) -> None:
    used = values_in_use(read_bands(tiff(RNG.integers(1160, 1201, (64, 64)).astype(np.uint16))))
    assert used is not None
    assert used.beyond(value_range) is beyond
