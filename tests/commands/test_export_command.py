"""`vitrail export` as typed: a run, its contract as a table and as JSON, and prediction with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cases import ImageFolder
from command_line import TINY, Typed


@pytest.fixture
def run(image_folder: ImageFolder, tmp_path: Path, vitrail: Typed) -> Path:
    """A run of two classes, with validation images."""
    photos = image_folder({"train": {"cat": 8, "dog": 8}, "val": {"cat": 3, "dog": 3}})
    words = ("--model", "Ti/16", "--model.img_size=32", *TINY, "--data.workers=0", "--no-report")
    assert vitrail("train", photos, "--out", tmp_path / "run", *words).code == 0
    return tmp_path / "run"


def test_a_run_is_exported_and_used(run: Path, tmp_path: Path, vitrail: Typed) -> None:
    said = vitrail("export", run, "--to", "torch")
    assert said.code == 0, said.err
    assert said.out.startswith("torch, on 6 images of photos, val\n")
    for words in ("largest difference", "same class", "100.0 %", "latency of 1 image", "images/s at batch 32", "Written: "):
        assert words in said.out
    folder = tmp_path / "run-torch"
    photo = tmp_path / "photos" / "val" / "cat" / "0.jpg"
    ours, theirs = (json.loads(vitrail("predict", model, photo, "--json").out)[0] for model in (run, folder))
    assert ours["label"] == theirs["label"]
    assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    assert vitrail("evaluate", folder, tmp_path / "photos").code == 2
    again = vitrail("export", run, "--to", "torch")
    assert (again.code, again.out) == (2, "")
    assert "is not empty; give another folder with --out" in again.err
    as_json = vitrail(
        "export", run, "--to", "torch", "--out", tmp_path / "other", "--dynamic", "size", "--json", "--count", "2"
    )
    contract = json.loads(as_json.out)
    assert (contract["format"], contract["images"], contract["limits"]["agreement"]) == ("torch", 2, 1.0)


def test_mistakes_are_one_line(run: Path, tmp_path: Path, vitrail: Typed) -> None:
    for words, error in (
        (("--to", "onxx"), 'format "onxx" is none of'),
        ((), "the following arguments are required: --to"),
        (("--to", "web", "--dynamic", "size"), "--dynamic size is for normalised images"),
        (("--to", "onnx", "--runtime", "x"), "--runtime x is for a web page"),
        (("--to", "onnx", "--images", "nowhere"), 'data "nowhere" is neither a folder nor'),
    ):
        said = vitrail("export", run, *words)
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1), said.err
        assert error in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "run"]
