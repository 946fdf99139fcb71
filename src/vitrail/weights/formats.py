"""Open one weights file as tensors by name. The format is detected from its first bytes, not from its name."""

from __future__ import annotations

import codecs
import json
import math
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vitrail.weights.pickles import load_pickle
from vitrail.weights.unwrap import CheckpointError, Shape, Tensors, from_numpy, is_number, torch_dtype, unwrap

Format = Literal["safetensors", "npz", "torch", "old torch"]

HARMLESS_BYTES = 1 << 30
MAX_EXPANSION = 100
"""Largest ratio of uncompressed to compressed size, above 1 GiB. Trained weights compress to a half at most, with nine zeros in
ten to a tenth. Deflate reaches 1000:1 for zeros, which no trained model consists of."""

MAX_JSON_BYTES = 64 << 20

_LFS = b"version https://git-lfs.github.com/spec/"
_TORCH_MAGIC = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the number that torch.save began with before its zip format
_OTHERS = {
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x93NUMPY": "a single NumPy array",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "compressed with gzip",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
}
_GET_ANEW = "get it anew"


def open_weights(path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """Return the tensors of one file, and notes on choices made.

    safetensors and torch's zip format are memory-mapped; an .npz member is read and checked on every access;
    torch's old format is read at once. Raises CheckpointError for a file of another format, a truncated one, one that claims
    an implausible size, or one that requires code to be run.
    """
    kind = format_of(path)
    with reading(path, kind):
        if kind == "safetensors":
            return open_safetensors(path), ()
        if kind == "npz":
            return open_npz(path)
        return open_torch(path, is_zip=kind == "torch")


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Convert any error of a parser into a CheckpointError of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # parsers of damaged bytes raise nearly anything: KeyError, struct.error, MemoryError…
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(f"{path} can't be read as {kind} ({reason}); it is damaged or cut off: {_GET_ANEW}") from error


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file. Raises CheckpointError if there is none."""
    with reading(path, "JSON"):
        with path.open("rb") as file:
            text = file.read(MAX_JSON_BYTES + 1)
        if len(text) > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB, which no configuration is; {_GET_ANEW}")
        value = json.loads(text)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object; {_GET_ANEW}")
    return value


# --------------------------------------------------------------------------------------------------------------------
# Which format


def format_of(path: Path) -> Format:
    """Detect the format of a weights file. Raises CheckpointError, which names any other kind of file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device has no end
            raise CheckpointError(f"{path} is not a regular file; copy it to one")
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise CheckpointError(f"{path} can't be opened: {error.strerror or error}") from error
    if not head:
        raise CheckpointError(f"{path} is empty; {_GET_ANEW}")
    if len(head) < 10:
        raise CheckpointError(f"{path} has {len(head)} bytes, less than any weights file; {_GET_ANEW}")
    if head.startswith(_LFS):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder, or download it")
    if text := _text(head):
        page = "<html" in text.lower() or "<!doctype" in text.lower()
        raise CheckpointError(
            f"{path} is {'an HTML page' if page else 'text'}, not weights: a failed download? "
            f'It begins "{" ".join(text.split())[:60]}"; {_GET_ANEW}'
        )
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with reading(path, "zip"):
            return _format_of_zip(path, status.st_size)
    if head[8:9] == b"{" or (path.suffix == ".safetensors" and head[:1] != b"\x80"):  # after the header's length, 8 bytes
        return "safetensors"
    if head[:1] == b"\x80" and _TORCH_MAGIC in head[:32]:
        return "old torch"
    if head[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is a pickle that torch.save did not write whole, and no other is opened, for it can run code; "
            f"save the tensors with torch.save or as .safetensors"
        )
    if head[257:262] == b"ustar":
        raise CheckpointError(
            f"{path} is a tar archive; unpack it, or if torch wrote it (before 0.1.10), load and save it anew with torch"
        )
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise CheckpointError(f"{path} is {name}; give weights as .safetensors, .npz or a file of torch.save")
    raise CheckpointError(f"{path} is no safetensors, .npz or torch file: it begins with {head[:8].hex(' ')}; {_GET_ANEW}")


def _text(head: bytes) -> str:
    """Return the beginning of a file as text, "" if it is binary: every weights file has a control byte there."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return ""
    return text if all(c.isprintable() or c.isspace() for c in text) else ""


def _format_of_zip(path: Path, size: int) -> Format:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    refuse_bomb(path, size, claimed=sum(member.file_size for member in members))
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a TorchScript archive, a program that only running it would open, and no checkpoint is let do that; "
            f"once, where you trust it: torch.save(torch.jit.load(…).state_dict(), …), and give what that writes"
        )
    if any(name.endswith("/data.pkl") for name in names):
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # mapped, it would be read as numbers
            raise CheckpointError(f"{path} was packed anew with compression, which torch.save never does; unzip, `zip -0 -r`")
        return "torch"
    if any(name.endswith(".npy") for name in names):
        return "npz"
    contents = ", ".join(name[:60] for name in names[:3]) or "nothing"
    raise CheckpointError(f"{path} is a zip archive of {contents}, not weights; unpack it and give the weights file")


def refuse_bomb(path: Path, size: int, *, claimed: int) -> None:
    """Raise CheckpointError for a file of `size` bytes that claims to hold far more of them."""
    if claimed > max(HARMLESS_BYTES, MAX_EXPANSION * size):
        raise CheckpointError(
            f"{path} has {size:,} bytes and claims to hold {claimed:,}, more than {MAX_EXPANSION} times as many: "
            f"no weights shrink like that; {_GET_ANEW} from where you trust it"
        )


# --------------------------------------------------------------------------------------------------------------------
# One function per format


def open_safetensors(path: Path) -> Tensors:
    """Open views of the memory-mapped file. The library validates header, offsets, dtypes and shapes first."""
    file: Any = safe_open(path, framework="pt", device="cpu")
    shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118 - it is no dict

    def take(name: str) -> Tensor:
        return file.get_tensor(name)

    return _not_empty(path, Tensors(shapes, take))


def open_torch(path: Path, *, is_zip: bool) -> tuple[Tensors, tuple[str, ...]]:
    """Open the state dict in a file of torch.save."""
    tree = load_pickle(path, is_zip=is_zip)
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not a state dict; save model.state_dict()")
    tensors, notes = unwrap(tree, str(path))
    claimed = sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors.values())
    refuse_bomb(path, path.stat().st_size, claimed=claimed)  # a view may repeat one number without end
    return tensors, notes


def open_npz(path: Path) -> tuple[Tensors, tuple[str, ...]]:
    """Open the arrays of an .npz file, compressed or not; each is read on access and checked by its CRC."""
    archive = zipfile.ZipFile(path)
    shapes: dict[str, Shape] = {}
    members: dict[str, zipfile.ZipInfo] = {}
    bits = False
    for member in archive.infolist():
        if not member.filename.endswith(".npy"):
            continue
        name = member.filename.removesuffix(".npy")
        shape, dtype = _npy_header(path, archive, member)
        if not is_number(dtype):
            continue
        if torch_dtype(dtype) is None:
            raise CheckpointError(f'{path}: "{name}" has the number type {dtype}, which torch lacks; save it as float32')
        shapes[name], members[name] = shape, member
        bits |= dtype == np.uint16

    def take(name: str) -> Tensor:
        with reading(path, "npz"), archive.open(members[name]) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            tensor = from_numpy(array)
        return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor  # no weights are 16-bit counts

    notes = ("read uint16 as bfloat16",) if bits else ()
    return _not_empty(path, Tensors(shapes, take)), notes


def _npy_header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[Shape, np.dtype[Any]]:
    """Return shape and dtype of a member's header. Raises CheckpointError if they do not match its size."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise CheckpointError(f'{path}: "{member.filename}" is of .npy version {version}; 1.0 and 2.0 are read')
        shape, _, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        raise CheckpointError(
            f'{path}: "{member.filename}" holds Python objects, a pickle that could run code; save arrays of numbers'
        )
    size = member.file_size - start
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise CheckpointError(f'{path}: "{member.filename}" says {shape} of {dtype} and has {size:,} bytes; {_GET_ANEW}')
    return tuple(shape), dtype


def _not_empty(path: Path, tensors: Tensors) -> Tensors:
    if not tensors:
        raise CheckpointError(f"{path} is whole and holds no tensors; give a file with weights")
    return tensors
