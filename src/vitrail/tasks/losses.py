"""Losses of labels and of a teacher, and the targets that they are held to."""

# N images · B batch · K classes

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.batch import Batch
from vitrail.data.batches import class_weights
from vitrail.settings import OptimConfig

Loss = Literal["ce", "bce"]
Kind = Literal["hard", "soft"]


def label_loss(
    logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], *, loss: Loss, weights: Float[Tensor, " K"] | None = None
) -> Float[Tensor, ""]:
    """The mean over the images; with `weights`, each image counts as its target's classes do: w_i = Σ_k t_ik w_k.

    "ce" is cross-entropy, -Σ_k t_k log softmax(z)_k. "bce" holds each class to its target alone, and is the mean over the
    classes, -1/K Σ_k [t_k log σ(z_k) + (1 - t_k) log(1 - σ(z_k))]: Wightman et al. 2021, section 2, on the scale of timm's,
    whose learning rates then hold. Mixed targets go in as they are: a class that has 0.3 of the image is to get 0.3.
    """
    entropy = F.cross_entropy if loss == "ce" else F.binary_cross_entropy_with_logits
    if weights is None:
        return entropy(logits, targets)
    each = entropy(logits, targets, reduction="none")  # (B,), or (B, K)
    image = (targets * weights).sum(dim=1)  # (B,); as a matrix product, autocast would round it
    return ((each if loss == "ce" else each.mean(dim=1)) * image).mean()


def target_smoothing(cfg: OptimConfig, *, multi_label: bool = False) -> float:
    """The label smoothing of the targets: none under BCE, which asks of each class whether it is there."""
    return 0.0 if multi_label or cfg.loss == "bce" else cfg.label_smoothing


def balanced_weights(labels: Int64[Tensor, " N"], *, num_classes: int, label_smoothing: float = 0.0) -> Float[Tensor, " K"]:
    """Weights of the classes for `label_loss`: inverse to their images, and so that an image weighs 1 on average.

    The average is over the targets as they are trained on, (1 - ε) of the label and ε / K of every class; mixing does not
    change it. A class without images weighs nothing.
    """
    weights = class_weights(labels, num_classes)
    share = labels.bincount(minlength=num_classes) / len(labels)
    target = (1 - label_smoothing) * share + label_smoothing / num_classes
    return weights / (weights @ target)


def teacher_targets(logits: Float[Tensor, "B K"], *, kind: Kind, tau: float) -> Float[Tensor, "B K"]:
    """Hard: one for the teacher's decision. Soft: its probabilities at temperature τ."""
    if kind == "hard":
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)
    return F.softmax(logits / tau, dim=1)


def teacher_loss(logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], *, kind: Kind, tau: float) -> Float[Tensor, ""]:
    """Hard: cross-entropy with the teacher's decision. Soft: τ² KL(teacher ‖ student) of both at temperature τ.

    The divergence is summed over the classes, as Hinton et al. 2015 have it; DeiT's code takes their mean, which makes the
    teacher's part K times smaller than its equation 2.
    """
    if kind == "hard":
        return F.cross_entropy(logits, targets)
    return tau**2 * F.kl_div(F.log_softmax(logits / tau, dim=1), targets, reduction="batchmean")


def call(forward: Callable[..., Any], batch: Batch) -> Any:
    """A pass over the batch's images, cut into the batch's patches where it names them."""
    return forward(batch.images) if batch.patch_size is None else forward(batch.images, patch_size=batch.patch_size)


def accuracy(logits: Float[Tensor, "B K"], batch: Batch) -> Float[Tensor, ""]:
    """The share of images whose heaviest class comes out on top."""
    return (logits.detach().argmax(dim=1) == batch.targets.argmax(dim=1)).float().mean()
