"""Which parameter goes where, and how fast it moves, by value."""

from __future__ import annotations

import copy
import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner import Whole, learner
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from vitrail.data.batch import Batch
from vitrail.models import ViT
from vitrail.settings import OptimConfig
from vitrail.train.muon import Muon
from vitrail.train.optim import FROZEN, build_optimizers, group_table, lr_factor
from vitrail.train.step import Ema, Step


def model(**fields: object) -> ViT:
    base = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    return ViT(**base | fields)


def batch() -> Batch:
    labels = torch.arange(6) % 3
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images=images, targets=torch.eye(3)[labels], labels=labels, indexes=torch.arange(6))


def objective(vit: nn.Module, data: Batch) -> dict[str, Tensor]:
    """Both heads learn, and every one of the tokens has a gradient."""
    return {"loss": vit(data.images).square().sum()}


EVERYTHING = {"dist_token": True, "reg_tokens": 1, "stem": "conv", "pool": "map", "init_values": 0.1, "qk_norm": True}


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("fields", [{}, EVERYTHING | {"head": "mlp", "mlp": "swiglu"}])
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_every_parameter_is_in_exactly_one_group(name: str, fields: dict[str, object], layer_decay: float) -> None:
    vit = model(**fields)
    vit.head.bias.requires_grad_(False)  # type: ignore[union-attr]
    config = OptimConfig(name=name, layer_decay=layer_decay)  # type: ignore[arg-type]
    optimizers = build_optimizers(vit, config, batch_size=256)
    grouped = [id(p) for group in optimizers.groups() for p in group["params"]]
    learned = {id(p) for p in vit.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == learned
    rows = group_table(vit, config)
    assert [(row.name, row.optimizer == FROZEN) for row in rows] == [
        (name, not p.requires_grad) for name, p in vit.named_parameters()
    ]


def test_what_is_decayed_by_name() -> None:
    rows = {row.name: row for row in group_table(model(**EVERYTHING), OptimConfig(weight_decay=0.1))}
    for name, row in rows.items():
        plain = name.endswith(("bias", "gamma", "cls_token", "dist_token", "reg_token", "pos_embed", "latent"))
        norm = "norm" in name or (name.startswith("patch_embed.stem") and len(row.shape) == 1)
        assert row.weight_decay == (0.0 if plain or norm else 0.1), name
    assert rows["blocks.0.attn.qkv.weight"].weight_decay == rows["patch_embed.proj.weight"].weight_decay == 0.1
    assert rows["head.weight"].weight_decay == rows["attn_pool.q.weight"].weight_decay == 0.1


def test_layer_decay_by_depth() -> None:
    rows = {row.name: row.lr_factor for row in group_table(model(**EVERYTHING), OptimConfig(layer_decay=0.5))}
    for name, factor in {
        "head.weight": 1.0,
        "head_dist.bias": 1.0,
        "norm.weight": 1.0,
        "attn_pool.latent": 1.0,
        "blocks.1.mlp.fc1.weight": 0.5,
        "blocks.0.norm1.bias": 0.25,
        "patch_embed.proj.weight": 0.125,
        "patch_embed.stem.0.weight": 0.125,
        "pos_embed": 0.125,
        "cls_token": 0.125,
        "dist_token": 0.125,
        "reg_token": 0.125,
    }.items():
        assert rows[name] == factor, name
    with pytest.raises(ValueError, match=r"^optim.layer_decay 0.5 needs a model with blocks; use 1.0$"):
        group_table(Whole(nn.Linear(2, 2)), OptimConfig(layer_decay=0.5))


def test_muon_gets_the_blocks_matrices_and_no_others() -> None:
    vit = model(**EVERYTHING)
    optimizers = build_optimizers(vit, OptimConfig(name="muon"), batch_size=1024)
    assert {type(part) for part in optimizers.parts} == {Muon, AdamW}
    names = {id(p): n for n, p in vit.named_parameters()}
    [muon] = [part for part in optimizers.parts if isinstance(part, Muon)]
    got = sorted(names[id(p)] for group in muon.param_groups for p in group["params"])
    matrices = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert got == sorted(f"blocks.{i}.{name}.weight" for i in range(2) for name in matrices)


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_the_rate_is_scaled_linearly_with_the_batch_and_set_as_a_share(name: str) -> None:
    config = OptimConfig(name=name, lr=2e-3, layer_decay=0.5)  # type: ignore[arg-type]
    optimizers = build_optimizers(model(), config, batch_size=256)
    peaks = sorted({group["peak_lr"] for group in optimizers.groups()})
    assert peaks == pytest.approx([5e-4 * 0.125, 5e-4 * 0.25, 5e-4 * 0.5, 5e-4])
    optimizers.set_lr(0.1)
    for group in optimizers.groups():
        assert group["lr"] == pytest.approx(0.1 * group["peak_lr"])


def test_settings_reach_the_optimizers() -> None:
    [adamw] = build_optimizers(model(), OptimConfig(betas=(0.8, 0.9)), batch_size=1).parts
    assert isinstance(adamw, AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.9)
    [sgd] = build_optimizers(model(), OptimConfig(name="sgd", betas=(0.7, 0.9)), batch_size=1).parts
    assert isinstance(sgd, SGD)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.7, True)


def test_all_parts_move_and_forget() -> None:
    vit = model()
    optimizers = build_optimizers(vit, OptimConfig(name="muon"), batch_size=1024)
    before = {name: p.detach().clone() for name, p in vit.named_parameters()}
    vit(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizers.step()
    optimizers.zero_grad()
    for name, parameter in vit.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.grad is None


# --------------------------------------------------------------------------------------------------------------------
# Frozen blocks


def frozen_names(vit: nn.Module, config: OptimConfig) -> set[str]:
    return {row.name for row in group_table(vit, config) if row.optimizer == FROZEN}


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
@pytest.mark.parametrize("freeze", [0, 1, 2, 3])
@pytest.mark.parametrize("fields", [{"pre_norm": True}, EVERYTHING])
def test_frozen_blocks_do_not_move_and_the_others_do(name: str, freeze: int, fields: dict[str, object]) -> None:
    vit = model(depth=3, **fields).train()
    config = OptimConfig(name=name, freeze=freeze, lr=0.1, weight_decay=0.5)  # type: ignore[arg-type]
    optimizers = build_optimizers(vit, config, batch_size=1024)
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    step = Step(learner(vit, objective), optimizers)
    for _ in range(2):
        step(batch())

    blocks = tuple(f"blocks.{i}." for i in range(freeze))
    embedding = ("patch_embed.", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre.")
    for key, value in vit.state_dict().items():
        stays = bool(freeze) and key.startswith((*embedding, *blocks))
        assert torch.equal(value, before[key]) == stays, key
    expected = {key for key, _ in vit.named_parameters() if freeze and key.startswith((*embedding, *blocks))}
    assert frozen_names(vit, config) == expected
    assert {key for key, p in vit.named_parameters() if not p.requires_grad} == expected
    for row in group_table(vit, config):
        assert (row.optimizer == FROZEN) == (row.lr_factor == 0)
        assert row.weight_decay == 0 or row.optimizer != FROZEN


def test_no_gradients_are_computed_below_what_learns() -> None:
    vit = model(depth=3).train()
    build_optimizers(vit, OptimConfig(freeze=2), batch_size=1024)
    features = vit.outputs(torch.randn(2, 3, 8, 8)).features
    assert [tokens.requires_grad for tokens in features] == [False, False, True]
    vit.checkpointing = True
    vit(torch.randn(2, 3, 8, 8)).sum().backward()
    assert {key for key, p in vit.named_parameters() if p.grad is not None} == {
        key for key, _ in vit.named_parameters() if key.startswith(("blocks.2", "norm", "head"))
    }


@pytest.mark.parametrize(("depth", "freeze"), [(2, 2), (2, "all"), (5, "all")])
def test_all_blocks_frozen_leave_the_last_norm_and_the_head(depth: int, freeze: int | Literal["all"]) -> None:
    vit = model(depth=depth, **EVERYTHING)
    build_optimizers(vit, OptimConfig(freeze=freeze), batch_size=1)
    learned = {key.partition(".")[0] for key, p in vit.named_parameters() if p.requires_grad}
    assert learned == {"norm", "attn_pool", "head", "head_dist"}


def test_a_running_mean_has_frozen_weights_as_they_are() -> None:
    vit = model(stem="conv").train()
    ema = Ema(vit, copy.deepcopy(vit), 0.9)
    step = Step(learner(vit, objective), build_optimizers(vit, OptimConfig(freeze=1, lr=0.1), batch_size=1024))
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    for i in range(12):
        vit.train()  # as the loop does behind every evaluation
        step(batch())
        ema.update(i)
    for key, value in ema.mean.state_dict().items():
        frozen = key.startswith(("patch_embed.", "cls_token", "pos_embed", "blocks.0."))
        assert torch.equal(value, before[key]) == frozen, key


def test_more_frozen_blocks_than_there_are() -> None:
    with pytest.raises(
        ValueError, match=r'^optim.freeze 3 is too much: the model has 2 blocks; use "all" to train its head alone$'
    ):
        group_table(model(), OptimConfig(freeze=3))
    with pytest.raises(ValueError, match=r"^optim.freeze 1 is too much: the model has no blocks; use 0$"):
        group_table(Whole(nn.Linear(2, 2)), OptimConfig(freeze=1))
    with pytest.raises(ValueError, match=r'^optim.freeze "all" needs a model with blocks; use 0, or `vitrail probe`, which'):
        group_table(Whole(nn.Linear(2, 2)), OptimConfig(freeze="all"))
    with pytest.raises(ValueError, match=r"^optim.freeze -1 must not be negative$"):
        OptimConfig(freeze=-1)


# --------------------------------------------------------------------------------------------------------------------
# The schedule


@pytest.mark.parametrize(
    ("schedule", "progress", "warmup", "value"),
    [
        ("cosine", 0.0, 0.0, 1.0),
        ("cosine", 0.5, 0.0, 0.5),
        ("cosine", 0.25, 0.0, 0.5 * (1 + math.cos(math.pi / 4))),
        ("cosine", 1.0, 0.0, 0.0),
        ("cosine", 0.0, 0.2, 0.0),
        ("cosine", 0.05, 0.2, 0.25),
        ("cosine", 0.2, 0.2, 1.0),
        ("cosine", 0.6, 0.2, 0.5),
        ("cosine", 1.0, 0.2, 0.0),
        ("linear", 0.6, 0.2, 0.5),
        ("linear", 0.8, 0.2, 0.25),
        ("linear", 1.0, 0.2, 0.0),
        ("constant", 0.1, 0.2, 0.5),
        ("constant", 1.0, 0.2, 1.0),
        ("cosine", 0.5, 1.0, 0.5),
        ("cosine", 1.0, 1.0, 1.0),
    ],
)
def test_the_schedule_by_value(schedule: str, progress: float, warmup: float, value: float) -> None:
    assert lr_factor(progress, schedule=schedule, warmup=warmup) == pytest.approx(value, abs=1e-12)


@given(
    progress=st.floats(0, 1),
    later=st.floats(0, 1),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_the_schedule_stays_between_0_and_1_and_falls_behind_its_peak(
    progress: float, later: float, warmup: float, schedule: str
) -> None:
    first, second = sorted((progress, later))
    a, b = (lr_factor(p, schedule=schedule, warmup=warmup) for p in (first, second))
    assert 0 <= a <= 1
    assert 0 <= b <= 1
    if second <= warmup:
        assert a <= b + 1e-12
    if first >= warmup:
        assert b <= a + 1e-12
