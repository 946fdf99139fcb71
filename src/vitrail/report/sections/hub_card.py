"""The model card in the format of the Hugging Face Hub, to read and to save."""

from __future__ import annotations

from vitrail.report.blocks import Code, Download, Fold, Section, Text
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material


def hub_card(facts: RunFacts, material: Material) -> Section:
    """Return the card, folded, with a link that saves it."""
    return Section(
        "card",
        "Model card",
        [
            Text("The same facts as README.md for the Hugging Face Hub; `vitrail push` uploads it with the weights."),
            Download("README.md", "Save the card as README.md", facts.card),
            Fold("Show the card", [Code(facts.card, "text of the model card")]),
        ],
    )
