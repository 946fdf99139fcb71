"""Calibration: confidence beside accuracy, the errors of probabilities, and the temperature of the card."""

from __future__ import annotations

from vitrail.evaluate.trust import Trust
from vitrail.report.blocks import Beside, Chart, Charts, Pairs, Section, Text, absent, percent
from vitrail.report.charts import reliability_diagram
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material

TITLE = "Calibration"


def calibration(facts: RunFacts, material: Material) -> Section:
    """Return the reliability diagram and its figures; a line where they were not measured."""
    scored = facts.classified
    if scored is None or scored.trust is None:
        return absent("calibration", TITLE, "calibration is measured for images with one class each")
    trust = scored.trust
    before = "" if trust.temperature == 1 else f" ({percent(trust.error_before)} without the temperature)"
    figures = Pairs(
        [
            ("calibration error (ECE)", f"{percent(trust.error)}{before}"),
            ("log-likelihood (NLL)", f"{trust.nll:.3f} nats, less is better"),
            ("Brier score", f"{trust.brier:.3f}, from 0, the best, to 2"),
            ("temperature", temperature_words(trust, images=facts.calibration_images)),
        ]
    )
    off = max(trust.bins, key=lambda each: abs(each.accuracy - each.confidence))
    label = (
        f"Reliability diagram with {len(trust.bins)} bins of equally many images; the largest distance is at confidence "
        f"{percent(off.confidence)}, where {percent(off.accuracy)} are right"
    )
    chart = Charts([Chart("Reliability", reliability_diagram(trust.bins, label=label))])
    note = Text(
        f"Each of the {len(trust.bins)} points is equally many images of like confidence, with a 95 % interval. On the dashed "
        "line, answers of 80 % confidence are right in 80 of 100 cases; below it the model is too sure. The calibration error "
        "is the mean distance from the line.",
        quiet=True,
    )
    return Section("calibration", TITLE, [Beside([chart], [figures, note])])


def temperature_words(trust: Trust, *, images: int) -> str:
    """Return the temperature, and what it was fitted to."""
    if not images:
        return "1: there were no validation images to fit one to"
    if trust.temperature == 1:
        return f"1: none made the probabilities of {images:,} validation images better"
    return f"{trust.temperature:.3f}, fitted to {images:,} validation images"
