"""What is learned: the labels, or the labels and a teacher."""

# N images · B batch · K classes

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.config import DistillConfig, OptimConfig, Preprocessing, Settings
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.batches import class_weights
from vitrail.data.dataset import Split
from vitrail.evaluate.evaluate import ALONE, Among, over_batches
from vitrail.models import ViT
from vitrail.models.device import autocast
from vitrail.train.teacher import load_teacher

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""Returns a dict that has "loss", a mean over the batch; what else it holds is logged."""
Loss = Literal["ce", "bce"]
Kind = Literal["hard", "soft"]


def build_objective(
    settings: Settings,
    *,
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    dtype: torch.dtype | None,
    multi_label: bool = False,
) -> Objective:
    """The objective that the settings ask for. `preprocessing` and `classes` are the model's own: a teacher has to fit them.

    Raises ValueError for a teacher that does not, and for settings that images of several classes can't have.
    """
    optim, told, weights = settings.optim, settings.distill, None
    if settings.data.balance == "loss":
        if multi_label:
            raise ValueError('data.balance "loss" weighs an image by its one class, and these have several; use "none"')
        smoothing = target_smoothing(optim, multi_label=multi_label)
        weights = balanced_weights(split.labels, num_classes=len(classes), label_smoothing=smoothing).to(device)
    loss: Loss = "bce" if multi_label else optim.loss
    if told.teacher is None or told.alpha == 0:
        return functools.partial(classify, loss=loss, weights=weights, multi_label=multi_label)
    if multi_label:
        raise ValueError("distill.teacher chooses one class an image, and these have several; leave it out")
    if told.alpha == 1 and settings.model.dist_token:
        raise ValueError(
            "distill.alpha 1.0 leaves the class head unlearned, and it counts in the prediction; "
            "use an alpha below 1, or model.dist_token false"
        )
    ask = None
    if not told.once:
        teacher = load_teacher(
            told.teacher, num_classes=len(classes), classes=classes, preprocessing=preprocessing, device=device
        )
        ask = functools.partial(ask_teacher, teacher, device=device, dtype=dtype)
    return functools.partial(distill, ask=ask, kind=told.kind, alpha=told.alpha, tau=told.tau, loss=loss, weights=weights)


# --------------------------------------------------------------------------------------------------------------------
# The labels


def classify(
    model: nn.Module,
    batch: Batch,
    *,
    loss: Loss = "ce",
    weights: Float[Tensor, " K"] | None = None,
    multi_label: bool = False,
) -> dict[str, Tensor]:
    """The loss against soft targets, and the share of images whose heaviest class comes out on top.

    With `multi_label`, "binary_accuracy" instead: the share of (image, class) pairs that are told right.
    """
    logits = call(model, batch).float()  # (B, K)
    losses = {"loss": label_loss(logits, batch.targets, loss=loss, weights=weights)}
    if multi_label:
        right = (logits.detach() > 0) == (batch.targets > 0.5)
        return losses | {"binary_accuracy": right.float().mean()}
    return losses | {"accuracy": accuracy(logits, batch)}


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


# --------------------------------------------------------------------------------------------------------------------
# A teacher


def distill(
    model: nn.Module,
    batch: Batch,
    *,
    ask: Callable[[Tensor], Tensor] | None,
    kind: Kind,
    alpha: float,
    tau: float,
    loss: Loss = "ce",
    weights: Float[Tensor, " K"] | None = None,
) -> dict[str, Tensor]:
    """(1 - alpha) of the labels' loss and alpha of the teacher's (Touvron et al. 2021, equations 2 and 3).

    `ask` gives the teacher's logits for the images, which it sees as the student does: augmented and mixed. Without, the batch
    brings what it said before. With a distillation token, its head learns from the teacher and the class head from the labels;
    else one head learns both.
    The accuracy is the head's that learns the labels.
    """
    logits, dist_logits = heads(model, batch)
    taught = logits if dist_logits is None else dist_logits
    label = label_loss(logits, batch.targets, loss=loss, weights=weights)
    targets = batch.taught if ask is None else teacher_targets(ask(batch.images), kind=kind, tau=tau)
    assert targets is not None
    teacher = teacher_loss(taught, targets, kind=kind, tau=tau)
    return {
        "loss": (1 - alpha) * label + alpha * teacher,
        "accuracy": accuracy(logits, batch),
        "label_loss": label,
        "teacher_loss": teacher,
    }


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


def ask_teacher(
    teacher: nn.Module, images: Float[Tensor, "B C H W"], *, device: torch.device, dtype: torch.dtype | None
) -> Float[Tensor, "B K"]:
    """The teacher's logits, in the number type of the run, without gradients."""
    with torch.no_grad(), autocast(device, dtype):  # no inference mode: what comes out goes into a backward pass
        return teacher(images).float()


def answers(
    told: DistillConfig,
    split: Split,
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    dtype: torch.dtype | None,
    among: Among = ALONE,
) -> Float[Tensor, "N K"]:
    """What the teacher says of every image of a split in evaluation view, on the CPU in float16: targets beside the labels.

    An image that can't be read has zeros, and teaches nothing. Raises ValueError for a teacher that does not fit.
    """
    assert told.teacher is not None
    teacher = load_teacher(told.teacher, num_classes=len(classes), classes=classes, preprocessing=preprocessing, device=device)

    def take(logits: Tensor, raw: RawBatch) -> tuple[Tensor, Tensor]:
        return raw.indexes.cpu(), teacher_targets(logits.float(), kind=told.kind, tau=told.tau).half().cpu()

    own = over_batches(take, teacher, split, preprocessing, device=device, autocast_dtype=dtype, among=among)
    said = torch.zeros(len(split), len(classes), dtype=torch.float16)
    for indexes, targets in (pair for part in among.gather(own) for pair in part):
        said[indexes] = targets
    return said


# --------------------------------------------------------------------------------------------------------------------
# Parts of both


def heads(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"] | None]:
    """The logits of the class head and, where there is one, of the distillation head."""
    if not isinstance(model, ViT) or model.head_dist is None:
        return call(model, batch).float(), None
    outputs = call(model.outputs, batch)
    return outputs.logits.float(), outputs.dist_logits.float()


def call(forward: Callable[..., Any], batch: Batch) -> Any:
    """A pass over the batch's images, cut into the batch's patches where it names them."""
    return forward(batch.images) if batch.patch_size is None else forward(batch.images, patch_size=batch.patch_size)


def accuracy(logits: Float[Tensor, "B K"], batch: Batch) -> Float[Tensor, ""]:
    """The share of images whose heaviest class comes out on top."""
    return (logits.detach().argmax(dim=1) == batch.targets.argmax(dim=1)).float().mean()
