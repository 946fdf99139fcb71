"""What the model promises beyond its numbers: any size, masks, dropouts in their places, recomputing, heads."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

from cases import some_slow
from vitrail.evaluate.features import embed
from vitrail.models import ViT
from vitrail.models import attention as attention_module
from vitrail.models import vit as vit_module
from vitrail.models.attention import attend, attention_weights
from vitrail.models.backbone import View
from vitrail.models.positions import resize_positions, token_mask
from vitrail.models.vit import DropPath
from vitrail.settings import OptimConfig
from vitrail.train.optim import group_table

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}


def tiny(**fields: object) -> ViT:
    """A small model whose every part matters to the logits."""
    torch.manual_seed(0)
    model = ViT(**TINY | fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def images(height: int = 16, width: int = 16, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------------------
# Any size


def test_positions_at_the_trained_size_are_the_parameter_itself() -> None:
    model = tiny()
    assert model.positions(model.grid) is model.pos_embed
    with torch.inference_mode():
        assert model.positions(model.grid) is model.pos_embed
    assert not model._positions


def test_positions_are_kept_while_nothing_is_learned_and_only_then() -> None:
    model = tiny()
    with torch.no_grad():
        first = model.positions((6, 5))
        assert model.positions((6, 5)) is first
        assert model.positions((5, 6)) is not first
        assert model.positions((6, 5)) is first
    learned = model.positions((6, 5))
    assert learned is not first
    assert learned.requires_grad
    learned.sum().backward()
    assert model.get_parameter("pos_embed").grad is not None


def positions_are_right(model: ViT) -> None:
    pos = model.get_parameter("pos_embed").detach().clone()
    with torch.no_grad():
        assert torch.equal(model.positions((6, 6)), resize_positions(pos, old=(4, 4), new=(6, 6), prefix=1))


def test_kept_positions_are_not_stale() -> None:
    model, other = tiny(), tiny()
    positions_are_right(model)
    with torch.no_grad():
        model.get_parameter("pos_embed").mul_(2)
    positions_are_right(model)
    model.load_state_dict(other.state_dict())
    positions_are_right(model)
    for _ in range(3):  # the memory of one that was let go may be used again
        model.load_state_dict({key: torch.randn_like(value) for key, value in other.state_dict().items()}, assign=True)
        positions_are_right(model)
    for fused in (False, True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        model(images(24, 24)).sum().backward()
        optimizer.step()
        positions_are_right(model)
    with torch.no_grad():
        torch._foreach_lerp_(list(model.parameters()), [torch.zeros_like(p) for p in model.parameters()], 0.5)
    positions_are_right(model)
    model.to(torch.float64)
    positions_are_right(model)


def test_inference_mode_then_gradients() -> None:
    model = tiny()
    with torch.inference_mode():
        model(images(24, 24))
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    model(images(24, 24)).sum().backward()  # kept positions made under inference_mode would not be allowed here
    model.requires_grad_(True)
    model(images(24, 24)).sum().backward()
    assert model.get_parameter("pos_embed").grad is not None


def test_a_model_made_under_inference_mode_takes_any_size() -> None:
    with torch.inference_mode():
        assert tiny()(images(24, 24)).shape == (2, 5)


@pytest.mark.parametrize(("size", "said"), [((16, 18), "18 is not a multiple of patch 4; use 16"), ((3, 16), "3 .*; use 4")])
def test_a_size_that_the_patch_does_not_divide(size: tuple[int, int], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^image side {said}, or pad=True$"):
        tiny()(images(*size))
    with pytest.raises(ValueError, match=rf"^image side {said}, or another patch_size$"):  # which nothing can pad yet
        tiny(img_size=size)


def test_other_channels_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^images have 1 channels, and the model takes 3; convert the images$"):
        tiny()(torch.zeros(1, 1, 16, 16))


def test_padding_is_zeros_on_the_right_and_below() -> None:
    model, x = tiny(), images(14, 17)
    padded = torch.zeros(2, 3, 16, 20)
    padded[..., :14, :17] = x
    with torch.no_grad():
        assert torch.equal(model(x, pad=True), model(padded))
        assert torch.equal(model(images(), pad=True), model(images()))


@pytest.mark.parametrize("pool", ["cls", "avg", "map"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_stands_in_masked_patches_changes_no_logit(pool: str, dtype: torch.dtype) -> None:
    model = tiny(pool=pool, reg_tokens=1).to(dtype)
    x = images(17, 22).to(dtype)
    sizes = torch.tensor([[17, 6], [8, 22]])  # 5 x 2 and 2 x 6 patches of 5 x 6
    garbage = x.clone()
    garbage[0, :, :, 8:] = 1e3
    garbage[1, :, 8:] = -1e3
    with torch.no_grad():
        clean = model(x, pad=True, sizes=sizes)
        assert torch.equal(model(garbage, pad=True, sizes=sizes), clean)
        assert not torch.equal(model(garbage, pad=True), model(x, pad=True))
        outputs = model.outputs(garbage, pad=True, sizes=sizes)
    assert torch.equal(outputs.logits, clean)


def test_a_masked_image_is_the_image_without_its_margin() -> None:
    """With no position embedding, the patches that are left out might as well not be there."""
    for pool in ("cls", "avg", "map"):
        model, x = tiny(pool=pool, pos_embed="none"), images(16, 24)
        with torch.no_grad():
            masked = model(x, sizes=torch.tensor([[8, 12], [8, 12]]))
            torch.testing.assert_close(masked, model(x[..., :8, :12]), atol=1e-5, rtol=1e-5)


def test_a_patch_with_one_pixel_of_the_image_is_there() -> None:
    mask = token_mask(torch.tensor([[5, 4]]), grid=(3, 2), patch=(4, 4), prefix=tiny(reg_tokens=2).prefix_tokens)
    assert mask.tolist() == [[True] * 3 + [True, False, True, False, False, False]]


@pytest.mark.parametrize("pool", ["cls", "avg", "map"])
def test_dropped_patches_are_masked_with_their_images(pool: str) -> None:
    """Patches are drawn without regard to the mask: an image all of whose patches go must not end in nan."""
    model = tiny(patch_drop_rate=0.9, pool=pool).train()
    logits = model(images(32, 32, batch=64), sizes=torch.tensor([[4, 4]]).expand(64, 2))
    assert logits.isfinite().all()


# --------------------------------------------------------------------------------------------------------------------
# Attention


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_fused_and_explicit_attention_agree(
    monkeypatch: pytest.MonkeyPatch, masked: bool, dtype: torch.dtype, within: float
) -> None:
    q, k, v = torch.randn(3, 2, 3, 9, 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    mask = torch.arange(9) < torch.tensor([[5], [9]]) if masked else None
    explicit = attention_weights(q, k, mask) @ v
    monkeypatch.setattr(attention_module, "attention_weights", lambda *_: pytest.fail("not the fused way"))
    monkeypatch.setattr(attention_module, "PLAIN_ATTENTION_MAX_TOKENS", 0)
    torch.testing.assert_close(attend(q, k, v, mask, dropout=0.0), explicit, atol=within, rtol=within)


def test_bf16_on_a_cpu_goes_the_plain_way_up_to_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 1, 4, 8, dtype=torch.bfloat16)
    calls = []
    monkeypatch.setattr(attention_module, "attention_weights", lambda q, *_: calls.append(1) or torch.ones(1, 1, 4, 4).to(q))
    attend(q, q, q, None, dropout=0.0)
    assert calls == [1]
    attend(q.float(), q.float(), q.float(), None, dropout=0.0)
    monkeypatch.setattr(attention_module, "PLAIN_ATTENTION_MAX_TOKENS", 3)
    attend(q, q, q, None, dropout=0.0)
    assert calls == [1]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_autocast_is_close_to_fp32(qk_norm: bool) -> None:
    model = tiny(qk_norm=qk_norm)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(images())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), model(images()), atol=0.15, rtol=0.1)


# --------------------------------------------------------------------------------------------------------------------
# Dropouts


def test_stochastic_depth_ramps_linearly() -> None:
    model = tiny(drop_path_rate=0.3, depth=4)
    rates = [(block.drop_path1.rate, block.drop_path2.rate) for block in model.blocks]  # type: ignore[union-attr]
    assert rates == [pytest.approx((rate, rate)) for rate in (0.0, 0.1, 0.2, 0.3)]
    assert [tiny(depth=1, drop_path_rate=0.3).blocks[0].drop_path1.rate] == [0.0]  # type: ignore[union-attr]


def test_stochastic_depth_drops_whole_branches_of_single_images() -> None:
    model = tiny(depth=2, drop_path_rate=0.999).train()
    block, x = model.blocks[1], torch.randn(8, 5, 24)
    torch.manual_seed(0)
    assert torch.equal(block(x), x), "at a rate of 0.999 no image keeps a branch"
    assert not torch.equal(block.eval()(x), x)

    drop = DropPath(0.25).train()
    kept = drop(torch.ones(4000, 2, 3))
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept)), "an image is dropped as a whole"
    assert kept.mean().item() == pytest.approx(1.0, abs=5 * math.sqrt(0.25 / 0.75 / 4000))
    assert drop(torch.ones(2, 2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_stochastic_depth_of_a_loaded_model_knows_its_rate() -> None:
    """Models are made on the meta device, where tensors hold no numbers, and filled with a checkpoint's."""
    with torch.device("meta"):
        drop = DropPath(0.25).train()
    assert sorted(set(drop.half()(torch.ones(100, 2, 3)).flatten().tolist())) == pytest.approx([0.0, 1 / 0.75])


DROPOUTS = ["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "patch_drop_rate", "drop_path_rate"]


def traced(model: ViT, x: Tensor) -> dict[str, Tensor]:
    """What leaves each place where something can be dropped."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> object:
        return lambda module, args, out: seen.__setitem__(name, out.detach())

    last = model.blocks[-1]
    assert isinstance(last, vit_module.Block)
    for name, module in {
        "pos_drop_rate": model.pos_drop,
        "proj_drop_rate": last.mlp.drop,
        "drop_path_rate": last.drop_path2,
        "drop_rate": model.head_drop,
    }.items():
        module.register_forward_hook(note(name))
    model(x)
    return seen


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_makes_training_random_and_leaves_evaluation(name: str) -> None:
    model, plain = tiny(**{name: 0.5}), tiny()
    with torch.no_grad():
        assert torch.equal(model(images()), plain(images()))
        model.train()
        assert not torch.equal(model(images()), model(images()))
        plain.train()
        assert torch.equal(plain(images()), plain(images()))


@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_reaches_its_own_place_and_no_other(name: str) -> None:
    model = tiny(**{name: 0.5}, depth=2, pool="avg").train()
    seen = traced(model, images(batch=16))
    whole = (seen.pop("drop_path_rate").flatten(1) == 0).all(dim=1).float().mean()  # elements that dropout lost pass through
    zeros = {place: bool((out == 0).float().mean() > 0.2) for place, out in seen.items()} | {
        "drop_path_rate": bool(whole > 0.2)
    }
    assert zeros == {place: place == name for place in zeros}
    tokens = model.embed(images(), pad=False, sizes=None)[0].shape[1]
    assert tokens == (1 + 8 if name == "patch_drop_rate" else 17)


def test_projection_dropout_is_in_both_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(proj_drop_rate=0.5).train()
    block = model.blocks[0]
    assert isinstance(block, vit_module.Block)
    x = torch.randn(4, 17, 24)
    for branch in (block.attn, block.mlp):
        assert 0.4 < (branch(x) == 0).float().mean().item() < 0.6
    rates = []
    attend = vit_module.attend
    monkeypatch.setattr(vit_module, "attend", lambda *args, dropout: (rates.append(dropout), attend(*args, dropout=dropout))[1])
    tiny(attn_drop_rate=0.25, depth=1).train()(images())
    tiny(attn_drop_rate=0.25, depth=1)(images())
    assert rates == [0.25, 0.0]


def test_patch_dropout_keeps_prefix_and_order() -> None:
    model = tiny(patch_drop_rate=0.5, reg_tokens=1).train()
    x = torch.arange(18.0)[None, :, None].expand(2, 18, 24).contiguous()
    kept, mask = model.drop_patches(x, None)
    assert mask is None
    assert kept.shape == (2, 2 + 8, 24)
    places = kept[..., 0]
    assert torch.equal(places[:, :2], torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert (places.diff(dim=1) > 0).all()
    assert not torch.equal(places[0], places[1]), "each image loses other patches"


# --------------------------------------------------------------------------------------------------------------------
# Compiled by block

DROPPING = {"drop_path_rate": 0.5, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "init_values": 0.1}
LIFE = [  # batch, side, patch and whether it trains: a run with a smaller last part and evaluations, whose images grow
    (8, 16, 4, True),
    (5, 16, 4, True),
    (8, 16, 4, False),
    (3, 16, 4, False),
    (8, 24, 4, True),
    (8, 16, 8, True),
    (8, 16, 4, False),
]


def compile_blocks(model: ViT) -> list[fx.GraphModule]:
    """Compiles a model by block; every graph that is compiled from here on comes into the list."""
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, inputs: list[object]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend=keep)
    return graphs


@pytest.mark.parametrize("fields", some_slow([{}, DROPPING]))
def test_blocks_share_their_graphs_however_many_there_are(unchecked: ModuleType, fields: dict[str, float]) -> None:
    counts: dict[int, list[int]] = {}
    for depth in (2, 12):
        model = unchecked.ViT(**TINY | fields | {"depth": depth})
        graphs = compile_blocks(model)
        counts[depth] = []
        for batch, side, patch, training in LIFE:
            with torch.inference_mode(not training):
                logits = model.train(training)(images(side, side, batch), patch_size=patch)
            if training:
                logits.sum().backward()
            counts[depth].append(len(graphs))
    assert counts[2] == counts[12]
    assert counts[12][0] == 1
    assert counts[12][-1] <= 5, "training and evaluation: for the first shape, for other batches, for other numbers of tokens"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_drop_at_their_own_rates(unchecked: ModuleType, checkpointing: bool) -> None:
    model = unchecked.ViT(**TINY | DROPPING | {"depth": 4}).train()
    model.checkpointing = checkpointing
    loss, gradients = loss_and_gradients(model, low=False)
    graphs = compile_blocks(model)
    again, computed = loss_and_gradients(model, low=False)
    assert len(graphs) == 1
    torch.testing.assert_close(again, loss)
    for a, b in zip(gradients, computed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Recomputing


def loss_and_gradients(model: nn.Module, *, low: bool) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(7)  # the same dropouts
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        loss = model(images()).float().square().mean()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.fixture
def process_group() -> Iterator[None]:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("low", [False, True])
def test_recomputing_gives_the_same_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, low: bool, distributed: bool) -> None:
    model = tiny(proj_drop_rate=0.2, drop_path_rate=0.3, attn_drop_rate=0.1).train()
    outer: nn.Module = DistributedDataParallel(model) if distributed else model
    loss, gradients = loss_and_gradients(outer, low=low)
    calls = []
    checkpoint = vit_module.checkpoint
    monkeypatch.setattr(vit_module, "checkpoint", lambda *a, **k: (calls.append(1), checkpoint(*a, **k))[1])
    model.checkpointing = True
    again, recomputed = loss_and_gradients(outer, low=low)
    assert len(calls) == 3, "each block is recomputed"
    assert torch.equal(again, loss)
    assert len(gradients) == len(recomputed) == len(list(model.parameters()))
    for a, b in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)
    model.eval()(images())
    assert len(calls) == 3, "evaluation keeps nothing, so recomputes nothing"


# --------------------------------------------------------------------------------------------------------------------
# Heads and weights


def test_the_distillation_heads_are_averaged() -> None:
    model = tiny(dist_token=True)
    with torch.no_grad():
        out = model.outputs(images())
        assert out.dist_logits is not None
        assert not torch.allclose(out.logits, out.dist_logits)
        torch.testing.assert_close(model(images()), (out.logits + out.dist_logits) / 2)
        assert model.head_dist is not None
        torch.testing.assert_close(out.dist_logits, model.head_dist(out.tokens[:, 1]))


def test_outputs_are_what_the_other_calls_give() -> None:
    model = tiny(head="mlp", reg_tokens=1, pool="avg")
    with torch.no_grad():
        out = model.outputs(images())
        assert torch.equal(out.logits, model(images()))
        assert torch.equal(out.tokens, model.forward_features(images()))
        assert [f.shape for f in out.features] == [(2, 18, 24)] * 3
        assert torch.equal(model.norm(out.features[-1]), out.tokens)
        pooled = out.tokens[:, 2:].mean(dim=1)
        torch.testing.assert_close(out.embedding, torch.tanh(model.pre_logits.fc(pooled)))  # type: ignore[union-attr, operator]


def test_without_a_head_the_logits_are_the_embedding() -> None:
    model = tiny()
    with torch.no_grad():
        embedding = model.outputs(images()).embedding
        model.reset_head(0)
        assert torch.equal(model(images()), embedding)
    assert model.config.num_classes == 0
    model.reset_head(7)
    assert model(images()).shape == (2, 7)
    assert model.config.num_classes == 7
    with pytest.raises(ValueError, match=r"^num_classes -1 must not be negative"):
        model.reset_head(-1)


def test_fresh_weights() -> None:
    torch.manual_seed(0)
    model = ViT(img_size=32, patch_size=4, embed_dim=96, depth=2, num_heads=3, num_classes=50, dist_token=True, init_values=0.1)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        elif "gamma" in name:
            assert (value == 0.1).all(), name
        elif "patch_embed" in name:
            assert value.std().item() == pytest.approx((3 * 4 * 4) ** -0.5, rel=0.1)
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.25 if "token" in name else 0.1), name
            assert abs(value.mean().item()) < 0.01, name


# --------------------------------------------------------------------------------------------------------------------
# A backbone: features, views, stages

VARIANTS = [
    {},
    {"dist_token": True, "no_embed_class": True},
    {"class_token": False, "pool": "avg", "reg_tokens": 2},
    {"pool": "map", "mlp": "swiglu", "head": "mlp"},
    {"pool": "cls+avg", "qk_norm": True, "init_values": 0.1},
    {"fc_norm": True, "pool": "avg", "pos_embed": "sincos2d", "pre_norm": True},
    {"stem": "conv", "depth": 0, "pos_embed": "none"},
    {"patch_norm": True, "num_classes": 0},
]


@given(fields=st.sampled_from(VARIANTS), depth=st.integers(0, 3))
@settings(max_examples=30)
def test_stages_partition_the_parameters(fields: dict[str, object], depth: int) -> None:
    model = tiny(**{"depth": depth} | fields)
    stages = model.stages()
    assert [stage.name for stage in stages] == ["stem", *(f"blocks.{i}" for i in range(model.config.depth)), "head"]
    assert model.blocks_in_order() == list(model.blocks)
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        assert [stage.owns(name) for stage in stages].count(True) == 1, name
    for head in model.heads:
        assert stages[-1].owns(f"{head}.weight")


@given(fields=st.sampled_from(VARIANTS), decay=st.sampled_from([0.5, 0.75]))
@settings(max_examples=20)
def test_stages_say_what_layer_decay_says(fields: dict[str, object], decay: float) -> None:
    model = tiny(**fields)
    stages = model.stages()[::-1]
    if not model.config.depth:
        return
    for row in group_table(model, OptimConfig(layer_decay=decay)):
        distance = next(index for index, stage in enumerate(stages) if stage.owns(row.name))
        assert row.lr_factor == decay**distance, row.name
        assert (row.weight_decay > 0) == (len(row.shape) > 1 and row.name not in model.no_decay), row.name


@pytest.mark.parametrize("fields", VARIANTS)
def test_features_are_what_the_other_calls_give(fields: dict[str, object]) -> None:
    model = tiny(**fields)
    with torch.no_grad():
        seen, out = model.features(images()), model.outputs(images())
        assert torch.equal(seen.pooled, out.embedding)
        assert seen.tokens is not None
        assert torch.equal(seen.tokens, out.tokens)
        assert (seen.prefix, seen.grid) == (model.prefix_tokens, (4, 4))
        assert seen.pyramid is not None
        assert torch.equal(seen.pyramid[0].flatten(2).mT, seen.tokens[:, seen.prefix :])
        logits = model.head_logits(images())
        assert len(logits) == len(model.heads)
        torch.testing.assert_close(sum(logits) / len(logits), model(images()))
        assert torch.equal(model.embedding(images()), embed(model, images()))
    assert model.side_unit == (4, 4)


def test_features_of_a_view() -> None:
    model, sizes = tiny(pool="avg"), torch.tensor([[16, 9], [14, 13]])
    with torch.no_grad():
        padded = model.features(images(14, 13), View(pad=True))
        assert padded.grid == (4, 4)
        assert torch.equal(padded.pooled, model.outputs(images(14, 13), pad=True).embedding)
        masked = model.features(images(), View(sizes=sizes))
        assert torch.equal(masked.pooled, model.outputs(images(), sizes=sizes).embedding)
        coarse = model.features(images(), View(patch_size=(8, 4)))
        assert coarse.grid == (2, 4)
        assert torch.equal(coarse.pooled, model.outputs(images(), patch_size=(8, 4)).embedding)
        assert torch.equal(model.head_logits(images(), patch_size=8)[0], model(images(), patch_size=8))


@given(fields=st.sampled_from([fields for fields in VARIANTS if fields.get("stem") != "conv"]), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_visible_patches_in_any_order(fields: dict[str, object], seed: int) -> None:
    """All of them, in order, are the whole image; another order gives the same tokens in that order."""
    model = tiny(**fields)
    order = torch.rand(2, 16, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    with torch.no_grad():
        whole = model.features(images())
        same = model.features(images(), View(visible=torch.arange(16).expand(2, -1)))
        moved = model.features(images(), View(visible=order))
        assert torch.equal(same.pooled, whole.pooled)
        torch.testing.assert_close(moved.pooled, whole.pooled, atol=1e-5, rtol=1e-4)
        assert whole.tokens is not None
        assert moved.tokens is not None
        places = torch.cat([torch.arange(whole.prefix).expand(2, -1), whole.prefix + order], dim=1)[:, :, None]
        torch.testing.assert_close(moved.tokens, whole.tokens.take_along_dim(places, dim=1), atol=1e-5, rtol=1e-4)


def test_hidden_patches_are_as_good_as_masked_ones() -> None:
    model = tiny(pool="avg", reg_tokens=1)
    left = torch.arange(16).view(4, 4)[:, :2].flatten().expand(2, -1)
    with torch.no_grad():
        visible = model.features(images(), View(visible=left))
        masked = model.features(images(), View(sizes=torch.tensor([[16, 8], [16, 8]])))
        torch.testing.assert_close(visible.pooled, masked.pooled)
        both = model.features(images(), View(visible=left, sizes=torch.tensor([[16, 4], [16, 8]])))
        narrow = model.features(images(), View(sizes=torch.tensor([[16, 4], [16, 8]])))
        torch.testing.assert_close(both.pooled, narrow.pooled)
        assert visible.grid == (4, 4)
    with pytest.raises(ValueError, match=r"^patch_drop_rate 0.5 hides patches, and so does `visible`; use rate 0$"):
        tiny(patch_drop_rate=0.5).train().features(images(), View(visible=left))
    with pytest.raises(ValueError, match=r'^stem "conv" looks beyond each patch, so hidden ones would show; use stem "patch"$'):
        tiny(stem="conv").features(images(), View(visible=left))
