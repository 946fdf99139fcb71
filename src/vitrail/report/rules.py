"""What to do next: one table of rules, each a number of the run, a limit and advice. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vitrail.report.blocks import percent
from vitrail.report.indicators import Indicators

SUBJECTS = 3
"""Classes or pairs that a piece of advice names, at most; the others are counted."""


class RuleValue(NamedTuple):
    """A number that a rule looks at."""

    value: float
    subject: str = ""
    """What it is of: a class, a pair, a corruption; "" for the run."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of `RULES`."""

    name: str
    measure: Callable[[Indicators], list[RuleValue]]
    """Numbers of a run; none where they are not known."""
    when: Literal["at least", "at most"]
    limit: float
    finding: str
    """Sentence with {subjects}, and {value} of the first of them."""
    advice: str
    form: Callable[[float], str] = percent
    """How a value is written."""

    def applies(self, value: float) -> bool:
        """Return whether a number calls for the advice; the limit itself does."""
        return value >= self.limit if self.when == "at least" else value <= self.limit


@dataclass(frozen=True)
class Recommendation:
    """A rule that applies to a run."""

    rule: str
    finding: str
    advice: str


def whole(value: float) -> str:
    """Write a count."""
    return f"{value:,.0f}"


def times(value: float) -> str:
    """Write a ratio."""
    return f"{value:.1f} times"


def points(value: float) -> str:
    """Write a difference of shares in points, without its sign."""
    return f"{abs(100 * value):.1f} points"


def known(value: float | None) -> list[RuleValue]:
    """Return a number as a list; none if it is not known."""
    return [] if value is None else [RuleValue(value)]


def each(values: Mapping[str, float]) -> list[RuleValue]:
    """Return the numbers of a mapping with their names."""
    return [RuleValue(value, name) for name, value in values.items()]


def imbalance(indicators: Indicators) -> list[RuleValue]:
    """Return the training images of the largest class over those of the smallest."""
    counts = [count for count in indicators.train_counts.values() if count]
    return [RuleValue(max(counts) / min(counts))] if len(counts) > 1 else []


def behind(indicators: Indicators) -> list[RuleValue]:
    """Return how far the interval of each class stays below the accuracy of all."""
    if indicators.accuracy is None:
        return []
    return [RuleValue(indicators.accuracy - high, name) for name, (_, high) in indicators.recall.items()]


def beyond_noise(indicators: Indicators, *, sign: int) -> list[RuleValue]:
    """Return how far confidence exceeds accuracy, or the reverse, where that can't be chance."""
    value = indicators.over_confidence
    if value is None:
        return []
    return [RuleValue(sign * value if abs(value) > indicators.confidence_noise else 0.0)]


RULES: tuple[Rule, ...] = (
    Rule(
        name="unreadable files",
        measure=lambda s: [RuleValue(float(s.skipped))],
        when="at least",
        limit=1,
        finding="{value} files could not be read and were left out.",
        advice="skipped.txt names them with the reasons; restore them, or remove them.",
        form=whole,
    ),
    Rule(
        name="small class",
        measure=lambda s: each({name: float(count) for name, count in s.train_counts.items()}),
        when="at most",
        limit=50,
        finding="Few training images: {subjects} (the fewest: {value}).",
        advice="Collect more images of these first: they teach more than more of the others, or than longer training.",
        form=whole,
    ),
    Rule(
        name="unequal classes",
        measure=imbalance,
        when="at least",
        limit=5,
        finding="The largest class has {value} as many training images as the smallest.",
        advice="Try --data.balance sampler, which draws classes equally often, and judge by macro F1.",
        form=times,
    ),
    Rule(
        name="confused pair",
        measure=lambda s: each(s.pairs),
        when="at least",
        limit=0.1,
        finding="Taken for each other: {subjects} (up to {value} of the class).",
        advice="Look at the examples: are the labels right, and can you tell them apart at this image size? If so, add "
        "images of both or raise model.img_size; if not, merge the classes.",
    ),
    Rule(
        name="class behind",
        measure=behind,
        when="at least",
        limit=0.1,
        finding="Well below the rest: {subjects} (by at least {value}).",
        advice="Look through the labels of these classes, and add images that look like their errors.",
        form=points,
    ),
    Rule(
        name="training ahead",
        measure=lambda s: known(s.gap),
        when="at least",
        limit=0.1,
        finding="The model overfits: accuracy on training images, though augmented, is {value} above validation.",
        advice="More images help most. Else start from pretrained weights, augment more, raise model.drop_path_rate or "
        "optim.weight_decay, or train for fewer epochs.",
        form=points,
    ),
    Rule(
        name="still rising",
        measure=lambda s: known(s.rise),
        when="at least",
        limit=0.01,
        finding="The validation score rose by {value} in the last fifth of the run.",
        advice="Train longer: twice the epochs or minutes is the next thing to try.",
        form=points,
    ),
    Rule(
        name="no better than the probe",
        measure=lambda s: known(s.over_probe),
        when="at most",
        limit=0.0,
        finding="Training did not beat a linear probe on the frozen features (difference: {value}).",
        advice="Use the probe, which costs a fraction (--recipe linear-probe); or fine-tune more gently: a lower optim.lr, a "
        "lower optim.layer_decay.",
        form=points,
    ),
    Rule(
        name="over-confident",
        measure=lambda s: beyond_noise(s, sign=1),
        when="at least",
        limit=0.03,
        finding="Confidence is {value} above accuracy on these images: the model is too sure.",
        advice="If validation images were few, or unlike these, calibrate on images like these; and set thresholds by the "
        "figures of selective prediction, not by the probabilities.",
        form=points,
    ),
    Rule(
        name="under-confident",
        measure=lambda s: beyond_noise(s, sign=-1),
        when="at least",
        limit=0.03,
        finding="Confidence is {value} below accuracy on these images: the model is more often right than it says.",
        advice="Less label smoothing or mixing helps, or a temperature fitted to more validation images.",
        form=points,
    ),
    Rule(
        name="coverage missed",
        measure=lambda s: each(s.coverage),
        when="at least",
        limit=0.01,
        finding="Sets of {subjects} coverage hold the right class less often than that.",
        advice="These images differ from the validation images that the sets were fitted to; put images like these among them.",
        form=points,
    ),
    Rule(
        name="unlike training",
        measure=lambda s: [] if s.outliers is None else [RuleValue(s.outliers[0])],
        when="at least",
        limit=0.08,
        finding="At least {value} of these images are marked as unlike those of training, where 5 % would be usual.",
        advice="Look at them: another camera, other subjects, another preparation? Train on some of their kind.",
    ),
    Rule(
        name="fragile",
        measure=lambda s: each(s.corruptions),
        when="at least",
        limit=0.2,
        finding="Accuracy falls under {subjects} (by up to {value}).",
        advice="If such images occur in use, augment with their kind (augment.rand_augment, augment.color_jitter), or train "
        "on some.",
        form=points,
    ),
    Rule(
        name="few test images",
        measure=lambda s: [] if s.score_interval is None else [RuleValue(s.score_interval[1] - s.score_interval[0])],
        when="at least",
        limit=0.06,
        finding="The interval of the main score is {value} wide: improvements below that can't be seen.",
        advice="Measure on more images; four times as many halve the interval.",
        form=points,
    ),
    Rule(
        name="few test images of a class",
        measure=lambda s: each({name: float(count) for name, count in s.test_counts.items()}),
        when="at most",
        limit=10,
        finding="Hardly measured: {subjects} (the fewest: {value} images).",
        advice="Their figures say little; add test images of these classes.",
        form=whole,
    ),
)
"""Every rule, in the order of the page: data first, then the model, then the measurement."""


def advise(indicators: Indicators, rules: Sequence[Rule] = RULES) -> list[Recommendation]:
    """Return the advice of every rule that applies."""
    return [advice for rule in rules if (advice := apply_rule(rule, indicators)) is not None]


def apply_rule(rule: Rule, indicators: Indicators) -> Recommendation | None:
    """Return the advice of a rule, which names what it is of, the worst first; None where it does not apply."""
    found = [one for one in rule.measure(indicators) if rule.applies(one.value)]
    if not found:
        return None
    found.sort(key=lambda one: one.value if rule.when == "at most" else -one.value)
    names = ", ".join(one.subject for one in found[:SUBJECTS])
    more = f" and {len(found) - SUBJECTS} more" if len(found) > SUBJECTS else ""
    return Recommendation(rule.name, rule.finding.format(subjects=names + more, value=rule.form(found[0].value)), rule.advice)
