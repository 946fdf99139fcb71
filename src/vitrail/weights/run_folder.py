"""A run folder's model: config.json says what it is, model.safetensors holds its weights, each with its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vitrail.config import Preprocessing, ViTConfig
from vitrail.models import ViT
from vitrail.weights.receipt import Receipt
from vitrail.weights.targets import Inexpressible, for_timm, timm_form

CONFIG, WEIGHTS, SETTINGS = "config.json", "model.safetensors", "config.yaml"


@dataclass(frozen=True)
class RunInfo:
    """What a run folder says of its model."""

    folder: Path
    config: ViTConfig
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    data: str
    """The data set that it was trained on: a name or a path."""
    sha256: str
    """Of model.safetensors."""


def save_model(model: ViT, folder: Path, *, data: str) -> None:
    """Writes model.safetensors and config.json, each whole or not at all. The folder is then one that `load` takes.

    timm opens it too, where it can be this model. Registers have no position, and timm knows that of all tokens before the
    patches only: the class token's position is then saved as part of the token.
    """
    if model.preprocessing is None:
        raise ValueError("the model does not say what happens to its images; set model.preprocessing before it is saved")
    state, cfg = {name: value.detach().cpu() for name, value in model.state_dict().items()}, model.config
    origin = come_from(model)
    try:
        timm = for_timm(cfg, model.preprocessing, licence=origin.get("licence"))
        state, cfg = timm_form(state, cfg)
    except Inexpressible:
        timm = {}
    draft = folder / f"{WEIGHTS}.part"
    save_file({name: value.contiguous() for name, value in state.items()}, draft, metadata={"format": "pt"})
    digest = sha256(draft)
    os.replace(draft, folder / WEIGHTS)
    preprocessing = dataclasses.asdict(model.preprocessing)
    config = {
        "vitrail": {
            "model": dataclasses.asdict(cfg),
            "preprocessing": preprocessing,
            "data": data,
            "sha256": digest,
            **origin,
        },
        "num_classes": cfg.num_classes,
        "label_names": list(model.classes),
        **timm,
    }
    part = folder / f"{CONFIG}.part"
    part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / CONFIG)


def come_from(model: ViT) -> dict[str, Any]:
    """The receipt of the checkpoint that the weights started from, and its licence; empty for weights that started as random.

    Of a file's path the last part only: where it lay is nobody's business.
    """
    receipt = model.receipt
    if not isinstance(receipt, Receipt) or not receipt.total("exact", "resized", "adapted"):
        return {}
    told = receipt.to_dict()
    if os.path.isabs(receipt.file) or os.path.exists(receipt.file):  # else it is a Hub id, or none at all
        told["file"] = Path(receipt.file).name
    return {"licence": receipt.licence, "receipt": told}


def read_run(folder: str | Path) -> RunInfo:
    """What config.json says. Raises ValueError for a folder that is no finished run."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'run folder "{folder}" does not exist; `vitrail train` makes one')
    if not (folder / CONFIG).exists():
        unfinished = (folder / SETTINGS).exists()
        way = f"its training is not finished: `vitrail resume {folder}`" if unfinished else "`vitrail train` makes one"
        raise ValueError(f'"{folder}" holds no {CONFIG}, so it is not a finished run; {way}')
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        ours = config["vitrail"]
        model, images = tupled(ours["model"]), tupled(ours["preprocessing"])
        return RunInfo(
            folder=folder,
            config=ViTConfig(**model),
            preprocessing=Preprocessing(**images),
            classes=tuple(config["label_names"]),
            data=str(ours["data"]),
            sha256=str(ours["sha256"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder / CONFIG} can't be read ({reason}); restore it from a copy, or train again") from error


def load_run(folder: str | Path) -> ViT:
    """The trained model of a run folder. Raises ValueError where a file is missing, damaged or of another model."""
    info = read_run(folder)
    path = info.folder / WEIGHTS
    if not path.exists():
        raise ValueError(f"{path} is missing; restore it from a copy, or `vitrail resume {folder}`")
    if sha256(path) != info.sha256:
        raise ValueError(f"{path} is damaged: its sha256 is not the one in {CONFIG}; restore it from a copy, or train again")
    try:
        tensors = load_file(path)
        model = ViT(info.config)
        model.load_state_dict(tensors, strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} can't be read ({str(error).splitlines()[0]}); restore it from a copy") from error
    model.preprocessing, model.classes = info.preprocessing, info.classes
    return model.eval()


def tupled(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
