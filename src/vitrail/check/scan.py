"""One pass over the images of a data set: each is decoded once, and what is measured of it is kept in a few kilobytes."""

# N images · S side of the luminance · c side of the colours · H W image

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int8, UInt8
from PIL import Image

from vitrail.check.image_set import ImageSet, ListedImage, shown_bytes
from vitrail.check.sharpness import blur_of
from vitrail.data.bands import Bands, BandsError, ValuesInUse, values_in_use
from vitrail.data.decode import BadImage, Decoded, Header
from vitrail.data.files import map_files

SIDE, COLOUR_SIDE = 32, 16
"""Sides of the thumbnails: luminance, and colour differences."""
SHORT_SIDE = 128
"""Least shorter side at which a JPEG is decoded where images are compared and measured."""
STATISTICS_IMAGES = 256
"""Number of training images, evenly spaced, from which colour statistics are computed."""
_SAMPLED = 16  # rows and columns of the pixels that a key is a hash of


class ImageRecord(NamedTuple):
    """One readable image."""

    number: int
    """Number in the image set."""
    image: ListedImage
    header: Header
    key: bytes
    """`sampled_key` at the scale of the scan: images with equal pixels have equal ones, if both or none are JPEGs."""
    blur: float | None
    """Blur from 0 to 1; None for small images, more than 8 bits and other bands."""
    values: ValuesInUse | None
    """Value range; None for 8 bits."""


class Unreadable(NamedTuple):
    """A file that can't be read."""

    image: ListedImage
    error: BadImage


class Moments(NamedTuple):
    """Sums over the pixels of an image, from 0 to 1, by channel."""

    mean: tuple[float, ...]
    square: tuple[float, ...]
    low: int
    high: int
    """Least and greatest value of 8 bits."""


@dataclass(frozen=True, eq=False)
class Scan:
    """Everything that one pass over a data set finds."""

    images: ImageSet
    records: tuple[ImageRecord, ...]
    unreadable: tuple[Unreadable, ...]
    luminance: UInt8[np.ndarray, "N S S"] | None
    """Thumbnails of the records; None where only exact findings are looked for."""
    colour: Int8[np.ndarray, "N 2 c c"] | None
    """Their differences red - luminance and blue - luminance."""
    moments: tuple[Moments, ...]
    """Statistics of some training images of 8 bits."""


class _Looked(NamedTuple):
    record: ImageRecord
    luminance: UInt8[np.ndarray, "S S"] | None
    colour: Int8[np.ndarray, "2 c c"] | None
    moments: Moments | None


def scan(images: ImageSet, *, exact_only: bool = False, threads: int = -1) -> Scan:
    """Decode every image once. With `exact_only`, measure what exact findings need, of JPEGs at an eighth of their size."""
    train = [index for index, image in enumerate(images.images) if image.split == "train" and not exact_only]
    sampled = set(train[:: max(1, -(-len(train) // STATISTICS_IMAGES))])

    def look(index: int) -> _Looked | Unreadable:
        try:
            decoded = images.decode(index, short_side=1 if exact_only else SHORT_SIDE)
            return _look(index, images.images[index], decoded, thumbnails=not exact_only, moments=index in sampled)
        except BadImage as error:
            return Unreadable(images.images[index], error)
        except BandsError as error:
            return Unreadable(images.images[index], BadImage(str(error)))

    looked: Sequence[_Looked | Unreadable] = map_files(look, range(len(images)), threads=threads, doing="reading every image")
    good = [item for item in looked if isinstance(item, _Looked)]
    luminance = [item.luminance for item in good if item.luminance is not None]
    colour = [item.colour for item in good if item.colour is not None]
    return Scan(
        images,
        tuple(item.record for item in good),
        tuple(item for item in looked if isinstance(item, Unreadable)),
        None if exact_only else np.stack(luminance) if luminance else np.zeros((0, SIDE, SIDE), np.uint8),
        None if exact_only else np.stack(colour) if colour else np.zeros((0, 2, COLOUR_SIDE, COLOUR_SIDE), np.int8),
        tuple(item.moments for item in good if item.moments is not None),
    )


def _look(index: int, image: ListedImage, decoded: Decoded, *, thumbnails: bool, moments: bool) -> _Looked:
    header, picture, bands = decoded
    values = None if bands is None else values_in_use(bands)
    blur = blur_of(picture) if thumbnails and picture is not None else None
    record = ImageRecord(index, image, header, sampled_key(decoded), blur, values)
    measured = _moments(picture) if moments and picture is not None else None
    if not thumbnails:
        return _Looked(record, None, None, measured)
    shown = Image.fromarray(shown_bytes(_visible(bands))) if bands is not None else picture
    assert shown is not None
    return _Looked(record, *make_thumbnails(shown), measured)


def sampled_key(decoded: Decoded) -> bytes:
    """Hash 16 x 16 pixels of an image, alike in grey and colour; of bands that are no colours their number type as well."""
    if decoded.picture is not None:
        sample = decoded.picture.resize((_SAMPLED, _SAMPLED), Image.Resampling.NEAREST).convert("RGB").tobytes()
        return hashlib.blake2b(sample, digest_size=16).digest()
    assert decoded.bands is not None
    values = decoded.bands.values
    rows, columns = (max(1, side // _SAMPLED) for side in values.shape[:2])
    part = np.ascontiguousarray(values[::rows, ::columns])
    return hashlib.blake2b(repr((values.shape, str(values.dtype))).encode() + part.tobytes(), digest_size=16).digest()


def make_thumbnails(picture: Image.Image) -> tuple[UInt8[np.ndarray, "S S"], Int8[np.ndarray, "2 c c"]]:
    """Reduce an image to a square of luminance and to smaller ones of the colour differences."""
    factor = max(1, min(picture.size) // (2 * SIDE))
    small = picture.reduce(factor) if factor > 1 else picture
    small = small.resize((SIDE, SIDE), _filter(small, SIDE))
    if small.mode == "L":
        return np.asarray(small), np.zeros((2, COLOUR_SIDE, COLOUR_SIDE), np.int8)
    tiny = np.asarray(small.reduce(SIDE // COLOUR_SIDE), np.int16)
    luminance = np.asarray(small.convert("L"))
    mean = np.asarray(Image.fromarray(luminance).reduce(SIDE // COLOUR_SIDE), np.int16)
    colour = np.stack([tiny[:, :, 0] - mean, tiny[:, :, 2] - mean]).clip(-127, 127)
    return luminance, colour.astype(np.int8)


def _filter(picture: Image.Image, side: int) -> Image.Resampling:
    return Image.Resampling.BOX if min(picture.size) >= side else Image.Resampling.BILINEAR


def _moments(picture: Image.Image) -> Moments:
    pixels = np.atleast_3d(np.asarray(picture, np.float32)) / 255
    low, high = pixels.min(), pixels.max()
    mean, square = pixels.mean((0, 1), np.float64), np.square(pixels).mean((0, 1), np.float64)
    return Moments(tuple(mean.tolist()), tuple(square.tolist()), round(255 * float(low)), round(255 * float(high)))


def _visible(bands: Bands) -> UInt8[np.ndarray, "H W C"]:
    """Scale to bytes by the image's own range, in which the picture is visible. Raises BandsError."""
    low, high = bands.extremes() or (0.0, 0.0)
    return bands.to_bytes((low, high if high > low else low + 1) if bands.bits > 8 else None)


def mean_and_deviation(moments: Sequence[Moments]) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]] | None:
    """Return mean and standard deviation of each channel over images, each of equal weight; None without images.

    Grey images count as colour ones if there are any.
    """
    if not moments:
        return None
    channels = max(len(each.mean) for each in moments)
    mean = np.mean([np.broadcast_to(each.mean, channels) for each in moments], axis=0)
    square = np.mean([np.broadcast_to(each.square, channels) for each in moments], axis=0)
    return mean, np.sqrt(np.maximum(square - mean**2, 0))
