"""Training: data, model, settings with their reasons, machine and time, and the curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitrail.report.blocks import Block, Chart, Charts, Fold, Pairs, Points, Section, Text, counted, percent
from vitrail.report.charts import Axis, Series, line_chart
from vitrail.report.facts import RunFacts, without_paths
from vitrail.report.material import Material
from vitrail.settings.families import family_of_config
from vitrail.text import one_line
from vitrail.weights.model_card import without_places
from vitrail.weights.run_log import points

SCORES: tuple[tuple[str, Mapping[str, str], bool], ...] = (
    ("Accuracy", {"accuracy": "training, augmented", "val_top1": "validation"}, True),
    ("Label accuracy", {"binary_accuracy": "training, augmented"}, True),
    ("Mean average precision", {"val_map": "validation"}, True),
    ("k-NN accuracy", {"val_knn_accuracy": "validation", "check_knn_accuracy": "check"}, True),
    ("Effective rank", {"val_effective_rank": "validation", "check_effective_rank": "check"}, False),
    ("Uniformity", {"val_uniformity": "validation", "check_uniformity": "check"}, False),
    ("Output dimensions in use", {"check_spread": "check"}, True),
    ("Prototypes in use", {"check_prototypes": "check"}, False),
)
"""Charts of scores: title, names in the log with their words, and whether they are shares."""


def training(facts: RunFacts, material: Material) -> Section:
    """Return what was trained on what, how, where, for how long, and how it went."""
    blocks: list[Block] = [Pairs([*data_rows(facts), *model_rows(facts), *machine_rows(facts)])]
    charts = curves(facts)
    blocks.append(Charts(charts) if charts else Text("Not shown: the run has no log, so there are no curves.", quiet=True))
    if facts.provenance.notes:
        blocks.append(Fold("Choices and their reasons", [Points([without_paths(line) for line in facts.provenance.notes])]))
    asked = [(f"{section}.{key}", setting(value)) for section, fields in facts.asked.items() for key, value in fields.items()]
    chosen = [("recipe", facts.recipe)] if facts.recipe else []
    if asked or chosen:
        blocks.append(Fold("Settings of the command line", [Pairs([*chosen, *asked])]))
    blocks.append(Fold("All settings", [Pairs(all_settings(facts))]))
    return Section("training", "Training", blocks)


def data_rows(facts: RunFacts) -> list[tuple[str, str]]:
    """Return the data set with its splits, and the size of its classes."""
    provenance, rows = facts.provenance, [("data", one_line(facts.data))]
    if provenance.images:
        rows.append(("images", ", ".join(f"{count:,} {name}" for name, count in provenance.images.items())))
    if counts := [count for count in provenance.class_counts if count]:
        least, most = min(counts), max(counts)
        sizes = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        rows.append(("classes", f"{len(provenance.class_counts):,}, with {sizes} training images each"))
    if facts.skipped:
        rows.append(("left out", f"{counted(facts.skipped, 'file')} that could not be read (skipped.txt)"))
    return rows


def model_rows(facts: RunFacts) -> list[tuple[str, str]]:
    """Return the model, its images, and where its weights come from."""
    name, what, shape, *_ = family_of_config(facts.info.config).words(facts.info.config)
    height, width = facts.info.preprocessing.img_size
    parameters = f", {facts.provenance.parameters:,} parameters" if facts.provenance.parameters else ""
    rows = [
        ("model", f"{name}, a {what}: {shape}{parameters}"),
        ("input", f"{height}x{width} px, {counted(facts.info.preprocessing.in_channels, 'channel')}"),
    ]
    receipt = facts.config.get("receipt")
    if receipt:
        licence = receipt.get("licence") or "not stated"
        rows.append(("weights from", f"{receipt['origin']} · {without_places(receipt['file'])}, licence {licence}"))
    else:
        rows.append(("weights from", "random initialisation"))
    return rows


def machine_rows(facts: RunFacts) -> list[tuple[str, str]]:
    """Return optimizer, length, device and time."""
    optim, train, provenance = facts.settings.optim, facts.settings.train, facts.provenance
    rows = [
        ("task", train.task),
        ("optimizer", f"{optim.name}, learning rate {optim.lr:g} at batch 1024, weight decay {optim.weight_decay:g}"),
        ("batch", f"{train.batch_size:,} images, {train.precision}"),
    ]
    last = facts.records[-1] if facts.records else {}
    steps, seconds = provenance.steps or last.get("step", 0), provenance.seconds or last.get("seconds", 0.0)
    if steps:
        images = provenance.images.get("train", 0)
        passes = f", {steps * train.batch_size / images:.1f} passes over the training images" if images else ""
        rows.append(("length", f"{steps:,} steps in {duration(seconds)}{passes}"))
    if provenance.starts:
        start = provenance.starts[-1]
        cores = f" ({counted(start.cores, 'core')})" if start.device == start.cpu else ""
        together = f", {start.processes} processes" if start.processes > 1 else ""
        rows.append(("machine", f"{start.device}{cores}{together}"))
        rows.append(("finished", f"{(provenance.ended or start.at).replace('T', ' ')[:16]} UTC"))
    return rows


def curves(facts: RunFacts) -> list[Chart]:
    """Return charts of loss, scores and learning rate over the steps."""
    steps, charts = Axis("step", whole=True), []
    loss = {"loss": "training, augmented", "val_nll": "validation", "val_bce": "validation"}
    shown = [Series(words, points(facts.records, name), marks=name != "loss") for name, words in loss.items()]
    if drawing := line_chart(shown, x=steps, y=Axis("loss"), label=ends("Loss", shown)):
        charts.append(Chart("Loss", drawing))
    for title, names, share in SCORES:
        series = [Series(words, points(facts.records, name), marks="_" in name) for name, words in names.items()]
        y = Axis(title.lower(), share=share)
        if drawing := line_chart(series, x=steps, y=y, label=ends(title, series, share=share)):
            charts.append(Chart(title, drawing))
    rate = [Series("learning rate", points(facts.records, "lr"))]
    if drawing := line_chart(rate, x=steps, y=Axis("learning rate"), label=ends("Learning rate", rate)):
        charts.append(Chart("Learning rate", drawing))
    return charts


def ends(title: str, series: list[Series], *, share: bool = False) -> str:
    """Return the text alternative of curves: where each starts and ends."""
    words = []
    for each in series:
        if each.points:
            (first, start), (last, end) = each.points[0], each.points[-1]
            low, high = (percent(start), percent(end)) if share else (f"{start:.4g}", f"{end:.4g}")
            words.append(f"{each.name} from {low} at step {first:,.0f} to {high} at step {last:,.0f}")
    return f"{title} over the steps: {'; '.join(words)}"


def all_settings(facts: RunFacts) -> list[tuple[str, str]]:
    """Return every setting that differs from its section's default, or is of the model, data, optimizer or length."""
    always, rows = ("model", "data", "augment", "optim", "train"), []
    for section, values in vars(facts.settings).items():
        for field in fields(values):
            value = getattr(values, field.name)
            if section in always or value != field.default:
                rows.append((f"{section}.{field.name}", setting(value)))
    return rows


def setting(value: Any) -> str:
    """Write a setting as the command line takes it, without places of this machine."""
    if isinstance(value, tuple | list):
        return ", ".join(setting(each) for each in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else one_line(without_places(value))


def duration(seconds: float) -> str:
    """Format seconds: 43 s, 5 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
