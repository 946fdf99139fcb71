"""Kinds of findings, and one finding with its images, evidence and suggestion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class FindingKind(NamedTuple):
    """A row of `KINDS`."""

    title: str
    """Noun phrase for tables, in the plural."""
    suggestion: str
    """Suggested action."""


KINDS: dict[str, FindingKind] = {
    "missing": FindingKind("files that are not there", "mend the path, or take it out of the table"),
    "not-an-image": FindingKind(
        "files that are no images, or of a format that is not read", "remove it, or save it in a format that is read"
    ),
    "truncated": FindingKind("truncated files", "copy or download it again; training leaves it out"),
    "corrupt": FindingKind("corrupt files", "copy or download it again; training leaves it out"),
    "oversized": FindingKind("oversized files", "save it with fewer pixels; training leaves it out"),
    "extension": FindingKind("files with the extension of another format", "rename it"),
    "bands": FindingKind("images with other bands than the set", "convert it; training refuses it or leaves it out"),
    "leakage": FindingKind("images in more than one split", "keep it in one split; take it out of the training images"),
    "two-labels": FindingKind("images under different labels", "decide for one label, or remove all of them"),
    "exact-duplicate": FindingKind("exact duplicates", "keep one"),
    "near-duplicate": FindingKind("near duplicates", "keep one, or all of them in the same split"),
    "label-suspect": FindingKind("label suspects", "look whether the suggested label is right"),
    "unlike-others": FindingKind("images unlike all others", "look whether it belongs to the set"),
    "blank": FindingKind("blank images", "remove it"),
    "dark": FindingKind("dark images", "look whether it shows anything"),
    "blurred": FindingKind("blurred images", "look whether it shows anything"),
    "small": FindingKind("small images", "look for the original; it is enlarged for training"),
    "aspect-ratio": FindingKind("images of extreme aspect ratio", "crop it: training sees the centre alone"),
    "small-class": FindingKind("classes too small for the split", "add images, or merge or remove the class"),
    "imbalance": FindingKind("imbalance of the classes", "set data.balance to sampler or loss"),
    "colours": FindingKind("colours that the normalisation does not fit", "set data.mean and data.std to the measured values"),
    "few-levels": FindingKind("range of values with few levels", "set data.range"),
}
"""All kinds of findings, in the order of tables."""


@dataclass(frozen=True, kw_only=True)
class DataFinding:
    """One finding: about images, or about the whole set."""

    kind: str
    """Key of `KINDS`."""
    evidence: str
    """Figures and reasons in words."""
    paths: tuple[str, ...] = ()
    """Images that something should be done about; none for a finding about the whole set."""
    beside: tuple[str, ...] = ()
    """Images that are the evidence: the other copies, or the neighbours."""
    suggestion: str = ""
    """Suggested action, where it says more than that of the kind."""
    score: float | None = None
    """Strength of the evidence, comparable within the kind; higher is stronger."""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    @property
    def title(self) -> str:
        """Title of the kind."""
        return KINDS[self.kind].title

    @property
    def advice(self) -> str:
        """Suggested action."""
        return self.suggestion or KINDS[self.kind].suggestion

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {
            "finding": self.kind,
            "paths": list(self.paths),
            "beside": list(self.beside),
            "evidence": self.evidence,
            "suggestion": self.advice,
            "score": self.score,
        }
