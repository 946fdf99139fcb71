"""LeJEPA: loss and gradient beside the paper's formula written straight, directions, statistics, two processes as one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.data.batch import RawBatch
from vitrail.data.memory import whole_boxes
from vitrail.models import Swin, ViT
from vitrail.models.backbone import Backbone
from vitrail.settings import LejepaConfig, Preprocessing, ViewsConfig
from vitrail.tasks.across import LEAST_STEPS
from vitrail.tasks.lejepa import Lejepa, SigReg, Spread, invariance

IMAGES = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
SMALL = LejepaConfig(projector_dims=(12, 10), projector_out=6, directions=8, knots=17)


def model() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=0)


def task(backbone: Backbone | None = None, *, cfg: LejepaConfig = SMALL) -> Lejepa:
    torch.manual_seed(1)
    return Lejepa(
        backbone or model(),
        preprocessing=IMAGES,
        cfg=cfg,
        views=ViewsConfig(global_crops=2, local_crops=1, local_size=0.5),
        sizes=torch.full((50, 2), 20),
        seed=0,
    )


def raw(indexes: list[int]) -> RawBatch:
    pixels = torch.randint(0, 256, (len(indexes), 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([[20, 20]]).expand(len(indexes), 2)
    return RawBatch(pixels, sizes, whole_boxes(sizes), torch.full((len(indexes),), -1), torch.tensor(indexes))


def straight_sigreg(projections: Tensor, directions: Tensor, knots: int) -> Tensor:
    """N ∫ |φ̂(t) - φ(t)|² w(t) dt for each view and direction, one after the other."""
    step, total = 3 / (knots - 1), []
    for view in projections:
        for direction in directions.T:
            values = view @ direction
            heights = []
            for index in range(knots):
                t = index * step
                real, imaginary = torch.cos(t * values).mean(), torch.sin(t * values).mean()
                heights.append(((real - math.exp(-t * t / 2)) ** 2 + imaginary**2) * math.exp(-t * t / 2))
            area = sum((a + b) / 2 * step for a, b in itertools.pairwise(heights))
            total.append(2 * len(view) * area)
    return torch.stack(total).mean()


def test_sigreg_and_its_gradient_are_the_formula() -> None:
    part = SigReg(6, directions=5, knots=17)
    ours, theirs = (torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    part(ours).backward()
    straight_sigreg(theirs, part.directions, 17).backward()
    torch.testing.assert_close(part(ours), straight_sigreg(theirs, part.directions, 17), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_loss_is_the_papers() -> None:
    learner = task()
    batch = learner.batch(raw([1, 4, 7, 9]), epoch=0, img_size=(16, 16))
    assert batch.views is not None
    losses = learner(batch)
    embeddings = torch.stack([learner.model.embedding(group[:, v]) for group in batch.views for v in range(group.shape[1])])
    projections = learner.projector.train()(embeddings.transpose(0, 1).flatten(0, 1)).unflatten(0, (4, 3)).transpose(0, 1)
    center = sum(projections) / 3
    close = sum(((view - center) ** 2).mean() for view in projections) / 3
    normal = straight_sigreg(projections, learner.sigreg.directions, 17)
    torch.testing.assert_close(losses["loss"], 0.02 * normal + 0.98 * close, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["invariance"], close, atol=1e-5, rtol=1e-5)


def test_statistic_knows_normal_from_collapsed() -> None:
    part, generator = SigReg(4, directions=64, knots=17), torch.Generator().manual_seed(0)
    normal, collapsed = torch.randn(1, 4000, 4, generator=generator), torch.zeros(1, 4000, 4)
    assert part(normal) < 3 < 100 < part(collapsed)


def test_under_autocast_the_loss_is_that_of_the_rounded_projections() -> None:
    """Sums of cosines are not rounded to bf16: only what model and projector return is."""
    learner = task()
    batch = learner.batch(raw([1, 4, 7, 9]), epoch=0, img_size=(16, 16))
    seen: list[Tensor] = []
    learner.projector.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        losses = learner(batch)
    assert seen[0].dtype == torch.bfloat16
    projections = seen[0].float().unflatten(0, (4, 3)).transpose(0, 1)
    torch.testing.assert_close(
        losses["sigreg"], straight_sigreg(projections, learner.sigreg.directions, 17), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(losses["invariance"], invariance(projections), atol=1e-6, rtol=1e-5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 6))
def test_spread_is_the_share_of_dimensions_in_use_however_a_step_is_parted(parts: list[int], used: int) -> None:
    outputs = torch.randn(sum(parts), 6, generator=torch.Generator().manual_seed(0))
    outputs[:, used:] = 0.7
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    outputs = outputs @ turn + 3
    spread = Spread(6)
    for step in range(LEAST_STEPS):
        assert spread.take() is None, f"{step} steps are too few"
        for part in outputs.split(parts):
            spread.add(part, counted=True)
        spread.add(torch.full((1, 6), 1e3), counted=False)  # images that stand in
        spread.update()
    spread.update()  # a step of all whose images only stood in
    expected = torch.linalg.eigvalsh(outputs.double().T.cov(correction=0)).clamp(0, 1).mean()
    assert spread.take() == pytest.approx(float(expected), abs=1e-4)
    assert spread.take() is None, "it begins anew"


def test_spread_of_a_run_is_that_of_the_images_centres() -> None:
    learner = task()
    batch = learner.batch(raw([1, 4, 7, 9]), epoch=0, img_size=(16, 16))
    seen: list[Tensor] = []
    learner.projector.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    for step in range(LEAST_STEPS):
        assert learner.spread() is None
        learner(batch)
        learner.after_step(step)
    centres = seen[0].unflatten(0, (4, 3)).mean(1)
    expected = torch.linalg.eigvalsh(centres.double().T.cov(correction=0)).clamp(0, 1).mean()
    assert learner.spread() == pytest.approx(float(expected), abs=1e-5)


def test_directions_are_unit_and_those_of_the_step() -> None:
    part = SigReg(6, directions=5, knots=17)
    torch.testing.assert_close(part.directions.norm(dim=0), torch.ones(5))
    first = part.directions.clone()
    part.draw(seed=0, step=1)
    assert not part.directions.equal(first)
    part.draw(seed=0, step=0)
    assert part.directions.equal(first)


def test_equal_views_have_no_distance() -> None:
    assert invariance(torch.randn(1, 5, 3).expand(4, 5, 3)) == 0


def test_swin_learns_by_it_as_well() -> None:
    torch.manual_seed(0)
    swin = Swin(img_size=16, patch_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=2, num_classes=0)
    learner = task(swin)
    losses = learner(learner.batch(raw([0, 1]), epoch=0, img_size=(16, 16)))
    losses["loss"].backward()
    assert swin.patch_embed.proj.weight.grad is not None
    assert losses["loss"].isfinite()


def test_other_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="patch_sizes out"):
        task().batch(raw([0]), epoch=0, img_size=(16, 16), patch_size=8)


def test_rows_of_a_batch_have_their_views() -> None:
    learner = task()
    batch = learner.batch(raw([1, 4, 7, 9]), epoch=0, img_size=(16, 16))
    part = batch.part(1, 2)
    assert part.views is not None
    assert batch.views is not None
    assert len(part) == 2
    assert part.views[1].equal(batch.views[1][2:])
    assert part.images.equal(batch.images[2:])
    assert replace(batch).with_tensors(batch.tensors()).views is not None
