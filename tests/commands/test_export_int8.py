"""`vitrail export --int8`, and `--merge` of every command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from cases import ImageFolder
from command_line import Typed
from vitrail.deploy import Predictor
from vitrail.deploy.export import FORMATS
from vitrail.models import ViT
from vitrail.settings import Preprocessing
from vitrail.weights import load, save_model


@pytest.mark.slow
@pytest.mark.parametrize("to", ["openvino", "onnx"])
def test_export_in_int8_with_merging_as_typed(vitrail: Typed, run: Path, tmp_path: Path, to: str) -> None:
    said = vitrail("export", run, "--to", to, "--int8", "--max-loss", "20", "--merge", "2", "--out", tmp_path / "small")
    assert said.code == 0, said.err
    assert "ToMe, 2 patches in each block" in said.out
    assert "back in float to keep the budget: none" in said.out
    kept = json.loads((tmp_path / "small" / "contract.json").read_text())
    assert kept["int8"]["loss_points"] <= 20
    assert "blocks.0.mlp.fc1" in kept["int8"]["in_int8"]
    assert kept["merging"]["paired"]["images"] == kept["int8"]["paired"]["images"] > 256
    card = json.loads((tmp_path / "small" / "card.json").read_text())
    assert card["precision"] == "int8"
    metadata = FORMATS[to].load().read_metadata(tmp_path / "small" / FORMATS[to].file)
    assert json.loads(metadata["vitrail.card"])["precision"] == "int8"


def test_options_of_int8_are_checked(vitrail: Typed, tmp_path: Path) -> None:
    model = ViT(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=4)
    model.preprocessing = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", data="animals")
    words = ("export", tmp_path / "run", "--to")
    said = vitrail(*words, "onnx", "--max-loss", "1")
    assert (said.code, said.err) == (2, "vitrail: --max-loss 1 is for --int8; add it, or leave --max-loss out\n")
    said = vitrail(*words, "torch", "--int8")
    assert (said.code, said.err) == (2, "vitrail: torch has no int8; export to onnx or openvino, or leave --int8 out\n")


def test_evaluate_measures_what_merging_costs(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    said = vitrail("evaluate", run, "--split", "val", "--merge", "3", "--out", tmp_path)
    assert said.code == 0, said.err
    assert re.search(r"3 patches in each block +\d+\.\d %", said.out)
    assert re.search(r"difference in points +[+-]\d+\.\d\d +[+-]\d+\.\d\d to [+-]\d+\.\d\d", said.out)
    kept = json.loads((tmp_path / "merging.json").read_text())
    again = json.loads(vitrail("evaluate", run, "--split", "val", "--merge", "3", "--out", tmp_path, "--json").out)
    assert again["merging"] == kept
    assert kept["without"]["accuracy"] == again["top1"]
    assert kept["paired"]["difference"] == pytest.approx(kept["merged"]["accuracy"] - again["top1"])


def test_merging_of_a_model_without_classes_is_not_measured(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    model = load(run, num_classes=0)
    (tmp_path / "headless").mkdir()
    save_model(model, tmp_path / "headless", data="fashion-sample")
    said = vitrail("evaluate", tmp_path / "headless", "fashion-sample", "--split", "val", "--merge", "2")
    expected = "vitrail: merging is not measured: it is the accuracy on images with one class each\n"
    assert (said.code, said.err) == (0, expected)
    assert "effective rank" in said.out


def test_predict_merges_and_says_so(vitrail: Typed, run: Path, images: Path) -> None:
    picture = images / "a.png"
    plain, merged = (
        json.loads(vitrail("predict", run, picture, "--json", "--top", "10", *words).out)[0] for words in ([], ["--merge", "3"])
    )
    assert plain["top"] != merged["top"]
    ours = Predictor(run, merge=3).predict([Image.open(picture)], top=10)[0]
    assert [pair["label"] for pair in merged["top"]] == [label for label, _ in ours.top]


def test_a_model_whose_tokens_cannot_be_merged_is_one_line(vitrail: Typed, tmp_path: Path, images: Path) -> None:
    from vitrail.models import create_model

    model = create_model("swin_t", img_size=32, window_size=4, num_classes=3, in_channels=1)
    model.preprocessing = Preprocessing(img_size=(32, 32), in_channels=1, mean=(0.5,), std=(0.25,))
    (tmp_path / "swin").mkdir()
    save_model(model, tmp_path / "swin", data="animals")
    said = vitrail("predict", tmp_path / "swin", images / "a.png", "--merge", "3")
    expected = "vitrail: Swin has no plain blocks, whose tokens can be merged; use a ViT, or leave merging out\n"
    assert (said.code, said.err) == (2, expected)


def test_accuracy_is_measured_on_images_of_the_models_classes(
    vitrail: Typed, run: Path, image_folder: ImageFolder, tmp_path: Path
) -> None:
    words = ("export", run, "--to", "onnx", "--out", tmp_path / "out", "--images")
    others = image_folder({"train": {"cat": 3, "dog": 3}, "val": {"cat": 2, "dog": 2}})
    for more in (["--int8"], ["--merge", "2"]):
        said = vitrail(*words, others, *more)
        assert said.code == 2
        assert re.fullmatch(
            r"vitrail: photos has the classes cat, dog, and the model 10: .*; give data of the model's classes\n", said.err
        )
    unlabelled = image_folder({"": 4}, name="album")
    said = vitrail(*words, unlabelled, "--int8")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


def test_int8_takes_normalised_images(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    said = vitrail("export", run, "--to", "onnx", "--int8", "--raw-images", "--out", tmp_path / "out")
    expected = "vitrail: --int8 is for files that take normalised images; leave --raw-images or --int8 out\n"
    assert (said.code, said.err) == (2, expected)
    said = vitrail("export", run, "--to", "onnx", "--int8", "--max-loss", "-1", "--out", tmp_path / "out")
    assert (said.code, said.err) == (2, "vitrail: max_loss -1 must be at least 0 points\n")
    assert not (tmp_path / "out").exists()
