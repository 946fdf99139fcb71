"""Robustness: corruptions at five severities and sweeps, where they were measured."""

from __future__ import annotations

from statistics import fmean

from vitrail.report.blocks import Block, Chart, Charts, Section, Table, Text, absent, percent
from vitrail.report.charts import Axis, IntervalRow, Series, interval_chart, line_chart
from vitrail.report.facts import Facts
from vitrail.report.material import Material
from vitrail.report.robustness import Robustness

TITLE = "Robustness"


def corruptions(facts: Facts, material: Material) -> Section:
    """Return what corruptions and sweeps cost; a line where they were not measured."""
    found = facts.robustness
    if found is None or not (found.corruptions or found.sweeps):
        return absent("robustness", TITLE, "accuracy on changed images was not measured")
    return Section("robustness", TITLE, [*corruption_blocks(found), *sweep_blocks(found)])


def corruption_blocks(found: Robustness) -> list[Block]:
    """Return a chart of the mean accuracy under each corruption, and a table of its severities."""
    if not found.corruptions or found.mean is None:
        return []
    order = sorted(found.corruptions, key=lambda name: -found.loss(name))
    rows = []
    for name in order:
        measured = found.corruptions[name]
        accuracies = [each.accuracy for each in measured]
        middle, reach = fmean(accuracies), (min(accuracies), max(accuracies))
        rows.append(IntervalRow(name.replace("_", " "), middle, reach, percent(middle)))
    words = Text(
        f"Accuracy is {percent(found.clean)} on the images as they are, and {percent(found.mean)} on average over "
        f"{len(order)} corruptions at every severity (Hendrycks & Dietterich 2019)."
    )
    axis = Axis("accuracy: mean and range of the severities", (0.0, 1.0), share=True)
    label = f"Mean accuracy under each corruption: {order[0]} costs most, {order[-1]} least"
    chart = Chart("Corruptions", interval_chart(rows, reference=found.clean, axis=axis, label=label))
    severities = sorted({each.at for measured in found.corruptions.values() for each in measured})
    table_rows = []
    for name in order:
        by_severity = {each.at: each.accuracy for each in found.corruptions[name]}
        cells = [percent(by_severity[at]) if at in by_severity else "–" for at in severities]
        table_rows.append([name.replace("_", " "), *cells])
    table = Table("Accuracy by severity", ["corruption", *(f"{at:g}" for at in severities)], table_rows)
    return [words, Charts([chart], wide=True), table]


def sweep_blocks(found: Robustness) -> list[Block]:
    """Return a chart of each sweep, with intervals."""
    charts = []
    for name, measured in found.sweeps.items():
        series = Series(name, [(each.at, each.accuracy) for each in measured], [each.interval for each in measured], marks=True)
        words = ", ".join(f"{percent(each.accuracy)} at {each.at:g}" for each in measured)
        drawing = line_chart([series], x=Axis(name), y=Axis("accuracy", share=True), label=f"Accuracy by {name}: {words}")
        charts.append(Chart(name.capitalize(), drawing))
    return [Charts(charts)] if charts else []
