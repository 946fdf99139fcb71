from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vitrail.models import ViT
from vitrail.models.backbone import Backbone
from vitrail.models.describe import _ALLOCATOR, describe_model, training_peaks
from vitrail.models.families import build
from vitrail.models.shapes import Ledger, Shapes
from vitrail.settings import SIZES, ViTConfig, pair
from vitrail.settings.baseline import BaselineConfig
from vitrail.settings.beit import BeitConfig
from vitrail.settings.cait import CaitConfig
from vitrail.settings.cvt import CvtConfig
from vitrail.settings.families import parse_name
from vitrail.settings.hybrid import HybridConfig
from vitrail.settings.modern import ModernConfig
from vitrail.settings.swin import SwinConfig
from vitrail.settings.swin_v2 import SwinV2Config
from vitrail.settings.swin_v2_cr import SwinV2CrConfig
from vitrail.settings.vitdet import VitDetConfig

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
MODERN = (
    *("dinov3_s16", "dinov3_splus16", "eva02_s14", "eva02_b16_clip", "pe_spatial_t16", "aimv2_l14", "eva02_e14_clip"),
    *("vit_base_patch16_xp_224", "vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"),
    *("vit_small_patch16_18x2_224", "vit_dwee_patch16_reg1_gap_256", "vit_relpos_small_patch16_224"),
    "vit_small_patch16_rope_mixed_224",
)
SHAPE: dict[str, Any] = {
    field: getattr(SMALL, field) for field in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
}
WINDOWS: dict[str, Any] = {"img_size": 64, "num_classes": 10, "embed_dim": 24, "num_heads": (2, 3, 4), "window_size": 4}
FAMILIES: dict[str, Any] = {
    "swin": SwinConfig(**WINDOWS, depths=(3, 1, 4)),
    "swin, padded": SwinConfig(**{**WINDOWS, "img_size": (50, 71)}, depths=(2, 1, 1), mlp_ratio=2.5),
    "swin_v2": SwinV2Config(**WINDOWS, depths=(3, 1, 2)),
    "swin_v2_cr": SwinV2CrConfig(img_size=64, num_classes=10, embed_dim=24, depths=(3, 1, 2), num_heads=(2, 3, 4)),
    "vitdet": VitDetConfig(
        **{**SHAPE, "img_size": 48, "depth": 4}, num_classes=10, window_size=5, global_blocks=(1, 3), residual_blocks=(3,)
    ),
    "cait": CaitConfig(**SHAPE, num_classes=10, class_depth=3),
    "cvt": CvtConfig(img_size=64, num_classes=10, embed_dims=(8, 12, 16), depths=(1, 2, 3), num_heads=(1, 3, 2)),
    "hybrid": HybridConfig(
        img_size=64, num_classes=10, cnn_depths=(2, 1), cnn_width=32, patch_size=8, embed_dim=24, depth=3, num_heads=3
    ),
    "beit": BeitConfig(**SHAPE, num_classes=10),
    **{name: ModernConfig(**{**parse_name(name), **SHAPE}) for name in MODERN},
}
families = pytest.mark.parametrize("name", FAMILIES)
BLOCKS = [fields for fields in VARIANTS.values() if fields.get("depth") != 0]
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())


def image_for(config: Any, count: int = 1) -> Tensor:
    return torch.randn(count, config.in_channels, *pair(config.img_size))


@variants
def test_parameters_tokens_and_weights_are_the_models(fields: dict[str, Any]) -> None:
    config = dataclasses.replace(SMALL, **fields)
    model, it = ViT(config).eval(), describe_model(config)
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
    assert describe_model(config).flops == counter.get_total_flops()


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
    it = describe_model(config)
    assert it.flops == 2 * macs
    assert it.tokens == tokens


def test_published_costs() -> None:
    it = describe_model(ViTConfig(**parse_name("B/16")))
    assert it.parameters == 86_567_656
    assert it.flops == pytest.approx(35.1e9, rel=0.01)
    assert it.weights_bytes == 4 * it.parameters
    assert it.training_bytes_bf16 == pytest.approx(58e6, rel=0.03)


def saved_bytes(model: Backbone, images: Tensor, *, dtype: torch.dtype | None = None) -> int:
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
    images = image_for(config, 4)
    assert describe_model(config, batch_size=4).training_bytes == pytest.approx(saved_bytes(model, images), rel=0.1)


def test_training_memory_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.models.attention.PLAIN_ATTENTION_MAX_TOKENS", 0)  # fused, as on a GPU
    images = image_for(SMALL, 4)
    real = saved_bytes(ViT(SMALL).train(), images, dtype=torch.bfloat16)
    assert describe_model(SMALL, batch_size=4).training_bytes_bf16 == pytest.approx(real, rel=0.1)


class Meter(TorchDispatchMode):
    """The most bytes that were alive at one time, what was there before apart."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.before = {tensor.untyped_storage()._cdata for tensor in before}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.total, self.most = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.before:
                    self.total += storage.nbytes()
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        if self.total > self.most:  # with what has gone since: only then the look at each is worth its time
            self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
            self.total = sum(size for _, size in self.alive.values())
            self.most = max(self.most, self.total)
        return result


@variants
def test_inference_memory_is_what_is_alive_at_once(fields: dict[str, Any]) -> None:
    config = dataclasses.replace(SMALL, **fields)
    model = ViT(config).eval()
    images = image_for(config, 4)
    with torch.no_grad(), Meter(*model.parameters(), *model.buffers(), images) as meter:
        model(images)
    assert describe_model(config, batch_size=4).inference_bytes == pytest.approx(meter.most + images.nbytes, rel=0.1)


@families
@pytest.mark.parametrize("batch_size", [2, 5])
def test_memory_of_every_family(name: str, batch_size: int) -> None:
    config = FAMILIES[name]
    images, it, model = image_for(config, batch_size), describe_model(config, batch_size=batch_size), build(config)
    assert it.parameters == sum(p.numel() for p in model.parameters())
    assert it.training_bytes == pytest.approx(saved_bytes(model.train(), images), rel=0.08)
    with torch.no_grad(), Meter(*model.eval().parameters(), *model.buffers(), images) as meter:
        model(images)
    assert it.inference_bytes == pytest.approx(meter.most + images.nbytes, rel=0.08)
    tokens = model.features(images).tokens
    assert tokens is not None
    assert it.tokens == (tokens.shape[1] if model.global_attention else None)


def peak_of_steps(config: Any, *, checkpointing: bool, dtype: torch.dtype | None, batch_size: int) -> int:
    """The most bytes that are alive in two steps of training."""
    images = image_for(config, batch_size)
    with Meter() as meter:
        model = build(config).train()
        model.checkpointing = checkpointing
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        images = images.clone()
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
                loss = model(images).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return meter.most


def predicted_peak(config: Any, *, checkpointing: bool, dtype: torch.dtype | None, batch_size: int) -> float:
    """But for the allocator's share, which a count of tensors does not see."""
    peaks = training_peaks(config, batch_size=batch_size)[checkpointing]
    assert peaks is not None
    return (peaks.fp32 if dtype is None else peaks.bf16) / _ALLOCATOR


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
    config: Any = dataclasses.replace(SMALL, **fields)
    how: Any = {"checkpointing": checkpointing, "dtype": dtype, "batch_size": 8}
    assert predicted_peak(config, **how) == pytest.approx(peak_of_steps(config, **how), rel=0.08)


@pytest.mark.parametrize("checkpointing", [False, True])
@families
def test_peak_of_training_of_every_family(name: str, checkpointing: bool) -> None:
    how: Any = {"checkpointing": checkpointing, "dtype": None, "batch_size": 5}
    assert predicted_peak(FAMILIES[name], **how) == pytest.approx(peak_of_steps(FAMILIES[name], **how), rel=0.08)


@pytest.mark.parametrize("name", ["swin", "swin_v2", "cait", "cvt", "vit_pwee_patch16_reg1_gap_256"])
def test_training_memory_in_bf16_of_every_family(name: str) -> None:
    how: Any = {"checkpointing": False, "dtype": torch.bfloat16, "batch_size": 2}
    assert predicted_peak(FAMILIES[name], **how) == pytest.approx(peak_of_steps(FAMILIES[name], **how), rel=0.08)


def test_another_librarys_model_has_memory_too() -> None:
    config = BaselineConfig(name="torchvision:resnet18", img_size=64)
    images, it, model = image_for(config, 4), describe_model(config, batch_size=4), build(config)
    assert it.training_bytes == pytest.approx(saved_bytes(model.train(), images), rel=0.1)
    whole, recomputed = training_peaks(config, batch_size=4)
    assert whole.fp32 > 4 * it.weights_bytes
    assert recomputed is None


def test_checkpointing_and_bf16_take_less_and_never_less_than_the_optimizer() -> None:
    config = ViTConfig(**parse_name("B/16"))
    whole, recomputed = training_peaks(config, batch_size=32)
    assert recomputed is not None
    weights = describe_model(config).weights_bytes
    assert whole.fp32 > whole.bf16 > recomputed.fp32 > recomputed.bf16 > 4 * weights


def test_memory_grows_with_the_batch_and_nothing_else_does() -> None:
    one, many = describe_model(SMALL), describe_model(SMALL, batch_size=7)
    assert many.training_bytes == pytest.approx(7 * one.training_bytes, rel=0.01)
    assert many.inference_bytes == pytest.approx(7 * one.inference_bytes, rel=0.01)
    assert (many.tokens, many.parameters, many.flops, many.weights_bytes) == (
        one.tokens,
        one.parameters,
        one.flops,
        one.weights_bytes,
    )


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: str) -> None:
    it = describe_model(ViTConfig(**parse_name(f"{size}/14")))
    assert it.training_bytes > it.inference_bytes > 0


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match="not a multiple of patch"):
        describe_model(dataclasses.replace(SMALL, img_size=30))
    with pytest.raises(ValueError, match="batch_size 0"):
        describe_model(SMALL, batch_size=0)


def test_a_pass_that_depends_on_values_is_refused() -> None:
    shapes = Shapes(Ledger())
    x = shapes.tensor(torch.empty(3, device="meta"))
    with shapes, pytest.raises(NotImplementedError, match="depends on values"):
        x.sum().item()
    with pytest.raises(AssertionError, match="without data"):
        _ = x + 1


CALLS: list[Callable[[Tensor, Tensor], Tensor]] = [
    *(lambda a, b: a * b, lambda a, b: a + 0.5, lambda a, b: a / 2, lambda a, b: 2 / (a + 1), lambda a, b: a < b),
    *(lambda a, b: torch.cat([a, a], dim=-1), lambda a, b: torch.stack([a, a], dim=1), lambda a, b: a.exp()),
    *(lambda a, b: a.sum(-1), lambda a, b: a.mean((0, 1), keepdim=True), lambda a, b: a.softmax(1), lambda a, b: F.gelu(a)),
    *(lambda a, b: torch.where(a > 0, a, b), lambda a, b: a[:, None][:, :, :1].flatten(1), lambda a, b: a @ a.mT),
    *(lambda a, b: a[..., None] + b[..., None, :], lambda a, b: a[..., None, :] * a[..., None]),
    *(lambda a, b: a.repeat(2, *a.shape), lambda a, b: torch.arange(2, 9, 3) * a.sum(), lambda a, b: a.masked_fill(b > 0, 1)),
]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    kept=st.lists(st.booleans(), min_size=4, max_size=4),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16])] * 2),
    data=st.data(),
)
def test_results_have_the_shape_type_and_strides_of_torchs(
    shape: list[int], kept: list[bool], dtypes: tuple[torch.dtype, torch.dtype], data: st.DataObject
) -> None:
    a = torch.zeros(shape, dtype=dtypes[0]).permute(data.draw(st.permutations(range(len(shape)))))
    b = torch.zeros([side if keep else 1 for side, keep in zip(a.shape, kept, strict=False)], dtype=dtypes[1])
    call = data.draw(st.sampled_from(CALLS))
    expected, shapes = call(a, b), Shapes(Ledger())
    x, y = (shapes.tensor(tensor.to("meta")) for tensor in (a, b))
    with shapes:
        result = call(x, y)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    if result.is_contiguous() != expected.is_contiguous():  # of sides of 1 strides mean nothing
        pytest.fail(f"{result.stride()} is not {expected.stride()}")
