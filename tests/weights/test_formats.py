"""One weights file: every format there is, and everything that can be wrong with one."""

from __future__ import annotations

import gc
import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from vitrail.weights import formats
from vitrail.weights.formats import open_weights, read_json
from vitrail.weights.unwrap import CheckpointError

WEIGHTS = {"cls": torch.arange(4.0), "head/kernel": torch.arange(6, dtype=torch.float32).reshape(2, 3)}
ARRAYS = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}


def safetensors(path: Path) -> None:
    save_file(WEIGHTS, path)


def npz(path: Path) -> None:
    with path.open("wb") as file:  # a path would get ".npz" behind it
        np.savez(file, **ARRAYS)


def packed_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **ARRAYS)


def torch_zip(path: Path) -> None:
    torch.save({"model": WEIGHTS, "epoch": 3}, path)


def torch_old(path: Path) -> None:
    torch.save({"model": WEIGHTS, "epoch": 3}, path, _use_new_zipfile_serialization=False)


WRITERS: list[Callable[[Path], None]] = [safetensors, npz, packed_npz, torch_zip, torch_old]
EACH = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)


def refused(path: Path, told: str) -> str:
    with pytest.raises(CheckpointError, match=told) as error:
        dict(open_weights(path)[0])
    line = str(error.value)
    assert line.isprintable()
    assert line.startswith(str(path))
    assert isinstance(error.value, ValueError)
    return line


@EACH
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".bin", ""])
def test_each_format_by_any_name(tmp_path: Path, write: Callable[[Path], None], suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write(path)
    tensors, notes = open_weights(path)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {k: v.tolist() for k, v in WEIGHTS.items()}
    assert tensors.shapes == {"cls": (4,), "head/kernel": (2, 3)}
    assert notes == ()


def test_a_tensor_outlives_its_mapping_and_its_file(tmp_path: Path) -> None:
    for write in WRITERS:
        write(tmp_path / "x")
        tensors, _ = open_weights(tmp_path / "x")
        (tmp_path / "x").unlink()
        tensor = tensors["cls"]
        del tensors
        gc.collect()
        assert tensor.tolist() == [0, 1, 2, 3]


def test_safetensors_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors(path)
    tensors, _ = open_weights(path)
    assert tensors["cls"].data_ptr() == tensors["cls"].data_ptr()
    before = path.read_bytes()
    tensors["cls"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_other_number_types_are_passed_on(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0]).to(dtype)
    save_file({"w": values, "one": torch.tensor(1).to(dtype)}, tmp_path / "x.safetensors")
    tensors, _ = open_weights(tmp_path / "x.safetensors")
    assert tensors["w"].dtype == dtype
    assert tensors["w"].float().tolist() == [0, 1]
    assert tensors.shapes == {"w": (2,), "one": ()}


# --------------------------------------------------------------------------------------------------------------------
# npz


@pytest.mark.parametrize("view", ["V2", "u2"])
def test_bfloat16_of_big_vision(tmp_path: Path, view: str) -> None:
    values = torch.tensor([[1.5, -2.0], [0.0, 3e38]]).bfloat16()
    np.savez(tmp_path / "x.npz", **{"params/w": values.view(torch.uint16).numpy().view(view)})
    tensors, notes = open_weights(tmp_path / "x.npz")
    assert torch.equal(tensors["params/w"], values)
    assert notes == (("read uint16 as bfloat16",) if view == "u2" else ())


def test_arrays_that_are_no_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=np.ones((2, 3), order="F"), name=np.array("vit"), big=np.ones(2, ">f4"))
    tensors, _ = open_weights(tmp_path / "x.npz")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"w": [[1, 1, 1], [1, 1, 1]], "big": [1, 1]}
    np.savez(tmp_path / "o.npz", w=np.ones(2), params=np.array({"w": 1}, dtype=object))
    refused(tmp_path / "o.npz", r'"params.npy" holds Python objects, a pickle that could run code; save arrays of numbers')
    np.savez(tmp_path / "long.npz", w=np.ones(2, np.clongdouble))
    refused(tmp_path / "long.npz", '"w" has the number type .*, which torch lacks')
    np.savez(tmp_path / "none.npz")
    refused(tmp_path / "none.npz", "zip archive of nothing")
    np.savez(tmp_path / "text.npz", name=np.array("vit"))
    refused(tmp_path / "text.npz", "is whole and holds no tensors")


def test_a_flipped_byte_in_an_npz_is_found_by_its_crc(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for count in (3, 100_000):  # a small array is read as it is looked at, a large one when it is asked for
        np.savez(path, cls=ARRAYS["cls"], kernel=np.full(count, 7.0))
        body = bytearray(path.read_bytes())
        body[body.find(np.full(3, 7.0).tobytes()) + 8] ^= 1
        path.write_bytes(body)
        with pytest.raises(CheckpointError, match=r"can't be read as npz \(Bad CRC-32 for file 'kernel\.npy'\)"):
            open_weights(path)[0]["kernel"]


def npy(shape: tuple[int, ...], *, dtype: str = "<f4", body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue()[:6] + bytes(version) + out.getvalue()[8:] + body


@pytest.mark.parametrize(
    ("member", "told"),
    [
        (npy((1 << 40,)), r'"w.npy" says \(1099511627776,\) of float32 and has 0 bytes'),
        (npy((2, 3), body=b"\0" * 23), "has 23 bytes"),
        (npy((-2, -3), body=b"\0" * 24), r"says \(-2, -3\) of float32"),
        (npy((1,), body=b"\0" * 4, version=(9, 0)), r"\(9, 0\)|version"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "can't be read as npz"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "can't be read as npz"),
        (b"no array", "can't be read as npz"),
        (b"", "can't be read as npz"),
    ],
)
def test_a_member_that_is_not_what_it_says(tmp_path: Path, member: bytes, told: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", member)
    refused(tmp_path / "x.npz", told)


# --------------------------------------------------------------------------------------------------------------------
# Bombs


def test_a_real_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "HARMLESS_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "x.npz", w=np.zeros(1 << 20, np.float32))
    refused(tmp_path / "x.npz", r"claims to hold 4,194,\d+, more than 100 times as many: no weights shrink like that")
    np.savez_compressed(tmp_path / "x.npz", w=np.zeros(1 << 17, np.float32))  # half a MiB is harmless, whatever the ratio
    assert open_weights(tmp_path / "x.npz")[0]["w"].sum() == 0


@pytest.mark.parametrize("name", ["w.npy", "archive/data.pkl"])
def test_a_directory_that_claims_a_terabyte(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(300):
            archive.writestr(f"{i}{name}", npy((1, 4), body=b"\0" * 16))
        archive.writestr(name, npy((1, 4), body=b"\0" * 16))
    body = bytearray((tmp_path / "x").read_bytes())
    at = -1
    while (at := body.find(b"PK\x01\x02", at + 1)) >= 0:  # the entry's size once unpacked
        body[at + 24 : at + 28] = b"\xfe\xff\xff\xff"
    (tmp_path / "x").write_bytes(body)
    refused(tmp_path / "x", r"claims to hold 1,29\d,\d{3},\d{3},\d{3}, more than 100 times")


# --------------------------------------------------------------------------------------------------------------------
# safetensors


def header(text: str | dict[str, Any], *, length: int | None = None, body: bytes = b"") -> bytes:
    made = (text if isinstance(text, str) else json.dumps(text)).encode()
    return struct.pack("<Q", len(made) if length is None else length) + made + body


def entry(begin: int, end: int, *, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        header({"w": entry(0, 8)}, length=1 << 60, body=b"\0" * 8),
        header({"w": entry(0, 8)}, length=1000, body=b"\0" * 8),
        header({"w": entry(0, 8)}, length=90_000_000, body=b"\0" * 8),
        header({"w": entry(0, 8)}, length=0, body=b"\0" * 8),
        header('{"w": {"dtype": ', body=b"\0" * 8),
        header("{" * 10_000, body=b"\0" * 8),
        header("[1, 2, 3]", body=b"\0" * 8),
        header({"w": entry(0, 8), "v": entry(4, 12)}, body=b"\0" * 12),  # they overlap
        header({"w": entry(0, 8), "v": entry(0, 8)}, body=b"\0" * 8),
        header({"w": entry(0, 8), "v": entry(12, 20)}, body=b"\0" * 20),  # a hole between them
        header({"w": entry(0, 8)}, body=b"\0" * 7),  # beyond the end
        header({"w": entry(0, 1 << 62, shape=(1 << 60,))}, body=b"\0" * 8),
        header({"w": entry(8, 0)}, body=b"\0" * 8),
        header({"w": entry(0, 8)}, body=b"\0" * 16),  # bytes of nothing
        header({"w": entry(0, 8, shape=(3,))}, body=b"\0" * 8),  # shape and bytes differ
        header({"w": entry(0, 8, dtype="F64")}, body=b"\0" * 8),
        header({"w": entry(0, 8, dtype="F999")}, body=b"\0" * 8),
        header({"w": entry(0, 8, shape=(1 << 63, 1 << 63))}, body=b"\0" * 8),
        header({"w": {"dtype": "F32"}}, body=b"\0" * 8),
        header({"w": 7}, body=b"\0" * 8),
    ],
)
def test_a_header_that_lies(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    refused(tmp_path / "x.safetensors", r"can't be read as safetensors \(.+\); it is damaged or cut off: get it anew")


def test_a_file_of_no_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "is whole and holds no tensors")


# --------------------------------------------------------------------------------------------------------------------
# What people give in place of weights


def tar(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty; get it anew"),
        (b"abc", "has 3 bytes, less than any weights file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346284714\n",
            "is a Git LFS pointer, .*lfs pull",
        ),
        (
            b"\n<!DOCTYPE html>\n<html><title>Sign in",
            'is an HTML page, not weights.*"<!DOCTYPE html> <html>',
        ),
        (b"\xef\xbb\xbf<html>" + "é".encode() * 2000, "is an HTML page"),
        (b"x" + "é".encode() * 2000, 'is text, not weights: a failed download\\? It begins "xéé'),
        (b"Entry not found", 'is text, not weights.*It begins "Entry not found"'),
        (b'{"error": "gated"}', "is text, not weights"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), r"is an HDF5 file \(Keras\); give weights as"),
        (b"\x1f\x8b\x08" + bytes(100), "is compressed with gzip"),
        (b"\x93NUMPY\x01\x00" + bytes(100), "is a single NumPy array"),
        (b"\x00\x01\x02\x03" * 100, "is no safetensors, .npz or torch file: it begins with 00 01 02 03 00 01 02 03"),
        (tar("storages"), "is a tar archive; unpack it, or if torch wrote it"),
    ],
)
def test_what_is_no_weights_file(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    refused(tmp_path / "x.pth", told)


def test_other_zips(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("vit/model.safetensors", "x")
    refused(tmp_path / "x.zip", "is a zip archive of vit/model.safetensors, not weights; unpack it")
    torch_zip(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(tmp_path / "y.pth", "was packed anew with compression, which torch.save never does")


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is not a regular file")
    refused(tmp_path / "nowhere", "can't be opened: No such file or directory")


@pytest.mark.parametrize("content", ["{", "[1]", "", '{"a": ' * 100_000, "\x00", '{"a": \ud800'])
def test_json_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"config\.json (can't be read as JSON|holds a JSON list)") as error:
        read_json(tmp_path / "config.json")
    assert str(error.value).isprintable()


def test_json_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_JSON_BYTES", 1 << 20)
    (tmp_path / "config.json").write_text('{"a": "' + "x" * (1 << 20))
    with pytest.raises(CheckpointError, match="is larger than 1 MiB, which no configuration is"):
        read_json(tmp_path / "config.json")


# --------------------------------------------------------------------------------------------------------------------
# Any damage


def bytes_of(write: Callable[[Path], None], folder: Path) -> bytes:
    write(folder / "whole")
    return (folder / "whole").read_bytes()


def outcome(path: Path) -> dict[str, Tensor] | str:
    """What is in it, or the line that refuses it; any other error is the test's."""
    try:
        return dict(open_weights(path)[0])
    except ValueError as error:
        return str(error)


@EACH
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cut_is_refused(tmp_path: Path, write: Callable[[Path], None], data: st.DataObject) -> None:
    whole = bytes_of(write, tmp_path)
    (tmp_path / "x.bin").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    told = outcome(tmp_path / "x.bin")
    assert isinstance(told, str)
    assert told.isprintable()


@pytest.mark.parametrize("write", [safetensors, torch_zip, torch_old], ids=lambda write: write.__name__)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_read_or_refused(tmp_path: Path, write: Callable[[Path], None], data: st.DataObject) -> None:
    body = bytearray(bytes_of(write, tmp_path))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x.bin").write_bytes(body)
    told = outcome(tmp_path / "x.bin")
    assert not isinstance(told, str) or told.isprintable()
