"""Which image Transformers of timm, transformers, torchvision and open_clip load, and whether they compute the same.

    python benchmarks/compatibility.py [--only NAME] [--library NAME] [--write]

Walks every architecture that the libraries list, made small and given random weights: no download. Each is loaded from its
state dict alone, without a config. Where `vitrail.load` asks what no tensor tells, it is called again with the answer that the
other library's own model gives; where that is not enough, with the live model, whose config the library writes beside its
weights. Each ends as one of

    same       outputs equal to 1e-5 of their greatest value (of 1, where that is smaller)
    asked      the same, after a question was answered
    config     the same, with the library's own config beside the weights
    refused    an error that says why
    differs    loaded, and computes something else: there must be none
    crashed    an error that is not one line for the user: there must be none
    not run    loaded, but the other library's model could not be run on images to compare: there must be none

--write puts the result into benchmarks/results/compatibility.json, from which `make tables` makes the table of docs/weights.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vitrail
from machine import RESULTS, facts
from vitrail.models.backbone import Backbone
from vitrail.weights.infer import REASONS
from vitrail.weights.libraries.timm.naflex import RESIZES
from vitrail.weights.library import ACTIVATIONS

TOLERANCE = 1e-5
KINDS = ("same", "asked", "config", "refused", "differs", "crashed", "not run")
Parts = list[tuple[str, Tensor]]
"""Outputs of the other library's model: "logits", "pooled" or "tokens", and the value."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one architecture."""

    library: str
    name: str
    outcome: str
    detail: str = ""
    """The answers that were given, the words of a refusal, or the greatest difference."""
    reason: str = ""
    """Of a refusal, without the names of tensors."""
    family: str = ""
    """Class of our model."""


def randomise(model: nn.Module) -> nn.Module:
    """Make every parameter random, those that start as zero or one as well: else a lost bias or norm would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-2, 2)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.eval()


# --------------------------------------------------------------------------------------------------------------------
# One architecture


def compare(
    library: str, name: str, model: nn.Module, images: Tensor, expected: Parts | None, truth: Mapping[str, Any]
) -> Outcome:
    """Load the model's bare state dict, else the model with its config, and compare the outputs (None: it can't be run)."""
    try:
        outcome, answers, ours = load(model, truth)
    except ValueError as error:
        return Outcome(library, name, "refused", str(error), reason_of(str(error)))
    except Exception as error:
        return Outcome(library, name, "crashed", f"{type(error).__name__}: {error}")
    family = type(ours).__name__
    if expected is None:
        return Outcome(library, name, "not run", family=family)
    worst = 0.0
    with torch.no_grad():
        for part, value in expected:
            got = ours(images) if part == "logits" else getattr(ours.features(images), part)
            if got.shape != value.shape:
                detail = f"{part} is {tuple(got.shape)}, not {tuple(value.shape)}"
                return Outcome(library, name, "differs", detail, family=family)
            assert value.std() > 1e-3, f"{name}: the reference says nothing"
            worst = max(worst, (got - value).abs().max().item() / max(1.0, value.abs().max().item()))
    if not worst <= TOLERANCE:
        return Outcome(library, name, "differs", f"{worst:.1e} ({outcome})", family=family)
    return Outcome(library, name, outcome, answers, family=family)


def load(model: nn.Module, truth: Mapping[str, Any]) -> tuple[str, str, Backbone]:
    """Load a model by its state dict, by that and answers, or with its config. Raises ValueError as the last of them."""
    answers: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            try:
                ours = vitrail.load(model.state_dict(), **answers)
                return ("asked" if answers else "same"), ", ".join(f"{key}={value!r}" for key, value in answers.items()), ours
            except ValueError as error:
                asked = re.findall(r"(?:do not tell|nor) (\w+) \(", str(error))
                if not asked or answers or any(truth.get(field) is None for field in asked):
                    break
                answers = {field: truth[field] for field in asked}
        return "config", "", vitrail.load(model)


def reason_of(refusal: str) -> str:
    """Return a refusal without the names of tensors."""
    others = {
        "without a bias": "its norms have no bias, as in RMSNorm",
        "stand behind the branches": "its norms stand behind the branches",
        "no plain ViT is in these": "its tensors have no names that we know",
        "make no square": "its positions are no grid",
    }
    return next(
        (why for sign, why in [*((why, why) for _, why in REASONS), *others.items()] if sign in refusal), "other tensors"
    )


# --------------------------------------------------------------------------------------------------------------------
# timm

TIMM_MODULES = (
    *("vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "deit"),
    *("eva", "beit", "cait", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "naflexvit"),
)
PYRAMID = {"depths": (1, 1, 2, 1), "embed_dim": 16, "num_heads": (1, 2, 2, 4)}


def walk_timm(only: str = "", modules: Sequence[str] = TIMM_MODULES) -> Iterator[Outcome]:
    """Yield the outcome of every architecture of timm's modules of ViTs and their family."""
    import timm

    for module in modules:
        for name in timm.list_models(module=module):
            if only in name:
                yield one_of_timm(name)


def one_of_timm(name: str) -> Outcome:
    """Return the outcome of one architecture of timm."""
    model = small_timm(name)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or model.pretrained_cfg["input_size"][1:]
    if name.startswith("naflexvit"):
        size = (64, 64)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = [("logits", model(images))]
        tokens = model.forward_features(images)
        if isinstance(tokens, Tensor) and name.startswith("samvit"):
            tokens = tokens.flatten(2).mT  # a map
        if isinstance(tokens, Tensor) and tokens.ndim == 3 and not hasattr(model, "head_dist"):
            expected.append(("tokens", tokens))
    block = next(iter(getattr(model, "blocks", ())), None)
    act = getattr(getattr(block, "mlp", None), "act", None)
    kinds = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "GeluTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
    truth = {
        "num_heads": getattr(getattr(block, "attn", None), "num_heads", None),
        "mlp": kinds.get(type(act).__name__),
        "pool_include_prefix": getattr(model, "pool_include_prefix", None),
        **resizing_of(model),
        **windows_of(model),
    }
    return compare("timm", name, model, images, expected, truth)


def resizing_of(model: Any) -> dict[str, Any]:
    """Return how a NaFlexVit of timm resizes its positions, in our words; {} for another model."""
    if not hasattr(model, "embeds"):
        return {}
    names = [f"pos_embed_{name}" for name in ("interp_mode", "antialias", "align_corners")]
    how = RESIZES[tuple(getattr(model.embeds, name) for name in names)]
    return {"pos_resize": how, "pos_square": model.embeds.pos_embed_ar_preserving}


def windows_of(model: Any) -> dict[str, Any]:
    """Return the blocks of timm's VisionTransformerSAM that attend to the whole image; {} for another model."""
    sides = [getattr(block, "window_size", None) for block in getattr(model, "blocks", ())]
    if not all(isinstance(side, int) for side in sides):
        return {}
    return {"global_blocks": tuple(at for at, side in enumerate(sides) if side == 0)} if sides else {}


def small_timm(name: str) -> Any:
    """Build an architecture of timm with few blocks and patches, and random weights."""
    import timm

    patch = int(found[1]) if (found := re.search(r"patch(\d+)", name)) else 16
    small: dict[str, Any] = {"depth": 2, "img_size": 4 * patch}
    if "sapiens2" in name:  # its key heads are listed block by block; the first blocks have all
        with torch.device("meta"):
            whole: Any = timm.create_model(name)
        small["num_kv_heads"] = (whole.blocks[0].attn.num_heads,) * 2
    shrink: tuple[dict[str, Any], ...] = (small, {"depth": 2}, {})
    for arguments in (PYRAMID, *shrink) if name.startswith("swin") else shrink:
        torch.manual_seed(0)
        try:
            return randomise(timm.create_model(name, num_classes=7, **arguments))
        except TypeError:  # an argument that it lacks
            continue
    raise RuntimeError(f"{name} can't be built")


# --------------------------------------------------------------------------------------------------------------------
# torchvision


def walk_torchvision(only: str = "") -> Iterator[Outcome]:
    """Yield the outcome of torchvision's ViTs and Swin Transformers, at their own size and depth."""
    from torchvision import models

    for name in models.list_models(module=models):
        if name.startswith(("vit", "swin")) and only in name:
            torch.manual_seed(0)
            model: Any = randomise(models.get_model(name, num_classes=7))
            side = getattr(model, "image_size", 256 if "v2" in name else 224)
            images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2))
            with torch.no_grad():
                expected = [("logits", model(images))]
            heads = model.encoder.layers[0].num_heads if name.startswith("vit") else None
            yield compare("torchvision", name, model, images, expected, {"num_heads": heads})


# --------------------------------------------------------------------------------------------------------------------
# open_clip


def walk_open_clip(only: str = "") -> Iterator[Outcome]:
    """Yield the outcome of each shape of open_clip's own visual Transformers; its towers of timm are among timm's."""
    import open_clip

    shapes = set()
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name) or {}
        vision = {"layers": 2, **config.get("vision_cfg", {})}
        quick = bool(config.get("quick_gelu"))
        if "timm_model_name" in vision or not isinstance(vision["layers"], int) or only not in name:
            continue
        vision |= {"layers": 2, "image_size": 4 * vision.get("patch_size", 16)}  # of its own width, by which heads are known
        if (shape := json.dumps([vision, quick], sort_keys=True)) not in shapes:
            shapes.add(shape)
            yield one_of_open_clip(name, vision, quick)


def one_of_open_clip(name: str, vision: Mapping[str, Any], quick: bool) -> Outcome:
    """Return the outcome of one tower of open_clip."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    torch.manual_seed(0)
    model: Any = randomise(_build_vision_tower(32, CLIPVisionCfg(**vision), quick_gelu=quick))
    side = vision["image_size"]
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        output = model(images)
    expected = [("logits", output[0] if isinstance(output, tuple) else output)]
    heads = vision.get("width", 768) // vision.get("head_width", 64)
    truth = {"num_heads": heads, "head_dim": vision.get("head_width", 64), "mlp": "quick_gelu" if quick else "gelu"}
    return compare("open_clip", name, model, images, expected, truth)


# --------------------------------------------------------------------------------------------------------------------
# transformers

SMALL = {
    "num_hidden_layers": 2,
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 192,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "num_patches": 16,
    "max_img_size": 64,
    "num_key_value_heads_per_layer": [1, 1],
    "spatial_merge_size": 1,  # patches row by row
}
OPTIONAL = ("intermediate_size", "num_patches", "max_img_size", "num_key_value_heads_per_layer", "spatial_merge_size")
"""Fields that not every config of an image Transformer has."""
PUBLISHED: dict[str, dict[str, Any]] = {"pixtral": {"hidden_act": "silu"}}
"""Fields by which the published models of a class differ from its defaults, by model type."""
NO_IMAGES = {  # image Transformers of the name, but not encoders of one image
    "TimesformerModel": "video",
    "VideoMAEModel": "video",
    "ViltModel": "text beside images",
    "UdopModel": "text beside images",
    "Swin2SRModel": "a decoder of images",
    "SegGptModel": "pairs of images",
    "ShieldGemma2ForImageClassification": "a language model",
}


def walk_transformers(only: str = "") -> Iterator[Outcome]:
    """Every model type whose config is that of an image Transformer, as an encoder and with its classifier."""
    from transformers.models.auto import configuration_auto, modeling_auto

    heads = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    encoders = modeling_auto.MODEL_MAPPING_NAMES
    for kind in vars(configuration_auto)["CONFIG_MAPPING_NAMES"]:
        for classes in (encoders.get(kind) if is_encoder(kind) else None, heads.get(kind)):
            for cls in dict.fromkeys((classes,) if isinstance(classes, str) else classes or ()):
                if only in cls and cls not in NO_IMAGES and (outcome := one_of_transformers(kind, cls)) is not None:
                    yield outcome


def is_encoder(kind: str) -> bool:
    """Whether the config of a model type is that of an image Transformer alone, without a language model beside it."""
    import transformers

    try:
        config = transformers.AutoConfig.for_model(kind)
    except Exception:  # some configs of language models can't be made without arguments
        return False
    return has_shape(config) and not hasattr(config, "text_config")


def has_shape(config: Any) -> bool:
    """Whether a config is that of an image Transformer: of one resolution, or a pyramid."""
    one = all(hasattr(config, name) for name in SMALL if name not in OPTIONAL)
    flat = all(hasattr(config, name) for name in ("num_patches", "patch_size", "num_hidden_layers"))  # patches of any image
    pyramid = hasattr(config, "depths") and hasattr(config, "num_heads") and hasattr(config, "window_size")
    return one or flat or pyramid or config.model_type == "cvt"


def one_of_transformers(kind: str, cls: str) -> Outcome | None:
    """One class of transformers; None where it is no Transformer of images in patches."""
    import transformers

    config = transformers.AutoConfig.for_model(kind)
    vision = getattr(config, "vision_config", config)
    if isinstance(vision, dict) or not has_shape(vision):
        return None
    if hasattr(vision, "depths"):
        vision.depths, vision.embed_dim, vision.num_heads, vision.image_size = [1, 1, 2, 1], 16, [1, 2, 2, 4], 224
        vision.hidden_size = 128
    for name, value in SMALL.items() if not hasattr(vision, "depths") and vision.model_type != "cvt" else ():
        if hasattr(vision, name):
            several = isinstance(getattr(vision, name), list | tuple) and isinstance(value, int)
            setattr(vision, name, [value, value] if several else value)
    for name, value in PUBLISHED.get(vision.model_type, {}).items():
        setattr(vision, name, value)
    if hasattr(vision, "mask_ratio"):
        vision.mask_ratio = 0.0
    text = getattr(config, "text_config", None)
    for name, value in {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64}.items():
        if text is not None and hasattr(text, name):
            setattr(text, name, value)
    torch.manual_seed(0)
    side = vision.image_size if isinstance(getattr(vision, "image_size", None), int) else 64
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    try:
        model: Any = randomise(getattr(transformers, cls)(config))
    except Exception:  # no class of images: it has a tokenizer or a backbone of its own
        return None
    expected: Parts | None
    try:
        tower = model
        if not cls.endswith("ForImageClassification") and vision is not config:
            tower = model.vision_model
        with torch.no_grad():
            expected = parts_of(tower(**inputs_of(vision, images)), cls)
    except Exception:  # text or video: compared with nothing, if it loads at all
        expected = None
    if expected == []:
        return None
    act = ACTIVATIONS.get(getattr(vision, "hidden_act", ""))
    return compare(
        "transformers",
        cls,
        model,
        images,
        expected,
        {"num_heads": 3, "mlp": act, "norm_eps": getattr(vision, "layer_norm_eps", None), **vitdet_windows(vision)},
    )


def vitdet_windows(config: Any) -> dict[str, Any]:
    """Return window_size and global_blocks of transformers' ViTDet and SAM 3, in our words; {} for another model."""
    blocks = range(getattr(config, "num_hidden_layers", 0))
    if config.model_type == "vitdet":
        chosen = [block for block in blocks if block not in config.window_block_indices]
    elif config.model_type == "sam3_vit_model":
        chosen = [block for block in blocks if block in config.global_attn_indexes]
    else:
        return {}
    return {"window_size": config.window_size, "global_blocks": tuple(chosen)}


def inputs_of(config: Any, images: Tensor) -> dict[str, Tensor]:
    """Return the inputs that a class of transformers takes for images."""
    if hasattr(config, "mask_ratio"):
        return {"pixel_values": images, "noise": torch.arange(16.0).expand(2, -1)}  # all are seen, in order
    if not hasattr(config, "num_patches") or hasattr(config, "image_size"):
        return {"pixel_values": images}
    side = config.patch_size  # patches are cut beforehand
    patches = images.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1)  # (B, gh, gw, P, P, C)
    shapes = torch.tensor([patches.shape[1:3]] * len(images))
    flat = patches.flatten(1, 2).flatten(2)
    if hasattr(config, "spatial_merge_size"):
        return {"pixel_values": flat.flatten(0, 1), "grid_thw": nn.functional.pad(shapes, (1, 0), value=1)}  # of one frame
    return {"pixel_values": flat, "pixel_attention_mask": torch.ones(flat.shape[:2]), "spatial_shapes": shapes}


def parts_of(theirs: Any, cls: str) -> Parts:
    """What of an output of transformers ours has to equal."""
    logits = getattr(theirs, "logits", None)
    if isinstance(logits, Tensor):
        return [("logits", logits)]
    pooled, tokens = getattr(theirs, "pooler_output", None), getattr(theirs, "last_hidden_state", None)
    if isinstance(cls_token := getattr(theirs, "cls_token_value", None), Tensor) and isinstance(tokens, Tensor):
        return [("tokens", torch.cat([cls_token, tokens.flatten(2).mT], dim=1))]  # CvT's map, and its class token
    if "CLIP" in cls or "Siglip" in cls or "MLCD" in cls:  # whose tokens stand before the last norm
        return [("pooled", pooled)] if isinstance(pooled, Tensor) else []
    if not isinstance(tokens, Tensor):
        return []
    if cls.startswith(("Sam", "VitDet")) and tokens.ndim == 4:
        tokens = tokens.flatten(2).mT  # a map
    packed = tokens.ndim == 2 or len(tokens) == 1  # as Pixtral's are
    return [("tokens", tokens.reshape(2, -1, tokens.shape[-1]) if packed else tokens)]


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    walks = {"timm": walk_timm, "transformers": walk_transformers, "torchvision": walk_torchvision, "open_clip": walk_open_clip}
    parser.add_argument("--only", default="", help="architectures whose name has this in it")
    parser.add_argument("--library", choices=tuple(walks), help="one library alone")
    parser.add_argument("--write", action="store_true", help="write results/compatibility.json")
    args = parser.parse_args()
    outcomes = []
    for library, walk in walks.items():
        for outcome in walk(args.only) if args.library in (None, library) else ():
            outcomes.append(outcome)
            detail = outcome.detail.replace("\n", " ")[:150]
            print(f"{outcome.outcome:<8} {outcome.library:<13} {outcome.name}  {outcome.family}  {detail}", flush=True)
    counts = count(outcomes)
    for library, numbers in counts.items():
        print(f"{library}: " + ", ".join(f"{number} {kind}" for kind, number in numbers.items()))
    if args.write:
        rows = [dataclasses.asdict(outcome) for outcome in outcomes]
        if args.library is not None and (RESULTS / "compatibility.json").exists():  # the others' rows stay
            before = json.loads((RESULTS / "compatibility.json").read_text())
            rows = [row for row in before["rows"] if row["library"] != args.library] + rows
            counts = before["counts"] | counts
        result = {"machine": facts("timm", "transformers", "torchvision", "open_clip_torch"), "counts": counts, "rows": rows}
        (RESULTS / "compatibility.json").write_text(json.dumps(result, indent=1) + "\n")


def count(outcomes: list[Outcome]) -> dict[str, dict[str, int]]:
    """How many ended in which way, by library."""
    libraries = dict.fromkeys(outcome.library for outcome in outcomes)
    of = {library: Counter(one.outcome for one in outcomes if one.library == library) for library in libraries}
    return {library: {kind: of[library][kind] for kind in KINDS} for library in libraries}


if __name__ == "__main__":
    main()
