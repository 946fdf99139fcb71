"""Scores: of each class with its interval, for one class an image, labels, and embeddings."""

from __future__ import annotations

import math

from vitrail.evaluate.f1 import class_f1
from vitrail.evaluate.metrics import Evaluation
from vitrail.evaluate.multilabel import MultiLabelEvaluation
from vitrail.report.blocks import Block, Chart, Charts, Fold, Section, Table, Text, absent, interval, percent
from vitrail.report.charts import Axis, IntervalRow, interval_chart
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material

TITLE = "Accuracy by class"
DRAWN = 40
"""Classes of the chart: of more, those of the lowest scores."""


def scores(facts: RunFacts, material: Material) -> Section:
    """Return the score of each class or label; a line for a model without."""
    if facts.classified is not None:
        return Section("classes", TITLE, class_blocks(facts.classified))
    if facts.labelled is not None:
        return Section("classes", "Precision by label", label_blocks(facts.labelled))
    return absent("classes", TITLE, "the model has no classes; fine-tune it to get some")


def class_blocks(scored: Evaluation) -> list[Block]:
    """Return a chart of recall with Wilson intervals, and a table with precision and F1."""
    order = sorted((each for each in scored.per_class if each.count), key=lambda each: each.accuracy)
    rows = [IntervalRow(each.name, each.accuracy, each.interval, f"{each.count:,}") for each in order[:DRAWN]]
    lowest = f", the {DRAWN} lowest of {len(order)} classes" if len(order) > DRAWN else ""
    words = [f"{each.name} {percent(each.accuracy)}" for each in order]
    ends = f"{words[0]} is the lowest and {words[-1]} the highest" if len(order) > 1 else "".join(words)
    label = f"Accuracy of each class with its 95 % interval{lowest}: {ends}"
    axis = Axis("accuracy with its 95 % interval", (0.0, 1.0), share=True)
    chart = Chart(f"Accuracy of each class{lowest}", interval_chart(rows, reference=scored.top1, axis=axis, label=label))
    note = Text(
        "The accuracy of a class is the share of its images that are recognised (recall); their number stands at the right, "
        "and the dashed line is the accuracy on all images. Intervals are Wilson's at 95 %; that of macro F1 is a bootstrap "
        "over images.",
        quiet=True,
    )
    precision, recall, f1 = class_f1(scored.confusion)
    table = Table(
        "Every class",
        ["class", "images", "accuracy", "95 % interval", "precision", "F1"],
        [
            [each.name, f"{each.count:,}", percent(recall[k].item()), interval(each.interval), percent(p), percent(f)]
            for k, (each, p, f) in enumerate(zip(scored.per_class, precision.tolist(), f1.tolist(), strict=True))
        ],
    )
    return [Charts([chart], wide=True), note, Fold("Table of every class", [table])]


def label_blocks(scored: MultiLabelEvaluation) -> list[Block]:
    """Return a chart and a table of the average precision of each label."""
    order = sorted((each for each in scored.per_class if each.count), key=lambda each: each.average_precision)
    rows = [IntervalRow(each.name, each.average_precision, each.interval, f"{each.count:,}") for each in order[:DRAWN]]
    words = ", ".join(f"{each.name} {percent(each.average_precision)}" for each in order[:5])
    axis = Axis("average precision with its 95 % interval", (0.0, 1.0), share=True)
    reference = None if math.isnan(scored.mean_ap) else scored.mean_ap
    drawing = interval_chart(
        rows, reference=reference, axis=axis, label=f"Average precision of each label, lowest first: {words}"
    )
    table = Table(
        "Every label",
        ["label", "images", "average precision", "95 % interval"],
        [[each.name, f"{each.count:,}", percent(each.average_precision), interval(each.interval)] for each in scored.per_class],
    )
    chart = [Charts([Chart("Average precision of each label", drawing)], wide=True)] if drawing else []
    return [*chart, Fold("Table of every label", [table])]
