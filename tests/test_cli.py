"""The command line as people type it: what it prints, what it leaves behind, and what it says to a mistake."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
import tifffile
import timm
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from vitrail import cli, commands, terminal
from vitrail.config import PATCHES, SIZES
from vitrail.data.augment import normalise
from vitrail.data.decode import eval_view
from vitrail.models import create_model
from vitrail.settings import layers
from vitrail.text import is_shown
from vitrail.train.folder import settings_of as read_settings
from vitrail.weights import load, save_model

ImageFolder = Callable[..., Path]  # conftest.py's
TINY = tuple(
    f"--{key}={value}"
    for key, value in {
        "model.depth": 1,
        "model.embed_dim": 16,
        "model.num_heads": 2,
        "train.steps": 2,
        "train.batch_size": 16,
    }.items()
)


class Said(NamedTuple):
    code: int
    out: str
    err: str


Typed = Callable[..., Said]


@pytest.fixture
def vitrail(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command line in this process."""

    def typed(*words: str | Path) -> Said:
        capsys.readouterr()
        return Said(cli.main([str(word) for word in words]), *capsys.readouterr())

    return typed


def in_a_process(*words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitrail", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the embedded sample: two steps of a tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "first run"
    assert cli.main(["train", "fashion-sample", "--out", str(folder), *TINY]) == 0
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images, one of them not readable."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b[bold].png", "more/c.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


# What it says of itself


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(vitrail: Typed, words: list[str]) -> None:
    said = vitrail(*words)
    assert (said.code, said.err) == (0, "")
    for command in cli.COMMANDS:
        assert f"  vitrail {command} " in said.out


def test_the_version_is_the_packages(vitrail: Typed) -> None:
    assert re.fullmatch(r"vitrail \d+\.\d+\.\d+\n", vitrail("--version").out)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_page_of_help(vitrail: Typed, command: str) -> None:
    said = vitrail(command, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"usage: vitrail {command} ")
    assert max(map(len, said.out.splitlines())) <= 125
    assert "\x1b" not in said.out


def test_the_help_of_train_has_every_setting_its_docstring_and_default(vitrail: Typed) -> None:
    page = " ".join(vitrail("train", "--help").out.split()).replace("- ", "-")  # lines may break behind a hyphen
    for key in layers.key_types():
        assert f"--{key} " in page or key.count(".") == 2
    for section, cls in layers.SECTIONS.items():
        assert f" {section}: " in page
        for text in layers._documents(cls).values():
            assert text.replace("- ", "-") in page
    assert "scaled linearly with the batch. [0.001]" in page
    assert "one of " + ", ".join(layers.recipes()) in page


@pytest.mark.parametrize("words", [[], *([command] for command in cli.COMMANDS)])
def test_help_needs_no_torch(words: list[str]) -> None:
    code = (
        f"import sys, vitrail.cli; code = vitrail.cli.main({[*words, '--help']}); "
        "print({'torch', 'matplotlib', 'numpy', 'PIL'} & set(sys.modules) or 'none', file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "none\n")


def test_each_command_is_a_file_and_a_row() -> None:
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(cli.COMMANDS)
    assert [module.rpartition(".")[2] for module in cli.COMMANDS.values()] == list(cli.COMMANDS)


# Mistakes


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("trian", 'vitrail: "trian" is none of the commands .*; did you mean "train"\\?'),
        ("serve", "vitrail --help says what each does"),
        (
            "train --recipe fashion-smaple",
            'recipe "fashion-smaple" is none of .*fashion-sample.*; did you mean "fashion-sample"',
        ),
        ("train --recipe mine.yaml", "use --config mine.yaml"),
        ("train --config nowhere.yaml", "nowhere.yaml: no such file or directory"),
        ("train --recpie cifar10", "--recpie is not an option of vitrail train; did you mean --recipe\\?"),
        ("train --model.num_layers 3", "did you mean --model.depth\\?"),
        ("train --model.image_size=64", "did you mean --model.img_size\\?"),
        ("train --model.layer_scale_init_value 1", "did you mean --model.init_values\\?"),
        ("train --lr 1e-3", "--lr is not an option of vitrail train; did you mean --optim.lr\\?"),
        ("train --batch-size 3", "did you mean --train.batch_size\\?"),
        ("train --epochs 3", "did you mean --train.epochs\\?"),
        ("train --minuts 3", "did you mean --minutes\\?"),
        ("train --augment.rand_augment.std 3", "did you mean --augment.rand_augment"),
        ("train --xyzzy", "--xyzzy is not an option of vitrail train; see vitrail train --help"),
        ("train --model B16", 'model "B16" is not a name .*; did you mean "B/16"\\?'),
        ("train --model b/16", 'size "b" is none of .*; did you mean "B"\\?'),
        ("train --model Q/16", 'size "Q" is none of Ti, S, B, L, H, g'),
        ("train --model", "expected one argument"),
        ("train --model.depth 2.5", 'model.depth "2.5": it takes a whole number'),
        ("train --model.embed_dim 101", "embed_dim 101 is not a multiple of num_heads"),
        ("train --model.img_size 96x", "it takes a whole number, or height x width, as in 96x128"),
        ("train --optim.name adam", 'optim.name "adam": it takes one of adamw, muon, sgd; did you mean "adamw"\\?'),
        ("train --optim.lr -1", "optim.lr -1.0 must be above 0"),
        ("train --optim.betas 0.9", "it takes two numbers"),
        ("train --minutes soon", 'train.minutes "soon": it takes a number'),
        ("train --minutes 2 --train.epochs 3", "only one of epochs, steps and minutes can be set"),
        ("train --train.compile perhaps", "it takes true or false"),
        ("train --augment.rand_augment 3", "it takes fields, as in {n: 2, m: 9.0, mstd: 0.5}, or null"),
        ("train fashion-sampel", 'did you mean "fashion-sample"'),
        ("train a b", "unrecognized arguments: b"),
        ("resume", "the following arguments are required: RUN; see vitrail resume --help"),
        ("resume nowhere", "nowhere"),
        ("evaluate nowhere", '"nowhere" does not exist, and is neither a Hub id nor a name'),
        ("evaluate nowhere --splt test", "did you mean --split\\?"),
        ("evaluate nowhere --split tets", "invalid choice: 'tets'"),
        ("predict nowhere", "the following arguments are required: IMAGES"),
        ("predict nowhere a.png", '"nowhere" does not exist, and is neither a Hub id nor a name'),
        ("predict nowhere a.png --top 0", "--top 0 must be at least 1"),
        ("predict nowhere a.png --json --csv", "not allowed with"),
        ("probe", "the following arguments are required: WEIGHTS"),
        ("probe nowhere fashion-sample", "nowhere"),
        ("probe B/16 fashion-sample", '"B/16" is a shape with random weights; give a run or a checkpoint'),
        ("probe nowhere fashion-sample --shots 1,0", '--shots: "1,0": give whole numbers of at least 1, as in 1,5,10'),
        ("probe nowhere fashion-sample --draws 3", "--draws 3 is for few images a class; add --shots 1,5,10"),
        ("probe nowhere fashion-sample --precision fp8", "invalid choice: 'fp8'"),
        ("check nowhere", 'data "nowhere" is neither a folder nor one of'),
        ("models --img-size big", 'model.img_size "big": it takes'),
        ("models --img-size 225", "225"),
        ("models --pretrained --img-size 96", "--img-size is for the table of sizes"),
        ("models --json", "--json is for the table of checkpoints; add --pretrained"),
        ("show B17", "B17"),
        ("show B/16 --img-siez 3", "did you mean --img-size\\?"),
        ("show B/16 --model.num_layers 3", "did you mean --model.depth\\?"),
        ("show B/16 --model.depth x", 'model.depth "x": it takes a whole number'),
        ("convert", "the following arguments are required: source"),
        ("convert nowhere there", "the following arguments are required: to"),
        ("convert nowhere there --to timm", "nowhere"),
        ("convert nowhere there --to tim", '"tim" is none of timm, hf, torchvision, npz; did you mean "timm"\\?'),
        ("convert nowhere there.txt --to npz", 'whose suffix is .npz, not ".txt"'),
        ("convert B/16 there --to timm --overwite", "did you mean --overwrite\\?"),
        ("convert B/16 there --to timm --model.dept 1", "did you mean --model.depth\\?"),
        ("push nowhere me/model", 'run folder "nowhere" does not exist'),
        ("push nowhere", "the following arguments are required: OWNER/NAME"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    vitrail: Typed, line: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = vitrail(*line.split())
    assert said.code == 2
    assert said.out == ""
    assert re.fullmatch(r"vitrail: [^\n]+\n", said.err), said.err
    assert re.search(says, said.err), said.err
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


@pytest.fixture
def photos(image_folder: ImageFolder) -> Path:
    """Eight photographs of two classes, and four to test on."""
    return image_folder({"train": {"cat": 4, "dog": 4}, "test": {"cat": 2, "dog": 2}})


VIT = (*TINY, "--model=Ti/16", "--model.img_size=32", "--train.batch_size=4")
CNN = ("--model=timm:test_resnet", "--model.img_size=32", "--train.steps=2", "--train.batch_size=4", "--optim.name=adamw")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((*VIT, "--distill.teacher=RUN"), 'distill.teacher ".*" has 10 classes, and the data 2; give one that was trained on'),
        ((*CNN, "--optim.layer_decay=0.7"), "optim.layer_decay 0.7 needs a model with blocks; use 1.0$"),
        ((*CNN, "--optim.freeze=1"), "optim.freeze 1 is too much: the model has no blocks; use 0$"),
        ((*CNN, "--optim.freeze=all"), 'optim.freeze "all" needs a model with blocks; use 0, or `vitrail probe`'),
        ((*VIT, "--optim.freeze=2"), 'optim.freeze 2 is too much: the model has 1 block; use "all" to train its head alone$'),
        ((*VIT, "--optim.freeze=al"), 'optim.freeze "al": it takes a whole number, or "all"$'),
        ((*VIT, "--model.img_size=100"), "image side 100 is not a multiple of patch 16; use 96, or another patch_size$"),
        ((*VIT, "--train.start_size=20"), "train.start_size 20 is not a multiple of 16, the patch; use 16$"),
        ((*VIT, "--train.accumulate=3"), "train.accumulate 3 does not divide batch_size 4; use 2$"),
        (
            ("--weights=CNN.safetensors",),
            "no plain ViT is in these .* tensors .*; give a plain ViT's, or name another",
        ),
        (("--weights=RUN", "--model=timm:test_resnet"), 'model.name ".*" is not what the weights .*; leave --model out$'),
        (("--weights=RUN", "--recipe=linear-probe", "--model.img_size=33"), "image side 33 .* patch 4; use 32, or another p"),
    ],
)
def test_a_mistake_of_fine_tuning_is_one_line_and_leaves_nothing(
    vitrail: Typed, run: Path, photos: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    theirs = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), theirs)
    files = {"RUN": run, "CNN.safetensors": theirs}
    typed = [f"{name}={files.get(value, value)}" for name, _, value in (option.partition("=") for option in options)]
    said = vitrail("train", photos, *typed, "--out", tmp_path / "none")
    assert said.code == 2
    assert re.fullmatch(r"vitrail: [^\n]+\n", said.err), said.err
    assert re.search(says, said.err.strip()), said.err
    assert not (tmp_path / "none").exists()


def test_a_setting_without_effect_is_said_once(vitrail: Typed, photos: Path, tmp_path: Path) -> None:
    idle = ("--optim.loss=bce", "--optim.label_smoothing=0.1", "--augment.mixup_alpha=0", "--augment.mixup_prob=0.5")
    said = vitrail("train", photos, *VIT, *idle, "--recipe=finetune", "--optim.layer_decay=1", "--out", tmp_path / "run")
    assert (said.code, said.err) == (0, "")
    assert [line for line in said.out.splitlines() if line.startswith("note: ")] == [
        "note: augment.mixup_prob needs mixup_alpha or cutmix_alpha above 0; it has no effect here",
        "note: optim.label_smoothing is for optim.loss ce; it has no effect here",
    ]


@pytest.mark.parametrize("depth", [1, 3])
def test_the_linear_probe_trains_the_head_of_any_depth(vitrail: Typed, photos: Path, tmp_path: Path, depth: int) -> None:
    base, short = tmp_path / "base", ("--train.steps=2", "--train.batch_size=4", "--train.device=cpu")
    assert vitrail("train", photos, *VIT, f"--model.depth={depth}", "--out", base).code == 0
    typed = ("--weights", base, "--recipe=linear-probe", *short, "--out", tmp_path / "probed")
    assert vitrail("train", photos, *typed, "--train.probe_head=true").code == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "probed"))
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"norm", "head"}
    assert "freeze: all" in (tmp_path / "probed" / "config.yaml").read_text()


def test_traceback_shows_where_a_mistake_came_from() -> None:
    short, long = in_a_process("trian"), in_a_process("--traceback", "trian")
    assert short.returncode == 2
    assert "Traceback" not in short.stderr
    assert "Traceback" in long.stderr
    assert long.returncode != 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"), "runs/a: the disk is full; make room there, or "),
        (RuntimeError("Error serializing: No space left on device (os error 28)"), "the disk is full; make room there, or "),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/a"), "runs/a: permission denied"),
        (ValueError("two\n  lines"), "two lines"),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA"),
            "memory ran out; use a smaller batch (--train.batch_size",
        ),
    ],
)
def test_what_goes_wrong_outside_is_one_line(
    vitrail: Typed, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    monkeypatch.setattr("vitrail.commands.check.run", raising(error))
    said = vitrail("check")
    assert said.code == 2
    assert said.err.startswith(f"vitrail: {line}")
    assert said.err.count("\n") == 1


def test_our_own_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.commands.check.run", raising(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        cli.main(["check"])


def test_ctrl_c_is_one_line_and_code_130(vitrail: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.commands.check.run", raising(KeyboardInterrupt()))
    assert vitrail("check") == (130, "", "vitrail: interrupted\n")
    monkeypatch.setattr("vitrail.commands.check.run", raising(KeyboardInterrupt("step 9 is saved")))
    assert vitrail("check") == (130, "", "vitrail: interrupted: step 9 is saved\n")


def test_a_pipe_that_nobody_reads_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "vitrail", "--help"], stdout=nobody, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def command(words: list[str]) -> int:
        raise error

    return command


# Train, resume, evaluate


def test_train_says_what_to_run_next(vitrail: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = vitrail("train", *TINY)
    assert said.code == 0
    assert "vitrail evaluate runs/fashion-sample-1\n  vitrail predict runs/fashion-sample-1 IMAGE.png\n" in said.out
    assert "\x1b" not in said.out + said.err
    assert vitrail("evaluate", "runs/fashion-sample-1").code == 0


def test_the_layers_come_in_order(run: Path, tmp_path: Path, vitrail: Typed) -> None:
    """The data's channels below the recipe, a run's config.yaml above it, what was typed above all."""
    kept = layers.from_yaml((run / "config.yaml").read_text())
    assert (kept.model.in_channels, kept.model.num_classes, kept.model.embed_dim) == (1, 10, 16)
    assert (kept.train.steps, kept.train.minutes) == (2, None)
    again = tmp_path / "again"
    assert vitrail("train", "--config", run / "config.yaml", "--out", again, "--train.steps=1", "--optim.lr", "5e-4").code == 0
    changed = layers.from_yaml((again / "config.yaml").read_text())
    assert changed == layers.build([layers.read_config(run / "config.yaml"), {"train": {"steps": 1}, "optim": {"lr": 5e-4}}])


def test_a_run_folder_is_never_overwritten(vitrail: Typed, run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    said = vitrail("train", "--out", run, *TINY)
    assert said.code == 2
    assert "exists" in said.err
    assert said.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_finished_run_is_not_resumed(vitrail: Typed, run: Path) -> None:
    said = vitrail("resume", run)
    assert said.code == 2
    assert "is finished" in said.err


def test_evaluate_prints_and_keeps_the_numbers(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    said = vitrail("evaluate", run, "--out", tmp_path / "scores")
    assert said.code == 0, said.err
    assert "fashion-sample, test: 2,000 images" in said.out
    assert re.search(r"top-1 +\d+\.\d % +\d+\.\d to \d+\.\d", said.out)
    assert "\x1b" not in said.out
    kept = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    assert kept["count"] == 2000
    assert kept["top1"] == json.loads((run / "evaluation.json").read_text())["top1"], "the number that training printed"
    for each in kept["per_class"]:
        assert re.search(rf"^ *{re.escape(each['name'])} +200 ", said.out, re.MULTILINE)
    assert (tmp_path / "scores" / "confusion.png").stat().st_size > 1000
    assert (tmp_path / "scores" / "confusion.csv").is_file()


def test_evaluate_as_json_on_another_split(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    said = vitrail("evaluate", run, "fashion-sample", "--split", "val", "--json", "--out", tmp_path)
    numbers = json.loads(said.out)
    assert (numbers["data"], numbers["split"]) == ("fashion-sample", "val")
    assert numbers == json.loads((tmp_path / "evaluation.json").read_text())


def test_other_classes_are_refused(vitrail: Typed, run: Path, image_folder: ImageFolder) -> None:
    said = vitrail("evaluate", run, image_folder({"cat": 8, "dog": 8}))
    assert said.code == 2
    assert "has the classes cat, dog, and the model 10: " in said.err


# Probe


def test_probe_prints_a_line_for_each_rung(vitrail: Typed, run: Path) -> None:
    said = vitrail("probe", run, "--shots", "1,3", "--draws", "2")
    assert said.code == 0, said.err
    assert re.match(
        r"fashion-sample: 10 classes; learned from [\d,]+ train \+ \d+ val; scored on 2,000 test images\n", said.out
    )
    for name in ("k-NN", "linear probe"):
        assert re.search(rf"^{name} +1,000 +\d+\.\d % +\d+\.\d to \d+\.\d +2,000 images", said.out, re.M)
        for shots in (1, 3):
            assert re.search(rf"^{name} +{shots} +\d+\.\d % +\d+\.\d to \d+\.\d +the mean of 2 draws", said.out, re.M)
    assert re.search(r"^Fine-tuning can('t)? be expected to beat the probe: .*\.$", said.out, re.M)
    assert "\x1b" not in said.out + said.err


def test_probe_as_json_on_other_classes(vitrail: Typed, run: Path, image_folder: ImageFolder) -> None:
    photos = image_folder({"train": {"cat": 6, "dog": 2}, "test": {"cat": 4, "dog": 4}})
    said = vitrail("probe", run, photos, "--json", "--shots", "5", "--batch-size", "3")
    assert said.code == 0, said.err
    numbers = json.loads(said.out)
    assert (numbers["data"], numbers["classes"]) == ("photos", 2)
    assert numbers["images"]["test"] == 8
    for rung in ("knn", "probe"):
        score = numbers[rung]["test"]
        assert score["count"] == 8
        assert score["interval"][0] <= score["accuracy"] <= score["interval"][1]
    (five,) = numbers["few_shot"]
    assert (five["shots"], len(five["probe"]["draws"])) == (5, 5)
    assert "dog" in five["short"]
    assert numbers["advice"]["why"].startswith("fine-tuning can")
    assert json.loads(vitrail("probe", run, photos, "--json", "--shots", "5").out) == numbers, "from the cache"


def test_probe_says_what_it_lacks(vitrail: Typed, run: Path, image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({"train": {"cat": 6, "dog": 6}})
    config = tmp_path / "run" / "config.yaml"
    config.parent.mkdir()
    for name in ("config.json", "model.safetensors", "config.yaml"):
        (config.parent / name).write_bytes((run / name).read_bytes())
    config.write_text(config.read_text().replace("val_fraction: 0.1", "val_fraction: 0.0"))
    said = vitrail("probe", config.parent, photos, "--shots", "1")
    assert re.fullmatch(r"vitrail: --shots needs images to score on, and photos has neither test nor val[^\n]*\n", said.err)
    said = vitrail("probe", config.parent, photos)
    assert said.code == 0
    assert "learned from 12 train; scored on training images, held out in turn" in said.out
    config.unlink()
    assert re.fullmatch(r"vitrail: \S+ is no folder of `vitrail train`[^\n]* name DATA\n", vitrail("probe", config.parent).err)


def test_a_warning_is_one_line(vitrail: Typed, run: Path) -> None:
    done = in_a_process("probe", run, env={**os.environ, "VITRAIL_CACHE": str(run / "config.json")})
    assert done.returncode == 0
    assert done.stderr.count("vitrail: the features can't be kept in") == len(done.stderr.splitlines()) > 0


# Predict


def test_predict_prints_a_table_and_reports_what_it_could_not_read(vitrail: Typed, run: Path, images: Path) -> None:
    said = vitrail("predict", run, images, images / "missing.png", "--top", "3")
    assert said.code == 1
    for name in ("a.png", "b[bold].png", "more/c.png"):
        assert re.search(rf"{re.escape(str(images / name))} +\S.* \d+\.\d %", said.out)
    assert re.search(r"broken\.png +unreadable", said.out)
    assert "\x1b" not in said.out
    assert f"vitrail: {images / 'broken.png'}: " in said.err
    assert said.err.endswith("vitrail: 2 of 5 images could not be read; the others are done\n")


def test_predict_sees_what_training_sees(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    """Any suffix or none, and through links; what is no image is told, and the exit code says so."""
    folder, picture = tmp_path / "mixed", Image.effect_noise((28, 28), 50)
    (folder / "@eaDir").mkdir(parents=True)
    for name, kind in (("a.jfif", "JPEG"), ("b.jpe", "JPEG"), ("c", "PNG"), ("d.AVIF", "AVIF"), ("@eaDir/a.jfif", "JPEG")):
        picture.save(folder / name, kind)
    (tmp_path / "elsewhere").mkdir()
    picture.save(tmp_path / "elsewhere" / "e.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    said = vitrail("predict", run, folder, "--csv")
    names = [Path(row["path"]).name for row in csv.DictReader(io.StringIO(said.out))]
    assert (said.code, names) == (0, ["a.jfif", "b.jpe", "c", "d.AVIF", "e.png"])
    (folder / "notes.txt").write_text("no image")
    (folder / "lost.png").symlink_to(folder / "nowhere.png")
    said = vitrail("predict", run, folder)
    assert said.code == 1
    assert "mixed/notes.txt: not an image" in said.err
    assert "mixed/lost.png: the file is not there" in said.err
    assert said.err.endswith("2 of 7 images could not be read; the others are done\n")


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


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
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


NASTY = "a\x1b[31m[bold]:smile:\u202e$x_1$\u2028"


def shows_as_lines(*texts: str) -> bool:
    """Whether a terminal would obey nothing in them."""
    return all(is_shown(c) or c == "\n" for text in texts for c in text)


def test_names_of_files_and_classes_are_shown_and_not_obeyed(
    vitrail: Typed, image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photos = image_folder({"train": {NASTY: 8, "b\n": 8}, "test": {NASTY: 2, "b\n": 2}})
    monkeypatch.chdir(tmp_path)
    (photos / "test" / NASTY / f"{NASTY}\t\n.png").write_bytes(b"no image")
    (photos / "test" / NASTY / os.fsdecode(b"\xff.jpg")).write_bytes((photos / "test" / NASTY / "0.jpg").read_bytes())
    model = ["--model.weights", "none", "--model.img_size", "16", "--data.max_bad", "1", "--out", f"runs{NASTY}/one"]
    for words in (
        ["check", photos],
        ["train", photos, *TINY, *model],
        ["evaluate", f"runs{NASTY}/one"],
        ["evaluate", f"runs{NASTY}/one", "--json", "--split", "train"],
        ["predict", f"runs{NASTY}/one", photos / "test", "--top", "2"],
        ["predict", f"runs{NASTY}/one", photos / "test", "--json"],
        ["explain", f"runs{NASTY}/one", photos / "test", "--steps", "2", "--out", f"explained{NASTY}"],
        ["probe", f"runs{NASTY}/one", "--shots", "1", "--draws", "1"],
        ["convert", f"runs{NASTY}/one", f"converted{NASTY}", "--to", "timm"],
        ["show", f"runs{NASTY}/one"],
        ["train", photos, "--recipe", NASTY],
        ["show", NASTY],
        [NASTY],
    ):
        said = vitrail(*words)
        assert shows_as_lines(said.out, said.err), words
        assert said.out or said.err
    assert vitrail("show", f"nowhere{NASTY}").err.count("\n") == 1
    lines = Path(f"runs{NASTY}/one/skipped.txt").read_text(encoding="utf-8").splitlines()
    assert [line.count("\t") for line in lines] == [1]
    rows = json.loads(vitrail("predict", f"runs{NASTY}/one", photos / "test", "--json").out)
    assert f"{NASTY}\t\n.png" in {Path(row["path"]).name for row in rows}, "JSON has the names as they are"
    assert {row["label"] for row in rows} <= {NASTY, "b\n", None}


ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=12) | st.text(
    "\x1b[31m]\n\r\t\x1e\x85\u2028\u202e\u200d\udcff\ufeff:smile:$_,\"'{}", min_size=1, max_size=12
)


def can_be_a_file(name: str) -> bool:
    """Whether a file system takes the name."""
    try:
        return 0 < len(os.fsencode(name)) < 100 and not {"/", "\0"} & set(name) and name not in (".", "..")
    except UnicodeEncodeError:
        return False


def type_foreign(*words: str | Path) -> Said:
    """Type a command whose input holds foreign text; what it prints must be lines, and an error one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(map(str, words)))
    said = Said(code, out.getvalue(), err.getvalue())
    assert shows_as_lines(said.out, said.err), said
    assert code in (0, 1, 2)
    (said.out + said.err).encode()
    if code == 2:
        assert len([line for line in said.err.splitlines() if line.startswith("vitrail: ")]) == 1, said
        assert said.err.endswith("\n")
    return said


@pytest.fixture(scope="module")
def tiny_state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, num_classes=2, img_size=32)
    return {name: value.contiguous() for name, value in model.state_dict().items()}


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    text=ANY_TEXT, key=st.sampled_from(["num_attention_heads", "hidden_act", "architecture", "model_type", "image_size"])
)
@hypothesis.example(text="\x1e", key="num_attention_heads")
@hypothesis.example(text="\u2028", key="hidden_act")
@hypothesis.example(text="\udcff\x1b[2J", key="architecture")
def test_show_of_a_foreign_config_is_lines(tiny_state: dict[str, torch.Tensor], text: str, key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_file(tiny_state, Path(folder, "model.safetensors"))
        Path(folder, "config.json").write_text(json.dumps({key: text, text: text, "id2label": {"0": text, "1": "b"}}))
        type_foreign("show", folder, "--verbose", "--img-size", "32", "--model.num_heads", "3")
        if key == "num_attention_heads":
            type_foreign("show", folder, "--img-size", "32")


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(text=ANY_TEXT.filter(lambda text: text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)))
@hypothesis.example(text="\x1b[2J\u2028")
def test_show_of_foreign_keys_of_weights_is_lines(tiny_state: dict[str, torch.Tensor], text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        save_file({**tiny_state, text or "empty": torch.ones(2), f"blocks.{text}.weight": torch.ones(3)}, path)
        sides = ("--img-size", "32", "--model.num_heads", "3")
        type_foreign("show", path, *sides)
        type_foreign("show", path, "--verbose", "--no-strict", *sides)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(kind=ANY_TEXT.filter(can_be_a_file), name=ANY_TEXT.filter(can_be_a_file))
@hypothesis.example(kind="a\x1e", name="\udcff\u2028.png")
@hypothesis.example(kind="a\n", name="\x1b]0;title\x07.jpg")
def test_check_of_foreign_names_is_lines(kind: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for place in (kind, "other"):
            Path(folder, place).mkdir(exist_ok=True)
            for number in range(2):
                Image.new("L", (4, 4), 40 * number).save(Path(folder, place, f"{number}.png"))
        Path(folder, kind, name).write_bytes(b"no image")
        type_foreign("check", folder)
        said = type_foreign("check", folder, "--json")
        if said.code != 2:
            json.loads(said.out)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(label=ANY_TEXT, name=ANY_TEXT.filter(can_be_a_file))
@hypothesis.example(label="a\x1b[31m\r", name="\udcff.png")
@hypothesis.example(label="\ud800$\\frac{", name="a\rb")
def test_predict_of_foreign_names_is_lines(run: Path, label: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, photos = Path(place, "run"), Path(place, "photos")
        photos.mkdir()
        shutil.copytree(run, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["label_names"] = [f"{number}{label}" for number in range(10)]
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        Image.new("L", (28, 28)).save(photos / "image.png")
        (photos / "image.png").rename(photos / name)
        said = type_foreign("predict", folder, photos / name)
        assert said.code == 0, said.err
        (row,) = json.loads(type_foreign("predict", folder, photos / name, "--json").out)
        assert (row["path"], row["label"][1:]) == (str(photos / name), label)
        out = io.StringIO(newline="")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            assert cli.main(["predict", str(folder), str(photos / name), "--csv"]) == 0
        if "\0" not in label:  # csv of Python 3.11 reads no NUL
            _, cells = csv.reader(io.StringIO(out.getvalue(), newline=""))
            assert (cells[0], cells[1][1:]) == (str(photos / name), label)


def test_predict_writes_names_that_are_no_utf8_to_a_pipe(run: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\r\x1b[2J.png"
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    os.rename(os.fsencode(tmp_path / "a.png"), path)
    for how in ("--json", "--csv"):
        words: list[str | bytes] = [sys.executable, "-m", "vitrail", "predict", str(run), path, how]
        done = subprocess.run(words, capture_output=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, b"")
        text = done.stdout.decode()
        if how == "--json":
            assert json.loads(text)[0]["path"] == os.fsdecode(path)
        else:
            assert next(iter(list(csv.reader(io.StringIO(text, newline="")))[1:]))[0].endswith("\\udcff\r\x1b[2J.png")


def test_predict_as_json(vitrail: Typed, run: Path, images: Path) -> None:
    said = vitrail("predict", run, images, "--json", "--top", "2")
    rows = json.loads(said.out)
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b[bold].png", "broken.png", "c.png"]
    assert [row["error"] is None for row in rows] == [True, True, False, True]
    assert [len(row["top"]) for row in rows] == [2, 2, 0, 2]
    assert all(row["top"][0] == {"label": row["label"], "probability": row["probability"]} for row in rows if row["top"])


@pytest.mark.parametrize("top", [1, 2, 50])
def test_predict_as_csv(vitrail: Typed, run: Path, images: Path, top: int) -> None:
    rows = list(csv.reader(io.StringIO(vitrail("predict", run, images, "--csv", "--top", str(top)).out)))
    ranks = min(top, 10)
    assert rows[0][:3] == ["path", "label", "probability"]
    assert rows[0][-1] == "error"
    assert {len(row) for row in rows} == {2 + 2 * ranks}
    assert [bool(row[-1]) for row in rows[1:]] == [False, False, True, False]
    assert all(sum(map(float, row[2:-1:2])) == pytest.approx(1, abs=1e-5) for row in rows[1:] if top == 50 and not row[-1])


def test_predict_reads_a_list_from_stdin(vitrail: Typed, run: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images / 'a.png'}\n\n{images / 'more'}\r\n"))
    said = vitrail("predict", run, "--csv", "-", "--device", "cpu", images / "b[bold].png")
    assert said.code == 0, said.err
    assert [Path(row[0]).name for row in csv.reader(io.StringIO(said.out))] == ["path", "a.png", "c.png", "b[bold].png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert vitrail("predict", run, "-").err == "vitrail: stdin named no image; write one path a line\n"


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


def test_python_m_vitrail_is_vitrail(run: Path, images: Path) -> None:
    done = in_a_process("predict", run, images / "a.png")
    assert done.returncode == 0, done.stderr
    assert "a.png" in done.stdout
    assert done.stderr == ""


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


# Check, models, show


def test_check_finds_what_is_broken(vitrail: Typed, image_folder: ImageFolder) -> None:
    photos = image_folder({"cat": 10, "dog": 10})
    assert vitrail("check", photos).code == 0
    (photos / "cat" / "broken.jpg").write_bytes(b"no image")
    said = vitrail("check", photos)
    assert said.code == 1
    assert "broken.jpg" in said.out
    found = json.loads(vitrail("check", photos, "--json").out)
    assert found["images"] == 20
    assert sum(found["counts"][split]["dog"] for split in found["counts"]) == 10
    assert [bad["path"] for bad in found["bad"]] == ["cat/broken.jpg"]
    assert found["sizes"] == [{"height": 40, "width": 32, "images": 20}]


def test_models_lists_every_size_with_its_parameters(vitrail: Typed) -> None:
    said = vitrail("models")
    assert (said.code, said.err) == (0, "")
    rows = {words[0]: words for words in map(str.split, said.out.splitlines()) if words}
    assert {f"{size}/{patch}" for size in SIZES for patch in PATCHES} <= rows.keys()
    for name, parameters in (("Ti/16", "5,717,416"), ("S/16", "22,050,664"), ("B/16", "86,567,656"), ("H/14", "632,045,800")):
        assert rows[name][5] == parameters
    assert rows["B/16"][4:7:2] == ["197", "35.13"]


def test_models_at_another_size(vitrail: Typed) -> None:
    assert re.search(r"^Ti/16 +192 +12 +3 +393 ", vitrail("models", "--img-size", "224x448", "--num-classes=2").out, re.M)


def test_models_lists_pretrained_checkpoints_one_a_line(vitrail: Typed) -> None:
    said = vitrail("models", "--pretrained")
    assert (said.code, said.err) == (0, "")
    for line in (
        r"timm/vit_base_patch16_224.augreg_in21k_ft_in1k +B/16 +224 +IN-21k, IN-1k +84\.5 +timm +apache-2\.0",
        r"timm/vit_small_patch14_dinov2.lvd142m +S/14 +518 +LVD-142M +81\.1 +dinov2, linear +apache-2\.0",
        r"facebook/vit-mae-base +B/16 +224 +IN-1k +- +- +apache-2\.0",
        r"  openclip +mlfoundations/open_clip, .*",
    ):
        assert re.search(f"^{line}$", said.out, re.M), line


def test_pretrained_checkpoints_as_json(vitrail: Typed) -> None:
    listed = json.loads(vitrail("models", "--pretrained", "--json").out)
    (row,) = (row for row in listed if row["id"] == "timm/deit3_base_patch16_224.fb_in22k_ft_in1k")
    assert (row["size"], row["img_size"], row["top1"], row["licence"]) == ("B/16", 224, 85.7, "apache-2.0")
    assert row["shape"] == {"embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
    assert row["data"] == ["ImageNet-22k", "ImageNet-1k"]
    assert row["source"]["how"] == "own head"


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_cuts_no_id(vitrail: Typed, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    from rich.console import Console

    from vitrail.weights import pretrained

    monkeypatch.setattr(terminal, "make_console", lambda: Console(width=width, highlight=False, markup=False))
    lines = vitrail("models", "--pretrained").out.splitlines()
    for row in pretrained.rows():
        assert lines[lines.index(row.id) + 1].startswith(f"  {row.size} ")


def test_show_prints_what_a_model_costs(vitrail: Typed) -> None:
    said = vitrail("show", "B/16", "--img-size", "384")
    assert said.code == 0
    for line in (
        "images      384 x 384 px, 3 channels; 1,000 classes",
        "shape       width 768, 12 blocks, 12 heads, MLP 3,072",
        "tokens      577 = 1 + 576 patches of 16 x 16 px",
        "parameters  86,859,496",
        "weights     347 MB in fp32",
        "FLOPs       110.97 G in the forward pass of 1 image",
    ):
        assert f"  {line}\n" in said.out
    assert vitrail("show", "vit_base_patch16_384").out == said.out.replace("B/16\n", "vit_base_patch16_384\n")
    changed = vitrail(
        "show", "B/16", "--img-size=32x48", "--in-channels=1", "--num-classes=1", "--model.depth=1", "--batch-size=8"
    )
    assert "images      32 x 48 px, 1 channel; 1 class\n" in changed.out
    assert "width 768, 1 block, 12 heads" in changed.out
    assert "of activations for 8 images in fp32" in changed.out
    each = r"\S+ [kM]B in fp32, \S+ [kM]B in bf16"
    assert re.search(rf"\n  in all +{each}, with weights, gradients and AdamW\n", changed.out)
    assert re.search(rf"\n  recomputed +{each} in all, with train.checkpointing\n", changed.out)


def test_show_of_a_run_is_its_model(vitrail: Typed, run: Path) -> None:
    said = vitrail("show", run)
    assert "28 x 28 px, 1 channel; 10 classes" in said.out
    assert "width 16, 1 block, 2 heads" in said.out


def test_show_groups_has_every_parameter_once(vitrail: Typed) -> None:
    words = "show S/16 --model.depth 2 --groups --optim.name muon --optim.layer_decay 0.5 --optim.weight_decay 0.1"
    lines = vitrail(*words.split()).out.splitlines()
    rows = {line.split()[0]: line.split()[-3:] for line in lines if "adamw" in line or "muon" in line}
    assert list(rows) == list(create_model("S/16", depth=2).state_dict())
    assert rows["blocks.1.attn.qkv.weight"] == ["muon", "0.5", "0.1"]
    assert rows["blocks.0.norm1.weight"] == ["adamw", "0.25", "0"]
    assert rows["cls_token"] == ["adamw", "0.125", "0"]
    assert rows["head.weight"] == ["adamw", "1", "0.1"]


# Convert


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model all libraries know."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert cli.main(["train", "fashion-sample", "--model", "Ti/4", "--out", str(folder), *TINY]) == 0
    return folder


@pytest.mark.parametrize(
    ("to", "name", "made", "opens"),
    [
        ("timm", "there", ["config.json", "model.safetensors"], 'timm.create_model("local-dir:{}", pretrained=True)'),
        (
            "hf",
            "there",
            ["config.json", "model.safetensors", "preprocessor_config.json"],
            'transformers.ViTForImageClassification.from_pretrained("{}")',
        ),
        ("npz", "there.npz", [], 'vitrail.load("{}", mlp="gelu")'),
    ],
)
def test_convert_says_how_it_opens(
    vitrail: Typed, plain_run: Path, tmp_path: Path, to: str, name: str, made: list[str], opens: str
) -> None:
    there = tmp_path / "new" / name
    said = vitrail("convert", plain_run, there, "--to", to)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("vitrail · ")
    assert f"Written: {there}. It opens with\n  {opens.format(there)}\n" in said.out
    assert ("Note: this model has the exact GELU" in said.out) is (to == "npz")
    assert sorted(path.name for path in there.iterdir()) == made if made else there.is_file()
    again = vitrail("convert", plain_run, there, "--to", to)
    assert (again.code, again.out) == (2, "")
    assert again.err == f"vitrail: {there} exists; give another destination, or overwrite=True (--overwrite)\n"
    assert vitrail("convert", plain_run, there, "--to", to, "--overwrite", "--verbose").out.count("exact    blocks.0") > 5


def test_convert_refuses_by_name_and_names_who_can(vitrail: Typed, plain_run: Path, run: Path, tmp_path: Path) -> None:
    said = vitrail("convert", plain_run, tmp_path / "there", "--to", "torchvision")
    assert said.code == 2
    assert said.err == (
        'vitrail: torchvision\'s VisionTransformer has no in_channels 1, only 3; convert it to "timm" or "hf" or "npz"\n'
    )
    assert "own run folders hold it" in vitrail("convert", run, tmp_path / "there", "--to", "timm").err
    assert not list(tmp_path.iterdir())


def test_convert_changes_a_field_on_the_way(vitrail: Typed, plain_run: Path, tmp_path: Path) -> None:
    said = vitrail("convert", plain_run, tmp_path / "there", "--to=timm", "--model.norm_eps=1e-5", "--model.num_classes=0")
    assert said.code == 0, said.err
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("vit_base_patch16_clip_224", 0)


def test_push_prints_where_it_went(vitrail: Typed, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("vitrail.weights.push_to_hub", lambda *args, **more: asked.append((args, more)) or "https://hub/me/it")
    assert vitrail("push", run, "me/it", "--private") == (0, "https://hub/me/it\n", "")
    assert asked == [((str(run), "me/it"), {"private": True, "revision": None})]


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


SMALL = ("--model", "Ti/8", "--model.img_size", "16", "--model.weights", "none", "--train.batch_size", "8")


def write_bands(root: Path, kind: type, bands: int, *, high: int, count: int = 12) -> Path:
    """Two classes of TIFFs, told apart by how bright their last band is."""
    rng = np.random.default_rng(0)
    for name, more in (("dim", 0), ("bright", high // 2)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            values = rng.integers(0, high // 2, (24, 24, bands)).astype(kind)
            values[:, :, -1] += kind(more)
            colour = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None} if bands > 1 else {}
            tifffile.imwrite(root / name / f"{i}.tif", values if bands > 1 else values[:, :, 0], **colour)
    return root


@pytest.mark.parametrize(
    ("kind", "bands", "high"),
    [(np.uint8, 5, 200), (np.uint16, 4, 10_000), (np.uint16, 13, 10_000), (np.int16, 2, 3000), (np.uint16, 1, 4095)],
)
def test_bands_and_depths_from_check_to_explain(vitrail: Typed, tmp_path: Path, kind: type, bands: int, high: int) -> None:
    photos, run = write_bands(tmp_path / "scenes", kind, bands, high=high), tmp_path / "run"
    found = json.loads(vitrail("check", photos, "--json").out)
    assert (found["images"], found["bad"]) == (24, [])
    deep = kind is not np.uint8
    assert set(found["values"]) == (set(found["counts"]) if deep else set())
    model = [
        "--model",
        "Ti/8",
        "--model.img_size",
        "16",
        "--model.weights",
        "none",
        "--train.steps",
        "2",
        "--train.batch_size",
        "8",
    ]
    said = vitrail("train", photos, *TINY, *model, "--data.memory_gb", "0", "--data.workers", "0", "--out", run)
    assert said.code == 0, said.err
    assert ("note: values of " in said.out) is deep
    saved = json.loads((run / "config.json").read_text())["vitrail"]
    assert saved["model"]["in_channels"] == bands
    images = saved["preprocessing"]
    assert len(images["mean"]) == len(images["std"]) == bands
    if deep:
        low, top = images["range"]
        assert 0 <= low < high / 100
        assert 0.95 * high < top <= 1.01 * high
        assert read_settings(run).data.range == (low, top)
    else:
        assert images["range"] is None
    assert vitrail("evaluate", run).code == 0
    files = [photos / "dim" / "0.tif", photos / "bright" / "1.tif"]
    answers = json.loads(vitrail("predict", run, *files, "--json").out)
    loaded = load(run)
    assert loaded.preprocessing is not None
    assert list(loaded.preprocessing.mean) == images["mean"]
    view = eval_view(files[0], loaded.preprocessing)
    with torch.no_grad():
        logits = loaded(normalise(view[None], loaded.preprocessing))
    assert answers[0]["probability"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-4)
    assert vitrail("explain", run, files[0], "--steps", "2", "--out", tmp_path / "pictures").code == 0
    tuned = vitrail(
        "train", photos, "--weights", run, "--train.steps", "1", "--train.batch_size", "8", "--out", tmp_path / "tuned"
    )
    assert tuned.code == 0, tuned.err
    assert json.loads((tmp_path / "tuned/config.json").read_text())["vitrail"]["preprocessing"]["range"] == images["range"]


def test_a_range_is_a_setting(vitrail: Typed, tmp_path: Path) -> None:
    photos = write_bands(tmp_path / "scenes", np.uint16, 1, high=1000)
    for given, kept in (("[100, 900]", (100, 900)), ("full", "full")):
        assert vitrail("train", photos, *TINY, *SMALL, "--data.range", given, "--out", tmp_path / given[:4]).code == 0
        assert read_settings(tmp_path / given[:4]).data.range == kept
    said = vitrail("train", photos, *SMALL, "--data.range", "[9, 9]", "--out", tmp_path / "no")
    assert (said.code, said.err) == (2, "vitrail: data.range [9.0, 9.0] must be two numbers, the smaller first\n")
    said = vitrail("train", photos, *SMALL, "--data.range", "wide", "--out", tmp_path / "no")
    assert (said.code, said.err) == (
        2,
        'vitrail: data.range "wide": it takes one of auto, full, or two numbers, as in [0.5, 1.0]\n',
    )
    said = vitrail("train", photos, *SMALL, "--model.in_channels", "5", "--out", tmp_path / "no")
    assert "model.in_channels 5 does not fit scenes, whose images have 1; use 1 or 3" in said.err


def test_a_model_without_a_range_says_that_it_sees_few_levels(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    photos = write_bands(tmp_path / "scenes", np.uint16, 1, high=1000)
    said = vitrail("predict", run, photos / "dim", "--json")
    assert said.code == 0
    assert re.search(
        r"^vitrail: values of uint16 from \d+ to \d+ of 0 to 65535, where they are 2 of 256 levels, .*; the model was", said.err
    )
    assert len(json.loads(said.out)) == 12
    assert vitrail("predict", run, photos / "dim" / "0.tif", "--csv").err.count("\n") == 1
    Image.effect_noise((28, 28), 50).save(tmp_path / "plain.png")
    assert vitrail("predict", run, tmp_path / "plain.png").err == ""


def test_values_outside_of_a_models_range_are_reported(vitrail: Typed, tmp_path: Path) -> None:
    photos, run = write_bands(tmp_path / "scenes", np.uint16, 1, high=1000), tmp_path / "run"
    assert vitrail("train", photos, *TINY, *SMALL, "--out", run).code == 0
    others = write_bands(tmp_path / "others", np.uint16, 1, high=60_000)
    low, high = read_settings(run).data.range
    message = rf"values of uint16 from .*; the model was trained with data\.range {low:g} to {high:g}, and values outside of it"
    assert re.search(message, vitrail("predict", run, others / "dim").err)
    assert re.search(message, vitrail("evaluate", run, others).err)
    assert vitrail("predict", run, photos / "dim" / "0.tif").err == ""
    tuned = vitrail("train", others, "--weights", run, "--train.steps", "1", "--train.batch_size", "8", "--out", tmp_path / "t")
    assert f"{low:g} to {high:g}, as the weights were trained with, becomes black to white (data.range)" in tuned.out
    assert f"note: most of the values are outside of {low:g} to {high:g}, and become black or white" in tuned.out


def test_a_range_that_leaves_few_levels_is_warned_of(vitrail: Typed, tmp_path: Path) -> None:
    photos = write_bands(tmp_path / "scenes", np.uint16, 1, high=1000)
    for seed, name in enumerate(("dim", "bright")):  # one image of each class has all values
        values = np.random.default_rng(seed).integers(0, 65536, (24, 24))
        tifffile.imwrite(photos / name / "all.tif", values.astype(np.uint16))
    said = vitrail("check", photos)
    assert re.search(
        r"^train: 0 to 65535 is wide: most values lie from \d+ to \d+, which become \d of 256 levels", said.out, re.M
    )
    found = json.loads(vitrail("check", photos, "--json").out)["values"]["train"]
    assert found["range"] == "full"
    assert found["warning"].startswith("0 to 65535 is wide: most values lie from ")
    said = vitrail("train", photos, *TINY, *SMALL, "--out", tmp_path / "run")
    assert f"note: {found['warning']}" in said.out
    said = vitrail("train", photos, *TINY, *SMALL, "--data.range", "[0, 1000]", "--out", tmp_path / "narrow")
    assert "is wide" not in said.out


def test_bands_that_do_not_fit_are_told(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    photos = write_bands(tmp_path / "scenes", np.uint16, 5, high=1000)
    said = vitrail("predict", run, photos / "dim" / "0.tif")
    assert said.code == 1
    assert "0.tif: it has 5 bands, and the model takes 1 (model.in_channels)" in said.err
    said = vitrail("train", photos, *TINY, "--model.weights", "none", "--model.in_channels", "3", "--out", tmp_path / "no")
    assert (said.code, said.err) == (2, "vitrail: model.in_channels 3 does not fit scenes, whose images have 5; use 5\n")
