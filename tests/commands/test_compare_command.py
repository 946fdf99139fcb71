"""`vitrail compare`, as users type it: a table, JSON, groups of seeds, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vitrail
from command_line import Typed
from vitrail.commands.compare import points_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one recipe, and another recipe."""
    folder, made = tmp_path_factory.mktemp("runs"), []
    for name, seed, depth in (("a0", 0, 1), ("a1", 1, 1), ("b0", 0, 2)):
        model = {"depth": depth, "embed_dim": 16, "num_heads": 2}
        train = {"steps": 2, "batch_size": 16, "seed": seed, "device": "cpu", "eval_every": 0}
        made.append(vitrail.train(out=folder / name, model=model, train=train).folder)
    return made


def test_a_table_of_runs_and_of_groups(vitrail: Typed, runs: list[Path]) -> None:
    said = vitrail("compare", *runs, "--split", "val")
    assert (said.code, said.err) == (0, "")
    for word in ("accuracy", "than the first", "seeds", "needs 2 seeds each"):
        assert word in said.out


def test_json_has_the_same_numbers_as_evaluate(vitrail: Typed, runs: list[Path]) -> None:
    found = json.loads(vitrail("compare", *runs, "--json").out)
    alone = json.loads(vitrail("evaluate", runs[1], "--json").out)
    second = found["runs"][1]
    assert (found["split"], found["images"]) == ("test", 2000)
    assert second["accuracy"]["accuracy"] == alone["top1"]
    paired = second["to_first"]
    first = found["runs"][0]["accuracy"]["correct"]
    assert second["accuracy"]["correct"] - first == paired["only_second"] - paired["only_first"]
    assert [len(group["runs"]) for group in found["groups"]] == [2, 1]
    assert found["groups"][1]["to_first"]["interval"] == [None, None]


def test_a_run_beside_itself_is_the_same(vitrail: Typed, runs: list[Path]) -> None:
    found = json.loads(vitrail("compare", runs[0], runs[0], "--json", "--split", "val").out)
    assert found["runs"][1]["to_first"]["p_value"] == 1
    assert found["runs"][1]["verdict"] == "no difference shown"


def test_mistakes_are_one_line(vitrail: Typed, runs: list[Path], tmp_path: Path) -> None:
    for words, part in (
        ((runs[0],), "name at least two"),
        ((runs[0], tmp_path / "no"), "no"),
        ((runs[0], runs[1], "--split", "tset"), "--split"),
    ):
        said = vitrail("compare", *words)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert part in said.err


def test_points_are_of_a_hundred() -> None:
    assert points_of((-0.0123, 0.04)) == "-1.23 to +4.00"
