from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from learner import learner
from torch import Tensor, nn
from torch.amp import GradScaler

from vitrail.data.batch import Batch
from vitrail.models import ViT
from vitrail.models.backbone import Backbone, Stage
from vitrail.settings import OptimConfig
from vitrail.train.optim import build_optimizers
from vitrail.train.step import Ema, Step, loss_scaler


def model() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3, stem="conv")


def batch(size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    targets = torch.rand(size, 3, generator=generator)
    return Batch(
        images=torch.randn(size, 1, 8, 8, generator=generator),
        targets=targets / targets.sum(dim=1, keepdim=True),
        labels=targets.argmax(dim=1),
        indexes=torch.arange(size),
    )


def sgd_step(clip_norm: float | None) -> tuple[float, dict[str, Tensor]]:
    """The length of one plain SGD step at learning rate 1, and what was reported."""
    vit = model()
    optimizers = build_optimizers(vit, OptimConfig(name="sgd", lr=1.0, weight_decay=0, betas=(0.0, 0.0)), batch_size=1024)
    before = [p.detach().clone() for p in vit.parameters()]
    losses = Step(learner(vit), optimizers, clip_norm=clip_norm)(batch())
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(vit.parameters(), before, strict=True)])
    assert all(p.grad is None for p in vit.parameters())
    assert not any(value.requires_grad for value in losses.values())
    return moved.norm().item(), losses


def test_clipping_really_clips() -> None:
    free, losses = sgd_step(None)
    assert "grad_norm" not in losses
    assert free > 0.02
    clipped, losses = sgd_step(0.01)
    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert losses["grad_norm"].item() == pytest.approx(free, rel=1e-3), "the norm before it was clipped"
    loose, _ = sgd_step(100.0)
    assert loose == pytest.approx(free, rel=1e-4)


def test_bf16_leaves_weights_and_optimizer_in_fp32() -> None:
    vit = model()
    optimizers = build_optimizers(vit, OptimConfig(), batch_size=1024)
    seen = []

    def objective(net: nn.Module, data: Batch) -> dict[str, Tensor]:
        logits = net(data.images)
        seen.append(logits.dtype)
        return {"loss": logits.float().square().mean(), "extra": logits.mean()}

    losses = Step(learner(vit, objective), optimizers, autocast_dtype=torch.bfloat16)(batch())
    assert seen == [torch.bfloat16]
    assert set(losses) == {"loss", "extra"}
    assert {p.dtype for p in vit.parameters()} == {torch.float32}
    [adamw] = optimizers.parts
    assert {value.dtype for values in adamw.state.values() for value in values.values()} == {torch.float32}
    Step(learner(vit, objective), optimizers)(batch())
    assert seen == [torch.bfloat16, torch.float32]


def test_the_loss_falls() -> None:
    vit = model()
    move = Step(learner(vit), build_optimizers(vit, OptimConfig(lr=0.01), batch_size=1024), clip_norm=1.0)
    losses = [move(batch())["loss"].item() for _ in range(20)]
    assert losses[-1] < losses[0] - 0.01


def test_the_running_mean_is_its_formula() -> None:
    vit = model()
    ema = Ema(vit, copy.deepcopy(vit), 0.5)
    expected = {name: p.detach().clone() for name, p in vit.named_parameters()}
    for step in range(12):
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, parameter in vit.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
    for name, mean in ema.mean.named_parameters():
        torch.testing.assert_close(mean, expected[name], msg=name)
        assert not mean.requires_grad
    assert not ema.mean.training


def test_buffers_are_copied_as_they_are() -> None:
    vit = model().train()
    ema = Ema(vit, copy.deepcopy(vit), 0.9)
    vit(batch().images)
    ema.update(0)
    for (name, mean), now in zip(ema.mean.named_buffers(), vit.buffers(), strict=True):
        assert torch.equal(mean, now), name
    assert dict(ema.mean.named_buffers())["patch_embed.stem.1.num_batches_tracked"].item() == 1


# --------------------------------------------------------------------------------------------------------------------
# A batch in parts


def gradients(vit: nn.Module, data: Batch, *, accumulate: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradient of every parameter, as plain SGD at rate 1 shows it, and what was reported."""
    optimizers = build_optimizers(vit, OptimConfig(name="sgd", lr=1.0, weight_decay=0, betas=(0.0, 0.0)), batch_size=1024)
    before = {name: p.detach().clone() for name, p in vit.named_parameters()}
    losses = Step(learner(vit), optimizers, clip_norm=1e9, accumulate=accumulate)(data)
    return {name: before[name] - p.detach() for name, p in vit.named_parameters()}, losses


@given(parts=st.integers(1, 6), size=st.integers(1, 12), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_accumulated_gradients_are_those_of_the_large_batch(parts: int, size: int, seed: int) -> None:
    """Also where the parts can't be equal, or are more than there are images: files may have gone missing."""
    torch.manual_seed(seed)
    vit = ViT(img_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    whole, expected = gradients(copy.deepcopy(vit), batch(size), accumulate=1)
    summed, losses = gradients(vit, batch(size), accumulate=parts)
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert losses.keys() == expected.keys() == {"loss", "accuracy", "grad_norm"}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=1e-6, rtol=1e-5, msg=name)


@given(size=st.integers(1, 40), count=st.integers(1, 8))
def test_parts_are_the_whole_and_as_equal_as_can_be(size: int, count: int) -> None:
    whole = dataclasses.replace(batch(size), patch_size=2)
    parts = [whole.part(i, count) for i in range(count)]
    for name in ("images", "targets", "labels", "indexes"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    lengths = {len(part) for part in parts}
    assert max(lengths) - min(lengths) <= (size % count > 0)
    assert {part.patch_size for part in parts} == {2}


def test_each_part_is_a_pass_of_its_own_and_the_weights_move_once() -> None:
    vit, seen = model(), []
    optimizers = build_optimizers(vit, OptimConfig(), batch_size=1024)

    def objective(net: nn.Module, part: Batch) -> dict[str, Tensor]:
        seen.append((part.indexes.tolist(), net.get_parameter("head.weight").detach().clone()))
        return {"loss": net(part.images).square().mean()}

    Step(learner(vit, objective), optimizers, accumulate=3)(batch(6))
    assert [indexes for indexes, _ in seen] == [[0, 1], [2, 3], [4, 5]]
    assert all(torch.equal(weights, seen[0][1]) for _, weights in seen)
    [adamw] = optimizers.parts
    assert {values["step"].item() for values in adamw.state.values()} == {1.0}


def test_batch_norm_takes_each_part_for_its_batch() -> None:
    """The caveat of `Step.accumulate`, and how a frozen one keeps still."""
    vit = model().train()
    Step(learner(vit), build_optimizers(vit, OptimConfig(), batch_size=4), accumulate=2)(batch())
    assert vit.get_buffer("patch_embed.stem.1.num_batches_tracked").item() == 2
    frozen = model().train()
    step = Step(learner(frozen), build_optimizers(frozen, OptimConfig(freeze=1), batch_size=4), accumulate=2)
    mean = frozen.get_buffer("patch_embed.stem.1.running_mean").clone()
    step(batch())
    assert torch.equal(frozen.get_buffer("patch_embed.stem.1.running_mean"), mean)
    assert frozen.blocks.training


def test_statistics_are_kept_for_as_long_as_they_should() -> None:
    vit = model().train()
    step = Step(learner(vit), build_optimizers(vit, OptimConfig(), batch_size=4))
    mean = vit.get_buffer("patch_embed.stem.1.running_mean").clone()
    step.keep_statistics(True)
    step(batch())
    assert torch.equal(vit.get_buffer("patch_embed.stem.1.running_mean"), mean)
    step.keep_statistics(False)
    step(batch())
    assert not torch.equal(vit.get_buffer("patch_embed.stem.1.running_mean"), mean)
    frozen = model().train()
    step = Step(learner(frozen), build_optimizers(frozen, OptimConfig(freeze=1), batch_size=4))
    step(batch())
    step.keep_statistics(False)
    assert not any(norm.training for norm in step.frozen_norms), "a frozen one keeps its own in any case"
    assert step.frozen_norms


# --------------------------------------------------------------------------------------------------------------------
# fp16


class Steep(Backbone):
    """One weight, and a gradient of whatever size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))
        self.bias = nn.Parameter(torch.ones(2))

    def stages(self) -> list[Stage]:
        return [Stage("all", ("weight", "bias"))]

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(torch.ones(1, 2), self.weight, self.bias)


class Overflow(torch.autograd.Function):
    """Turns a gradient above fp16's largest number into infinity, as fp16 does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Tensor:
        return gradient[0].half().float()


def scaled_step(steepness: float, *, scale: float, clip_norm: float | None = None) -> tuple[Steep, Step]:
    net = Steep()

    def objective(model: nn.Module, data: Batch) -> dict[str, Tensor]:
        return {"loss": steepness * Overflow.apply(model(data.images)).sum()}

    optimizers = build_optimizers(net, OptimConfig(name="sgd", lr=1.0, weight_decay=0, betas=(0, 0)), batch_size=1024)
    return net, Step(learner(net, objective), optimizers, clip_norm=clip_norm, scaler=GradScaler("cpu", init_scale=scale))


def test_a_scaled_loss_moves_the_weights_as_an_unscaled_one() -> None:
    net, step = scaled_step(0.25, scale=1024.0, clip_norm=10.0)
    losses = step(batch())
    torch.testing.assert_close(net.bias.detach(), torch.full((2,), 0.75))
    assert losses["loss"].item() == 0.25 * 6, "not scaled"
    assert losses["grad_norm"].item() == pytest.approx((6 * 0.25**2) ** 0.5)
    assert losses["loss_scale"].item() == 1024


def test_gradients_that_overflow_skip_the_step_and_are_no_fault() -> None:
    net, step = scaled_step(1.0, scale=2.0**18, clip_norm=1.0)
    for scale in (2.0**18, 2.0**17, 2.0**16):  # fp16 ends at 65,504
        losses = step(batch())
        assert "grad_norm" not in losses
        assert losses["loss_scale"].item() == scale
        assert torch.equal(net.weight, torch.ones(2, 2))
        assert net.weight.grad is None
    assert "grad_norm" in step(batch())
    assert not torch.equal(net.weight, torch.ones(2, 2))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradients_that_overflow_without_a_scale_are_one(clip_norm: float | None) -> None:
    net, step = scaled_step(1e6, scale=4.0, clip_norm=clip_norm)
    assert [math.isfinite(step(batch()).get("grad_norm", torch.zeros(())).item()) for _ in range(3)] == [True, True, False]
    assert torch.equal(net.weight, torch.ones(2, 2))


def test_one_optimizer_that_overflows_holds_all_of_them() -> None:
    """Muon's gradients overflow, AdamW's do not: half a step would be no step of either."""
    vit = model()
    optimizers = build_optimizers(vit, OptimConfig(name="muon"), batch_size=1024)
    assert len(optimizers.parts) == 2

    def objective(net: nn.Module, data: Batch) -> dict[str, Tensor]:
        return {"loss": net.get_parameter("head.bias").sum() + 1e30 * 1e30 * net.get_parameter("blocks.0.mlp.fc1.weight").sum()}

    before = {name: p.detach().clone() for name, p in vit.named_parameters()}
    Step(learner(vit, objective), optimizers, scaler=GradScaler("cpu"))(batch())
    assert all(torch.equal(p, before[name]) for name, p in vit.named_parameters())


def test_only_fp16_needs_a_scaler() -> None:
    cpu = torch.device("cpu")
    assert loss_scaler(cpu, None) is loss_scaler(cpu, torch.bfloat16) is None
    assert isinstance(loss_scaler(cpu, torch.float16), GradScaler)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_learns_on_cuda() -> None:
    device = torch.device("cuda")
    vit, data = model().to(device), batch()
    data = dataclasses.replace(data, **{k: getattr(data, k).to(device) for k in ("images", "targets", "labels", "indexes")})
    optimizers = build_optimizers(vit, OptimConfig(lr=0.01), batch_size=1024)
    half = loss_scaler(device, torch.float16)
    move = Step(learner(vit), optimizers, autocast_dtype=torch.float16, clip_norm=1.0, scaler=half)
    losses = [move(data)["loss"].item() for _ in range(30)]
    assert losses[-1] < losses[0] - 0.01
