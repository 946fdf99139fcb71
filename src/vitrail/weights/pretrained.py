"""Table of pretrained checkpoints: pretrained.yaml, typed. Imports no torch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vitrail.settings import SIZES, Size
from vitrail.settings.families import family_of, parse_name

TABLE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class FigureSource:
    """Report of an accuracy."""

    name: str
    how: str
    """own head, linear (a probe on frozen features) or zero-shot (with the text tower that belongs to it)."""
    where: str
    """Repository, file and commit; or the model's card."""


@dataclass(frozen=True, kw_only=True)
class PretrainedRow:
    """One checkpoint."""

    id: str
    """The argument of `vitrail.load`."""
    family: str
    size: str
    """A name such as "B/16", "betwixt/16" or, of another family, "swin_t"."""
    shape: Size | None
    """Width, depth, heads and MLP ratio, the last to four places; None for another family than the plain ViT."""
    patch_size: int
    img_size: int
    """Side in pixels of the images that the position embedding is made for."""
    num_classes: int
    """Width of the output; 0 if the checkpoint has no head."""
    data: tuple[str, ...]
    """Datasets that it was trained on, in that order."""
    top1: float | None
    """Per cent of ImageNet-1k's validation images, as its source reports; None if no report was found."""
    source: FigureSource | None
    """Source of top1."""
    licence: str


FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0")
"""Licences that ask for no more than their own text and names."""


def terms(repo: str) -> str | None:
    """Return a line on the licence of a checkpoint of the table that asks for more than its text; None for any other.

    `load` warns with it before a download, by which a user accepts the terms.
    """
    row = next((row for row in rows() if row.id == repo), None)
    if row is None or row.licence in FREE:
        return None
    return f"{repo} is under {row.licence}, which has terms of its own: read them at https://huggingface.co/{repo}"


@functools.cache
def rows() -> tuple[PretrainedRow, ...]:
    """Return the table, family by family."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    sizes = SIZES | {name: Size(*fields) for name, fields in table["sizes"].items()}
    sources = {name: FigureSource(name, **fields) for name, fields in table["sources"].items()}
    return tuple(_row({**family, **entry}, sizes, sources) for family in table["families"] for entry in family["rows"])


def _row(entry: dict[str, Any], sizes: dict[str, Size], sources: dict[str, FigureSource]) -> PretrainedRow:
    size, _, patch = entry["size"].partition("/")
    if size not in sizes:  # of another family
        patch = family_of(entry["size"]).config(**parse_name(entry["size"])).patch_size
    top1 = entry.get("top1")
    return PretrainedRow(
        id=entry["id"],
        family=entry["family"],
        size=entry["size"],
        shape=sizes.get(size),
        patch_size=int(patch),
        img_size=entry["pixels"],
        num_classes=entry["classes"],
        data=tuple(entry["data"]),
        top1=top1,
        source=None if top1 is None else sources[entry["source"]],
        licence=entry["licence"],
    )
