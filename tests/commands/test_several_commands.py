"""Commands one after another: what one writes, the others read, or leave alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cases import ImageFolder, some_slow
from command_line import TINY, Typed
from vitrail.weights import load, save_model


def test_what_commands_write_among_the_images_is_no_data(
    vitrail: Typed, image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cd PHOTOS`, and every command with its default folder: each reads the same photographs as the first."""
    photos = image_folder({"cat": 20, "dog": 20}, size=(24, 24))
    monkeypatch.chdir(photos)
    assert vitrail("train", ".", "--recipe", "finetune", "--model.weights", "none", "--model.img_size", "16", *TINY).code == 0
    first = json.loads(vitrail("check", ".", "--json").out)
    assert first["images"] == 40
    run = next(Path("runs").iterdir())
    assert vitrail("explain", run, "cat/1.jpg", "--steps", "2").code == 0
    assert vitrail("explain", run, "cat/2.jpg", "--steps", "2", "--out", "cat").code == 0
    assert vitrail("explain", run, "--model", "--out", "dog/model").code == 0
    assert vitrail("evaluate", run, ".", "--out", "scores").code == 0
    assert vitrail("convert", run, "converted", "--to", "timm").code == 0
    assert json.loads(vitrail("check", ".", "--json").out) == first
    said = vitrail("predict", run, ".", "--json")
    assert (said.code, len(json.loads(said.out))) == (0, 40)
    assert vitrail("evaluate", run).code == 0
    assert vitrail("train", ".", "--recipe", "finetune", "--model.weights", "none", "--model.img_size", "16", *TINY).code == 0


def test_a_run_that_stopped_among_the_images_goes_on(
    vitrail: Typed, image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrail.train import loop

    photos, step = image_folder({"cat": 40, "dog": 40}, size=(24, 24)), loop.Loop.log

    def interrupted(self: loop.Loop, *args: object, **options: object) -> None:
        step(self, *args, **options)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.chdir(photos)
    monkeypatch.setattr(loop, "LOG_EVERY_S", 0.0)
    monkeypatch.setattr(loop.Loop, "log", interrupted)
    said = vitrail("train", ".", *TINY, "--train.steps", "4", "--model.weights", "none", "--model.img_size", "16")
    assert said.code == 130
    monkeypatch.undo()
    monkeypatch.chdir(photos)
    assert "vitrail resume runs/photos-1" in said.err
    assert vitrail("resume", "runs/photos-1").code == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_output_is_not_finite_gives_no_label(
    vitrail: Typed, run: Path, images: Path, tmp_path: Path, value: float
) -> None:
    model = load(run)
    with torch.no_grad():
        model.head.bias[3] = value  # type: ignore[union-attr,operator]
    broken = tmp_path / "broken"
    broken.mkdir()
    save_model(model, broken, data="fashion-sample")
    said = vitrail("predict", broken, images / "a.png", images / "broken.png", "--json")
    first, second = json.loads(said.out, parse_constant=pytest.fail)
    assert (said.code, first["label"], first["probability"], first["top"]) == (1, None, None, [])
    assert first["error"].startswith("the model's output for it is not finite")
    assert second["error"].startswith("not an image")
    assert "a.png: the model's output for it is not finite, so it has no label" in said.err
    assert "vitrail: 1 of 2 images got no label: the model's output is not finite\n" in said.err
    assert said.err.endswith("vitrail: 1 of 2 images could not be read; the others are done\n")
    assert "no label" in vitrail("predict", broken, images / "a.png").out
    said = vitrail("evaluate", broken, "fashion-sample", "--out", tmp_path / "scores")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "the model's output is not finite for 2,000 of 2,000 images, so there is no score; use fp32" in said.err
    assert not (tmp_path / "scores").exists()
    said = vitrail("explain", broken, images / "a.png", "--out", tmp_path / "pictures")
    assert (said.code, said.err.splitlines()[-1].count("not finite")) == (2, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_explain_and_probe_refuse_a_backbone_that_is_not_finite(
    vitrail: Typed, run: Path, images: Path, tmp_path: Path, value: float
) -> None:
    model = load(run)
    with torch.no_grad():
        model.blocks[0].mlp.fc2.bias[1] = value  # type: ignore[union-attr,index,operator]
    broken = tmp_path / "broken"
    broken.mkdir()
    save_model(model, broken, data="fashion-sample")
    for words in (
        ["explain", broken, images / "a.png", "--method", "pca"],
        ["explain", broken, images / "a.png", "--method", "similarity", "--query", "3,3"],
        ["explain", broken, images / "a.png", "--method", "attention"],
        ["explain", broken, images / "a.png", "--compare"],
        ["explain", broken, images / "a.png", "--model"],
        ["explain", broken, images / "a.png", "--model", "--json"],
        ["probe", broken, "fashion-sample"],
    ):
        out = ["--out", tmp_path / "pictures"] if words[0] == "explain" else []
        said = vitrail(*words, *out)
        assert (said.code, said.out) == (2, ""), words
        assert re.match(r"vitrail: .* not finite.*; .*weights", said.err.splitlines()[-1]), words
        assert not (tmp_path / "pictures").exists()


def test_a_class_that_is_never_possible_gives_no_score(vitrail: Typed, run: Path, images: Path, tmp_path: Path) -> None:
    model = load(run)
    with torch.no_grad():
        model.head.bias[3] = -float("inf")  # type: ignore[union-attr,operator]
    broken = tmp_path / "broken"
    broken.mkdir()
    save_model(model, broken, data="fashion-sample")
    assert vitrail("predict", broken, images / "a.png").code == 1
    said = vitrail("evaluate", broken, "fashion-sample", "--out", tmp_path / "scores")
    assert (said.code, said.err.count("not finite for 2,000 of 2,000 images")) == (2, 1)


@pytest.mark.parametrize("umask", some_slow([0o077, 0o022, 0o002]))
def test_files_are_for_whom_the_umask_says(image_folder: ImageFolder, tmp_path: Path, umask: int) -> None:
    photos = image_folder({"train": {"a": 8, "b": 8}, "test": {"a": 2, "b": 2}})
    work = tmp_path / "work"
    work.mkdir()
    image, model = str(photos / "test/a/0.jpg"), ["--model", "Ti/8", "--model.weights", "none", "--model.img_size", "16"]
    made = {"timm": "timm", "hf": "hf", "tv.pth": "torchvision", "second.safetensors": "torchvision", "vit.npz": "npz"}
    commands = [
        ["train", str(photos), "--out", "run", *TINY, *model, "--train.ema_decay", "0.9"],
        ["evaluate", "run", str(photos), "--split", "train"],
        ["explain", "run", image, "--steps", "2", "--arrays"],
        ["explain", "run", image, "--steps", "2", "--compare"],
        ["explain", "run", image, "--model", "--svg"],
        ["probe", "run", str(photos)],
        *(["convert", "run", name, "--to", to] for name, to in made.items()),
    ]
    code = f"import sys; from vitrail.cli import main; sys.exit(any([main(words) for words in {commands!r}]))"
    home = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=work, umask=umask, env=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = {path: path.stat().st_mode & 0o777 for path in work.rglob("*") if path.is_file()}
    assert {path.name for path in files} >= {
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "vit.npz",
        "tv.pth",
        "model.svg",
        "0-curves.png",
        "evaluation.json",
        "confusion.csv",
    }
    assert not [path for path in files if path.suffix == ".part"]
    assert {str(path): oct(mode) for path, mode in files.items() if mode != 0o666 & ~umask} == {}
    folders = {str(path): path.stat().st_mode & 0o777 for path in work.rglob("*") if path.is_dir()}
    assert {path: oct(mode) for path, mode in folders.items() if mode != 0o777 & ~umask} == {}


def test_a_damaged_checkpoint_is_one_line(vitrail: Typed, run: Path, images: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "config.yaml"):
        (broken / name).write_bytes((run / name).read_bytes())
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(weights)
    for command in (["predict", broken, images], ["evaluate", broken]):
        said = vitrail(*command)
        assert said.code == 2
        assert re.fullmatch(r"vitrail: \S+model\.safetensors is damaged[^\n]*\n", said.err)


def test_images_with_any_number_of_labels_from_check_to_predict(
    vitrail: Typed, image_folder: ImageFolder, tmp_path: Path, run: Path
) -> None:
    photos, folder = image_folder({"photos": 24}, name="beach"), tmp_path / "beach-run"
    labels = ("sea;sky", "", "sky", "sea;sky;sand")
    lines = [f"photos/{i}.jpg,{labels[i % 4]},{('train', 'train', 'val', 'test')[i // 6]}\n" for i in range(24)]
    (photos / "labels.csv").write_text("path,labels,split\n" + "".join(lines))

    done = vitrail("check", photos)
    assert "24 images, 3 labels, 0 unreadable files" in done.out
    assert re.search(r"^sky +9 +4 +5$", done.out, re.MULTILINE)
    assert re.search(r"^all +12 +6 +6$", done.out, re.MULTILINE), "an image counts once there"
    assert "labels an image: 0 to 3, 1.5 on average; 6 images have none" in done.out
    assert json.loads(vitrail("check", photos, "--json").out)["labels"][0] == {"labels": 0, "images": 6}

    done = vitrail("train", photos, *TINY, "--model=Ti/16", "--model.img_size=32", "--train.batch_size=4", "--out", folder)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"test mAP \d+\.\d+% \(95 % interval .*\) on 6 images", done.out)
    assert json.loads((folder / "config.json").read_text())["multi_label"] is True

    done = vitrail("evaluate", folder, "--device=cpu")
    assert re.search(r"mean average precision +\d+\.\d %", done.out)
    assert re.search(r"^sand +2 +", done.out, re.MULTILINE)
    numbers = json.loads(vitrail("evaluate", folder, "--json").out)
    assert {each["name"]: each["count"] for each in numbers["per_class"]} == {"sand": 2, "sea": 3, "sky": 5}

    image = photos / "photos/0.jpg"
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    said = json.loads(vitrail("predict", folder, image, tmp_path / "broken.jpg", "--json", "--top=3").out)
    assert len(said[0]["top"]) == 3
    assert said[0]["labels"] == [each for each in said[0]["top"] if each["probability"] >= 0.5]
    assert (said[1]["labels"], said[1]["label"]) == ([], None)
    table = vitrail("predict", folder, image, tmp_path / "broken.jpg", "--top=2").out.splitlines()
    assert re.search(r"image +labels +most probable", table[0])
    assert "unreadable" in table[-1]
    rows = list(csv.DictReader(io.StringIO(vitrail("predict", folder, image, "--csv").out)))
    assert rows[0]["labels"] == ";".join(each["label"] for each in said[0]["labels"])

    done = vitrail("evaluate", run, photos)
    assert done.code == 2
    done = vitrail("probe", folder, photos)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "these images have any number of labels, and k-NN and the probe need one class each" in done.err
    for side in ("train", "test"):
        for name in ("sand", "sea", "sky"):
            image_folder({side: {name: 2}}, name="classes")
    done = vitrail("evaluate", folder, tmp_path / "classes")
    assert "classes has one class an image, and the model was trained on any number of labels an image" in done.err
