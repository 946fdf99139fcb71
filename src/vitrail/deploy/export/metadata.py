"""Metadata that goes along with an exported model: its card, and the hash of the weights it was made of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.data.listing import EXPORT
from vitrail.deploy.export.trace import Inputs
from vitrail.models.backbone import Backbone
from vitrail.models.card import Calibration, Card
from vitrail.models.machine import package_version
from vitrail.settings import Preprocessing, tupled

CARD, CONTRACT = EXPORT, "contract.json"
KEY = "vitrail.card"
"""Key of the card in a file's metadata; the value is the text of card.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportCard:
    """Contents of card.json."""

    format: str
    """Name in `FORMATS`."""
    model: str
    """Class of the model."""
    source: str
    """Weights that it was made of: name of a file, a folder or a Hub id, without the path."""
    sha256: str | None
    """Hash of these weights; None where they are in no file."""
    inputs: Inputs
    dynamic_size: bool
    precision: str
    """Type in which the products are computed, such as "fp32"."""
    card: Card
    """Preprocessing, classes, task and calibration. The receipt of the weights is not kept."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.card.classes

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        assert self.card.preprocessing is not None
        calibration = self.card.calibration
        return {
            "format": self.format,
            "model": self.model,
            "source": self.source,
            "sha256": self.sha256,
            "vitrail": package_version(),
            "inputs": self.inputs,
            "dynamic_size": self.dynamic_size,
            "precision": self.precision,
            "task": self.card.task,
            "classes": list(self.classes),
            "preprocessing": dataclasses.asdict(self.card.preprocessing),
            "calibration": None if calibration is None else dataclasses.asdict(calibration),
        }

    def to_text(self) -> str:
        """Return the text of card.json."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the model's file."""
        return {KEY: self.to_text(), "vitrail.sha256": self.sha256 or ""}


def card_of(model: Backbone, *, source: str, format: str, inputs: Inputs, dynamic_size: bool) -> ExportCard:
    """Return the card of an export. Classes without names get their numbers."""
    receipt = model.receipt
    return ExportCard(
        format=format,
        model=type(model).__name__,
        source=Path(source).name if Path(source).exists() else source,
        sha256=None if receipt is None else receipt.sha256,
        inputs=inputs,
        dynamic_size=dynamic_size,
        precision="fp32",
        card=dataclasses.replace(
            model.card, receipt=None, classes=model.classes or tuple(map(str, range(model.config.num_classes)))
        ),
    )


def read_card(folder: str | Path) -> ExportCard:
    """Read card.json of an export. Raises ValueError for one that can't be read."""
    path = Path(folder) / CARD
    try:
        entry: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = entry["calibration"]
        return ExportCard(
            **{name: entry[name] for name in ("format", "model", "source", "sha256", "inputs", "dynamic_size", "precision")},
            card=Card(
                preprocessing=Preprocessing(**tupled(entry["preprocessing"])),
                classes=tuple(entry["classes"]),
                task=entry["task"],
                calibration=None if known is None else Calibration(**tupled(known)),
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} can't be read ({type(error).__name__}: {error}); export the model again") from error


def is_export(folder: str | Path) -> bool:
    """Return whether `vitrail export` wrote a folder."""
    return Path(folder, CARD).is_file()
