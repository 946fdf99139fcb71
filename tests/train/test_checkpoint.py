"""Checkpoints: whole or not at all, hashed, and the state of every optimizer comes back bit for bit."""

from __future__ import annotations

import copy
import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from vitrail.config import OptimConfig
from vitrail.models import ViT
from vitrail.train import checkpoint
from vitrail.train.optim import Optimizers, build_optimizers
from vitrail.train.step import Ema


def parts(name: str = "muon") -> tuple[ViT, Ema, Optimizers]:
    torch.manual_seed(0)
    model = ViT(img_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3, stem="conv")
    config = OptimConfig(name=name, lr=0.1)  # type: ignore[arg-type]
    return model, Ema(model, copy.deepcopy(model), 0.9), build_optimizers(model, config, batch_size=1024)


def move(model: ViT, ema: Ema, optimizers: Optimizers, *, steps: range) -> None:
    for step in steps:
        images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        model(images).square().sum().backward()
        optimizers.step()
        optimizers.zero_grad()
        ema.update(step)


def save(folder: Path, step: int, model: nn.Module, ema: Ema | None, optimizers: Optimizers, *, keep: int = 2) -> Path:
    state: dict[str, Any] = {"pace": {"steps": 9}}
    return checkpoint.save(folder, step=step, model=model, ema=ema, optimizers=optimizers, state=state, keep=keep)


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_the_next_steps_are_bit_identical(tmp_path: Path, name: str) -> None:
    model, ema, optimizers = parts(name)
    move(model, ema, optimizers, steps=range(3))
    save(tmp_path, 3, model, ema, optimizers)

    other, other_ema, other_optimizers = parts(name)
    path, state = checkpoint.newest(tmp_path)
    checkpoint.restore(path, state, model=other, ema=other_ema, optimizers=other_optimizers)
    assert (state["step"], state["pace"]) == (3, {"steps": 9})
    for one, its_ema, its_optimizers in ((model, ema, optimizers), (other, other_ema, other_optimizers)):
        move(one, its_ema, its_optimizers, steps=range(3, 6))
    for ours, theirs in ((model, other), (ema.mean, other_ema.mean)):
        for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b), key


def test_the_loss_scale_comes_back(tmp_path: Path) -> None:
    """Scale and the count of steps towards the next doubling: else a resumed run would double it later."""
    model, _, optimizers = parts()
    scalers = [GradScaler("cpu", init_scale=2.0**40, growth_interval=3) for _ in range(2)]
    for _ in range(2):
        step(model, optimizers, scalers[0])
    checkpoint.save(tmp_path, step=2, model=model, ema=None, optimizers=optimizers, state={}, keep=1, scaler=scalers[0])
    other, _, other_optimizers = parts()
    path, state = checkpoint.newest(tmp_path)
    checkpoint.restore(path, state, model=other, ema=None, optimizers=other_optimizers, scaler=scalers[1])
    assert scalers[1].state_dict() == scalers[0].state_dict()
    for one, its_optimizers, scaler in ((model, optimizers, scalers[0]), (other, other_optimizers, scalers[1])):
        step(one, its_optimizers, scaler)
        assert scaler.get_scale() == 2.0**41
    for (key, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def step(model: ViT, optimizers: Optimizers, scaler: GradScaler) -> None:
    scaler.scale(1e-6 * model(torch.ones(2, 1, 8, 8)).square().sum()).backward()
    for part in optimizers.parts:
        scaler.step(part)
    scaler.update()
    optimizers.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_flatten_and_back_keeps_every_number(name: str) -> None:
    model, ema, optimizers = parts(name)
    move(model, ema, optimizers, steps=range(2))
    tensors, numbers = checkpoint.flatten(optimizers)
    assert tensors, "an optimizer that moved has a state"
    fresh = parts(name)[2]
    checkpoint.unflatten(fresh, {key: value.clone() for key, value in tensors.items()}, numbers)
    again, again_numbers = checkpoint.flatten(fresh)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert again_numbers == numbers
    assert [group["peak_lr"] for group in fresh.groups()] == [group["peak_lr"] for group in optimizers.groups()]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    model, ema, optimizers = parts()
    for step in (1, 2, 30):
        save(tmp_path, step, model, ema, optimizers, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000030"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_error_in_the_middle_leaves_the_last_one_and_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    model, ema, optimizers = parts()
    save(tmp_path, 1, model, ema, optimizers)
    written = []
    save_file = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        written.append(path)
        if len(written) == at:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"step_00000002 could not be written \(.*No space left.*\); make room, then") as error:
        save(tmp_path, 2, model, ema, optimizers)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoint.newest(tmp_path)[1]["step"] == 1


def test_a_process_that_is_killed_leaves_a_draft_that_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ema, optimizers = parts()
    save(tmp_path, 1, model, ema, optimizers)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, model, ema, optimizers)
    assert checkpoint.newest(tmp_path)[1]["step"] == 1
    save(tmp_path, 2, model, ema, optimizers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors"])
def test_one_flipped_byte_is_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1, *parts())
    content = bytearray((path / name).read_bytes())
    content[-1] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged; delete that folder and resume from the one before$") as error:
        checkpoint.newest(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1}', "\x00"])
def test_a_state_that_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1, *parts())
    (path / "state.json").write_text(text)
    with pytest.raises(ValueError, match=r"can't be read .*; delete that folder and resume from the one before$"):
        checkpoint.newest(tmp_path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no checkpoint; the run stopped before the first one: train again$"):
        checkpoint.newest(tmp_path / "checkpoints")
