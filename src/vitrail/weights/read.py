"""Read tensors and the config files beside them from a file, a folder or a mapping. No network, and no model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.data.listing import EXPORT
from vitrail.weights.formats import open_weights, read_json, reading
from vitrail.weights.names_file import NamesFile
from vitrail.weights.unwrap import CheckpointError, Shape, Tensors, unwrap

PREFERRED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""Usual names of weights on the Hub, in the order of preference."""

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_HUB_FILE = re.compile(r"(model\.safetensors|pytorch_model\.bin)(\.index\.json)?|open_clip_.*")
NO_MODEL = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state)[._-].*")  # written beside a model by trainings
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.\w+")
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under the names in their file, and the files beside them."""

    tensors: Mapping[str, Tensor]
    """On the CPU, read on access and not cached. Those of .safetensors and of torch's zip format are views of the
    memory-mapped file: they take no memory until they are read, must not be written to in place, and the file must not be
    overwritten while they are in use (replacing or deleting it is fine)."""
    file: str
    """Its name in a receipt: the path as given, or "a state dict"."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json (or open_clip_config.json) beside the weights; empty if there is none."""
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    """preprocessor_config.json beside the weights; empty if there is none."""
    licence: str | None = None
    """`license:` of the front matter of README.md beside the weights."""
    notes: tuple[str, ...] = ()
    """One short sentence for each choice made, such as "took model_ema; the file also holds model"."""
    names: NamesFile | None = None
    """Names of its tensors that the caller states."""
    hashing: Future[str] | None = field(default=None, repr=False, compare=False)
    """Future of `sha256`."""

    @property
    def sha256(self) -> str | None:
        """Hex digest of the weights file; None for a mapping in memory. Waits for the thread that computes it.

        Of shards, the sha256 over their hex digests in the order of their names:
        `sha256sum model-*-of-*.safetensors | cut -c -64 | tr -d '\\n' | sha256sum`.
        Raises CheckpointError if the file can't be read to its end.
        """
        return None if self.hashing is None else self.hashing.result()

    @property
    def shapes(self) -> dict[str, Shape]:
        """Return the shape of each tensor, without reading one."""
        if isinstance(self.tensors, Tensors):
            return dict(self.tensors.shapes)
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read(source: str | Path | Mapping[str, Any], *, expected_sha256: str | None = None) -> Checkpoint:
    """Read a weights file, the one in a folder, or a state dict, bare or in containers.

    Formats are .safetensors, sharded or not, .npz, and torch.save's of any age, detected from the first bytes. No code in them
    is executed. The file is hashed in a background thread; with `expected_sha256` it is hashed first, and a file with another
    hash is not opened. Raises CheckpointError, a ValueError of one line: no such file, a damaged one, one that claims an
    implausible size, one that requires code to be run, no tensors, or several candidates.
    """
    if isinstance(source, Mapping):
        if expected_sha256 is not None:
            raise CheckpointError("a state dict in memory has no sha256 to compare; give the file, or no expected_sha256")
        tensors, notes = (source, ()) if isinstance(source, Tensors) else unwrap(source, "the state dict")
        return Checkpoint(tensors, "a state dict", notes=notes)
    path, notes = find(Path(source), str(source))
    shards = shards_of(path) if path.name.endswith(".json") else {}
    files = sorted(set(shards.values())) or [path]
    hashing = None
    if expected_sha256 is not None:
        hashing = hash_in_background(files)
        if (digest := hashing.result()) != expected_sha256.strip().lower():
            raise CheckpointError(f"{path} is damaged: its sha256 is {digest}, expected {expected_sha256}; get it anew")
    tensors, more = open_shards(path, shards) if shards else open_weights(path)
    config, preprocessor, licence = beside(path) if Path(source).is_dir() or _HUB_FILE.fullmatch(path.name) else ({}, {}, None)
    return Checkpoint(
        tensors,
        str(path),
        config=config,
        preprocessor=preprocessor,
        licence=licence,
        notes=(*notes, *more),
        hashing=hashing or hash_in_background(files),
    )


# --------------------------------------------------------------------------------------------------------------------
# Which file


def find(path: Path, given: str) -> tuple[Path, tuple[str, ...]]:
    """Find the weights file of a path, with a note if a folder left a choice.

    In a folder, the first of `PREFERRED`, else the only one of the first suffix of `SUFFIXES` that there is.
    """
    try:
        if path.is_dir():
            return find_in_folder(path)
        if not path.exists():
            raise CheckpointError(f"{given} does not exist; give a weights file, a folder that holds one, or a state dict")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{given} can't be opened: {getattr(error, 'strerror', None) or error}") from error
    if _SHARD.fullmatch(path.name):
        return path, ("took one shard; the .index.json beside it names all",)
    return path, ()


def find_in_folder(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Find the weights file of a folder, with a note on others. Raises CheckpointError for none, and for several of a kind."""
    there = sorted(path for path in folder.iterdir() if path.is_file())
    candidates = [path for path in there if path.suffix in SUFFIXES and not NO_MODEL.fullmatch(path.name)]
    for name in PREFERRED:
        if (folder / name).is_file():
            return folder / name, ()  # a Hub folder holds one model in several formats, and that is no news
    for suffix in SUFFIXES:
        alike = [path for path in candidates if path.suffix == suffix]
        if len(alike) > 1:
            raise CheckpointError(f"{folder} holds several weights files ({_some(alike)}); give the path of one")
        if alike:
            rest = [path for path in candidates if path != alike[0]]
            return alike[0], (f"took {alike[0].name}; the folder also holds {_some(rest)}",) if rest else ()
    holds = f"files there: {_some(there)}" if there else "there are no files in it"
    if (folder / EXPORT).is_file():
        raise CheckpointError(f"{folder} is an export, which `vitrail predict` runs; give the run that it was made of")
    raise CheckpointError(f"{folder} holds no weights ({holds}); {', '.join(SUFFIXES[:5])} are read")


def _some(paths: list[Path]) -> str:
    """Format a few names for a message."""
    return ", ".join([path.name for path in paths[:6]] + ([f"… ({len(paths)} in all)"] if len(paths) > 6 else []))


# --------------------------------------------------------------------------------------------------------------------
# Shards


def shards_of(index: Path) -> dict[str, Path]:
    """Return the file of each tensor from an .index.json. Raises CheckpointError for an index that leaves its folder."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} has no weight_map, so it is no index of weights; give the weights file")
    for shard in names.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard.endswith(".json"):
            raise CheckpointError(f'{index} names "{shard}", which is no weights file beside it; get it anew')
    missing = sorted({shard for shard in names.values() if not (index.parent / shard).is_file()})
    if missing:
        raise CheckpointError(f"{index} names {missing[0]}, which is not beside it ({len(missing)} missing); get all shards")
    return {name: index.parent / shard for name, shard in names.items()}


def open_shards(index: Path, shards: Mapping[str, Path]) -> tuple[Tensors, tuple[str, ...]]:
    """Open all shards as one mapping."""
    opened = {path: open_weights(path) for path in sorted(set(shards.values()))}
    for name, path in shards.items():
        if name not in opened[path][0]:
            raise CheckpointError(f'{index} says that {path.name} holds "{name}", which it does not; get both anew')
    notes = [note for _, more in opened.values() for note in more]
    if unlisted := {name for tensors, _ in opened.values() for name in tensors} - shards.keys():
        notes.append(f"left out {len(unlisted)} tensors that the index does not list, such as {min(unlisted)}")
    shapes = {name: opened[path][0].shapes[name] for name, path in shards.items()}
    return Tensors(shapes, lambda name: opened[shards[name]][0][name]), tuple(notes)


# --------------------------------------------------------------------------------------------------------------------
# Beside the weights


def beside(weights: Path) -> tuple[Mapping[str, Any], Mapping[str, Any], str | None]:
    """Return config, preprocessor config and licence in the folder of a weights file."""
    configs = ("config.json", "open_clip_config.json")
    if weights.name.startswith("open_clip_"):  # timm's own configuration may lie there too, for the other weights
        configs = configs[::-1]
    paths = [path for name in configs if (path := weights.parent / name).is_file()]
    preprocessor = weights.parent / "preprocessor_config.json"
    return (
        read_json(paths[0]) if paths else {},
        read_json(preprocessor) if preprocessor.is_file() else {},
        licence_of(weights.parent / "README.md"),
    )


def licence_of(card: Path) -> str | None:
    """Return `license:` in the front matter of a model card."""
    if not card.is_file():
        return None
    with reading(card, "text"), card.open("rb") as file:
        text = file.read(1 << 16).decode("utf-8-sig", errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    line = re.search(r"^license:[ \t]*(\S[^\n#]*)", front[1], re.MULTILINE) if front else None
    return line[1].strip().strip("\"'") or None if line else None


# --------------------------------------------------------------------------------------------------------------------
# Hash


def hash_in_background(files: list[Path]) -> Future[str]:
    """Compute the sha256 of one file, or over the hex digests of several, in a thread (hashing holds no lock)."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
    future = pool.submit(_hash, files)
    pool.shutdown(wait=False)
    return future


def _hash(files: list[Path]) -> str:
    digests = []
    for path in files:
        with reading(path, "a file"), path.open("rb", buffering=0) as file:
            digest, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER))
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
            digests.append(digest.hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
