"""What the page needs to know of the server: models with their attention and methods, samples, limits."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.data.decode import BadImage, read_header
from vitrail.data.listing import files_under
from vitrail.data.named import NAMED
from vitrail.explain.inputs import model_name, offers_of
from vitrail.explain.table import METHODS, as_words, usable
from vitrail.models.backbone import Backbone
from vitrail.models.card import Card
from vitrail.serve.attention import attention_size

MAX_SAMPLES = 24
HOVER = "attention"
"""The method that the page shows by hovering, so it is not among the maps."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image that the page offers."""

    id: str
    """What requests and links name it by: its place and name, never a path."""
    name: str
    media_type: str
    contents: bytes = field(repr=False)


def package_samples() -> tuple[Sample, ...]:
    """Return the first test image of each class of the embedded Fashion-MNIST sample."""
    known = NAMED["fashion-sample"]
    assert known.installed is not None
    with np.load(known.installed / "fashion_sample.npz") as arrays:
        images, labels = arrays["test_images"], arrays["test_labels"]
    return tuple(
        Sample(id=sample_id(place, name), name=name, media_type="image/png", contents=png_of(images[labels == place][0]))
        for place, name in enumerate(known.classes)
    )


def folder_samples(folder: Path, *, limit: int = MAX_SAMPLES) -> tuple[Sample, ...]:
    """Read images of a folder, evenly spaced over its sorted files, into memory. Raises ValueError where it has none."""
    found: list[Sample] = []
    files = [folder / name for name in files_under(folder)]
    step = max(1, -(-len(files) // limit))
    for path in files[::step]:
        contents = path.read_bytes()
        try:
            read_header(contents)
        except BadImage:
            continue
        with Image.open(io.BytesIO(contents)) as image:
            media_type = image.get_format_mimetype() or "application/octet-stream"
        found.append(
            Sample(id=sample_id(len(found), path.stem), name=path.stem, media_type=media_type, contents=contents)
        )
    if not found:
        raise ValueError(f"{folder} holds no images that can be read; name a folder that does, or leave the samples out")
    return tuple(found)


def sample_id(place: int, name: str) -> str:
    """Return an id that is safe in addresses: "3-ankle-boot"."""
    return f"{place}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')[:40]}".rstrip("-")


def png_of(pixels: np.ndarray) -> bytes:
    """Return an image as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def model_facts(name: str, model: Backbone, classes: Sequence[str]) -> dict[str, Any]:
    """Return what the page needs to know of a model: classes, calibration, the view of its images, attention, methods."""
    size, offers = attention_size(model), offers_of(model)
    return {
        "name": name,
        "kind": model_name(model),
        "classes": list(classes),
        "multi_label": model.multi_label,
        **calibration_facts(model.card),
        "preprocessing": view_facts(model.card),
        "attention": None if size is None else asdict(size),
        "why_no_attention": "" if size is not None else no_attention(model),
        "methods": [
            {"name": method, "title": as_words(method).capitalize(), "shows": METHODS[method].shows}
            for method in usable(offers, evidence=True)
            if method != HOVER
        ],
    }


def calibration_facts(card: Card) -> dict[str, bool]:
    """Return whether probabilities have a temperature, and whether there are sets and a mark of outliers."""
    known = card.calibration
    return {
        "calibrated": known is not None,
        "coverage": known is not None and bool(known.conformal_scores),
        "outliers": known is not None and known.outlier_energy is not None,
    }


def view_facts(card: Card) -> dict[str, Any]:
    """Return how an image becomes the model's view, for the page to cut the picture in the same way."""
    known = card.preprocessing
    assert known is not None  # whatever loads weights says what happens to images
    return {"size": known.img_size, "channels": known.in_channels, "crop": known.crop_pct, "mode": known.crop_mode}


def no_attention(model: Backbone) -> str:
    """Return the reason why there is nothing to hover over."""
    return (
        f"{model_name(model)} has no attention over the whole image: its layers look at windows or neighbours only. "
        "So there is no patch to hover over; the maps below show what speaks for a class."
    )
