"""Explanations of one image, as JSON or as a picture."""

# C channels · H W image

from __future__ import annotations

import io
import re
from typing import Any, Literal, cast

from jaxtyping import Float
from torch import Tensor

from vitrail.data.augment import normalise
from vitrail.data.decode import eval_view
from vitrail.explain import draw
from vitrail.explain.inputs import Query
from vitrail.explain.maps import Maps
from vitrail.explain.methods.attention import Heads
from vitrail.explain.sheets import ExplainConfig, ExplainResult, explain
from vitrail.serve.images import Upload
from vitrail.serve.models import ServedModel

SCORES = (
    "insertion",
    "deletion",
    "random_insertion",
    "random_deletion",
    "shuffled_insertion",
    "shuffled_deletion",
    "rank_correlation",
)


def view_of(served: ServedModel, upload: Upload, *, max_pixels: int) -> Float[Tensor, "1 C H W"]:
    """Return an image as its model sees it, normalised. Raises BadImage."""
    preprocessing = served.predictor.preprocessing
    return normalise(eval_view(upload.contents, preprocessing, max_pixels=max_pixels)[None], preprocessing)


def explained(served: ServedModel, upload: Upload, config: ExplainConfig, max_pixels: int) -> ExplainResult:
    """Return the maps of an image. Raises ValueError for an image that can't be read, and as `vitrail.explain` does."""
    return explain(served.model, view_of(served, upload, max_pixels=max_pixels), config)


def explain_json(served: ServedModel, upload: Upload, config: ExplainConfig, max_pixels: int) -> dict[str, Any]:
    """Return the maps of an image and their scores as numbers."""
    result = explained(served, upload, config, max_pixels)
    first, row = result.maps[0], result.rows[0]
    return {
        "model": {"name": served.name, "version": served.version},
        "path": upload.name,
        "method": first.method,
        "target": row["class"],
        "probability": row["probability"],
        "patch": list(first.patch),
        "size": first.image_sizes[0].tolist(),
        "signed": first.signed,
        "maps": [_map(maps, row) for maps, row in zip(result.maps, result.rows, strict=True)],
    }


def explain_png(served: ServedModel, upload: Upload, config: ExplainConfig, max_pixels: int) -> bytes:
    """Return the sheet of an image: its maps over it, with their scores, as a PNG."""
    file = io.BytesIO()
    explained(served, upload, config, max_pixels).figure.savefig(file, format="png", dpi=draw.DPI)
    return file.getvalue()


def parse_layers(text: str | None) -> tuple[int, ...] | Literal["all"] | None:
    """Parse layers as in 0,-1, or all. Raises ValueError."""
    if text is None or text == "all":
        return cast('Literal["all"] | None', text)
    if not all(re.fullmatch(r"-?[0-9]{1,4}", part) for part in text.split(",")):
        raise ValueError(f'layers "{text[:40]}": give them as in 0,5,-1, or all')
    return tuple(map(int, text.split(",")))


def parse_heads(text: str | None) -> tuple[Heads, ...] | Literal["all"] | None:
    """Parse heads as in 0,3, or mean, max, min; or all. Raises ValueError."""
    if text is None or text == "all":
        return cast('Literal["all"] | None', text)
    if not all(re.fullmatch(r"mean|max|min|[0-9]{1,4}", part) for part in text.split(",")):
        raise ValueError(f'heads "{text[:40]}": give them as in 0,3, or mean, max, min, or all')
    return tuple(int(part) if part.isdecimal() else cast(Heads, part) for part in text.split(","))


def parse_query(text: str) -> Query:
    """Parse cls, or a pixel as in 12,8. Raises ValueError."""
    if text == "cls":
        return "cls"
    if not re.fullmatch(r"[0-9]{1,6},[0-9]{1,6}", text):
        raise ValueError(f'query "{text[:40]}": give cls, or a pixel as in 12,8; a class is the target')
    x, y = map(int, text.split(","))
    return x, y


def _map(maps: Maps, row: dict[str, Any]) -> dict[str, Any]:
    colors = maps.patch_colors(0)
    return {
        "label": row["label"],
        "map": maps.placed(0).cropped.tolist(),
        "colors": None if colors is None else colors.tolist(),
        "note": row["note"],
        **{score: row[score] for score in SCORES},
    }
