"""What to do next, by the rules of `report.rules`."""

from __future__ import annotations

from vitrail.report.blocks import Findings, Section, Text
from vitrail.report.facts import RunFacts
from vitrail.report.indicators import compute_indicators
from vitrail.report.material import Material
from vitrail.report.rules import RULES, advise

TITLE = "What to do next"


def next_steps(facts: RunFacts, material: Material) -> Section:
    """Return findings and advice; a line where no rule applies."""
    found = advise(compute_indicators(facts))
    note = f"Each of {len(RULES)} rules looks at a number of this run and has a limit; these are advice, and no verdict."
    if not found:
        return Section(
            "next", "What to do next", [Text("Nothing stands out: no rule applies to this run."), Text(note, quiet=True)]
        )
    rows = [(each.finding, each.advice) for each in found]
    return Section("next", TITLE, [Findings(rows), Text(note, quiet=True)])
