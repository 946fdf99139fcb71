"""Decisions of the guard on series of scores: what stops, what does not, and that a restored guard decides alike."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.memory import FixedSplit
from vitrail.evaluate import EmbeddingScores
from vitrail.evaluate.intervals import Accuracy
from vitrail.models import ViT
from vitrail.settings import GuardConfig, Preprocessing, layers
from vitrail.tasks import TASKS
from vitrail.tasks.task import CollapseCause
from vitrail.train.guard import SPREAD, Check, Collapse, Guard

CFG = GuardConfig(patience=2, knn_patience=3, min_rank=0.02, rank_drop=0.5, knn_drop=0.1)
IMAGES, WIDTH = 400, 100


def first(right: int | None) -> str | None:
    """Return what k-NN gets right where that are the first of the images."""
    return None if right is None else ("1" * right).ljust(IMAGES, "0")


def prototypes(values: Sequence[float | None], cfg: GuardConfig = CFG) -> Collapse | None:
    """Add checks of a healthy rank, with prototypes in use."""
    guard = Guard(cfg)
    for step, value in enumerate(values):
        guard.add(Check(step, step / 20, 50.0, WIDTH, None, IMAGES, value))
    return guard.collapse


def test_one_prototype_for_all_images_is_a_collapse() -> None:
    found = prototypes([None, 7.0, 1.2, 1.04, 1.003])
    assert found is not None
    assert (found.cause, found.step) == ("one prototype", 4)
    assert found.why == "all images have one prototype: 1.003 are in use (guard.min_prototypes)"
    assert prototypes([None, 1.01, 1.2, 1.01]) is None, "not twice in a row"
    assert prototypes([None, None, None]) is None, "a method without prototypes"
    assert prototypes([None, 1.0, 1.0, 1.0]) is None, "it begins so, where all images are alike to random weights"
    assert prototypes([None, 9.0, 1.0, 1.0], GuardConfig(min_prototypes=0)) is None


def test_a_better_accuracy_is_no_excuse_for_one_prototype() -> None:
    guard = Guard(CFG)
    for step, (right, value) in enumerate([(100, None), (300, 9.0), (300, 1.0), (300, 1.0)]):
        guard.add(Check(step, step / 20, 50.0, WIDTH, first(right), IMAGES, value))
    assert guard.collapse is not None


def spreads(values: Sequence[float | None], *, rank: float = 50.0, cfg: GuardConfig = CFG) -> Collapse | None:
    """Add checks with a spread of the outputs, of a rank that is 50 at the start."""
    guard = Guard(cfg)
    for step, value in enumerate(values):
        guard.add(Check(step, step / 20, rank if step else 50.0, WIDTH, None, IMAGES, None, value))
    return guard.collapse


def test_outputs_without_spread_are_a_collapse() -> None:
    found = spreads([None, 0.4, 0.03, 0.014, 0.0003])
    assert found is not None
    assert (found.cause, found.step) == ("no spread", 4)
    assert (
        found.why == "all images have nearly the same output: 0.03% of its dimensions are in use, below 2% (guard.min_spread)"
    )
    assert spreads([None, 0.01, 0.3, 0.01]) is None, "not twice in a row"
    assert spreads([None, 0.0, 0.0], cfg=GuardConfig(min_spread=0.0)) is None


@pytest.mark.parametrize("rank", [1.5, 20.0])
def test_a_low_rank_is_no_collapse_where_the_outputs_have_spread(rank: float) -> None:
    assert spreads([None, SPREAD, 0.9], rank=rank) is None
    found = spreads([None, 0.2, 0.2], rank=rank)
    assert found is not None
    assert found.cause == ("low rank" if rank < 2 else "rank fell")


def watch(ranks: Sequence[float], right: Sequence[int] | None = None, cfg: GuardConfig = CFG) -> tuple[Guard, Collapse | None]:
    """Add checks up to the first collapse."""
    guard = Guard(cfg)
    for step, (rank, correct) in enumerate(zip(ranks, right or itertools.repeat(None), strict=False)):
        if collapse := guard.add(Check(step, step / 20, rank, WIDTH, first(correct), IMAGES)):
            return guard, collapse
    return guard, None


@pytest.mark.parametrize(
    ("ranks", "right", "cause", "step"),
    [
        ([20, 9, 9.9, 9], None, "rank fell", 2),
        ([20, 9, 12, 9, 12], None, None, None),  # never twice in a row
        ([3, 1.9, 1.9], None, "low rank", 2),
        ([1.5, 1.5, 1.5, 40], None, "low rank", 2),  # weights that have collapsed before
        ([20, 30, 40, 50], [200, 150, 150, 150], "accuracy fell", 3),
        ([20, 30, 40, 50, 50], [200, 150, 150, 170, 150], None, None),  # 170 of 400 is less than 10 points below
        ([20, 9, 9, 9], [200, 230, 230, 230], None, None),  # a lower rank, and shown to be better
        ([20, 9, 9, 9], [200, 205, 205, 205], "rank fell", 2),  # five of five images: not shown
        ([5], [0], None, None),  # the start alone is no collapse
    ],
)
def test_decisions(ranks: list[float], right: list[int] | None, cause: str | None, step: int | None) -> None:
    _, collapse = watch(ranks, right)
    assert (collapse and collapse.cause, collapse and collapse.step) == (cause, step)


@settings(max_examples=200)
@given(
    ranks=st.lists(st.floats(1, 100), min_size=1, max_size=20),
    right=st.lists(st.integers(0, IMAGES), min_size=20, max_size=20),
    cut=st.integers(0, 20),
)
def test_a_restored_guard_decides_alike(ranks: list[float], right: list[int], cut: int) -> None:
    _, straight = watch(ranks, right)
    guard = Guard(CFG)
    found = None
    for step, (rank, correct) in enumerate(zip(ranks, right, strict=False)):
        if step == cut:
            state = json.loads(json.dumps(guard.state()))
            guard = Guard(CFG)
            guard.restore(state)
        if found := guard.add(Check(step, step / 20, rank, WIDTH, first(correct), IMAGES)):
            break
    assert found == straight == guard.collapse


def test_an_image_that_is_lost_in_the_run_pairs_nothing() -> None:
    guard = Guard(GuardConfig(knn_drop=0.02, knn_patience=1))
    guard.add(Check(0, 0.0, 50.0, WIDTH, "1" * 400, 400))
    assert guard.add(Check(1, 0.1, 50.0, WIDTH, "0" * 399, 399)) is None
    assert guard.add(Check(2, 0.2, 50.0, WIDTH, "0" * 400, 400)) is not None


def test_a_state_with_counts_of_an_older_checkpoint_is_taken_without_them() -> None:
    guard = Guard(CFG)
    guard.restore([[0, 0.0, 20.0, WIDTH, 200, IMAGES, None], [1, 0.05, 9.0, WIDTH, 300, IMAGES, None]])
    assert guard.collapse is None
    assert guard.add(Check(2, 0.1, 9.0, WIDTH, first(100), IMAGES)) is not None, "the rank"


@settings(max_examples=100)
@given(start=st.floats(4, 100), shares=st.lists(st.floats(0.5, 1.5), max_size=20))
def test_a_rank_that_stays_above_its_share_never_stops(start: float, shares: list[float]) -> None:
    _, collapse = watch([start, *(share * start for share in shares)])
    assert collapse is None


@settings(max_examples=50)
@given(
    ranks=st.lists(st.floats(1, 100), min_size=1, max_size=10), right=st.lists(st.integers(0, IMAGES), min_size=10, max_size=10)
)
def test_zero_turns_a_rule_off(ranks: list[float], right: list[int]) -> None:
    cfg = GuardConfig(min_rank=0, rank_drop=0, knn_drop=0)
    assert watch(ranks, right, cfg)[1] is None


@settings(max_examples=100)
@given(steps=st.integers(1, 300), every=st.floats(0.01, 1))
def test_checks_are_frequent_enough(steps: int, every: float) -> None:
    """Before the first step, and then after each share of the run, by a step at most."""
    guard, at = Guard(GuardConfig(every=every)), []
    for step in range(steps):
        while guard.is_due(step, step / steps):
            at.append(step)
            guard.add(Check(step, step / steps, 50.0, WIDTH, None, IMAGES))
    assert at[0] == 0
    assert len(set(at)) == len(at), "once for each step"
    assert all(after - before <= every * steps + 1 + 1e-6 for before, after in itertools.pairwise([*at, steps]))


def test_a_message_has_figures_advice_and_the_way_out() -> None:
    _, collapse = watch([20, 9, 8])
    assert collapse is not None
    assert collapse.message("raise x.y", model_step=0) == (
        "stopped at step 2: the embedding collapsed, for its effective rank is 8.0, below 50% of the 20.0 of the starting "
        "weights (guard.rank_drop); raise x.y; the model is that of the best evaluation, at step 0"
    )
    assert collapse.message("raise x.y", model_step=None).endswith(
        "the model has its last weights, as no checkpoint has a score"
    )
    assert collapse.to_dict()["reason"] == "collapse"


def test_a_check_takes_the_figures_of_the_scores() -> None:
    right = torch.tensor([True, False, True, True])
    scores = EmbeddingScores(4, Accuracy(3, 4), 2.0, (1.0, 3.0), width=64, knn_right=right)
    assert Check.of(scores, step=3, progress=0.25) == Check(3, 0.25, 2.0, 4, "1011", 4)
    assert Check.of(scores, step=3, progress=0.25, prototypes=7.5) == Check(3, 0.25, 2.0, 4, "1011", 4, 7.5)
    assert Check.of(scores, step=3, progress=0.25, spread=0.5) == Check(3, 0.25, 2.0, 4, "1011", 4, None, 0.5)


def test_a_loss_counts_where_it_is_shown_on_the_same_images() -> None:
    """3 points: 12 images lost of 400 show it, 37 lost and 25 gained do not; nor does a loss of 2 points and no more."""
    cfg = GuardConfig(knn_drop=0.02, knn_patience=1)
    before = first(200)
    assert before is not None

    def decide(lost: int, gained: int) -> Collapse | None:
        guard = Guard(cfg)
        guard.add(Check(0, 0.0, 50.0, WIDTH, before, IMAGES))
        now = ("0" * lost + "1" * (200 - lost) + "1" * gained).ljust(IMAGES, "0")
        return guard.add(Check(1, 0.1, 50.0, WIDTH, now, IMAGES))

    assert decide(37, 25) is None
    assert decide(8, 0) is None
    found = decide(12, 0)
    assert found is not None
    assert found.message("do x", model_step=0) == (
        "stopped at step 1: the embedding got worse, for its k-NN accuracy is 47.0%, and was 50.0% with the starting weights "
        "(guard.knn_drop); do x; the model is that of the best evaluation, at step 0"
    )


def test_every_task_without_labels_says_what_to_change() -> None:
    zeros = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.5,), std=(0.25,))
    model = ViT(img_size=8, patch_size=4, in_channels=1, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    settings = layers.build(
        [{"lejepa": {"sigreg_weight": 0.0, "projector_dims": [8]}, "dino": {"prototypes": 8, "center_momentum": 1.0}}]
    )
    split = FixedSplit(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels=torch.zeros(4, dtype=torch.long), names=list("abcd"))
    for name, row in TASKS.items():
        if row.supervised:
            continue
        options: dict[str, Any] = {"classes": (), "device": torch.device("cpu"), "autocast_dtype": None}
        task = row.build(settings, model, split=split, preprocessing=zeros, **options)
        for cause in get_args(CollapseCause):
            advice = task.collapse_advice(cause)
            assert "optim.lr" in advice
            for setting in re.findall(r"\b[a-z]+\.[a-z_]+\b", advice):
                assert setting in layers.key_types(), (name, setting)
        first = task.collapse_advice("rank fell")
        assert first.startswith(
            {"lejepa": "raise lejepa.sigreg_weight, which is 0", "dino": "set dino.center_momentum below 1"}.get(name, "")
        )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("every", 0.0, r"guard.every 0.0 must be above 0"),
        ("min_rank", 1.0, r"guard.min_rank 1.0 must be at least 0, which turns it off, and below 1"),
        ("min_prototypes", 0.5, r"guard.min_prototypes 0.5 must be above 1"),
        ("min_spread", -0.1, r"guard.min_spread -0.1 must be at least 0"),
        ("patience", 0, r"guard.patience 0 must be at least 1"),
        ("images", 8, r"guard.images 8 are too few"),
    ],
)
def test_settings_that_can_not_be(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuardConfig(**{field: value})  # type: ignore[arg-type]
