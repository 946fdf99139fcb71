"""One image file -> pixels: grey, RGB or other bands, upright, never half an image.

Training's evaluation and `predict` both go through `eval_view`, so they see the same pixels.
"""

# C channels · H W image

from __future__ import annotations

import math
import os
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
    bands_of,
    has_bands,
    in_native_order,
    is_16_bit_colour,
    is_16_bit_grey_alpha,
    pillow_reads,
    pillow_reads_page,
    scaled,
)
from vitrail.data.quiet import silence_decoders
from vitrail.settings import Pair, Preprocessing
from vitrail.text import one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MAX_PIXELS = 50_000_000
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_TURNS = {  # EXIF orientation -> what sets the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TOP_DOWN, _LEFT_RIGHT, _SWAPPED = (3, 4, 7, 8), (2, 3, 6, 7), (5, 6, 7, 8)  # what setting upright does, axes swapped first
_JPEGS, _JPEG_END = ("JPEG", "MPO"), b"\xff\xd9"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")  # brands of ISO 23008-12
_QUIET = threading.Lock()

File = str | Path | bytes
"""A path, or the bytes themselves."""
Picture = File | Image.Image | np.ndarray


class BadImage(ValueError):
    """A file that is not an image, or not a whole one; the message is the reason, in one line."""


class Header(NamedTuple):
    """What an image file says of itself."""

    size: Pair
    """Height and width, upright."""
    mode: str
    """Pillow's name of the pixel format: "L", "RGB", "CMYK"…"""
    format: str
    """"JPEG", "PNG"…"""
    bands: int = 3
    """1 is grey, 3 is colour; the opacity is not counted."""
    bits: int = 8
    """Bits of a value."""


def read_header(source: File) -> Header:
    """Opens an image without decoding it, and sees that its end is there.

    A JPEG or PNG that does not end as it should, and any file of another format, is decoded to be sure.
    Raises BadImage for a file that is no image, is truncated or claims more than 50 megapixels.
    """
    with _opened(source) as (image, end):
        header = Header(_upright_size(image), image.mode, image.format or "", *_bands_and_bits(image))
        ends = {**dict.fromkeys(_JPEGS, _JPEG_END), "PNG": b"IEND"}
        if header.format not in ends or ends[header.format] not in end:
            image.load()
        return header


def decode(source: File, *, channels: int, short_side: int | None = None, value_range: ValueRange | None = None) -> Image.Image:
    """The first frame of an image file, upright, in mode "L" (channels 1) or "RGB" (channels 3).

    Transparent pixels show white; values of more than 8 bits are scaled as `Bands.to_bytes` does. With `short_side`, a JPEG is
    decoded at the smallest of the scales 1/8, 1/4, 1/2, 1 whose shorter side has at least that many pixels.
    Raises BadImage for a file that is no image, corrupt, truncated, larger than 50 megapixels or with other bands.
    """
    assert channels in (1, 3)
    return decode_planes(source, channels=channels, short_side=short_side, value_range=value_range)[0]


def decode_planes(
    source: File, *, channels: int, short_side: int | None = None, value_range: ValueRange | None = None
) -> list[Image.Image]:
    """As `decode`, for any number of channels: one image of mode "L" or "RGB", or one of mode "L" for each band."""
    with _opened(source) as (image, _):
        if short_side is not None:
            image.draft("L" if channels == 1 else None, (short_side, short_side))
        planes = _planes(image, source, channels, value_range)
        orientation = _orientation(image)
        return [_turn(plane, orientation) for plane in planes]


def read_bands(source: File) -> Bands | None:
    """The values of a file with more than 8 bits, or more bands than four, as they are stored; None for any other.

    Raises BadImage.
    """
    with _opened(source) as (image, _):
        return bands_of(image, _contents(source)) if has_bands(image) else None


def eval_view(image: Picture, preprocessing: Preprocessing) -> UInt8[Tensor, "C H W"]:
    """The image as it is evaluated: resized to img_size / crop_pct, then the centre at exactly img_size.

    `image` is a file, its bytes, a Pillow image, or an array (H, W) or (H, W, C). With crop_mode
    "center" the resized image keeps its shape and covers that size; with "squash" it has exactly that size, so that
    with crop_pct 1 the whole image is seen. The size between the two steps is rounded down, as torchvision's Resize
    does; both steps are one resampling.
    Raises BadImage.
    """
    height, width = preprocessing.img_size
    channels, value_range = preprocessing.in_channels, preprocessing.range
    if isinstance(image, str | Path | bytes):
        planes = decode_planes(image, channels=channels, short_side=max(_resized_to(preprocessing)), value_range=value_range)
    else:
        with _faults_are_bad_images():  # Pillow may have left the decoding for now
            if isinstance(image, np.ndarray):
                planes = _of_array(image, channels, value_range)
            else:
                if value_range is not None and is_16_bit_colour(image):
                    raise BadImage("Pillow gives half of the bits of 16-bit colour; give the file, or its bytes")
                if not pillow_reads_page(image):
                    raise BadImage("Pillow does not give the bands of this TIFF as they are; give the file, or its bytes")
                in_native_order(image)
                upright = _turn(image, _orientation(image))
                upright.load()
                planes = _planes(upright, b"", channels, value_range)
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
    """The whole image with its shorter side shrunk to `short_side`, never enlarged. Raises BadImage."""
    channels, value_range = preprocessing.in_channels, preprocessing.range
    planes = decode_planes(source, channels=channels, short_side=short_side, value_range=value_range)
    picture = planes[0]
    shrink = short_side / min(picture.size)
    if shrink < 1:
        size = max(short_side, round(picture.width * shrink)), max(short_side, round(picture.height * shrink))
        planes = [plane.resize(size, _FILTERS[preprocessing.interpolation]) for plane in planes]
    return to_tensor(*planes)


def view_is_exact(size: Pair, preprocessing: Preprocessing) -> bool:
    """Whether images of this size are their own evaluation view."""
    return size == tuple(preprocessing.img_size) == _resized_to(preprocessing)


def crop_view(
    source: File, *, box: tuple[float, float, float, float], size: Pair, preprocessing: Preprocessing
) -> UInt8[Tensor, "C H W"]:
    """The part `box` (top, left, height, width) of an image file, resized to img_size.

    A JPEG is decoded at the smallest scale that still gives the crop img_size pixels, and no further down than the crop
    reaches. `size` is the (height, width) that the box was drawn for; should the file have another one by now, the box is
    scaled to it.
    Raises BadImage.
    """
    contents = _contents(source)
    orientation = 1  # of most files; that of this one is known when it is open, and to open it twice takes its time
    while True:
        part, stored = _as_stored(box, size, orientation=orientation)
        seen = _cut_below(contents, _rows_read(part, preprocessing), size=stored)
        with _opened(seen) as (image, _):
            found = _orientation(image)
            if found == orientation:
                if seen is contents:  # whole, and another file by now where the scale is not 1
                    down, across = image.height / stored[0], image.width / stored[1]
                    part = (part[0] * down, part[1] * across, part[2] * down, part[3] * across)
                return _part(image, contents, part, orientation, preprocessing)
        orientation = found


def to_tensor(*planes: Image.Image) -> UInt8[Tensor, "C H W"]:
    """The pixels of an "L" or "RGB" image, or of one "L" image for each band."""
    if len(planes) > 1:
        return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))
    pixels = np.array(planes[0])  # a copy: torch wants to be able to write
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


# --------------------------------------------------------------------------------------------------------------------


def _resized_to(preprocessing: Preprocessing) -> Pair:
    """What the image is made to cover, or squashed to, before the centre is cut out."""
    height, width = preprocessing.img_size
    return math.floor(height / preprocessing.crop_pct), math.floor(width / preprocessing.crop_pct)


def _as_stored(
    box: tuple[float, float, float, float], size: Pair, *, orientation: int
) -> tuple[tuple[float, float, float, float], Pair]:
    """A box drawn on an upright image, and the image's size, on the pixels as the file has them."""
    (top, left, high, wide), (height, width) = box, size
    if orientation in _TOP_DOWN:
        top = height - top - high
    if orientation in _LEFT_RIGHT:
        left = width - left - wide
    if orientation in _SWAPPED:
        return (left, top, wide, high), (width, height)
    return (top, left, high, wide), (height, width)


def _part(
    image: Image.Image | TiffBands,
    contents: bytes,
    box: tuple[float, float, float, float],
    orientation: int,
    preprocessing: Preprocessing,
) -> UInt8[Tensor, "C H W"]:
    """The part `box` of an image that was opened, upright at img_size."""
    top, left, high, wide = box
    height, width = preprocessing.img_size if orientation not in _SWAPPED else preprocessing.img_size[::-1]
    spare = next(s for s in (8, 4, 2, 1) if s <= max(1.0, min(high / height, wide / width)))
    asked = max(1, image.width // spare), max(1, image.height // spare)
    before = image.width
    drafted = image.draft("L" if preprocessing.in_channels == 1 else None, asked)
    shrunk = before / drafted[1][2] if drafted else 1.0
    planes = _planes(image, contents, preprocessing.in_channels, preprocessing.range, loaded=False)
    stored = planes[0]
    left, top = min(left / shrunk, stored.width - 1), min(top / shrunk, stored.height - 1)
    right, bottom = min(left + wide / shrunk, stored.width), min(top + high / shrunk, stored.height)
    edges = (left, top, right, bottom)
    exact = all(edge == int(edge) for edge in edges)
    if len(planes) == 1 and exact:  # a part is cheaper to convert than the whole
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


def _rows_read(box: tuple[float, float, float, float], preprocessing: Preprocessing) -> int:
    """Rows from the top that the pixels of a resized box depend on."""
    top, _, high, _ = box
    filter_reach = 2 * high / min(preprocessing.img_size)  # of bicubic: two output pixels
    return math.ceil(top + high + filter_reach) + 8  # upsampling of colour looks at the next rows; at scale 1/8, 8 are one


def _cut_below(contents: bytes, rows: int, *, size: Pair) -> bytes:
    """A JPEG with a header that claims only the first `rows` rows, so that a decoder leaves out the rest.

    What is no JPEG of this size comes back as it is, and so does a truncated one: decoded in full, it shows.
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
def _opened(source: File) -> Iterator[tuple[Image.Image | TiffBands, bytes]]:
    """The image behind a path or bytes, header read and size checked, and the last bytes of the file."""
    with (
        _faults_are_bad_images(),
        BytesIO(source) if isinstance(source, bytes) else open(source, "rb", opener=_at_once) as file,
    ):
        if not file.seekable():
            raise BadImage("a pipe or a device, and no file")
        file.seek(max(0, file.seek(0, 2) - 64))
        end = file.read()
        if not end:
            raise BadImage("the file is empty")
        file.seek(0)
        formats = _formats(file.read(64))
        file.seek(0)
        silence_decoders()
        image = _open(file, formats)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"the header claims {image.width} x {image.height} pixels, more than 50 megapixels")
        yield image, end


def _open(file: BufferedIOBase, formats: tuple[str, ...]) -> Image.Image | TiffBands:
    """The file as Pillow opens it; a TIFF that it does not know, or would drop bands of, as tifffile does."""
    try:
        with _quiet():  # of sizes above 89 megapixels: our own limit is lower
            image = Image.open(file, formats=formats)  # type: ignore[arg-type]
        if pillow_reads(image):
            in_native_order(image)
            return image
    except UnidentifiedImageError:
        file.seek(0)
        if not file.read(4).startswith(TIFF_STARTS):
            raise
    file.seek(0)
    return TiffBands(file.read())


def _contents(source: File) -> bytes:
    """The bytes of a file. Raises BadImage."""
    with _faults_are_bad_images():
        return source if isinstance(source, bytes) else Path(source).read_bytes()


def _formats(start: bytes) -> tuple[str, ...]:
    """What the first bytes of a file may be, in Pillow's names; the reader of HEIC is registered where it is wanted."""
    brand, box = start[8:12], start[16 : int.from_bytes(start[:4], "big")]
    if start[4:8] != b"ftyp" or not (brand in _HEIC or (brand in (b"mif1", b"msf1") and any(name in box for name in _HEIC))):
        return FORMATS
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise BadImage("a HEIC photograph, which needs pillow-heif: pip install 'vitrail[heif]'") from None
    register_heif_opener()
    return ("HEIF",)


def _at_once(path: str, flags: int) -> int:
    """Opens a file, or a named pipe that nobody writes to, without waiting for one who does."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings. Threads share the filters, hence the lock."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _faults_are_bad_images() -> Iterator[None]:
    """Whatever goes wrong in here is a BadImage."""
    try:
        yield
    except BadImage:
        raise
    except BandsError as error:
        raise BadImage(str(error)) from None
    except FileNotFoundError:
        raise BadImage("the file is not there") from None
    except (PermissionError, IsADirectoryError) as error:
        raise BadImage(f"the file can't be read: {error.strerror}") from None
    except Image.DecompressionBombError:
        raise BadImage("the header claims more than 50 megapixels") from None
    except UnidentifiedImageError:
        raise BadImage("not an image, or of a format that is not read (PNG, JPEG, WebP, AVIF, HEIC, BMP, TIFF, GIF)") from None
    except Exception as error:  # a parser that trips over a corrupt file may raise anything
        reason = one_line(error) or type(error).__name__
        raise BadImage(f"corrupt or truncated: {reason}") from None


def _orientation(image: Image.Image | TiffBands) -> int:
    """EXIF orientation that is still to be applied: 1 to 8."""
    if isinstance(image, TiffBands):
        return image.orientation
    if image.format == "TIFF":  # Pillow applies it itself, to the size at once and to the pixels when they load
        return 1
    try:
        with _quiet():  # of corrupt EXIF: thousands of ImageNet's files have it
            return int(Image.Image.getexif(image).get(0x0112, 1))  # PNG's own getexif decodes the whole file first
    except Exception:  # broken EXIF beside sound pixels: leave the image as it stands
        return 1


def _upright_size(image: Image.Image | TiffBands) -> Pair:
    turned = _orientation(image) in _SWAPPED
    return (image.width, image.height) if turned else (image.height, image.width)


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _bands_and_bits(image: Image.Image | TiffBands) -> tuple[int, int]:
    """How many bands a file has, but for the opacity, and how many bits each value."""
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


def _planes(
    image: Image.Image | TiffBands, source: File, channels: int, value_range: ValueRange | None, *, loaded: bool = True
) -> list[Image.Image]:
    """An opened image as one of mode "L" or "RGB", or as one of mode "L" for each of its bands; as it is stored, not turned.

    With `loaded` False, one image may come in the mode that it has, for `_convert`. Raises BadImage for bands that do not fit.
    """
    bands = None
    if has_bands(image):
        bands = bands_of(image, _contents(source) if source else b"")
    if bands is not None:
        if bands.alpha and channels == bands.count + 1 == 4:  # as of 8 bits: the opacity is a band
            opaque = replace(bands, values=bands.values[:, :, :3], alpha=False)
            return _fitted(np.concatenate([opaque.to_bytes(value_range), bands.opacity()], axis=2), channels)
        return _fitted(bands.to_bytes(value_range), channels)
    assert isinstance(image, Image.Image)
    image.load()
    if channels in (1, 3):
        return [_convert(image, channels) if loaded else image]
    return _fitted(np.asarray(image if image.mode in ("L", "RGB", "RGBA", "CMYK") else image.convert("RGB")), channels)


def _fitted(pixels: np.ndarray, channels: int) -> list[Image.Image]:
    """(H, W, C) as planes of so many channels: grey and colour become each other, and other bands have to be as many."""
    pixels = np.atleast_3d(pixels)
    count = pixels.shape[2]
    if count in (1, 3) and channels in (1, 3):
        return [_convert(Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if count == 1 else pixels)), channels)]
    if count != channels:
        raise BadImage(f"it has {count} band{'s' * (count != 1)}, and the model takes {channels} (model.in_channels)")
    return [Image.fromarray(np.ascontiguousarray(pixels[:, :, band])) for band in range(count)]


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Any of Pillow's modes of 8 bits to "L" or "RGB"."""
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # convert would copy


def _of_array(pixels: np.ndarray, channels: int, value_range: ValueRange | None) -> list[Image.Image]:
    """An array that somebody gives as an image."""
    shown = f"an array {pixels.shape} of {pixels.dtype} is no image"
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise BadImage(f"{shown}; give (H, W) or (H, W, C)")
    pixels = np.atleast_3d(pixels)
    if value_range is None and not (pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2):
        raise BadImage(f"{shown}; give bytes (uint8) or 16 bits (uint16), or a model that was trained with data.range")
    if pixels.dtype == np.uint8 and pixels.shape[2] == 4 and channels in (1, 3):
        return [_convert(Image.fromarray(pixels), channels)]
    return _fitted(scaled(pixels, value_range), channels)
