"""Worst errors and least sure predictions, each with a map of what spoke for the answer and its faithfulness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from vitrail.evaluate.predictions import ClassPredictions, WorstLabels
from vitrail.report.blocks import Block, Gallery, Section, Shown, Text, absent, percent
from vitrail.report.explanations import Explained
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material
from vitrail.report.svg import shortened

TITLE = "Errors and least sure predictions"
NAME_LETTERS = 34
"""Letters of a file's name, which is shortened in the middle."""


def errors(facts: RunFacts, material: Material) -> Section:
    """Return the galleries; a line where there are no pictures."""
    choice = material.choice
    if facts.predictions is None or choice is None:
        return absent("errors", TITLE, "there are no predictions image by image, of a class or of labels")
    if not material.examples:
        return absent("errors", TITLE, f"there are no pictures: {material.no_examples}")
    blocks: list[Block] = []
    if not choice.errors:
        blocks.append(Text("There are no errors on these images."))
    if material.explanations.verdict:
        blocks.append(Text(material.explanations.verdict))
    for title, rows in (("Worst errors: wrong, and most confident", choice.errors), ("Least sure predictions", choice.unsure)):
        if pictures := shown(facts, material, rows):
            blocks.append(Gallery(title, pictures))
    blocks.append(Text(how_to_read(material), quiet=True))
    return Section("errors", TITLE, blocks)


def shown(facts: RunFacts, material: Material, rows: Sequence[int]) -> list[Shown]:
    """Return pictures with their maps and the model's answer."""
    assert material.choice is not None
    with_pictures = [row for row in material.choice.explained if row in material.examples]
    explained = dict(zip(with_pictures, material.explanations.each, strict=False))
    found = []
    for row in rows:
        if row in material.examples:
            lines, right = answer_lines(facts, material, row)
            drawn = explained.get(row)
            if drawn is not None and drawn.scores is not None:
                lines.append(f"insertion {drawn.scores.insertion:.2f}, deletion {drawn.scores.deletion:.2f}")
            found.append(
                Shown(
                    material.examples[row].picture,
                    alternative(facts, material, row),
                    lines,
                    overlay=None if drawn is None else drawn.overlay,
                    overlay_alt="" if drawn is None else map_words(facts, material, drawn),
                    right=right,
                )
            )
    return found


def answer_lines(facts: RunFacts, material: Material, row: int) -> tuple[list[str], bool]:
    """Return label, answer and file of an image, and whether the answer is right."""
    words, right = ("", False)
    if facts.classified is not None and facts.classified.predictions is not None:
        words, right = class_words(facts.classified.predictions, facts.classified.classes, row)
    elif facts.labelled is not None and facts.labelled.predictions is not None:
        words, right = label_words(facts.labelled.predictions, facts.labelled.classes, row)
    return [words, name_of(material, row)], right


def class_words(predictions: ClassPredictions, classes: Sequence[str], row: int) -> tuple[str, bool]:
    """Return the answer to an image of one class, and whether it is right."""
    label, predicted = classes[int(predictions.labels[row])], classes[int(predictions.predicted[row])]
    sure, own = percent(float(predictions.confidence[row]), 0), percent(float(predictions.label_probability[row]), 0)
    right = bool(predictions.correct[row])
    return (f"{label}, right at {sure}" if right else f"{label} at {own}, taken for {predicted} at {sure}"), right


def label_words(predictions: WorstLabels, classes: Sequence[str], row: int) -> tuple[str, bool]:
    """Return the worst answer to an image of any number of labels, and whether it is right."""
    label, share = classes[int(predictions.worst[row])], percent(float(predictions.probability[row]), 0)
    there = "has it" if bool(predictions.positive[row]) else "does not have it"
    return f"{label} at {share}, and the image {there}", bool(predictions.error[row] <= 0.5)


def alternative(facts: RunFacts, material: Material, row: int) -> str:
    """Return the text alternative of an image."""
    lines, _ = answer_lines(facts, material, row)
    return f"Image {name_of(material, row)}: {lines[0]}"


def name_of(material: Material, row: int) -> str:
    """Return the name of an image: its last parts, shortened."""
    return shortened("/".join(PurePath(material.examples[row].name).parts[-2:]), NAME_LETTERS)


def map_words(facts: RunFacts, material: Material, drawn: Explained) -> str:
    """Return the text alternative of a map."""
    return f"Map by {material.explanations.method} of what spoke for {facts.info.classes[drawn.target]}, bright where most"


def how_to_read(material: Material) -> str:
    """Return what the maps are, and what their scores mean."""
    method = material.explanations.method
    if not method:
        return f"Without maps: {material.explanations.note}." if material.explanations.note else ""
    note = f" {material.explanations.note.capitalize()}." if material.explanations.note else ""
    return (
        f"Beside each image: what spoke for the answer, by {method} (docs/explain.md), bright where most. Insertion is the "
        f"probability of the answer as patches return to a blurred image in the map's order, more is better; deletion as they "
        f"are taken away, less is better.{note}"
    )
