"""Images unlike those of training: the energy of the logits and its threshold."""

from __future__ import annotations

from vitrail.report.blocks import Beside, Block, Chart, Charts, Section, Text, absent, interval, percent
from vitrail.report.charts import Axis, histogram
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material

TITLE = "Out of distribution"


def outliers(facts: RunFacts, material: Material) -> Section:
    """Return the share that is marked and the histogram; a line for a model without a threshold."""
    scored = facts.classified
    if scored is None or scored.trust is None or scored.trust.outliers is None:
        reason = "the threshold is fitted to validation images with one class each, and this model has none"
        return absent("outliers", TITLE, reason)
    marked = scored.trust.outliers
    threshold = float((facts.config.get("calibration") or {}).get("outlier_energy") or 0.0)
    words = [
        Text(
            f"{percent(marked.value)} of the {facts.evaluation.split} images (95 % interval {interval(marked.interval)}) are "
            "marked as unlike those of training. Of the validation images, one in twenty is, by the choice of the threshold."
        ),
        Text(
            f"An image is marked where the energy of its logits is above {threshold:.2f} (Liu et al. 2020): the dashed line. "
            "`vitrail predict` marks images by it. A mark is a reason to look, and no verdict.",
            quiet=True,
        ),
    ]
    if scored.predictions is None:
        return Section("outliers", TITLE, words)
    label = f"Histogram of the energy of {len(scored.predictions):,} images; {percent(marked.value)} are above {threshold:.2f}"
    axis = Axis("energy: higher is less like training")
    drawing = histogram(scored.predictions.energy.tolist(), threshold=threshold, axis=axis, label=label)
    chart = Chart("Energy of the images", drawing)
    left: list[Block] = [Charts([chart])]
    return Section("outliers", TITLE, [Beside(left, words)])
