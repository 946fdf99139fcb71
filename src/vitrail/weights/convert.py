"""Our models in other libraries' files: the tables of origins.py read backwards."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from vitrail.config import Preprocessing, ViTConfig, nearest, pair
from vitrail.models import ViT
from vitrail.models.backbone import Backbone
from vitrail.settings.families import name_of
from vitrail.settings.swin import SwinConfig
from vitrail.text import json_escaped
from vitrail.weights import swin
from vitrail.weights.load import load
from vitrail.weights.origins import Origin
from vitrail.weights.run_folder import CONFIG, WEIGHTS, save_model, save_tensors, sync
from vitrail.weights.targets import (
    Inexpressible,
    Plan,
    State,
    Target,
    filled,
    for_google,
    for_timm,
    for_torchvision,
    for_transformers,
    image_processor,
    placed,
    transformers_form,
)

PROCESSOR = "preprocessor_config.json"
FOLDER_HOLDS = {CONFIG, WEIGHTS, PROCESSOR, "README.md"}
"""What a folder may hold that is written over: nobody's photographs."""
SUFFIXES: dict[Target, tuple[str, ...]] = {"torchvision": (".pth", ".pt", ".safetensors"), "npz": (".npz",)}
"""Of targets that are one file; the first one is added where there is none."""


def convert(
    source: str | os.PathLike[str] | Mapping[str, Any] | nn.Module,
    to: Target,
    destination: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Writes a checkpoint that another library loads strictly and computes the same with. Returns where it is.

    `source` is whatever `load` takes, or a ViT. `to` is "timm" or "hf", for a folder, or "torchvision" or "npz", for a
    file; torchvision's arguments stand in a .json beside it. Preprocessing and class names go along where the format has a
    place for them. What the result lacks is a warning. Nothing is written over without `overwrite`, and a failure leaves
    nothing behind. Raises ValueError, in one line, for a model that the other library can't be, naming the field.
    """
    path = place(to, destination, overwrite=overwrite)
    plan = planned(source if isinstance(source, Backbone) else load(source), to)
    for note in plan.notes:
        warnings.warn(note, stacklevel=2)
    write(plan, path, overwrite=overwrite)
    return path


def planned(model: Backbone, to: Target) -> Plan:
    """What another library needs to be this model. Raises Inexpressible, a ValueError that names the field and who has it."""
    plans = PLANS.get(type(model.config))
    if plans is None:
        name = name_of(model.config)
        raise Inexpressible(f"{name} has the names of its own library in its model.safetensors already")
    try:
        if to not in plans:
            raise Inexpressible(f'"{to}" has no {type(model).__name__}')
        return plans[to](model, images_of(model))
    except Inexpressible as error:
        others = [f'"{other}"' for other in get_args(Target) if other != to and expressible(model, other)]
        way = f"convert it to {' or '.join(others)}" if others else "Vitrail's own run folders hold it"
        raise Inexpressible(f"{error}; {way}") from error


def expressible(model: Backbone, to: Target) -> bool:
    """Whether the other library can be this model."""
    try:
        return to in PLANS[type(model.config)] and PLANS[type(model.config)][to](model, images_of(model)) is not None
    except ValueError:
        return False


# --------------------------------------------------------------------------------------------------------------------
# Plans


def plan_timm(model: ViT, images: Preprocessing) -> Plan:
    """A folder for `create_model("local-dir:…")`, which is a run folder too."""
    for_timm(model.config, images)
    return Plan("timm", 'timm.create_model("local-dir:PATH", pretrained=True)', model=model)


def plan_transformers(model: ViT, images: Preprocessing) -> Plan:
    """A folder for from_pretrained."""
    cfg = model.config
    found = for_transformers(cfg, model.classes, multi_label=model.multi_label)
    tensors = renamed(
        transformers_form(state_of(model), cfg, found), cfg, found.origin, found.prefix, found.spelling, found.drops
    )
    idle = {  # what transformers' classes have and these models don't use
        "Dinov2": {"embeddings.mask_token": torch.zeros(1, cfg.embed_dim)},
        "CLIPFor": {"post_layernorm.weight": torch.ones(cfg.embed_dim), "post_layernorm.bias": torch.zeros(cfg.embed_dim)},
    }
    for cls, more in idle.items():
        tensors |= {f"{found.prefix}{name}": value for name, value in more.items() if found.cls.startswith(cls)}
    notes = found.notes
    if images.crop_mode == "center" and images.img_size[0] != images.img_size[1]:
        notes += ("transformers resizes by the shorter side, so that its crop shows less of most images",)
    return Plan(
        "hf",
        f'transformers.{found.cls}.from_pretrained("PATH")',
        tensors=tensors,
        beside={CONFIG: found.config, PROCESSOR: image_processor(images, found.processor)},
        notes=notes,
    )


def plan_torchvision(model: ViT, images: Preprocessing) -> Plan:
    """A state dict, and the arguments of the class that loads it."""
    cfg = model.config
    origin, args = for_torchvision(cfg)
    state, placed_cfg = placed(state_of(model), cfg, tokens=True)
    return Plan(
        "torchvision",
        f"torchvision.models.VisionTransformer({', '.join(f'{name}={value}' for name, value in args.items())})",
        tensors=renamed(filled(state, placed_cfg), cfg, origin),
        beside={".json": {"arguments": args, **told(model)}},
    )


def plan_google(model: ViT, images: Preprocessing) -> Plan:
    """An .npz of vision_transformer or big_vision."""
    cfg = model.config
    origin, prefix = for_google(cfg)
    notes, answers = ["an .npz has no place for preprocessing and class names"], [""]
    if cfg.mlp == "gelu":
        notes.append('this model has the exact GELU, and flax computes its tanh form: load it with mlp="gelu"')
        answers.append('mlp="gelu"')
    if len({side // patch for side, patch in zip(pair(cfg.img_size), pair(cfg.patch_size), strict=True)}) > 1:
        notes.append(f"the layout holds no grid that is not square: load it with img_size={cfg.img_size}")
        answers.append(f"img_size={cfg.img_size}")
    return Plan(
        "npz",
        f'vitrail.load("PATH"{", ".join(answers)})',
        tensors=renamed(filled(state_of(model), cfg), cfg, origin, prefix),
        notes=tuple(notes),
    )


PLANS: dict[type[Any], Mapping[str, Callable[[Any, Preprocessing], Plan]]] = {  # by family, then by library
    ViTConfig: {"timm": plan_timm, "hf": plan_transformers, "torchvision": plan_torchvision, "npz": plan_google},
    SwinConfig: swin.PLANS,
}


def images_of(model: Backbone) -> Preprocessing:
    """The model's preprocessing. Raises ValueError where it has none."""
    if model.preprocessing is None:
        raise ValueError("the model does not say what happens to its images; set model.preprocessing before it is converted")
    return model.preprocessing


def told(model: ViT) -> dict[str, Any]:
    """What is known of images and classes."""
    images = {} if model.preprocessing is None else {"preprocessing": dataclasses.asdict(model.preprocessing)}
    return {**images, "label_names": list(model.classes), "multi_label": model.multi_label}


def state_of(model: ViT) -> dict[str, Tensor]:
    """The model's tensors, on the CPU."""
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def renamed(
    state: State,
    cfg: ViTConfig,
    origin: Origin,
    prefix: str = "",
    spelling: tuple[tuple[str, str], ...] = (),
    drops: str = r"(?!)",
) -> dict[str, Tensor]:
    """Our tensors under an origin's names, in its layouts: its table, read backwards.

    Of several rows for one name of ours the first one is what the origin writes today. What several of ours become
    together (query, and key with value) is stacked. Raises Inexpressible for a tensor that the table does not have.
    """
    rows = {row.ours: row for row in reversed(origin.table)}
    made: dict[str, list[Tensor]] = {}
    for name, value in state.items():
        number = re.match(r"blocks\.(\d+)\.", name)
        row = rows.get(name if number is None else f"blocks.#.{name[number.end() :]}")
        if row is None:
            raise Inexpressible(f"{origin.name} has no place for {name}")
        for theirs, part in zip(row.theirs, row.form.write(value, cfg), strict=True):
            short = theirs if number is None else theirs.replace("#", number[1])
            for pattern, right in spelling:
                short = re.sub(pattern, right, short)
            if not re.match(drops, short):
                outside = name.startswith("head") and origin.name.startswith("transformers")
                made.setdefault(short if outside else prefix + short, []).append(part)
    return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in made.items()}


# --------------------------------------------------------------------------------------------------------------------
# Files


def place(to: str, destination: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Where it goes. Raises ValueError for another target, a suffix of another format, and what must not be written over."""
    if to not in get_args(Target):
        known = list(get_args(Target))
        raise ValueError(f'"{to}" is none of {", ".join(known)}{nearest(to, known)}')
    path = Path(destination)
    suffixes = SUFFIXES.get(to)  # type: ignore[call-overload]
    if suffixes and not path.suffix:
        path = path.with_suffix(suffixes[0])
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f'{path} is to be a file for {to}, whose suffix is {" or ".join(suffixes)}, not "{path.suffix}"')
    for one in (path, path.with_suffix(".json")) if to == "torchvision" else (path,):
        if not one.exists():
            continue
        if not overwrite:
            raise ValueError(f"{one} exists; give another destination, or overwrite=True (--overwrite)")
        if one.is_dir() is bool(suffixes):
            raise ValueError(f"{one} is a {'folder' if one.is_dir() else 'file'}; give another destination")
        others = sorted(found.name for found in one.iterdir() if found.name not in FOLDER_HOLDS) if one.is_dir() else []
        if others:
            raise ValueError(f"{one} holds more than a checkpoint ({', '.join(others[:3])}); give a folder of its own")
    return path


def write(plan: Plan, path: Path, *, overwrite: bool) -> None:
    """Writes the files into a draft beside their place, and moves them there when all are whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    draft.mkdir()
    try:
        if plan.model is not None:
            save_model(plan.model, draft, data="")
        elif plan.to == "hf":
            save_tensors(plan.tensors, draft / WEIGHTS)
        else:
            save_one(plan.tensors, draft / path.name)
        for name, content in plan.beside.items():
            target = draft / (path.with_suffix(name).name if name.startswith(".") else name)
            text = json_escaped(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
            target.write_text(text + "\n", encoding="utf-8")
        for written in (*draft.iterdir(), draft):
            sync(written)
        place(plan.to, path, overwrite=overwrite)  # what came there meanwhile stays
        move(draft, path, whole=plan.to in ("timm", "hf"))
        sync(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def save_one(tensors: Mapping[str, Tensor], path: Path) -> None:
    """One file of weights, in the format that its suffix says."""
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
    """The draft, or the files in it, to their place."""
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
