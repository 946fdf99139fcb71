"""Confusion: the matrix, and the most confused pairs with examples."""

from __future__ import annotations

from vitrail.evaluate.metrics import Evaluation
from vitrail.report.blocks import Beside, Block, Chart, Charts, Gallery, Section, Shown, Table, Text, absent, interval, percent
from vitrail.report.choice import confused_pairs
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material
from vitrail.report.matrix import COUNTED, MOST, confusion_chart
from vitrail.report.sections.errors import alternative, name_of

TITLE = "Confusion"
WITH_EXAMPLES = 5
"""Pairs that are shown with examples, at most."""


def confusion(facts: RunFacts, material: Material) -> Section:
    """Return matrix and pairs; a line for tasks without one class an image."""
    scored = facts.classified
    if scored is None:
        return absent("confusion", TITLE, "a matrix needs images with one class each")
    pairs = confused_pairs(scored.confusion)
    common = ", ".join(f"{scored.classes[each.true]} as {scored.classes[each.predicted]} ({each.count})" for each in pairs[:5])
    label = f"Confusion matrix of {len(scored.classes)} classes; the most frequent mistakes: {common or 'none'}"
    drawing = confusion_chart(scored.confusion.numpy(), scored.classes, label=label)
    few = len(scored.classes) <= COUNTED
    blocks: list[Block] = [Charts([Chart("Confusion matrix", drawing)], wide=True), Text(how_to_read(scored), quiet=True)]
    if not pairs:
        return Section("confusion", TITLE, [*blocks, Text("There are no mistakes.")])
    rows = [
        [
            scored.classes[each.true],
            scored.classes[each.predicted],
            f"{each.count:,}",
            percent(each.share),
            interval(each.interval),
        ]
        for each in pairs
    ]
    columns = ["class", "taken for", "images", "of the class", "95 % interval"]
    table = Table("Most confused pairs", columns, rows, ("taken for",))
    shown: list[Block] = [Beside(blocks, [table])] if few else [*blocks, table]
    return Section("confusion", TITLE, [*shown, *galleries(facts, material, scored)])


def how_to_read(scored: Evaluation) -> str:
    """Return what rows, columns and colours are, and in which order the classes stand."""
    words = "Rows are the true classes, columns the predicted ones; the stronger a cell, the larger its share of the row."
    if len(scored.classes) > COUNTED:
        words += " Classes that are taken for each other stand together; point at a cell for its counts."
    if len(scored.classes) > MOST:
        words += f" Shown are the {MOST} classes with the most mistakes; confusion.csv has all {len(scored.classes):,}."
    return words


def galleries(facts: RunFacts, material: Material, scored: Evaluation) -> list[Block]:
    """Return examples of the pairs, as far as there are pictures."""
    if material.choice is None or not material.examples or scored.predictions is None:
        return []
    blocks: list[Block] = []
    shown = zip(confused_pairs(scored.confusion), material.choice.pairs, strict=False)
    for pair, rows in list(shown)[:WITH_EXAMPLES]:
        pictures = [
            Shown(
                material.examples[row].picture,
                alternative(facts, material, row),
                [f"at {percent(float(scored.predictions.confidence[row]), 0)}", name_of(material, row)],
                right=False,
            )
            for row in rows
            if row in material.examples
        ]
        if pictures:
            blocks.append(Gallery(f"{scored.classes[pair.true]}, taken for {scored.classes[pair.predicted]}", pictures))
    return blocks
