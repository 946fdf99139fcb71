from __future__ import annotations

import dataclasses
import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pillow_heif
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms import v2

from vitrail.data.decode import BadImage, _truncate_jpeg, crop_view, decode, eval_view, read_header, shrunk_view, view_is_exact
from vitrail.settings import Preprocessing


def preprocessing(
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    crop_pct: float = 1.0,
    crop_mode: Literal["center", "squash"] = "center",
) -> Preprocessing:
    half = (0.5,) * channels
    return Preprocessing(img_size=size, in_channels=channels, mean=half, std=half, crop_pct=crop_pct, crop_mode=crop_mode)


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """Smooth, so that JPEG keeps it, and with four corners that differ."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height))
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def close(a: Image.Image, b: Image.Image, *, within: float = 3.0) -> bool:
    return a.size == b.size and bool(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() <= within)


def heic(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=95, **options)
    return file.getvalue()


def test_heic_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As telephones write them, in whatever their names end; without the library the message says what is missing."""
    (tmp_path / "IMG_1.HEIC").write_bytes(heic(photo()))
    (tmp_path / "IMG_2.jpg").write_bytes(heic(photo()))
    for file in tmp_path.iterdir():
        assert read_header(file).size == (40, 60)
        assert close(decode(file, channels=3), photo(), within=24)
    assert heic(photo())[8:12] == b"heic"
    half = heic(photo())[:-200]
    with pytest.raises(BadImage, match="corrupt or truncated"):
        decode(half, channels=3)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImage, match=r"a HEIC photograph, which needs pillow-heif: pip install 'vitrail\[heif\]'"):
        read_header(tmp_path / "IMG_1.HEIC")


def test_an_upright_heic_photograph_stays_upright() -> None:
    """The decoder turns it, and EXIF is not to turn it once more."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(heic(photo(), exif=exif.tobytes()), channels=3)
    assert close(turned, photo().transpose(Image.Transpose.ROTATE_270), within=24)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_formats(format: str, tmp_path: Path) -> None:
    image = photo() if format != "GIF" else photo().quantize(64)
    lossless = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    (tmp_path / "IMAGE.XYZ").write_bytes(saved(image, format, **lossless))  # what counts is the content
    assert close(
        decode(tmp_path / "IMAGE.XYZ", channels=3), image.convert("RGB"), within={"JPEG": 8, "AVIF": 24}.get(format, 0)
    )
    header = read_header(tmp_path / "IMAGE.XYZ")
    assert (header.size, header.format) == ((40, 60), format)


def test_modes_look_as_people_expect() -> None:
    grey = photo().convert("L")
    assert close(decode(saved(grey), channels=3), grey.convert("RGB"), within=0)
    assert close(decode(saved(photo()), channels=1), grey, within=0)
    one_bit = grey.convert("1")
    assert set(np.unique(np.asarray(decode(saved(one_bit), channels=1)))) == {0, 255}
    palette = photo().quantize(32)
    assert close(decode(saved(palette), channels=3), palette.convert("RGB"), within=0)
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert np.asarray(decode(saved(clear), channels=3)).min() == 255  # transparent shows white
    half = Image.new("RGBA", (4, 4), (200, 0, 0, 128))
    assert np.asarray(decode(saved(half), channels=3))[0, 0] == pytest.approx([227, 127, 127], abs=1)
    grey_alpha = Image.new("LA", (4, 4), (0, 0))
    assert np.asarray(decode(saved(grey_alpha), channels=1)).min() == 255
    hole = Image.new("P", (4, 4), 1)
    hole.putpalette([0, 0, 0, 9, 9, 9])
    assert np.asarray(decode(saved(hole, transparency=1), channels=3)).min() == 255


def test_cmyk_is_not_a_negative() -> None:
    for colour in ((255, 255, 255), (255, 0, 0), (0, 0, 255), (0, 0, 0)):
        inks = Image.new("RGB", (16, 16), colour).convert("CMYK")
        for format in ("JPEG", "TIFF"):  # Pillow writes JPEG as Adobe does, inverted
            assert np.asarray(decode(saved(inks, format), channels=3))[8, 8] == pytest.approx(colour, abs=4)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(format: str) -> None:
    values = np.array([[0, 257, 32768, 65535], [128, 129, 513, 65406]], np.uint16)
    data = saved(Image.fromarray(values), format)
    assert np.asarray(decode(data, channels=1)).tolist() == [[0, 1, 128, 255], [0, 1, 2, 254]]
    assert decode(data, channels=3).mode == "RGB"
    assert read_header(data).mode.startswith("I")


def png(width: int, height: int, depth: int, rows: bytes) -> bytes:
    """An RGB PNG that claims this size, whatever the rows hold."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def test_16_bit_colour() -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", 0, 32896, 65535, 257, 514, 65535) for _ in range(2))
    assert np.asarray(decode(png(2, 2, 16, rows), channels=3))[0].tolist() == [[0, 128, 255], [1, 2, 255]]


def test_pixels_of_unknown_range_are_refused() -> None:
    floats = Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4))
    with pytest.raises(BadImage, match="floating-point"):
        decode(saved(floats, "TIFF"), channels=1)
    large = Image.fromarray(np.full((4, 4), 1_000_000, np.int32))
    with pytest.raises(BadImage, match="32 bits"):
        decode(saved(large, "TIFF"), channels=1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_sets_the_image_upright(format: str, orientation: int) -> None:
    upright = photo()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposes: what lays it down the other way
    lying = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    data = saved(lying, format, exif=exif, **options)
    assert close(decode(data, channels=3), upright, within={"JPEG": 8, "AVIF": 24}.get(format, 0))
    assert read_header(data).size == (40, 60)


def test_exif_and_draft_go_together() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(photo(640, 480).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
    small = decode(data, channels=3, short_side=100)
    assert small.size == (160, 120)  # a quarter: an eighth would have 60 pixels
    assert close(small, photo(160, 120), within=8)
    view = eval_view(data, preprocessing((60, 80)))
    assert np.abs(view.permute(1, 2, 0).numpy().astype(int) - np.asarray(photo(80, 60), int)).max() <= 8


def test_broken_exif_leaves_the_image_as_it_stands() -> None:
    data = saved(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09 broken")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(data, channels=3).size == (60, 40)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert np.asarray(decode(data, channels=3))[4, 4].tolist() == [255, 0, 0]


JPEG, PNG = saved(photo(), "JPEG"), saved(photo(), "PNG")
BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"hello, this is no image\n" * 9, "not an image"),
    "html": (b"<!doctype html><title>404</title>", "not an image"),
    "zeros": (bytes(5000), "not an image"),
    "cut jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut png": (PNG[: len(PNG) // 2], "corrupt or truncated"),
    "cut webp": (saved(photo(), "WEBP")[:-100], "corrupt|not an image"),
    "cut bmp": (saved(photo(), "BMP")[:-100], "truncated"),
    "cut tiff": (saved(photo(), "TIFF", compression="tiff_lzw")[:-500], "corrupt|not an image"),
    "scrambled png": (PNG[:60] + bytes(reversed(PNG[60:-20])) + PNG[-20:], "corrupt"),
    "header only": (JPEG[:20], "not an image|corrupt"),
    "51 megapixels": (png(8500, 6000, 8, bytes(100)), "8500 x 6000 pixels, more than 50 megapixels"),
    "100 megapixels": (png(10_000, 10_000, 8, bytes(100)), "more than 50 megapixels"),
    "2 gigapixels": (png(50_000, 40_000, 8, bytes(100)), "more than 50 megapixels"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_says_so_in_one_line(name: str) -> None:
    data, reason = BROKEN[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match=reason) as error:
            decode(data, channels=3)
        with pytest.raises(BadImage):
            eval_view(data, preprocessing())
        with pytest.raises(BadImage):
            crop_view(data, box=(0, 0, 20, 20), size=(40, 60), preprocessing=preprocessing())
        if name != "scrambled png":  # sound at both ends
            with pytest.raises(BadImage):
                read_header(data)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="not there"):
        decode(tmp_path / "gone.jpg", channels=3)
    with pytest.raises(BadImage, match="can't be read"):
        decode(tmp_path, channels=3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_writes_to_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for look in (read_header, lambda path: decode(path, channels=3)):
        with pytest.raises(BadImage, match=r"^a pipe or a device, and no file$"):
            look(tmp_path / "pipe.jpg")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]), st.integers(0, 400), st.data())
def test_damaged_files_never_raise_anything_else(junk: bytes, format: str, at: int, draw: st.DataObject) -> None:
    sound = bytearray(saved(photo(20, 16), format))
    at = min(at, len(sound))
    sound[at : at + len(junk)] = junk
    for data in (bytes(sound), junk):
        try:
            assert decode(data, channels=3).mode == "RGB"
        except BadImage as error:
            assert "\n" not in str(error)  # noqa: PT017  # most examples raise, some do not


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (20, 100), (224, 300)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_evaluation_view_is_torchvision_s(crop_pct: float, size: tuple[int, int], interpolation: str) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    filters = {"bicubic": v2.InterpolationMode.BICUBIC, "bilinear": v2.InterpolationMode.BILINEAR}
    reference = v2.Compose(
        [v2.Resize(int(32 / crop_pct), interpolation=filters[interpolation]), v2.CenterCrop(32), v2.PILToTensor()]
    )(image)
    settings = Preprocessing(
        img_size=(32, 32), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=crop_pct, interpolation=interpolation
    )
    difference = (eval_view(image, settings).int() - reference.int()).abs()
    assert difference.max() <= 2  # one rounding here, two there
    assert difference.float().mean() < 0.3


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (20, 100), (224, 300)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_squashed_view_is_the_whole_image(size: tuple[int, int], interpolation: Literal["bicubic", "bilinear"]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    settings = dataclasses.replace(preprocessing((24, 32), crop_mode="squash"), interpolation=interpolation)
    theirs = image.resize((32, 24), {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation])
    view = eval_view(image, settings)
    assert torch.equal(view, v2.functional.pil_to_tensor(theirs))
    settings = dataclasses.replace(settings, crop_pct=0.875)  # DeiT's processor squashes to 256 and crops 224
    filters = {"bicubic": v2.InterpolationMode.BICUBIC, "bilinear": v2.InterpolationMode.BILINEAR}
    middle = int(24 / 0.875), int(32 / 0.875)
    reference = v2.Compose([v2.Resize(middle, interpolation=filters[interpolation]), v2.CenterCrop((24, 32)), v2.PILToTensor()])
    difference = (eval_view(image, settings).int() - reference(image).int()).abs()
    assert difference.max() <= 2  # one rounding here, two there
    assert difference.float().mean() < 0.3


def test_only_an_image_of_its_own_view_s_size_is_left_alone() -> None:
    assert view_is_exact((24, 32), preprocessing((24, 32), crop_mode="squash"))
    assert not view_is_exact((48, 64), preprocessing((24, 32), crop_mode="squash"))
    assert not view_is_exact((24, 32), preprocessing((24, 32), crop_pct=0.875, crop_mode="squash"))
    image = photo(64, 24)
    assert not torch.equal(
        eval_view(image, preprocessing((24, 32), crop_mode="squash")), eval_view(image, preprocessing((24, 32)))
    )


def test_a_squashed_jpeg_is_decoded_at_a_scale_that_has_all_pixels() -> None:
    data = saved(photo(800, 300), "JPEG", quality=95)
    view = eval_view(data, preprocessing((60, 80), crop_mode="squash"))
    whole = np.asarray(photo(800, 300).resize((80, 60), Image.Resampling.BICUBIC), int)
    assert np.abs(view.permute(1, 2, 0).numpy().astype(int) - whole).max() <= 8


def test_the_same_view_of_file_bytes_image_and_array(tmp_path: Path) -> None:
    image = photo(50, 70)
    (tmp_path / "image.png").write_bytes(saved(image))
    settings = preprocessing((24, 32), crop_pct=0.9)
    views = [eval_view(picture, settings) for picture in (tmp_path / "image.png", saved(image), image, np.asarray(image))]
    assert views[0].shape == (3, 24, 32)
    assert all(torch.equal(views[0], view) for view in views[1:])
    grey = np.asarray(image.convert("L"))
    assert torch.equal(eval_view(grey, preprocessing(channels=1)), eval_view(grey[:, :, None], preprocessing(channels=1)))
    with pytest.raises(BadImage, match="truncated"):
        eval_view(Image.open(io.BytesIO(saved(photo(300, 200), "BMP")[:9000])), settings)  # opened, not decoded yet
    with pytest.raises(BadImage, match=r"array \(3, 4, 5\) of float64"):
        eval_view(np.zeros((3, 4, 5)), settings)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1.0, 0.9, 0.5]),
    st.sampled_from(["center", "squash"]),
)
def test_every_size_has_a_view(
    width: int, height: int, out_h: int, out_w: int, crop_pct: float, crop_mode: Literal["center", "squash"]
) -> None:
    wanted = preprocessing((out_h, out_w), crop_pct=crop_pct, crop_mode=crop_mode)
    assert eval_view(photo(width, height), wanted).shape == (3, out_h, out_w)


def test_a_crop_is_the_same_whatever_scale_it_was_decoded_at() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    image = photo(800, 600)
    lying = saved(image.transpose(Image.Transpose.ROTATE_270), "JPEG", quality=95, exif=exif)
    box = (100.0, 200.0, 400.0, 480.0)  # top, left, height, width
    for side in (24, 50, 110, 300, 480):
        expected = image.resize((side, side), Image.Resampling.BICUBIC, box=(200, 100, 680, 500))
        for data in (saved(image, "JPEG", quality=95), saved(image, "PNG"), lying):
            view = crop_view(data, box=box, size=(600, 800), preprocessing=preprocessing((side, side)))
            difference = np.abs(view.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected, int))
            assert difference.max() <= 8
            assert difference.mean() < 1.5


def busy(width: int, height: int) -> Image.Image:
    """Smooth and with edges in all directions, so that a resampling that is off by a part of a pixel shows."""
    y, x = np.mgrid[0:height, 0:width] / 25.0
    waves = np.stack([np.sin(x + 2 * y), np.sin(3 * x - y), np.sin(x * y / 20)], -1)
    return Image.fromarray((127.5 + 80 * waves + 40 * (waves > 0.3)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_crop_is_that_of_the_whole_decoded_image(
    orientation: int, subsampling: str, progressive: bool, interpolation: Literal["bicubic", "bilinear"]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(busy(310, 230), "JPEG", quality=90, exif=exif, subsampling=subsampling, progressive=progressive)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    settings = dataclasses.replace(preprocessing((40, 56)), interpolation=interpolation)
    for top, left, high, wide in ((0, 0, 60, 90), (17, 25, 70, 100), (33, 9, 151, 200), (60, 3, 170, 227), (0, 0, 230, 230)):
        whole = upright.crop((left, top, left + wide, top + high))
        expected = np.asarray(whole.resize((56, 40), Image.Resampling[interpolation.upper()]), int)
        view = crop_view(data, box=(top, left, high, wide), size=(upright.height, upright.width), preprocessing=settings)
        difference = np.abs(view.permute(1, 2, 0).numpy().astype(int) - expected)
        scaled = min(high / 40, wide / 56) >= 2  # else every pixel of the file is decoded as it is
        assert difference.max() <= (40 if scaled else 2)  # scaled, at the box's edge: Pillow's filter sees what is beyond
        assert difference.mean() < (2 if scaled else 0.3)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_rows_below_a_crop_need_no_decoding(progressive: bool, subsampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(busy(400, 640), "JPEG", quality=90, progressive=progressive, subsampling=subsampling)
    cut = []
    monkeypatch.setattr(
        "vitrail.data.decode._truncate_jpeg", lambda jpeg, rows, **size: cut.append(rows) or _truncate_jpeg(jpeg, rows, **size)
    )
    for box in ((5, 7, 30, 43), (40, 0, 101, 203), (3, 8, 390, 390), (30, 1, 397, 399), (301, 50, 200, 200)):
        for side in (24, 97):
            small = crop_view(data, box=box, size=(640, 400), preprocessing=preprocessing((side, side)))
            with monkeypatch.context() as off:
                off.setattr("vitrail.data.decode._truncate_jpeg", lambda jpeg, rows, **size: jpeg)
                full = crop_view(data, box=box, size=(640, 400), preprocessing=preprocessing((side, side)))
            difference = (small.int() - full.int()).abs()
            if min(box[2:]) < 2 * side:  # not scaled
                assert difference.max() == 0
            else:  # Pillow resizes the same pixels, and rounds otherwise in an image of another height
                assert difference.max() <= 4
                assert difference.float().mean() < 0.5
    assert len(cut) == 10
    assert max(cut) < 640


def test_only_the_header_of_a_whole_jpeg_of_that_size_is_cut() -> None:
    data = saved(busy(60, 40), "JPEG")
    with Image.open(io.BytesIO(_truncate_jpeg(data, 16, size=(40, 60)))) as image:
        assert image.size == (60, 16)
    assert _truncate_jpeg(data, 40, size=(40, 60)) is data
    assert _truncate_jpeg(data, 16, size=(60, 40)) is data
    for length in (0, 2, 3, 20, 100, len(data) - 2):
        assert _truncate_jpeg(data[:length], 16, size=(40, 60)) == data[:length]
    broken = data[:2] + b"\xff\xe0\xff\xff" + data[6:]  # a segment that ends behind the end
    assert _truncate_jpeg(broken, 16, size=(40, 60)) is broken
    png = saved(busy(60, 40), "PNG")
    assert _truncate_jpeg(png, 16, size=(40, 60)) is png


def test_a_truncated_jpeg_gives_no_crop_of_its_upper_part() -> None:
    data = saved(busy(400, 640), "JPEG")
    with pytest.raises(BadImage, match="truncated"):
        crop_view(data[: len(data) * 2 // 3], box=(0, 0, 50, 50), size=(640, 400), preprocessing=preprocessing())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_of_every_mode(mode: str, channels: int) -> None:
    image = busy(80, 60).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    data = saved(image, "TIFF" if mode == "CMYK" else "PNG")
    expected = decode(data, channels=channels).crop((10, 5, 50, 45))
    view = crop_view(data, box=(5, 10, 40, 40), size=(60, 80), preprocessing=preprocessing((40, 40), channels))
    assert np.array_equal(view.numpy(), np.atleast_3d(np.asarray(expected)).transpose(2, 0, 1))


def test_a_crop_of_a_file_that_was_replaced_by_a_smaller_one() -> None:
    full, half = (saved(photo(*size), "PNG") for size in ((800, 600), (400, 300)))
    views = [
        crop_view(data, box=(300, 400, 300, 400), size=(600, 800), preprocessing=preprocessing((30, 40)))
        for data in (full, half)
    ]
    assert (views[0].int() - views[1].int()).abs().max() <= 2


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_crop_leaves_the_image(draw: st.DataObject) -> None:
    width, height = draw.draw(st.integers(1, 70)), draw.draw(st.integers(1, 70))
    high, wide = draw.draw(st.floats(1, height)), draw.draw(st.floats(1, width))
    box = (draw.draw(st.floats(0, height - high)), draw.draw(st.floats(0, width - wide)), high, wide)
    data = saved(photo(width, height), draw.draw(st.sampled_from(["JPEG", "PNG"])))
    assert crop_view(data, box=box, size=(height, width), preprocessing=preprocessing((8, 12))).shape == (3, 8, 12)


def test_photographs_are_shrunk_and_never_enlarged() -> None:
    data = saved(photo(300, 200), "JPEG")
    assert shrunk_view(data, short_side=48, preprocessing=preprocessing()).shape == (3, 48, 72)
    assert shrunk_view(data, short_side=500, preprocessing=preprocessing(channels=1)).shape == (1, 200, 300)
