"""Receipt of a loaded checkpoint: the status of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from vitrail.text import printable

Status = Literal["exact", "resized", "adapted", "new", "dropped"]
LONGEST_LINE = 400


@dataclass(frozen=True)
class Entry:
    """Status of one tensor of the model, or for "dropped" of the file."""

    name: str
    status: Status
    parameters: int
    note: str = ""
    """Change, such as "14x14 -> 24x24", "3 -> 5 channels" or "zero: the file has none"."""
    head: bool = False
    """True for a tensor of a head, which a new task replaces."""

    @property
    def fresh(self) -> bool:
        """Return whether its values are random; a new tensor with a note is computed."""
        return self.status == "new" and not self.note


@dataclass(frozen=True)
class Receipt:
    """Source of a model's weights, and the status of each."""

    origin: str
    """Layout of the file's names: timm, transformers, torchvision…"""
    file: str
    sha256: str | None
    """SHA-256 of the file; None for weights in memory."""
    licence: str | None
    """Licence stated on the checkpoint's own page; None if it states none."""
    entries: tuple[Entry, ...]
    assumed: tuple[str, ...] = ()
    """Config values that no tensor determines, taken as published."""
    notes: tuple[str, ...] = ()
    """Choices made while loading, such as which of two models in the file."""
    preprocessing: str = ""
    """Source of mean, std, size and crop."""
    grid: str = ""
    """Grid of the file's position embedding, and its source; "" if the config states everything."""

    def total(self, *statuses: Status) -> int:
        """Return the number of parameters with these statuses."""
        return sum(entry.parameters for entry in self.entries if entry.status in statuses)

    @property
    def backbone_share(self) -> float:
        """Return the share of the backbone's parameters, without heads, that come from the file or that its code computes."""
        backbone = [entry for entry in self.entries if not entry.head and entry.status != "dropped"]
        loaded = sum(entry.parameters for entry in backbone if not entry.fresh)
        return loaded / max(1, sum(entry.parameters for entry in backbone))

    def __str__(self) -> str:
        """Summarise in at most ten lines."""
        lines = [f"{self.origin} · {self.file}"]
        facts = [f"sha256 {self.sha256[:16]}…" if self.sha256 else "", f"licence {self.licence or 'not stated'}"]
        lines.append("  " + " · ".join(fact for fact in facts if fact))
        for status in get_args(Status):
            lines += self._line(status)
        for title, texts in (("assumed", self.assumed), ("note", self.notes)):
            if texts:
                lines.append(f"  {title:<8} {'; '.join(texts)}")
        if self.preprocessing or self.grid:
            lines.append(f"  images   {'; '.join(text for text in (self.preprocessing, self.grid) if text)}")
        return "\n".join(map(shown, lines))

    def _line(self, status: Status) -> list[str]:
        """Return one line of totals; none if no tensor has the status."""
        entries = [entry for entry in self.entries if entry.status == status]
        if not entries:
            return []
        of_ours = self.total("exact", "resized", "adapted", "new")
        share = "" if status == "dropped" else f" ({self.total(status) / max(1, of_ours):.1%})"
        line = (
            f"  {status:<8} {len(entries):,} tensor{'' if len(entries) == 1 else 's'}, {self.total(status):,} parameters{share}"
        )
        if status != "exact":
            shown = [entry.name + (f" {entry.note}" if entry.note else "") for entry in entries[:3]]
            line += ": " + ", ".join(shown) + (" …" if len(entries) > 3 else "")
        return [line]

    def verbose(self) -> str:
        """Return the receipt with a line for every tensor."""
        wide = max((len(entry.name) for entry in self.entries), default=0)
        rows = (f"  {e.status:<8} {e.name:<{wide}}  {e.parameters:>12,}  {e.note}".rstrip() for e in self.entries)
        return "\n".join([str(self), "", *map(shown, rows)])

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt for JSON: totals, and every tensor that is not exact."""
        return {
            "origin": self.origin,
            "file": self.file,
            "sha256": self.sha256,
            "licence": self.licence,
            "parameters": {status: self.total(status) for status in get_args(Status)},
            "tensors": [
                {"name": e.name, "status": e.status, "parameters": e.parameters, "note": e.note}
                for e in self.entries
                if e.status != "exact"
            ],
            "assumed": list(self.assumed),
            "notes": list(self.notes),
            "preprocessing": self.preprocessing,
            "grid": self.grid,
        }

    def state(self) -> dict[str, Any]:
        """Return the whole receipt for a training checkpoint, as JSON has it; see `from_state`."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Receipt:
        """Return the receipt of a training checkpoint."""
        lists = {name: tuple(state[name]) for name in ("assumed", "notes")}
        return cls(**{**state, **lists, "entries": tuple(Entry(**entry) for entry in state["entries"])})


def shown(line: str) -> str:
    """Escape and shorten one line for a terminal, whatever names a file has."""
    text = printable(line)
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"
