"""Every origin's checkpoint computes here what its own code computes: tiny random weights, no download."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from google_reference import forward, random_weights, scanned
from peers import (
    CLASSES,
    DEPTH,
    DIM,
    HEADS,
    PATCH,
    SIDE,
    Peer,
    of_timm,
    random_like,
    randomised,
    renamed,
    same,
    some_images,
    timm_vit,
)
from safetensors.torch import load_file, save_file
from timm.layers.activations import QuickGELU
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionViT
from vit_pytorch import SimpleViT
from vit_pytorch import ViT as VitPytorch

import vitrail
from vitrail.models.receipt import Receipt, Status

Makers = dict[str, Callable[[], Peer]]
OPEN_FIELDS = re.compile(r"(?:do not tell|; nor) (\w+) \(")


# --------------------------------------------------------------------------------------------------------------------
# timm


def of_timms(name: str, *, answers: Mapping[str, Any] | None = None, heads_open: bool = True, **fields: Any) -> Peer:
    model = timm_vit(name, **fields)
    images = some_images(*model.patch_embed.img_size, channels=fields.get("in_chans", 3))
    answers = ({"num_heads": HEADS} if heads_open else {}) | dict(answers or {})
    return Peer("timm", model.state_dict(), images, of_timm(model, images), answers, model=model)


TIMM: Makers = {
    "augreg": lambda: of_timms("vit_small_patch16_224"),
    "augreg without a head": lambda: of_timms("vit_small_patch8_224", num_classes=0, side=32),
    "5 channels": lambda: of_timms("vit_base_patch32_224", in_chans=5, side=96),
    "a mean that a norm stands behind": lambda: of_timms("vit_small_patch16_224", global_pool="avg"),
    "qk-norm, as wide as a head": lambda: of_timms("vit_small_patch16_224", qk_norm=True, qkv_bias=False, heads_open=False),
    "DeiT": lambda: of_timms("deit_small_patch16_224"),
    "DeiT distilled": lambda: of_timms("deit_small_distilled_patch16_224"),
    "DeiT III": lambda: of_timms("deit3_small_patch16_224"),
    "FlexiViT": lambda: of_timms("flexivit_small", answers={"img_size": 64}),  # or a class token and a rectangle
    "DINOv2": lambda: of_timms("vit_small_patch14_dinov2", side=56),
    "DINOv2's giant, SwiGLU": lambda: of_timms("vit_giant_patch14_dinov2", side=56),
    "DINOv2 with registers": lambda: of_timms("vit_small_patch14_reg4_dinov2", side=56),
    "CLIP": lambda: of_timms("vit_base_patch16_clip_224", answers={"mlp": "gelu"}),
    "CLIP, QuickGELU": lambda: of_timms("vit_base_patch16_clip_quickgelu_224", answers={"mlp": "quick_gelu"}),
    "SigLIP": lambda: of_timms("vit_base_patch16_siglip_224", answers={"mlp": "gelu"}),
    "SigLIP, GELU's tanh form": lambda: of_timms("vit_base_patch32_siglip_256", answers={"mlp": "gelu_tanh"}, side=128),
    "SigLIP, mean": lambda: of_timms("vit_base_patch16_siglip_gap_224", answers={"mlp": "gelu"}),
    "sbb": lambda: of_timms("vit_medium_patch16_reg4_gap_256"),
    "sbb, map": lambda: of_timms("vit_so150m_patch16_reg4_map_256", answers={"pool_include_prefix": False}),
    "giant": lambda: of_timms("vit_giant_patch14_224", side=56, embed_dim=66),  # its MLP is 48 / 11 as wide
    "gigantic": lambda: of_timms("vit_gigantic_patch14_224", side=56, embed_dim=78),  # 64 / 13
}


# --------------------------------------------------------------------------------------------------------------------
# The raw files whose names timm took over, made of a model of timm by putting the old names back


def raw_mae() -> Peer:
    peer = of_timms("vit_base_patch16_224", num_classes=0)
    decoder = {
        "mask_token": random_like(1, 1, 32),
        "decoder_pos_embed": random_like(1, 17, 32),
        "decoder_embed.weight": random_like(32, DIM),
        "decoder_blocks.0.attn.qkv.weight": random_like(96, 32),
        "decoder_blocks.1.attn.qkv.weight": random_like(96, 32),
        "decoder_norm.weight": random_like(32),
        "decoder_pred.weight": random_like(768, 32),
    }
    return dataclasses.replace(peer, state={"model": {**peer.state, **decoder}}, dropped=tuple(decoder), model=None)


def raw_dino() -> Peer:
    """The training's checkpoint: student and teacher, each with DINO's head beside its backbone."""
    peer = of_timms("vit_small_patch16_224", num_classes=0)
    student = {name: value + 1 for name, value in peer.state.items()}
    head = {
        "head.mlp.0.weight": random_like(64, DIM),
        "head.mlp.0.bias": random_like(64),
        "head.last_layer.weight_g": random_like(9, 1),
        "head.last_layer.weight_v": random_like(9, 64),
    }
    state = {
        "student": {**renamed(student, "module.backbone."), **renamed(head, "module.")},
        "teacher": {**renamed(peer.state, "backbone."), **head},
        "optimizer": {"state": {0: {"exp_avg": random_like(3)}}},
        "epoch": 3,
        "dino_loss": {"center": random_like(1, 9)},
    }
    return dataclasses.replace(peer, state=state, dropped=tuple(head), model=None)


def raw_dinov2(*, registers: bool = False, giant: bool = False, chunks: bool = False) -> Peer:
    """Registers have no position, the class token has one, and SwiGLU's layers are called w12 and w3."""
    name = "vit_giant_patch14_reg4_dinov2" if giant else "vit_small_patch14_reg4_dinov2"
    peer = of_timms(name if registers else "vit_small_patch14_dinov2", side=56)
    state = {name: value for name, value in peer.state.items() if not name.startswith("head.")}
    if registers:  # timm has the class token's position added to the token
        place = random_like(1, 1, DIM)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - place
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], dim=1)
    if giant:
        state = {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for name, value in state.items()}
    if chunks:  # of one block each, with empty places before it
        state = {re.sub(r"^blocks\.(\d)", r"blocks.\1.\1", name): value for name, value in state.items()}
    state["mask_token"] = random_like(1, DIM)
    return dataclasses.replace(
        peer,
        origin="DINOv2" if registers else "timm",
        state=state,
        expected={"tokens": peer.expected["tokens"], "embedding": peer.expected["embedding"]},
        dropped=("mask_token",),
        model=None,
    )


def raw_deit3() -> Peer:
    peer = of_timms("deit3_small_patch16_224")
    state = {re.sub(r"\.ls([12])\.gamma", r".gamma_\1", name): value for name, value in peer.state.items()}
    return dataclasses.replace(peer, state={"model": state}, answers={**peer.answers, "pos_embed": "learn"}, model=None)


def raw_eva() -> Peer:
    """EVA's first version, which is plain: keys have no bias."""
    torch.manual_seed(0)
    fields = {"img_size": 56, "embed_dim": DIM, "num_heads": HEADS, "depth": DEPTH, "num_classes": CLASSES}
    model: Any = randomised(timm.create_model("eva_giant_patch14_224", **fields))
    images = some_images(56)
    answers = {"num_heads": HEADS, "pos_embed": "learn"}
    return Peer("timm EVA", model.state_dict(), images, of_timm(model, images), answers, model=model)


RAW: Makers = {
    "MAE": raw_mae,
    "DINO": raw_dino,
    "DINOv2": raw_dinov2,
    "DINOv2, blocks in chunks": lambda: raw_dinov2(chunks=True),
    "DINOv2 with registers": lambda: raw_dinov2(registers=True),
    "DINOv2's giant with registers": lambda: raw_dinov2(registers=True, giant=True),
    "DeiT III": raw_deit3,
    "EVA": raw_eva,
}


# --------------------------------------------------------------------------------------------------------------------
# transformers

SIZES = {"hidden_size": DIM, "num_attention_heads": HEADS, "num_hidden_layers": DEPTH, "image_size": SIDE, "patch_size": PATCH}
WIDE = {**SIZES, "intermediate_size": 2 * DIM}
HEAD = {"num_labels": CLASSES}
TEXT = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 50}
DECODER = {f"decoder_{name}": value for name, value in WIDE.items() if name not in ("image_size", "patch_size")}
IN_ORDER = {"noise": torch.arange((SIDE / PATCH) ** 2).expand(2, -1)}  # of MAE's patches, none of which is masked
TOKENS, LOGITS, POOLED = "tokens=last_hidden_state", "logits=logits", "embedding=pooler_output"
VIT, MSN = {"norm_eps": 1e-12}, {"norm_eps": 1e-6}
QUICK = {"mlp": "quick_gelu"}
MASK = ("embeddings.mask_token",)
POOLER = ("pooler.dense.weight", "pooler.dense.bias")


@torch.no_grad()
def of_transformers(
    cls: str,
    config: Any,
    *parts: str,
    origin: str = "transformers",
    answers: Mapping[str, Any] | None = None,
    tower: str = "",
    **more: Any,
) -> Peer:
    """A class of transformers; `parts` pair our output with theirs, of the whole model or of its `tower`."""
    torch.manual_seed(0)
    model: Any = randomised(getattr(transformers, cls)(config))
    inputs = IN_ORDER if hasattr(config, "mask_ratio") else {}
    out = (getattr(model, tower) if tower else model)(pixel_values=some_images(), **inputs)
    expected = {ours: getattr(out, theirs) for ours, theirs in (part.split("=") for part in parts)}
    return Peer(
        origin, model.state_dict(), some_images(), expected, {"num_heads": HEADS, **(answers or {})}, model=model, **more
    )


def dinov2(cls: str, *parts: str, registers: bool = False, dropped: tuple[str, ...] = MASK, **fields: Any) -> Peer:
    config = transformers.Dinov2WithRegistersConfig if registers else transformers.Dinov2Config
    has = {"norm_eps": 1e-6, "pool": "cls+avg" if "ForImage" in cls else "cls"}
    made = config(**SIZES, mlp_ratio=2, **fields)
    return of_transformers(cls, made, *parts, origin="transformers DINOv2", dropped=dropped, has=has)


def clip(cls: str, *parts: str, act: str = "quick_gelu", whole: bool = False, **more: Any) -> Peer:
    vision = {**WIDE, "hidden_act": act, "projection_dim": 8}
    config = transformers.CLIPVisionConfig(**vision)
    if whole:
        config = transformers.CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=8, **HEAD)
    has = {"norm_eps": 1e-5, "pre_norm": True}
    return of_transformers(cls, config, *parts, origin="transformers CLIP", answers={"mlp": act}, has=has, **more)


def siglip(cls: str, *parts: str, whole: bool = False, **more: Any) -> Peer:
    config = transformers.SiglipVisionConfig(**WIDE)
    if whole:
        config = transformers.SiglipConfig(vision_config=WIDE, text_config=TEXT, **HEAD)
    return of_transformers(cls, config, *parts, origin="transformers SigLIP", has={"mlp": "gelu_tanh"}, **more)


def beit(cls: str, *parts: str, **fields: Any) -> Peer:
    config = transformers.BeitConfig(**WIDE, **{"use_absolute_position_embeddings": True, **fields})
    return of_transformers(cls, config, *parts)


T = transformers
TRANSFORMERS: Makers = {
    "ViT": lambda: of_transformers("ViTModel", T.ViTConfig(**WIDE), TOKENS, answers=VIT, dropped=POOLER),
    "ViT with a head": lambda: of_transformers(
        "ViTForImageClassification", T.ViTConfig(**WIDE, **HEAD, qkv_bias=False), LOGITS, answers=VIT
    ),
    "ViTMAE": lambda: of_transformers("ViTMAEModel", T.ViTMAEConfig(**WIDE, mask_ratio=0.0), TOKENS, answers=VIT),
    "ViTMAE with its decoder": lambda: of_transformers(
        "ViTMAEForPreTraining",
        T.ViTMAEConfig(**WIDE, **DECODER, mask_ratio=0.0),
        TOKENS,
        answers=VIT,
        tower="vit",
        dropped=None,
    ),
    "ViTMSN": lambda: of_transformers("ViTMSNModel", T.ViTMSNConfig(**WIDE), TOKENS, answers=MSN),
    "ViTMSN with a head": lambda: of_transformers(
        "ViTMSNForImageClassification", T.ViTMSNConfig(**WIDE, **HEAD), LOGITS, answers=MSN
    ),
    "DeiT": lambda: of_transformers("DeiTModel", T.DeiTConfig(**WIDE), TOKENS, dropped=POOLER, has=VIT),
    "DeiT with a head, for whose token there is none": lambda: of_transformers(
        "DeiTForImageClassification", T.DeiTConfig(**WIDE, **HEAD), LOGITS, has={**VIT, "dist_token": False, "reg_tokens": 1}
    ),
    "DeiT with both heads": lambda: of_transformers(
        "DeiTForImageClassificationWithTeacher", T.DeiTConfig(**WIDE, **HEAD), LOGITS, has={**VIT, "dist_token": True}
    ),
    "DINOv2": lambda: dinov2("Dinov2Model", TOKENS, POOLED),
    "DINOv2, SwiGLU": lambda: dinov2("Dinov2Model", TOKENS, POOLED, use_swiglu_ffn=True),
    "DINOv2 with a head": lambda: dinov2(
        "Dinov2ForImageClassification", LOGITS, use_swiglu_ffn=True, dropped=("dinov2.embeddings.mask_token",), **HEAD
    ),
    "DINOv2 with registers": lambda: dinov2("Dinov2WithRegistersModel", TOKENS, POOLED, registers=True),
    "DINOv2 with registers and a head": lambda: dinov2(
        "Dinov2WithRegistersForImageClassification",
        LOGITS,
        registers=True,
        dropped=("dinov2_with_registers.embeddings.mask_token",),
        **HEAD,
    ),
    "CLIP's tower": lambda: clip("CLIPVisionModel", POOLED),
    "CLIP's tower, GELU": lambda: clip("CLIPVisionModel", POOLED, act="gelu"),
    "CLIP's tower with its projection": lambda: clip("CLIPVisionModelWithProjection", "logits=image_embeds"),
    "CLIP, whole": lambda: clip("CLIPModel", POOLED, whole=True, tower="vision_model", dropped=None),
    "CLIP with a head": lambda: clip("CLIPForImageClassification", LOGITS, whole=True, dropped=("norm.weight", "norm.bias")),
    "OWL-ViT's tower": lambda: of_transformers(
        "OwlViTVisionModel", T.OwlViTVisionConfig(**WIDE), POOLED, origin="transformers CLIP", answers=QUICK
    ),
    "SigLIP's tower": lambda: siglip("SiglipVisionModel", TOKENS, POOLED),
    "SigLIP, whole": lambda: siglip("SiglipModel", TOKENS, POOLED, whole=True, tower="vision_model", dropped=None),
    "SigLIP with a head": lambda: siglip("SiglipForImageClassification", LOGITS, whole=True, dropped=None),
    "I-JEPA": lambda: of_transformers("IJepaModel", T.IJepaConfig(**WIDE), TOKENS, answers=VIT),
    "I-JEPA with a head": lambda: of_transformers(
        "IJepaForImageClassification", T.IJepaConfig(**WIDE, **HEAD), LOGITS, answers=VIT
    ),
    "BEiT": lambda: beit("BeitModel", POOLED),
    "BEiT with a head": lambda: beit("BeitForImageClassification", LOGITS, **HEAD),
    "BEiT, class token": lambda: beit("BeitForImageClassification", LOGITS, use_mean_pooling=False, **HEAD),
    "BEiT without positions": lambda: beit("BeitModel", POOLED, use_absolute_position_embeddings=False),
}


# --------------------------------------------------------------------------------------------------------------------
# torchvision


@torch.no_grad()
def of_torchvision(*, old: bool = False, **fields: Any) -> Peer:
    torch.manual_seed(0)
    model = randomised(TorchvisionViT(SIDE, PATCH, DEPTH, HEADS, DIM, 2 * DIM, num_classes=CLASSES, **fields))
    state = model.state_dict()
    if old:  # up to version 0.12
        numbers = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
        state = {re.sub(r"\.mlp\.[03]\.", lambda found: numbers[found[0]], name): value for name, value in state.items()}
    head = "mlp" if fields else "linear"
    answers = {"num_heads": HEADS}
    live = None if old else model
    return Peer("torchvision", state, some_images(), {"logits": model(some_images())}, answers, {"head": head}, model=live)


TORCHVISION: Makers = {
    "torchvision": of_torchvision,
    "torchvision, old names": lambda: of_torchvision(old=True),
    "torchvision, a hidden layer in the head": lambda: of_torchvision(representation_size=DIM),
}


# --------------------------------------------------------------------------------------------------------------------
# CLIP, as OpenAI and open_clip write it


@torch.no_grad()
def of_open_clip(*, half: bool = False, quick: bool = False, alone: bool = False, **fields: Any) -> Peer:
    torch.manual_seed(0)
    size = {"layers": DEPTH, "width": DIM, "head_width": DIM // HEADS, "mlp_ratio": 2.0}
    vision = {**size, "patch_size": PATCH, "image_size": SIDE}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model: Any = randomised(open_clip.CLIP(8, {**vision, **fields}, text, quick_gelu=quick))
    if half:  # OpenAI's files are
        model.half().float()
    state = {name: value.half() if half else value for name, value in (model.visual if alone else model).state_dict().items()}
    clipa = "no_ln_pre" in fields
    answers = {"num_heads": HEADS} | ({} if clipa else {"mlp": "quick_gelu" if quick else "gelu"})
    origin, has, dropped = "CLIPA" if clipa else "CLIP", {"norm_eps": 1e-5}, () if alone else None
    live, expected = model.visual if alone else model, {"logits": model.visual(some_images())}
    return Peer(origin, state, some_images(), expected, answers, has, dropped, live)


CLIP: Makers = {
    "OpenAI's CLIP, whole, in half": lambda: of_open_clip(half=True, quick=True),
    "open_clip, whole": of_open_clip,
    "open_clip's tower": lambda: of_open_clip(alone=True, quick=True),
    "open_clip's tower with LayerScale": lambda: of_open_clip(alone=True, ls_init_value=0.1),
    "CLIPA's tower": lambda: of_open_clip(alone=True, no_ln_pre=True, pool_type="avg", final_ln_after_pool=True),
}


# --------------------------------------------------------------------------------------------------------------------
# vit-pytorch

LUCID = {"image_size": SIDE, "patch_size": PATCH, "num_classes": CLASSES, "dim": DIM, "depth": DEPTH, "heads": 2, "mlp_dim": 96}


@torch.no_grad()
def of_vit_pytorch(cls: Any, *, channels: int = 3, answers: Any = None, has: Any = None, **fields: Any) -> Peer:
    """Its heads are 64 wide, whatever the width of the tokens."""
    torch.manual_seed(0)
    model, images = randomised(cls(**LUCID, channels=channels, **fields)), some_images(channels=channels)
    return Peer("vit-pytorch", model.state_dict(), images, {"logits": model(images)}, answers or {}, has or {}, model=model)


def before_1_2(*, patch_norms: bool) -> Peer:
    """Norms around attention and MLP, one more in the head and none behind the blocks."""
    torch.manual_seed(0)
    model: Any = VitPytorch(**LUCID)
    model.transformer.norm = nn.Identity()
    model.mlp_head = nn.Sequential(nn.LayerNorm(DIM), model.mlp_head)
    if not patch_norms:
        model.to_patch_embedding = nn.Sequential(model.to_patch_embedding[0], model.to_patch_embedding[2])
    randomised(model)
    state = dict(model.state_dict())
    for today, then in BEFORE_1_2.items():
        state = {re.sub(rf"(layers\.\d)\.{today}\.", rf"\1.{then}.", name): value for name, value in state.items()}
    state["cls_token"], state["pos_embedding"] = state["cls_token"][None], state["pos_embedding"][None]
    origin = "vit-pytorch" if patch_norms else "vit-pytorch before 1.0"
    return Peer(origin, state, some_images(), {"logits": model(some_images())}, has={"pool": "cls", "patch_norm": patch_norms})


BEFORE_1_2 = {
    r"0\.to_qkv": "0.fn.to_qkv",
    r"0\.to_out\.0": "0.fn.to_out.0",
    r"1\.net\.0": "1.norm",
    r"1\.net\.1": "1.fn.net.0",
    r"1\.net\.4": "1.fn.net.3",
}
VIT_PYTORCH: Makers = {
    "vit-pytorch": lambda: of_vit_pytorch(VitPytorch, has={"num_heads": 2, "head_dim": 64}),
    "vit-pytorch, mean": lambda: of_vit_pytorch(VitPytorch, pool="mean", has={"class_token": False, "pool": "avg"}),
    "vit-pytorch, heads of another width": lambda: of_vit_pytorch(VitPytorch, dim_head=24, answers={"num_heads": 2}),
    "vit-pytorch, one channel": lambda: of_vit_pytorch(VitPytorch, channels=1),
    "SimpleViT": lambda: of_vit_pytorch(SimpleViT, answers={"img_size": SIDE}),
    "vit-pytorch before 1.2": lambda: before_1_2(patch_norms=True),
    "vit-pytorch before 1.0": lambda: before_1_2(patch_norms=False),
}


# --------------------------------------------------------------------------------------------------------------------
# All of them

ALL = {
    f"{library}: {name}": make
    for library, makers in {
        "timm": TIMM,
        "raw": RAW,
        "transformers": TRANSFORMERS,
        "torchvision": TORCHVISION,
        "CLIP": CLIP,
        "vit-pytorch": VIT_PYTORCH,
    }.items()
    for name, make in makers.items()
}


@functools.cache
def peer_of(name: str) -> Peer:
    if "registers and a head" in name and transformers.__version__ < "5":
        pytest.skip("its mean took the registers for patches")
    return ALL[name]()


def states(receipt: Any) -> dict[str, set[str]]:
    """The names in each state."""
    return {status: {entry.name for entry in receipt.entries if entry.status == status} for status in get_args(Status)}


@pytest.mark.parametrize("name", ALL)
def test_a_bare_state_dict_computes_what_its_own_code_computes(name: str) -> None:
    """And what no tensor tells is asked for, in one line, which names the answers."""
    peer = peer_of(name)
    if peer.answers:
        with pytest.raises(ValueError, match=r"^the tensors do not tell .*: give \w+=.*$") as error:
            vitrail.load(peer.state)
        assert set(OPEN_FIELDS.findall(str(error.value))) == set(peer.answers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = vitrail.load(peer.state, **peer.answers)
    same(ours, peer.images, peer.expected)
    receipt = ours.receipt
    assert isinstance(receipt, Receipt)
    assert (receipt.origin, receipt.file, receipt.backbone_share) == (peer.origin, "a state dict", 1)
    assert {field: getattr(ours.config, field) for field in peer.has} == peer.has
    assert not [entry for entry in receipt.entries if entry.fresh]
    assert peer.dropped is None or states(receipt)["dropped"] == set(peer.dropped)


@pytest.mark.parametrize("name", [name for name in ALL if not re.search(r"^raw: |old names|before", name)])
def test_a_live_model_says_itself_what_no_tensor_tells(name: str) -> None:
    peer = peer_of(name)
    ours = vitrail.load(peer.model, **{field: value for field, value in peer.answers.items() if field == "img_size"})
    same(ours, peer.images, peer.expected)
    assert isinstance(ours.receipt, Receipt)
    assert ours.receipt.file == f"a {type(peer.model).__name__}"
    assert not [text for text in ours.receipt.assumed if "heads, as published" in text]


def test_what_a_live_model_of_timm_has_that_its_tensors_do_not_show() -> None:
    model: Any = timm.models.VisionTransformer(
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=CLASSES,
        global_pool="avg",
        fc_norm=False,
        pool_include_prefix=True,
        act_layer=QuickGELU,
        norm_layer=functools.partial(nn.LayerNorm, eps=0.1),
    )
    same(vitrail.load(randomised(model)), some_images(), of_timm(model, some_images()))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_of_transformers(name: str, tmp_path: Path) -> None:
    """Its files have the names of the versions before 5, whichever version wrote them; its config answers everything."""
    peer = peer_of(f"transformers: {name}")
    peer.model.save_pretrained(tmp_path)
    same(vitrail.load(tmp_path), peer.images, peer.expected)
    same(vitrail.load(load_file(tmp_path / "model.safetensors"), **peer.answers), peer.images, peer.expected)


@pytest.mark.parametrize("name", TIMM)
def test_a_folder_of_timm(name: str, tmp_path: Path) -> None:
    peer = peer_of(f"timm: {name}")
    save_for_hf(peer.model, tmp_path, model_args={"num_heads": HEADS})
    same(vitrail.load(tmp_path), peer.images, peer.expected)


# --------------------------------------------------------------------------------------------------------------------
# Google's .npz

GOOGLE = [
    (False, "tok", False),
    (False, "tok", True),
    (False, "gap", False),
    (True, "tok", False),
    (True, "gap", False),
    (True, "gap", True),
    (True, "map", False),
]


def write_npz(path: Path, weights: Mapping[str, Any], prefix: str = "") -> Path:
    np.savez(path, **{prefix + name: value for name, value in weights.items()})
    return path


def google_expects(weights: Mapping[str, Any], **layout: Any) -> dict[str, Tensor]:
    values = forward(weights, some_images().numpy(), **layout)
    return {
        part: torch.from_numpy(value).float() for part, value in zip(("logits", "embedding", "tokens"), values, strict=True)
    }


@pytest.mark.parametrize(("big_vision", "pool", "pre_logits"), GOOGLE)
def test_google_s_files_compute_what_the_formulas_say(big_vision: bool, pool: str, pre_logits: bool, tmp_path: Path) -> None:
    weights = random_weights(big_vision=big_vision, pool=pool, pre_logits=pre_logits)
    expected = google_expects(weights, pool=pool, big_vision=big_vision)
    for prefix in ("", "opt/target/", "params/", "params/img/"):
        for form in (weights, scanned(weights)) if big_vision else (weights,):
            file = write_npz(tmp_path / "vit.npz", form, prefix)
            ours = vitrail.load(file)
            same(ours, some_images(), expected)
            assert isinstance(ours.receipt, Receipt)
            assert ours.receipt.origin == f"Google {'big_vision' if big_vision else 'vision_transformer'}"
            assert {entry.status for entry in ours.receipt.entries} == {"exact"}
            assert ours.config.num_heads == HEADS  # the file has an axis for them
            assert ours.config.mlp == "gelu_tanh"
            assert ours.config.head == ("mlp" if pre_logits else "linear")


@pytest.mark.parametrize("pool", ["gap", "map"])
def test_positions_that_google_s_code_computes(pool: str, tmp_path: Path) -> None:
    weights = random_weights(big_vision=True, pool=pool, positions=False)
    file = write_npz(tmp_path / "vit.npz", weights, "params/")
    with pytest.raises(ValueError, match=r"do not tell img_size \(its positions are computed, .*\): give img_size=224 or"):
        vitrail.load(file)
    ours = vitrail.load(file, img_size=SIDE)
    same(ours, some_images(), google_expects(weights, pool=pool, big_vision=True))
    [entry] = [entry for entry in ours.receipt.entries if entry.status != "exact"]  # type: ignore[attr-defined]
    assert (entry.name, entry.status, entry.note) == ("pos_embed", "new", "computed, as its code does")


@pytest.mark.parametrize(("big_vision", "pool"), [(False, "tok"), (False, "gap"), (True, "tok"), (True, "gap"), (True, "map")])
def test_google_s_files_compute_what_timm_s_loader_makes_of_them(big_vision: bool, pool: str, tmp_path: Path) -> None:
    """timm takes them with the exact GELU, which is an answer that ours accepts too."""
    file = write_npz(tmp_path / "vit.npz", random_weights(big_vision=big_vision, pool=pool), "params/" if big_vision else "")
    theirs: Any = timm.models.VisionTransformer(
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        num_classes=CLASSES,
        mlp_ratio=2,
        class_token=pool == "tok",
        no_embed_class=big_vision,
        global_pool={"tok": "token", "gap": "avg", "map": "map"}[pool],
        fc_norm=False,
    ).eval()
    theirs.load_pretrained(file)
    same(vitrail.load(file, mlp="gelu"), some_images(), of_timm(theirs, some_images()))


# --------------------------------------------------------------------------------------------------------------------
# What is no plain ViT, and says so

NO_TIMM = {
    "resnet18": "no plain ViT is in",
}
NOT_SHOWN = {  # rotary positions leave nothing in a file: a question that only the plain ViT of these tensors can answer
    "vit_base_patch16_dinov3": "none",
    "vit_base_patch16_rope_224": "none",
    "vit_mediumd_patch16_rope_reg1_gap_256": "none",
    "eva02_small_patch14_224": "learn",
    "vit_pe_core_base_patch16_224": "learn",
    "vit_pe_spatial_base_patch16_512": "learn",
    "qwen3_vit_88m": "learn",
}


def untrained(name: str) -> Any:
    """An architecture of timm, of two blocks where that can be said."""
    if name not in timm.list_models():
        pytest.skip(f"this version of timm has no {name}")
    return timm.create_model(name, **({} if name.startswith(("swin", "resnet", "test")) else {"depth": 2}))


@pytest.mark.parametrize(("name", "reason"), NO_TIMM.items())
def test_what_timm_has_beside_plain_vits_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        vitrail.load(untrained(name).state_dict())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "answer"), NOT_SHOWN.items())
def test_rotary_positions_are_asked_about_and_a_config_names_them(name: str, answer: str) -> None:
    model = untrained(name)
    with pytest.raises(ValueError, match=rf"pos_embed \(.*\): give pos_embed='{answer}'"):
        vitrail.load(model.state_dict())
    if name.startswith("qwen3"):
        with pytest.raises(ValueError, match=rf"^{name} is not a plain ViT: its positions are rotary; open it with timm$"):
            vitrail.load(model)
    else:
        assert vitrail.load(model).config.rope != "none"


def test_rope_vit_looks_like_deit_iii_which_is_asked_about_unless_a_config_names_it(tmp_path: Path) -> None:
    peer = raw_deit3()
    with pytest.raises(ValueError, match=r"pos_embed \(the pattern of DeiT III, .*: give rope='grid', .*'learn'$") as error:
        vitrail.load(peer.state, num_heads=HEADS)
    assert "\n" not in str(error.value)
    assert vitrail.load(peer.state, num_heads=HEADS, rope="grid").config.rope == "grid"
    save_file(peer.state["model"], tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "deit3_small_patch16_224"}')
    assert type(vitrail.load(tmp_path, num_heads=HEADS)) is vitrail.models.ViT


def test_norms_behind_the_branches_are_asked_about_and_a_config_names_them() -> None:
    model = untrained("vit_base_patch16_rpn_224")
    with pytest.raises(ValueError, match=r"fc_norm \(the pattern of vit_base_patch16_rpn_224, .*\): give fc_norm=True"):
        vitrail.load(model.state_dict())
    assert vitrail.load(model).config.norm_position == "res-post"


NO_TRANSFORMERS = {
    "Data2VecVision": ({"use_shared_relative_position_bias": True}, r"pooler\.layernorm\.weight, so it is not all of a BEiT"),
    "Yolos": ({"image_size": [SIDE, SIDE]}, "detection_tokens"),
    "VideoMAE": ({}, "48x3x2x4x4, and not of 4 axes|q_bias"),
    "Timesformer": ({}, "time_embeddings"),
    "BlipVision": ({}, "self_attn.qkv"),
}


@pytest.mark.parametrize("name", NO_TRANSFORMERS)
def test_what_transformers_has_beside_plain_vits_is_refused(name: str) -> None:
    if not hasattr(T, f"{name}Model"):
        pytest.skip(f"this version of transformers has no {name}")
    fields, reason = NO_TRANSFORMERS[name]
    config = getattr(T, f"{name}Config")(**{**WIDE, **fields})
    with pytest.raises(ValueError, match=reason) as error:
        vitrail.load(getattr(T, f"{name}Model")(config).state_dict())
    assert "\n" not in str(error.value)


def test_rotary_positions_that_a_config_of_transformers_names() -> None:
    model = T.SiglipVisionModel(T.SiglipVisionConfig(**WIDE, rope_theta=10_000.0))
    with pytest.raises(ValueError, match=r"^siglip_vision_model is not a plain ViT: its positions are rotary \(rope_theta\); "):
        vitrail.load(model)


def test_an_encoder_of_transformers_whose_code_was_not_compared() -> None:
    model = T.Idefics3VisionTransformer(T.Idefics3VisionConfig(**WIDE))
    receipt = vitrail.load(model).receipt
    assert isinstance(receipt, Receipt)
    assert "the code of transformers' idefics3_vision does nothing but what its tensors' names say" in receipt.assumed


NO_LUCID = {
    "deepvit": "DeepViT",
    "simple_vit_with_qk_norm": "SimpleViT",
    "simple_vit_with_register_tokens": "SimpleViT",
    "vit_with_patch_merger": "ViT",
    "parallel_vit": "ViT",
}


@pytest.mark.parametrize(("module", "cls"), NO_LUCID.items())
def test_what_vit_pytorch_has_beside_plain_vits_is_refused(module: str, cls: str) -> None:
    make = getattr(importlib.import_module(f"vit_pytorch.{module}"), cls)
    with pytest.raises(ValueError, match=r"is not a plain ViT|no plain ViT is in"):
        vitrail.load(make(**LUCID).state_dict(), img_size=SIDE)


def test_coca_s_attention_pooling_is_another_one() -> None:
    with pytest.raises(ValueError, match="its attention pooling is another one"):
        vitrail.load(of_open_clip(alone=True, attentional_pool=True).state)


# --------------------------------------------------------------------------------------------------------------------
# The walk over both libraries (benchmarks/compatibility.py)

SOME_OF_TIMM = (
    "vit_tiny_patch16_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_siglip_gap_224",
    "vit_so150m_patch16_reg4_map_256",
    "naflexvit_base_patch16_siglip",
    "test_vit4",
    "deit_tiny_distilled_patch16_224",
)
SOME_OF_TRANSFORMERS = (
    ("vit", "ViTForImageClassification"),
    ("dinov2_with_registers", "Dinov2WithRegistersModel"),
    ("siglip_vision_model", "SiglipVisionModel"),
    ("siglip2_vision_model", "Siglip2VisionModel"),
    ("radio", "RadioModel"),
    ("clip_vision_model", "CLIPVisionModel"),
    ("beit", "BeitForImageClassification"),
    ("swin", "SwinModel"),
)


@pytest.fixture(scope="module")
def compatibility() -> Iterator[ModuleType]:
    """benchmarks/compatibility.py, which imports its neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        yield importlib.import_module("compatibility")


def test_some_of_the_walk(compatibility: ModuleType) -> None:
    outcomes = [compatibility.one_of_timm(name) for name in SOME_OF_TIMM]
    outcomes += [one for pair in SOME_OF_TRANSFORMERS if (one := compatibility.one_of_transformers(*pair)) is not None]
    ends = {one.name: one.outcome for one in outcomes}
    assert ends == {
        "vit_tiny_patch16_224": "same",
        "vit_base_patch16_clip_quickgelu_224": "asked",
        "vit_base_patch16_siglip_gap_224": "asked",
        "vit_so150m_patch16_reg4_map_256": "asked",
        "naflexvit_base_patch16_siglip": "asked",
        "test_vit4": "asked",
        "deit_tiny_distilled_patch16_224": "same",
        "ViTForImageClassification": "asked",
        "Dinov2WithRegistersModel": "same",
        "SiglipVisionModel": "same",
        "Siglip2VisionModel": "asked",
        "RadioModel": "asked",
        "CLIPVisionModel": "asked",
        "BeitForImageClassification": "same",
        "SwinModel": "same",
    }


MODULES = ("vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "deit")
MODULES += ("eva", "beit", "cait", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "naflexvit")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("module", MODULES)
def test_every_model_of_timm_computes_the_same(compatibility: ModuleType, module: str) -> None:
    ends = {one.name: one.outcome for one in compatibility.walk_timm(modules=(module,))}
    assert set(MODULES) == set(compatibility.TIMM_MODULES)
    assert set(ends.values()) <= {"same", "asked", "config"}, ends


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_image_encoder_of_transformers_computes_something_else(compatibility: ModuleType) -> None:
    outcomes = list(compatibility.walk_transformers())
    assert [one for one in outcomes if one.outcome in ("differs", "crashed", "not run")] == []
    counts = compatibility.count(outcomes)["transformers"]
    assert counts["same"] + counts["asked"] + counts["config"] > 0.75 * sum(counts.values())
