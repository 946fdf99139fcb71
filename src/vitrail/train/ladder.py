"""Baselines before fine-tuning: k-NN and a linear probe on frozen features, and advice on whether to fine-tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vitrail.data.dataset import Source, Split
from vitrail.evaluate.features import LabelledEmbeddings, extract
from vitrail.evaluate.few_shot import FewShot, few_shot
from vitrail.evaluate.intervals import Accuracy
from vitrail.evaluate.knn import knn
from vitrail.evaluate.probe import Probe, linear_probe
from vitrail.evaluate.run import open_data
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast_dtype, pick_device
from vitrail.settings import DataConfig, Preprocessing
from vitrail.weights.load import is_name, load

# Thresholds of `advise`: changed by measurements in benchmarks/, not by taste.
MIN_ERROR = 0.01
"""Held-out error of the probe from which on fine-tuning can improve on it."""
SEPARABLE = 0.98
"""Training accuracy of the probe from which on the features do not limit it."""


@dataclass(frozen=True)
class BaselineScores:
    """Accuracies of k-NN and the linear probe on held-out images, none of which is a test image."""

    images: int
    """Number of training and validation images."""
    classes: int
    knn: Accuracy
    probe: Accuracy
    probe_train: Accuracy
    """Accuracy of the probe on the images that it was fitted to."""


@dataclass(frozen=True)
class FinetuneAdvice:
    """Advice on fine-tuning."""

    finetune: bool
    """True where fine-tuning can be expected to beat the probe."""
    why: str
    """Reason, in one sentence."""


@dataclass(frozen=True)
class Ladder:
    """k-NN and the linear probe, each on held-out images and on the test images."""

    knn: Accuracy
    knn_test: Accuracy | None
    """None for a data set without test images."""
    probe: Probe
    scores: BaselineScores
    advice: FinetuneAdvice

    def lines(self) -> list[str]:
        """Return a line for each baseline, and the advice."""
        knn, probe = _score_text(self.knn, self.knn_test), _score_text(self.probe.val, self.probe.test)
        return [f"k-NN: {knn}", f"linear probe: {probe}, L2 {self.probe.l2:.2g}", self.advice.why]

    def to_dict(self) -> dict[str, Any]:
        """Return accuracies and advice as plain values for JSON."""

        def both(val: Accuracy, test: Accuracy | None) -> dict[str, Any]:
            return {"val": val.to_dict(), "test": None if test is None else test.to_dict()}

        return {
            "knn": both(self.knn, self.knn_test),
            "probe": {**both(self.probe.val, self.probe.test), "train": self.probe.train.to_dict(), "l2": self.probe.l2},
            "advice": {"finetune": self.advice.finetune, "why": self.advice.why},
        }


def run_baselines(
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
    """Score k-NN and a linear probe on the features of a frozen model, and advise on fine-tuning.

    `model` is on `device`. `splits` are in evaluation view, as `evaluation_views` loads them: "train", and optionally "val" and
    "test". Hyperparameters are chosen on the validation images; without them, by cross-validation on the training images.
    k-NN and the probe scored on the test images use training and validation images. Raises ValueError for training images of
    fewer than two classes.
    """
    features = extract_features(
        model, splits, preprocessing=preprocessing, batch_size=batch_size, device=device, autocast_dtype=autocast_dtype
    )
    return fit_baselines(features, num_classes=num_classes, device=device, seed=seed)


def evaluation_views(source: Source, *, preprocessing: Preprocessing, cfg: DataConfig) -> dict[str, Split]:
    """Load every split of a source in evaluation view."""
    return {name: source.load(name, preprocessing=preprocessing, cfg=cfg) for name in source.splits}


def extract_features(
    model: nn.Module,
    splits: Mapping[str, Split],
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device | str,
    autocast_dtype: torch.dtype | None = None,
) -> dict[str, LabelledEmbeddings]:
    """Extract the features of each non-empty split. Raises ValueError for multi-label images."""
    if any(bool((split.labels < 0).any()) for split in splits.values()):
        raise ValueError("these images have any number of labels, and k-NN and the probe need one class each; go on without")
    return {
        name: extract(
            model, split, preprocessing=preprocessing, batch_size=batch_size, device=device, autocast_dtype=autocast_dtype
        )
        for name, split in splits.items()
        if len(split)
    }


def fit_baselines(
    features: Mapping[str, LabelledEmbeddings], *, num_classes: int, device: torch.device | str, seed: int = 0
) -> Ladder:
    """Fit k-NN and the linear probe to extracted features. Raises ValueError without training images."""
    if "train" not in features:
        raise ValueError("there are no training images to take features of; give some, or lower data.val_fraction")
    train, val, test = features["train"], features.get("val"), features.get("test")
    known = train if val is None else train.and_those_of(val)
    neighbours = knn(train, val, device=device)
    probe = linear_probe(train, val, test, num_classes=num_classes, seed=seed, device=device)
    scores = BaselineScores(len(known), num_classes, neighbours, probe.val, probe.train)
    return Ladder(neighbours, None if test is None else knn(known, test, device=device), probe, scores, advise(scores))


def advise(scores: BaselineScores) -> FinetuneAdvice:
    """Advise on whether fine-tuning can be expected to beat the probe, with the reason in one sentence.

    Fine-tuning starts at the probe, and from there it won in the few draws that were tried (dev/LOG.md: single ones, from which
    this rule was made) and in the papers (Kumar et al. 2022; with full training sets Kornblith et al. 2019). So the only reason
    against it is a probe whose held-out error is below `MIN_ERROR`. The reason for it is the first of these that holds: the
    probe misses images that it was fitted to (training accuracy below `SEPARABLE`); k-NN beats the probe; else the number of
    images per class. In the first two cases the frozen features are the limit.
    """
    per_class, probe, fitted = scores.images / scores.classes, scores.probe, scores.probe_train
    data_size = f"{per_class:,.0f} images a class" if per_class >= 1.5 else "1 image a class"
    if probe.count and 1 - probe.value < MIN_ERROR:
        wrong = f"{probe.count - probe.correct:,} of {probe.count:,} held-out images wrong"
        return _no(f"it leaves {wrong}, so next to nothing is left to win")
    if fitted.value < SEPARABLE:
        return _yes(f"{data_size}, and the probe misses {1 - fitted.value:.1%} even of the images that it was fitted to")
    if probe.count and scores.knn.count and scores.knn.value > probe.interval[1]:
        return _yes(f"{data_size}, and neighbours beat the probe, so the classes are there but not on two sides of a plane")
    return _yes(f"{data_size}, and it starts where the probe ends")


def _yes(because: str) -> FinetuneAdvice:
    return FinetuneAdvice(True, f"fine-tuning can be expected to beat the probe: {because}")


def _no(because: str) -> FinetuneAdvice:
    return FinetuneAdvice(False, f"fine-tuning can't be expected to beat the probe: {because}")


def _score_text(val: Accuracy, test: Accuracy | None) -> str:
    score, where = (val, "held-out") if test is None else (test, "test")
    if not score.count:
        return "no images to score"
    low, high = score.interval
    return f"{score.value:.1%} of {score.count:,} {where} images (95 % interval {low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class CheckpointProbe:
    """Baselines and few-shot accuracy of a checkpoint's frozen features on a data set."""

    model: Backbone
    data: str
    """Name of the data set."""
    classes: tuple[str, ...]
    images: dict[str, int]
    """Number of readable images of each split."""
    ladder: Ladder
    few: tuple[FewShot, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all accuracies as plain values for JSON."""
        few = [
            {
                "shots": each.shots,
                "knn": each.knn.to_dict(),
                "probe": each.probe.to_dict(),
                "short": [self.classes[k] for k in each.short],
            }
            for each in self.few
        ]
        header = {"data": self.data, "images": self.images, "classes": len(self.classes)}
        return {**header, **self.ladder.to_dict(), "few_shot": few}


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
    Raises ValueError for `shots` without test and validation images.
    """
    if is_name(weights):
        raise ValueError(f'"{weights}" is a shape with random weights; give a run or a checkpoint')
    where = pick_device(device)
    dtype = autocast_dtype(precision, where)
    model = load(str(weights), revision=revision).to(where)
    assert model.preprocessing is not None
    cfg, source = open_data(weights, data)
    images, number = model.preprocessing, len(source.classes)
    splits = evaluation_views(source, preprocessing=images, cfg=cfg.data)
    features = extract_features(model, splits, preprocessing=images, batch_size=batch_size, device=where, autocast_dtype=dtype)
    baselines = fit_baselines(features, num_classes=number, device=where, seed=seed)
    held_out = features.get("test") or features.get("val")
    few: tuple[FewShot, ...] = ()
    if shots:
        if held_out is None:
            raise ValueError(
                f"--shots needs images to score on, and {source.name} has neither test nor val; add a folder of them"
            )
        few = few_shot(features["train"], held_out, shots=shots, draws=draws, num_classes=number, seed=seed, device=where)
    counts = {name: len(each) for name, each in features.items()}
    return CheckpointProbe(model, source.name, source.classes, counts, baselines, few)


def apply_probe(model: Backbone, probe: Probe) -> None:
    """Set the model's head to the probe, in place, as a full classifier or as the start of fine-tuning.

    Fine-tuning from the probe instead of from a random head distorts the features less (LP-FT: Kumar et al. 2022).
    With a distillation token, whose logits are averaged with the class token's, each head gets its half of the probe.
    A head of as many classes stays the same module, so that an optimizer keeps its parameters.
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
    """Return True where the model's head is linear, so that a probe can replace it."""
    return all(isinstance(head, nn.Linear) for head in model.head_modules())
