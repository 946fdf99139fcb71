"""Convert a checkpoint to another library's files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.models.backbone import Backbone
from vitrail.settings import nearest
from vitrail.settings.families import name_of
from vitrail.text import json_escaped
from vitrail.weights.libraries import LIBRARIES
from vitrail.weights.library import Export
from vitrail.weights.load import load
from vitrail.weights.run_folder import CONFIG, WEIGHTS, save_model, save_tensors, sync
from vitrail.weights.targets import Inexpressible

WRITERS = {library.writer.name: library.writer for library in LIBRARIES.values() if library.writer is not None}
FOLDER_HOLDS = {CONFIG, WEIGHTS, "preprocessor_config.json", "README.md"}
"""Names that a folder may contain and still be overwritten."""


def convert(
    source: str | os.PathLike[str] | Mapping[str, Any] | nn.Module,
    to: str,
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint that another library loads strictly and computes the same with. Returns its path.

    `source` is whatever `load` takes, or a model. `to` is "timm" or "hf", for a folder, or "torchvision" or "npz", for a
    file; torchvision's arguments stand in a .json beside it. Preprocessing and class names are written if the format has a
    place for them. A warning names what the result lacks. Nothing is overwritten without `overwrite`, and a failure leaves
    no file behind. Raises ValueError, in one line, for a model that the other library can't be, naming the field.
    """
    path = place(to, destination, overwrite=overwrite)
    plan = planned(source if isinstance(source, Backbone) else load(source), to)
    for note in plan.notes:
        warnings.warn(note, stacklevel=2)
    write(plan, path, overwrite=overwrite)
    return path


def planned(model: Backbone, to: str) -> Export:
    """Return what another library needs to be this model. Raises Inexpressible, which names the field and who has it."""
    if not any(type(model.config) in writer.plans for writer in WRITERS.values()):
        raise Inexpressible(f"{name_of(model.config)} has the names of its own library in its model.safetensors already")
    try:
        return plan_for(model, to)
    except Inexpressible as error:
        others = [f'"{other}"' for other in WRITERS if other != to and expressible(model, other)]
        way = f"convert it to {' or '.join(others)}" if others else "Vitrail's own run folders hold it"
        raise Inexpressible(f"{error}; {way}") from error


def plan_for(model: Backbone, to: str) -> Export:
    """Return a library's plan for the model's family. Raises Inexpressible if it has none, or not for this model."""
    plans = WRITERS[to].plans
    if type(model.config) not in plans:
        raise Inexpressible(f'"{to}" has no {type(model).__name__}')
    return plans[type(model.config)](model)


def expressible(model: Backbone, to: str) -> bool:
    """Return whether the other library can be this model."""
    try:
        return plan_for(model, to) is not None
    except ValueError:
        return False


# --------------------------------------------------------------------------------------------------------------------
# Files


def place(to: str, destination: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the path to write. Raises ValueError for an unknown target, another format's suffix, or what must stay."""
    if to not in WRITERS:
        raise ValueError(f'"{to}" is none of {", ".join(WRITERS)}{nearest(to, list(WRITERS))}')
    path, suffixes = Path(destination), WRITERS[to].suffixes
    if suffixes and not path.suffix:
        path = path.with_suffix(suffixes[0])
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f'{path} is to be a file for {to}, whose suffix is {" or ".join(suffixes)}, not "{path.suffix}"')
    for one in (path, *map(path.with_suffix, WRITERS[to].beside)):
        if not one.exists():
            continue
        if not overwrite:
            raise ValueError(f"{one} exists; give another destination, or overwrite=True (--overwrite)")
        if one.is_dir() is bool(suffixes):
            raise ValueError(f"{one} is a {'folder' if one.is_dir() else 'file'}; give another destination")
        others = sorted(file.name for file in one.iterdir() if file.name not in FOLDER_HOLDS) if one.is_dir() else []
        if others:
            raise ValueError(f"{one} holds more than a checkpoint ({', '.join(others[:3])}); give a folder of its own")
    return path


def write(plan: Export, path: Path, *, overwrite: bool) -> None:
    """Write the files into a draft beside their destination, and move them there once all are complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    draft.mkdir()
    try:
        if plan.model is not None:
            save_model(plan.model, draft, data="")
        else:
            save_one(plan.tensors, draft / (path.name if WRITERS[plan.to].suffixes else WEIGHTS))
        for name, content in plan.beside.items():
            target = draft / (path.with_suffix(name).name if name.startswith(".") else name)
            text = json_escaped(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
            target.write_text(text + "\n", encoding="utf-8")
        for written in (*draft.iterdir(), draft):
            sync(written)
        place(plan.to, path, overwrite=overwrite)  # what came there meanwhile stays
        move(draft, path, whole=not WRITERS[plan.to].suffixes)
        sync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def save_one(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one file of weights, in the format of its suffix."""
    if path.suffix == ".safetensors":
        save_tensors(tensors, path)
    elif path.suffix == ".npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, value in tensors.items():  # one copy of one tensor at a time
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.ascontiguousarray(value.numpy()), allow_pickle=False)
    else:
        torch.save(dict(tensors), path)


def move(draft: Path, path: Path, *, whole: bool) -> None:
    """Move the draft as a `whole` folder, or the files in it, to their destination."""
    if not whole:
        for file in draft.iterdir():
            os.replace(file, path.with_name(file.name))
        return
    old = draft.with_suffix(".old")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
