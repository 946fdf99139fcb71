"""Robustness: corruptions at five severities and sweeps, where they were measured."""

from __future__ import annotations

from statistics import fmean

from vitrail.evaluate.robustness import Robustness
from vitrail.report.blocks import Beside, Block, Chart, Charts, Section, Table, Text, absent, interval, percent
from vitrail.report.charts import Axis, IntervalRow, Series, interval_chart, line_chart
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material

TITLE = "Robustness"
UNITS = {"rotation": "degrees", "scale": "factor", "jpeg": "quality", "input size": "factor"}
"""Axis of each sweep."""


def corruptions(facts: RunFacts, material: Material) -> Section:
    """Return what corruptions and sweeps cost; a line where they were not measured."""
    found = facts.robustness
    if found is None or not (found.corruptions or found.sweeps):
        reason = "accuracy on changed images was not measured (`vitrail evaluate RUN --robustness`)"
        if facts.classified is None:
            reason = "robustness is the accuracy on images with one class each"
        return absent("robustness", TITLE, reason)
    notes = [Text(f"Not measured: {note}.", quiet=True) for note in found.notes]
    return Section("robustness", TITLE, [*corruption_blocks(found), *sweep_blocks(found), *notes])


def corruption_blocks(found: Robustness) -> list[Block]:
    """Return a chart of the mean accuracy under each corruption, and a table of its severities."""
    words = Text(
        f"On {found.images:,} of the {found.split_images:,} {found.split} images: accuracy is {percent(found.clean.value)} on "
        f"the images as they are. Over {len(found.corruptions)} corruptions at every severity (Hendrycks & Dietterich 2019), "
        f"the mean error is {percent(found.mean_corruption_error.value)} (95 % interval "
        f"{interval(found.mean_corruption_error.interval)})."
    )
    order = sorted((name for name in found.corruptions if found.corruptions[name]), key=lambda name: -found.loss(name))
    if not order:
        return []
    rows, table_rows = [], []
    severities = sorted({each.value for name in order for each in found.corruptions[name]})
    for name in order:
        accuracies = {each.value: each.accuracy.value for each in found.corruptions[name]}
        middle, shown = fmean(accuracies.values()), name.replace("_", " ")
        rows.append(IntervalRow(shown, middle, (min(accuracies.values()), max(accuracies.values())), percent(middle)))
        table_rows.append([shown, *(percent(accuracies[at]) if at in accuracies else "–" for at in severities)])
    axis = Axis("accuracy: mean and range of the severities", (0.0, 1.0), share=True)
    label = f"Mean accuracy under each corruption: {order[0]} costs most, {order[-1]} least"
    chart = Chart("Corruptions", interval_chart(rows, reference=found.clean.value, axis=axis, label=label))
    table = Table("Accuracy by severity", ["corruption", *(f"{at:g}" for at in severities)], table_rows)
    return [words, Beside([Charts([chart])], [table])]


def sweep_blocks(found: Robustness) -> list[Block]:
    """Return a chart of each sweep, with intervals."""
    charts = []
    for name, measured in found.sweeps.items():
        values = [(each.value, each.accuracy.value) for each in measured]
        series = Series(name, values, [each.accuracy.interval for each in measured], marks=True)
        words = ", ".join(f"{percent(accuracy)} at {value:g}" for value, accuracy in values)
        axis = Axis(UNITS.get(name, name))
        drawing = line_chart([series], x=axis, y=Axis("accuracy", share=True), label=f"Accuracy by {name}: {words}")
        if drawing:
            charts.append(Chart({"jpeg": "JPEG"}.get(name, name.capitalize()), drawing))
    return [Charts(charts)] if charts else []
