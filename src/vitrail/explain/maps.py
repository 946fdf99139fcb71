"""Maps, the result of a method: a number for each patch of each image, to be drawn, saved or computed with."""

# B batch · C channels · H W image · gh gw grid

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vitrail.data.decode import Picture, decode, decode_planes, read_bands, read_header, to_tensor
from vitrail.explain import draw
from vitrail.explain.inputs import Scene, join_notes
from vitrail.explain.table import METHODS, as_words
from vitrail.settings import Pair
from vitrail.weights.run_folder import write_atomically


@dataclass(frozen=True, eq=False)
class Maps:
    """A map for each image."""

    maps: Float[Tensor, "B gh gw"]
    """One number for each patch, on the CPU in float32, with the meaning of `method`; 0 for a patch outside the image."""
    method: str
    """Name of the method, as in `METHODS`."""
    labels: tuple[str, ...]
    """Layer, head, query and class of each map, as far as the method has them."""
    patch: Pair
    """Height and width of a patch, in pixels."""
    image_sizes: Int64[Tensor, "B 2"]
    """Height and width of each image, in pixels, without padding."""
    pixels: UInt8[Tensor, "B C H W"] | None
    """The images as the model sees them; None where it does not say how its images are normalised."""
    names: tuple[str, ...]
    """Names of the images."""
    signed: bool = False
    """True where negative values are evidence against the class."""
    note: str = ""
    """Caveats for reading the maps."""
    colors: Float[Tensor, "B gh gw 3"] | None = None
    """Red, green and blue of each patch, from 0 to 1, where they are the picture instead of a colour scale (`pca`)."""

    def __len__(self) -> int:
        return len(self.maps)

    def numpy(self) -> NDArray[np.float32]:
        """Return the maps (B, gh, gw) as an array."""
        return self.maps.numpy()

    def overlay(
        self, image: int | Picture = 0, *, index: int | None = None, alpha: float = draw.ALPHA, smooth: bool = True
    ) -> Image.Image:
        """Draw a map over its image as the model sees it, given by its index; padding is cut off.

        Or over another picture (a file, a Pillow image, or an array (H, W) or (H, W, 3) of uint8) that shows what the model
        sees at any resolution; `index` is then the image whose map is drawn, the first unless given. `alpha` is the opacity at
        the highest value; not `smooth`, each patch has one colour. Raises ValueError for an image that does not exist, and for
        a picture of another shape.
        """
        if not isinstance(image, int):
            return self._overlay(open_picture(image), self.position(index or 0), alpha=alpha, smooth=smooth)
        if index is not None:
            raise ValueError(f"image {image} is a number already; leave index {index} out, or give a picture")
        return self._overlay(self.picture(image), self.position(image), alpha=alpha, smooth=smooth)

    def _overlay(self, picture: Image.Image, index: int, *, alpha: float, smooth: bool) -> Image.Image:
        colors = self.patch_colors(index)
        return draw.overlay(picture, self.placed(index), signed=self.signed, colors=colors, alpha=alpha, smooth=smooth)

    def picture(self, index: int = 0) -> Image.Image:
        """Return an image as the model sees it, without padding. Raises ValueError where the normalisation is unknown."""
        position = self.position(index)
        if self.pixels is None:
            raise ValueError(
                "this model does not say how its images are normalised, so what it saw can't be drawn; "
                "give overlay the picture, or save the maps as .npy"
            )
        height, width = self.image_sizes[position].tolist()
        return draw.picture(self.pixels[position, :, :height, :width])

    def placed(self, index: int = 0) -> draw.Placed:
        """Return a map with the place of its patches on the image without padding."""
        position = self.position(index)
        height, width = self.image_sizes[position].tolist()
        return draw.Placed(self.maps[position].numpy(), self.patch, (height, width))

    def patch_colors(self, index: int = 0) -> NDArray[np.float32] | None:
        """Return the `colors` (gh, gw, 3) of one image, where there are any."""
        return None if self.colors is None else self.colors[self.position(index)].numpy()

    def panel(self, index: int = 0, *, label: str | None = None, line: str = "") -> draw.Panel:
        """Return a map as a panel of a sheet: below a label (method and map label unless given), above a line of numbers."""
        if label is None:
            label = f"{as_words(self.method)}\n{self.labels[self.position(index)]}"
        legend = METHODS[self.method].legend if self.method in METHODS else None
        return draw.Panel(self.placed(index), label, line, self.signed, self.patch_colors(index), legend)

    def save(self, path: str | Path, *, index: int | None = None, grid: bool = False) -> Path:
        """Write a PNG with a row for each image, the map beside the image, or an array; return the path.

        Where the path ends in .npy, the maps (B, gh, gw) are written as numbers. With `index`, only one image; with `grid`,
        thin lines between the patches. Raises ValueError for another suffix, and where the image can't be drawn.
        """
        chosen = self if index is None else self.at(index)
        path = Path(path)
        if path.suffix.lower() == ".npy":
            with write_atomically(path) as draft, draft.open("wb") as file:
                np.save(file, chosen.numpy())
            return path
        if path.suffix.lower() != ".png":
            raise ValueError(f'"{path.name}" ends neither in .png nor in .npy; name one of them')
        rows = [
            draw.SheetRow(chosen.picture(row), Path(name).name, [chosen.panel(row)]) for row, name in enumerate(chosen.names)
        ]
        return draw.save(draw.sheet(rows, note=chosen.note, grid=grid), path)

    def at(self, index: int) -> Maps:
        """Return the map of one image; a negative index counts from the end. Raises ValueError for one that does not exist."""
        position = self.position(index)
        rows = slice(position, position + 1)
        return replace(
            self,
            maps=self.maps[rows],
            labels=self.labels[rows],
            image_sizes=self.image_sizes[rows],
            pixels=None if self.pixels is None else self.pixels[rows],
            names=self.names[rows],
            colors=None if self.colors is None else self.colors[rows],
        )

    def position(self, index: int) -> int:
        """Return an image's index, counted from 0. Raises ValueError for one that does not exist."""
        count = len(self)
        if not -count <= index < count:
            raise ValueError(f"image {index} does not exist; there are images 0 to {count - 1} (or -{count} to -1)")
        return index % count


def open_picture(image: Picture) -> Image.Image:
    """Return a picture in memory, upright. Raises BadImage for a file that is none, and ValueError for such an array."""
    if isinstance(image, str | Path | bytes):
        header = read_header(image)
        if header.bits == 8 and header.bands in (1, 3):
            return decode(image, channels=3)
        bands = read_bands(image)
        value_range = None if bands is None else bands.extremes()
        return draw.picture(to_tensor(*decode_planes(image, channels=header.bands, value_range=value_range)))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            raise ValueError(
                f"an array of {image.dtype} with shape {image.shape} is no picture; give uint8, (H, W) or (H, W, 3)"
            )
        return Image.fromarray(image)
    return ImageOps.exif_transpose(image)


def maps_of(
    scene: Scene,
    rows: Float[Tensor, "B N"] | Float[Tensor, "B gh gw"],
    *,
    method: str,
    labels: tuple[str, ...] | str,
    notes: tuple[str, ...] = (),
    signed: bool = False,
    colors: Float[Tensor, "B gh gw 3"] | None = None,
) -> Maps:
    """Return the result of a method, given as rows over the tokens or as maps."""
    maps = scene.patches(rows) if rows.ndim == 2 else rows.float().cpu()
    return Maps(
        maps=maps.detach(),
        method=method,
        labels=(labels,) * len(maps) if isinstance(labels, str) else labels,
        patch=scene.patch,
        image_sizes=scene.image_sizes,
        pixels=scene.pixels,
        names=scene.names,
        signed=signed,
        note=join_notes((*notes, "" if scene.pixels is None else draw.shown_bands(scene.pixels.shape[1]))),
        colors=colors,
    )
