"""What a method gives: a number for every patch of every image, to be drawn, saved or computed with."""

# B batch · C channels · H W image · gh gw grid

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vitrail.config import Pair
from vitrail.data.decode import Picture, decode, decode_planes, read_bands, read_header, to_tensor
from vitrail.explain import draw
from vitrail.explain.inputs import Scene, joined
from vitrail.weights.run_folder import write_atomically


@dataclass(frozen=True, eq=False)
class Maps:
    """A map for each image."""

    maps: Float[Tensor, "B gh gw"]
    """One number a patch, on the CPU in float32. What it means says `method`; a patch without pixels of the image has 0."""
    method: str
    """"attention", "rollout", "relevance", "gradcam", "integrated_gradients", "pca" or "similarity"."""
    labels: tuple[str, ...]
    """Of each map: layer, head, query and class, as far as the method has them."""
    patch: Pair
    """Height and width of a patch, in pixels."""
    own: Int64[Tensor, "B 2"]
    """Height and width of each image, in pixels, without padding."""
    pixels: UInt8[Tensor, "B C H W"] | None
    """What the model saw; None where it does not say how its images are normalised."""
    names: tuple[str, ...]
    """What the images are called."""
    signed: bool = False
    """Whether numbers below zero speak against."""
    note: str = ""
    """What one has to know to read them."""
    colors: Float[Tensor, "B gh gw 3"] | None = None
    """Colours of their own, red, green, blue from 0 to 1, where three numbers a patch are the picture (`pca`)."""

    def __len__(self) -> int:
        return len(self.maps)

    def numpy(self) -> NDArray[np.float32]:
        """The maps (B, gh, gw), for those who want to draw themselves."""
        return self.maps.numpy()

    def overlay(
        self, image: int | Picture = 0, *, index: int | None = None, alpha: float = draw.ALPHA, smooth: bool = True
    ) -> Image.Image:
        """A map over what the model saw of an image, given by its number; padding is cut off.

        Or over a picture, a file, a Pillow image or an array (H, W) or (H, W, 3) of uint8, that shows exactly what the
        model saw at whatever resolution; `index` then says of which image the map is, the first unless given. `alpha` is the
        opacity at the highest value; not `smooth`, each patch has one colour. Raises ValueError for an image that does not
        exist, and for a picture of another shape.
        """
        if not isinstance(image, int):
            return self._over(opened(image), self.number(index or 0), alpha=alpha, smooth=smooth)
        if index is not None:
            raise ValueError(f"image {image} is a number already; leave index {index} out, or give a picture")
        return self._over(self.seen(image), self.number(image), alpha=alpha, smooth=smooth)

    def _over(self, picture: Image.Image, index: int, *, alpha: float, smooth: bool) -> Image.Image:
        colors = self.colors_of(index)
        return draw.overlay(picture, self.inside(index), signed=self.signed, colors=colors, alpha=alpha, smooth=smooth)

    def seen(self, index: int = 0) -> Image.Image:
        """What the model saw of an image, without padding. Raises ValueError where that can't be drawn."""
        number = self.number(index)
        if self.pixels is None:
            raise ValueError(
                "this model does not say how its images are normalised, so what it saw can't be drawn; "
                "give overlay the picture, or save the maps as .npy"
            )
        height, width = self.own[number].tolist()
        return draw.picture(self.pixels[number, :, :height, :width])

    def inside(self, index: int = 0) -> draw.Placed:
        """A map with the place of its patches on the image without padding."""
        number = self.number(index)
        height, width = self.own[number].tolist()
        return draw.Placed(self.maps[number].numpy(), self.patch, (height, width))

    def colors_of(self, index: int = 0) -> NDArray[np.float32] | None:
        """The colours (gh, gw, 3) of an image's patches, where they have their own."""
        return None if self.colors is None else self.colors[self.number(index)].numpy()

    def panel(self, index: int = 0, *, label: str | None = None, line: str = "") -> draw.Panel:
        """A map as it stands in a sheet: below a label, its method and own label unless given, above a line of numbers."""
        if label is None:
            label = f"{self.method.replace('_', ' ')}\n{self.labels[self.number(index)]}"
        ends = ("unlike", "alike") if self.method == "similarity" else None
        return draw.Panel(self.inside(index), label, line, self.signed, self.colors_of(index), ends)

    def save(self, path: str | Path, *, index: int | None = None, grid: bool = False) -> Path:
        """Writes a PNG, one row an image: what the model saw, and the map over it, with labels and legend. Returns the path.

        Or, where the path ends in .npy, the maps as numbers (B, gh, gw). With `index`, only one image; with `grid`, thin
        lines between the patches. Raises ValueError for another ending, and where what the model saw can't be drawn.
        """
        chosen = self if index is None else self.at(index)
        path = Path(path)
        if path.suffix.lower() == ".npy":
            with write_atomically(path) as draft, draft.open("wb") as file:
                np.save(file, chosen.numpy())
            return path
        if path.suffix.lower() != ".png":
            raise ValueError(f'"{path.name}" ends neither in .png nor in .npy; name one of them')
        rows = [draw.Row(chosen.seen(row), Path(name).name, [chosen.panel(row)]) for row, name in enumerate(chosen.names)]
        return draw.save(draw.sheet(rows, note=chosen.note, grid=grid), path)

    def at(self, index: int) -> Maps:
        """The map of one image; a negative number counts from the end. Raises ValueError for one that does not exist."""
        number = self.number(index)
        rows = slice(number, number + 1)
        return replace(
            self,
            maps=self.maps[rows],
            labels=self.labels[rows],
            own=self.own[rows],
            pixels=None if self.pixels is None else self.pixels[rows],
            names=self.names[rows],
            colors=None if self.colors is None else self.colors[rows],
        )

    def number(self, index: int) -> int:
        """An image's number, counted from 0. Raises ValueError for one that does not exist."""
        count = len(self)
        if not -count <= index < count:
            raise ValueError(f"image {index} does not exist; there are images 0 to {count - 1} (or -{count} to -1)")
        return index % count


def opened(image: Picture) -> Image.Image:
    """A picture in memory, upright. Raises BadImage for a file that is none, and ValueError for such an array."""
    if isinstance(image, str | Path | bytes):
        header = read_header(image)
        if header.bits == 8 and header.bands in (1, 3):
            return decode(image, channels=3)
        bands = read_bands(image)
        ends = None if bands is None else bands.extremes()
        return draw.picture(to_tensor(*decode_planes(image, channels=header.bands, value_range=ends)))
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
    """The result of a method: rows over the tokens, or maps already."""
    maps = scene.patches(rows) if rows.ndim == 2 else rows.float().cpu()
    return Maps(
        maps=maps.detach(),
        method=method,
        labels=(labels,) * len(maps) if isinstance(labels, str) else labels,
        patch=scene.patch,
        own=scene.own,
        pixels=scene.pixels,
        names=scene.names,
        signed=signed,
        note=joined((*notes, "" if scene.pixels is None else draw.shown_bands(scene.pixels.shape[1]))),
        colors=colors,
    )
