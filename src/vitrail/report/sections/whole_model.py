"""The model as a whole: how far each head of each layer looks."""

from __future__ import annotations

from vitrail.report.blocks import Chart, Charts, Points, Section, Text, absent, counted
from vitrail.report.charts import Axis, layer_chart
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material

TITLE = "Attention of layers and heads"


def whole_model(facts: RunFacts, material: Material) -> Section:
    """Return the attention distances; a line for a model without global attention."""
    found = material.statistics
    if found is None:
        return absent("model", TITLE, material.no_statistics or "the layers were not measured")
    heads = (found.distance / found.side).tolist()
    means = [sum(row) / len(row) for row in heads]
    even = found.even_distance / found.side
    label = (
        f"Mean attention distance of each head in patches: {means[0]:.1f} in the first layer, {means[-1]:.1f} in the last; "
        f"a head that attends to all patches alike has {even:.1f}"
    )
    chart = Chart(
        "Attention distance in patches",
        layer_chart(heads, reference=even, axis=Axis("patches"), label=label),
        "A circle is a head, the line the mean of a layer; dashed, a head that attends to all patches alike.",
    )
    entropy = Chart(
        "Attention entropy in bits",
        layer_chart(
            found.entropy.tolist(),
            reference=found.even_entropy,
            axis=Axis("bits"),
            label=f"Entropy of the attention of each head in bits: at most {found.even_entropy:.1f}",
        ),
        "Bits of a row of attention: low where a head attends to few patches.",
    )
    sentences = [f"{line[0].upper()}{line[1:]}." for line in found.early_and_late().sentences] if len(heads) > 1 else []
    note = Text(f"Measured on {counted(found.images, 'image')} (docs/explain.md).", quiet=True)
    return Section("model", TITLE, [Charts([chart, entropy]), Points(sentences), note])
