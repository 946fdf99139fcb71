"""Checkpoints: written whole or not at all, hashed, and read without unpickling anything."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp import GradScaler

from vitrail.train.optim import Optimizers
from vitrail.train.step import Ema
from vitrail.weights.run_folder import sha256

STATE = "state.json"


def save(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    ema: Ema | None,
    optimizers: Optimizers,
    state: dict[str, Any],
    keep: int,
    scaler: GradScaler | None = None,
) -> Path:
    """Writes `folder`/step_00000123 and leaves the newest `keep`. An interrupted write leaves only a .part folder."""
    final = folder / f"step_{step:08d}"
    draft = final.with_suffix(".part")
    tensors = {"model": model.state_dict()}
    if ema is not None:
        tensors["ema"] = ema.mean.state_dict()
    tensors["optimizer"], numbers = flatten(optimizers)
    if scaler is not None:
        state = {**state, "scaler": scaler.state_dict()}
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, values in tensors.items():
            save_file({key: value.detach().contiguous() for key, value in values.items()}, draft / f"{name}.safetensors")
        sums = {path.name: sha256(path) for path in sorted(draft.iterdir())}
        (draft / STATE).write_text(json.dumps({"step": step, **state, "optimizer": numbers, "sha256": sums}))
        for path in draft.iterdir():
            sync(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(draft, final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        way = (
            "make room, then `vitrail resume` goes on from the one before"
            if complete(folder)
            else "make room, then train again"
        )
        raise OSError(f"checkpoint {final} could not be written ({error}); {way}") from error
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint and its state, every file checked. Raises ValueError where there is none, or a file is damaged."""
    found = complete(folder)
    if not found:
        raise ValueError(f"{folder} holds no checkpoint; the run stopped before the first one: train again")
    path = found[-1]
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
        damaged = [name for name, digest in state["sha256"].items() if sha256(path / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint {path} can't be read ({error}); delete that folder and resume from the one before"
        ) from error
    if damaged:
        raise ValueError(f"checkpoint {path}: {damaged[0]} is damaged; delete that folder and resume from the one before")
    return path, state


def restore(
    path: Path,
    state: dict[str, Any],
    *,
    model: nn.Module,
    ema: Ema | None,
    optimizers: Optimizers,
    scaler: GradScaler | None = None,
) -> None:
    """Puts a checkpoint's weights, running mean, optimizer state and loss scale in place."""
    model.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    if ema is not None:
        ema.mean.load_state_dict(load_file(path / "ema.safetensors"), strict=True)
    unflatten(optimizers, load_file(path / "optimizer.safetensors"), state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])


def complete(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, oldest first."""
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))


def flatten(optimizers: Optimizers) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The optimizers' tensors under flat names, and what of their state is plain numbers (one dict an optimizer)."""
    tensors: dict[str, Tensor] = {}
    numbers: list[dict[str, float]] = []
    for part, optimizer in enumerate(optimizers.parts):
        plain = {}
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{part}.{index}.{key}"] = value
                elif value is not None:
                    plain[f"{index}.{key}"] = value
        numbers.append(plain)
    return tensors, numbers


def unflatten(optimizers: Optimizers, tensors: dict[str, Tensor], numbers: list[dict[str, float]]) -> None:
    """The other way."""
    for part, optimizer in enumerate(optimizers.parts):
        state: dict[int, dict[str, object]] = {}
        members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, value in tensors.items():
            owner, index, key = name.split(".", 2)
            if int(owner) != part:
                continue
            parameter = members[int(index)]
            if value.shape == parameter.shape:  # a fused step walks both in memory order, and a weight may be channels-last
                value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
            state.setdefault(int(index), {})[key] = value
        for name, number in numbers[part].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = number
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
