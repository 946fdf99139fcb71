from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from vitrail.config import OptimConfig
from vitrail.data.batch import Batch
from vitrail.models import ViT
from vitrail.train.optim import build_optimizers
from vitrail.train.step import Ema, Step, classify


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


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def test_cross_entropy_with_soft_targets_by_hand() -> None:
    data = batch()
    logits = torch.randn(4, 3)
    losses = classify(Fixed(logits), data)
    by_hand = 0.0
    for row, target in zip(logits.tolist(), data.targets.tolist(), strict=True):
        total = sum(torch.tensor(row).exp().tolist())
        by_hand -= sum(t * (x - torch.tensor(total).log().item()) for x, t in zip(row, target, strict=True)) / 4
    assert losses["loss"].item() == pytest.approx(by_hand, rel=1e-5)


def test_accuracy_is_the_share_of_heaviest_classes_on_top() -> None:
    logits = batch().targets.clone()
    logits[0] = logits[0].roll(1)
    assert classify(Fixed(logits), batch())["accuracy"].item() == 0.75


def sgd_step(clip_norm: float | None) -> tuple[float, dict[str, Tensor]]:
    """The length of one plain SGD step at learning rate 1, and what was reported."""
    vit = model()
    optimizers = build_optimizers(vit, OptimConfig(name="sgd", lr=1.0, weight_decay=0, betas=(0.0, 0.0)), batch_size=1024)
    before = [p.detach().clone() for p in vit.parameters()]
    losses = Step(vit, optimizers, clip_norm=clip_norm)(batch())
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

    losses = Step(vit, optimizers, objective=objective, autocast_dtype=torch.bfloat16)(batch())
    assert seen == [torch.bfloat16]
    assert set(losses) == {"loss", "extra"}
    assert {p.dtype for p in vit.parameters()} == {torch.float32}
    [adamw] = optimizers.parts
    assert {value.dtype for values in adamw.state.values() for value in values.values()} == {torch.float32}
    Step(vit, optimizers, objective=objective)(batch())
    assert seen == [torch.bfloat16, torch.float32]


def test_the_loss_falls() -> None:
    vit = model()
    move = Step(vit, build_optimizers(vit, OptimConfig(lr=0.01), batch_size=1024), clip_norm=1.0)
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
