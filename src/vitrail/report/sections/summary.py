"""Summary: what was trained, its main figures, and why a run ended before its time."""

from __future__ import annotations

from collections.abc import Iterator

from vitrail.evaluate.embedding import EmbeddingScores
from vitrail.evaluate.metrics import SHARE, Evaluation
from vitrail.evaluate.multilabel import MultiLabelEvaluation
from vitrail.report.blocks import Block, Section, Text, Tile, Tiles, counted, interval, percent
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material
from vitrail.settings.families import family_of_config
from vitrail.text import one_line


def summary(facts: RunFacts, material: Material) -> Section:
    """Return the summary."""
    blocks: list[Block] = [Text(sentence(facts)), Tiles(list(tiles(facts)))]
    stopped = facts.evaluation.stopped
    if stopped is not None:
        at = stopped.get("model_step")
        kept = f"; the model is that of step {at:,}" if isinstance(at, int) else ""
        blocks.append(Text(f"Training was stopped before its end, by the guard: {stopped.get('cause')}{kept}."))
    return Section("summary", "Summary", blocks)


def sentence(facts: RunFacts) -> str:
    """Return what the model is and how it does, in two sentences."""
    name, *_ = family_of_config(facts.info.config).words(facts.info.config)
    size = f" ({in_millions(facts.provenance.parameters)} parameters)" if facts.provenance.parameters else ""
    classes = f", {counted(len(facts.info.classes), 'class', 'es')}" if facts.info.classes else " without labels"
    trained = f"{name}{size}, trained on {one_line(facts.data)}{classes}."
    on = f"{counted(facts.scores.count, 'image')} of the {facts.evaluation.split} split of {one_line(facts.evaluation.data)}"
    headline = facts.scores.headline
    if facts.scores.unit != SHARE:
        low, high = headline.interval
        words = headline.name.replace("_", " ")
        return f"{trained} Its {words} is {headline.value:.1f} (95 % interval {low:.1f} to {high:.1f}) on {on}."
    share = f"{percent(headline.value)} (95 % interval {interval(headline.interval)})"
    if headline.name == "mAP":
        return f"{trained} Its mean average precision is {share} on {on}."
    who = "It is" if headline.name == "accuracy" else "The neighbours of its embedding are"
    return f"{trained} {who} right on {share} of {on}."


def tiles(facts: RunFacts) -> Iterator[Tile]:
    """Yield the main figures of any task."""
    scores = facts.scores
    if isinstance(scores, Evaluation):
        yield Tile("Accuracy", percent(scores.top1), interval(scores.top1_interval))
        if len(scores.classes) > 5:
            yield Tile("Top-5 accuracy", percent(scores.top5), interval(scores.top5_interval))
        yield Tile("Macro F1", percent(scores.macro_f1), interval(scores.macro_f1_interval))
        if scores.trust is not None:
            yield Tile("Calibration error", percent(scores.trust.error), "confidence against accuracy")
            best = scores.trust.selective[-1]
            yield Tile(
                f"Answered at {percent(best.target, 0)} precision", percent(best.share, 0), "the most confident predictions"
            )
    elif isinstance(scores, MultiLabelEvaluation):
        yield Tile("Mean average precision", percent(scores.mean_ap), interval(scores.mean_ap_interval))
        yield Tile("F1 of all labels", percent(scores.f1), interval(scores.f1_interval))
    elif isinstance(scores, EmbeddingScores):
        if scores.knn is not None:
            yield Tile("k-NN accuracy", percent(scores.knn.value), interval(scores.knn.interval))
        low, high = scores.effective_rank_interval
        yield Tile("Effective rank", f"{scores.effective_rank:.1f}", f"{low:.1f} to {high:.1f}, of {scores.width} dimensions")
        if scores.uniformity is not None:
            low, high = scores.uniformity.interval
            yield Tile("Uniformity", f"{scores.uniformity.value:.2f}", f"{low:.2f} to {high:.2f}, lower is more even")


def in_millions(count: int) -> str:
    """Format a number of parameters: 155 k, 5.7 M, 1.1 G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count}"
