"""Checkpoints: written atomically, every byte hashed, and loaded without executing their contents.

    step_00000123/         one checkpoint; step_00000123.old is the one that a save at the same step replaces
        model.safetensors, ema.safetensors, optimizer.safetensors
        .metadata, __0_0.distcp, __1_0.distcp, …     instead, of a sharded model: one file per process, in torch's DCP format
        state.json         step, pace, the optimizers' plain numbers, the score
        SHA256SUMS         hashes of all other files; `sha256sum -c` reads it
    step_00000123.part/    a draft, or one that is being deleted: never read, removed by the next save

The hashes detect damage, not forgery: anybody who can write into the folder can write hashes as well. Against forgery, tensors
are read from safetensors, or by torch's weights_only loader, and the one pickle, DCP's .metadata, by an unpickler that allows
DCP's records and no other class.
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

from vitrail.train.distributed import SINGLE_PROCESS, PeerFailed, World, is_sharded, is_sharded_tensor
from vitrail.train.optim import Optimizers
from vitrail.train.step import Ema
from vitrail.weights.run_folder import save_tensors, sha256, sync

STATE, SUMS, SHARD_METADATA = "state.json", "SHA256SUMS", ".metadata"
HASHING_THREADS = 4
"""Threads that hash files: hashing releases the GIL, and the optimizer's file is half of all bytes."""
NO_COMPANIONS: Mapping[str, nn.Module] = MappingProxyType({})


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
    companions: Mapping[str, nn.Module] = NO_COMPANIONS,
    world: World = SINGLE_PROCESS,
) -> Path:
    """Write `folder`/step_00000123, and delete all but the newest `keep` up to it and the one with the highest `score`.

    `companions` are modules trained beside the model, in a file of their own. All processes have to call it: each writes its
    shard of a sharded model; else the first writes everything. A folder that holds a complete checkpoint holds one at any
    moment of the call. Raises OSError in the first process where the disk fails, PeerFailed in the others.
    """
    final = folder / f"step_{step:08d}"
    draft = draft_path(final)
    tensors, numbers = collect_tensors(model, ema, optimizers, companions)
    state = {"step": step, **state, "optimizer": numbers, "score": score if score is None or math.isfinite(score) else None}
    if scaler is not None:
        state["scaler"] = scaler.state_dict()

    def create_draft() -> None:
        for left in folder.glob("step_*.part"):
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir(parents=True)

    def publish() -> None:
        (draft / STATE).write_text(json.dumps(state, allow_nan=False))
        seal(draft, final)
        prune(folder, step=step, keep=keep)

    def write_unsharded() -> None:
        create_draft()
        write_files(tensors, draft)
        publish()

    try:
        if is_sharded(model):
            world.broadcast_buffers(model)  # DCP may take a buffer's copy from any process
            if ema is not None:
                world.broadcast_buffers(ema.mean)
            world.run_on_first(create_draft)
            from vitrail.train import sharded  # its imports take a second, which unsharded runs save

            sharded.write(draft, tensors)
            world.run_on_first(lambda: sharded.require_all_shards(draft))
            world.run_on_first(publish)
        else:
            world.run_on_first(write_unsharded)
    except BaseException as error:  # DCP's CheckpointException is no Exception
        raise_disk_error(error, draft, final, world)
        raise
    return final


def raise_disk_error(error: BaseException, draft: Path, final: Path, world: World) -> None:
    """Raise OSError with the way out, or PeerFailed in the other processes, for a disk that fails; else do nothing."""
    failure = disk_error(error)
    if failure is None:
        return
    if not world.first:
        raise PeerFailed("OSError") from error
    shutil.rmtree(draft, ignore_errors=True)
    way_out = "`vitrail resume` goes on from the one before" if list_complete(final.parent) else "train again"
    raise OSError(f"checkpoint {final} could not be written ({failure}); make room, then {way_out}") from error


def write_files(tensors: Mapping[str, Tensor], draft: Path) -> None:
    """Write model, running mean, companions and optimizer, each into a file of its own."""
    for part in ("model", "ema", "companions", "optimizer"):
        members = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        if members or part in ("model", "optimizer"):
            save_tensors(members, draft / f"{part}.safetensors")


def seal(draft: Path, final: Path) -> None:
    """Hash and sync every file of a draft, and move it into place."""
    (draft / SUMS).write_bytes(checksums(draft))
    for path in (*draft.iterdir(), draft):
        sync(path)
    move_into_place(draft, final)


def collect_tensors(
    model: nn.Module, ema: Ema | None, optimizers: Optimizers, companions: Mapping[str, nn.Module] = NO_COMPANIONS
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Return all tensors of a run ("model.…", "ema.…", "companions.…", "optimizer.…"), and the optimizers' plain numbers."""
    moments, numbers = flatten(optimizers)
    beside = {f"{name}.{key}": value for name, module in companions.items() for key, value in module.state_dict().items()}
    mean = {} if ema is None else ema.mean.state_dict()
    parts = {"model": model.state_dict(), "ema": mean, "companions": beside, "optimizer": moments}
    return {f"{part}.{name}": value.detach() for part, values in parts.items() for name, value in values.items()}, numbers


def disk_error(error: BaseException) -> str | None:
    """Return the disk error behind an exception, in one line (the first process's); None for any other fault."""
    failures = getattr(error, "failures", None)  # those of all processes, in DCP's CheckpointException
    if isinstance(failures, dict) and failures:
        rank, (inner, _) = min(failures.items(), key=lambda item: item[0])
        text = disk_error(inner)
        return text and f"process {rank}: {text}"
    if isinstance(error, RuntimeError) and "inline_container.cc" in str(error):  # torch.save names no error number
        return "a file could not be written to its end, as on a full disk"
    return str(error).partition("\n")[0] if isinstance(error, OSError | SafetensorError) else None


def move_into_place(draft: Path, final: Path) -> None:
    """Rename a synced draft to its final name. An existing checkpoint is first renamed to .old, which `find_newest` reads."""
    if final.exists():
        aside = final.with_name(f"{final.name}.old")
        discard(aside)
        os.replace(final, aside)
    os.replace(draft, final)
    sync(final.parent)
    sync(final.parent.parent)  # the folder of checkpoints may be new


def prune(folder: Path, *, step: int, keep: int) -> None:
    """Delete all checkpoints but the newest `keep` up to a step, and the best-scored up to it.

    Newer ones were skipped as damaged when the run resumed from an older one, and do not count.
    """
    candidates = [path for path in list_complete(folder) if path.suffix != ".old" and step_of(path) <= step]
    scored = [(value, step_of(path), path) for path in candidates if (value := read_score(path)) is not None]
    kept = {*candidates[-keep:], *(path for _, _, path in sorted(scored)[-1:])}
    for path in list_complete(folder):
        if path not in kept:
            with contextlib.suppress(OSError):  # the checkpoint is written; the next save deletes the rest
                discard(path)


def find_best(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the intact checkpoint with the highest score, the newest of equals, and its state; None where none has a score."""
    scored = [(score, step_of(path), path) for path in list_complete(folder) if (score := read_score(path)) is not None]
    for _, _, path in sorted(scored, reverse=True):
        with contextlib.suppress(ValueError):  # a damaged one
            return path, read_state(path)
    return None


def read_score(path: Path) -> float | None:
    """Return the score of a checkpoint; None where it has none, or can't be read."""
    try:
        score = json.loads((path / STATE).read_bytes())["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(score) if isinstance(score, int | float) else None


def discard(path: Path) -> None:
    """Delete a checkpoint, if it exists. It is renamed to a draft first: half of it must not look complete."""
    if path.exists():
        draft = draft_path(path)
        shutil.rmtree(draft, ignore_errors=True)
        os.replace(path, draft)
        shutil.rmtree(draft, ignore_errors=True)


def draft_path(path: Path) -> Path:
    """Return the path under which a checkpoint is written and deleted."""
    return path.with_name(f"{path.name}.part")


# --------------------------------------------------------------------------------------------------------------------
# Finding


def list_complete(folder: Path) -> list[Path]:
    """Return the paths of all complete checkpoints, oldest first."""
    paths = (path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}(\.old)?", path.name))
    return sorted(paths, key=lambda path: (step_of(path), path.suffix != ".old"))


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.stem.removeprefix("step_"))


def find_newest(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """Return the newest intact checkpoint, its state, and a line for each newer one that is damaged and skipped.

    Every byte is compared with its hash before it is used. Raises ValueError where no checkpoint is intact.
    """
    faults: list[tuple[Path, ValueError]] = []
    for path in reversed(list_complete(folder)):
        try:
            return path, read_state(path), [f"checkpoint {damaged}: {error}" for damaged, error in faults]
        except ValueError as error:
            faults.append((path, error))
    if not faults:
        raise ValueError(
            f"{folder} holds no checkpoint: the run stopped before the first one; delete {folder.parent}, or rerun its "
            "`vitrail train` command with --resume auto"
        )
    others = "there is no other" if len(faults) == 1 else "none of the others is whole"
    raise ValueError(f"checkpoint {faults[0][0]}: {faults[0][1]}, and {others}; put one back from a copy, or train again")


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of an intact checkpoint. Raises ValueError for a damaged one, with the damage as half a sentence."""
    try:
        if not (path / SUMS).exists():
            raise ValueError(f"it has no {SUMS}, so it is not whole, or an earlier version wrote it")
        expected, actual = (path / SUMS).read_bytes(), checksums(path)
        if expected != actual:
            raise ValueError(describe_mismatch(expected, actual))
        state = json.loads((path / STATE).read_bytes())
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise ValueError(f"{STATE} has no step")
    except OSError as error:
        raise ValueError(f"{error.filename or path} can't be read: {error.strerror or error}") from error
    return state


def checksums(folder: Path) -> bytes:
    """Return the contents of SHA256SUMS for a folder: a line for each other file, sorted by name, in sha256sum's format."""
    paths = sorted(path for path in folder.iterdir() if path.name != SUMS)
    with ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="sha256") as pool:
        digests = pool.map(sha256, paths)
        return b"".join(
            f"{digest}  ".encode() + os.fsencode(path.name) + b"\n" for path, digest in zip(paths, digests, strict=True)
        )


def describe_mismatch(expected: bytes, actual: bytes) -> str:
    """Name a file whose hash differs between the expected and the actual SHA256SUMS."""
    for line in actual.splitlines():
        if line not in expected.splitlines():
            return f"{os.fsdecode(line[66:])} does not match {SUMS}"
    for line in expected.splitlines():
        if line not in actual.splitlines() and (gone := re.fullmatch(rb"[0-9a-f]{64}  ([\w.]+)", line)):
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
    companions: Mapping[str, nn.Module] = NO_COMPANIONS,
) -> None:
    """Load weights, running mean, optimizer state and loss scale from a checkpoint returned by `find_newest`, in place.

    Sharded and unsharded checkpoints load into sharded and unsharded models, at any number of processes, without communication.
    Raises ValueError for a checkpoint of another model.
    """
    is_sharded_checkpoint = (path / SHARD_METADATA).exists()
    if is_sharded_checkpoint:
        from vitrail.train import sharded
    stored = (
        sharded.read_shapes(path)
        if is_sharded_checkpoint
        else {f"{file.stem}.{name}": value for file in path.glob("*.safetensors") for name, value in load_file(file).items()}
    )
    targets, _ = collect_tensors(model, ema, Optimizers(()), companions)
    targets |= {name: allocate_like(name, value, optimizers) for name, value in stored.items() if name.startswith("optimizer.")}
    for name in sorted(stored.keys() | targets.keys()):
        shape, expected = (tuple(tensors[name].shape) if name in tensors else None for tensors in (stored, targets))
        if shape != expected:
            raise ValueError(
                f"checkpoint {path} has {name} of shape {shape} where the run's model has {expected}; "
                "put back the config.yaml that it was trained with"
            )
    if is_sharded_checkpoint:
        sharded.read(path, targets)
    else:
        for name, value in stored.items():
            copy_into(targets[name], value)
    moments = {name.removeprefix("optimizer."): value for name, value in targets.items() if name.startswith("optimizer.")}
    unflatten(optimizers, moments, state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])


def allocate_like(name: str, value: Tensor, optimizers: Optimizers) -> Tensor:
    """Allocate a tensor of an optimizer's state, with its parameter's sharding and memory format if it has its shape.

    A fused step walks both in memory order, and a weight may be channels-last.
    """
    _, part, index, _ = name.split(".", 3)
    parameter = [p for group in optimizers.parts[int(part)].param_groups for p in group["params"]][int(index)]
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    return torch.empty(value.shape, dtype=value.dtype)


@torch.no_grad()
def copy_into(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into a target; into a sharded target, this process's shard of it."""
    if is_sharded_tensor(target):
        from vitrail.train import sharded

        value = sharded.shard_like(target, value)
    target.copy_(value)


# --------------------------------------------------------------------------------------------------------------------
# Optimizers


def flatten(optimizers: Optimizers) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Return the optimizers' tensors under flat names, and the plain numbers of their state (one dict per optimizer)."""
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
    """Load the result of `flatten` into the optimizers; tensors are not copied."""
    for part, optimizer in enumerate(optimizers.parts):
        state: dict[int, dict[str, object]] = {}
        for name, value in tensors.items():
            owner, index, key = name.split(".", 2)
            if int(owner) == part:
                state.setdefault(int(index), {})[key] = value
        for name, number in numbers[part].items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = number
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
