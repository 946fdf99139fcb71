"""`vitrail report`, and the page at the end of other commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from command_line import TINY, Typed


def test_report_makes_the_page_again(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    assert (run / "report.html").is_file(), "training has written one"
    said = vitrail("report", run, "--out", tmp_path / "page.html", "--device", "cpu")
    assert said == (0, f"Written: {tmp_path / 'page.html'}\n", "")
    assert "first run: report" in (tmp_path / "page.html").read_text()


def test_the_card_is_that_of_the_hub(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    said = vitrail("report", run, "--card", tmp_path / "README.md")
    assert said.code == 0
    text = (tmp_path / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    scores = json.loads((run / "evaluation.json").read_text())
    metrics = {each["type"]: each["value"] for each in head["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {"accuracy": round(scores["top1"], 4), "f1": round(scores["macro_f1"], 4)}
    assert "| macro F1 |" in text
    said = vitrail("report", run, "--card", tmp_path / "x.md", "--images", tmp_path)
    assert said.code == 2
    assert "leave --out and --images out" in said.err


def test_what_is_no_run_is_refused(vitrail: Typed, tmp_path: Path) -> None:
    said = vitrail("report", tmp_path / "nothing")
    assert said.code == 2
    assert "does not exist" in said.err


def test_evaluate_writes_the_page_beside_its_scores(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "report.html").unlink()
    assert f"report: {copy / 'report.html'}" in vitrail("evaluate", copy).out
    other = copy / "evaluation-fashion-sample-val"
    assert f"report: {other / 'report.html'}" in vitrail("evaluate", copy, "fashion-sample", "--split", "val").out
    assert "of the val split" in (other / "report.html").read_text()
    said = vitrail("evaluate", copy, "--no-report", "--out", tmp_path / "scores")
    assert "report:" not in said.out
    assert not (tmp_path / "scores" / "report.html").exists()


def test_training_can_leave_it_out_and_never_fails_for_it(
    vitrail: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = vitrail("train", "fashion-sample", "--out", tmp_path / "without", "--no-report", *TINY)
    assert said.code == 0, said.err
    assert "report" not in said.out
    assert not (tmp_path / "without" / "report.html").exists()

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no room")

    monkeypatch.setattr("vitrail.report.write.render_page", fail)
    said = vitrail("train", "fashion-sample", "--out", tmp_path / "failed", *TINY)
    assert said.code == 0, said.err
    assert "note: there is no report (RuntimeError: no room)" in said.out
