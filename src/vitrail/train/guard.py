"""Guard of training without labels: decides from a few scores over the run whether the embedding has collapsed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from vitrail.evaluate import EmbeddingScores
from vitrail.evaluate.paired import Paired, compare_pair, right_from_text, right_to_text
from vitrail.settings import GuardConfig
from vitrail.tasks.task import CollapseCause

SPREAD = 0.25
"""Share of the output dimensions in use from which on the rank of the embedding says nothing: images have outputs of their own,
and a common direction alone can be what lowers the rank (dev/LOG.md)."""


class Check(NamedTuple):
    """Scores of one check."""

    step: int
    progress: float
    """Share of the run before the step."""
    rank: float
    """Effective rank."""
    most: int
    """Maximum of the effective rank: the smaller of embedding width and images."""
    knn_right: str | None
    """Images that k-NN classifies correctly, as `right_to_text` writes them; None without labels."""
    images: int
    prototypes: float | None = None
    """Effective number of prototypes in the targets since the last check; None for a method without."""
    spread: float | None = None
    """Share of the output dimensions in use since the last check; None for a method whose outputs are not to be normal."""

    @classmethod
    def of(
        cls,
        scores: EmbeddingScores,
        *,
        step: int,
        progress: float,
        prototypes: float | None = None,
        spread: float | None = None,
    ) -> Check:
        """Return the check of some scores."""
        right = None if scores.knn_right is None else right_to_text(scores.knn_right)
        most = max(1, min(scores.width, scores.count))
        return cls(step, progress, scores.effective_rank, most, right, scores.count, prototypes, spread)

    @property
    def knn_accuracy(self) -> float:
        """Share of images that k-NN classifies correctly; NaN without labels."""
        return math.nan if self.knn_right is None else self.knn_right.count("1") / self.images

    def compared_with(self, first: Check) -> Paired | None:
        """Compare k-NN's classes with those of another check of the same images.

        None without labels, and where an image could be read for one of them only.
        """
        if self.knn_right is None or first.knn_right is None or self.images != first.images:
            return None
        return compare_pair(right_from_text(first.knn_right), right_from_text(self.knn_right))


@dataclass(frozen=True)
class Collapse:
    """Collapse of a run."""

    step: int
    cause: CollapseCause
    why: str
    """Figures, in one sentence."""

    def message(self, advice: str, *, model_step: int | None) -> str:
        """Return a line with the figures, what to change, and the step whose weights the model has."""
        model = "the model has its last weights, as no checkpoint has a score"
        if model_step is not None:
            model = f"the model is that of the best evaluation, at step {model_step:,}"
        return f"stopped at step {self.step:,}: the embedding {self.event}, for {self.why}; {advice}; {model}"

    @property
    def event(self) -> str:
        """Verb of the message: a lower accuracy alone is no collapse."""
        return "got worse" if self.cause == "accuracy fell" else "collapsed"

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {"reason": "collapse", **asdict(self)}


@dataclass
class Guard:
    """Checks of a run, and the decision on collapse. It is a function of the checks, so that a resumed run decides alike.

    A rank is low below `min_rank` of its maximum, and fallen below `rank_drop` of the first check's: collapse is `patience`
    checks in a row, unless k-NN accuracy is shown to be above the first check's, or the outputs have `SPREAD`. So it is with
    prototypes that have fallen below `min_prototypes`, and a spread below `min_spread`, whatever the accuracy: the loss teaches
    nothing any more. k-NN accuracy has fallen where it is more than `knn_drop` below the first check's, and shown to be below
    it on the same images: collapse is `knn_patience` checks in a row. The first check is that of the starting weights, which is
    no collapse.
    """

    cfg: GuardConfig
    checks: list[Check] = field(default_factory=list)
    collapse: Collapse | None = field(default=None, init=False)
    """Collapse that the last checks show; None for a healthy run."""

    def is_due(self, step: int, progress: float) -> bool:
        """Return True before the first step, and from `every` of the run after the last check on, once for each step."""
        if not self.checks:
            return True
        last = self.checks[-1]
        due = step > last.step and progress >= last.progress + self.cfg.every - 1e-9
        return due and self.collapse is None

    def add(self, check: Check) -> Collapse | None:
        """Add a check. Return the collapse that it shows, if any."""
        self.checks.append(check)
        self.collapse = self._decide()
        return self.collapse

    def _decide(self) -> Collapse | None:
        """Apply the rules to the last checks."""
        rules: tuple[tuple[CollapseCause, int, Callable[[Check], str]], ...] = (
            ("low rank", self.cfg.patience, self._low_rank),
            ("rank fell", self.cfg.patience, self._rank_fell),
            ("one prototype", self.cfg.patience, self._one_prototype),
            ("no spread", self.cfg.patience, self._no_spread),
            ("accuracy fell", self.cfg.knn_patience, self._accuracy_fell),
        )
        for cause, patience, fault in rules:
            faults = [fault(check) for check in self.checks[1:][-patience:]]
            if len(faults) == patience and all(faults):
                return Collapse(self.checks[-1].step, cause, faults[-1])
        return None

    def _low_rank(self, check: Check) -> str:
        """Return the fault of a rank that is a small share of its maximum; "" for none."""
        if check.rank >= self.cfg.min_rank * check.most or self._is_sound(check):
            return ""
        return f"its effective rank is {check.rank:.1f} of {check.most}, below {self.cfg.min_rank:.0%} (guard.min_rank)"

    def _rank_fell(self, check: Check) -> str:
        """Return the fault of a rank that is far below the starting weights'; "" for none."""
        start = self.checks[0].rank
        if check.rank >= self.cfg.rank_drop * start or self._is_sound(check):
            return ""
        share = f"below {self.cfg.rank_drop:.0%} of the {start:.1f} of the starting weights (guard.rank_drop)"
        return f"its effective rank is {check.rank:.1f}, {share}"

    def _one_prototype(self, check: Check) -> str:
        """Return the fault of targets that are one prototype for all images, where they were more before; "" for none."""
        least, before = self.cfg.min_prototypes, [each.prototypes for each in self.checks if each.step < check.step]
        if check.prototypes is None or check.prototypes >= least:
            return ""
        if all(value is None or value < least for value in before):  # a start at which all images are alike to random weights
            return ""
        return f"all images have one prototype: {check.prototypes:.3f} are in use (guard.min_prototypes)"

    def _no_spread(self, check: Check) -> str:
        """Return the fault of outputs that are alike for all images; "" for none."""
        if check.spread is None or check.spread >= self.cfg.min_spread:
            return ""
        least = f"below {self.cfg.min_spread:.0%} (guard.min_spread)"
        return f"all images have nearly the same output: {check.spread:.2%} of its dimensions are in use, {least}"

    def _is_sound(self, check: Check) -> bool:
        """Return True where a low rank is no collapse: outputs with spread, or a k-NN accuracy shown to be above the start."""
        if check.spread is not None and check.spread >= SPREAD:
            return True
        paired = check.compared_with(self.checks[0])
        return paired is not None and paired.verdict == "better"

    def _accuracy_fell(self, check: Check) -> str:
        """Return the fault of a k-NN accuracy that is far below the starting weights'; "" for none, and without labels."""
        paired = check.compared_with(self.checks[0])
        if not self.cfg.knn_drop or paired is None or paired.difference >= -self.cfg.knn_drop or paired.verdict != "worse":
            return ""
        start = f"{self.checks[0].knn_accuracy:.1%} with the starting weights (guard.knn_drop)"
        return f"its k-NN accuracy is {check.knn_accuracy:.1%}, and was {start}"

    def state(self) -> list[list[Any]]:
        """Return the state for a checkpoint."""
        return [list(check) for check in self.checks]

    def restore(self, state: list[list[Any]]) -> None:
        """Continue from a checkpoint's state."""
        checks = [Check(*check) for check in state]
        older = any(isinstance(check.knn_right, int) for check in checks)  # checkpoints with counts, which pair no images
        self.checks = [check._replace(knn_right=None) for check in checks] if older else checks
        self.collapse = self._decide()
