"""Findings of `vitrail check` in the data set of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.check.finding import KINDS
from vitrail.report.blocks import Block, Fold, Points, Section, Table, Text, absent
from vitrail.report.facts import RunFacts, without_paths
from vitrail.report.material import Material

TITLE = "Check of the data"
_SHOWN = 3  # examples of a kind


def data_check(facts: RunFacts, material: Material) -> Section:
    """Return how often each kind of fault was found, with examples; the reason where the data was not checked."""
    checked = facts.checked
    if checked is None:
        reason = "the data was not checked; `vitrail check DATA --weights RUN` leaves its findings in the run"
        return absent("data-check", TITLE, reason)
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for finding in checked.get("findings", []):
        by_kind.setdefault(str(finding["finding"]), []).append(finding)
    images = f"{int(checked.get('images', 0)):,} images"
    if not by_kind:
        return Section("data-check", TITLE, [Text(f"`vitrail check` found nothing in {images}.")])
    rows = []
    for kind, findings in by_kind.items():
        files = {path for finding in findings for path in finding["paths"]}
        rows.append(
            [kind, f"{len(findings):,}", f"{len(files):,}" if files else "", KINDS[kind].suggestion if kind in KINDS else ""]
        )
    blocks: list[Block] = [
        Text(f"`vitrail check` looked through {images}. A finding is a reason to look, and no verdict."),
        Table("Findings", ["finding", "number", "files", "what to do"], rows, words=["what to do"]),
    ]
    examples = [example(one) for findings in by_kind.values() for one in findings[:_SHOWN]]
    blocks.append(Fold("Examples", [Points(examples)]))
    return Section("data-check", TITLE, blocks)


def example(finding: Mapping[str, Any]) -> str:
    """Write one finding: its first file, and the evidence."""
    where = f"{finding['paths'][0]}: " if finding["paths"] and finding["paths"][0] not in finding["evidence"] else ""
    return without_paths(f"{finding['finding']}: {where}{finding['evidence']}")
