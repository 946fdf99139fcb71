"""Checkpoints: whole or not at all, every byte under a hash, and all comes back bit for bit, in one process or in several."""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed.checkpoint import filesystem as dcp_files
from torch.distributed.checkpoint.api import CheckpointException

from vitrail.models import ViT
from vitrail.settings import OptimConfig
from vitrail.train import checkpoint, distributed, sharded
from vitrail.train.distributed import PeerFailed, World
from vitrail.train.optim import Optimizers, build_optimizers
from vitrail.train.step import Ema

NAMES = ["adamw", "muon", "sgd"]


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


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    ema: Ema | None,
    optimizers: Optimizers,
    *,
    keep: int = 2,
    score: float | None = None,
    world: World = distributed.SINGLE_PROCESS,
) -> Path:
    state: dict[str, Any] = {"pace": {"steps": 9}}
    return checkpoint.save(
        folder, step=step, model=model, ema=ema, optimizers=optimizers, state=state, keep=keep, score=score, world=world
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture(params=["whole", "in parts"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms of a checkpoint; the one in parts as one process without a process group writes it."""
    if request.param == "in parts":
        monkeypatch.setattr(checkpoint, "is_sharded", lambda _: True)
    return str(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_the_next_steps_are_bit_identical(tmp_path: Path, name: str, form: str) -> None:
    model, ema, optimizers = parts(name)
    move(model, ema, optimizers, steps=range(3))
    save(tmp_path, 3, model, ema, optimizers)

    other, other_ema, other_optimizers = parts(name)
    path, state, _ = checkpoint.find_newest(tmp_path)
    checkpoint.restore(path, state, model=other, ema=other_ema, optimizers=other_optimizers)
    assert (state["step"], state["pace"]) == (3, {"steps": 9})
    assert (path / ".metadata").exists() == (form == "in parts")
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
    path, state, _ = checkpoint.find_newest(tmp_path)
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


@pytest.mark.parametrize("name", NAMES)
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


# --------------------------------------------------------------------------------------------------------------------
# Which are kept


def test_the_newest_are_kept(tmp_path: Path) -> None:
    model, ema, optimizers = parts()
    for step in (1, 2, 99_999_999, 100_000_000):
        save(tmp_path, step, model, ema, optimizers, keep=2)
    assert [path.name for path in checkpoint.list_complete(tmp_path)] == ["step_99999999", "step_100000000"]
    assert len(names(tmp_path)) == 2


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    model, ema, optimizers = parts()
    for step, score in enumerate([0.2, 0.7, None, 0.5, float("nan"), 0.6], start=1):
        save(tmp_path, step, model, ema, optimizers, keep=2, score=score)
    assert names(tmp_path) == ["step_00000002", "step_00000005", "step_00000006"]
    save(tmp_path, 7, model, ema, optimizers, keep=1, score=0.7)
    assert names(tmp_path) == ["step_00000007"], "of two alike, the newer"


def test_what_is_newer_than_a_save_is_of_a_line_that_was_left(tmp_path: Path) -> None:
    """The newest is damaged, the run goes on from the one before: the damaged one does not push a whole one out."""
    model, ema, optimizers = parts()
    for step in (1, 5):
        save(tmp_path, step, model, ema, optimizers)
    flip(tmp_path / "step_00000005" / "model.safetensors", -1)
    path, state, damaged = checkpoint.find_newest(tmp_path)
    assert (path.name, state["step"]) == ("step_00000001", 1)
    assert damaged == [f"checkpoint {tmp_path / 'step_00000005'}: model.safetensors does not match SHA256SUMS"]
    save(tmp_path, 3, model, ema, optimizers, keep=1)
    assert names(tmp_path) == ["step_00000003"]
    assert checkpoint.find_newest(tmp_path)[2] == []


# --------------------------------------------------------------------------------------------------------------------
# Faults while it is written


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_error_in_the_middle_leaves_the_last_one_and_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    model, ema, optimizers = parts()
    save(tmp_path, 1, model, ema, optimizers)
    written = []
    save_file = checkpoint.save_tensors

    def full(tensors: Any, path: Path) -> None:
        written.append(path)
        if len(written) == at:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(OSError, match=r"step_00000002 could not be written \(.*No space left.*\); make room, then") as error:
        save(tmp_path, 2, model, ema, optimizers)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["step_00000001"]
    assert checkpoint.find_newest(tmp_path)[1]["step"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_disk_that_takes_no_more_is_one_line(tmp_path: Path, form: str) -> None:
    import resource

    model, ema, optimizers = parts()
    move(model, ema, optimizers, steps=range(1))
    save(tmp_path, 1, model, ema, optimizers)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"step_00000002 could not be written \(.+\); make room, then `vitrail resume`"
        ) as error:
            save(tmp_path, 2, model, ema, optimizers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert "inline_container" not in str(error.value)
    assert names(tmp_path) == ["step_00000001"]
    assert checkpoint.find_newest(tmp_path)[1]["step"] == 1


def test_a_fault_of_ours_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> None:
        raise CheckpointException("", {0: (TypeError("ours"), None)})  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "is_sharded", lambda _: True)
    monkeypatch.setattr("vitrail.train.sharded.write", wrong)
    with pytest.raises(CheckpointException):
        save(tmp_path, 1, *parts())


class Killed(BaseException):
    """What no code of ours catches."""


def kill_at(last: int, patched: pytest.MonkeyPatch) -> list[int]:
    """Ends the process, as it were, at the n-th thing that is done to the disk, half-way into it; gives the count."""
    done = [0]

    def cut(owner: Any, name: str, half: Callable[..., Any]) -> None:
        do = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            done[0] += 1
            if done[0] == last:
                half(*args)
                raise Killed
            return do(*args, **options)

        patched.setattr(owner, name, counted)

    def torn(path: Path) -> None:
        path.write_bytes(b"{")

    def half_deleted(path: Path, *_: Any) -> None:
        for file in sorted(path.iterdir())[::2] if path.exists() else ():
            file.unlink()

    def nothing(*_: Any) -> None: ...

    cut(checkpoint, "save_tensors", lambda _, path: torn(path))
    cut(sharded, "write", lambda draft, _: torn(draft / "__0_0.distcp"))
    cut(checkpoint, "checksums", nothing)
    cut(checkpoint, "sync", nothing)
    cut(checkpoint.os, "replace", nothing)
    cut(checkpoint.shutil, "rmtree", half_deleted)
    return done


@pytest.mark.parametrize("again", [2, 3], ids=["at the same step", "later"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, again: int
) -> None:
    model, ema, optimizers = parts()
    before = tmp_path / "before"
    save(before, 2, model, ema, optimizers, keep=1)
    seen = set()
    for last in itertools.count(1):
        folder = tmp_path / str(last)
        shutil.copytree(before, folder)
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            done = kill_at(last, patched)
            save(folder, again, model, None, optimizers, keep=1)
        path, state, damaged = checkpoint.find_newest(folder)
        seen.add((state["step"], form == "in parts" or (path / "ema.safetensors").exists()))
        assert damaged == [], "what was cut does not look like a checkpoint"
        save(folder, 4, model, ema, optimizers, keep=1)
        assert names(folder) == ["step_00000004"], "nothing is left behind"
        if done[0] < last:
            break
    assert last > 10
    assert seen == {(2, True), (again, form == "in parts")}, "it is the one before, or the new one"


def test_a_damaged_one_at_the_same_step_is_replaced(tmp_path: Path) -> None:
    model, ema, optimizers = parts()
    for step in (1, 2):
        save(tmp_path, step, model, ema, optimizers)
    flip(tmp_path / "step_00000002" / "state.json", 3)
    save(tmp_path, 2, model, ema, optimizers)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]
    assert checkpoint.find_newest(tmp_path)[1:] == (checkpoint.read_state(tmp_path / "step_00000002"), [])


# --------------------------------------------------------------------------------------------------------------------
# Damage


def damages(path: Path) -> Iterator[tuple[str, str]]:
    """Does one damage after the other to a checkpoint, and undoes it: what was done, and the words that are to be said."""
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        says = f"{file.name} does not match SHA256SUMS" if file.name != "SHA256SUMS" else "SHA256SUMS"
        few = len(content) < 2000
        for at in range(len(content)) if few else (0, 8, len(content) // 2, len(content) - 1):
            flip(file, at)
            yield f"byte {at} of {file.name} flipped", says
            file.write_bytes(content)
        for size in (0, 1, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:size])
            yield f"{file.name} cut at {size}", says if size or file.name != "SHA256SUMS" else "SHA256SUMS"
        file.write_bytes(content + b"\n")
        yield f"{file.name} longer by a line", says
        file.unlink()
        yield f"{file.name} gone", f"{file.name} is missing" if file.name != "SHA256SUMS" else "it has no SHA256SUMS"
        file.write_bytes(content)
    extra = path / "extra"
    extra.write_bytes(b"")
    yield "an empty file more", "extra does not match SHA256SUMS"
    extra.unlink()
    extra.mkdir()
    yield "a folder more", "extra can't be read: Is a directory"
    extra.rmdir()


def test_every_damage_is_found_and_named(tmp_path: Path, form: str) -> None:
    model, ema, optimizers = parts()
    move(model, ema, optimizers, steps=range(1))
    save(tmp_path, 1, model, ema, optimizers)
    path = save(tmp_path, 2, model, ema, optimizers)
    count = 0
    for done, says in damages(path):
        found, _, damaged = checkpoint.find_newest(tmp_path)
        assert found.name == "step_00000001", done
        assert len(damaged) == 1, done
        assert says in damaged[0], done
        assert "\n" not in damaged[0], done
        count += 1
    assert count > 250
    assert checkpoint.find_newest(tmp_path)[0] == path, "all is as it was"


def test_where_none_is_whole_it_is_said(tmp_path: Path) -> None:
    path = save(tmp_path, 1, *parts())
    flip(path / "ema.safetensors", -1)
    with pytest.raises(
        ValueError, match=r"step_00000001: ema\.safetensors does not match SHA256SUMS, and there is no other; put"
    ):
        checkpoint.find_newest(tmp_path)
    second = save(tmp_path, 2, *parts())
    (second / "SHA256SUMS").unlink()
    with pytest.raises(
        ValueError, match=r"step_00000002: it has no SHA256SUMS, .*, and none of the others is whole; put"
    ) as error:
        checkpoint.find_newest(tmp_path)
    assert "\n" not in str(error.value)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no checkpoint: the run stopped before the first one; delete .*, or rerun"):
        checkpoint.find_newest(tmp_path / "checkpoints")


@pytest.mark.parametrize("text", ["[]", "{", '{"steps": 1}'])
def test_a_state_that_is_none_is_refused_under_any_hash(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1, *parts())
    (path / "state.json").write_text(text)
    (path / "SHA256SUMS").write_bytes(checkpoint.checksums(path))
    with pytest.raises(ValueError, match=r"step_00000001: .*there is no other"):
        checkpoint.find_newest(tmp_path)


def test_sha256sum_reads_the_list(tmp_path: Path) -> None:
    path = save(tmp_path, 1, *parts())
    lines = [line.split("  ") for line in (path / "SHA256SUMS").read_text().splitlines()]
    assert [name for _, name in lines] == ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert all(checkpoint.sha256(path / name) == digest for digest, name in lines)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_forged_record_of_parts_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "is_sharded", lambda _: True)
    model, ema, optimizers = parts()
    path = save(tmp_path, 1, model, ema, optimizers)
    (path / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    (path / "SHA256SUMS").write_bytes(checkpoint.checksums(path))
    path, state, _ = checkpoint.find_newest(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=r"asks for posix\.mkdir, which is no part of a checkpoint"):
        checkpoint.restore(path, state, model=model, ema=ema, optimizers=optimizers)
    assert not (tmp_path / "ran").exists()


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path, form: str) -> None:
    model, ema, optimizers = parts()
    path = save(tmp_path, 1, model, ema, optimizers)
    state = checkpoint.read_state(path)
    other = ViT(img_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=4, stem="conv")
    with pytest.raises(ValueError, match=r"has model\.head\.bias of shape \(3,\) where the run's model has \(4,\); put"):
        checkpoint.restore(path, state, model=other, ema=ema, optimizers=optimizers)
    with pytest.raises(ValueError, match=r"has ema\.\S+ of shape \(.*\) where the run's model has None; put"):
        checkpoint.restore(path, state, model=model, ema=None, optimizers=optimizers)


# --------------------------------------------------------------------------------------------------------------------
# Two processes


def sharded_training(name: str, *, seed: int) -> tuple[ViT, Ema, Optimizers]:
    """A training whose model is in parts, started from a seed."""
    torch.manual_seed(seed)
    model = ViT(img_size=8, patch_size=4, in_channels=1, embed_dim=10, depth=2, num_heads=2, num_classes=3)
    mean = copy.deepcopy(model)
    if dist.is_initialized():
        for one in (model, mean):
            distributed.shard(one, distributed.current_world(), device=torch.device("cpu"), dtype=None)
    config = OptimConfig(name=name, lr=0.1)  # type: ignore[arg-type]
    return model, Ema(model, mean, 0.9), build_optimizers(model, config, batch_size=1024)


def everything(model: ViT, ema: Ema, optimizers: Optimizers) -> dict[str, Tensor]:
    """All tensors of a training, put together."""
    tensors = checkpoint.collect_tensors(model, ema, optimizers)[0]
    return {name: distributed.full_tensor(value).clone() for name, value in tensors.items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def restored(folder: Path, name: str) -> tuple[ViT, Ema, Optimizers]:
    """A training begun elsewhere that takes over the newest checkpoint."""
    made = sharded_training(name, seed=9)
    path, state, _ = checkpoint.find_newest(folder)
    model, ema, optimizers = made
    checkpoint.restore(path, state, model=model, ema=ema, optimizers=optimizers)
    return made


def two_processes(rank: int, folder: Path) -> None:
    """What each of the two does; what is wrong in one of them fails the test that started them."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    world = distributed.current_world()
    for name in NAMES:
        made = sharded_training(name, seed=1)
        move(*made, steps=range(2))
        path = save(folder / name / "parts", 2, *made, world=world)
        assert names(path) == [".metadata", "SHA256SUMS", "__0_0.distcp", "__1_0.distcp", "state.json"]
        saved = everything(*made)
        if world.first:
            torch.save(saved, folder / name / "saved.pth")
        again = restored(folder / name / "parts", name)
        assert_same(everything(*again), saved)
        for one in (made, again):
            move(*one, steps=range(2, 4))
        assert_same(everything(*again), everything(*made))

        from_one = restored(folder / name / "whole", name)
        assert_same(everything(*from_one), torch.load(folder / name / "whole.pth"))
        move(*from_one, steps=range(2, 3))

    whole, ema, optimizers = parts()
    path = save(folder / "ddp", 1, whole, ema, optimizers, world=world)
    assert names(path) == ["SHA256SUMS", "ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]

    write_item, save_file = dcp_files._write_item, checkpoint.save_tensors
    for target, broken, training in (("parts", 1, made), ("whole", 0, (whole, ema, optimizers))):
        if rank == broken:
            dcp_files._write_item = checkpoint.save_tensors = no_space
        failed = folder / "failed" / target
        with pytest.raises(PeerFailed if rank else OSError) as error:
            save(failed, 1, *training, world=world)
        if world.first:
            assert "No space left on device" in str(error.value)
            assert "\n" not in str(error.value)
            assert names(failed) == []
        dcp_files._write_item, checkpoint.save_tensors = write_item, save_file
    dist.destroy_process_group()
    os._exit(0)  # torch's threads abort now and then as the interpreter is taken down


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes saved checkpoints in parts, and loaded those of one process."""
    folder = tmp_path_factory.mktemp("two")
    for name in NAMES:
        made = sharded_training(name, seed=2)
        move(*made, steps=range(2))
        save(folder / name / "whole", 2, *made)
        torch.save(everything(*made), folder / name / "whole.pth")
    torch.multiprocessing.spawn(two_processes, (folder,), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_two_processes_saved_in_parts_loads_in_one(two: Path, name: str) -> None:
    made = restored(two / name / "parts", name)
    assert_same(everything(*made), torch.load(two / name / "saved.pth"))
    move(*made, steps=range(2, 3))
