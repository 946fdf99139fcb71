"""config.json and preprocessor_config.json of transformers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vitrail.settings import Pair
from vitrail.weights.eval_transform import CLIP, HALF, CropMode, EvalTransform, Numbers, filter_of, numbers, with_notes
from vitrail.weights.library import Config, Labels, activation, from_list

# --------------------------------------------------------------------------------------------------------------------
# config.json

DEFAULTS: dict[str, dict[str, Any]] = {  # by model_type: what config.json omits if it equals this
    **{kind: {"num_attention_heads": 12, "layer_norm_eps": 1e-12} for kind in ("vit", "vit_mae", "deit", "beit")},
    **{kind: {"num_attention_heads": 12, "layer_norm_eps": 1e-6} for kind in ("vit_msn", "dinov2", "dinov2_with_registers")},
    "clip_vision_model": {"num_attention_heads": 12, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
    "siglip_vision_model": {"num_attention_heads": 12, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh"},
}

COMPARED = (  # model_type of the encoders whose code was compared (benchmarks/compatibility.py, the tests)
    *("vit", "vit_mae", "vit_msn", "deit", "beit", "data2vec-vision", "dinov2", "dinov2_with_registers", "ijepa", "clip"),
    *("clip_vision_model", "siglip", "siglip_vision_model", "owlvit_vision_model", "metaclip_2_vision_model"),
    *("chinese_clip_vision_model", "altclip_vision_model"),
)


def vision_config(config: Config) -> Config:
    """Return the part of a config.json that is about the image encoder."""
    inner = config.get("vision_config")
    return inner if isinstance(inner, Mapping) and inner else config


def config_fields(config: Config) -> dict[str, Any]:
    """Return the fields of ViTConfig that a config.json states."""
    config = vision_config(config)
    if rotary := next((name for name in config if name.startswith("rope_") and config[name]), None):
        kind = config.get("model_type", "this model")
        raise ValueError(f"{kind} is not a plain ViT: its positions are rotary ({rotary}); open it with transformers")
    config = {**DEFAULTS.get(config.get("model_type", ""), {}), **config}
    names = {"num_attention_heads": "num_heads", "layer_norm_eps": "norm_eps", "image_size": "img_size"}
    fields = {ours: from_list(config[theirs]) for theirs, ours in names.items() if config.get(theirs) is not None}
    if config.get("hidden_act") is not None and not config.get("use_swiglu_ffn"):
        fields["mlp"] = activation(config["hidden_act"])
    return fields


def config_assumptions(config: Config) -> Iterator[str]:
    """Assume that a model_type whose code was not compared is a plain ViT."""
    kind = vision_config(config).get("model_type")
    if kind is not None and kind not in COMPARED:
        yield f"the code of transformers' {kind} does nothing but what its tensors' names say"


def labels(config: Config) -> Labels:
    """Return id2label, and whether the loss is that of several labels per image."""
    return Labels(config.get("id2label") or (), config.get("problem_type") == "multi_label_classification")


# --------------------------------------------------------------------------------------------------------------------
# preprocessor_config.json


class Processor(NamedTuple):
    """Defaults of an image processor for what its file omits."""

    resample: int
    mean_std: tuple[Numbers, Numbers]
    shorter: bool
    """True where a size of one number is that of the shorter side; else it is that of both."""
    crops: bool


PROCESSORS = {  # by the first part of its name, which is that of the older feature extractor too
    "ViT": Processor(2, HALF, shorter=False, crops=False),
    "DeiT": Processor(3, HALF, shorter=False, crops=True),
    "Beit": Processor(3, HALF, shorter=False, crops=False),
    "Siglip2": Processor(2, HALF, shorter=False, crops=False),
    "Siglip": Processor(3, HALF, shorter=True, crops=False),
    "CLIP": Processor(3, CLIP, shorter=True, crops=True),
    "Bit": Processor(3, CLIP, shorter=True, crops=True),  # DINOv2's
}


CONVNEXT_SQUASHES = 384
"""Side from which transformers' ConvNextImageProcessor squashes images instead of cropping them."""


def processor_transform(file: Config, img_size: Pair) -> EvalTransform | None:
    """Return the transform of an image processor, or of the feature extractors of 2021, for weights of `img_size`.

    None for a file of another kind: it states no mean, and its processor is not one whose mean is known.
    """
    file = {key: value for key, value in file.items() if value is not None}
    name = str(file.get("image_processor_type") or file.get("feature_extractor_type") or "")
    known = next((processor for start, processor in PROCESSORS.items() if name.startswith(start)), None)
    if known is None and not {"image_mean", "image_std"} <= file.keys():
        return None
    default, where = known or PROCESSORS["ViT"], "preprocessor_config.json"
    notes: list[str] = []

    mean = numbers(file.get("image_mean", default.mean_std[0]), f"{where}: image_mean")
    std = numbers(file.get("image_std", default.mean_std[1]), f"{where}: image_std", above_zero=True)
    if not file.get("do_normalize", True):
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    factor = file.get("rescale_factor", 1 / 255) if file.get("do_rescale", True) else 1
    scale = 255 * numbers(factor, f"{where}: rescale_factor", above_zero=True)[0]
    if not math.isclose(scale, 1):  # theirs is (x · factor - mean) / std for x from 0 to 255, ours (x / 255 - mean) / std
        mean, std = tuple(m / scale for m in mean), tuple(s / scale for s in std)

    if name.startswith("Siglip2"):
        notes.append("it keeps the aspect ratio, Vitrail squashes")
    mode, resized = resize_of(file.get("size"), default, where, notes)
    if name.startswith("ConvNext") and resized is not None:  # ConvNeXT's and CvT's, whose code has a crop of its own
        share = numbers(file.get("crop_pct", 224 / 256), f"{where}: crop_pct", above_zero=True)[0]
        mode, share = ("squash", 1.0) if max(resized) >= CONVNEXT_SQUASHES else ("center", min(1.0, share))
        interpolation = filter_of(file.get("resample", 3), notes)
        return EvalTransform(mean, std, share, mode, interpolation, with_notes(where, notes))
    crop = sides_of(file.get("crop_size"), f"{where}: crop_size") if file.get("do_center_crop", default.crops) else None
    if not file.get("do_resize", True):
        notes.append("it does not resize, Vitrail does")
        crop = None
    output = crop or resized
    if output is not None and output != img_size:
        notes.append(f"its images are {output[0]}x{output[1]}")
    crop_pct = crop_share(crop[0], resized[0]) if crop and resized else 1.0
    interpolation = filter_of(file.get("resample", default.resample), notes)
    return EvalTransform(mean, std, crop_pct, mode, interpolation, with_notes(where, notes))


def resize_of(size: Any, default: Processor, where: str, notes: list[str]) -> tuple[CropMode, Pair | None]:
    """Return how `size` resizes, and to which (height, width); the shorter side stands for both."""
    shorter = default.shorter if size is None or isinstance(size, int) else isinstance(size, Mapping) and "height" not in size
    if isinstance(size, Mapping) and shorter and "shortest_edge" not in size:
        notes.append(f"its size by {' and '.join(map(str, size))} is read as that of the shorter side")
    return "center" if shorter else "squash", sides_of(size, f"{where}: size")


def sides_of(size: Any, what: str) -> Pair | None:
    """Return (height, width) of one number, of two, or of a mapping; None if there is none."""
    if isinstance(size, Mapping):
        size = (size["height"], size["width"]) if {"height", "width"} <= size.keys() else size.get("shortest_edge")
    if size is None:
        return None
    sides = numbers(size, what, above_zero=True)
    return math.ceil(sides[0]), math.ceil(sides[-1])


def crop_share(crop: int, resized: int) -> float:
    """Return crop / resized, at most 1, such that crop / share rounds down to `resized`."""
    share = min(1.0, crop / resized)
    return math.nextafter(share, 0) if math.floor(crop / share) < resized else share
