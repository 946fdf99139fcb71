"""Each loss by hand, and who learns what from whom."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from vitrail.data.augment import augment, normalise
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.batches import Part
from vitrail.data.dataset import Split
from vitrail.data.memory import FixedSplit
from vitrail.evaluate.evaluate import Among
from vitrail.models import ViT
from vitrail.models.backbone import Backbone
from vitrail.settings import (
    AugmentConfig,
    DataConfig,
    DistillConfig,
    ModelConfig,
    OptimConfig,
    Preprocessing,
    Settings,
    TrainConfig,
)
from vitrail.tasks.classify import Classify, MultiLabel
from vitrail.tasks.distil import Distil, compute_teacher_targets
from vitrail.tasks.losses import balanced_weights, label_loss, target_smoothing, teacher_loss, teacher_targets
from vitrail.tasks.supervised import supervised_task
from vitrail.train.optim import build_optimizers
from vitrail.train.step import Step
from vitrail.weights import load, save_model

CPU = torch.device("cpu")
IMAGES = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.5,), std=(0.5,))
CLASSES = ("ant", "bee", "cat")


def batch(size: int = 4, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(size, 3, generator=generator)
    return Batch(
        images=torch.randn(size, 1, 8, 8, generator=generator),
        targets=targets / targets.sum(dim=1, keepdim=True),
        labels=targets.argmax(dim=1),
        indexes=torch.arange(size),
    )


def vit(**fields: Any) -> ViT:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "in_channels": 1, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = ViT(**sizes | fields)
    model.preprocessing, model.classes = IMAGES, CLASSES
    return model


class Fixed(Backbone):
    """Gives its logits, whatever it sees."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits

    def head_logits(self, images: Tensor, *, patch_size: Any = None) -> tuple[Tensor]:
        return (self.logits,)


def classify(model: Any, data: Batch, *, multi_label: bool = False, **options: Any) -> dict[str, Tensor]:
    """The losses of a batch."""
    kind = MultiLabel if multi_label else Classify
    losses: dict[str, Tensor] = kind(model, preprocessing=IMAGES, **options)(data)
    return losses


class Asked(nn.Module):
    """A teacher that is any function of the images."""

    def __init__(self, ask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.ask = ask

    def forward(self, images: Tensor) -> Tensor:
        return self.ask(images)


def distill(
    model: Any, data: Batch, *, ask: Callable[[Tensor], Tensor] | None, kind: Any, alpha: float, tau: float, **options: Any
) -> dict[str, Tensor]:
    """The losses of a batch beside a teacher."""
    cfg, teacher = DistillConfig(teacher="x", kind=kind, alpha=alpha, tau=tau), None if ask is None else Asked(ask)
    losses: dict[str, Tensor] = Distil(model, cfg=cfg, teacher=teacher, device=CPU, preprocessing=IMAGES, **options)(data)
    return losses


class Labels(Split):
    """A split of which only the labels are there."""

    def __init__(self, labels: list[int], *, multi_label: bool = False) -> None:
        count = len(labels)
        self.multi_hot = torch.ones(count, 3, dtype=torch.bool) if multi_label else None
        super().__init__(labels=torch.tensor(labels), sizes=torch.ones(count, 2, dtype=torch.long), names=[""] * count)

    def read(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def logits_of(seed: int, size: int = 4) -> Tensor:
    return 3 * torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------------------
# The labels


@given(seed=st.integers(0, 999), size=st.integers(1, 9))
def test_cross_entropy_with_soft_targets_by_hand_and_as_torchs(seed: int, size: int) -> None:
    logits, data = logits_of(seed, size), batch(size, seed)
    loss = classify(Fixed(logits), data)["loss"]
    by_hand = 0.0
    for row, target in zip(logits.tolist(), data.targets.tolist(), strict=True):
        by_hand -= sum(t * math.log(p) for p, t in zip(softmax(row), target, strict=True)) / size
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)
    assert torch.equal(loss, F.cross_entropy(logits, data.targets)), "the very same, or a run resumed would not be identical"


@given(seed=st.integers(0, 999), size=st.integers(1, 9))
def test_binary_cross_entropy_by_hand(seed: int, size: int) -> None:
    """The mean over images and classes, as timm's BinaryCrossEntropy has it; mixed targets stay as they are."""
    logits, data = logits_of(seed, size), batch(size, seed)
    by_hand = 0.0
    for row, target in zip(logits.tolist(), data.targets.tolist(), strict=True):
        for x, t in zip(row, target, strict=True):
            p = 1 / (1 + math.exp(-x))
            by_hand -= (t * math.log(p) + (1 - t) * math.log(1 - p)) / (3 * size)
    assert classify(Fixed(logits), data, loss="bce")["loss"].item() == pytest.approx(by_hand, rel=1e-4)


def test_binary_cross_entropy_is_timms() -> None:
    data, logits = batch(), logits_of(0)
    theirs = BinaryCrossEntropy(smoothing=0.0)
    torch.testing.assert_close(classify(Fixed(logits), data, loss="bce")["loss"], theirs(logits, data.targets))
    hard = dataclasses.replace(data, targets=F.one_hot(data.labels, 3).float())
    torch.testing.assert_close(classify(Fixed(logits), hard, loss="bce")["loss"], theirs(logits, data.labels))


def test_accuracy_is_the_share_of_heaviest_classes_on_top() -> None:
    logits = batch().targets.clone()
    logits[0] = logits[0].roll(1)
    assert classify(Fixed(logits), batch())["accuracy"].item() == 0.75


@given(
    smoothing=st.floats(0, 0.9),
    mixup=st.sampled_from([0.0, 0.2, 1.0]),
    cutmix=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_mixed_and_smoothed_labels_sum_to_one(smoothing: float, mixup: float, cutmix: float, seed: int) -> None:
    labels = torch.arange(6) % 3
    whole = torch.tensor([0.0, 0.0, 8.0, 8.0]).expand(6, 4)
    raw = RawBatch(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.full((6, 2), 8), whole, labels, torch.arange(6))
    cfg = AugmentConfig(crop="none", flip=0, mixup_alpha=mixup, cutmix_alpha=cutmix, mixup_prob=0.7)
    targets = augment(raw, cfg=cfg, preprocessing=IMAGES, num_classes=3, seed=seed, epoch=0, label_smoothing=smoothing).targets
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))
    assert (targets >= 0).all()


def test_several_labels_an_image_are_one_question_each() -> None:
    data = dataclasses.replace(batch(2), targets=torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    logits = torch.tensor([[2.0, -1.0, -3.0], [-1.0, 0.5, -2.0]])
    losses = classify(Fixed(logits), data, loss="bce", multi_label=True)
    assert losses["binary_accuracy"].item() == pytest.approx(4 / 6)
    assert "accuracy" not in losses
    torch.testing.assert_close(losses["loss"], F.binary_cross_entropy_with_logits(logits, data.targets))


def test_the_batchs_patch_reaches_the_model() -> None:
    model, data = vit(dist_token=True), batch()
    for objective in (classify, plain_distill):
        own, coarse = (objective(model, dataclasses.replace(data, patch_size=p))["loss"] for p in (4, 8))
        assert torch.equal(own, objective(model, data)["loss"])
        assert not torch.equal(coarse, own)


def plain_distill(model: nn.Module, data: Batch) -> dict[str, Tensor]:
    return distill(model, data, ask=lambda images: torch.zeros(len(images), 3), kind="soft", alpha=0.5, tau=1.0)


# --------------------------------------------------------------------------------------------------------------------
# Classes of unequal size


def test_weights_of_classes_by_hand() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 1)
    torch.testing.assert_close(balanced_weights(labels, num_classes=3), torch.tensor([10 / 18, 10 / 9, 10 / 3]))


def test_a_class_without_images_weighs_nothing() -> None:
    weights = balanced_weights(torch.tensor([0, 0, 0, 2]), num_classes=3)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 0.0, 2.0]))


@given(
    counts=st.lists(st.integers(0, 30), min_size=2, max_size=6).filter(lambda counts: sum(counts) > 0),
    smoothing=st.floats(0, 0.5),
)
def test_an_image_weighs_one_on_average_whatever_the_smoothing(counts: list[int], smoothing: float) -> None:
    classes = len(counts)
    labels = torch.repeat_interleave(torch.arange(classes), torch.tensor(counts))
    weights = balanced_weights(labels, num_classes=classes, label_smoothing=smoothing)
    targets = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    assert (targets @ weights).mean().item() == pytest.approx(1, rel=1e-4)
    each = weights * torch.tensor(counts)
    there = each[each > 0]
    torch.testing.assert_close(there, there[:1].expand_as(there), msg="all classes weigh the same in sum")


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_an_image_counts_as_its_targets_classes_do(loss: Any) -> None:
    weights, data, logits = torch.tensor([0.5, 1.0, 4.0]), batch(), logits_of(2)
    by_hand = 0.0
    for row, target in zip(logits, data.targets, strict=True):
        alone = label_loss(row[None], target[None], loss=loss).item()
        by_hand += alone * sum(t * w for t, w in zip(target.tolist(), (0.5, 1.0, 4.0), strict=True)) / 4
    weighed = classify(Fixed(logits), data, loss=loss, weights=weights)["loss"]
    assert weighed.item() == pytest.approx(by_hand, rel=1e-5)
    even = classify(Fixed(logits), data, loss=loss, weights=torch.ones(3))["loss"]
    torch.testing.assert_close(even, classify(Fixed(logits), data, loss=loss)["loss"])


def test_no_smoothing_where_classes_are_asked_for_one_by_one() -> None:
    assert target_smoothing(OptimConfig(label_smoothing=0.1)) == 0.1
    assert target_smoothing(OptimConfig(label_smoothing=0.1, loss="bce")) == 0
    assert target_smoothing(OptimConfig(label_smoothing=0.1), multi_label=True) == 0


# --------------------------------------------------------------------------------------------------------------------
# A teacher


@given(seed=st.integers(0, 999), tau=st.floats(0.5, 5), alpha=st.floats(0, 1))
@settings(deadline=None)
def test_soft_distillation_by_hand(seed: int, tau: float, alpha: float) -> None:
    """(1 - λ) CE(ψ(Z_s), y) + λ τ² KL(ψ(Z_s/τ), ψ(Z_t/τ)): Touvron et al. 2021, equation 2."""
    data, student, teacher = batch(), logits_of(seed), logits_of(seed + 1)
    entropy = divergence = 0.0
    for row, target, told in zip(student.tolist(), data.targets.tolist(), teacher.tolist(), strict=True):
        entropy -= sum(t * math.log(p) for p, t in zip(softmax(row), target, strict=True)) / 4
        ours, theirs = (softmax([x / tau for x in logits]) for logits in (row, told))
        divergence += sum(q * math.log(q / p) for p, q in zip(ours, theirs, strict=True)) / 4
    losses = distill(Fixed(student), data, ask=lambda _: teacher, kind="soft", alpha=alpha, tau=tau)
    expected = (1 - alpha) * entropy + alpha * tau**2 * divergence
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert losses["label_loss"].item() == pytest.approx(entropy, rel=1e-4)
    assert losses["teacher_loss"].item() == pytest.approx(tau**2 * divergence, rel=1e-3, abs=1e-5)


@given(seed=st.integers(0, 999), tau=st.floats(0.5, 5))
def test_hard_distillation_by_hand(seed: int, tau: float) -> None:
    """½ CE(ψ(Z_s), y) + ½ CE(ψ(Z_s), argmax Z_t): Touvron et al. 2021, equation 3."""
    data, student, teacher = batch(), logits_of(seed), logits_of(seed + 1)
    expected = 0.0
    for row, target, told in zip(student.tolist(), data.targets.tolist(), teacher.tolist(), strict=True):
        probabilities = softmax(row)
        expected -= sum(t * math.log(p) for p, t in zip(probabilities, target, strict=True)) / 8
        expected -= math.log(probabilities[told.index(max(told))]) / 8
    losses = distill(Fixed(student), data, ask=lambda _: teacher, kind="hard", alpha=0.5, tau=tau)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    logits = logits_of(0)
    targets = teacher_targets(logits, kind="soft", tau=3.0)
    assert teacher_loss(logits, targets, kind="soft", tau=3.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_distillation_head_learns_the_teacher_and_the_class_head_the_labels(kind: Any) -> None:
    model, data, teacher = vit(dist_token=True).train(), batch(), logits_of(5)
    objective: dict[str, Any] = {"ask": lambda _: teacher, "kind": kind, "tau": 2.0}
    outputs = model.outputs(data.images)
    assert outputs.dist_logits is not None
    losses = distill(model, data, alpha=0.3, **objective)
    labels, distillation = (
        label_loss(outputs.logits, data.targets, loss="ce"),
        teacher_loss(outputs.dist_logits, teacher_targets(teacher, kind=kind, tau=2.0), kind=kind, tau=2.0),
    )
    torch.testing.assert_close(losses["loss"], 0.7 * labels + 0.3 * distillation)
    right = outputs.logits.argmax(1) == data.targets.argmax(1)
    assert losses["accuracy"].item() == right.float().mean().item()
    for name, other in (("label_loss", "head_dist"), ("teacher_loss", "head")):
        model.zero_grad()
        distill(model, data, alpha=0.3, **objective)[name].backward()
        assert model.get_submodule(other).get_parameter("weight").grad is None, "nothing comes from there"


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_what_was_said_before_teaches_as_what_is_said_now(kind: Any) -> None:
    student, data, teacher = Fixed(logits_of(0)), batch(), logits_of(5)
    now = distill(student, data, ask=lambda _: teacher, kind=kind, alpha=0.3, tau=2.0)
    data = dataclasses.replace(data, teacher_targets=teacher_targets(teacher, kind=kind, tau=2.0))
    before = distill(student, data, ask=None, kind=kind, alpha=0.3, tau=2.0)
    assert before.keys() == now.keys()
    assert all(torch.equal(value, now[name]) for name, value in before.items())


def test_one_head_learns_both() -> None:
    model, data, teacher = vit().train(), batch(), logits_of(5)
    losses = distill(model, data, ask=lambda _: teacher, kind="hard", alpha=0.5, tau=1.0)
    logits = model(data.images)
    both = label_loss(logits, data.targets, loss="ce") + F.cross_entropy(logits, teacher.argmax(1))
    torch.testing.assert_close(losses["loss"], both / 2)


def test_weights_and_bce_hold_for_the_labels_alone() -> None:
    model, data, teacher, weights = vit(), batch(), logits_of(5), torch.tensor([0.5, 1.0, 4.0])
    losses = distill(model, data, ask=lambda _: teacher, kind="hard", alpha=0.5, tau=1.0, loss="bce", weights=weights)
    torch.testing.assert_close(losses["label_loss"], label_loss(model(data.images), data.targets, loss="bce", weights=weights))
    torch.testing.assert_close(losses["teacher_loss"], F.cross_entropy(model(data.images), teacher.argmax(1)))


# --------------------------------------------------------------------------------------------------------------------
# From settings


def task_of(
    vit: ViT, labels: list[int] | None = None, dtype: torch.dtype | None = None, multi_label: bool = False, **sections: Any
) -> Classify:
    model = ModelConfig(img_size=8, patch_size=4, in_channels=1, num_classes=3, **sections.pop("model", {}))
    return supervised_task(
        Settings(model=model, **sections),
        vit,
        split=Labels(labels or [0, 1, 2], multi_label=multi_label),
        preprocessing=IMAGES,
        classes=CLASSES,
        device=CPU,
        autocast_dtype=dtype,
    )


def built(*args: Any, **options: Any) -> Callable[[ViT, Batch], dict[str, Tensor]]:
    def losses(model: ViT, data: Batch) -> dict[str, Tensor]:
        given: dict[str, Tensor] = task_of(model, *args, **options)(data)
        return given

    return losses


@pytest.fixture
def run(tmp_path: Path) -> str:
    """The folder of a trained model with dropout in it."""
    torch.manual_seed(9)
    teacher = vit(embed_dim=12, drop_rate=0.5)
    teacher.reset_parameters()
    (tmp_path / "run").mkdir()
    save_model(teacher, tmp_path / "run", data="somewhere")
    return str(tmp_path / "run")


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_settings_choose_the_loss(loss: Any) -> None:
    model, data = vit(), batch()
    expected = label_loss(model(data.images), data.targets, loss=loss)
    assert torch.equal(built(optim=OptimConfig(loss=loss))(model, data)["loss"], expected)


def test_settings_weigh_the_classes() -> None:
    model, data, labels = vit(), batch(), [0, 0, 0, 1, 2]
    weighed = built(labels, data=DataConfig(balance="loss"), optim=OptimConfig(label_smoothing=0.2))(model, data)
    weights = balanced_weights(torch.tensor(labels), num_classes=3, label_smoothing=0.2)
    assert torch.equal(weighed["loss"], classify(model, data, weights=weights)["loss"])
    for balance in ("none", "sampler"):
        assert torch.equal(built(labels, data=DataConfig(balance=balance))(model, data)["loss"], classify(model, data)["loss"])


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_settings_bring_a_teacher(run: str, kind: Any) -> None:
    told = DistillConfig(teacher=run, kind=kind, alpha=0.25, tau=2.0)
    model, data = vit(), batch()
    teacher = load(run)
    with torch.no_grad():
        said = teacher(data.images)
    expected = distill(model, data, ask=lambda _: said, kind=kind, alpha=0.25, tau=2.0)
    losses = built(distill=told)(model, data)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_teacher_is_asked_once_about_every_image(run: str, kind: Any) -> None:
    images = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    split = FixedSplit(images, labels=torch.zeros(300, dtype=torch.long), names=[""] * 300)
    told = DistillConfig(teacher=run, kind=kind, tau=2.0, once=True)
    targets = compute_teacher_targets(told, split, preprocessing=IMAGES, classes=CLASSES, device=CPU, dtype=None)
    with torch.no_grad():
        logits = load(run)(normalise(images, IMAGES))
    expected = F.one_hot(logits.argmax(1), 3) if kind == "hard" else F.softmax(logits / 2, dim=1)
    assert targets.dtype == torch.float16
    torch.testing.assert_close(targets.float(), expected.float(), atol=1e-3, rtol=0)
    halves = [
        compute_teacher_targets(
            told, split, preprocessing=IMAGES, classes=CLASSES, device=CPU, dtype=None, among=Among(Part(index, 2))
        )
        for index in range(2)
    ]
    assert not halves[0][1::2].any(), "the other process asks about these"
    torch.testing.assert_close(halves[0] + halves[1], targets, atol=1e-3, rtol=0)


def test_with_answers_at_hand_no_teacher_is_in_the_objective() -> None:
    objective = built(distill=DistillConfig(teacher="runs/not/there", once=True))
    data = dataclasses.replace(batch(), teacher_targets=batch().targets)
    assert objective(vit(), data)["teacher_loss"] > 0


def test_the_teacher_speaks_in_the_type_of_the_run(run: str) -> None:
    model, data, told = vit(), batch(), DistillConfig(teacher=run, kind="soft")
    exact, rounded = (built(distill=told, dtype=dtype)(model, data)["teacher_loss"] for dtype in (None, torch.bfloat16))
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.05, rtol=0.1)


@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dist_token", [False, True])
def test_a_student_learns_its_teachers_decisions(run: str, dist_token: bool, autocast_dtype: torch.dtype | None) -> None:
    """Through the very step that training takes, in parts: and the teacher stays as it was."""
    model = vit(dist_token=dist_token, drop_path_rate=0.1).train()
    cfg = DistillConfig(teacher=run, alpha=0.9)
    task = task_of(model, distill=cfg, dtype=autocast_dtype, model={"dist_token": dist_token})
    assert isinstance(task, Distil)
    [teacher] = task._teacher
    assert teacher is not None
    assert not [name for name in task.state_dict() if not name.startswith("model.")], "the teacher is no part of the task"
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizers = build_optimizers(model, OptimConfig(lr=0.01), batch_size=1024)
    step = Step(task, optimizers, autocast_dtype=autocast_dtype, accumulate=2)
    losses = [step(batch(8))["teacher_loss"].item() for _ in range(30)]
    assert losses[-1] < losses[0] - 0.05
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_without_a_share_is_not_even_loaded() -> None:
    model, data = vit(), batch()
    losses = built(distill=DistillConfig(teacher="runs/not/there", alpha=0.0))(model, data)
    assert torch.equal(losses["loss"], classify(model, data)["loss"])


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"distill": DistillConfig(teacher="x", alpha=1.0), "model": {"dist_token": True}},
            r"^distill.alpha 1.0 leaves the class head unlearned, and it counts in the prediction; use an alpha below 1, or",
        ),
        (
            {"distill": DistillConfig(teacher="x"), "multi_label": True},
            r"^distill.teacher chooses one class an image, and these have several; leave it out$",
        ),
        (
            {"data": DataConfig(balance="loss"), "multi_label": True},
            r'^data.balance "loss" weighs an image by its one class, and these have several; use "none"$',
        ),
        ({"distill": DistillConfig(teacher="B/16")}, r'^distill.teacher "B/16" has random weights; train it'),
    ],
)
def test_what_can_not_be(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        task_of(vit(**sections.get("model", {})), **sections)
    assert "\n" not in str(error.value)


def test_several_labels_an_image_take_bce_whatever_the_settings_say() -> None:
    model, data = vit(), batch()
    losses = built(multi_label=True, optim=OptimConfig(loss="ce"), train=TrainConfig())(model, data)
    assert losses.keys() == {"loss", "binary_accuracy"}
    assert torch.equal(losses["loss"], label_loss(model(data.images), data.targets, loss="bce"))
