"""RunFacts of a run folder, read once: what a report is made of, without the model and without images."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.evaluate.metrics import Evaluation, Scores
from vitrail.evaluate.multilabel import MultiLabelEvaluation
from vitrail.evaluate.predictions import SplitPredictions
from vitrail.evaluate.robustness import Robustness, read_robustness
from vitrail.evaluate.saved import SavedEvaluation, read_evaluation
from vitrail.settings import Settings, layers
from vitrail.tasks import TASKS
from vitrail.weights.model_card import model_card, without_places
from vitrail.weights.provenance import Provenance, read_provenance
from vitrail.weights.run_folder import CHECK, CONFIG, SETTINGS, RunInfo, read_run
from vitrail.weights.run_log import Records, read_records

LADDER, COMPARISON, CALL, SKIPPED = "ladder.json", "pretraining.json", "call.json", "skipped.txt"
"""Files of a run folder, each there only where it applies."""
PLACE = re.compile(r"(?<![\w.:/~])~?/(?:[^\s/:;,'\"()]+/)+([^\s/:;,'\"()]+)")
"""An absolute path within a text."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RunFacts:
    """All that a run folder says of its run."""

    name: str
    """Name of the run folder."""
    info: RunInfo
    data: str
    """Name of the data set that the run was trained on, without its place."""
    settings: Settings
    asked: Mapping[str, Any]
    """Settings of the command line."""
    recipe: str | None
    provenance: Provenance
    records: Records
    """Lines of metrics.jsonl."""
    evaluation: SavedEvaluation
    config: Mapping[str, Any]
    """Vitrail's part of config.json."""
    ladder: Mapping[str, Any] | None
    """k-NN and linear probe before training; None where they were not run."""
    comparison: Mapping[str, Any] | None
    """Starting weights and pre-trained ones; None with labels."""
    robustness: Robustness | None
    checked: Mapping[str, Any] | None
    """Findings that `vitrail check` left in the run folder; None where the data was not checked."""
    skipped: int
    """Files that could not be read."""
    card: str
    """Model card in the Hub's format."""

    @property
    def scores(self) -> Scores:
        """Scores of the run."""
        return self.evaluation.scores

    @property
    def classified(self) -> Evaluation | None:
        """Scores of images with one class each; None for other tasks."""
        return self.scores if isinstance(self.scores, Evaluation) else None

    @property
    def labelled(self) -> MultiLabelEvaluation | None:
        """Scores of images with any number of labels; None for other tasks."""
        return self.scores if isinstance(self.scores, MultiLabelEvaluation) else None

    @property
    def predictions(self) -> SplitPredictions | None:
        """Predictions image by image; None for a model without classes, and for an evaluation that did not keep them."""
        scores = self.classified or self.labelled
        return None if scores is None else scores.predictions

    @property
    def supervised(self) -> bool:
        """Whether the run learned from classes or labels."""
        return TASKS[self.settings.train.task].supervised if self.settings.train.task in TASKS else bool(self.info.classes)

    @property
    def calibration_images(self) -> int:
        """Images that temperature, sets and threshold were fitted to; 0 without a calibration."""
        return int((self.config.get("calibration") or {}).get("images", 0))


def gather_facts(run: Path, *, scores: Path | None = None) -> RunFacts:
    """Read a finished run; `scores` is another folder with evaluation.json, of other images.

    Raises ValueError, in one line, for a folder that is no finished run, and for damaged files.
    """
    info = read_run(run)
    if not (run / SETTINGS).exists():
        raise ValueError(f'"{run}" holds no {SETTINGS}, so it is no folder of `vitrail train`; reports are of runs')
    evaluation = read_evaluation(scores or run)
    if evaluation is None:
        raise ValueError(f'run "{run}" has no scores yet; `vitrail evaluate {run}` makes them')
    call = read_object(run / CALL) or {}
    ours = read_object(run / CONFIG) or {}
    return RunFacts(
        name=run.resolve().name,
        info=info,
        data=str(without_places(info.data)),
        settings=layers.build([layers.read_config(run / SETTINGS)]),
        asked=call.get("asked", {}),
        recipe=call.get("recipe"),
        provenance=read_provenance(run),
        records=read_records(run),
        evaluation=evaluation,
        config=ours.get("vitrail", {}),
        ladder=read_object(run / LADDER),
        comparison=complete_comparison(read_object(run / COMPARISON)),
        robustness=read_robustness(scores or run),
        checked=read_object(run / CHECK),
        skipped=len((run / SKIPPED).read_text(encoding="utf-8").splitlines()) if (run / SKIPPED).exists() else 0,
        card=model_card(run),
    )


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None for a missing or damaged file, which costs its part of the report alone."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else None
    return None


def complete_comparison(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a comparison that has an end; None for a run that holds the starting weights' scores alone."""
    return values if values is not None and "verdict" in values else None


def without_paths(text: str) -> str:
    """Cut each absolute path in a text to its last part: a report is shown to others."""
    return PLACE.sub(r"\1", text)
