"""`vitrail train` and `vitrail resume`: settings, mistakes, and the run folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from command_line import TINY, Typed
from vitrail.settings import ModelConfig, layers


def test_the_help_of_train_has_every_setting_its_docstring_and_default(vitrail: Typed) -> None:
    page = " ".join(vitrail("train", "--help").out.split()).replace("- ", "-")  # lines may break behind a hyphen
    for key in layers.key_types():
        assert f"--{key} " in page or key.count(".") == 2
    for section, cls in (layers.SECTIONS | {"model": ModelConfig}).items():
        assert f" {section}: " in page
        for text in layers._documents(cls).values():
            assert text.replace("- ", "-") in page
    assert "scaled linearly with the batch. [0.001]" in page
    assert "one of " + ", ".join(layers.recipes()) in page


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
        (
            ("--weights=RUN", "--model=timm:test_resnet"),
            'model.name ".*" is not the model of the weights .*; leave --model out$',
        ),
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
