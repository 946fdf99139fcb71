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
    """Writes model.safetensors and config.json, each whole or not at all. The folder is then one that `load` takes."""
    if model.preprocessing is None:
        raise ValueError("the model does not say what happens to its images; set model.preprocessing before it is saved")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    draft = folder / f"{WEIGHTS}.part"
    save_file(tensors, draft, metadata={"format": "pt"})
    digest = sha256(draft)
    os.replace(draft, folder / WEIGHTS)
    preprocessing = dataclasses.asdict(model.preprocessing)
    config = {
        "vitrail": {
            "model": dataclasses.asdict(model.config),
            "preprocessing": preprocessing,
            "data": data,
            "sha256": digest,
        },
        "num_classes": model.config.num_classes,
        "label_names": list(model.classes),
        **for_timm(model.config, model.preprocessing),
    }
    part = folder / f"{CONFIG}.part"
    part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / CONFIG)


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


def for_timm(cfg: ViTConfig, images: Preprocessing) -> dict[str, Any]:
    """The keys by which timm's `create_model("local-dir:FOLDER")` opens the folder; empty for parts that timm's ViT lacks."""
    lacking = cfg.stem != "patch" or cfg.mlp != "gelu" or cfg.dist_token or cfg.reg_tokens or cfg.pool != "cls"
    if lacking or cfg.head != "linear" or cfg.pos_embed != "learn":
        return {}
    return {
        "architecture": "vit_base_patch16_224",
        "model_args": {
            "img_size": cfg.img_size,
            "patch_size": cfg.patch_size,
            "in_chans": cfg.in_channels,
            "embed_dim": cfg.embed_dim,
            "depth": cfg.depth,
            "num_heads": cfg.num_heads,
            "mlp_ratio": cfg.mlp_ratio,
            "qkv_bias": cfg.qkv_bias,
            "qk_norm": cfg.qk_norm,
            "init_values": cfg.init_values,
        },
        "pretrained_cfg": {
            "input_size": [cfg.in_channels, *images.img_size],
            "mean": images.mean,
            "std": images.std,
            "crop_pct": images.crop_pct,
            "crop_mode": images.crop_mode,
            "interpolation": images.interpolation,
            "num_classes": cfg.num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def tupled(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
