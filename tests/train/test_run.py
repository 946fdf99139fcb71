"""`train` and `resume`, from settings to a run folder."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import vitrail
import vitrail.train.loop
from interrupts import interrupt_at
from vitrail.data.batch import Batch
from vitrail.data.batches import LoaderLost
from vitrail.evaluate import MultiLabelEvaluation, evaluate_run
from vitrail.evaluate.metrics import Evaluation, Headline
from vitrail.tasks import classify
from vitrail.train import checkpoint
from vitrail.train import run as run_module
from vitrail.train.folder import choose_folder
from vitrail.train.loop import Loop
from vitrail.train.run import Run
from vitrail.weights import read_run

TINY = {"name": "Ti/14", "embed_dim": 12, "num_heads": 2, "depth": 2}
LENGTH = {"steps": 3, "batch_size": 16, "device": "cpu", "precision": "fp32"}


ONCE_IN_TWO = {"eval_every": 0.6, "keep": 1, "keep_best": True}
"""Steps, for the fixture's images."""


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def train(out: Path, **over: Any) -> Run:
    """Three steps on the tiny "mnist" of the fixture; sections in `over` are merged."""
    sections: dict[str, Any] = {"model": TINY, "train": LENGTH, "augment": {}, "optim": {"name": "adamw"}}
    for name, section in over.items():
        sections[name] = sections.get(name, {}) | section if isinstance(section, dict) else section
    return vitrail.train("mnist", out=out, console=quiet(), **sections)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("idx_set")
def test_a_run_folder_holds_all_and_loads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    finish = run_module.finish
    monkeypatch.setattr(run_module, "finish", lambda loop, source: (models.append(loop.trained), finish(loop, source))[1])
    run = train(tmp_path / "run")
    assert run.folder == tmp_path / "run"
    assert (run.steps, run.split, run.evaluation.count) == (3, "test", 20)
    names = {path.name for path in run.folder.iterdir()}
    expected = {"config.yaml", "config.json", "model.safetensors", "metrics.jsonl", "evaluation.json", "confusion.png"}
    assert expected | {"confusion.csv"} <= names
    assert not [name for name in names if name.endswith(".part")]
    assert lines(run.folder)[-1]["step"] == 3

    loaded = vitrail.load(run.folder)
    assert not loaded.training
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(images), models[0].eval()(images))
    assert loaded.classes == tuple(map(str, range(10)))
    assert loaded.preprocessing is not None
    assert (loaded.preprocessing.img_size, loaded.preprocessing.in_channels) == ((28, 28), 1)
    assert read_run(run.folder).data == "mnist"

    again = vitrail.train(config=run.folder / "config.yaml", out=tmp_path / "again", console=quiet())
    assert (again.folder / "config.yaml").read_bytes() == (run.folder / "config.yaml").read_bytes()
    assert (again.folder / "model.safetensors").read_bytes() == (run.folder / "model.safetensors").read_bytes()

    with pytest.raises(ValueError, match=r"is finished; `vitrail evaluate"):
        vitrail.resume(run.folder)


RANDOM: dict[str, Any] = {
    "model": {"drop_rate": 0.2, "proj_drop_rate": 0.2, "drop_path_rate": 0.3, "patch_drop_rate": 0.25, "stem": "conv"},
    "augment": {"crop": "pad", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "erase_prob": 0.3},
    "optim": {"name": "muon", "label_smoothing": 0.1},
    "train": {"steps": 12, "ema_decay": 0.9, "eval_every": 1.0},
}
TAUGHT: dict[str, Any] = {
    "model": {"drop_path_rate": 0.3, "stem": "conv", "dist_token": True},
    "data": {"balance": "loss"},
    "optim": {"freeze": 1, "loss": "bce"},
    "distill": {"teacher": "teacher", "kind": "soft"},
    "train": {"steps": 12, "ema_decay": 0.9, "eval_every": 1.0, "accumulate": 4},
}


ONCE: dict[str, Any] = {
    "augment": {"crop": "pad", "mixup_alpha": 0.8, "cutmix_alpha": 1.0},
    "distill": {"teacher": "teacher", "once": True},
    "train": {"steps": 12, "ema_decay": 0.9, "eval_every": 1.0, "accumulate": 4},
}

WIDE = TINY | {"embed_dim": 16}
"""Layers with sides that fp8 takes."""
FP8: dict[str, Any] = {"model": WIDE, "train": {"steps": 12, "ema_decay": 0.9, "precision": "fp8"}}


@pytest.mark.usefixtures("idx_set")
@pytest.mark.parametrize("fields", [RANDOM, TAUGHT, ONCE, FP8], ids=["random", "taught", "taught once", "fp8"])
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """Dropout, mixing, EMA, Muon, crops and several epochs on, and a teacher: nothing of the state is left behind."""
    if "distill" in fields:
        monkeypatch.chdir(tmp_path)
        train(tmp_path / "teacher", train={"steps": 1})
    straight = train(tmp_path / "straight", **fields)

    with monkeypatch.context() as patched:
        interrupt_at(patched, 7)
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match=r"^step 7 is saved; go on with `vitrail resume"):
            train(tmp_path / "broken", **fields)
        assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in checkpoint.list_complete(tmp_path / "broken" / "checkpoints")] == ["step_00000007"]
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"its training is not finished: `vitrail resume"):
        vitrail.load(tmp_path / "broken")

    torch.manual_seed(12345)  # whatever the process drew since must not matter
    monkeypatch.setattr("vitrail.train.loop.LOG_EVERY_S", 0.0)
    resumed = vitrail.resume(tmp_path / "broken", console=quiet())
    assert resumed.steps == straight.steps == 12
    assert (resumed.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()
    steps = [line["step"] for line in lines(resumed.folder) if "loss" in line]
    assert steps == list(range(1, 13)), "each step once, those behind the interruption as well"


@pytest.mark.usefixtures("idx_set")
def test_a_run_in_fp8(tmp_path: Path) -> None:
    """Other weights than in bf16, and near them; settings that name it; scores and a loaded model without it."""
    rounded, plain = (
        train(tmp_path / precision, model=WIDE, train={"steps": 6, "precision": precision}) for precision in ("fp8", "bf16")
    )
    a, b = (vitrail.load(run.folder) for run in (rounded, plain))
    weights, wanted = (torch.cat([value.flatten() for value in model.state_dict().values()]) for model in (a, b))
    assert 0 < (weights - wanted).norm().item() < 0.1 * wanted.norm().item()
    assert {type(module) for module in a.modules()} == {type(module) for module in b.modules()}
    assert "precision: fp8" in (rounded.folder / "config.yaml").read_text()
    assert evaluate_run(rounded.folder, device="cpu").scores.headline.name == rounded.evaluation.headline.name


@pytest.mark.usefixtures("idx_set")
def test_the_same_call_begins_a_run_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(tmp_path / "straight", train={"steps": 6})
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", train={"steps": 6}, resume="auto")
    for other in ({"optim": {"name": "adamw", "lr": 5e-4}}, {"model": TINY | {"depth": 1}}, {"train": {"steps": 7}}):
        with pytest.raises(
            ValueError, match=r'run ".*run" was started with different arguments; rerun the original command, or choose'
        ):
            train(tmp_path / "run", resume="auto", **{"train": {"steps": 6}, **other})
    with pytest.raises(ValueError, match="exists and is never overwritten"):
        train(tmp_path / "run", train={"steps": 6})
    again = train(tmp_path / "run", train={"steps": 6}, resume="auto")
    assert again.steps == 6
    assert (again.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r'mine" holds no config.yaml, so it is no run folder'):
        train(tmp_path / "mine", resume="auto")
    with pytest.raises(ValueError, match="--resume auto needs --out"):
        vitrail.train("mnist", resume="auto")


@pytest.mark.usefixtures("idx_set")
def test_a_run_that_came_to_no_checkpoint_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException): ...

    def kill(loop: Loop) -> None:
        (loop.folder / "checkpoints" / "step_00000003.part").mkdir(parents=True)
        shutil.copytree(loop.folder, tmp_path / "left")  # as a SIGKILL leaves it, which no code of ours runs after
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "save", kill)
        with pytest.raises(Killed):
            train(tmp_path / "run")
    (tmp_path / "left").rename(tmp_path / "run")
    with pytest.raises(ValueError, match=r"the run stopped before the first one; delete .* with --resume auto$"):
        vitrail.resume(tmp_path / "run", console=quiet())
    (tmp_path / "run" / "checkpoints" / "mine").mkdir()
    with pytest.raises(ValueError, match='run" holds no checkpoint, but also mine; remove it'):
        train(tmp_path / "run", resume="auto")
    (tmp_path / "run" / "checkpoints" / "mine").rmdir()
    assert train(tmp_path / "run", resume="auto").steps == 3


@pytest.mark.usefixtures("idx_set")
def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says to do, to train again, is done by the same words."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_tensors", full)
        with pytest.raises(OSError, match=r"No space left on device\); make room, then train again$"):
            train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(tmp_path / "run").steps == 3


@pytest.mark.usefixtures("idx_set")
@pytest.mark.parametrize("left", [(), ("call.json.part",), ("call.json", "config.yaml.part"), ("metrics.jsonl",)])
def test_a_run_killed_as_it_began_begins_anew(tmp_path: Path, left: tuple[str, ...]) -> None:
    """Or as what was left of it was cleared away: there are no settings yet, or no more."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in left:
        (tmp_path / "run" / name).write_text("{")
    assert train(tmp_path / "run", train={"steps": 1}, resume="auto").steps == 1


@pytest.mark.usefixtures("idx_set")
def test_a_signal_in_an_evaluation_saves_and_the_evaluation_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"train": {"steps": 12, "eval_every": 1.0}, "data": {"val_fraction": 0.2}}
    straight = train(tmp_path / "straight", **fields)
    first = next(line for line in lines(straight.folder) if "val_top1" in line)
    asked = []

    def ask_once(*args: Any, **kwargs: Any) -> Any:
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(*args, **kwargs)

    with monkeypatch.context() as patched:
        module = sys.modules["vitrail.evaluate.evaluate"]
        batches = module.eval_batches
        patched.setattr(module, "eval_batches", ask_once)
        with pytest.raises(KeyboardInterrupt, match=f"step {first['step']} is saved") as stopped:
            train(tmp_path / "broken", **fields)
    assert stopped.value.number == signal.SIGTERM  # type: ignore[attr-defined]
    assert not any("val_top1" in line for line in lines(tmp_path / "broken"))
    resumed = vitrail.resume(tmp_path / "broken", console=quiet())
    assert next(line for line in lines(resumed.folder) if "val_top1" in line) == first
    assert (resumed.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("idx_set")
def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their step had a loss still, and a signal asks for a checkpoint before the next one has none."""
    log = Loop.log

    def spoil(loop: Loop, *args: Any, **numbers: Any) -> None:
        log(loop, *args, **numbers)
        if loop.step == 2:
            next(loop.task.parameters()).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(Loop, "log", spoil)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(ValueError, match="the weights are not finite after step 2, and are not saved"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.usefixtures("idx_set")
def test_the_best_evaluation_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.6, 0.4, 0.5])
    monkeypatch.setattr(Loop, "validate", lambda loop, interrupt: judged(loop, next(scores)))
    train(tmp_path / "run", train={**ONCE_IN_TWO, "steps": 10}, data={"val_fraction": 0.2})
    found = [
        json.loads((path / "state.json").read_text()) for path in checkpoint.list_complete(tmp_path / "run" / "checkpoints")
    ]
    assert [state["score"] for state in found] == [0.6, None], "the best, and the last"


@pytest.mark.usefixtures("idx_set")
def test_the_best_keeps_its_score_where_a_resumed_run_saves_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the loader processes are lost before the first step; with keep 1, one without a score would go."""

    def die(loop: Loop, *_: Any, **__: Any) -> None:
        if loop.step == 3:
            raise RuntimeError("as a SIGKILL")

    def lost(loop: Loop) -> Iterator[tuple[int, Batch]]:
        raise LoaderLost("a loader process was killed")
        yield

    monkeypatch.setattr("vitrail.train.loop.LOG_EVERY_S", 0.0)
    monkeypatch.setattr(Loop, "validate", lambda loop, interrupt: judged(loop, 0.6))
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "log", die)
        with pytest.raises(RuntimeError, match="as a SIGKILL"):
            train(tmp_path / "run", train={**ONCE_IN_TWO, "steps": 10}, data={"val_fraction": 0.2})
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "batches", lost)
        with pytest.raises(LoaderLost, match="step 2 is saved"):
            vitrail.resume(tmp_path / "run", console=quiet())
    (only,) = checkpoint.list_complete(tmp_path / "run" / "checkpoints")
    assert json.loads((only / "state.json").read_text())["score"] == 0.6


def judged(loop: Loop, score: float) -> bool:
    best = loop.best is None or score > loop.best
    loop.evaluated, loop.score, loop.best = loop.step, score, score if best else loop.best
    return best


@pytest.mark.usefixtures("idx_set")
@pytest.mark.parametrize(("every_s", "late"), [(0.0, ""), (1e9, "; noticed 3 steps later")])
def test_a_loss_that_is_no_number_stops_the_run_and_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, late: str
) -> None:
    """However late it is looked at, the step and its images are named."""
    monkeypatch.setattr("vitrail.train.loop.LOG_EVERY_S", every_s)
    augment, calls, seen = classify.augment, [], []  # type: ignore[attr-defined]

    def poisoned(*args: Any, **kwargs: Any) -> Batch:
        batch = augment(*args, **kwargs)
        calls.append(batch)
        if len(calls) == 3:
            batch.images[5] = float("nan")
            seen.extend(batch.indexes.tolist())
        return batch

    monkeypatch.setattr(classify, "augment", poisoned)
    monkeypatch.setattr(checkpoint, "save", lambda *args, **kwargs: pytest.fail("saved a model whose loss was no number"))
    with pytest.raises(
        ValueError, match=rf"^loss is nan at step 3 \(epoch 0, images .*bad_batch.txt{late}\): lower optim.lr"
    ) as error:
        train(tmp_path / "run", train={"steps": 6})
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    names = (tmp_path / "run" / "bad_batch.txt").read_text().splitlines()
    assert len(names) == 16
    assert names[0] in str(error.value)
    assert {name.rsplit("/", 1)[-1] for name in names} <= {str(i) for i in range(60)}
    assert len(seen) == 16


@pytest.mark.usefixtures("idx_set")
def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r'run" exists and is never overwritten; choose another --out, or resume it$'):
        train(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.usefixtures("idx_set")
def test_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_folder(None, "data/photos") == Path("runs/photos-1")
    Path("runs/photos-1").mkdir(parents=True)
    assert choose_folder(None, "data/photos") == Path("runs/photos-2")


@pytest.mark.usefixtures("idx_set")
@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"model": {"in_channels": 5}}, r"^model.in_channels 5 does not fit mnist, whose images have 1; use 1 or 3$"),
        ({"model": {"num_classes": 7}}, r"^model.num_classes 7 does not fit mnist, which has 10 classes; leave"),
        ({"model": {"img_size": 30}, "data": {"val_fraction": 0.3}}, r"^image side 30 is not a multiple of patch 14; use 28"),
        ({"train": {"device": "warp"}}, r'^device "warp" is not on this machine; use "auto" or "cpu"$'),
    ],
)
def test_a_start_that_fails_leaves_no_folder(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train(tmp_path / "run", **over)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("idx_set")
def test_three_channels_on_grey_images(tmp_path: Path) -> None:
    run = train(tmp_path / "run", model={"in_channels": 3}, train={"steps": 1})
    model = vitrail.load(run.folder)
    assert model.config.in_channels == 3
    assert model.preprocessing is not None
    assert len(model.preprocessing.mean) == len(model.preprocessing.std) == 3


def test_no_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config.yaml, so it is no run folder"):
        vitrail.resume(tmp_path)


def test_the_room_is_called_as_the_function() -> None:
    """Python binds the submodule over the function of the same name, once something imports it: both must train."""
    assert vitrail.train is sys.modules["vitrail.train"]
    with pytest.raises(ValueError, match=r'^recipe "nope" is none of'):
        vitrail.train(recipe="nope")


@pytest.mark.usefixtures("idx_set")
def test_epochs_are_counted_in_whole_batches(tmp_path: Path) -> None:
    run = train(tmp_path / "run", train={"steps": None, "epochs": 2, "batch_size": 16})
    assert run.steps == 2 * (54 // 16), "a tenth of the 60 images is held out, what is left over of an epoch is dropped"


@pytest.mark.usefixtures("idx_set")
def test_settings_changed_behind_a_checkpoint_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt, match="step 2 is saved"):
        train(tmp_path / "run")
    settings = tmp_path / "run" / "config.yaml"
    settings.write_text(settings.read_text().replace("steps: 3", "steps: 4"))
    with pytest.raises(ValueError, match=r"was changed since the checkpoint; restore it"):
        vitrail.resume(tmp_path / "run", console=quiet())


def test_files_left_out_of_every_split_are_named(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    photos = image_folder({split: {"cat": 8, "dog": 8} for split in ("train", "val", "test")})
    for split in ("train", "val", "test"):
        (photos / split / "cat" / "broken.jpg").write_bytes(b"no image")
    sections: dict[str, Any] = {"model": TINY | {"img_size": 28}, "train": LENGTH}
    with pytest.raises(ValueError, match=r"broken.jpg"):
        vitrail.train(photos, out=tmp_path / "run", console=quiet(), **sections)
    assert not (tmp_path / "run").exists()
    run = vitrail.train(photos, out=tmp_path / "run", data={"max_bad": 0.2}, console=quiet(), **sections)
    named = (run.folder / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in named] == [f"{split}/cat/broken.jpg" for split in ("test", "train", "val")]


@pytest.mark.slow
@pytest.mark.usefixtures("idx_set")
def test_compiled_blocks_train_and_load_back(tmp_path: Path) -> None:
    run = train(tmp_path / "run", train={"compile": True, "ema_decay": 0.9}, model={"depth": 1})
    loaded = vitrail.load(run.folder)
    assert list(loaded.state_dict()) == list(vitrail.ViT(loaded.config).state_dict())
    assert np.isfinite([line["loss"] for line in lines(run.folder) if "loss" in line]).all()


def write_labels(root: Path) -> Path:
    """labels.csv beside the photographs of `image_folder({"photos": 40})`."""
    names = ("sea", "sky", "sand")
    sides = ("train", "train", "val", "test")
    lines = [
        f"photos/{i}.jpg,{';'.join(name for k, name in enumerate(names) if i % (2 * k + 3) == 0)},{sides[i % 4]}\n"
        for i in range(40)
    ]
    (root / "labels.csv").write_text("path,labels,split\n" + "".join(lines))
    return root


def test_images_with_any_number_of_labels(
    tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_labels(image_folder({"photos": 40}))
    sections: dict[str, Any] = {
        "model": TINY | {"img_size": 28},
        "train": LENGTH | {"steps": 4, "ema_decay": 0.5, "eval_every": 1.0},
        "augment": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "repeats": 2},
    }
    run = vitrail.train(photos, out=tmp_path / "run", console=quiet(), **sections)
    assert isinstance(run.evaluation, MultiLabelEvaluation)
    assert run.split == "test"
    assert 0 < run.evaluation.mean_ap <= 1
    assert json.loads((run.folder / "evaluation.json").read_text())["mean_ap"] == run.evaluation.mean_ap
    assert not (run.folder / "confusion.png").exists()
    logged = lines(run.folder)
    assert {"val_map", "val_f1", "val_bce"} <= {key for line in logged for key in line}
    assert 0 < logged[-1]["loss"] < 2, "the mean binary cross-entropy of a model that knows nothing is ln 2"
    assert "binary_accuracy" in logged[-1]
    assert vitrail.load(run.folder).multi_label

    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        with pytest.raises(KeyboardInterrupt):
            vitrail.train(photos, out=tmp_path / "broken", console=quiet(), **sections)
    resumed = vitrail.resume(tmp_path / "broken", console=quiet())
    assert (resumed.folder / "model.safetensors").read_bytes() == (run.folder / "model.safetensors").read_bytes()

    said = quiet()
    tuned = vitrail.train(photos, weights=run.folder, out=tmp_path / "tuned", console=said, train=LENGTH | {"stop_early": True})
    assert isinstance(tuned.evaluation, MultiLabelEvaluation)
    assert "note: train.stop_early needs images of one class each; it has no effect here" in said.file.getvalue()  # type: ignore[attr-defined]
    assert not (tuned.folder / "ladder.json").exists()
    assert "balance: none" in (tuned.folder / "config.yaml").read_text(), "rare labels are no reason to draw by class"

    for balance in ("sampler", "loss"):
        with pytest.raises(ValueError, match=f'data.balance "{balance}"'):
            vitrail.train(photos, out=tmp_path / "no", console=quiet(), data={"balance": balance}, **sections)
        assert not (tmp_path / "no").exists()


@pytest.mark.usefixtures("idx_set")
@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_repeated_and_balanced_runs_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, balance: str) -> None:
    fields: dict[str, Any] = {
        "augment": {"crop": "pad", "repeats": 3, "mixup_alpha": 0.8, "erase_prob": 0.5},
        "data": {"balance": balance},
        "train": {"steps": 8},
    }
    straight = train(tmp_path / "straight", **fields)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "broken", **fields)
    resumed = vitrail.resume(tmp_path / "broken", console=quiet())
    assert (resumed.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("idx_set")
def test_a_signal_in_the_last_save_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind it come the model's file and the scores, which may take longer than a scheduler waits."""
    straight, save = train(tmp_path / "straight"), checkpoint.save

    def asked(*args: Any, **kwargs: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return save(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", asked)
        with pytest.raises(KeyboardInterrupt, match=r"^step 3 is saved; go on with `vitrail resume"):
            train(tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = vitrail.resume(tmp_path / "run", console=quiet())
    assert (resumed.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("idx_set")
def test_the_best_evaluation_is_kept_where_a_signal_came_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        with pytest.raises(KeyboardInterrupt, match="step 2 is saved"):
            train(
                tmp_path / "run",
                train={"steps": 8, "eval_every": 0.6, "keep": 1, "keep_best": True},
                data={"val_fraction": 0.2},
            )
    scores = iter([0.6, 0.2, 0.4])
    monkeypatch.setattr(Loop, "validate", lambda loop, interrupt: judged(loop, next(scores)))
    vitrail.resume(tmp_path / "run", console=quiet())
    found = [
        json.loads((path / "state.json").read_text()) for path in checkpoint.list_complete(tmp_path / "run" / "checkpoints")
    ]
    assert [state["score"] for state in found] == [0.6, None], "the best, and the last"


@pytest.mark.usefixtures("idx_set")
def test_the_best_of_scores_that_are_better_when_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evaluation, "direction", "lower")
    values, judged_once = iter([0.6, 0.2, 0.4]), dict[int, tuple[Evaluation, Headline]]()

    def headline(scores: Evaluation) -> Headline:
        if id(scores) not in judged_once:
            judged_once[id(scores)] = scores, Headline("error", next(values, 0.5), (0.0, 1.0))
        return judged_once[id(scores)][1]

    monkeypatch.setattr(Evaluation, "headline", property(headline))
    run = train(
        tmp_path / "run",
        train={"steps": 8, "eval_every": 0.6, "keep": 1, "keep_best": True},
        data={"val_fraction": 0.2},
    )
    states = [json.loads((path / "state.json").read_text()) for path in checkpoint.list_complete(run.folder / "checkpoints")]
    assert [state["score"] for state in states] == [-0.2, None], "the lowest error, and the last"
