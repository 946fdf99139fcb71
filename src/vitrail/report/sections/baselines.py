"""Baselines: k-NN and a linear probe before training, and pre-trained weights beside those they started from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.evaluate.embedding import KNOWN_IMAGES
from vitrail.evaluate.intervals import Accuracy
from vitrail.report.blocks import Block, Section, Table, Text, absent, interval, percent
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material
from vitrail.train.before_after import MOST_IMAGES

TITLE = "Baselines"


def baselines(facts: RunFacts, material: Material) -> Section:
    """Return the ladder of a run from weights, or the comparison of a pre-training; a line for a run without either."""
    blocks: list[Block] = []
    if facts.ladder is not None:
        blocks += ladder_blocks(facts, facts.ladder)
    if facts.comparison is not None:
        blocks += comparison_blocks(facts.comparison)
    if blocks:
        return Section("baselines", TITLE, blocks)
    return absent("baselines", TITLE, "the run started from random weights, whose frozen features are no baseline")


def ladder_blocks(facts: RunFacts, ladder: Mapping[str, Any]) -> list[Block]:
    """Return the accuracy of k-NN and the linear probe beside that of the trained model, and the advice given before."""
    split, rows = facts.evaluation.split, []
    for name, words in (("knn", "k-NN on frozen features"), ("probe", "linear probe on frozen features")):
        for where, measured in ((where, ladder.get(name, {}).get(where)) for where in ("val", "test")):
            if measured and measured.get("count"):
                rows.append(accuracy_row(words, where, Accuracy.from_dict(measured)))
    if facts.classified is not None:
        hits = round(facts.classified.top1 * facts.classified.count)
        rows.append(accuracy_row("trained model", split, Accuracy(hits, facts.classified.count)))
    table = Table("Before and after training", ["model", "images", "number", "accuracy", "95 % interval"], rows, ("images",))
    why = str(ladder.get("advice", {}).get("why", ""))
    return [table, *([Text(f"Recommendation before training: {why}.")] if why else [])]


def accuracy_row(name: str, split: str, accuracy: Accuracy) -> list[str]:
    """Return the row of one model on one split."""
    return [name, split, f"{accuracy.count:,}", percent(accuracy.value), interval(accuracy.interval)]


def comparison_blocks(comparison: Mapping[str, Any]) -> list[Block]:
    """Return the scores of frozen features before and after pre-training."""
    rows = []
    for way, words in (("knn", "k-NN"), ("probe", "linear probe")):
        if way in comparison["end"] and way in comparison["start"]:
            start, end = (Accuracy.from_dict(comparison[side][way]) for side in ("start", "end"))
            difference = comparison["differences"][way]
            rows.append(
                [
                    words,
                    percent(start.value),
                    percent(end.value),
                    f"{100 * difference['difference']:+.1f} points",
                    " to ".join(f"{100 * bound:+.1f}" for bound in difference["interval"]),
                ]
            )
    for key, words, form in (("effective_rank", "effective rank", ".1f"), ("uniformity", "uniformity", ".2f")):
        start, end = comparison["start"].get(key), comparison["end"].get(key)
        if start is not None and end is not None:
            rows.append([words, format(start, form), format(end, form), f"{end - start:+{form}}", ""])
    columns = ["frozen features", f"from {comparison['start_weights']}", "pre-trained", "difference", "95 % interval"]
    name = f"On {comparison['end']['images']:,} images of {comparison['split']}"
    blocks: list[Block] = [Table(name, columns, rows), Text(f"{str(comparison['verdict']).capitalize()}.")]
    if "knn" in comparison["end"]:
        few, many = f"{MOST_IMAGES:,}", f"{KNOWN_IMAGES:,}"
        why = f"Neighbours are sought among {few} training images at most here, and among {many} in the summary and the curves"
        blocks.append(Text(f"{why}, so that the same weights may have another k-NN accuracy there."))
    return blocks
