"""Linear probe: multinomial logistic regression on frozen features, with an L2 penalty chosen on held-out images.

The objective is mean cross-entropy + l2 / 2 · |W|² on standardised features, with a bias that is not penalised: scikit-learn's
LogisticRegression with C = 1 / (l2 · N). It is solved by full-batch L-BFGS in the features' principal axes. Turning leaves the
objective as it is, and there each axis can be scaled by its own curvature, so that some ten steps are enough where the features
themselves take hundreds; and N images span no more than N axes.
"""

# N images · E embedding · K classes · R axes · S = R + 1: a weight for each axis, then the bias

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from vitrail.data.draws import permutation
from vitrail.evaluate.features import LabelledEmbeddings
from vitrail.evaluate.intervals import Accuracy

GRID = tuple(10 ** (power / 2) for power in range(2, -13, -1))
"""Penalties from 10 to 1e-6, from strong to weak: each fit starts from the one before it."""
ALONE = 0.1
"""Penalty if every class has one image, so that none can be held out."""
FOLDS = 5
FOLDED = 5000
"""Number of images below which each of the folds is held out once; above, only one of them."""
_PRIOR = 10  # images' worth of belief that all features deviate alike: two images would make a feature's deviation nearly zero
_CELLS = 2**25  # numbers at once: 128 MiB
_STEPS = 200
_ROUGH, _FINE = 1e-4, 1e-6  # greatest slope left, where the curvature is about one


class Tried(NamedTuple):
    """Result of one penalty on held-out images."""

    l2: float
    accuracy: Accuracy
    nll: float
    """Mean negative log-likelihood, in nats."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted linear head for raw embeddings: the standardisation is folded into it."""

    weight: Float32[Tensor, "K E"]
    bias: Float32[Tensor, " K"]
    l2: float
    """Chosen penalty."""
    tried: tuple[Tried, ...]
    """Results of all penalties, from strong to weak; empty if there was no image to choose by."""
    train: Accuracy
    """Accuracy on the images of the fit."""
    val: Accuracy
    """Accuracy on held-out images at the chosen penalty, by fits without them; the penalty is chosen by the same images."""
    test: Accuracy | None

    def logits(self, embeddings: Float[Tensor, "N E"]) -> Float[Tensor, "N K"]:
        """Compute the logits (N, K) of raw embeddings."""
        return F.linear(embeddings, self.weight, self.bias)


def linear_probe(
    train: LabelledEmbeddings,
    val: LabelledEmbeddings | None = None,
    test: LabelledEmbeddings | None = None,
    *,
    num_classes: int,
    grid: Sequence[float] = GRID,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Probe:
    """Fit a linear probe: choose L2 by accuracy on `val`, ties by likelihood, fit to train and val, and score on `test`.

    Without `val`, a fifth of each class is held out of the training images, in turn if they are few. A class without images
    gets zero weights and a bias below all others. Raises ValueError for training images of fewer than two classes.
    """
    device = torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)  # which has no float64
    pairs = [(train, val)] if val is not None and len(val) else list(held_out(train, seed=seed))
    outcomes = [_score_penalties(fitted_to, judged_by, grid, device) for fitted_to, judged_by in pairs]
    count = sum(len(judged_by) for _, judged_by in pairs)
    tried = tuple(
        Tried(l2, Accuracy(sum(right for right, _ in of_l2), count), sum(nll for _, nll in of_l2) / count)
        for l2, *of_l2 in (zip(grid, *outcomes, strict=True) if outcomes else ())
    )
    best = max(tried, key=lambda one: (one.accuracy.correct, -one.nll), default=Tried(ALONE, Accuracy(0, 0), 0.0))
    images = train if val is None else train.and_those_of(val)
    weight, bias = _fit_once(images, best.l2, device, num_classes)
    return Probe(
        weight=weight,
        bias=bias,
        l2=best.l2,
        tried=tried,
        train=_accuracy(images, weight, bias),
        val=best.accuracy,
        test=None if test is None else _accuracy(test, weight, bias),
    )


def held_out(features: LabelledEmbeddings, *, seed: int) -> Iterator[tuple[LabelledEmbeddings, LabelledEmbeddings]]:
    """Yield pairs of images to fit and to validate: a fifth of each class is held out, chosen by a hash.

    Every class keeps at least one image to fit, so the only image of a class is never held out.
    """
    fold = folds(features.labels, seed=seed)
    for number in range(FOLDS if len(features) < FOLDED else 1):
        if bool((fold == number).any()):
            yield features.at(fold != number), features.at(fold == number)


def folds(labels: Int64[Tensor, " N"], *, seed: int) -> Int64[Tensor, " N"]:
    """Assign each image to a fold, evenly within each class; -1 for the only image of a class."""
    order = permutation(len(labels), seed=seed, epoch=0)
    dealt = torch.empty_like(labels)
    for label in labels.unique():
        members = order[labels[order] == label]
        dealt[members] = torch.arange(len(members)) % FOLDS if len(members) > 1 else -1
    return dealt


# --------------------------------------------------------------------------------------------------------------------
# The fit


class _Axes(NamedTuple):
    """Map from raw embeddings to coordinates along the principal axes of the standardised ones."""

    mean: Float32[Tensor, " E"]
    turn: Float32[Tensor, "E R"]
    spread: Float32[Tensor, " R"]
    """Variance along each axis."""

    def __call__(self, embeddings: Float[Tensor, "N E"]) -> Float[Tensor, "N R"]:
        """Compute the coordinates."""
        return (embeddings - self.mean) @ self.turn


def _axes(embeddings: Float32[Tensor, "N E"]) -> _Axes:
    count, width = embeddings.shape
    rows = max(1, _CELLS // width)
    mean = torch.stack([part.double().sum(0) for part in embeddings.split(rows)]).sum(0) / count  # (E,)
    centre = mean.float()
    scatter = torch.zeros(width, dtype=torch.float64, device=embeddings.device)
    for part in embeddings.split(rows):
        scatter += (part - centre).double().square().sum(0)
    variance = (scatter + _PRIOR * scatter.mean() / count) / (count + _PRIOR)
    scale = torch.where(variance > 0, variance, 1.0).rsqrt()  # (E,)
    if count < width:
        points = (embeddings - centre).double() * scale
        _, lengths, turned = torch.linalg.svd(points, full_matrices=False)  # (N,), (N, E)
        spread, axes = lengths.square() / count, turned.T
    else:
        gram = torch.zeros(width, width, dtype=torch.float64, device=embeddings.device)
        for part in embeddings.split(rows):
            points32 = (part - centre) * scale.float()
            gram += (points32.T @ points32).double()
        spread, axes = torch.linalg.eigh(gram / count)  # (E,), (E, E)
    return _Axes(centre, (scale[:, None] * axes).float(), spread.clamp_min(0).float())


def _fit(
    points: Float32[Tensor, "N R"],
    labels: Int64[Tensor, " N"],
    spread: Float32[Tensor, " R"],
    *,
    l2: float,
    start: Float32[Tensor, "K S"],
    slope: float,
) -> Float32[Tensor, "K S"]:
    """Minimise the objective by L-BFGS from `start`. Return weights (K, R) with the biases in the last column."""
    rows, count = max(1, _CELLS // len(start)), len(labels)
    parts = list(zip(points.split(rows), labels.split(rows), strict=True))

    def curvature() -> float:
        """Mean of p (1 - p): the curvature of the likelihood along an axis of unit variance."""
        bends = 0.0
        for x, _ in parts:
            p = torch.addmm(start[:, -1], x, start[:, :-1].T).softmax(1)
            bends += float((p - p * p).double().sum())
        return max(bends / (count * len(start)), 1e-6)

    bend = curvature()
    scale = torch.cat([bend * spread + l2, spread.new_full((1,), bend)]).rsqrt()  # (R + 1,)
    theta = (start / scale).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=_STEPS, tolerance_grad=slope, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        w = theta.detach() * scale
        loss = 0.5 * l2 * w[:, :-1].double().square().sum()
        gradient = torch.zeros_like(w)
        for x, y in parts:
            logp = torch.addmm(w[:, -1], x, w[:, :-1].T).log_softmax(1)  # (n, K)
            loss -= logp.gather(1, y[:, None]).double().sum() / count
            residual = logp.exp_()
            residual[torch.arange(len(y), device=y.device), y] -= 1
            residual /= count
            gradient[:, :-1] += residual.T @ x
            gradient[:, -1] += residual.sum(0)
        gradient[:, :-1] += l2 * w[:, :-1]
        theta.grad = gradient * scale
        return loss

    optimizer.step(objective)
    return theta.detach() * scale


def _present(labels: Int64[Tensor, " N"]) -> tuple[Int64[Tensor, " K"], Int64[Tensor, " N"]]:
    """Return the classes that have images, and the labels as indexes of these."""
    present, among = labels.unique(return_inverse=True)
    if len(present) < 2:
        raise ValueError("a probe needs training images of at least two classes; give images of another")
    return present, among


def _score_penalties(
    train: LabelledEmbeddings, val: LabelledEmbeddings, grid: Sequence[float], device: torch.device
) -> list[tuple[int, float]]:
    """Return, for each penalty, the number of correct held-out images and the sum of all negative log-likelihoods."""
    axes = _axes(train.embeddings.to(device))
    points, held = axes(train.embeddings.to(device)), axes(val.embeddings.to(device))
    present, among = _present(train.labels.to(device))
    truth = val.labels.to(device)
    place = torch.searchsorted(present, truth).clamp_max(len(present) - 1)
    known = present[place] == truth  # a class that nobody could learn is a miss
    theta, outcomes = points.new_zeros(len(present), points.shape[1] + 1), []
    for l2 in grid:
        theta = _fit(points, among, axes.spread, l2=l2, start=theta, slope=_ROUGH)
        outcomes.append(_judged(theta, held, place, known))
    return outcomes


def _judged(
    theta: Float32[Tensor, "K S"],
    points: Float32[Tensor, "N R"],
    labels: Int64[Tensor, " N"],
    known: Bool[Tensor, " N"],
) -> tuple[int, float]:
    logp = torch.addmm(theta[:, -1], points, theta[:, :-1].T).log_softmax(1)
    right = (logp.argmax(1) == labels) & known
    return int(right.sum()), float(-logp.gather(1, labels[:, None])[:, 0][known].double().sum())


def _fit_once(features: LabelledEmbeddings, l2: float, device: torch.device, num_classes: int) -> tuple[Tensor, Tensor]:
    """Fit the head for raw embeddings at one penalty. Return it on the CPU."""
    embeddings = features.embeddings.to(device)
    axes = _axes(embeddings)
    present, among = _present(features.labels.to(device))
    points = axes(embeddings)
    start = points.new_zeros(len(present), points.shape[1] + 1)
    theta = _fit(points, among, axes.spread, l2=l2, start=start, slope=_FINE).double()
    turned = theta[:, :-1] @ axes.turn.double().T  # (k, E)
    biases = theta[:, -1] - turned @ axes.mean.double()
    weight = turned.new_zeros(num_classes, turned.shape[1])
    bias = turned.new_full((num_classes,), float(theta[:, -1].min()) - 10)
    weight[present], bias[present] = turned, biases
    return weight.float().cpu(), bias.float().cpu()


def _accuracy(features: LabelledEmbeddings, weight: Tensor, bias: Tensor) -> Accuracy:
    right = (F.linear(features.embeddings, weight, bias).argmax(1) == features.labels).sum()
    return Accuracy(int(right), len(features))
