"""Reports of real runs: of every kind of task, with and without images, within their size, and never in the way."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_page import Page

import vitrail
from vitrail.evaluate import read_evaluation, save_evaluation
from vitrail.evaluate.metrics import judge, summarise
from vitrail.evaluate.predictions import rank_predictions
from vitrail.evaluate.robustness import Robustness
from vitrail.evaluate.trust import measure_trust
from vitrail.report import try_report, write_report
from vitrail.report.facts import gather_facts
from vitrail.report.material import collect_material
from vitrail.report.page import SECTIONS

MODEL = {"name": "Ti/16", "img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}
SHORT = {"steps": 2, "batch_size": 8}


def page_of(path: Path) -> Page:
    """Return a page that loads nothing and obeys no name."""
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert not page.all("script")
    assert not page.all("link")
    places = [attributes.get(key) or "" for _, attributes in page.elements for key in ("src", "href")]
    assert all(place.startswith(("data:", "#")) or not place for place in places)
    assert "http-equiv" in html
    assert len(html.encode()) < 5_000_000
    return page


def headings(page: Page) -> list[str]:
    return [str(each["id"]).removesuffix("-title") for each in page.all("h2")]


def test_training_has_written_the_page(run_folder: Path) -> None:
    page = page_of(run_folder / "report.html")
    assert headings(page) == [
        *("summary", "next", "training", "classes", "confusion", "calibration", "selective", "outliers"),
        *("errors", "model", "reproduce", "card", "missing"),
    ]
    text = " ".join(page.text)
    assert "<script>alert(1)<b>" in text, "the name of a class"
    assert "a <run>: report" in text
    facts = gather_facts(run_folder)
    assert facts.info.sha256 in text
    assert f"seed {facts.settings.train.seed}" in " ".join(text.split())
    assert str(run_folder.parent) not in text, "no place of this machine"
    assert str(facts.info.data) not in text
    assert "Robustness" in text
    assert len(page.all("img")) >= 8
    assert all("base64" in str(each["src"]) for each in page.all("img"))


def test_the_page_is_made_again_where_one_asks_for_it(run: Path, tmp_path: Path) -> None:
    (run / "report.html").unlink()
    assert write_report(run) == run / "report.html"
    elsewhere = write_report(run, tmp_path / "new" / "page.html")
    assert page_of(elsewhere).all("img")
    assert [path.name for path in elsewhere.parent.iterdir()] == ["page.html"]


def test_every_section_stands_alone(run: Path) -> None:
    facts = gather_facts(run)
    material = collect_material(facts, device="cpu")
    names = [section(facts, material).name for section in SECTIONS]
    assert len(names) == len(set(names)) == len(SECTIONS)


def test_images_that_moved_are_found_by_their_new_place(run: Path, photos: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    config = json.loads((run / "config.json").read_text())
    config["vitrail"]["data"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    without = page_of(write_report(run))
    assert not without.all("img")
    assert "is neither a folder nor one of" in " ".join(without.text)
    assert page_of(write_report(run, images=str(moved))).all("img")


def test_pictures_of_other_images_are_not_shown(run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 6), ("test", 9)):
        for name in gather_facts(run).info.classes:
            (tmp_path / "other" / split / name).mkdir(parents=True)
            for number in range(count if name < "b" else count // 2):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "other" / split / name / f"{number}.png")
    page = page_of(write_report(run, images=str(tmp_path / "other")))
    assert not page.all("img")
    assert "are not those that were evaluated" in " ".join(page.text)


def test_a_run_of_an_earlier_version_is_evaluated_first(run: Path) -> None:
    for name in ("predictions.npz", "provenance.json", "report.html"):
        (run / name).unlink()
    values = json.loads((run / "evaluation.json").read_text())
    before = values["top1"]
    del values["macro_f1"], values["macro_f1_interval"], values["trust"]
    (run / "evaluation.json").write_text(json.dumps(values))
    page = page_of(write_report(run))
    assert page.all("img")
    assert (run / "predictions.npz").exists()
    found = read_evaluation(run)
    assert found is not None
    assert found.scores.headline.value == before


def test_a_run_without_images_and_answers_has_its_numbers(run: Path) -> None:
    (run / "predictions.npz").unlink()
    config = json.loads((run / "config.json").read_text())
    config["vitrail"]["data"] = "gone"
    (run / "config.json").write_text(json.dumps(config))
    page = page_of(write_report(run))
    assert {"summary", "classes", "confusion", "calibration", "outliers"} <= set(headings(page))
    assert "errors" not in headings(page)


def test_a_training_of_labels_has_a_page(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "train", tmp_path / "labelled")
    with (tmp_path / "labelled" / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "labels", "split"])
        for kind, folder in enumerate(sorted((tmp_path / "labelled").iterdir())):
            for number, path in enumerate(sorted(folder.glob("*.jpg"))):
                table.writerow([f"{folder.name}/{path.name}", f"k{kind};any", "train" if number < 5 else "val"])
    done = vitrail.train(
        tmp_path / "labelled", recipe="from-scratch", out=tmp_path / "run", model=MODEL, train=SHORT, data={"workers": 0}
    )
    page = page_of(write_report(done.folder))
    assert {"summary", "training", "classes", "model"} <= set(headings(page))
    assert not {"confusion", "calibration", "selective", "outliers"} & set(headings(page))
    text = " ".join(" ".join(page.text).split())
    assert "Calibration is measured for images with one class each." in text
    predictions = gather_facts(done.folder).predictions
    assert predictions is not None
    assert len(predictions) == 6


def test_a_training_without_labels_has_a_page(photos: Path, tmp_path: Path) -> None:
    done = vitrail.pretrain(
        photos,
        out=tmp_path / "run",
        method="mae",
        model=MODEL,
        mae={"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2},
        train=SHORT,
        data={"workers": 0},
    )
    page = page_of(write_report(done.folder))
    assert headings(page)[:4] == ["summary", "next", "training", "baselines"]
    text = " ".join(" ".join(page.text).split())
    assert "linear probe" in text
    assert "among 2,000 training images at most here, and among 5,000 in the summary" in text
    assert "vitrail pretrain" in text
    assert not page.all("img")


def test_a_model_without_global_attention_has_a_page(photos: Path, tmp_path: Path) -> None:
    shape = {"patch_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    swin = {"name": "swin_t", "img_size": 32, **shape}
    done = vitrail.train(photos, recipe="from-scratch", out=tmp_path / "run", model=swin, train=SHORT, data={"workers": 0})
    page = page_of(write_report(done.folder))
    assert "model" not in headings(page)
    assert "by gradcam" in " ".join(page.text)


def test_a_hundred_classes_stay_within_the_size(run: Path) -> None:
    """Ten thousand predictions to a hundred classes, whose images are not there."""
    generator = torch.Generator().manual_seed(0)
    classes, labels = [f"class <{k}> with a long name" for k in range(100)], torch.arange(100).repeat(100)
    logits = torch.randn(10_000, 100, generator=generator)
    judged = judge(logits, labels)
    predictions = rank_predictions(logits, labels, torch.arange(10_000), predicted=judged.predicted)
    scores = dataclasses.replace(
        summarise(judged, labels, classes=classes), trust=measure_trust(logits, labels), predictions=predictions
    )
    save_evaluation(scores, run, data="many", split="test")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "label_names": classes}))
    page = page_of(write_report(run))
    assert "the 40 lowest of 100 classes" in " ".join(page.text)


def test_a_report_that_fails_is_a_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert try_report(run) == f"report: {run / 'report.html'}"

    def fail(*_: object, **__: object) -> Path:
        raise RuntimeError("out of\npaper")

    monkeypatch.setattr("vitrail.report.write.write_report", fail)
    line = try_report(run)
    assert line == f"note: there is no report (RuntimeError: out of paper); `vitrail report {run}` makes it"


def test_robustness_is_shown_where_it_was_measured(run: Path, robustness: Robustness) -> None:
    robustness.save(run)
    found = {"finding": "blank", "paths": ["<a>.png"], "evidence": "deviation 0", "suggestion": "remove it"}
    (run / "check.json").write_text(json.dumps({"images": 12, "findings": [found, found]}))
    page = page_of(write_report(run))
    text = " ".join(" ".join(page.text).split())
    assert "robustness" in headings(page)
    assert "On 10 of the 12 test images: accuracy is 90.0 % on the images as they are." in text
    assert "motion blur" in text
    assert "Accuracy falls under motion_blur (by up to 30.0 points)." in text
    assert "Not measured: input size 48: <too large>." in text
    assert "data-check" in headings(page)
    assert "looked through 12 images" in text
    assert "blank: <a>.png: deviation 0" in text
    (run / "check.json").write_text(json.dumps({"images": 12, "findings": []}))
    assert "found nothing in 12 images" in " ".join(" ".join(page_of(write_report(run)).text).split())
