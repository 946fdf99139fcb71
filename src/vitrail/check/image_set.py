"""The images of a data set, by number: what is known of each without reading it, and how it is read."""

# N images · H W image · C channels

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitrail.data.dataset import Source, SplitName
from vitrail.data.decode import Decoded, Header, decode_whole
from vitrail.data.files import Listed
from vitrail.data.folder import FolderSource
from vitrail.data.labelled import LabelledSource
from vitrail.data.named import NAMED, NamedSource, read_arrays


class ListedImage(NamedTuple):
    """An image that was not read yet."""

    path: str
    """Relative path, or such as "fashion-mnist/test/17"."""
    split: SplitName
    labels: tuple[int, ...]
    """Its class; any number of labels; none without classes."""


class ImageSet(ABC):
    """All images of a data set."""

    images: Sequence[ListedImage]

    def __len__(self) -> int:
        return len(self.images)

    @abstractmethod
    def decode(self, index: int, *, short_side: int | None) -> Decoded:
        """Decode an image; with `short_side`, a JPEG at a scale with at least that many pixels. Raises BadImage."""

    @abstractmethod
    def hash_file(self, index: int) -> bytes:
        """Hash the image as it is stored. Raises OSError."""

    @abstractmethod
    def picture(self, index: int, *, short_side: int) -> Image.Image:
        """Return the image to look at, in mode RGB. Raises BadImage."""

    def hash_pixels(self, index: int) -> bytes:
        """Hash the upright pixels at full size: equal in colour and grey, and in every file format. Raises BadImage."""
        header, picture, bands = self.decode(index, short_side=None)
        digest = hashlib.sha256(repr(header.size).encode())
        if picture is not None:
            digest.update(picture.convert("RGB").tobytes())
        else:
            assert bands is not None
            digest.update(str(bands.values.dtype).encode() + np.ascontiguousarray(bands.values).tobytes())
        return digest.digest()


def list_images(source: Source) -> ImageSet:
    """List the images of a data set."""
    if isinstance(source, FolderSource):
        return FileImages(source)
    assert isinstance(source, NamedSource)
    return ArrayImages(source)


@dataclass(frozen=True, eq=False)
class FileImages(ImageSet):
    """Images in files."""

    source: FolderSource

    def __post_init__(self) -> None:
        images = [
            ListedImage(file.path, split, _labels(self.source, file))
            for split, files in self.source.files.items()
            for file in files
        ]
        object.__setattr__(self, "images", images)

    def decode(self, index: int, *, short_side: int | None) -> Decoded:
        """See ImageSet.decode."""
        return decode_whole(self.source.root / self.images[index].path, short_side=short_side)

    def hash_file(self, index: int) -> bytes:
        """See ImageSet.hash_file."""
        with open(self.source.root / self.images[index].path, "rb", opener=_open_without_waiting) as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()

    def picture(self, index: int, *, short_side: int) -> Image.Image:
        """See ImageSet.picture."""
        _, picture, bands = self.decode(index, short_side=short_side)
        if picture is None:
            assert bands is not None
            picture = Image.fromarray(shown_bytes(bands.to_bytes(bands.extremes())))
        return picture.convert("RGB")


class ArrayImages(ImageSet):
    """Images of a named set, in memory."""

    def __init__(self, source: NamedSource) -> None:
        kind, self.images, arrays = NAMED[source.name], [], []
        files: tuple[SplitName, ...] = ("train", "test")
        for file in files:
            pixels, labels = read_arrays(kind, source.folder, file)
            names = [f"{source.name}/{file}/{i}" for i in range(len(labels))]
            held_out = source.held_out(names) if file == "train" else np.zeros(len(names), bool)
            arrays.append(pixels)
            self.images += [
                ListedImage(name, "val" if held else file, (int(label),))
                for name, label, held in zip(names, labels, held_out, strict=True)
            ]
        self.pixels: UInt8[np.ndarray, "N C H W"] = np.concatenate(arrays)

    def decode(self, index: int, *, short_side: int | None) -> Decoded:
        """See ImageSet.decode."""
        pixels = self.pixels[index]
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        header = Header((picture.height, picture.width), picture.mode, "", len(pixels))
        return Decoded(header, picture, None)

    def hash_file(self, index: int) -> bytes:
        """See ImageSet.hash_file."""
        return hashlib.blake2b(self.pixels[index].tobytes(), digest_size=16).digest()

    def picture(self, index: int, *, short_side: int) -> Image.Image:
        """See ImageSet.picture."""
        picture = self.decode(index, short_side=None).picture
        assert picture is not None
        return picture.convert("RGB")


def shown_bytes(pixels: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W *c"]:
    """Return bands as grey (H, W) or RGB (H, W, 3): the first three, or the first."""
    return np.ascontiguousarray(pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, 0])


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe under an image's name is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _labels(source: FolderSource, file: Listed) -> tuple[int, ...]:
    if isinstance(source, LabelledSource):
        return tuple(source.multi_hot[file.label].nonzero()[:, 0].tolist())
    return (file.label,) if source.classes else ()
