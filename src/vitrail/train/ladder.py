"""The ladder before fine-tuning: k-NN, then a linear probe on frozen features, then what can be expected of the next rung."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vitrail.data.dataset import Source, Split
from vitrail.evaluate.features import Features, extract
from vitrail.evaluate.few_shot import FewShot, few_shot
from vitrail.evaluate.knn import knn
from vitrail.evaluate.metrics import Accuracy
from vitrail.evaluate.probe import Probe, linear_probe
from vitrail.evaluate.run import open_data
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast_dtype, pick_device
from vitrail.settings import DataConfig, Preprocessing
from vitrail.weights.load import is_name, load

# What `advise` goes by; to be moved by what benchmarks measure, not by taste.
LEFT = 0.01
"""Share of wrong images from which on there is something to win."""
TOLD_APART = 0.98
"""Share of its own images that a probe gets right where the features are not what limits it."""


@dataclass(frozen=True)
class Facts:
    """What the first two rungs say. Accuracies are of held-out images, none of which is a test image."""

    images: int
    """That can be learned from."""
    classes: int
    knn: Accuracy
    probe: Accuracy
    probe_train: Accuracy
    """Of the probe on the images that it was fitted to."""


@dataclass(frozen=True)
class Advice:
    """Whether to go on."""

    finetune: bool
    """Fine-tuning can be expected to beat the probe."""
    why: str
    """One sentence."""


@dataclass(frozen=True)
class Ladder:
    """The first two rungs, each on held-out images and on the test images."""

    knn: Accuracy
    knn_test: Accuracy | None
    """None where the set has no test images."""
    probe: Probe
    facts: Facts
    advice: Advice

    def lines(self) -> list[str]:
        """A line for each rung, and the advice."""
        knn, probe = _said(self.knn, self.knn_test), _said(self.probe.val, self.probe.test)
        return [f"k-NN: {knn}", f"linear probe: {probe}, L2 {self.probe.l2:.2g}", self.advice.why]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""

        def both(val: Accuracy, test: Accuracy | None) -> dict[str, Any]:
            return {"val": val.to_dict(), "test": None if test is None else test.to_dict()}

        return {
            "knn": both(self.knn, self.knn_test),
            "probe": {**both(self.probe.val, self.probe.test), "train": self.probe.train.to_dict(), "l2": self.probe.l2},
            "advice": {"finetune": self.advice.finetune, "why": self.advice.why},
        }


def climb(
    model: nn.Module,
    splits: Mapping[str, Split],
    *,
    preprocessing: Preprocessing,
    num_classes: int,
    batch_size: int = 256,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Ladder:
    """k-NN and the probe on the features of a frozen model, which is on `device`, and what they say of fine-tuning.

    `splits` are loaded as evaluation views, as `views` does: "train", and "val" and "test" where there are any. Choices are
    made by the validation images; without them, by training images that are held out in turn. What is scored on the test
    images knows training and validation images. Raises ValueError for training images of fewer than two classes.
    """
    seen = features(
        model, splits, preprocessing=preprocessing, batch_size=batch_size, device=device, autocast_dtype=autocast_dtype
    )
    return ladder(seen, num_classes=num_classes, device=device, seed=seed)


def views(source: Source, *, preprocessing: Preprocessing, cfg: DataConfig) -> dict[str, Split]:
    """Every split of a source as evaluation view."""
    return {name: source.load(name, preprocessing=preprocessing, cfg=cfg) for name in source.splits}


def features(
    model: nn.Module,
    splits: Mapping[str, Split],
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
) -> dict[str, Features]:
    """The features of each split that has images. Raises ValueError where an image may have several labels."""
    if any(bool((split.labels < 0).any()) for split in splits.values()):
        raise ValueError("these images have any number of labels, and k-NN and the probe need one class each; go on without")
    return {
        name: extract(
            model, split, preprocessing=preprocessing, batch_size=batch_size, device=device, autocast_dtype=autocast_dtype
        )
        for name, split in splits.items()
        if len(split)
    }


def ladder(seen: Mapping[str, Features], *, num_classes: int, device: torch.device | str, seed: int = 0) -> Ladder:
    """The rungs on features that are at hand."""
    if "train" not in seen:
        raise ValueError("there are no training images to take features of; give some, or lower data.val_fraction")
    train, val, test = seen["train"], seen.get("val"), seen.get("test")
    known = train if val is None else train.and_those_of(val)
    neighbours = knn(train, val, device=device)
    probe = linear_probe(train, val, test, num_classes=num_classes, seed=seed, device=device)
    facts = Facts(len(known), num_classes, neighbours, probe.val, probe.train)
    return Ladder(neighbours, None if test is None else knn(known, test, device=device), probe, facts, advise(facts))


def advise(facts: Facts) -> Advice:
    """Whether fine-tuning can be expected to beat the probe, and why, in one sentence.

    It starts at the probe, with features that are as good, and from there it won in the few draws that we have tried
    (dev/LOG.md: single ones, and this rule was made by them) and in the papers (Kumar et al. 2022; with whole training sets
    Kornblith et al. 2019). So the one reason against it is that nothing is left to win: the probe gets all but `LEFT` of the
    held-out images right. The reason for it is, of these, the first that holds: the probe misses images that it was fitted to
    (`TOLD_APART`), or neighbours beat it; the frozen features are the limit then. Else there is what images there are.
    """
    per_class, probe, own = facts.images / facts.classes, facts.probe, facts.probe_train
    each = f"{per_class:,.0f} images a class" if per_class >= 1.5 else "1 image a class"
    if probe.count and 1 - probe.value < LEFT:
        wrong = f"{probe.count - probe.correct:,} of {probe.count:,} held-out images wrong"
        return _no(f"it leaves {wrong}, so next to nothing is left to win")
    if own.value < TOLD_APART:
        return _yes(f"{each}, and the probe misses {1 - own.value:.1%} even of the images that it was fitted to")
    if probe.count and facts.knn.count and facts.knn.value > probe.interval[1]:
        return _yes(f"{each}, and neighbours beat the probe, so the classes are there but not on two sides of a plane")
    return _yes(f"{each}, and it starts where the probe ends")


def _yes(because: str) -> Advice:
    return Advice(True, f"fine-tuning can be expected to beat the probe: {because}")


def _no(because: str) -> Advice:
    return Advice(False, f"fine-tuning can't be expected to beat the probe: {because}")


def _said(val: Accuracy, test: Accuracy | None) -> str:
    score, where = (val, "held-out") if test is None else (test, "test")
    if not score.count:
        return "no images to score"
    low, high = score.interval
    return f"{score.value:.1%} of {score.count:,} {where} images (95 % interval {low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class CheckpointProbe:
    """The ladder and few-shot accuracy of a checkpoint's frozen features on a data set."""

    model: Backbone
    data: str
    """Name of the data set."""
    classes: tuple[str, ...]
    images: dict[str, int]
    """Images of each split, without those that can't be read."""
    ladder: Ladder
    few: tuple[FewShot, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        few = [
            {
                "shots": each.shots,
                "knn": each.knn.to_dict(),
                "probe": each.probe.to_dict(),
                "short": [self.classes[k] for k in each.short],
            }
            for each in self.few
        ]
        found = {"data": self.data, "images": self.images, "classes": len(self.classes)}
        return {**found, **self.ladder.to_dict(), "few_shot": few}


def probe_checkpoint(
    weights: str | Path,
    data: str | None = None,
    *,
    shots: Sequence[int] = (),
    draws: int = 5,
    seed: int = 0,
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32",
    revision: str | None = None,
    batch_size: int = 256,
    device: str = "auto",
) -> CheckpointProbe:
    """Compute k-NN and linear-probe accuracy of a checkpoint's frozen features, and their few-shot accuracy for `shots`.

    `weights` is a run folder, whose data set is the default, or anything that `vitrail.load` takes but a name with random
    weights. Few-shot accuracy is the mean over `draws`, on the test images or, without any, on the validation images.
    Raises ValueError where there are none of either.
    """
    if is_name(weights):
        raise ValueError(f'"{weights}" is a shape with random weights; give a run or a checkpoint')
    where = pick_device(device)
    dtype = autocast_dtype(precision, where)
    model = load(str(weights), revision=revision).to(where)
    assert model.preprocessing is not None
    cfg, source = open_data(weights, data)
    images, number = model.preprocessing, len(source.classes)
    splits = views(source, preprocessing=images, cfg=cfg.data)
    seen = features(model, splits, preprocessing=images, batch_size=batch_size, device=where, autocast_dtype=dtype)
    rungs = ladder(seen, num_classes=number, device=where, seed=seed)
    held_out = seen.get("test") or seen.get("val")
    few: tuple[FewShot, ...] = ()
    if shots:
        if held_out is None:
            raise ValueError(
                f"--shots needs images to score on, and {source.name} has neither test nor val; add a folder of them"
            )
        few = few_shot(seen["train"], held_out, shots=shots, draws=draws, num_classes=number, seed=seed, device=where)
    counts = {name: len(each) for name, each in seen.items()}
    return CheckpointProbe(model, source.name, source.classes, counts, rungs, few)


def apply_probe(model: Backbone, probe: Probe) -> None:
    """Makes the probe the model's head, in place: a whole model that says what the probe says, or fine-tuning's start.

    Starting there instead of from a random head keeps the features from being distorted first (LP-FT: Kumar et al. 2022).
    With a distillation token, whose logits are averaged with the class token's, each head gets its half of the probe.
    A head of as many classes stays the same module, so that an optimizer that knows it goes on knowing it.
    Raises ValueError for a model whose head is not one linear layer.
    """
    if model.config.num_classes != len(probe.bias):
        model.reset_head(len(probe.bias))
    heads = list(model.head_modules())
    weights = probe.weight.chunk(len(heads), dim=1)
    if not has_linear_head(model) or any(head.weight.shape != part.shape for head, part in zip(heads, weights, strict=True)):
        raise ValueError(f"{type(model).__name__} has no linear head of {tuple(weights[0].shape)}, so a probe can't become it")
    with torch.no_grad():
        for head, part in zip(heads, weights, strict=True):
            head.weight.copy_(len(heads) * part)  # type: ignore[operator]
            head.bias.copy_(probe.bias)  # type: ignore[operator]


def has_linear_head(model: Backbone) -> bool:
    """Whether a probe can become the model's head."""
    return all(isinstance(head, nn.Linear) for head in model.head_modules())
