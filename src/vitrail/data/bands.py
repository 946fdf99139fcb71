"""Images with more than 8 bits per value, or with bands other than grey and RGB: arrays, and their scaling to bytes.

Pillow has no pixel format for most of them: it reads the upper bytes of 16-bit colour, and the first bands of a multi-band
TIFF or none. This module reads all values, with Pillow where it supports the format, else with tifffile.
"""

# H W image · C bands

from __future__ import annotations

import math
import re
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ValueRange = tuple[float, float]
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WIDE = 0.5
"""Share of the type's range at and above which `data.range` auto takes the whole range."""
FEWEST_LEVELS = 16
"""Number of the 256 levels below which the span of most values triggers a warning."""
_ALPHA = (1, 2)  # of the TIFF tag ExtraSamples: associated and unassociated; 0 is a band of its own
_NODATA = 42113  # TIFF tag GDAL_NODATA
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


class BandsError(ValueError):
    """Values that can't be read or scaled; the message is the reason."""


@dataclass(frozen=True)
class Bands:
    """Values of an image as stored in its file."""

    values: NDArray[Any]
    """(H, W, C), of any number type; an alpha band is the last."""
    alpha: bool = False
    """True if the last band is an alpha channel."""
    white_is_zero: bool = False
    """True if 0 is white (TIFF PhotometricInterpretation 0)."""
    nodata: float | None = None
    """Value of the pixels without data, which the file declares (GDAL_NODATA); may be NaN."""

    @property
    def count(self) -> int:
        """Number of bands without the alpha channel."""
        return int(self.values.shape[2]) - self.alpha

    @property
    def bits(self) -> int:
        """Bits per value."""
        return 8 * self.values.dtype.itemsize

    def measured(self) -> NDArray[Any] | None:
        """Return the values as a flat array, without alpha and pixels without data.

        None for values of 8 bits, if there are none, and if some are NaN or infinite.
        """
        values = self.values[:, :, : self.count].reshape(-1)
        if self.bits == 8:
            return None
        if (empty := self._nodata_mask()) is not None:
            values = values[~empty.reshape(-1)]
        return values if values.size and np.isfinite(values).all() else None

    def extremes(self) -> ValueRange | None:
        """Return the first pair of `spans`."""
        spans = self.spans()
        return None if spans is None else spans[0]

    def spans(self) -> tuple[ValueRange, ValueRange] | None:
        """Return the minimum and maximum without hot pixels, and the 1st and 99th percentile.

        Hot pixels are the ten-thousandth part at each end, and a pixel that is farther from all others than they are from
        each other. None where `measured` is None.
        """
        values = self.measured()
        if values is None:
            return None
        low, bulk_low, bulk_high, high = np.quantile(values, (1e-4, 0.01, 0.99, 1 - 1e-4), method="nearest")
        if 64 <= values.size <= 1e4:  # too few for a ten-thousandth part
            least, low2, *_, high2, most = np.partition(values, (0, 1, -2, -1))[[0, 1, -2, -1]].astype(np.float64)
            spread = high2 - low2
            low = low2 if low2 - least > spread > 0 else low
            high = high2 if most - high2 > spread > 0 else high
        return (float(low), float(high)), (float(bulk_low), float(bulk_high))

    def to_bytes(self, value_range: ValueRange | None) -> NDArray[np.uint8]:
        """Scale to bytes (H, W, C), composited on white if there is an alpha channel.

        Values of more than 8 bits are scaled and clipped: the ends of `value_range` (None: the range of the type) become 0 and
        255. Pixels without data are black. Raises BandsError for 32 bits and more without a range, and for NaN or infinite
        values.
        """
        values, empty = self.values[:, :, : self.count], self._nodata_mask()
        if empty is not None:
            values = np.where(empty, values.dtype.type(0), values)
        colour = scaled(values, value_range)
        if self.white_is_zero:
            colour = 255 - colour
        if empty is not None:
            colour = np.where(empty, np.uint8(0), colour)
        if self.alpha:
            opacity = self.opacity() / 255
            colour = np.floor(colour * opacity + 255 * (1 - opacity) + 0.5).astype(np.uint8)
        return colour

    def opacity(self) -> NDArray[np.uint8]:
        """Return the alpha channel as bytes (H, W, 1), 255 is opaque; scaled from the type's range, or 0 to 1 for floats."""
        opacity = self.values[:, :, self.count :]
        return scaled(opacity, (0.0, float(np.iinfo(opacity.dtype).max) if opacity.dtype.kind in "iu" else 1.0))

    def _nodata_mask(self) -> NDArray[np.bool_] | None:
        """Return a mask (H, W, C) of the values without data; None if there are none."""
        values = self.values[:, :, : self.count]
        if self.bits == 8 or self.nodata is None:
            return None
        if math.isnan(self.nodata):
            empty = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        else:
            with np.errstate(over="ignore"):  # GDAL_NODATA may exceed the range of the type
                empty = values == (values.dtype.type(self.nodata) if values.dtype.kind == "f" else self.nodata)
        return empty if empty.any() else None


def scaled(values: NDArray[Any], value_range: ValueRange | None) -> NDArray[np.uint8]:
    """Scale values to bytes; see Bands.to_bytes."""
    kind = values.dtype
    if kind == np.uint8:
        return values
    if kind == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if kind == np.int8:
        return (values.astype(np.int16) + 128).astype(np.uint8)
    if kind.kind not in "iuf":
        raise BandsError(f"its pixels are of {kind}, which is no picture; save it with 8 or 16 bits")
    if kind.kind == "f" and (wrong := int((~np.isfinite(values)).sum())):
        raise BandsError(f"{wrong:,} of its {values.size:,} values are no numbers (NaN or infinite); fill them in before")
    if value_range is None:
        return _scale_full_range(values)
    low, high = value_range
    if kind.kind in "iu" and kind.itemsize == 2:  # a table of 65,536 entries takes no time
        every = np.arange(np.iinfo(kind).min, np.iinfo(kind).max + 1)
        table = _scale_between(every, low, high)
        return table[values.astype(np.int64) - every[0]]
    return _scale_between(values, low, high)


def _scale_between(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    share = (values.astype(np.float64) - low) / (high - low)
    return np.floor(255 * share.clip(0, 1) + 0.5).astype(np.uint8)


def _scale_full_range(values: NDArray[Any]) -> NDArray[np.uint8]:
    kind, whole = values.dtype, values
    if kind.kind == "f":
        raise BandsError(
            "its pixels are floating-point numbers, whose range nobody knows; set data.range, or save it with 8 or 16 bits"
        )
    if kind == np.int16:
        whole = values.astype(np.int64) + 32768
    elif kind.itemsize > 2 and (values.min() < 0 or values.max() > 65535):
        bits = 8 * kind.itemsize
        raise BandsError(f"its pixels have {bits} bits, whose range nobody knows; set data.range, or save it with 8 or 16 bits")
    return ((whole.astype(np.int64) + 128) // 257).astype(np.uint8)  # 65535 is 255 * 257; rounds to the nearest


@dataclass(frozen=True)
class ValuesInUse:
    """Range of the values in images of more than 8 bits."""

    low: float
    high: float
    """Both without the ten-thousandth part at each end of each image."""
    type: str
    """Number type, such as "uint16"; several as "int16, uint16"."""
    files: int
    """Number of files measured."""
    eight_bit: int
    """Number of 8-bit files in the sample, which are not scaled."""
    bulk: ValueRange | None = None
    """1st and 99th percentile of an image's values; the medians over the images."""

    @property
    def whole(self) -> ValueRange | None:
        """Range of the type; None for 32 bits and more, which no data fills."""
        if self.type not in ("uint16", "int16"):
            return None
        limits = np.iinfo(self.type)
        return float(limits.min), float(limits.max)

    @property
    def range(self) -> ValueRange | None:
        """Range for `data.range` auto: the values in use, or None (the range of the type) if they span half of it or more."""
        whole = self.whole
        if whole is not None and self.high - self.low >= WIDE * (whole[1] - whole[0]):
            return None
        least = float(np.nextafter(self.low, np.inf)) if "float" in self.type else self.low + 1
        return self.low, max(self.high, least)

    def few_levels(self, value_range: ValueRange | None) -> str | None:
        """Return a warning if a range (None: that of the type) maps most values to few of the 256 levels; else None."""
        ends = value_range or self.whole
        if ends is None or self.bulk is None:
            return None
        low, high = self.bulk
        inside = max(0.0, min(high, ends[1]) - max(low, ends[0]))
        levels = int(255 * inside / (ends[1] - ends[0])) + 1
        distinct = math.inf if "float" in self.type and high > low else high - low + 1
        if levels >= min(FEWEST_LEVELS, distinct) or low == high:
            return None
        return (
            f"{ends[0]:.6g} to {ends[1]:.6g} is wide: most values lie from {low:.6g} to {high:.6g}, "
            f"which become {levels} of 256 levels; give data.range a narrower pair, such as [{low:.6g}, {high:.6g}]"
        )

    def beyond(self, value_range: ValueRange) -> bool:
        """Return True if more than half of the span of the values is outside a range."""
        inside = min(self.high, value_range[1]) - max(self.low, value_range[0])
        return inside < 0.5 * (self.high - self.low)

    def mismatch(self, value_range: ValueRange | None) -> str | None:
        """Return a warning if these values do not fit the range a model was trained with (None: no range); else None."""
        if value_range is None:
            few = "the model was trained without data.range, so it sees few levels of them"
            return None if self.range is None else f"{self}; {few}"
        if not self.beyond(value_range):
            return None
        ends = f"{value_range[0]:.6g} to {value_range[1]:.6g}"
        return f"{self}; the model was trained with data.range {ends}, and values outside of it become black or white"

    def __str__(self) -> str:
        of = ""
        if self.whole is not None:
            levels = int((self.high - self.low) // 257) + 1
            of = f" of {self.whole[0]:g} to {self.whole[1]:g}, where they are {levels} of 256 levels"
        mixed = f"; {self.eight_bit} of the files looked at have 8 bits, and are not scaled" if self.eight_bit else ""
        return f"values of {self.type} from {self.low:.6g} to {self.high:.6g}{of}, measured on {self.files} files{mixed}"


def values_in_use(bands: Bands | None) -> ValuesInUse | None:
    """Measure the value range of an image; None for 8 bits."""
    spans = None if bands is None else bands.spans()
    return None if bands is None or spans is None else ValuesInUse(*spans[0], bands.values.dtype.name, 1, 0, spans[1])


def merge_ranges(ranges: Iterable[ValuesInUse | None]) -> ValuesInUse | None:
    """Merge the value ranges of several images; None if no image has more than 8 bits."""
    images = list(ranges)
    if not (deep := [image for image in images if image is not None]):
        return None
    bulks = [image.bulk for image in deep if image.bulk is not None]
    return ValuesInUse(
        low=min(image.low for image in deep),
        high=max(image.high for image in deep),
        type=", ".join(sorted({image.type for image in deep})),
        files=len(deep),
        eight_bit=len(images) - len(deep),
        bulk=(statistics.median(low for low, _ in bulks), statistics.median(high for _, high in bulks)) if bulks else None,
    )


# --------------------------------------------------------------------------------------------------------------------
# Reading


class TiffBands:
    """TIFF that Pillow can't decode correctly, read by tifffile behind the part of Pillow's interface that the decoder uses."""

    format = "TIFF"

    def __init__(self, contents: bytes) -> None:
        import tifffile

        self._contents = contents
        with tifffile.TiffFile(BytesIO(contents)) as file:
            page = file.pages.first
            self.stacked = _is_stack(file)
            stack = file.series[0]
            shape, axes = (stack.shape, "" if file.is_shaped else stack.axes) if self.stacked else (page.shape, page.axes)
            self.order = _find_axes(shape, axes)
            self.height, self.width, count = (shape[at] if at is not None else 1 for at in self.order)
            extra = page.tags.valueof(338, default=())
            extra = extra if isinstance(extra, tuple) else (extra,)
            self.alpha = not self.stacked and len(extra) == 1 and int(extra[0]) in _ALPHA and count in (2, 4)
            self.premultiplied = self.alpha and int(extra[0]) == 1
            self.nodata = _parse_number(page.tags.valueof(_NODATA, default=None))
            self.dtype = np.dtype(page.dtype)
            self.white_is_zero = int(page.photometric) == 0
            self.orientation = int(page.tags.valueof(274, default=1))
        self.count = int(count) - self.alpha
        self.mode = f"{count} x {self.dtype.name}"

    def draft(self, mode: str | None, size: tuple[int, int]) -> None:
        """Do nothing, as Pillow's `draft` for a TIFF."""

    def load(self) -> None:
        """Decode the file to verify it."""
        self.bands()

    def bands(self) -> Bands:
        """Read all values as stored. Raises BandsError for a compression that needs another library."""
        import tifffile

        with tifffile.TiffFile(BytesIO(self._contents)) as file:
            page = file.pages.first
            try:
                values = file.series[0].asarray() if self.stacked else page.asarray()
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
                name = getattr(page.compression, "name", page.compression)
                raise BandsError(f"compressed with {name}, which needs a library: pip install imagecodecs") from None
        down, across, band = self.order
        values = np.ascontiguousarray(values[:, :, None] if band is None else values.transpose(down, across, band))
        if self.premultiplied:
            values = _unpremultiply(values)
        return Bands(values, self.alpha, self.white_is_zero, self.nodata)


def _is_stack(file: Any) -> bool:
    """Return True if the pages of a TIFF are bands of one image, by the metadata of tifffile, ImageJ or OME."""
    if len(file.pages) == 1:
        return False
    if file.is_shaped:
        return len(file.series[0].shape) == 3
    return bool(file.is_imagej or file.is_ome) and "C" in file.series[0].axes


def _pages_are_bands(description: str) -> bool:
    """Same as `_is_stack`, from the ImageDescription of a multi-page file opened by Pillow."""
    if description.startswith('{"shape": ['):
        return description.partition("]")[0].count(",") == 2
    if description.startswith("ImageJ="):
        return bool(re.search(r"^channels=([2-9]|\d\d)", description, re.MULTILINE))
    planes = re.search(r"<(?:\w+:)?OME.*\bSizeC=\"(\d+)\"", description, re.DOTALL)
    samples = re.search(r"SamplesPerPixel=\"(\d+)\"", description)
    return planes is not None and int(planes[1]) > int(samples[1] if samples else 1)


def _parse_number(text: Any) -> float | None:
    """Parse the value of GDAL_NODATA; None if it is not a number."""
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def _unpremultiply(values: NDArray[Any]) -> NDArray[Any]:
    """Divide the colours of (H, W, C) by the alpha channel, the last band."""
    top = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
    opacity = values[:, :, -1:].astype(np.float64)
    colour = np.divide(values[:, :, :-1] * top, opacity, out=np.zeros(values[:, :, :-1].shape), where=opacity > 0).clip(0, top)
    if values.dtype.kind != "f":
        colour = np.rint(colour)
    return np.concatenate([colour.astype(values.dtype), values[:, :, -1:]], axis=2)


def _find_axes(shape: tuple[int, ...], axes: str) -> tuple[int, int, int | None]:
    """Return the axes of rows, columns and bands (None: one band). Raises BandsError for an array that is not an image."""
    if len(shape) == 2 and 0 not in shape:
        return 0, 1, None
    if len(shape) != 3 or 0 in shape:
        raise BandsError(f"an array of shape {shape} is no picture")
    if not axes:  # of a stack: the bands are the shorter end
        return (0, 1, 2) if shape[2] <= shape[0] else (1, 2, 0)
    if band := {"S", "C"} & set(axes):
        return axes.index("Y"), axes.index("X"), axes.index(band.pop())
    raise BandsError(f"an array of shape {shape} is no picture")


def pillow_reads(image: Image.Image) -> bool:
    """Return True if Pillow decodes every band of an opened file; 16-bit colour is handled separately."""
    if image.format != "TIFF":
        return True
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    pages = _pages_are_bands(str(tags.get(270, ""))) and getattr(image, "n_frames", 1) > 1
    return not pages and pillow_reads_page(image)


def pillow_reads_page(image: Image.Image) -> bool:
    """Return True if Pillow decodes every band of the current page; 16-bit colour is handled separately."""
    if image.format != "TIFF":
        return True
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    samples, bits, kinds = int(tags.get(277, 1)), tags.get(258, (1,)), tags.get(339, (1,))
    extra, photometric = tags.get(338, ()), tags.get(262)
    signed = any(kind != 1 for kind in kinds)
    if samples == 1:
        return not (signed and max(bits) == 8)
    colour = {2: 3, 5: 4, 6: 3, 8: 3}.get(int(photometric or 0), 1)
    alpha = samples - colour == 1 and len(extra) == 1 and int(extra[0]) in _ALPHA
    if samples != colour and not alpha:
        return False
    contiguous = tags.get(284, 1) == 1
    if all(width <= 8 for width in bits):
        premultiplied = alpha and int(extra[0]) == 1  # Pillow can't convert it to "L", nor read it in planes
        return not signed and not (premultiplied and (samples == 2 or not contiguous))
    return contiguous and not signed and set(bits) == {16} and colour == 3


def has_bands(image: Image.Image | TiffBands) -> bool:
    """Return True if `read_values` returns an array: most files have none, and their contents need not be read."""
    return isinstance(image, TiffBands) or image.mode == "F" or image.mode.startswith("I") or is_16_bit_colour(image)


def read_values(image: Image.Image | TiffBands, contents: bytes) -> Bands | None:
    """Read the values of an opened file with more than 8 bits, or more bands than Pillow decodes; None for any other.

    `contents` is the whole file. Raises Pillow's errors for a corrupt file, and BandsError.
    """
    if isinstance(image, TiffBands):
        return image.bands()
    if is_16_bit_colour(image):
        return _read_16_bit_colour(image, contents)
    if image.mode.startswith("I") or image.mode == "F":
        tags: Any = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
        bands = Bands(_read_grey(image), white_is_zero=tags.get(262) == 0, nodata=_parse_number(tags.get(_NODATA)))
        return _add_transparency(bands, image)
    return None


def fix_byte_order(image: Image.Image) -> None:
    """Correct the byte order in which Pillow decodes a compressed big-endian TIFF of signed or floating-point values.

    libtiff returns native order, which Pillow expects for unsigned values only. The image must not be loaded yet.
    """
    if image.format == "TIFF" and (tiles := getattr(image, "tile", None)) and tiles[0][0] == "libtiff":
        fixed: Any = image
        fixed.tile = [tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:])) for tile in tiles]


def _add_transparency(bands: Bands, image: Image.Image) -> Bands:
    """Add an alpha channel if a 16-bit PNG declares a transparent colour (tRNS)."""
    if image.format != "PNG" or (colour := image.info.get("transparency")) is None or bands.alpha:
        return bands
    transparent = (bands.values == np.array(colour)).all(axis=2, keepdims=True)
    return Bands(np.concatenate([bands.values, np.where(transparent, 0, 65535).astype(np.uint16)], axis=2), alpha=True)


def _read_grey(image: Image.Image) -> NDArray[Any]:
    """Return the grey values (H, W, 1) in the number type of the file; Pillow widens some."""
    values = np.asarray(image)
    if image.mode == "I" and image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        bits, kind = max(tags.get(258, (32,))), max(tags.get(339, (1,)))
        if bits == 16:
            values = values.astype(np.int16 if kind == 2 else np.uint16)
        elif kind == 1:
            values = values.view(np.uint32)
    return values.astype(values.dtype.newbyteorder("="))[:, :, None]


def is_16_bit_colour(image: Image.Image) -> bool:
    """Return True if Pillow would decode only the upper bytes of an opened file."""
    return (
        image.format in ("PNG", "TIFF")
        and image.mode in ("RGB", "RGBA", "LA")
        and any(";16" in mode for mode in _raw_modes(image))
    )


def is_16_bit_grey_alpha(image: Image.Image) -> bool:
    """Return True for a 16-bit grey PNG with alpha, which Pillow opens as colour."""
    return any(mode.startswith("LA;16") for mode in _raw_modes(image))


def _raw_modes(image: Image.Image) -> list[str]:
    tiles: Any = getattr(image, "tile", ())  # an image without a file has none
    return [args if isinstance(args, str) else str(args[0]) for *_, args in tiles if args]


def _read_16_bit_colour(image: Image.Image, contents: bytes) -> Bands:
    """Read 16-bit colour with Pillow by decoding the file twice, once for each byte of a value."""
    if is_16_bit_grey_alpha(image):
        return _read_16_bit_grey_alpha(contents)
    halves = []
    premultiplied = _raw_modes(image)[0].startswith("RGBa")
    for little in (False, True):
        again: Any = Image.open(BytesIO(contents), formats=("PNG", "TIFF"))
        tiles = []
        for tile in again.tile:
            name = tile.args if isinstance(tile.args, str) else tile.args[0]
            mode = f"{name.partition(';')[0].replace('RGBa', 'RGBA')};16{'L' if little else 'B'}"
            tiles.append(tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:])))
        native = "16L" in _raw_modes(again)[0] or ("16N" in _raw_modes(again)[0] and sys.byteorder == "little")
        again.tile = tiles
        again.load()
        halves.append(np.asarray(again).astype(np.uint16))
    first, second = halves  # of each pair in the file, the first byte and the second
    values = first + 256 * second if native else 256 * first + second
    alpha = image.mode == "RGBA"
    return _add_transparency(Bands(_unpremultiply(values) if premultiplied else values, alpha=alpha), image)


def _read_16_bit_grey_alpha(contents: bytes) -> Bands:
    """Read a 16-bit grey PNG with alpha by decoding its four bytes per pixel as 8-bit RGBA."""
    again: Any = Image.open(BytesIO(contents), formats=("PNG",))
    again._mode = "RGBA"
    again.tile = [tile._replace(args="RGBA") for tile in again.tile]
    again.load()
    pairs = np.ascontiguousarray(np.asarray(again))  # (H, W, 4): the upper and the lower byte of grey and of opacity
    return Bands(pairs.view(">u2").astype(np.uint16), alpha=True)
