"""Selective predictions at a precision, and sets of classes with a coverage."""

from __future__ import annotations

from vitrail.evaluate.predictions import ClassPredictions
from vitrail.evaluate.selective import SelectivePrediction, precision_curve
from vitrail.evaluate.trust import Trust
from vitrail.report.blocks import Beside, Block, Chart, Charts, Section, Table, Text, absent, interval, percent
from vitrail.report.charts import Axis, Series, line_chart
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material

TITLE = "Selective prediction and conformal sets"
LEAST_SHARE = 0.02
"""Share of images from which on the curve is drawn: the precision of fewer is mostly chance."""


def selective(facts: RunFacts, material: Material) -> Section:
    """Return the predictions at a precision, the curve, and the sets; a line where they were not measured."""
    scored = facts.classified
    if scored is None or scored.trust is None:
        return absent("selective", TITLE, "predictions at a precision, and sets, are of images with one class each")
    words: list[Block] = [Text(sentence(each)) for each in scored.trust.selective]
    curve: list[Block] = [] if scored.predictions is None else [Charts([precision_chart(scored.predictions)])]
    return Section("selective", TITLE, [Beside(curve, [*words, *set_blocks(scored.trust)])])


def sentence(found: SelectivePrediction) -> str:
    """Return how many images are answered at a precision, and from which confidence on."""
    if not found.count:
        return f"No threshold of the confidence reaches {percent(found.target, 0)} precision on these images."
    return (
        f"At {percent(found.target, 0)} precision it answers {percent(found.share, 0)} of the images: those of a confidence of "
        f"at least {percent(found.threshold)}."
    )


def precision_chart(predictions: ClassPredictions) -> Chart:
    """Return the precision over the share of images answered, most confident first."""
    _, shares, precisions = precision_curve(predictions.confidence, predictions.correct)
    curve = list(zip(shares.tolist(), precisions.tolist(), strict=True))
    points = [point for point in curve if point[0] >= LEAST_SHARE]
    near = {place: min(points, key=lambda point: abs(point[0] - place))[1] for place in (0.25, 0.5, 0.75, 1.0)}
    ends = ", ".join(f"{percent(value)} of {percent(place, 0)}" for place, value in near.items())
    drawing = line_chart(
        [Series("precision", points)],
        x=Axis("share of the images answered", (0.0, 1.0), share=True),
        y=Axis("precision", share=True),
        label=f"Precision of the most confident predictions, by the share of images answered: {ends}",
    )
    return Chart("Precision of the most confident predictions", drawing)


def set_blocks(trust: Trust) -> list[Block]:
    """Return the table of conformal sets; a line for a model without."""
    if not trust.coverages:
        return [Text("No sets: the model has no conformal scores, as there were no validation images.", quiet=True)]
    rows = [
        [percent(each.target, 0), percent(each.covered.value), interval(each.covered.interval), f"{each.mean_size:.2f}"]
        for each in trust.coverages
    ]
    empty = ", ".join(f"{percent(each.empty)} at {percent(each.target, 0)}" for each in trust.coverages)
    note = Text(
        "A set holds the right class with the coverage that was asked for, on images like those of the validation set (split "
        f"conformal prediction, RAPS). Empty sets: {empty}. `vitrail predict RUN IMAGES --coverage 0.9` prints sets.",
        quiet=True,
    )
    return [Table("Sets of classes", ["asked for", "covered", "95 % interval", "classes"], rows), note]
