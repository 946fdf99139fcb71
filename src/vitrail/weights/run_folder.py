"""Save and read the model of a run folder: config.json and model.safetensors, with its hash."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vitrail.models.backbone import Backbone
from vitrail.settings import Preprocessing, tupled
from vitrail.settings.families import FAMILIES, family_of_config
from vitrail.weights.libraries.timm import RUN_FORMS
from vitrail.weights.targets import Inexpressible, State

CONFIG, WEIGHTS, SETTINGS = "config.json", "model.safetensors", "config.yaml"
CHECK = "check.json"
"""What `vitrail check DATA --weights RUN` found in the data; the report of the run shows it."""


@dataclass(frozen=True)
class RunInfo:
    """Description of the model in a run folder."""

    folder: Path
    config: Any
    """Config of the model's family."""
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    data: str
    """Dataset that it was trained on: a name or a path."""
    sha256: str
    """Hash of model.safetensors."""
    multi_label: bool = False
    """True for several labels per image."""

    def is_of(self, data: str) -> bool:
        """Return whether the run was trained on the named set or folder `data`."""
        return self.data == data or Path(self.data).resolve() == Path(data).resolve()


def save_model(model: Backbone, folder: Path, *, data: str) -> None:
    """Write model.safetensors and config.json atomically. `load` reads the folder.

    timm opens it too, if it has such a model. Registers have no position, and in timm all prefix tokens have one or none: the
    class token's position is then saved as part of the token. A baseline's tensors have its library's names.
    """
    if model.preprocessing is None:
        raise ValueError("the model does not say what happens to its images; set model.preprocessing before it is saved")
    cfg, origin = model.config, come_from(model)
    state: State = {name: value.detach().cpu() for name, value in model.stored().state_dict().items()}
    timm: dict[str, Any] = {}
    if type(cfg) in RUN_FORMS:
        with contextlib.suppress(Inexpressible):
            timm, state, cfg = RUN_FORMS[type(cfg)](model, state, model.preprocessing, origin.get("licence"))
    draft = folder / f"{WEIGHTS}.part"
    save_tensors(state, draft)
    digest = sha256(draft)
    put(draft, folder / WEIGHTS)
    preprocessing, calibration, seen = dataclasses.asdict(model.preprocessing), model.card.calibration, model.card.images_seen
    config = {
        "vitrail": {
            family_of_config(cfg).stored_as: dataclasses.asdict(cfg),
            "preprocessing": preprocessing,
            "data": data,
            "sha256": digest,
            **({} if seen is None else {"images_seen": seen}),
            **({} if calibration is None else {"calibration": dataclasses.asdict(calibration)}),
            **origin,
        },
        "num_classes": cfg.num_classes,
        "label_names": list(model.classes),
        "multi_label": model.multi_label,
        **timm,
    }
    part = folder / f"{CONFIG}.part"
    part.write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    put(part, folder / CONFIG)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file with the permissions of the umask.

    safetensors itself writes a file that only its owner can read: a colleague, or the server's user, could not load the model.
    """
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        mode = os.fstat(file.fileno()).st_mode
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=dict(metadata or {"format": "pt"}))
    path.chmod(stat.S_IMODE(mode))


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a draft beside `path`, which replaces it once it is written."""
    draft = path.with_name(f"{path.name}.part")
    try:
        yield draft
        put(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def put(draft: Path, path: Path) -> None:
    """Rename a draft to its path, with fsync before and after: atomic even if power fails."""
    sync(draft)
    os.replace(draft, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def come_from(model: Backbone) -> dict[str, Any]:
    """Return receipt and licence of the checkpoint that training started from; empty for random weights.

    A file's path is cut to its last part, for privacy.
    """
    receipt = model.receipt
    if receipt is None or not receipt.total("exact", "resized", "adapted"):
        return {}
    entry = receipt.to_dict()
    if os.path.isabs(receipt.file) or os.path.exists(receipt.file):  # else it is a Hub id, or none at all
        entry["file"] = Path(receipt.file).name
    return {"licence": receipt.licence, "receipt": entry}


def read_run(folder: str | Path) -> RunInfo:
    """Read config.json. Raises ValueError for a folder that is no finished run."""
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
        images = tupled(ours["preprocessing"])
        family = next(family for family in FAMILIES.values() if family.stored_as in ours)
        return RunInfo(
            folder=folder,
            config=family.config(**tupled(ours[family.stored_as])),
            preprocessing=Preprocessing(**images),
            classes=tuple(config["label_names"]),
            data=str(ours["data"]),
            sha256=str(ours["sha256"]),
            multi_label=bool(config.get("multi_label", False)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder / CONFIG} can't be read ({reason}); restore it from a copy, or train again") from error


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
