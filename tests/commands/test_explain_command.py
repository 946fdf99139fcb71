"""`vitrail explain`: pictures and scores of images, statistics of a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import Typed


@pytest.fixture
def explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `explain` puts its pictures."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "explained"


def test_explain_draws_each_image_and_scores_it(vitrail: Typed, run: Path, images: Path, explained: Path) -> None:
    said = vitrail("explain", run, images, "--steps", "3")
    assert said.code == 1
    assert said.err == (
        f"vitrail: {images}/broken.png: not an image, or of a format that is not read "
        "(PNG, JPEG, WebP, AVIF, HEIC, BMP, TIFF, GIF)\n"
        "vitrail: 1 of 4 images could not be read; the others are done\n"
    )
    pictures = sorted(path for path in explained.iterdir() if path.suffix)
    assert [path.name for path in pictures] == [f"{name}-relevance.png" for name in ("a", "b[bold]", "c")]
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 200
    lines = [line.split() for line in said.out.splitlines() if line.lstrip().startswith("a.png")]
    assert len(lines) == 1
    assert "relevance" in lines[0]
    numbers = [float(word.rstrip(",")) for word in lines[0] if re.fullmatch(r"[01]\.\d{3},?", word)]
    assert len(numbers) == 6, "insertion, deletion, both of a random map, and both with shuffled weights"


def test_explain_as_json_in_all_its_ways(vitrail: Typed, run: Path, images: Path, explained: Path) -> None:
    picture = images / "a.png"
    ways: dict[tuple[str, ...], tuple[str, ...]] = {
        (): ("relevance",),
        ("--query", "1"): ("relevance",),
        ("--query", "13,20"): ("relevance",),
        ("--hold-norms", "--method", "gradcam"): ("gradcam",),
        ("--method", "attention", "--layers", "all", "--heads", "all"): ("attention",) * 2,
        ("--method", "attention", "--layers", "-1,0", "--heads", "mean,max", "--query", "3,3"): ("attention",) * 4,
        ("--method", "rollout", "--discard-ratio", "0.5", "--heads", "max"): ("rollout",),
        ("--method", "integrated-gradients"): ("integrated_gradients",),
        ("--method", "similarity", "--query", "13,20", "--grid"): ("similarity",),
        ("--method", "pca", "--img-size", "56x28"): ("pca",),
        ("--compare", "--hold-norms"): ("attention", "rollout", "relevance", "gradcam", "integrated_gradients"),
    }
    for words, methods in ways.items():
        steps = () if {"pca", "similarity"} & set(words) else ("--steps", "2")
        said = vitrail("explain", run, picture, *words, *steps, "--json", "--arrays", "--out", explained / str(len(words)))
        assert said.code == 0, said.err
        rows = json.loads(said.out)
        assert tuple(row["method"] for row in rows) == methods
        for row in rows:
            assert Path(row["file"]).is_file()
            scored = row["method"] not in ("pca", "similarity")
            assert all((row[key] is not None) == scored for key in ("insertion", "random_insertion", "shuffled_insertion"))
            assert ("--hold-norms" in words and row["method"] in ("gradcam", "relevance")) == ("held" in str(row["note"]))
            assert ("--compare" in words) == ("curves" in row)
            assert "curves" not in row or Path(row["curves"]).is_file()
            assert row["class"] in map(str, range(10)) or row["class"] in settings_classes(run)
        arrays = np.load(Path(rows[0]["file"]).with_suffix(".npy"))
        assert arrays.shape[:2] == (len(methods), 1)
        assert np.isfinite(arrays).all()


def settings_classes(run: Path) -> tuple[str, ...]:
    return tuple(json.loads((run / "config.json").read_text())["label_names"])


def test_explain_the_model_as_a_whole(vitrail: Typed, run: Path, images: Path, explained: Path) -> None:
    said = vitrail("explain", run, "--model", "--limit", "5", "--svg")
    assert said.code == 0, said.err
    assert said.out.startswith("On 5 test images of fashion-sample.")
    assert {path.name for path in explained.iterdir() if path.suffix} == {"model.png", "model.svg"}
    said = vitrail("explain", run, images / "a.png", images / "more", "--model", "--json")
    assert json.loads(said.out)["images"] == "2 images"
    said = vitrail("explain", run, images / "broken.png", images / "a.png", "--model", "--json")
    assert (said.code, json.loads(said.out)["images"]) == (1, "1 image")
    assert said.err.endswith("vitrail: 1 of 2 images could not be read; the others are done\n")
    said = vitrail("explain", run, images / "broken.png", "--model")
    assert (said.code, said.out) == (1, "")
    assert said.err.endswith("vitrail: 1 of 1 image could not be read\n")
    said = vitrail("explain", run, images / "a.png", images / "more", "--model", "--json")
    assert len(json.loads(said.out)["layers"]) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["RUN"], "there is no image to explain; name one, or add --model for the model as a whole"),
        (["RUN", "IMAGE", "--method", "relevence"], 'method "relevence" is none of .*; did you mean "relevance"\\?'),
        (
            ["RUN", "IMAGE", "--method", "attention", "--layers", "7"],
            r"layer 7 does not exist; this model has layers 0 to 0 \(or -1 to -1\)",
        ),
        (
            ["RUN", "IMAGE", "--method", "attention", "--heads", "2"],
            'head 2 does not exist; this model has heads 0 to 1, or "mean".*',
        ),
        (
            ["RUN", "IMAGE", "--query", "28,3"],
            "query 28,3 is outside the image of 28x28 px; use x from 0 to 27, y from 0 to 27",
        ),
        (
            ["RUN", "IMAGE", "--query", "-1,5"],
            "query -1,5 is outside the image of 28x28 px; use x from 0 to 27, y from 0 to 27",
        ),
        (
            ["RUN", "IMAGE", "--method", "pca", "--steps", "5"],
            "--steps has no effect with --method pca, which has no scores; leave it out",
        ),
        (["RUN", "IMAGE", "--query", "walrus"], 'class "walrus" is none of this model\'s; .*'),
        (
            ["RUN", "IMAGE", "--layers", "0", "--method", "rollout"],
            "rollout goes through all layers; leave the layers out, or use .*",
        ),
        (["RUN", "IMAGE", "--heads", "a"], r'argument --heads: "a": give heads as in 0,3, or mean, max, min, or all; see .*'),
        (["RUN", "IMAGE", "--compare", "--method", "pca"], "--method has no effect with --compare; leave it out"),
        (["RUN", "IMAGE", "--compare", "--query", "3,3"], "--query 3,3 asks about a patch, and --compare about a class; .*"),
        (["RUN", "--model", "--query", "1"], "--query has no effect with --model; leave it out"),
        (["RUN", "--model", "--arrays"], "--arrays has no effect with --model; leave it out"),
        (["RUN", "IMAGE", "--svg"], "--svg has no effect without --model; add that, or leave it out"),
        (["RUN", "IMAGE", "--img-size", "2"], "an image of 2x2 px is smaller than one patch of 4x4; use a larger one, .*"),
        (["RUN", "IMAGE", "--img-size", "30"], "image side 30 is not a multiple of patch 4; use 32, or .*"),
        (["B/16", "IMAGE"], '"B/16" is a shape with random weights; give a run or a checkpoint'),
    ],
)
def test_a_mistake_of_explain_is_one_line(
    vitrail: Typed, run: Path, images: Path, explained: Path, words: list[str], line: str
) -> None:
    said = vitrail("explain", *({"RUN": run, "IMAGE": images / "a.png"}.get(word, word) for word in words))
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(f"vitrail: {line}\n", said.err), said.err
