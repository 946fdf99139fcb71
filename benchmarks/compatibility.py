"""Which plain ViTs of timm and transformers load from their bare state dict, and whether they compute the same.

    python benchmarks/compatibility.py [--only NAME] [--write]

Walks every architecture that the two libraries list, shrunk to depth 2 and to few patches, with random weights: no
download. Each is loaded from its state dict alone, without a config. Where `vitrail.load` asks what no tensor tells, it is
called again with the answer that the other library's own model gives. Each ends as one of

    same       outputs equal to 1e-5 of their greatest value (of 1, where that is smaller)
    asked      the same, after a question was answered
    refused    an error that says why
    differs    loaded, and computes something else: there must be none
    not run    a class of transformers that does not take plain images of that size, or text beside them

--write puts the result into benchmarks/results/compatibility.json, from which `make tables` makes the table of docs/weights.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vitrail
from machine import RESULTS, facts
from vitrail.weights.infer import REASONS
from vitrail.weights.library import ACTIVATIONS

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture."""

    library: str
    name: str
    outcome: str
    detail: str = ""
    """The answers that were given, the words of a refusal, or the greatest difference."""
    reason: str = ""
    """Of a refusal, without the names of tensors."""


def randomise(model: nn.Module) -> nn.Module:
    """Every parameter random, those that start as zero or one as well: else a lost bias or norm would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-2, 2)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model.eval()


def compare(
    library: str, name: str, model: nn.Module, images: Tensor, expected: list[tuple[str, Tensor]], truth: dict[str, Any]
) -> Outcome:
    """Loads the model's bare state dict, and compares what ours gives: `expected` are pairs of (part of our outputs, value)."""
    state = model.state_dict()
    answers: dict[str, Any] = {}
    for _ in range(2):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                ours = vitrail.load(state, **answers)
            break
        except ValueError as error:
            asked = re.findall(r"(?:do not tell|nor) (\w+) \(", str(error))
            if not asked or answers or any(truth.get(field) is None for field in asked):
                return Outcome(library, name, "refused", str(error), reason_of(str(error)))
            answers = {field: truth[field] for field in asked}
    assert isinstance(ours, vitrail.ViT)
    with torch.no_grad():
        outputs = {"logits": ours(images), **{part: getattr(ours.outputs(images), part) for part in ("embedding", "tokens")}}
    worst = 0.0
    for part, value in expected:
        got = outputs[part]
        if got.shape != value.shape:
            return Outcome(library, name, "differs", f"{part} is {tuple(got.shape)}, not {tuple(value.shape)}")
        assert value.std() > 1e-3, "the reference says nothing"
        worst = max(worst, (got - value).abs().max().item() / max(1.0, value.abs().max().item()))
    if worst > TOLERANCE:
        return Outcome(library, name, "differs", f"{worst:.1e}")
    said = ", ".join(f"{field}={value!r}" for field, value in answers.items())
    return Outcome(library, name, "asked" if answers else "same", said)


def reason_of(refusal: str) -> str:
    """A refusal without the names of tensors."""
    others = {
        "without a bias": "its norms have no bias, as in RMSNorm",
        "stand behind the branches": "its norms stand behind the branches",
        "no plain ViT is in these": "its tensors have no plain ViT's names",
        "make no square": "its positions are no grid",
    }
    return next(
        (why for sign, why in [*((why, why) for _, why in REASONS), *others.items()] if sign in refusal), "other tensors"
    )


# --------------------------------------------------------------------------------------------------------------------
# timm


def walk_timm(only: str = "") -> Iterator[Outcome]:
    """Every architecture of timm's vision_transformer and deit modules."""
    import timm

    for module in ("vision_transformer", "deit"):
        for name in timm.list_models(module=module):
            if only in name:
                yield one_of_timm(name)


def one_of_timm(name: str) -> Outcome:
    """One architecture of timm."""
    import timm

    patch = int(found[1]) if (found := re.search(r"patch(\d+)", name)) else 16
    side = 4 * patch
    torch.manual_seed(0)
    model: Any = randomise(timm.create_model(name, depth=2, img_size=side, num_classes=7))
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = [("logits", model(images))]
        if not hasattr(model, "head_dist"):
            expected.append(("tokens", model.forward_features(images)))
    block = model.blocks[0]
    act = getattr(getattr(block, "mlp", None), "act", None)
    kinds = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "GeluTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
    truth = {
        "num_heads": getattr(getattr(block, "attn", None), "num_heads", None),
        "mlp": kinds.get(type(act).__name__),
        "pool_include_prefix": model.pool_include_prefix,
    }
    return compare("timm", name, model, images, expected, truth)


# --------------------------------------------------------------------------------------------------------------------
# transformers

SMALL = {
    "num_hidden_layers": 2,
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 192,
    "num_attention_heads": 3,
    "intermediate_size": 384,
}


def walk_transformers(only: str = "") -> Iterator[Outcome]:
    """Every model type whose config is that of an image Transformer, as an encoder and with its classifier."""
    from transformers.models.auto import configuration_auto, modeling_auto

    heads = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    encoders = modeling_auto.MODEL_MAPPING_NAMES
    for kind in vars(configuration_auto)["CONFIG_MAPPING_NAMES"]:
        for classes in (encoders.get(kind) if is_encoder(kind) else None, heads.get(kind)):
            for cls in dict.fromkeys((classes,) if isinstance(classes, str) else classes or ()):
                if only in cls and (outcome := one_of_transformers(kind, cls)) is not None:
                    yield outcome


def is_encoder(kind: str) -> bool:
    """Whether the config of a model type is that of an image Transformer alone, without a language model beside it."""
    import transformers

    try:
        config = transformers.AutoConfig.for_model(kind)
    except Exception:  # some configs of language models can't be made without arguments
        return False
    return all(hasattr(config, name) for name in SMALL if name != "intermediate_size") and not hasattr(config, "text_config")


def one_of_transformers(kind: str, cls: str) -> Outcome | None:
    """One class of transformers; None where it is no Transformer of images in patches."""
    import transformers

    config = transformers.AutoConfig.for_model(kind)
    vision = getattr(config, "vision_config", config)
    if isinstance(vision, dict) or not all(hasattr(vision, name) for name in SMALL if name != "intermediate_size"):
        return None
    for name, value in SMALL.items():
        if hasattr(vision, name):
            several = isinstance(getattr(vision, name), list | tuple)
            setattr(vision, name, [value, value] if several else value)
    if hasattr(vision, "mask_ratio"):
        vision.mask_ratio = 0.0
    text = getattr(config, "text_config", None)
    for name, value in {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64}.items():
        if text is not None and hasattr(text, name):
            setattr(text, name, value)
    torch.manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    try:
        model: Any = randomise(getattr(transformers, cls)(config))
        tower = model
        if not cls.endswith("ForImageClassification") and vision is not config:
            tower = model.vision_model
        masking = {"noise": torch.arange(16.0).expand(2, -1)} if hasattr(vision, "mask_ratio") else {}  # all seen, in order
        with torch.no_grad():
            theirs = tower(pixel_values=images, **masking)
    except Exception as error:  # a class that wants text, video or other sizes is no image encoder
        return None if "state_dict" in str(error) else Outcome("transformers", cls, "not run", type(error).__name__)
    expected = parts_of(theirs, cls)
    if not expected:
        return None
    act = ACTIVATIONS.get(getattr(vision, "hidden_act", ""))
    return compare(
        "transformers",
        cls,
        model,
        images,
        expected,
        {"num_heads": 3, "mlp": act, "norm_eps": getattr(vision, "layer_norm_eps", None)},
    )


def parts_of(theirs: Any, cls: str) -> list[tuple[str, Tensor]]:
    """What of an output of transformers ours has to equal."""
    logits = getattr(theirs, "logits", None)
    if isinstance(logits, Tensor):
        return [("logits", logits)]
    pooled, tokens = getattr(theirs, "pooler_output", None), getattr(theirs, "last_hidden_state", None)
    if "CLIP" in cls or "Siglip" in cls:
        return [("embedding", pooled)] if isinstance(pooled, Tensor) else []
    return [("tokens", tokens)] if isinstance(tokens, Tensor) else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="architectures whose name has this in it")
    parser.add_argument("--write", action="store_true", help="write results/compatibility.json")
    args = parser.parse_args()
    outcomes = []
    for walk in (walk_timm, walk_transformers):
        for outcome in walk(args.only):
            outcomes.append(outcome)
            print(f"{outcome.outcome:<8} {outcome.library:<13} {outcome.name}  {outcome.detail[:150]}", flush=True)
    counts = count(outcomes)
    for library, numbers in counts.items():
        print(f"{library}: " + ", ".join(f"{number} {kind}" for kind, number in numbers.items()))
    if args.write:
        rows = [dataclasses.asdict(outcome) for outcome in outcomes]
        result = {"machine": facts("timm", "transformers"), "counts": counts, "rows": rows}
        (RESULTS / "compatibility.json").write_text(json.dumps(result, indent=1) + "\n")


def count(outcomes: list[Outcome]) -> dict[str, dict[str, int]]:
    """How many ended in which way, by library."""
    kinds = ("same", "asked", "refused", "differs", "not run")
    libraries = dict.fromkeys(outcome.library for outcome in outcomes)
    of = {library: Counter(one.outcome for one in outcomes if one.library == library) for library in libraries}
    return {library: {kind: of[library][kind] for kind in kinds} for library in libraries}


if __name__ == "__main__":
    main()
