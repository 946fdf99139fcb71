from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vitrail.models import ViT
from vitrail.models.describe import _ALLOCATOR, describe
from vitrail.models.modern import ModernViT
from vitrail.settings import SIZES, ViTConfig, pair
from vitrail.settings.families import parse_name
from vitrail.settings.modern import ModernConfig

SMALL = ViTConfig(img_size=32, patch_size=4, in_channels=3, num_classes=10, embed_dim=48, depth=3, num_heads=3)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rectangular": {"img_size": (24, 40), "patch_size": (4, 8)},
    "no class token": {"class_token": False, "pool": "avg"},
    "registers": {"reg_tokens": 4, "pool": "avg"},
    "map pooling": {"pool": "map", "class_token": False},
    "swiglu": {"mlp": "swiglu", "mlp_ratio": 8 / 3},
    "layer scale, qk-norm": {"init_values": 1e-4, "qk_norm": True, "qkv_bias": False},
    "conv stem": {"stem": "conv"},
    "one channel, sin-cos": {"in_channels": 1, "pos_embed": "sincos2d"},
    "no head": {"num_classes": 0},
    "mlp head, distillation": {"head": "mlp", "dist_token": True},
    "wide MLP, no position": {"mlp_ratio": 6.5, "pos_embed": "none"},
    "dropout": {"proj_drop_rate": 0.1},
    "patch dropout": {"patch_drop_rate": 0.5},
    "no blocks": {"depth": 0},
}
OTHER_BLOCKS = (
    *("vit_base_patch16_xp_224", "vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"),
    *("vit_small_patch16_18x2_224", "vit_dwee_patch16_reg1_gap_256", "vit_relpos_small_patch16_224"),
)
MODERN = ("dinov3_s16", "dinov3_splus16", "eva02_s14", "eva02_b16_clip", "pe_spatial_t16", "aimv2_l14", "eva02_e14_clip")
BLOCKS = [fields for fields in VARIANTS.values() if fields.get("depth") != 0]
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())


def image_for(config: ViTConfig) -> Tensor:
    return torch.randn(1, config.in_channels, *pair(config.img_size))


@variants
def test_parameters_tokens_and_weights_are_the_models(fields: dict[str, Any]) -> None:
    config = dataclasses.replace(SMALL, **fields)
    model, it = ViT(config).eval(), describe(config)
    assert it.parameters == sum(p.numel() for p in model.parameters())
    assert it.weights_bytes == sum(v.nbytes for v in model.state_dict().values())
    assert it.tokens == model.forward_features(image_for(config)).shape[1]


@variants
def test_flops_are_those_torch_counts_on_a_real_pass(fields: dict[str, Any]) -> None:
    """With attention as plain products: torch's counter does not know the CPU's fused kernel."""
    config = dataclasses.replace(SMALL, **fields)
    model = ViT(config).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(image_for(config))
    assert describe(config).flops == counter.get_total_flops()


@pytest.mark.parametrize("name", ["Ti/16", "B/16", "L/14", "H/14", "g/14"])
def test_flops_by_hand(name: str) -> None:
    """Two operations for each multiply-add: embedding, four projections and two products a block, head."""
    config = ViTConfig(**parse_name(name))
    dim, hidden = config.embed_dim, round(config.embed_dim * config.mlp_ratio)
    patch = pair(config.patch_size)[0]
    patches = (224 // patch) ** 2
    tokens = patches + 1
    block = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * tokens * tokens * dim
    macs = patches * 3 * patch * patch * dim + config.depth * block + dim * 1000
    it = describe(config)
    assert it.flops == 2 * macs
    assert it.tokens == tokens


def test_published_costs() -> None:
    it = describe(ViTConfig(**parse_name("B/16")))
    assert it.parameters == 86_567_656
    assert it.flops == pytest.approx(35.1e9, rel=0.01)
    assert it.weights_bytes == 4 * it.parameters
    assert it.training_bytes_bf16 == pytest.approx(58e6, rel=0.03)


def saved_bytes(model: ViT, images: Tensor, *, dtype: torch.dtype | None = None) -> int:
    """What autograd really keeps for the backward pass, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {p.shape for p in model.parameters()} | {p.t().shape for p in model.parameters() if p.ndim == 2}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        cast_weight = dtype is not None and tensor.shape in shapes
        if storage.data_ptr() not in weights and not cast_weight:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(images)
        assert logits.requires_grad
    return sum(size for size, _ in kept.values())


@variants
def test_training_memory_is_what_autograd_keeps(fields: dict[str, Any]) -> None:
    config = dataclasses.replace(SMALL, **fields)
    model = ViT(config).train()
    images = torch.cat([image_for(config)] * 4)
    assert describe(config, batch_size=4).training_bytes == pytest.approx(saved_bytes(model, images), rel=0.1)


def test_training_memory_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.models.attention.PLAIN_ATTENTION_MAX_TOKENS", 0)  # fused, as on a GPU
    images = torch.cat([image_for(SMALL)] * 4)
    real = saved_bytes(ViT(SMALL).train(), images, dtype=torch.bfloat16)
    assert describe(SMALL, batch_size=4).training_bytes_bf16 == pytest.approx(real, rel=0.1)


class Meter(TorchDispatchMode):
    """The most bytes that were alive at one time, what was there before apart."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.before = {tensor.untyped_storage()._cdata for tensor in before}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.before:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


@variants
def test_inference_memory_is_what_is_alive_at_once(fields: dict[str, Any]) -> None:
    config = dataclasses.replace(SMALL, **fields)
    model = ViT(config).eval()
    images = torch.cat([image_for(config)] * 4)
    with torch.inference_mode(), Meter(*model.parameters(), *model.buffers(), images) as meter:
        model(images)
    assert describe(config, batch_size=4).inference_bytes == pytest.approx(meter.most + images.nbytes, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "checkpointing", "dtype"),
    [
        *((fields, bool(index % 2), None) for index, fields in enumerate(BLOCKS)),
        *((fields, bool(index % 2), torch.bfloat16) for index, fields in enumerate(BLOCKS)),
        ({}, True, None),
        ({}, True, torch.bfloat16),
    ],
)
def test_peak_of_training_is_what_is_alive_at_once(
    fields: dict[str, Any], checkpointing: bool, dtype: torch.dtype | None
) -> None:
    """But for the allocator's share, which a count of tensors does not see."""
    config = dataclasses.replace(SMALL, **fields)
    images = torch.cat([image_for(config)] * 8)
    with Meter() as meter:
        model = ViT(config).train()
        model.checkpointing = checkpointing
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        images = images.clone()
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
                loss = model(images).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    it = describe(config, batch_size=8)
    peak = it.checkpointing_peak if checkpointing else it.peak
    assert (peak.fp32 if dtype is None else peak.bf16) == pytest.approx(_ALLOCATOR * meter.most, rel=0.15)


def test_checkpointing_and_bf16_take_less_and_never_less_than_the_optimizer() -> None:
    it = describe(ViTConfig(**parse_name("B/16")), batch_size=32)
    assert it.peak.fp32 > it.peak.bf16 > it.checkpointing_peak.fp32 > it.checkpointing_peak.bf16 > 4 * it.weights_bytes


def test_memory_grows_with_the_batch_and_nothing_else_does() -> None:
    one, many = describe(SMALL), describe(SMALL, batch_size=7)
    assert many.training_bytes == 7 * one.training_bytes
    assert many.inference_bytes == 7 * one.inference_bytes
    assert (many.tokens, many.parameters, many.flops, many.weights_bytes) == (
        one.tokens,
        one.parameters,
        one.flops,
        one.weights_bytes,
    )


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: str) -> None:
    it = describe(ViTConfig(**parse_name(f"{size}/14")))
    assert it.training_bytes > it.inference_bytes > 0


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match="not a multiple of patch"):
        describe(dataclasses.replace(SMALL, img_size=30))
    with pytest.raises(ValueError, match="batch_size 0"):
        describe(SMALL, batch_size=0)


@pytest.mark.parametrize("name", OTHER_BLOCKS)
def test_training_memory_of_other_blocks(name: str) -> None:
    shape = {field: getattr(SMALL, field) for field in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    config = ModernConfig(**{**parse_name(name), **shape})
    images, it = torch.cat([image_for(config)] * 4), describe(config, batch_size=4)
    assert it.training_bytes == pytest.approx(saved_bytes(ModernViT(config).train(), images), rel=0.12)


@pytest.mark.parametrize("name", MODERN)
def test_memory_of_modern_vits(name: str) -> None:
    shape = {field: getattr(SMALL, field) for field in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    config = ModernConfig(**{**parse_name(name), **shape})
    images, it = torch.cat([image_for(config)] * 4), describe(config, batch_size=4)
    model = ModernViT(config).train()
    model(images[:1])  # rotations are kept once
    assert it.training_bytes == pytest.approx(saved_bytes(model, images), rel=0.1)
    with torch.inference_mode(), Meter(*model.eval().parameters(), *model.buffers(), images) as meter:
        model(images)
    assert it.inference_bytes == pytest.approx(meter.most + images.nbytes, rel=0.15)
    assert it.tokens == model.forward_features(images).shape[1]
    assert it.parameters == sum(p.numel() for p in model.parameters())
