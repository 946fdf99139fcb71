"""A file, a folder or a mapping becomes a Checkpoint: which file is taken, what lies beside it, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from vitrail.weights.read import PREFERRED, SUFFIXES, Checkpoint, read
from vitrail.weights.unwrap import CheckpointError

CARD = "---\nlanguage: en\nlicense: apache-2.0  # theirs\ntags:\n- vit\n---\n# A model\nlicense: none\n"


def write(path: Path, value: float = 1) -> Path:
    """Weights in the format of the suffix, filled with one number."""
    weights = {"head.weight": torch.full((2, 3), float(value))}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in weights.items()})
    else:
        torch.save(weights, path)
    return path


def value_of(checkpoint: Checkpoint) -> float:
    return checkpoint.tensors["head.weight"][0, 0].item()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(source: Any, told: str, **options: Any) -> None:
    with pytest.raises(CheckpointError, match=told) as error:
        read(source, **options)
    assert str(error.value).isprintable()
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}")
    (tmp_path / "config.json").write_text("{}")
    for source in (path, str(path)):
        checkpoint = read(source)
        assert value_of(checkpoint) == 1
        assert checkpoint.shapes == {"head.weight": (2, 3)}
        assert checkpoint.sha256 == digest(path)
        assert checkpoint.file == str(path)
        assert (checkpoint.config, checkpoint.preprocessor, checkpoint.licence, checkpoint.notes) == ({}, {}, None, ())


def test_a_path_is_called_what_it_was_given_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.pth")
    monkeypatch.chdir(tmp_path)
    assert read("x.pth").file == "x.pth"
    assert read(".").file == "x.pth"


def test_a_mapping(tmp_path: Path) -> None:
    checkpoint = read({"model": {"a.b": torch.ones(2)}, "model_ema": {"a.b": np.zeros(2, np.float32)}, "epoch": 3})
    assert checkpoint.tensors["a.b"].tolist() == [0, 0]
    assert (checkpoint.file, checkpoint.sha256, checkpoint.config) == ("a state dict", None, {})
    assert checkpoint.notes == ("took model_ema; the file also holds model",)
    assert read(checkpoint.tensors).tensors is checkpoint.tensors
    assert Checkpoint({"w": torch.ones(2, 3)}, "here").shapes == {"w": (2, 3)}
    refused({"epoch": 3}, "^the state dict holds no weights: its keys are epoch;")
    refused({"w": torch.ones(2)}, "has no sha256 to compare", expected_sha256="0" * 64)


def test_a_choice_in_a_file_is_noted(tmp_path: Path) -> None:
    torch.save({"teacher": {"a.b": torch.ones(2)}, "student": {"a.b": torch.zeros(2)}}, tmp_path / "dino.pth")
    assert read(tmp_path / "dino.pth").notes == ("took teacher; the file also holds student",)


def test_a_frozen_record_whose_fields_can_be_replaced(tmp_path: Path) -> None:
    checkpoint = read(write(tmp_path / "x.pth"))
    assert dataclasses.replace(checkpoint, file="y").sha256 == checkpoint.sha256
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.file = "y"  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------------------------
# Folders


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"depth": 12}')
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224}')
    (tmp_path / "README.md").write_text(CARD)
    for source in (tmp_path, path):
        checkpoint = read(source)
        assert (checkpoint.config, checkpoint.preprocessor) == ({"depth": 12}, {"size": 224})
        assert checkpoint.licence == "apache-2.0"
        assert checkpoint.file == str(path)


def test_the_order_of_preference(tmp_path: Path) -> None:
    shards = {"weight_map": {"head.weight": "shard.bin"}}
    write(tmp_path / "shard.bin", 9)
    for i, name in reversed(list(enumerate(PREFERRED))):
        if name.endswith(".json"):
            (tmp_path / name).write_text(json.dumps(shards))
        else:
            write(tmp_path / name, i)
        checkpoint = read(tmp_path)
        assert checkpoint.file == str(tmp_path / name)
        assert value_of(checkpoint) == (9 if name.endswith(".json") else i)
        assert checkpoint.notes == ()


def test_the_only_file_of_the_first_suffix(tmp_path: Path) -> None:
    write(tmp_path / "training_args.bin")
    write(tmp_path / "optimizer.pt")
    refused(tmp_path, r"holds no weights \(files there: optimizer.pt, training_args.bin\); .safetensors, .npz")
    for i, suffix in reversed(list(enumerate(SUFFIXES))):
        path = write(tmp_path / f"x{i}{suffix}", i)
        checkpoint = read(tmp_path)
        assert value_of(checkpoint) == i
        assert checkpoint.file == str(path)
    assert checkpoint.notes == ("took x0.safetensors; the folder also holds x1.npz, x2.pth, x3.pt, x4.bin, x5.ckpt, x6.tar",)
    write(tmp_path / "y.safetensors")
    refused(tmp_path, r"holds several weights files \(x0.safetensors, y.safetensors\); give the path of one")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    refused(tmp_path, r"holds no weights \(there are no files in it\); .safetensors, .npz, .pth, .pt, .bin are read")
    for i in range(9):
        (tmp_path / f"tf_{i}.h5").touch()
    (tmp_path / "model.safetensors").mkdir()
    refused(tmp_path, r"holds no weights \(files there: tf_0.h5, .*tf_5.h5, … \(9 in all\)\)")


def test_open_clip_has_a_configuration_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text('{"of": "open_clip"}')
    path = write(tmp_path / "open_clip_model.safetensors")
    assert read(tmp_path).config == {"of": "open_clip"}
    (tmp_path / "config.json").write_text('{"of": "timm"}')
    assert read(path).config == {"of": "open_clip"}
    write(tmp_path / "model.safetensors")
    assert read(tmp_path).config == {"of": "timm"}


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\r\nlicense: 'cc-by-nc-4.0'\r\n---\r\n", "cc-by-nc-4.0"),
        ("---\nlicense:\n---\n", None),
        ("---\nsub:\n  license: mit\n---\n", None),
        ("# no front matter\nlicense: mit\n", None),
        ("", None),
        (b"\xff\xfe---\n", None),
    ],
)
def test_the_licence(tmp_path: Path, card: str | bytes, licence: str | None) -> None:
    write(tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert read(tmp_path).licence == licence


def test_a_damaged_configuration(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"depth": ')
    refused(tmp_path, r"config\.json can't be read as JSON \(Expecting value.*get it anew")


def test_links_of_the_hub_s_cache(tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    write(tmp_path / "x.safetensors").rename(tmp_path / "blob")
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blob")
    assert value_of(read(tmp_path / "snapshot")) == 1
    (tmp_path / "blob").unlink()
    refused(tmp_path / "snapshot", "holds no weights")


@pytest.mark.parametrize("path", ["nowhere", "nowhere/model.safetensors", "x" * 5000, "a\0b", "two\nlines"])
def test_no_such_file(path: str) -> None:
    refused(path, "does not exist; give a weights file|can't be opened")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pth")
    path.chmod(0)
    refused(path, "can't be opened: Permission denied")


# --------------------------------------------------------------------------------------------------------------------
# Shards


def shards(folder: Path, *, suffix: str = "safetensors", index: dict[str, Any] | None = None) -> Path:
    """Three tensors in two files, and their index."""
    files = [f"model-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    held = [{"a": torch.ones(2), "b": torch.zeros(3)}, {"c": torch.ones(1)}]
    for name, tensors in zip(files, held, strict=True):
        if suffix == "safetensors":
            save_file(tensors, folder / name)
        else:
            torch.save(tensors, folder / name)
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    path = folder / f"{stem}.index.json"
    listed = {"a": files[0], "b": files[0], "c": files[1]}
    path.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": {**listed, **(index or {})}}))
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_one_checkpoint(tmp_path: Path, suffix: str) -> None:
    path = shards(tmp_path, suffix=suffix)
    (tmp_path / "config.json").write_text('{"depth": 2}')
    files = sorted(tmp_path.glob("*-of-*"))
    both = hashlib.sha256("".join(digest(file) for file in files).encode()).hexdigest()
    for source in (tmp_path, path):
        checkpoint = read(source, expected_sha256=both)
        assert checkpoint.shapes == {"a": (2,), "b": (3,), "c": (1,)}
        assert {name: tensor.sum() for name, tensor in checkpoint.tensors.items()} == {"a": 2, "b": 0, "c": 1}
        assert (checkpoint.file, checkpoint.sha256, checkpoint.config) == (str(path), both, {"depth": 2})
    if suffix == "safetensors" and sys.platform == "linux":
        line = "sha256sum model-*-of-*.safetensors | cut -c -64 | tr -d '\\n' | sha256sum"
        assert subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True).stdout.split()[0] == both
    assert read(files[0]).notes == ("took one shard; the .index.json beside it names all",)


@pytest.mark.parametrize(
    ("index", "told"),
    [
        (
            {"d": "model-00003-of-00003.safetensors"},
            r"names model-00003-of-00003.safetensors, .* \(1 missing",
        ),
        ({"d": "../x.safetensors"}, r'names "\.\./x.safetensors", which is no weights file beside it'),
        ({"d": "/etc/passwd"}, 'names "/etc/passwd", which is no weights file beside it'),
        ({"d": "model.safetensors.index.json"}, "which is no weights file beside it"),
        ({"d": 7}, 'names "7", which is no weights file'),
        ({"d": "model-00001-of-00002.safetensors"}, 'says that model-00001-of-00002.safetensors holds "d", which it does not'),
    ],
)
def test_an_index_that_lies(tmp_path: Path, index: dict[str, Any], told: str) -> None:
    shards(tmp_path, index=index)
    refused(tmp_path, told)


def test_an_index_without_a_map_or_with_a_short_one(tmp_path: Path) -> None:
    path = shards(tmp_path)
    path.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    checkpoint = read(path)
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.notes == ("left out 1 tensors that the index does not list, such as b",)
    for content in ({}, {"weight_map": {}}, {"weight_map": [1]}):
        path.write_text(json.dumps(content))
        refused(path, "has no weight_map, so it is no index of weights")
    path.write_text("[1]")
    refused(path, "holds a JSON list")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    path = tmp_path / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(tmp_path, r"model-00002-of-00002.safetensors can't be read as safetensors")


# --------------------------------------------------------------------------------------------------------------------
# Hash


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_any_flipped_bit_is_found(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = write(tmp_path / f"x{suffix}")
    body = bytearray(path.read_bytes())
    known = hashlib.sha256(body).hexdigest()
    body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(body)
    refused(path, f"is damaged: its sha256 is {digest(path)}, expected {known}; get it anew", expected_sha256=known)


def test_the_expected_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pth")
    assert value_of(read(path, expected_sha256=digest(path).upper() + "\n")) == 1
    refused(path, "expected 123;", expected_sha256="123")


def test_nothing_of_a_file_with_another_hash_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.weights.read.open_weights", lambda path: pytest.fail("opened"))
    refused(write(tmp_path / "x.pth"), "is damaged", expected_sha256="0" * 64)


def test_a_file_that_is_gone_before_it_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrail.weights import read as module

    path = write(tmp_path / "x.safetensors")
    hash_in_background = module.hash_in_background

    def late(files: list[Path]) -> Any:
        path.unlink()
        return hash_in_background(files)

    monkeypatch.setattr(module, "hash_in_background", late)
    checkpoint = read(path)
    assert value_of(checkpoint) == 1
    with pytest.raises(CheckpointError, match=r"x\.safetensors can't be read as a file"):
        _ = checkpoint.sha256


def test_reading_takes_no_memory(tmp_path: Path) -> None:
    """100 MB of safetensors are open, listed and hashed within 10 MB of memory of the process's own."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux")
    big: dict[str, Tensor] = {f"w{i}": torch.zeros(1 << 20) for i in range(25)}
    save_file(big, tmp_path / "x.safetensors")
    del big
    code = (
        "import sys; from vitrail.weights.read import read\n"
        "own = lambda: int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])\n"
        "read(sys.argv[2]).sha256; before = own(); c = read(sys.argv[1]); c.sha256\n"
        "s = sum(t.sum().item() for t in c.tensors.values()); print(own() - before)"
    )
    small = write(tmp_path / "small.safetensors")
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.safetensors"), str(small)], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) < 10_000, "KiB"
