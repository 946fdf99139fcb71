"""`vitrail pretrain`, and the commands that take its run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import Said, Typed
from vitrail import load

TINY = {
    "model.name": "Ti/7",
    "model.embed_dim": 12,
    "model.num_heads": 2,
    "model.depth": 2,
    "model.pool": "avg",
    "model.class_token": "false",
    "mae.decoder_dim": 8,
    "mae.decoder_depth": 1,
    "mae.decoder_heads": 2,
    "train.steps": 3,
    "train.batch_size": 16,
    "train.precision": "fp32",
    "train.compare": "false",
}
SETTINGS = tuple(f"--{key}={value}" for key, value in TINY.items())
TYPED = ("--method", "mae", *SETTINGS)
NO_EFFECT = "; it has no effect here"


@pytest.fixture
def run(idx_set: Path, tmp_path: Path, vitrail: Typed) -> Path:
    """A run on a tiny "mnist"."""
    done = vitrail("pretrain", "mnist", *TYPED, "--out", tmp_path / "pre")
    assert done.code == 0, done.err
    return tmp_path / "pre"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    return path


def test_every_command_takes_the_run_or_says_what_to_do(run: Path, image: Path, tmp_path: Path, vitrail: Typed) -> None:
    before = (run / "evaluation.json").read_text()
    scored = vitrail("evaluate", run)
    assert scored.code == 0, scored.err
    assert "k-NN accuracy" in scored.out
    assert "effective rank, dimensions" in scored.out
    assert json.loads((run / "evaluation.json").read_text()) == json.loads(before)
    told = json.loads(vitrail("evaluate", run, "mnist", "--json").out)
    assert (told["split"], told["headline"]["name"]) == ("test", "knn_accuracy")

    assert vitrail("predict", run, image) == Said(
        2, "", f"vitrail: {run} has no classes; fine-tune it: `vitrail train DATA --weights {run}`\n"
    )
    for method in (["attention"], ["rollout"], ["pca"], ["similarity", "--query", "14,14"]):
        shown = vitrail("explain", run, image, "--method", *method, "--out", tmp_path / "explained")
        assert shown.code == 0, shown.err
    assert "no class to explain" in vitrail("explain", run, image, "--method", "relevance", "--out", tmp_path / "no").err
    probed = vitrail("probe", run, "mnist")
    assert probed.code == 0, probed.err
    assert "linear probe" in probed.out

    short = [word for word in TYPED if word.startswith("--train.")]
    tuned = vitrail("train", "mnist", "--weights", run, "--recipe", "finetune", *short, "--out", tmp_path / "tuned")
    assert tuned.code == 0, tuned.err
    assert "linear probe:" in tuned.out
    assert len(load(tmp_path / "tuned").classes) == 10
    assert "is finished" in vitrail("resume", run).err


def test_images_without_classes_score_a_run(run: Path, tmp_path: Path, vitrail: Typed) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "loose").mkdir()
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(tmp_path / "loose" / f"{i}.png")
    scored = vitrail("evaluate", run, tmp_path / "loose", "--split", "train")
    assert scored.code == 0, scored.err
    assert "k-NN" not in scored.out
    assert "effective rank, dimensions" in scored.out


@pytest.mark.usefixtures("idx_set")
def test_the_command_trains_and_says_what_is_next(tmp_path: Path, vitrail: Typed) -> None:
    said = vitrail("pretrain", "mnist", *TYPED, "--train.eval_every", "0.4", "--out", tmp_path / "run")
    assert said.code == 0, said.err
    assert re.search(r"^step \d: validation knn accuracy [\d.]+% \([\d.]+% to [\d.]+%\)$", said.out, re.MULTILINE)
    assert re.search(r"^test knn accuracy [\d.]+% \(95 % interval .*\) on 20 images, after 3 steps", said.out, re.MULTILINE)
    following = said.out.partition("What to run next:\n")[2].splitlines()
    run = tmp_path / "run"
    assert following == [
        f"  vitrail train DATA --weights {run}",
        f"  vitrail probe {run} DATA",
        f"  vitrail explain {run} IMAGE.png --method pca",
    ]


@pytest.mark.usefixtures("idx_set")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "maee"], r'method "maee" is none of mae, .*lejepa; did you mean "mae"\?'),
        (["--methd", "mae"], r"--methd is not an option of vitrail pretrain; did you mean --method\?"),
        (["--mae.mask_ratio", "1.5"], "mae.mask_ratio 1.5 must be above 0 and below 1"),
        (["--mae.mask_ration", "0.5"], r"did you mean --mae.mask_ratio\?"),
        (["--model", "torchvision:resnet18"], "MAE needs a backbone that computes visible patches only: .*; use a ViT"),
        (["--model", "timm:resnet18"], "MAE needs a backbone that computes visible patches only: .*; use a ViT"),
        (
            ["--model", "cait_xxs24", "--model.patch_size", "4"],
            "MAE needs a backbone that computes visible patches only: CaiT sees whole images .*; use a ViT",
        ),
        (["--model", "cvt_13"], "MAE needs a backbone that computes visible patches only: CvT's convolutions .*; use a ViT"),
        (["--model", "swin_t"], "MAE needs a backbone that computes visible patches only: Swin's windows .*; use a ViT"),
        (
            ["--model", "S+/4"],
            'visible patches only: stem "conv" looks beyond each patch, so hidden ones would show; use stem "pa',
        ),
        (["--model", "Ti/28"], "MAE needs images of at least 2 patches; use a smaller patch or larger images"),
        (["--model", "Ti/4", "--model.patch_drop_rate", "0.5"], "patch_drop_rate 0.5 hides patches, and so does `visible`"),
        (
            ["--model", "Ti/4", "--train.patch_sizes", "[2,4]"],
            "MAE predicts the pixels of patches of 4x4, not of 2; leave train.p",
        ),
        (
            ["--model.num_classes", "10"],
            "model.num_classes 10 does not fit train.task mae, which needs no head; leave the setting",
        ),
        (["--recipe", "finetun"], r'recipe "finetun" is none of .*; did you mean "finetune"\?'),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, vitrail: Typed, words: list[str], says: str) -> None:
    said = vitrail("pretrain", "mnist", "--method", "mae", "--out", tmp_path / "run", *words)
    assert (said.code, said.out) == (2, "")
    assert re.match(r"vitrail: ", said.err)
    assert re.search(says, said.err), said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_without_images_is_one_line(tmp_path: Path, vitrail: Typed) -> None:
    (tmp_path / "empty").mkdir()
    said = vitrail("pretrain", tmp_path / "empty", "--out", tmp_path / "run")
    assert (said.code, said.out) == (2, "")
    assert re.fullmatch(r"vitrail: .*empty has no images in class folders: it is empty; .*\n", said.err)
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    said = vitrail("pretrain", tmp_path / "empty", "--out", tmp_path / "run")
    assert re.fullmatch(r"vitrail: .*empty holds no images; put some there, in folders or without\n", said.err)
    said = vitrail("pretrain", "fashion-smaple")
    assert re.search(r'did you mean "fashion-sample"\?\n$', said.err)


@pytest.mark.usefixtures("idx_set")
def test_settings_without_effect_are_named(tmp_path: Path, vitrail: Typed) -> None:
    idle = ["--augment.mixup_alpha", "0.8", "--distill.teacher", "nowhere", "--optim.label_smoothing", "0.1"]
    said = vitrail(
        "pretrain", "mnist", *TYPED, *idle, "--data.balance", "loss", "--train.ladder", "true", "--out", tmp_path / "run"
    )
    assert said.code == 0, said.err
    notes = [line for line in said.out.splitlines() if line.startswith("note: ") and NO_EFFECT in line]
    assert notes == [
        f"note: {what} not used by train.task mae{NO_EFFECT}"
        for what in (
            "distill's settings are",
            "augment.mixup_alpha is",
            "optim.label_smoothing is",
            "data.balance loss is",
            "train.ladder is",
        )
    ]
    said = vitrail("train", "mnist", *SETTINGS, "--out", tmp_path / "train")
    assert said.code == 0, said.err
    assert "note: mae's settings are not used by train.task classify; it has no effect here" in said.out


def test_help_names_the_method_and_its_settings(vitrail: Typed) -> None:
    page = vitrail("pretrain", "--help").out
    assert page.startswith("usage: vitrail pretrain [DATA]")
    for word in ("--method", "--mae.mask_ratio", "k-NN accuracy", "effective", "reconstructions"):
        assert word in page
