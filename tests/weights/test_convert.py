"""What we write, the other library loads strictly and computes the same with; what it can't be is refused by name."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor

from vitrail.models import ViT
from vitrail.settings import Preprocessing, ViTConfig, pair
from vitrail.weights import load, read_run
from vitrail.weights.convert import convert, place, planned
from vitrail.weights.targets import Inexpressible

OLD_TRANSFORMERS = transformers.__version__.startswith("4.")
SIDE, PATCH, DIM, HEADS, DEPTH, CLASSES = 16, 4, 16, 2, 2, 5
TINY = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": DIM, "num_heads": HEADS, "depth": DEPTH, "num_classes": CLASSES}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """transformers reports on stderr what is no news."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


def randomised(model: Any) -> Any:
    """Every parameter random, those that start as zero or one as well: else a lost bias or norm would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-2, 2)  # timm leaves some as memory happens to be
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def vit(**fields: Any) -> ViT:
    """A tiny model with random weights, preprocessing and class names."""
    torch.manual_seed(0)
    model = randomised(ViT(**{**TINY, "mlp_ratio": 2.0, **fields}))
    channels = model.config.in_channels
    model.preprocessing = Preprocessing(
        img_size=pair(model.config.img_size),
        in_channels=channels,
        mean=tuple(0.1 * (i + 1) for i in range(channels)),
        std=tuple(0.2 + 0.1 * i for i in range(channels)),
        crop_pct=0.5,
        interpolation="bilinear",
    )
    model.classes = tuple(f"class {i}" for i in range(model.config.num_classes))
    return model


def images_for(model: ViT) -> Tensor:
    return torch.randn(2, model.config.in_channels, *pair(model.config.img_size), generator=torch.Generator().manual_seed(2))


def converted(source: Any, to: str, destination: Path, *, overwrite: bool = False) -> Path:
    """`convert` without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert(source, to, destination, overwrite=overwrite)


@torch.no_grad()
def same(theirs: Tensor, ours: Tensor) -> None:
    """Equal to 1e-5, and not for want of anything to say."""
    assert ours.std() > 0.01
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# timm

OF_TIMM: list[dict[str, Any]] = [
    {},
    {"reg_tokens": 3},
    {"reg_tokens": 3, "no_embed_class": True},
    {"reg_tokens": 2, "class_token": False, "pool": "avg"},
    {"reg_tokens": 2, "pool": "avg", "pool_include_prefix": True},
    {"class_token": False, "pool": "avg", "pos_embed": "none"},
    {"pool": "avg"},
    {"pool": "avg", "fc_norm": True},
    {"pool": "map", "class_token": False},
    {"pool": "map", "reg_tokens": 1},
    {"pool": "map", "reg_tokens": 2, "pool_include_prefix": True, "mlp": "gelu_tanh"},
    {"pre_norm": True, "norm_eps": 1e-5, "mlp": "quick_gelu"},
    {"pre_norm": True},
    {"norm_eps": 1e-5, "pool": "map", "qk_norm": True},
    {"mlp": "gelu_tanh", "fc_norm": True},
    {"mlp": "swiglu", "mlp_ratio": 2.5},
    {"mlp": "swiglu", "reg_tokens": 2, "init_values": 0.3, "pool": "avg"},
    {"qk_norm": True, "qkv_bias": False, "init_values": 0.4},
    {"dist_token": True},
    {"dist_token": True, "no_embed_class": True, "mlp": "quick_gelu"},
    {"dist_token": True, "num_classes": 0, "init_values": 0.2},
    {"no_embed_class": True},
    {"final_norm": False},
    {"embed_dim": 24, "mlp_ratio": 25 / 24},
    {"embed_dim": 20, "mlp_ratio": 2.07},
    {"img_size": (8, 24), "patch_size": (2, 4)},
    {"in_channels": 1},
    {"in_channels": 5},
    {"num_classes": 0},
    {"pos_embed": "sincos2d"},
    {"head_dim": DIM // HEADS},
]


@pytest.mark.parametrize("fields", OF_TIMM, ids=str)
def test_timm_opens_the_folder(tmp_path: Path, fields: dict[str, Any]) -> None:
    ours = vit(**fields)
    path = converted(ours, "timm", tmp_path / "made")
    theirs = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    assert theirs.state_dict().keys() == load_file(path / "model.safetensors").keys()
    same(theirs(images_for(ours)), ours(images_for(ours)))
    cfg = theirs.pretrained_cfg
    assert ours.preprocessing is not None
    assert (tuple(cfg["mean"]), tuple(cfg["std"])) == (ours.preprocessing.mean, ours.preprocessing.std)
    assert (cfg["crop_pct"], cfg["interpolation"], cfg["crop_mode"]) == (0.5, "bilinear", "center")
    assert tuple(cfg["input_size"]) == tuple(images_for(ours).shape[1:])
    assert tuple(cfg.get("label_names", ())) == ours.classes


def test_a_folder_for_timm_is_one_for_us_and_starts_another_task(tmp_path: Path) -> None:
    ours = vit(reg_tokens=2, init_values=0.3)
    path = converted(ours, "timm", tmp_path / "made")
    again = load(path)
    same(again(images_for(ours)), ours(images_for(ours)))
    assert (again.preprocessing, again.classes) == (ours.preprocessing, ours.classes)
    assert again.config.reg_tokens == 2
    other = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=3, img_size=32).eval()
    assert other(torch.randn(1, 3, 32, 32)).shape == (1, 3)


TIMM_ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("vit_base_patch16_224", {}),
    ("deit_base_distilled_patch16_224", {}),
    ("deit3_base_patch16_224", {}),
    ("vit_base_patch14_dinov2", {"patch_size": 16}),
    ("vit_giant_patch14_reg4_dinov2", {"patch_size": 16}),
    ("vit_base_patch16_clip_quickgelu_224", {}),
    ("vit_base_patch16_siglip_224", {}),
    ("vit_base_patch32_siglip_gap_256", {"patch_size": 16}),
    ("vit_betwixt_patch16_reg4_gap_256", {}),
    ("flexivit_base", {}),
]


@pytest.mark.parametrize(("name", "fields"), TIMM_ARCHITECTURES, ids=[name for name, _ in TIMM_ARCHITECTURES])
def test_from_timm_and_back(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    small = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
    theirs = randomised(timm.create_model(name, **small, **fields))
    path = converted(theirs, "timm", tmp_path / "made")
    again = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    same(again(images), theirs(images))


# --------------------------------------------------------------------------------------------------------------------
# transformers

NO_HEAD = {"num_classes": 0}
OF_TRANSFORMERS: list[tuple[str, dict[str, Any]]] = [
    ("ViTForImageClassification", {}),
    ("ViTForImageClassification", {"norm_eps": 1e-12, "mlp": "quick_gelu", "mlp_ratio": 41 / 16}),
    ("ViTForImageClassification", {"qkv_bias": False, "mlp": "gelu_tanh", "in_channels": 1}),
    ("ViTForImageClassification", {"img_size": (8, 24), "patch_size": (2, 4), "no_embed_class": True}),
    ("ViTForImageClassification", {**NO_HEAD, "pos_embed": "sincos2d"}),
    ("ViTForImageClassification", {"pos_embed": "none", "in_channels": 5}),
    ("DeiTForImageClassificationWithTeacher", {"dist_token": True}),
    ("DeiTForImageClassificationWithTeacher", {"dist_token": True, "no_embed_class": True, "qkv_bias": False}),
    ("DeiTForImageClassificationWithTeacher", {**NO_HEAD, "dist_token": True}),
    ("Dinov2ForImageClassification", {"init_values": 0.3, "pool": "cls+avg"}),
    ("Dinov2ForImageClassification", {**NO_HEAD, "init_values": 0.3, "pool": "cls+avg"}),
    ("Dinov2ForImageClassification", {"init_values": 0.3, "qkv_bias": False, "norm_eps": 1e-5}),
    ("Dinov2ForImageClassification", {"pool": "avg", "no_embed_class": True}),
    ("Dinov2ForImageClassification", {"mlp": "swiglu", "init_values": 0.2, "embed_dim": 48, "mlp_ratio": 64 / 48}),
    ("Dinov2WithRegistersForImageClassification", {"reg_tokens": 2, "init_values": 0.3, "pool": "cls+avg"}),
    ("Dinov2WithRegistersForImageClassification", {"reg_tokens": 2, "mlp": "swiglu", "mlp_ratio": 1.5}),
    ("Dinov2WithRegistersForImageClassification", {"reg_tokens": 2, "pool": "avg", "mlp": "gelu_tanh"}),
    ("Dinov2Model", {**NO_HEAD, "init_values": 0.3}),
    ("Dinov2WithRegistersModel", {**NO_HEAD, "init_values": 0.3, "reg_tokens": 2}),
    ("BeitForImageClassification", {"pool": "avg", "fc_norm": True}),
    ("BeitForImageClassification", {"pool": "avg", "fc_norm": True, "init_values": 0.4, "qkv_bias": False, "norm_eps": 1e-12}),
    ("BeitForImageClassification", {**NO_HEAD, "pool": "avg", "fc_norm": True, "no_embed_class": True}),
    ("CLIPVisionModel", {**NO_HEAD, "pre_norm": True, "norm_eps": 1e-5, "mlp": "quick_gelu"}),
    ("CLIPVisionModel", {**NO_HEAD, "pre_norm": True, "qkv_bias": False, "no_embed_class": True}),
    ("CLIPVisionModelWithProjection", {"pre_norm": True}),
    ("CLIPForImageClassification", {"pre_norm": True, "pool": "avg", "final_norm": False}),
    ("SiglipVisionModel", {**NO_HEAD, "class_token": False, "pool": "map", "mlp": "gelu_tanh"}),
    ("SiglipVisionModel", {**NO_HEAD, "class_token": False, "pool": "map", "qkv_bias": False, "pos_embed": "sincos2d"}),
    ("SiglipVisionModel", {**NO_HEAD, "class_token": False, "pool": "avg"}),
    ("SiglipForImageClassification", {"class_token": False, "pool": "avg"}),
]


@torch.no_grad()
def what_it_gives(model: Any, images: Tensor) -> Tensor:
    """Logits, or else what stands for the image."""
    output = model(pixel_values=images)
    for name in ("logits", "image_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output.last_hidden_state.mean(1)


@pytest.mark.parametrize(("cls", "fields"), OF_TRANSFORMERS, ids=str)
def test_transformers_opens_the_folder(tmp_path: Path, cls: str, fields: dict[str, Any]) -> None:
    if OLD_TRANSFORMERS and "reg_tokens" in fields and "avg" in fields.get("pool", ""):
        pytest.skip("it averages over the registers too")
    ours = vit(**fields)
    if cls == "CLIPVisionModelWithProjection":
        nn.init.zeros_(ours.head.bias)  # type: ignore[arg-type]
    path = converted(ours, "hf", tmp_path / "made")
    auto = transformers.AutoModelForImageClassification if "ForImage" in cls else getattr(transformers, cls)
    theirs, report = auto.from_pretrained(path, output_loading_info=True)
    assert not {what: keys for what, keys in report.items() if keys}
    assert type(theirs).__name__ == cls
    same(what_it_gives(theirs.eval(), images_for(ours)), ours(images_for(ours)))
    if "Classification" in cls:
        config = AutoConfig.from_pretrained(path)
        assert tuple(config.id2label[i] for i in range(config.num_labels)) == ours.classes


@pytest.mark.parametrize(
    ("fields", "processor"),
    [
        ({"crop_mode": "center", "crop_pct": 0.5}, "BitImageProcessor"),
        ({"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"}, "ViTImageProcessor"),
        ({"crop_mode": "squash", "crop_pct": 0.5}, "DeiTImageProcessor"),
    ],
    ids=str,
)
def test_preprocessing_goes_to_transformers_and_comes_back(tmp_path: Path, fields: dict[str, Any], processor: str) -> None:
    ours = vit()
    images = {"img_size": (SIDE, SIDE), "in_channels": 3, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    ours.preprocessing = Preprocessing(**images, **fields)
    path = converted(ours, "hf", tmp_path / "made")
    assert json.loads((path / "preprocessor_config.json").read_text())["image_processor_type"] == processor
    made = AutoImageProcessor.from_pretrained(path)
    pixels = made(images=torch.full((3, 40, 30), 255, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    white = [(1 - mean) / std for mean, std in zip(images["mean"], images["std"], strict=True)]  # type: ignore[arg-type]
    torch.testing.assert_close(pixels, torch.tensor(white).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE))
    assert load(path).preprocessing == ours.preprocessing
    assert load(path).classes == ours.classes


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_several_labels_an_image_go_along_and_come_back(tmp_path: Path, to: str) -> None:
    ours = vit()
    assert not load(converted(ours, to, tmp_path / "one")).multi_label
    assert "problem_type" not in json.loads((tmp_path / "one" / "config.json").read_text())
    ours.multi_label = True
    path = converted(ours, to, tmp_path / "several")
    assert load(path).multi_label
    if to == "hf":
        theirs = transformers.ViTForImageClassification.from_pretrained(path).eval()
        wanted = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
        out = theirs(pixel_values=images_for(ours), labels=wanted)
        torch.testing.assert_close(out.loss, nn.functional.binary_cross_entropy_with_logits(out.logits, wanted))
        assert load(theirs).multi_label, "their model in memory says it too"


def test_no_head_has_no_labels(tmp_path: Path) -> None:
    ours = vit(**NO_HEAD)
    ours.multi_label = True
    assert "problem_type" not in json.loads((converted(ours, "hf", tmp_path / "made") / "config.json").read_text())


def small_config(kind: str, **fields: Any) -> Any:
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    return AutoConfig.for_model(kind, **sizes, image_size=SIDE, patch_size=PATCH, **fields)


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        ("ViTForImageClassification", lambda: small_config("vit", num_labels=7)),
        ("DeiTForImageClassificationWithTeacher", lambda: small_config("deit", num_labels=7)),
        ("Dinov2ForImageClassification", lambda: small_config("dinov2", num_labels=7, mlp_ratio=2)),
        ("Dinov2WithRegistersModel", lambda: small_config("dinov2_with_registers", mlp_ratio=2)),
        ("CLIPVisionModel", lambda: small_config("clip_vision_model")),
        ("SiglipVisionModel", lambda: small_config("siglip_vision_model")),
    ],
)
def test_from_transformers_and_back(tmp_path: Path, cls: str, config: Any) -> None:
    theirs = randomised(getattr(transformers, cls)(config()))
    theirs.save_pretrained(tmp_path / "theirs")
    path = converted(tmp_path / "theirs", "hf", tmp_path / "made")
    again, report = getattr(transformers, cls).from_pretrained(path, output_loading_info=True)
    assert not {what: keys for what, keys in report.items() if keys}
    images = torch.randn(2, 3, SIDE, SIDE)
    same(what_it_gives(again.eval(), images), what_it_gives(theirs, images))
    written = load_file(path / "model.safetensors")
    saved = load_file(tmp_path / "theirs" / "model.safetensors")
    bare = {name.removeprefix("vision_model.") for name in written}
    assert bare | {"embeddings.mask_token"} >= {name.removeprefix("vision_model.") for name in saved}, "as they are on disk"


# --------------------------------------------------------------------------------------------------------------------
# torchvision and Google's .npz


@pytest.mark.parametrize("suffix", ["", ".pt", ".safetensors"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"qkv_bias": False}, {"head": "mlp"}, {"no_embed_class": True}, {"pos_embed": "none"}, {"mlp_ratio": 41 / 16}],
    ids=str,
)
def test_torchvision_loads_the_file(tmp_path: Path, fields: dict[str, Any], suffix: str) -> None:
    ours = vit(**fields)
    path = convert(ours, "torchvision", tmp_path / f"made{suffix}")
    assert path.name == f"made{suffix or '.pth'}"
    beside = json.loads(path.with_suffix(".json").read_text())
    theirs = torchvision.models.VisionTransformer(**beside["arguments"]).eval()
    state = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    theirs.load_state_dict(state, strict=True)
    same(theirs(images_for(ours)), ours(images_for(ours)))
    assert (tuple(beside["label_names"]), beside["preprocessing"]["crop_pct"]) == (ours.classes, 0.5)


def test_from_torchvision_and_back(tmp_path: Path) -> None:
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 96, "num_classes": 7}
    theirs = randomised(torchvision.models.VisionTransformer(image_size=SIDE, patch_size=PATCH, **sizes))
    path = convert(load(theirs.state_dict(), num_heads=3), "torchvision", tmp_path / "made.pth")
    state = torch.load(path, weights_only=True)
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in theirs.state_dict().items())


OF_GOOGLE: list[dict[str, Any]] = [
    {"mlp": "gelu_tanh"},
    {},
    {"mlp": "gelu_tanh", "head": "mlp"},
    {"mlp": "gelu_tanh", "qkv_bias": False, **NO_HEAD},
    {"no_embed_class": True},
    {"class_token": False, "pool": "avg", "pos_embed": "sincos2d"},
    {"class_token": False, "pool": "map", "mlp": "gelu_tanh"},
    {"class_token": False, "pool": "map", "in_channels": 1, "pos_embed": "none", **NO_HEAD},
    {"img_size": (8, 24)},
]


@pytest.mark.parametrize("fields", OF_GOOGLE, ids=str)
def test_timm_and_we_read_the_npz(tmp_path: Path, fields: dict[str, Any]) -> None:
    ours = vit(**fields)
    cfg = ours.config
    path = converted(ours, "npz", tmp_path / "made")
    asked = {"img_size": cfg.img_size} if cfg.img_size != SIDE else {}
    same(load(path, mlp=cfg.mlp, **asked)(images_for(ours)), ours(images_for(ours)))
    if cfg.head == "mlp":  # which timm leaves out
        return
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=cfg.img_size, patch_size=PATCH, in_chans=cfg.in_channels, embed_dim=DIM, depth=DEPTH, num_heads=HEADS,
        num_classes=cfg.num_classes, mlp_ratio=2.0, class_token=cfg.class_token, no_embed_class=cfg.no_embed_class,
        global_pool="token" if cfg.pool == "cls" else cfg.pool, fc_norm=False, act_layer=cfg.mlp,
    )  # fmt: skip
    randomised(theirs).load_pretrained(str(path))
    same(theirs(images_for(ours)), ours(images_for(ours)))


def test_what_an_npz_does_not_say_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"an \.npz|exact GELU|not square") as told:
        convert(vit(img_size=(8, 24)), "npz", tmp_path / "made")
    said = " ".join(str(warning.message) for warning in told)
    assert "no place for preprocessing and class names" in said
    assert 'flax computes its tanh form: load it with mlp="gelu"' in said
    assert "load it with img_size=(8, 24)" in said
    assert not any("tanh" in note for note in planned(vit(mlp="gelu_tanh"), "npz").notes)


# --------------------------------------------------------------------------------------------------------------------
# What can't be said


@pytest.mark.parametrize(
    ("to", "fields", "says"),
    [
        ("timm", {"stem": "conv"}, 'VisionTransformer has no stem "conv", only "patch"; Vitrail\'s own run folders hold it'),
        ("timm", {"head": "mlp"}, r'no head "mlp", only "linear"; convert it to "torchvision" or "npz"'),
        ("timm", {"pool": "cls+avg"}, r'no pool "cls\+avg", only "cls" or "avg" or "map"; convert it to "hf"'),
        (
            "timm",
            {"norm_eps": 1e-12},
            r"no norm_eps 1e-12, only 1e-06 or 1e-05; load it with norm_eps=1e-06.*convert .* \"hf\"",
        ),
        ("timm", {"pos_embed": "none"}, 'no pos_embed "none" with a class token or registers.*; convert it to "hf" or'),
        ("timm", {"patch_norm": True}, "no patch_norm true, only false"),
        ("timm", {"head_dim": 4}, "no head_dim 4, only none"),
        ("timm", {"mlp": "swiglu", "pool": "map"}, 'with SwiGLU has no pool "map"'),
        ("timm", {"mlp": "swiglu", "norm_eps": 1e-5}, "with SwiGLU has no norm_eps 1e-05"),
        ("timm", {"dist_token": True, "pool": "avg"}, 'VisionTransformerDistilled has no pool "avg", only "cls"'),
        ("timm", {"dist_token": True, "reg_tokens": 2}, "VisionTransformerDistilled has no reg_tokens 2, only 0"),
        ("timm", {"dist_token": True, "fc_norm": True}, "VisionTransformerDistilled has no fc_norm true"),
        ("hf", {"qk_norm": True}, 'ViT has no qk_norm true, only false; convert it to "timm"'),
        ("hf", {"stem": "conv"}, 'ViT has no stem "conv"'),
        ("hf", {"head": "mlp"}, 'ViT has no head "mlp"'),
        ("hf", {"final_norm": False}, "ViT has no final_norm false"),
        ("hf", {"fc_norm": True}, 'BEiT has no pool "cls", only "avg"'),
        ("hf", {"dist_token": True, "init_values": 0.1}, "DeiT has no init_values 0.1, only none"),
        ("hf", {"pre_norm": True}, "CLIP has no head.bias, and this one is not zero"),
        ("hf", {"pre_norm": True, "reg_tokens": 1}, "CLIP has no reg_tokens 1"),
        ("hf", {"pre_norm": True, "img_size": (8, 24), **NO_HEAD}, "CLIP has no img_size 8x24, only squares"),
        ("hf", {"pre_norm": True, "pool": "avg", "final_norm": False, **NO_HEAD}, "has no num_classes 0, only a head"),
        ("hf", {"class_token": False, "pool": "map"}, 'SigLIP has no num_classes 5 with pool "map", only 0'),
        ("hf", {"class_token": False, "pool": "avg", "fc_norm": True}, "SigLIP has no fc_norm true"),
        ("hf", {"pool": "map"}, 'DINOv2 has no pool "map", only "cls" or "avg" or "cls\\+avg"'),
        ("hf", {"init_values": 0.1, "mlp_ratio": 41 / 16}, "DINOv2 has no MLP of 41 hidden features at width 16, only 32, 48"),
        ("hf", {"init_values": 0.1, "img_size": (8, 24)}, "DINOv2 has no img_size 8x24, only squares"),
        ("torchvision", {"norm_eps": 1e-5}, "no norm_eps 1e-05, only 1e-06"),
        ("torchvision", {"mlp": "quick_gelu"}, 'no mlp "quick_gelu", only "gelu"'),
        ("torchvision", {"pool": "avg"}, 'no pool "avg", only "cls"'),
        ("torchvision", {"img_size": (8, 24)}, "no img_size 8x24, only squares"),
        ("torchvision", {"patch_size": (2, 4)}, "no patch_size 2x4, only squares"),
        ("torchvision", {"init_values": 0.1}, "no init_values 0.1, only none"),
        ("torchvision", {"reg_tokens": 4}, "no reg_tokens 4, only 0"),
        ("torchvision", {"in_channels": 1}, "no in_channels 1, only 3"),
        ("torchvision", NO_HEAD, "no num_classes 0, only a head; load the model with num_classes="),
        ("torchvision", {"qk_norm": True}, "no qk_norm true"),
        ("npz", {"mlp": "quick_gelu"}, 'vision_transformer has no mlp "quick_gelu", only "gelu" or "gelu_tanh"'),
        ("npz", {"norm_eps": 1e-5}, "no norm_eps 1e-05"),
        ("npz", {"reg_tokens": 1}, "no reg_tokens 1"),
        ("npz", {"pool": "avg"}, 'vision_transformer has no pool "avg", only "cls"'),
        ("npz", {"pool": "avg", "class_token": False, "fc_norm": True}, "big_vision's ViT has no fc_norm true"),
        ("npz", {"pool": "map", "no_embed_class": True}, 'big_vision\'s ViT with a class token has no pool "map", only "cls"'),
        ("npz", {"init_values": 0.1}, "no init_values 0.1"),
        ("npz", {"pre_norm": True}, "no pre_norm true"),
    ],
    ids=str,
)
def test_what_it_can_not_be_is_refused_by_name(tmp_path: Path, to: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(Inexpressible, match=says) as error:
        convert(vit(**fields), to, tmp_path / "made")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_know_its_images(tmp_path: Path) -> None:
    ours = vit()
    ours.preprocessing = None
    for to in ("timm", "hf"):
        with pytest.raises(ValueError, match=r"set model\.preprocessing before it is converted"):
            convert(ours, to, tmp_path / "made")
    assert json.loads(convert(ours, "torchvision", tmp_path / "made").with_suffix(".json").read_text())["label_names"]


@pytest.mark.parametrize("to", ["timm", "hf", "torchvision"])
def test_class_names_are_kept_whatever_they_hold(to: str, tmp_path: Path) -> None:
    ours = vit()
    ours.classes = tuple(f"\udcff\x1b\u2028ü{number}" for number in range(CLASSES))
    made = convert(ours, to, tmp_path / "made")
    text = (made.with_suffix(".json") if to == "torchvision" else made / "config.json").read_text(encoding="utf-8")
    written = json.loads(text)
    names = list(written["id2label"].values()) if to == "hf" else written["label_names"]
    assert tuple(names) == ours.classes
    assert "\u2028" not in text


def test_a_change_on_loading_is_the_way_to_another_epsilon(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=SIDE, patch_size=PATCH
    )
    theirs = randomised(transformers.ViTForImageClassification(config))
    with pytest.raises(ValueError, match=r"load it with norm_eps=1e-06"):
        convert(theirs, "timm", tmp_path / "made")
    path = convert(load(theirs, norm_eps=1e-6), "timm", tmp_path / "made")
    images = torch.randn(2, 3, SIDE, SIDE)
    again = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    torch.testing.assert_close(again(images), what_it_gives(theirs, images), atol=1e-3, rtol=1e-3)


CHOICES: dict[str, list[Any]] = {
    "img_size": [SIDE, (8, 24)],
    "in_channels": [3, 1, 5],
    "num_classes": [CLASSES, 0],
    "head_dim": [None, 4, 8],
    "mlp_ratio": [2.0, 1.5, 41 / 16],
    "mlp": ["gelu", "gelu_tanh", "quick_gelu", "swiglu"],
    "init_values": [None, 0.3],
    "norm_eps": [1e-6, 1e-5, 1e-12],
    "reg_tokens": [0, 2],
    "pos_embed": ["learn", "sincos2d", "none"],
    "pool": ["cls", "avg", "map"],
    "head": ["linear", "mlp"],
    **{name: [True, False] for name in ("qkv_bias", "final_norm", "class_token")},
    **{name: [False, True] for name in ("qk_norm", "pre_norm", "fc_norm", "dist_token", "no_embed_class")},
    "pool_include_prefix": [False, True],
}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(fields=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in CHOICES.items()}))
def test_any_model_is_the_same_there_or_refused(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, Any]) -> None:
    try:
        ViTConfig(**{**TINY, **fields})
    except ValueError:
        assume(False)
    ours, folder = vit(**fields), tmp_path_factory.mktemp("any")
    images = images_for(ours)
    with contextlib.suppress(Inexpressible):
        path = converted(ours, "timm", folder / "timm")
        same(timm.create_model(f"local-dir:{path}", pretrained=True).eval()(images), ours(images))
    with contextlib.suppress(Inexpressible):
        path = converted(ours, "torchvision", folder / "vit.pth")
        arguments = json.loads(path.with_suffix(".json").read_text())["arguments"]
        theirs = torchvision.models.VisionTransformer(**arguments).eval()
        theirs.load_state_dict(torch.load(path, weights_only=True))
        same(theirs(images), ours(images))
    with contextlib.suppress(Inexpressible):
        path = converted(ours, "npz", folder / "vit.npz")
        said = {"img_size": ours.config.img_size, "mlp": ours.config.mlp, "num_heads": HEADS}
        same(load(path, **said)(images), ours(images))
    with contextlib.suppress(Inexpressible):
        path = converted(ours, "hf", folder / "hf")
        cls = getattr(transformers, json.loads((path / "config.json").read_text())["architectures"][0])
        theirs, report = cls.from_pretrained(path, output_loading_info=True)
        assert not any(report.values())
        if ours.config.num_classes and not (OLD_TRANSFORMERS and ours.config.reg_tokens):
            same(what_it_gives(theirs.eval(), images), ours(images))


# --------------------------------------------------------------------------------------------------------------------
# Places


def test_nothing_is_written_over_unasked(tmp_path: Path) -> None:
    path = converted(vit(), "timm", tmp_path / "made")
    before = (path / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"made exists; give another destination, or overwrite=True \(--overwrite\)$"):
        convert(vit(), "hf", path)
    assert (path / "model.safetensors").stat().st_mtime_ns == before
    assert converted(vit(depth=1), "hf", path, overwrite=True) == path
    assert converted(path, "timm", path, overwrite=True) == path, "onto itself"
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "model.safetensors"], (
        "nothing of the old one is left"
    )
    assert load(path).config.depth == 1
    assert [file.name for file in tmp_path.iterdir()] == ["made"]


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    path = converted(vit(), "timm", tmp_path / "made")
    (path / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(ValueError, match=r"holds more than a checkpoint \(photo\.jpg\); give a folder of its own$"):
        convert(vit(), "timm", path, overwrite=True)
    assert (path / "photo.jpg").read_bytes() == b"dear"


@pytest.mark.parametrize(
    ("to", "name", "says"),
    [
        ("timmm", "made", r'^"timmm" is none of timm, hf, torchvision, npz; did you mean "timm"\?$'),
        ("npz", "made.pth", r'is to be a file for npz, whose suffix is \.npz, not "\.pth"$'),
        ("torchvision", "made.npz", r"whose suffix is \.pth or \.pt or \.safetensors"),
        ("npz", "folder.npz", r"folder\.npz is a folder; give another destination$"),
        ("timm", "file", r"file is a file; give another destination$"),
        ("torchvision", "taken.pth", r"taken\.json is a folder; give another destination$"),
    ],
)
def test_places_that_are_none(tmp_path: Path, to: str, name: str, says: str) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(ValueError, match=says):
        place(to, tmp_path / name, overwrite=True)


@pytest.mark.parametrize("to", ["timm", "hf", "torchvision", "npz"])
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, to: str, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / {"torchvision": "made.pth", "npz": "made.npz"}.get(to, "made")
    if there:
        converted(vit(), to, target)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module in ("convert", "run_folder"):
        monkeypatch.setattr(sys.modules[f"vitrail.weights.{module}"], "save_tensors", full)
    monkeypatch.setattr("torch.save", full)
    monkeypatch.setattr("numpy.lib.format.write_array", full)
    with pytest.raises(OSError, match="No space left"):
        converted(vit(depth=1), to, target, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert len(list(tmp_path.iterdir())) == there * (2 if to == "torchvision" else 1)


def test_the_weights_are_not_copied_to_be_renamed() -> None:
    """Converting needs what the writer needs, and nothing beside it: the plan's tensors are the model's own memory."""
    ours = vit(class_token=False, pool="avg")
    own = {value.untyped_storage().data_ptr() for value in ours.state_dict().values()}
    for to in ("hf", "npz"):
        copied = sum(t.numel() for t in planned(ours, to).tensors.values() if t.untyped_storage().data_ptr() not in own)
        assert copied == 0
    plain = vit()
    own = {value.untyped_storage().data_ptr() for value in plain.state_dict().values()}
    assert all(t.untyped_storage().data_ptr() in own for t in planned(plain, "torchvision").tensors.values())


def test_where_the_weights_come_from_goes_along(tmp_path: Path) -> None:
    weights = tmp_path / "secret place" / "vit.pth"
    weights.parent.mkdir()
    torch.save(vit().state_dict(), weights)
    path = convert(load(weights, num_heads=HEADS), "timm", tmp_path / "made")
    told = json.loads((path / "config.json").read_text())["vitrail"]
    assert told["receipt"]["file"] == "vit.pth"
    assert told["receipt"]["origin"] == "timm"
    assert "secret" not in (path / "config.json").read_text()
    assert read_run(path).data == ""
