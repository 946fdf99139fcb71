"""An exported folder as a model again, for prediction."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vitrail.deploy.export.formats import format_of
from vitrail.deploy.export.metadata import ExportCard, read_card
from vitrail.models.backbone import Backbone, Features, Images, Logits, Stage, View
from vitrail.settings import Pair


@dataclass(frozen=True, kw_only=True)
class ExportedConfig:
    """Shape of an exported model, as its card states it."""

    format: str
    img_size: Pair
    in_channels: int
    num_classes: int


class ExportedModel(Backbone):
    """Model of an exported file: logits, computed by the file's runtime on the CPU. There are no weights in it."""

    config: ExportedConfig

    def __init__(self, folder: Path, card: ExportCard) -> None:
        super().__init__()
        preprocessing, row = card.card.preprocessing, format_of(card.format)
        assert preprocessing is not None
        self.config = ExportedConfig(
            format=card.format,
            img_size=preprocessing.img_size,
            in_channels=preprocessing.in_channels,
            num_classes=len(card.classes),
        )
        self.card = card.card
        if not (folder / row.file).is_file():
            raise ValueError(f"{folder} has no {row.file}, though its card.json names {card.format}; export the model again")
        self.run_file = row.load().open_forward(folder / row.file)

    def forward(self, images: Images) -> Logits:
        """Return logits. Raises ValueError for a wrong number of channels."""
        self.check_channels(images)
        return self.run_file(images)

    def head_logits(self, images: Images, *, patch_size: int | Pair | None = None) -> tuple[Logits, ...]:
        """Return the logits in a tuple of one."""
        return (self(images),)

    def features(self, images: Images, view: View = View()) -> Features:
        """Raise ValueError: a file gives logits alone."""
        self.refuse("features")

    def stages(self) -> list[Stage]:
        """Return no stages: there are no parameters."""
        return []

    def reset_head(self, num_classes: int) -> None:
        """Raise ValueError."""
        self.refuse("head")

    @property
    def side_unit(self) -> Pair:
        """The size of the images, which is fixed."""
        return self.config.img_size

    def refuse(self, what: str) -> NoReturn:
        """Raise ValueError for what only the original has."""
        raise ValueError(f"an export to {self.config.format} has no {what}; use the run that it was made of")


def open_export(folder: str | Path) -> ExportedModel:
    """Open an exported folder. Raises ValueError for one that takes decoded images."""
    card = read_card(folder)
    if card.inputs == "raw":
        raise ValueError(
            f"{folder} takes decoded images and resizes them itself; give `predict` the run, or an export without --raw-images"
        )
    return ExportedModel(Path(folder), card).eval()
