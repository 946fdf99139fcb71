"""Worst errors and least sure answers, each with a map of what spoke for the answer and its faithfulness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from vitrail.report.blocks import Block, Gallery, Section, Shown, Text, absent, percent
from vitrail.report.explanations import Explained
from vitrail.report.facts import Facts
from vitrail.report.material import Material
from vitrail.text import one_line

TITLE = "Errors and least sure answers"


def errors(facts: Facts, material: Material) -> Section:
    """Return the galleries; a line where there are no pictures."""
    choice, scored = material.choice, facts.classified
    if scored is None or scored.answers is None or choice is None:
        reason = "worst errors are those of images with one class each" if scored is None else material.no_examples
        return absent("errors", TITLE, reason)
    if not material.examples:
        return absent("errors", TITLE, f"the images could not be shown ({material.no_examples})")
    blocks: list[Block] = []
    if material.explanations.verdict:
        blocks.append(Text(material.explanations.verdict))
    for title, rows in (("Worst errors: wrong, and most confident", choice.errors), ("Least sure answers", choice.unsure)):
        if pictures := shown(facts, material, rows):
            blocks.append(Gallery(title, pictures))
    if not choice.errors:
        blocks.insert(0, Text("There are no errors on these images."))
    blocks.append(Text(how_to_read(material), quiet=True))
    return Section("errors", TITLE, blocks)


def shown(facts: Facts, material: Material, rows: Sequence[int]) -> list[Shown]:
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


def answer_lines(facts: Facts, material: Material, row: int) -> tuple[list[str], bool]:
    """Return label, answer and file of an image, and whether the answer is right."""
    scored = facts.classified
    assert scored is not None
    assert scored.answers is not None
    answers, classes = scored.answers, scored.classes
    label, predicted = classes[int(answers.labels[row])], classes[int(answers.predicted[row])]
    sure, right = percent(float(answers.confidence[row]), 0), bool(answers.correct[row])
    if right:
        return [f"{label}, right at {sure}", name_of(material, row)], right
    own = percent(float(answers.label_probability[row]), 0)
    return [f"{label} at {own}, taken for {predicted} at {sure}", name_of(material, row)], right


def alternative(facts: Facts, material: Material, row: int) -> str:
    """Return the text alternative of an image."""
    lines, _ = answer_lines(facts, material, row)
    return f"Image {name_of(material, row)}: {lines[0]}"


def name_of(material: Material, row: int) -> str:
    """Return the name of an image: its last parts."""
    return one_line("/".join(PurePath(material.examples[row].name).parts[-2:]))


def map_words(facts: Facts, material: Material, drawn: Explained) -> str:
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
