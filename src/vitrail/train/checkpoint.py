"""Checkpoints: written whole or not at all, every byte under a hash, and read without running anything that stands in them.

    step_00000123/         one checkpoint; step_00000123.old is the one that a save at the same step replaces
        model.safetensors, ema.safetensors, optimizer.safetensors
        .metadata, __0_0.distcp, __1_0.distcp, …     instead, of a model in parts: each process's own, as torch's DCP writes it
        state.json         step, pace, what of the optimizers is plain numbers, the score
        SHA256SUMS         of all other files; `sha256sum -c` reads it
    step_00000123.part/    a draft, or one that is being deleted: never read, gone with the next save

The hashes tell damage, not forgery: who can write into the folder can write hashes as well. Against that, tensors are read
from safetensors, or by torch's weights_only loader, and the one pickle, DCP's .metadata, by an unpickler that knows DCP's
own records and no other name.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.amp import GradScaler

from vitrail.train.distributed import ALONE, Ended, World, in_parts, is_sharded
from vitrail.train.optim import Optimizers
from vitrail.train.step import Ema
from vitrail.weights.run_folder import save_tensors, sha256, sync

STATE, SUMS, PARTS = "state.json", "SHA256SUMS", ".metadata"
HASHING_THREADS = 4
"""Hashing holds no lock, and the optimizer's file is half of all bytes."""
NOBODY: Mapping[str, nn.Module] = MappingProxyType({})


# --------------------------------------------------------------------------------------------------------------------
# Writing


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
    score: float | None = None,
    companions: Mapping[str, nn.Module] = NOBODY,
    world: World = ALONE,
) -> Path:
    """Writes `folder`/step_00000123; leaves the newest `keep` up to it and the one with the highest `score`.

    `companions` learn beside the model, and are in a file of their own. All processes call it. Of a model in parts each writes
    its own; else the first writes all. At any moment in it the folder holds a whole checkpoint if it held one before. Raises
    OSError in the first process where the disk does not take it, Ended in the others.
    """
    final = folder / f"step_{step:08d}"
    draft = draft_of(final)
    tensors, numbers = contents(model, ema, optimizers, companions)
    state = {"step": step, **state, "optimizer": numbers, "score": score if score is None or math.isfinite(score) else None}
    if scaler is not None:
        state["scaler"] = scaler.state_dict()

    def begin() -> None:
        for left in folder.glob("step_*.part"):
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir(parents=True)

    def end() -> None:
        (draft / STATE).write_text(json.dumps(state, allow_nan=False))
        seal(draft, final)
        prune(folder, step=step, keep=keep)

    def write_whole() -> None:
        begin()
        write_files(tensors, draft)
        end()

    try:
        if is_sharded(model):
            world.same_buffers(model)  # whose copies the parts may take from any process
            if ema is not None:
                world.same_buffers(ema.mean)
            world.on_first(begin)
            from vitrail.train import parts  # a second of imports that others do without

            parts.write(draft, tensors)
            world.on_first(lambda: parts.require_all(draft))
            world.on_first(end)
        else:
            world.on_first(write_whole)
    except BaseException as error:  # as DCP's is
        why = reason(error)
        if why is None:
            raise
        if not world.first:
            raise Ended("OSError") from error
        shutil.rmtree(draft, ignore_errors=True)
        way = "`vitrail resume` goes on from the one before" if complete(folder) else "train again"
        raise OSError(f"checkpoint {final} could not be written ({why}); make room, then {way}") from error
    return final


def write_files(tensors: Mapping[str, Tensor], draft: Path) -> None:
    """Write model, running mean, companions and optimizer, each into a file of its own."""
    for part in ("model", "ema", "companions", "optimizer"):
        own = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        if own or part in ("model", "optimizer"):
            save_tensors(own, draft / f"{part}.safetensors")


def seal(draft: Path, final: Path) -> None:
    """Hash and sync every file of a draft, and put it in its place."""
    (draft / SUMS).write_bytes(sums(draft))
    for path in (*draft.iterdir(), draft):
        sync(path)
    put_in_place(draft, final)


def contents(
    model: nn.Module, ema: Ema | None, optimizers: Optimizers, companions: Mapping[str, nn.Module] = NOBODY
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """All tensors of a training ("model.…", "ema.…", "companions.…", "optimizer.…"), and the optimizers' plain numbers."""
    moved, numbers = flatten(optimizers)
    beside = {f"{name}.{key}": value for name, module in companions.items() for key, value in module.state_dict().items()}
    mean = {} if ema is None else ema.mean.state_dict()
    parts = {"model": model.state_dict(), "ema": mean, "companions": beside, "optimizer": moved}
    return {f"{part}.{name}": value.detach() for part, values in parts.items() for name, value in values.items()}, numbers


def reason(error: BaseException) -> str | None:
    """Why the disk did not take a checkpoint, in one line; of several processes the first's. None where it is another fault."""
    failures = getattr(error, "failures", None)  # DCP's CheckpointException, of all processes
    if isinstance(failures, dict) and failures:
        rank, (inner, _) = min(failures.items(), key=lambda item: item[0])
        why = reason(inner)
        return why and f"process {rank}: {why}"
    if isinstance(error, RuntimeError) and "inline_container.cc" in str(error):  # all that torch.save tells of it
        return "a file could not be written to its end, as on a full disk"
    return str(error).partition("\n")[0] if isinstance(error, OSError | SafetensorError) else None


def put_in_place(draft: Path, final: Path) -> None:
    """Renames a draft that is whole and synced. One that stands at its place is put aside, where `newest` finds it, before."""
    if final.exists():
        aside = final.with_name(f"{final.name}.old")
        discard(aside)
        os.replace(final, aside)
    os.replace(draft, final)
    sync(final.parent)
    sync(final.parent.parent)  # which may just have got the folder of checkpoints


def prune(folder: Path, *, step: int, keep: int) -> None:
    """Leaves the newest `keep` checkpoints up to a step, and of those the best-scored.

    What is newer was passed over as damaged when the run went on from an older one, and counts for nothing.
    """
    line = [path for path in complete(folder) if path.suffix != ".old" and number(path) <= step]
    scored = [(value, number(path), path) for path in line if (value := score_of(path)) is not None]
    kept = {*line[-keep:], *(path for _, _, path in sorted(scored)[-1:])}
    for path in complete(folder):
        if path not in kept:
            with contextlib.suppress(OSError):  # the checkpoint is written; what is left here goes with the next
                discard(path)


def score_of(path: Path) -> float | None:
    """The score that a checkpoint was saved with; None where it has none, or can't be read."""
    try:
        score = json.loads((path / STATE).read_bytes())["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(score) if isinstance(score, int | float) else None


def discard(path: Path) -> None:
    """Deletes a checkpoint, if it is there: under a draft's name first, or it would look whole when half of it is gone."""
    if path.exists():
        draft = draft_of(path)
        shutil.rmtree(draft, ignore_errors=True)
        os.replace(path, draft)
        shutil.rmtree(draft, ignore_errors=True)


def draft_of(path: Path) -> Path:
    """The name under which a checkpoint is written, and deleted."""
    return path.with_name(f"{path.name}.part")


# --------------------------------------------------------------------------------------------------------------------
# Finding


def complete(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, oldest first."""
    found = (path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}(\.old)?", path.name))
    return sorted(found, key=lambda path: (number(path), path.suffix != ".old"))


def number(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(path.stem.removeprefix("step_"))


def newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint that is whole, its state, and a line on each newer one that is not and was passed over.

    Every byte is compared with its hash before anything is made of it. Raises ValueError where no checkpoint is whole, or
    there is none.
    """
    faults: list[tuple[Path, ValueError]] = []
    for path in reversed(complete(folder)):
        try:
            return path, read_state(path), [f"checkpoint {there}: {error}" for there, error in faults]
        except ValueError as error:
            faults.append((path, error))
    if not faults:
        raise ValueError(
            f"{folder} holds no checkpoint: the run stopped before the first one; delete {folder.parent}, or say its "
            "`vitrail train` again with --resume auto"
        )
    others = "there is no other" if len(faults) == 1 else "none of the others is whole"
    raise ValueError(f"checkpoint {faults[0][0]}: {faults[0][1]}, and {others}; put one back from a copy, or train again")


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint that is whole. Raises ValueError with what is wrong with any other, as half a sentence."""
    try:
        if not (path / SUMS).exists():
            raise ValueError(f"it has no {SUMS}, so it is not whole, or an earlier version wrote it")
        said, found = (path / SUMS).read_bytes(), sums(path)
        if said != found:
            raise ValueError(difference(said, found))
        state = json.loads((path / STATE).read_bytes())
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise ValueError(f"{STATE} says no step")
    except OSError as error:
        raise ValueError(f"{error.filename or path} can't be read: {error.strerror or error}") from error
    return state


def sums(folder: Path) -> bytes:
    """A line for each file but the list itself, as sha256sum writes them, sorted by name."""
    paths = sorted(path for path in folder.iterdir() if path.name != SUMS)
    with ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="sha256") as pool:
        digests = pool.map(sha256, paths)
        return b"".join(
            f"{digest}  ".encode() + os.fsencode(path.name) + b"\n" for path, digest in zip(paths, digests, strict=True)
        )


def difference(said: bytes, found: bytes) -> str:
    """What is wrong with a folder whose list of hashes is not the one that its files give."""
    for line in found.splitlines():
        if line not in said.splitlines():
            return f"{os.fsdecode(line[66:])} does not match {SUMS}"
    for line in said.splitlines():
        if line not in found.splitlines() and (gone := re.fullmatch(rb"[0-9a-f]{64}  ([\w.]+)", line)):
            return f"{os.fsdecode(gone[1])} is missing"
    return f"{SUMS} is damaged"


# --------------------------------------------------------------------------------------------------------------------
# Reading


def restore(
    path: Path,
    state: dict[str, Any],
    *,
    model: nn.Module,
    ema: Ema | None,
    optimizers: Optimizers,
    scaler: GradScaler | None = None,
    companions: Mapping[str, nn.Module] = NOBODY,
) -> None:
    """Puts the weights, running mean, optimizer state and loss scale of a checkpoint that `newest` gave in place.

    Both forms go into a whole model and into one in parts, at any number of processes, without a word between them. Raises
    ValueError where the checkpoint is of another model.
    """
    apart = (path / PARTS).exists()
    if apart:
        from vitrail.train import parts
    stored = (
        parts.sizes(path)
        if apart
        else {f"{file.stem}.{name}": value for file in path.glob("*.safetensors") for name, value in load_file(file).items()}
    )
    targets, _ = contents(model, ema, Optimizers(()), companions)
    targets |= {name: slot(name, value, optimizers) for name, value in stored.items() if name.startswith("optimizer.")}
    for name in sorted(stored.keys() | targets.keys()):
        has, wanted = (tuple(side[name].shape) if name in side else None for side in (stored, targets))
        if has != wanted:
            raise ValueError(
                f"checkpoint {path} has {name} of shape {has} where the run's model has {wanted}; "
                "put back the config.yaml that it was trained with"
            )
    if apart:
        parts.read(path, targets)
    else:
        for name, value in stored.items():
            place(targets[name], value)
    moved = {name.removeprefix("optimizer."): value for name, value in targets.items() if name.startswith("optimizer.")}
    unflatten(optimizers, moved, state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])


def slot(name: str, value: Tensor, optimizers: Optimizers) -> Tensor:
    """Where a tensor of an optimizer's state goes: split and ordered in memory as its parameter is, if it has that shape.

    A fused step walks both in memory order, and a weight may be channels-last.
    """
    _, part, index, _ = name.split(".", 3)
    parameter = [p for group in optimizers.parts[int(part)].param_groups for p in group["params"]][int(index)]
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    return torch.empty(value.shape, dtype=value.dtype)


@torch.no_grad()
def place(target: Tensor, value: Tensor) -> None:
    """Copies a whole tensor into a target; of one in parts, this process's part."""
    if in_parts(target):
        from vitrail.train import parts

        value = parts.own(target, value)
    target.copy_(value)


# --------------------------------------------------------------------------------------------------------------------
# Optimizers


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
    """The other way; the tensors are taken, not copied."""
    for part, optimizer in enumerate(optimizers.parts):
        state: dict[int, dict[str, object]] = {}
        for name, value in tensors.items():
            owner, index, key = name.split(".", 2)
            if int(owner) == part:
                state.setdefault(int(index), {})[key] = value
        for name, number_ in numbers[part].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = number_
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
