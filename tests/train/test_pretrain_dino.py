"""`vitrail.pretrain --method dino`: the teacher is what is scored, saved and gone on with; resuming and replaying are exact."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_pretrain import lines
from test_replay import EAGER, assert_same_weights, replayed, tensors

import vitrail
from interrupts import interrupt_at
from vitrail import cli
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.memory import whole_boxes
from vitrail.models import create_model
from vitrail.settings import DinoConfig, OptimConfig, Preprocessing, ViewsConfig
from vitrail.tasks.dino import Dino
from vitrail.train import checkpoint
from vitrail.train.optim import build_optimizers
from vitrail.train.run import Run
from vitrail.train.step import Step

VIT: dict[str, Any] = {"name": "Ti/7", "embed_dim": 12, "num_heads": 2, "depth": 2, "pool": "avg", "class_token": False}
SWIN: dict[str, Any] = {
    "name": "swin_t", "img_size": 28, "patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 7
}  # fmt: skip
HEAD: dict[str, Any] = {"prototypes": 24, "hidden_dim": 16, "bottleneck_dim": 8, "teacher_momentum": 0.9}
LENGTH = {"steps": 12, "batch_size": 16, "device": "cpu", "precision": "fp32", "compare": False}


def pretrain(out: Path, **over: Any) -> Run:
    """Some steps of a tiny model; sections in `over` are merged."""
    sections: dict[str, Any] = {"model": VIT, "dino": HEAD, "train": LENGTH, "data": {"workers": 0}}
    for name, section in over.items():
        sections[name] = section if name == "model" else sections.get(name, {}) | section
    return vitrail.pretrain("mnist", method="dino", out=out, console=Console(file=io.StringIO()), **sections)


@pytest.mark.usefixtures("idx_set")
def test_the_teacher_is_scored_saved_and_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = pretrain(tmp_path / "run", train={"eval_every": 1.0})
    assert (run.task, run.evaluation.headline.name) == ("dino", "knn_accuracy")
    assert {"loss", "teacher_entropy"} <= lines(run.folder)[-1].keys() | lines(run.folder)[0].keys()
    saved = load_file(run.folder / "model.safetensors")
    [last] = checkpoint.list_complete(run.folder / "checkpoints")[-1:]
    beside, student = load_file(last / "companions.safetensors"), load_file(last / "model.safetensors")
    assert {name.partition(".")[0] for name in beside} == {"head", "center", "in_use", "teacher", "teacher_head"}
    for name, value in saved.items():
        assert value.equal(beside[f"teacher.{name}"]), name
    assert not all(value.equal(student[name]) for name, value in saved.items())
    assert beside["center.mean"].any()
    model = vitrail.load(run.folder)
    assert model.card.preprocessing is not None
    assert cli.main(["evaluate", str(run.folder), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["knn"] == json.loads((run.folder / "evaluation.json").read_text())["knn"]
    longer = pretrain(tmp_path / "longer", model={"weights": str(run.folder)}, optim={"lr": 1e-9}, train={"steps": 1})
    for name, value in load_file(longer.folder / "model.safetensors").items():
        torch.testing.assert_close(value, saved[name], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("idx_set")
@pytest.mark.parametrize("masked", [0.0, 1.0], ids=["dino", "ibot"])
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(
    masked: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student, teacher, heads, centres, masks, schedules, drop path and scores."""
    options: dict[str, Any] = {"model": VIT | {"drop_path_rate": 0.3}, "dino": {"ibot_weight": masked}}
    options |= {"optim": {"name": "muon"}, "train": {"eval_every": 1.0}}
    straight = pretrain(tmp_path / "straight", **options)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 7)
        with pytest.raises(KeyboardInterrupt, match=r"^step 7 is saved; go on with `vitrail resume"):
            pretrain(tmp_path / "broken", **options)
    torch.manual_seed(12345)  # whatever the process drew since must not matter
    resumed = vitrail.resume(tmp_path / "broken", console=Console(file=io.StringIO()))
    assert (resumed.steps, resumed.task) == (12, "dino")
    for name in ("model.safetensors", "evaluation.json"):
        assert (resumed.folder / name).read_bytes() == (straight.folder / name).read_bytes(), name
    [mine], [whole] = (checkpoint.list_complete(run.folder / "checkpoints")[-1:] for run in (resumed, straight))
    for name in ("model", "companions", "optimizer"):
        assert (mine / f"{name}.safetensors").read_bytes() == (whole / f"{name}.safetensors").read_bytes(), name


@pytest.mark.usefixtures("idx_set")
def test_swin_learns_without_masks_and_refuses_them(tmp_path: Path) -> None:
    assert pretrain(tmp_path / "run", model=SWIN, train={"steps": 2}).steps == 2
    with pytest.raises(ValueError, match=r"^dino.ibot_weight needs a token for each of the 14x14 patches, and Swin has 49; "):
        pretrain(tmp_path / "no", model=SWIN, dino={"ibot_weight": 1.0})
    assert not (tmp_path / "no").exists()


# --------------------------------------------------------------------------------------------------------------------
# Recorded steps


def build_step() -> Step:
    torch.manual_seed(0)
    images = Preprocessing(img_size=(16, 16), in_channels=1, mean=(0.5,), std=(0.2,))
    model = create_model("Ti/8", img_size=16, in_channels=1, num_classes=0, embed_dim=16, depth=1, num_heads=2)
    cfg = DinoConfig(prototypes=10, hidden_dim=8, bottleneck_dim=4, ibot_weight=0.5, teacher_momentum=0.8)
    views = ViewsConfig(local_crops=1, local_size=0.5)
    task = Dino(model, preprocessing=images, cfg=cfg, views=views, sizes=torch.full((8, 2), 16), seed=0).train()
    optim = OptimConfig(name="adamw", lr=0.1)
    return Step(task, build_optimizers(model, optim, batch_size=8, companions=task.companions()), clip_norm=1.0)


def batch(step: Step, number: int) -> Batch:
    sizes = torch.tensor([[16, 16]]).expand(8, 2)
    pixels = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    raw = RawBatch(pixels, sizes, whole_boxes(sizes), torch.full((8,), -1), torch.arange(8))
    return step.task.batch(raw, epoch=number, img_size=(16, 16))


def test_recorded_steps_follow_the_schedules() -> None:
    """Temperature, frozen prototypes and centre change behind the recording, which is of a step with frozen prototypes."""
    plain, step, said = build_step(), build_step(), list[str]()
    take, losses = replayed(step, said), []
    for number in range(EAGER + 6):
        for one, call in ((plain, plain), (step, take)):
            torch.manual_seed(number)
            one.optimizers.set_lr(1.0 / (number + 1))
            one.task.before_step(step=number, epoch=int(number > EAGER + 2), progress=number / (EAGER + 6))
            losses.append(call(batch(one, number))["loss"].item())
            one.task.after_step(number)
    assert said == []
    assert len(take.recorded) == 1
    assert losses[::2] == pytest.approx(losses[1::2], rel=1e-5)
    assert_same_weights(plain, step)
    assert all(value.isfinite().all() for value in tensors(step))
