"""Commands that reproduce the run, versions, commit, seed, and the sha256 of the weights."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from vitrail.report.blocks import Code, Pairs, Section, Text
from vitrail.report.facts import RunFacts
from vitrail.report.material import Material
from vitrail.settings import layers
from vitrail.text import one_line
from vitrail.weights.model_card import without_places

TITLE = "Reproduction"


def reproduce(facts: RunFacts, material: Material) -> Section:
    """Return commands and versions."""
    provenance = facts.provenance
    rows = []
    if provenance.starts:
        start = provenance.starts[-1]
        commit = f", commit {start.commit}" if start.commit else ""
        rows += [
            ("vitrail", f"{start.vitrail}{commit}"),
            ("torch", start.torch),
            ("Python", start.python),
            ("processor", f"{start.cpu}, {start.cores} cores"),
        ]
        if len(provenance.starts) > 1:
            rows.append(("resumed", f"{len(provenance.starts) - 1} times"))
    rows += [("seed", f"{facts.settings.train.seed}"), ("sha256 of model.safetensors", facts.info.sha256)]
    commands = "\n".join(commands_of(facts))
    note = Text(
        "config.yaml, in the run folder, holds every setting. Folders stand here without their places. A run of minutes takes "
        "as many steps as the machine allows: give --train.steps for the same length.",
        quiet=True,
    )
    return Section("reproduce", TITLE, [Code(commands, "commands"), Pairs(rows), note])


def commands_of(facts: RunFacts) -> list[str]:
    """Return the commands, the run's own first."""
    name = shlex.quote(facts.name)
    train = "train" if facts.supervised else "pretrain"
    return [
        f"vitrail {train} {asked_words(facts)}".strip(),
        f"vitrail {train} --config {name}/config.yaml --out {name}-again   # the same from the settings of the run",
        f"vitrail evaluate {name}",
        f"vitrail report {name}",
    ]


def asked_words(facts: RunFacts) -> str:
    """Return the data and the options of the command line."""
    asked: dict[str, Mapping[str, Any]] = dict(without_places(dict(facts.asked)))
    data = dict(asked.pop("data", {}))
    path = one_line(data.pop("path", ""))
    if data:
        asked = {"data": data, **asked}
    if not facts.supervised:
        train = {key: value for key, value in asked.get("train", {}).items() if key != "task"}
        asked = {**{key: value for key, value in asked.items() if key != "train"}, **({"train": train} if train else {})}
    words = layers.command(facts.recipe or "", asked).strip()
    words = words.removeprefix("--recipe").strip() if not facts.recipe else words
    method = "" if facts.supervised else f"--method {facts.settings.train.task}"
    return " ".join(filter(None, (shlex.quote(path) if path else "", method, words)))
