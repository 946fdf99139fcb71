"""Which parameter goes where, and how fast it moves, by value."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW, Muon

from vitrail.config import OptimConfig
from vitrail.models import ViT
from vitrail.train.optim import build_optimizers, group_table, lr_factor


def model(**fields: object) -> ViT:
    base = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    return ViT(**base | fields)


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
    assert [row.name for row in group_table(vit, config)] == [n for n, p in vit.named_parameters() if p.requires_grad]


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
        group_table(nn.Linear(2, 2), OptimConfig(layer_decay=0.5))


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
