"""What happens to images before a checkpoint's model, and its classes' names.

What the files beside the weights say comes first: preprocessor_config.json, timm's pretrained_cfg, open_clip's
preprocess_cfg. Where none says it, the code that evaluated the weights does (`RULES`), and where that is not known either,
it is a guess, and called one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from vitrail.config import Pair, Preprocessing, tupled
from vitrail.models.card import Card, Kind
from vitrail.models.receipt import Receipt

Numbers = tuple[float, ...]
CropMode = Literal["center", "squash"]
Filter = Literal["bilinear", "bicubic"]

IMAGENET: tuple[Numbers, Numbers] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: tuple[Numbers, Numbers] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CLIP: tuple[Numbers, Numbers] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Given:
    """What a checkpoint says of its images and classes."""

    preprocessing: Preprocessing
    classes: tuple[str, ...]
    """In the order of the head's outputs; empty where the files name none, or another number of them."""
    source: str
    """Where the preprocessing comes from, in a few words, with what had to be read otherwise."""
    guessed: bool
    """Whether nothing says it."""
    multi_label: bool = False
    """Whether the head was trained for images with any number of the classes."""

    def card(self, receipt: Receipt) -> Card:
        """The card of the model that was made of the checkpoint."""
        task: Kind = "multi-label" if self.multi_label else "classify"
        return Card(preprocessing=self.preprocessing, classes=self.classes, task=task, receipt=receipt)


class Said(NamedTuple):
    """One source's word on the images, for the channels that it has."""

    mean: Numbers
    std: Numbers
    crop_pct: float
    crop_mode: CropMode
    interpolation: Filter
    source: str
    range: tuple[float, float] | None = None


class Rule(NamedTuple):
    """How one origin's own code evaluates its checkpoints."""

    word: str
    """In the name of the origin, or in the model_type of its config.json."""
    whose: str
    mean_std: tuple[Numbers, Numbers]
    crop_pct: float
    crop_mode: CropMode
    interpolation: Filter
    above_224: tuple[float, Filter] | None = None
    """Crop and filter of checkpoints for larger images, where they are others."""


RULES = (  # the first one whose word is there
    # transformers' SiglipImageProcessor
    Rule("siglip", "SigLIP", HALF, 1.0, "squash", "bicubic"),
    # openai/CLIP: clip/clip.py; open_clip: transform.py
    Rule("clip", "CLIP", CLIP, 1.0, "center", "bicubic"),
    # big_vision: configs/vit_i1k.py and its kin, resize_small(256)|central_crop(224)|value_range(-1, 1)
    Rule("big_vision", "big_vision's checkpoints", HALF, 0.875, "center", "bilinear"),
    # google-research/vision_transformer: vit_jax/input_pipeline.py resizes to the crop's size
    Rule("google", "Google's checkpoints", HALF, 1.0, "squash", "bilinear"),
    # dino: eval_linear.py; dinov2: data/transforms.py
    Rule("dino", "DINO's checkpoints", IMAGENET, 0.875, "center", "bicubic"),
    # mae: util/datasets.py
    Rule("mae", "MAE's checkpoints", IMAGENET, 0.875, "center", "bicubic", above_224=(1.0, "bicubic")),
    # deit: datasets.py
    Rule("deit", "DeiT's checkpoints", IMAGENET, 0.875, "center", "bicubic"),
    # torchvision's weights: IMAGENET1K_V1 (L/16 alone resizes to 242), and SWAG at 384, 512 and 518 px
    Rule("torchvision", "torchvision's checkpoints", IMAGENET, 0.875, "center", "bilinear", above_224=(1.0, "bicubic")),
)


class Processor(NamedTuple):
    """What one of transformers' image processors does where its file leaves it out."""

    resample: int
    mean_std: tuple[Numbers, Numbers]
    shorter: bool
    """Whether a size of one number is that of the shorter side; else it is that of both."""
    crops: bool


PROCESSORS = {  # by how their names begin, which are those of the feature extractors before them
    "ViT": Processor(2, HALF, shorter=False, crops=False),
    "DeiT": Processor(3, HALF, shorter=False, crops=True),
    "Beit": Processor(3, HALF, shorter=False, crops=False),
    "Siglip": Processor(3, HALF, shorter=True, crops=False),
    "CLIP": Processor(3, CLIP, shorter=True, crops=True),
    "Bit": Processor(3, CLIP, shorter=True, crops=True),  # DINOv2's
}

_PILLOW = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # filters by their number
_OURS: dict[str, Filter] = {
    "bicubic": "bicubic",
    "lanczos": "bicubic",
    "random": "bicubic",  # timm's, for training
    "bilinear": "bilinear",
    "hamming": "bilinear",
    "box": "bilinear",
    "nearest": "bilinear",
}


def preprocessing_for(
    *,
    img_size: Pair,
    in_channels: int,
    num_classes: int,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    origin: str,
    file_img_size: Pair,
) -> Given:
    """The preprocessing of a checkpoint for a model of `img_size` and `in_channels`, and the names of its classes.

    `config` is a config.json (or open_clip_config.json) and `preprocessor` a preprocessor_config.json; either may be
    empty. `origin` is the library or repository that wrote the weights, `file_img_size` the size they were made for.
    The crop's share stays where img_size is another one. One channel takes the mean over the file's channels, more of
    them take the file's again and again. Raises ValueError for a file that says what can't be.
    """
    said = _from_run(config) or _from_processor(preprocessor, file_img_size) or _from_timm(config) or _from_open_clip(config)
    said = said or _from_origin(f"{origin} {config.get('model_type', '')}", file_img_size)
    sure = said or Said(*IMAGENET, 0.875, "center", "bicubic", "a guess: ImageNet's mean and std")
    preprocessing = Preprocessing(
        img_size=img_size,
        in_channels=in_channels,
        mean=_for_channels(sure.mean, in_channels),
        std=_for_channels(sure.std, in_channels),
        crop_pct=sure.crop_pct,
        crop_mode=sure.crop_mode,
        interpolation=sure.interpolation,
        range=sure.range,
    )
    return Given(
        preprocessing,
        classes=_classes(config, num_classes),
        source=sure.source,
        guessed=said is None,
        multi_label=num_classes > 0 and _is_multi_label(config),
    )


# --------------------------------------------------------------------------------------------------------------------
# Who says it


def _from_run(config: Mapping[str, Any]) -> Said | None:
    """A run folder's config.json."""
    if not isinstance(config.get("vitrail"), Mapping):
        return None
    try:
        images = Preprocessing(**tupled(config["vitrail"]["preprocessing"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"config.json's preprocessing can't be read ({error}); restore it from a copy") from error
    return Said(
        images.mean, images.std, images.crop_pct, images.crop_mode, images.interpolation, "the run's config.json", images.range
    )


def _from_processor(file: Mapping[str, Any], file_img_size: Pair) -> Said | None:
    """preprocessor_config.json, of the feature extractors of 2021 up to today's image processors.

    None for a file of another kind: it says no mean, and its processor is not one whose mean is known.
    """
    file = {key: value for key, value in file.items() if value is not None}
    name = str(file.get("image_processor_type") or file.get("feature_extractor_type") or "")
    known = next((row for start, row in PROCESSORS.items() if name.startswith(start)), None)
    if known is None and not {"image_mean", "image_std"} <= file.keys():
        return None
    default, where = known or PROCESSORS["ViT"], "preprocessor_config.json"
    notes: list[str] = []

    mean = _numbers(file.get("image_mean", default.mean_std[0]), f"{where}: image_mean")
    std = _numbers(file.get("image_std", default.mean_std[1]), f"{where}: image_std", above_zero=True)
    if not file.get("do_normalize", True):
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    factor = file.get("rescale_factor", 1 / 255) if file.get("do_rescale", True) else 1
    scale = 255 * _numbers(factor, f"{where}: rescale_factor", above_zero=True)[0]
    if not math.isclose(scale, 1):  # theirs is (x · factor - mean) / std for x from 0 to 255, ours (x / 255 - mean) / std
        mean, std = tuple(m / scale for m in mean), tuple(s / scale for s in std)

    mode, resized = _resized(file.get("size"), default, where, notes)
    crop = _sides(file.get("crop_size"), f"{where}: crop_size") if file.get("do_center_crop", default.crops) else None
    if not file.get("do_resize", True):
        notes.append("it does not resize, Vitrail does")
        crop = None
    seen = crop or resized
    if seen is not None and seen != file_img_size:
        notes.append(f"its images are {seen[0]}x{seen[1]}")
    crop_pct = _share(crop[0], resized[0]) if crop and resized else 1.0
    interpolation = _filter(file.get("resample", default.resample), notes)
    return Said(mean, std, crop_pct, mode, interpolation, _noted(where, notes))


def _from_timm(config: Mapping[str, Any]) -> Said | None:
    """timm's pretrained_cfg: beside the architecture, or by itself. What it leaves out is as in resolve_data_config."""
    cfg = config.get("pretrained_cfg", config)
    if not isinstance(cfg, Mapping) or (cfg is config and not {"mean", "std"} <= cfg.keys()):
        return None
    where, notes = "timm's pretrained_cfg", list[str]()
    crop_pct = _numbers(cfg.get("crop_pct") or 0.875, f"{where}: crop_pct", above_zero=True)[0]
    if crop_pct > 1:
        raise ValueError(f"{where}: crop_pct {crop_pct} must be at most 1; mend the file, or leave it out")
    mode = cfg.get("crop_mode") or "center"
    if mode not in ("center", "squash"):  # "border" pads what is not square
        notes.append(f'its crop mode "{mode}" is read as "center"')
    return Said(
        _numbers(cfg.get("mean") or IMAGENET[0], f"{where}: mean"),
        _numbers(cfg.get("std") or IMAGENET[1], f"{where}: std", above_zero=True),
        crop_pct,
        "squash" if mode == "squash" else "center",
        _filter(cfg.get("interpolation") or "bicubic", notes),
        _noted(where, notes),
    )


def _from_open_clip(config: Mapping[str, Any]) -> Said | None:
    """open_clip's preprocess_cfg. What it leaves out is as in its PreprocessCfg."""
    cfg = config.get("preprocess_cfg")
    if not isinstance(cfg, Mapping):
        return None
    where, notes = "open_clip's preprocess_cfg", list[str]()
    mode = cfg.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):  # "longest" pads what is not square
        notes.append(f'its resize mode "{mode}" is read as "shortest"')
    return Said(
        _numbers(cfg.get("mean") or CLIP[0], f"{where}: mean"),
        _numbers(cfg.get("std") or CLIP[1], f"{where}: std", above_zero=True),
        1.0,
        "squash" if mode == "squash" else "center",
        _filter(cfg.get("interpolation") or "bicubic", notes),
        _noted(where, notes),
    )


def _from_origin(origin: str, file_img_size: Pair) -> Said | None:
    """The first rule whose word is in the origin's name."""
    rule = next((rule for rule in RULES if rule.word in origin.lower()), None)
    if rule is None:
        return None
    crop_pct, interpolation = rule.crop_pct, rule.interpolation
    if rule.above_224 and max(file_img_size) > 224:
        crop_pct, interpolation = rule.above_224
    return Said(*rule.mean_std, crop_pct, rule.crop_mode, interpolation, f"built in for {rule.whose}")


def _classes(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """transformers' id2label or timm's label_names, where they are as many as the classes and more than numbers."""
    timm = config.get("pretrained_cfg")
    inner = timm.get("label_names") if isinstance(timm, Mapping) else None
    listed = config.get("id2label") or config.get("label_names") or inner or ()
    if isinstance(listed, Mapping):
        by_number = {str(number): name for number, name in listed.items()}  # the keys of JSON are words
        listed = [by_number.get(str(i), "") for i in range(len(by_number))]
    if not isinstance(listed, list | tuple) or len(listed) != num_classes:
        return ()
    if not all(isinstance(name, str) and name for name in listed):
        return ()
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(listed)) else tuple(listed)


def _is_multi_label(config: Mapping[str, Any]) -> bool:
    """What a run's config.json says, or transformers' problem_type."""
    return config.get("multi_label") is True or config.get("problem_type") == "multi_label_classification"


# --------------------------------------------------------------------------------------------------------------------
# Values


def _resized(size: Any, default: Processor, where: str, notes: list[str]) -> tuple[CropMode, Pair | None]:
    """How transformers' `size` resizes, and to which (height, width); the shorter side stands for both."""
    shorter = default.shorter if size is None or isinstance(size, int) else isinstance(size, Mapping) and "height" not in size
    if isinstance(size, Mapping) and shorter and "shortest_edge" not in size:
        notes.append(f"its size by {' and '.join(map(str, size))} is read as that of the shorter side")
    return "center" if shorter else "squash", _sides(size, f"{where}: size")


def _sides(size: Any, what: str) -> Pair | None:
    """(height, width) of one number, of two, or of transformers' mappings; None where there is none."""
    if isinstance(size, Mapping):
        size = (size["height"], size["width"]) if {"height", "width"} <= size.keys() else size.get("shortest_edge")
    if size is None:
        return None
    sides = _numbers(size, what, above_zero=True)
    return math.ceil(sides[0]), math.ceil(sides[-1])


def _share(crop: int, resized: int) -> float:
    """The crop's share of what was resized, such that crop / share comes down to that; all of it for a larger crop."""
    share = min(1.0, crop / resized)
    return math.nextafter(share, 0) if math.floor(crop / share) < resized else share


def _filter(given: Any, notes: list[str]) -> Filter:
    """Ours for the name of a filter, or for Pillow's number of it."""
    name = _PILLOW[given] if isinstance(given, int) and 0 <= given < len(_PILLOW) else str(given).lower()
    nearest = _OURS.get(name, "bicubic")
    if nearest != name:
        notes.append(f'its filter "{name}" is read as "{nearest}"')
    return nearest


def _numbers(given: Any, what: str, *, above_zero: bool = False) -> Numbers:
    """One number or several. Raises ValueError for anything else, naming `what`."""
    values = given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    sound = all(isinstance(v, int | float) and math.isfinite(v) and (v > 0 or not above_zero) for v in values)
    if not values or not sound:
        rule = "numbers above 0" if above_zero else "numbers"
        raise ValueError(f"{what} {given!r} must be {rule}; mend the file, or leave it out")
    return tuple(map(float, values))


def _for_channels(values: Numbers, channels: int) -> Numbers:
    """One channel takes the mean of the values; more take them again and again."""
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))


def _noted(source: str, notes: Sequence[str]) -> str:
    return f"{source} ({'; '.join(notes)})" if notes else source
