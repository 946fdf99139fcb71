"""Decode image files to upright pixels: grey, RGB or other bands. A truncated file is an error.

Evaluation during training and `predict` both use `eval_view`, so they see the same pixels.
"""

# C channels · H W image

from __future__ import annotations

import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vitrail.data.bands import (
    TIFF_STARTS,
    Bands,
    BandsError,
    TiffBands,
    ValueRange,
    fix_byte_order,
    has_bands,
    is_16_bit_colour,
    is_16_bit_grey_alpha,
    pillow_reads,
    pillow_reads_page,
    read_values,
    scaled,
)
from vitrail.data.quiet import silence_decoders
from vitrail.settings import Pair, Preprocessing
from vitrail.text import one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MAX_PIXELS = 50_000_000
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_TURNS = {  # EXIF orientation -> transposition to upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TOP_DOWN, _LEFT_RIGHT, _SWAPPED = (3, 4, 7, 8), (2, 3, 6, 7), (5, 6, 7, 8)  # effects on the axes; swapped first
_JPEGS, _JPEG_END = ("JPEG", "MPO"), b"\xff\xd9"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")  # brands of ISO 23008-12
_WARNING_FILTERS = threading.Lock()
_ENDS_EARLY = re.compile(r"truncat|unexpected end|end of (file|data|stream)|not enough", re.IGNORECASE)  # Pillow's words

File = str | Path | bytes
"""A path, or the contents of a file."""
Picture = File | Image.Image | np.ndarray


class BadImage(ValueError):
    """A file that is no image, corrupt or truncated; the message is the reason, in one line."""


class MissingImage(BadImage):
    """A file that is not there: a line of a table, or a broken link."""


class OversizedImage(BadImage):
    """A file whose header declares more than `MAX_PIXELS`."""


class TruncatedImage(BadImage):
    """A file that ends before its pixels do."""


class NoImage(BadImage):
    """A file that is empty, or of a format that is not read."""


class Header(NamedTuple):
    """Size and pixel format of an image file."""

    size: Pair
    """Height and width, upright."""
    mode: str
    """Pillow's name of the pixel format: "L", "RGB", "CMYK"…"""
    format: str
    """"JPEG", "PNG"…"""
    bands: int = 3
    """1 is grey, 3 is colour; alpha is not counted."""
    bits: int = 8
    """Bits per value."""


def read_header(source: File) -> Header:
    """Read the header of an image, and verify that the file is complete.

    A JPEG or PNG is decoded only if its end marker is missing, a file of another format always.
    Raises BadImage for a file that is no image, is truncated or declares more than 50 megapixels.
    """
    with _open_checked(source) as (image, end):
        header = Header(_upright_size(image), image.mode, image.format or "", *_bands_and_bits(image))
        ends = {**dict.fromkeys(_JPEGS, _JPEG_END), "PNG": b"IEND"}
        if header.format not in ends or ends[header.format] not in end:
            image.load()
        return header


def decode(source: File, *, channels: int, short_side: int | None = None, value_range: ValueRange | None = None) -> Image.Image:
    """Decode the first frame of an image file, upright, in mode "L" (channels 1) or "RGB" (channels 3).

    Transparent pixels become white; values of more than 8 bits are scaled by `Bands.to_bytes`. With `short_side`, a JPEG is
    decoded at the smallest of the scales 1/8, 1/4, 1/2, 1 whose shorter side has at least that many pixels.
    Raises BadImage for a file that is no image, corrupt, truncated, larger than 50 megapixels or with other bands.
    """
    assert channels in (1, 3)
    return decode_planes(source, channels=channels, short_side=short_side, value_range=value_range)[0]


def decode_planes(
    source: File,
    *,
    channels: int,
    short_side: int | None = None,
    value_range: ValueRange | None = None,
    max_pixels: int = MAX_PIXELS,
) -> list[Image.Image]:
    """Decode as `decode`, to any number of channels: one "L" or "RGB" image, or one "L" image for each band."""
    with _open_checked(source, max_pixels) as (image, _):
        if short_side is not None:
            image.draft("L" if channels == 1 else None, (short_side, short_side))
        planes = _read_planes(image, source, channels, value_range)
        orientation = _orientation(image)
        return [_turn(plane, orientation) for plane in planes]


class Decoded(NamedTuple):
    """An image file, decoded once and whole."""

    header: Header
    picture: Image.Image | None
    """Upright, in mode "L" or "RGB"; None where there are `bands`."""
    bands: Bands | None
    """Stored values of more than 8 bits or of other bands; None where there is a `picture`."""


def decode_whole(source: File, *, short_side: int | None = None) -> Decoded:
    """Decode the whole first frame, in the bands that the file has, and read its header on the way.

    Transparent pixels become white. With `short_side`, a JPEG is decoded at a smaller scale, as by `decode`. Raises BadImage.
    """
    with _open_checked(source) as (image, _):
        orientation = _orientation(image)
        size = (image.width, image.height) if orientation in _SWAPPED else (image.height, image.width)
        header = Header(size, image.mode, image.format or "", *_bands_and_bits(image))
        if short_side is not None:
            image.draft(None, (short_side, short_side))
        if has_bands(image) and (bands := read_values(image, _contents(source))) is not None:
            return Decoded(header, None, bands)
        assert isinstance(image, Image.Image)
        image.load()
        return Decoded(header, _turn(_convert(image, header.bands), orientation), None)


def read_bands(source: File) -> Bands | None:
    """Read the stored values of a file with more than 8 bits, or more than four bands; None for any other.

    Raises BadImage.
    """
    with _open_checked(source) as (image, _):
        return read_values(image, _contents(source)) if has_bands(image) else None


def eval_view(image: Picture, preprocessing: Preprocessing, *, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "C H W"]:
    """Return the evaluation view of an image: resize to img_size / crop_pct, then crop the centre to img_size.

    `image` is a file, its bytes, a Pillow image, or an array (H, W) or (H, W, C). With crop_mode
    "center" the resized image keeps its aspect ratio and covers that size; with "squash" it has exactly that size, so
    with crop_pct 1 the view is the whole image. The intermediate size is rounded down, as in torchvision's Resize;
    both steps are one resampling. A file whose header declares more than `max_pixels` is not decoded.
    Raises BadImage.
    """
    height, width = preprocessing.img_size
    channels, value_range = preprocessing.in_channels, preprocessing.range
    if isinstance(image, str | Path | bytes):
        short_side = max(_resized_to(preprocessing))
        planes = decode_planes(image, channels=channels, short_side=short_side, value_range=value_range, max_pixels=max_pixels)
    else:
        with _raise_bad_image():  # Pillow may decode only now
            if isinstance(image, np.ndarray):
                planes = _array_to_planes(image, channels, value_range)
            else:
                if value_range is not None and is_16_bit_colour(image):
                    raise BadImage("Pillow gives half of the bits of 16-bit colour; give the file, or its bytes")
                if not pillow_reads_page(image):
                    raise BadImage("Pillow does not give the bands of this TIFF as they are; give the file, or its bytes")
                fix_byte_order(image)
                upright = _turn(image, _orientation(image))
                upright.load()
                planes = _read_planes(upright, b"", channels, value_range)
    picture = planes[0]
    if view_is_exact((picture.height, picture.width), preprocessing):
        return to_tensor(*planes)
    least_h, least_w = _resized_to(preprocessing)
    if preprocessing.crop_mode == "squash":
        middle_h, middle_w = least_h, least_w
    elif least_h * picture.width >= least_w * picture.height:  # the height decides
        middle_h, middle_w = least_h, max(least_w, least_h * picture.width // picture.height)
    else:
        middle_h, middle_w = max(least_h, least_w * picture.height // picture.width), least_w
    top, left = round((middle_h - height) / 2), round((middle_w - width) / 2)
    down, across = picture.height / middle_h, picture.width / middle_w
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return to_tensor(*(plane.resize((width, height), _FILTERS[preprocessing.interpolation], box=box) for plane in planes))


def shrunk_view(source: File, *, short_side: int, preprocessing: Preprocessing) -> UInt8[Tensor, "C H W"]:
    """Decode the whole image with its shorter side reduced to `short_side`, never enlarged. Raises BadImage."""
    channels, value_range = preprocessing.in_channels, preprocessing.range
    planes = decode_planes(source, channels=channels, short_side=short_side, value_range=value_range)
    picture = planes[0]
    shrink = short_side / min(picture.size)
    if shrink < 1:
        size = max(short_side, round(picture.width * shrink)), max(short_side, round(picture.height * shrink))
        planes = [plane.resize(size, _FILTERS[preprocessing.interpolation]) for plane in planes]
    return to_tensor(*planes)


def view_is_exact(size: Pair, preprocessing: Preprocessing) -> bool:
    """Return True if the evaluation view of an image of this size is the image itself."""
    return size == tuple(preprocessing.img_size) == _resized_to(preprocessing)


def crop_view(
    source: File, *, box: tuple[float, float, float, float], size: Pair, preprocessing: Preprocessing
) -> UInt8[Tensor, "C H W"]:
    """Decode the crop `box` (top, left, height, width) of an image file, resized to img_size.

    A JPEG is decoded at the smallest scale at which the crop has at least img_size pixels, and only down to the crop's last
    row. `size` is the (height, width) that the box was drawn for; if the file has changed since, the box is scaled.
    Raises BadImage.
    """
    contents = _contents(source)
    orientation = 1  # most files have it; to open a file first for its orientation takes time
    while True:
        part, stored = _to_stored(box, size, orientation=orientation)
        truncated = _truncate_jpeg(contents, _rows_needed(part, preprocessing), size=stored)
        with _open_checked(truncated) as (image, _):
            file_orientation = _orientation(image)
            if file_orientation == orientation:
                if truncated is contents:  # a whole file, which may have changed size since the box was drawn
                    down, across = image.height / stored[0], image.width / stored[1]
                    part = (part[0] * down, part[1] * across, part[2] * down, part[3] * across)
                return _crop(image, contents, part, orientation, preprocessing)
        orientation = file_orientation


def to_tensor(*planes: Image.Image) -> UInt8[Tensor, "C H W"]:
    """Convert an "L" or "RGB" image, or one "L" image for each band, to a tensor."""
    if len(planes) > 1:
        return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))
    pixels = np.array(planes[0])  # a copy: torch needs a writable array
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


# --------------------------------------------------------------------------------------------------------------------


def _resized_to(preprocessing: Preprocessing) -> Pair:
    """Return the (height, width) of the resize before the centre crop."""
    height, width = preprocessing.img_size
    return math.floor(height / preprocessing.crop_pct), math.floor(width / preprocessing.crop_pct)


def _to_stored(
    box: tuple[float, float, float, float], size: Pair, *, orientation: int
) -> tuple[tuple[float, float, float, float], Pair]:
    """Map a box on the upright image, and the image's size, to the orientation stored in the file."""
    (top, left, high, wide), (height, width) = box, size
    if orientation in _TOP_DOWN:
        top = height - top - high
    if orientation in _LEFT_RIGHT:
        left = width - left - wide
    if orientation in _SWAPPED:
        return (left, top, wide, high), (width, height)
    return (top, left, high, wide), (height, width)


def _crop(
    image: Image.Image | TiffBands,
    contents: bytes,
    box: tuple[float, float, float, float],
    orientation: int,
    preprocessing: Preprocessing,
) -> UInt8[Tensor, "C H W"]:
    """Decode the crop `box` of an opened image, upright at img_size."""
    top, left, high, wide = box
    height, width = preprocessing.img_size if orientation not in _SWAPPED else preprocessing.img_size[::-1]
    scale = next(s for s in (8, 4, 2, 1) if s <= max(1.0, min(high / height, wide / width)))
    draft_size = max(1, image.width // scale), max(1, image.height // scale)
    before = image.width
    drafted = image.draft("L" if preprocessing.in_channels == 1 else None, draft_size)
    shrunk = before / drafted[1][2] if drafted else 1.0
    planes = _read_planes(image, contents, preprocessing.in_channels, preprocessing.range, loaded=False)
    stored = planes[0]
    left, top = min(left / shrunk, stored.width - 1), min(top / shrunk, stored.height - 1)
    right, bottom = min(left + wide / shrunk, stored.width), min(top + high / shrunk, stored.height)
    edges = (left, top, right, bottom)
    exact = all(edge == int(edge) for edge in edges)
    if len(planes) == 1 and exact:  # converting the crop is cheaper than the whole image
        planes = [_convert(stored.crop(edges), preprocessing.in_channels)]
    elif len(planes) == 1:
        planes = [_convert(stored, preprocessing.in_channels)]
    elif exact:
        planes = [plane.crop(edges) for plane in planes]
    if exact:
        pixels = np.array(planes[0]) if len(planes) == 1 else np.stack([np.asarray(plane) for plane in planes], axis=-1)
        # torch's resize of bytes is Pillow's arithmetic in vector instructions, where channels come last. The strides of
        # `[None]`, unlike those of a batch, make it write planes: copying its pixels into planes takes as long as resizing.
        whole = torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None]  # (1, C, h, w)
        view = F.interpolate(whole, (height, width), mode=preprocessing.interpolation, antialias=True)[0]
    else:
        method = _FILTERS[preprocessing.interpolation]
        view = to_tensor(*(plane.resize((width, height), method, box=edges) for plane in planes))
    if orientation in _SWAPPED:
        view = view.transpose(1, 2)
    flipped = [dim for dim, those in ((1, _TOP_DOWN), (2, _LEFT_RIGHT)) if orientation in those]
    return view.flip(flipped).contiguous() if flipped else view.contiguous()


def _rows_needed(box: tuple[float, float, float, float], preprocessing: Preprocessing) -> int:
    """Return the number of rows from the top that a resized box depends on."""
    top, _, high, _ = box
    filter_reach = 2 * high / min(preprocessing.img_size)  # of bicubic: two output pixels
    return math.ceil(top + high + filter_reach) + 8  # chroma upsampling reads the next rows; at scale 1/8, 8 rows are one


def _truncate_jpeg(contents: bytes, rows: int, *, size: Pair) -> bytes:
    """Patch the header of a JPEG to declare only the first `rows` rows, so that a decoder skips the rest.

    Any other file, a JPEG of another size and a truncated one are returned unchanged; a full decode reports the damage.
    """
    if rows >= size[0] or not contents.startswith(b"\xff\xd8") or _JPEG_END not in contents[-64:]:
        return contents
    at = 2
    while contents[at : at + 1] == b"\xff" and at + 9 <= len(contents):
        marker, length = contents[at + 1], int.from_bytes(contents[at + 2 : at + 4], "big")
        if marker in _START_OF_FRAME:
            height, width = contents[at + 5 : at + 7], contents[at + 7 : at + 9]
            if (int.from_bytes(height, "big"), int.from_bytes(width, "big")) != tuple(size):
                return contents
            return contents[: at + 5] + rows.to_bytes(2, "big") + contents[at + 7 :]
        at += 2 + length
    return contents


@contextmanager
def _open_checked(source: File, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Image.Image | TiffBands, bytes]]:
    """Open an image, check its format and size; yield it and the last 64 bytes of the file. Raises BadImage."""
    with (
        _raise_bad_image(),
        BytesIO(source) if isinstance(source, bytes) else open(source, "rb", opener=_open_nonblocking) as file,
    ):
        if not file.seekable():
            raise BadImage("a pipe or a device, and no file")
        file.seek(max(0, file.seek(0, 2) - 64))
        end = file.read()
        if not end:
            raise NoImage("the file is empty")
        file.seek(0)
        formats = _formats(file.read(64))
        file.seek(0)
        silence_decoders()
        image = _open(file, formats)
        if image.width * image.height > max_pixels:
            most = f"{max_pixels / 1e6:g} megapixels"
            raise OversizedImage(f"the header claims {image.width} x {image.height} pixels, more than {most}")
        yield image, end


def _open(file: BufferedIOBase, formats: tuple[str, ...]) -> Image.Image | TiffBands:
    """Open a file with Pillow, or with tifffile if it is a TIFF that Pillow rejects or would drop bands of."""
    try:
        with _ignore_warnings():  # Pillow warns above 89 megapixels; MAX_PIXELS is lower
            image = Image.open(file, formats=formats)  # type: ignore[arg-type]
        if pillow_reads(image):
            fix_byte_order(image)
            return image
    except UnidentifiedImageError:
        file.seek(0)
        if not file.read(4).startswith(TIFF_STARTS):
            raise
    file.seek(0)
    return TiffBands(file.read())


def _contents(source: File) -> bytes:
    """Read the contents of a file. Raises BadImage."""
    with _raise_bad_image():
        return source if isinstance(source, bytes) else Path(source).read_bytes()


def _formats(start: bytes) -> tuple[str, ...]:
    """Return Pillow's format names to try for the first bytes of a file; registers the HEIC plugin if they are HEIC."""
    brand, box = start[8:12], start[16 : int.from_bytes(start[:4], "big")]
    if start[4:8] != b"ftyp" or not (brand in _HEIC or (brand in (b"mif1", b"msf1") and any(name in box for name in _HEIC))):
        return FORMATS
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise NoImage("a HEIC photograph, which needs pillow-heif: pip install 'vitrail[heif]'") from None
    register_heif_opener()
    return ("HEIF",)


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a file without blocking on a named pipe that has no writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings. Threads share the filters, hence the lock."""
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _raise_bad_image() -> Iterator[None]:
    """Convert every error in this context to BadImage."""
    try:
        yield
    except BadImage:
        raise
    except BandsError as error:
        raise BadImage(str(error)) from None
    except FileNotFoundError:
        raise MissingImage("the file is not there") from None
    except (PermissionError, IsADirectoryError) as error:
        raise BadImage(f"the file can't be read: {error.strerror}") from None
    except Image.DecompressionBombError:
        raise OversizedImage("the header claims more than 50 megapixels") from None
    except UnidentifiedImageError:
        raise NoImage("not an image, or of a format that is not read (PNG, JPEG, WebP, AVIF, HEIC, BMP, TIFF, GIF)") from None
    except Exception as error:  # a parser that trips over a corrupt file may raise anything
        reason = one_line(error) or type(error).__name__
        kind = TruncatedImage if _ENDS_EARLY.search(reason) else BadImage
        raise kind(f"corrupt or truncated: {reason}") from None


def _orientation(image: Image.Image | TiffBands) -> int:
    """Return the EXIF orientation that is still to be applied: 1 to 8."""
    if isinstance(image, TiffBands):
        return image.orientation
    if image.format == "TIFF":  # Pillow applies it itself, to the size at once and to the pixels when they load
        return 1
    try:
        with _ignore_warnings():  # Pillow warns about corrupt EXIF, which thousands of ImageNet's files have
            return int(Image.Image.getexif(image).get(0x0112, 1))  # PNG's own getexif decodes the whole file first
    except Exception:  # broken EXIF beside sound pixels: leave the image as stored
        return 1


def _upright_size(image: Image.Image | TiffBands) -> Pair:
    turned = _orientation(image) in _SWAPPED
    return (image.width, image.height) if turned else (image.height, image.width)


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _bands_and_bits(image: Image.Image | TiffBands) -> tuple[int, int]:
    """Return the number of bands, without alpha, and the bits per value."""
    if isinstance(image, TiffBands):
        return image.count, 8 * image.dtype.itemsize
    grey = image.mode in GREY_MODES or image.mode == "F"
    if is_16_bit_grey_alpha(image):
        return 1, 16
    if is_16_bit_colour(image) or image.mode.startswith("I;16"):
        return 1 if grey else 3, 16
    if image.mode in ("I", "F"):
        tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
        return 1, max(tags.get(258, (32,)))
    return 1 if grey else 3, 8


def _read_planes(
    image: Image.Image | TiffBands, source: File, channels: int, value_range: ValueRange | None, *, loaded: bool = True
) -> list[Image.Image]:
    """Decode an opened image to one "L" or "RGB" image, or one "L" image for each band, in the stored orientation.

    With `loaded` False, a single image may keep its mode, for `_convert`. Raises BadImage if the number of bands differs.
    """
    bands = None
    if has_bands(image):
        bands = read_values(image, _contents(source) if source else b"")
    if bands is not None:
        if bands.alpha and channels == bands.count + 1 == 4:  # as with 8 bits, alpha is the fourth band
            opaque = replace(bands, values=bands.values[:, :, :3], alpha=False)
            return _to_planes(np.concatenate([opaque.to_bytes(value_range), bands.opacity()], axis=2), channels)
        return _to_planes(bands.to_bytes(value_range), channels)
    assert isinstance(image, Image.Image)
    image.load()
    if channels in (1, 3):
        return [_convert(image, channels) if loaded else image]
    return _to_planes(np.asarray(image if image.mode in ("L", "RGB", "RGBA", "CMYK") else image.convert("RGB")), channels)


def _to_planes(pixels: np.ndarray, channels: int) -> list[Image.Image]:
    """Split (H, W, C) into planes; grey and RGB convert to each other. Raises BadImage if other bands differ in number."""
    pixels = np.atleast_3d(pixels)
    count = pixels.shape[2]
    if count in (1, 3) and channels in (1, 3):
        return [_convert(Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if count == 1 else pixels)), channels)]
    if count != channels:
        raise BadImage(f"it has {count} band{'s' * (count != 1)}, and the model takes {channels} (model.in_channels)")
    return [Image.fromarray(np.ascontiguousarray(pixels[:, :, band])) for band in range(count)]


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Convert any 8-bit mode of Pillow to "L" or "RGB", composited on white."""
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert would copy


def _array_to_planes(pixels: np.ndarray, channels: int, value_range: ValueRange | None) -> list[Image.Image]:
    """Convert an array (H, W) or (H, W, C) to planes. Raises BadImage for another shape or number type."""
    shown = f"an array {pixels.shape} of {pixels.dtype} is no image"
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise BadImage(f"{shown}; give (H, W) or (H, W, C)")
    pixels = np.atleast_3d(pixels)
    if value_range is None and not (pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2):
        raise BadImage(f"{shown}; give bytes (uint8) or 16 bits (uint16), or a model that was trained with data.range")
    if pixels.dtype == np.uint8 and pixels.shape[2] == 4 and channels in (1, 3):
        return [_convert(Image.fromarray(pixels), channels)]
    return _to_planes(scaled(pixels, value_range), channels)
