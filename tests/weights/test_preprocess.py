"""What a checkpoint says of its images is what timm and transformers make of the same files, down to the pixels."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg
from torch import Tensor
from torchvision import models as torchvision_models

from vitrail.data.augment import normalise
from vitrail.data.decode import eval_view
from vitrail.models import ViT
from vitrail.settings import Pair, Preprocessing
from vitrail.weights.eval_transform import CLIP, HALF, IMAGENET
from vitrail.weights.preprocess import DEFAULTS, Given, preprocessing_for
from vitrail.weights.run_folder import save_model

Config = Mapping[str, Any]


def preprocess(
    config: Config | None = None,
    preprocessor: Config | None = None,
    *,
    origin: str = "timm",
    size: Pair = (224, 224),
    file_size: Pair | None = None,
    channels: int = 3,
    classes: int = 0,
) -> Given:
    return preprocessing_for(
        img_size=size,
        in_channels=channels,
        num_classes=classes,
        config=config or {},
        preprocessor=preprocessor or {},
        origin=origin,
        file_img_size=file_size or size,
    )


def photo(height: int, width: int) -> Image.Image:
    """Smooth areas, edges and a little noise, from a fixed seed."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse).astype(float) + rng.normal(0, 6, (height, width, 3))
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (250, 240, 20)  # something with edges
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def our_pixels(image: Image.Image, images: Preprocessing) -> Tensor:
    """What our model gets."""
    return normalise(eval_view(image, images)[None], images)[0]


def assert_same_pixels(ours: Tensor, theirs: Tensor, images: Preprocessing) -> None:
    """Equal to 0.3 levels of 255 on average, and to 2 but for one value in 10,000.

    A resize is two passes, down and across, and both libraries round and clip to whole levels between them. Ours makes
    only what is kept, so Pillow may begin with the other pass; transformers resizes with torch. At a sharp edge, where
    bicubic overshoots, that comes to some levels.
    """
    distance = (ours - theirs).abs() * torch.tensor(images.std).view(-1, 1, 1) * 255
    assert distance.mean() < 0.3
    assert (distance > 2.01).float().mean() < 1e-4
    assert distance.max() < 10


# --------------------------------------------------------------------------------------------------------------------
# timm

TIMM = (
    "beitv2_base_patch16_224.in1k_ft_in22k_in1k",
    "deit3_base_patch16_224.fb_in1k",
    "deit_base_distilled_patch16_384.fb_in1k",
    "deit_base_patch16_224.fb_in1k",
    "flexivit_base.1200ep_in1k",
    "test_vit.r160_in1k",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_base_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_224.mae",
    "vit_base_patch16_224_miil.in21k",  # mean 0, deviation 1, bilinear
    "vit_base_patch16_384.augreg_in21k_ft_in1k",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_clip_384.openai_ft_in12k_in1k",  # squash at 0.95
    "vit_base_patch16_siglip_224.webli",
    "vit_giant_patch14_clip_224.laion2b",
    "vit_huge_patch14_gap_224.in1k_ijepa",
    "vit_large_patch14_clip_336.openai_ft_in12k_in1k",  # squash
    "vit_mediumd_patch16_reg4_gap_256.sbb_in12k_ft_in1k",
    "vit_small_patch16_224.dino",
    "vit_so400m_patch14_siglip_384.webli",
    "vit_tiny_patch16_224.augreg_in21k",
)


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("bare", [False, True])
def test_timm_s_config_is_read_as_timm_reads_it(name: str, bare: bool) -> None:
    cfg = get_pretrained_cfg(name)
    assert cfg is not None
    fields = json.loads(json.dumps(cfg.to_dict()))
    theirs = resolve_data_config(pretrained_cfg=fields)
    size = theirs["input_size"][1], theirs["input_size"][2]
    result = preprocess(fields if bare else {"architecture": name.split(".")[0], "pretrained_cfg": fields}, size=size)
    assert (result.source, result.guessed, result.classes) == ("timm's pretrained_cfg", False, ())
    assert dataclasses.asdict(result.preprocessing) == {
        "img_size": size,
        "in_channels": 3,
        "mean": tuple(theirs["mean"]),
        "std": tuple(theirs["std"]),
        "crop_pct": theirs["crop_pct"],
        "crop_mode": theirs["crop_mode"],
        "interpolation": theirs["interpolation"],
        "range": None,
    }


def test_the_names_cover_every_way_that_timm_s_plain_vits_crop() -> None:
    cfgs = [get_pretrained_cfg(name) for name in timm.list_models("vit_*", module="vision_transformer", pretrained=True)]
    every = {(cfg.crop_mode, cfg.interpolation) for cfg in cfgs if cfg is not None}
    tested = {(cfg.crop_mode, cfg.interpolation) for cfg in map(get_pretrained_cfg, TIMM) if cfg is not None}
    assert every <= tested


def test_what_timm_s_config_leaves_out() -> None:
    theirs = resolve_data_config(pretrained_cfg={"num_classes": 7})
    result = preprocess({"pretrained_cfg": {"num_classes": 7}}).preprocessing
    assert (result.mean, result.std) == (theirs["mean"], theirs["std"])
    assert (result.crop_pct, result.crop_mode, result.interpolation) == (theirs["crop_pct"], theirs["crop_mode"], "bicubic")


@pytest.mark.parametrize(
    ("fields", "interpolation", "source"),
    [
        ({"interpolation": "random"}, "bicubic", 'timm\'s pretrained_cfg (its filter "random" is read as "bicubic")'),
        ({"interpolation": "lanczos"}, "bicubic", 'timm\'s pretrained_cfg (its filter "lanczos" is read as "bicubic")'),
        ({"interpolation": "nearest"}, "bilinear", 'timm\'s pretrained_cfg (its filter "nearest" is read as "bilinear")'),
        ({"crop_mode": "border"}, "bicubic", 'timm\'s pretrained_cfg (its crop mode "border" is read as "center")'),
    ],
)
def test_what_is_read_otherwise_is_said(fields: Config, interpolation: str, source: str) -> None:
    result = preprocess({"pretrained_cfg": fields})
    assert (result.preprocessing.interpolation, result.preprocessing.crop_mode) == (interpolation, "center")
    assert (result.source, result.guessed) == (source, False)


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_384.openai_ft_in12k_in1k", *TIMM[6:11], TIMM[17]])
@pytest.mark.parametrize("shape", [(300, 420), (431, 297)])
def test_the_pixels_are_timm_s(name: str, shape: Pair) -> None:
    cfg = get_pretrained_cfg(name)
    assert cfg is not None
    theirs = resolve_data_config(pretrained_cfg=cfg.to_dict())
    images = preprocess({"pretrained_cfg": cfg.to_dict()}, size=theirs["input_size"][1:]).preprocessing
    image = photo(*shape)
    assert_same_pixels(our_pixels(image, images), create_transform(**theirs)(image), images)


# --------------------------------------------------------------------------------------------------------------------
# transformers

# The defaults of the classes, and what well-known repositories' files say
PROCESSORS: dict[str, tuple[Any, Config]] = {
    "ViT": (transformers.ViTImageProcessor, {}),
    "ViT, 384 px": (transformers.ViTImageProcessor, {"size": {"height": 384, "width": 384}}),
    "ViTMAE": (
        transformers.ViTImageProcessor,
        {"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1]), "resample": 3},
    ),
    "DeiT": (transformers.DeiTImageProcessor, {}),
    "DeiT, as the hub has it": (
        transformers.DeiTImageProcessor,
        {"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1]), "size": 256, "crop_size": 224},
    ),
    "Siglip": (transformers.SiglipImageProcessor, {}),
    "Beit": (transformers.BeitImageProcessor, {}),
    "CLIP": (transformers.CLIPImageProcessor, {}),
    "CLIP, 336 px": (transformers.CLIPImageProcessor, {"size": 336, "crop_size": 336}),
    "Bit": (transformers.BitImageProcessor, {}),
    "DINOv2": (
        transformers.BitImageProcessor,
        {
            "image_mean": list(IMAGENET[0]),
            "image_std": list(IMAGENET[1]),
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
        },
    ),
    "no normalisation": (transformers.ViTImageProcessor, {"do_normalize": False}),
    "no rescaling": (
        transformers.ViTImageProcessor,
        {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    ),
    "another scale": (transformers.ViTImageProcessor, {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(300, 420), (400, 300)])
def test_the_pixels_are_transformers(name: str, shape: Pair) -> None:
    """Of shapes whose crop stands at the same pixel: half a pixel goes down there, to the even number here."""
    make, fields = PROCESSORS[name]
    theirs = make(**fields)
    image = photo(*shape)
    pixels = torch.as_tensor(theirs(image, return_tensors="pt")["pixel_values"])[0].float()
    size = pixels.shape[1], pixels.shape[2]
    result = preprocess(preprocessor=json.loads(theirs.to_json_string()), size=size, origin="transformers")
    assert (result.source, result.guessed) == ("preprocessor_config.json", False)
    assert_same_pixels(our_pixels(image, result.preprocessing), pixels, result.preprocessing)


def test_a_squashed_image_is_exactly_what_transformers_makes_with_pillow() -> None:
    processor = transformers.ViTImageProcessorPil()
    image = photo(300, 420)
    images = preprocess(preprocessor=processor.to_dict()).preprocessing
    pixels = torch.as_tensor(np.asarray(processor(image)["pixel_values"]))[0].float()
    torch.testing.assert_close(our_pixels(image, images), pixels, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "mean_std", "crop", "interpolation"),
    [
        ("ViT", HALF, (1.0, "squash"), "bilinear"),
        ("ViTMAE", IMAGENET, (1.0, "squash"), "bicubic"),
        ("DeiT", HALF, (0.875, "squash"), "bicubic"),
        ("Siglip", HALF, (1.0, "squash"), "bicubic"),
        ("Beit", HALF, (1.0, "squash"), "bicubic"),
        ("CLIP", CLIP, (1.0, "center"), "bicubic"),
        ("Bit", CLIP, (1.0, "center"), "bicubic"),
        ("DINOv2", IMAGENET, (0.875, "center"), "bicubic"),
    ],
)
def test_what_the_processors_come_to(
    name: str, mean_std: tuple[tuple[float, ...], tuple[float, ...]], crop: tuple[float, str], interpolation: str
) -> None:
    make, fields = PROCESSORS[name]
    images = preprocess(preprocessor=make(**fields).to_dict()).preprocessing
    assert (images.mean, images.std) == mean_std
    assert (images.crop_pct, images.crop_mode) == crop
    assert images.interpolation == interpolation


@pytest.mark.parametrize("name", ["ViT", "DeiT", "Siglip", "Beit", "CLIP", "Bit"])
def test_what_a_processor_s_file_leaves_out_is_its_default(name: str) -> None:
    whole = PROCESSORS[name][0]().to_dict()
    expected = preprocess(preprocessor=whole)
    for key in whole.keys() - {"image_processor_type", "size", "crop_size"}:
        assert preprocess(preprocessor={k: v for k, v in whole.items() if k != key}) == expected, key
        assert preprocess(preprocessor={**whole, key: None}) == expected, key
    old = {k: v for k, v in whole.items() if k != "image_processor_type"} | {
        "feature_extractor_type": f"{name}FeatureExtractor"
    }
    assert preprocess(preprocessor=old) == expected


@pytest.mark.parametrize(
    ("file", "crop"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 224}, (1.0, "squash")),
        ({"size": 224}, (1.0, "squash")),  # google/vit-base-patch16-224
        ({"size": [224, 224]}, (1.0, "squash")),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224}, (0.875, "squash")),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224}, (1.0, "center")),
        ({"image_processor_type": "BitImageProcessor", "size": 256, "crop_size": 224}, (0.875, "center")),
        ({"image_processor_type": "BitImageProcessor", "size": 200, "crop_size": 224}, (1.0, "center")),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            (1.0, "center"),
        ),  # and no do_center_crop
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, (0.875, "center")),
    ],
)
def test_sizes_in_all_their_spellings(file: Config, crop: tuple[float, str]) -> None:
    images = preprocess(preprocessor={"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], **file}).preprocessing
    assert (images.crop_pct, images.crop_mode) == crop
    assert (images.mean, images.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_what_a_processor_does_otherwise_is_said() -> None:
    file = {"image_processor_type": "ViTImageProcessor", "resample": 1, "do_resize": False, "size": {"longest_edge": 99}}
    assert preprocess(preprocessor=file).source == (
        "preprocessor_config.json (its size by longest_edge is read as that of the shorter side; "
        'it does not resize, Vitrail does; its filter "lanczos" is read as "bicubic")'
    )
    dinov2 = PROCESSORS["DINOv2"][0](**PROCESSORS["DINOv2"][1]).to_dict()
    result = preprocess(preprocessor=dinov2, size=(518, 518))
    assert result.source == "preprocessor_config.json (its images are 224x224)"
    assert (result.preprocessing.img_size, result.preprocessing.crop_pct) == ((518, 518), 0.875)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 600), st.integers(1, 800))
def test_a_crop_comes_from_the_size_that_the_file_says(crop: int, size: int) -> None:
    file = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": size}, "crop_size": crop}
    crop_pct = preprocess(preprocessor=file, size=(crop, crop)).preprocessing.crop_pct
    assert math.floor(crop / crop_pct) == max(crop, size)


# --------------------------------------------------------------------------------------------------------------------
# open_clip, a run, built-in rules, a guess


def test_open_clip_s_config() -> None:
    result = preprocess({"model_cfg": {}, "preprocess_cfg": {"mean": list(HALF[0]), "std": list(HALF[1])}}, origin="open_clip")
    assert (result.source, result.guessed) == ("open_clip's preprocess_cfg", False)
    assert (result.preprocessing.mean, result.preprocessing.std) == HALF
    assert (result.preprocessing.crop_pct, result.preprocessing.crop_mode, result.preprocessing.interpolation) == (
        1,
        "center",
        "bicubic",
    )
    cfg = {"mean": 0.5, "std": 0.5, "interpolation": "bilinear", "resize_mode": "squash"}
    squash = preprocess({"preprocess_cfg": cfg}).preprocessing
    assert (squash.mean, squash.crop_mode, squash.interpolation) == (HALF[0], "squash", "bilinear")
    assert (preprocess({"preprocess_cfg": {}}).preprocessing.mean, preprocess({"preprocess_cfg": {}}).preprocessing.std) == CLIP
    longest = preprocess({"preprocess_cfg": {"resize_mode": "longest"}})
    assert longest.source == 'open_clip\'s preprocess_cfg (its resize mode "longest" is read as "shortest")'


def test_a_run_s_own_preprocessing_comes_first(tmp_path: Path) -> None:
    model = ViT(img_size=(8, 12), patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, num_classes=2)
    model.preprocessing = Preprocessing(
        img_size=(8, 12), in_channels=1, mean=(0.2,), std=(0.3,), crop_pct=0.9, crop_mode="squash"
    )
    model.classes = ("cat", "dog")
    save_model(model, tmp_path, data="photos")
    config = json.loads((tmp_path / "config.json").read_text())
    result = preprocess(config, origin="vitrail", size=(8, 12), channels=1, classes=2)
    assert result == Given(model.preprocessing, ("cat", "dog"), "the run's config.json", guessed=False)
    colour = preprocess(config, origin="vitrail", size=(16, 16), classes=3)
    assert colour.preprocessing == dataclasses.replace(
        model.preprocessing, img_size=(16, 16), in_channels=3, mean=(0.2,) * 3, std=(0.3,) * 3
    )
    assert colour.classes == ()
    with pytest.raises(
        ValueError, match=r"^config.json's preprocessing can't be read \('preprocessing'\); restore it from a copy$"
    ):
        preprocess({"vitrail": {}})


def test_which_file_comes_first() -> None:
    processor = {"image_mean": [0.1] * 3, "image_std": [0.1] * 3}
    cfg, clip = {"mean": [0.2] * 3, "std": [0.2] * 3}, {"mean": [0.3] * 3, "std": [0.3] * 3}
    config = {"pretrained_cfg": cfg, "preprocess_cfg": clip}
    assert preprocess(config, processor, origin="torchvision").preprocessing.mean == (0.1,) * 3
    assert preprocess(config, origin="torchvision").preprocessing.mean == (0.2,) * 3
    assert preprocess({"preprocess_cfg": clip}, origin="torchvision").preprocessing.mean == (0.3,) * 3
    assert preprocess(origin="torchvision").preprocessing.mean == IMAGENET[0]
    unknown = {"image_processor_type": "SomebodysProcessor", "do_normalize": True}  # says nothing that could be used
    assert preprocess(config, unknown).source == "timm's pretrained_cfg"


@pytest.mark.parametrize(
    ("origin", "size", "mean_std", "crop", "whose"),
    [
        ("google npz", 224, HALF, (1.0, "squash", "bilinear"), "Google's checkpoints"),
        ("Google vision_transformer", 384, HALF, (1.0, "squash", "bilinear"), "Google's checkpoints"),
        ("Google big_vision", 224, HALF, (0.875, "center", "bilinear"), "big_vision's checkpoints"),
        ("openai clip", 224, CLIP, (1.0, "center", "bicubic"), "CLIP"),
        ("open_clip", 336, CLIP, (1.0, "center", "bicubic"), "CLIP"),
        ("transformers SigLIP", 384, HALF, (1.0, "squash", "bicubic"), "SigLIP"),
        ("dino", 224, IMAGENET, (0.875, "center", "bicubic"), "DINO's checkpoints"),
        ("DINOv2", 518, IMAGENET, (0.875, "center", "bicubic"), "DINO's checkpoints"),
        ("mae", 224, IMAGENET, (0.875, "center", "bicubic"), "MAE's checkpoints"),
        ("mae", 448, IMAGENET, (1.0, "center", "bicubic"), "MAE's checkpoints"),
        ("deit", 384, IMAGENET, (0.875, "center", "bicubic"), "DeiT's checkpoints"),
    ],
)
def test_built_in_rules(
    origin: str,
    size: int,
    mean_std: tuple[tuple[float, ...], tuple[float, ...]],
    crop: tuple[float, str, str],
    whose: str,
) -> None:
    result = preprocess(origin=origin, size=(size, size))
    images = result.preprocessing
    assert (images.mean, images.std) == mean_std
    assert (images.crop_pct, images.crop_mode, images.interpolation) == crop
    assert (result.source, result.guessed) == (f"built in for {whose}", False)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ViT_B_16_Weights.IMAGENET1K_V1", 224),
        ("ViT_B_32_Weights.IMAGENET1K_V1", 224),
        ("ViT_L_32_Weights.IMAGENET1K_V1", 224),
        ("ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", 384),
        ("ViT_L_16_Weights.IMAGENET1K_SWAG_E2E_V1", 512),
        ("ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1", 518),
    ],
)
def test_torchvision_s_rule_is_in_torchvision_s_weights(name: str, size: int) -> None:
    theirs = torchvision_models.get_weight(name).transforms()
    images = preprocess(origin="torchvision", size=(size, size)).preprocessing
    assert (list(images.mean), list(images.std)) == (theirs.mean, theirs.std)
    assert images.interpolation == theirs.interpolation.value
    assert [theirs.crop_size, theirs.resize_size] == [[size], [math.floor(size / images.crop_pct)]]


@pytest.mark.parametrize(
    ("origin", "model_type"), [("transformers", "deit"), ("transformers", "dinov2"), ("transformers", "vit_mae")]
)
def test_the_model_type_stands_for_an_origin_without_a_rule(origin: str, model_type: str) -> None:
    assert preprocess({"model_type": model_type}, origin=origin).guessed is False


@pytest.mark.parametrize("origin", ["timm", "transformers", "vit-pytorch", "vit-pytorch before 1.0", "vitrail"])
def test_a_guess_is_called_one(origin: str) -> None:
    result = preprocess(origin=origin)
    assert (result.preprocessing.mean, result.preprocessing.std) == IMAGENET
    assert (result.source, result.guessed) == ("a guess: ImageNet's mean and std", True)


def test_every_rule_can_be_reached() -> None:
    for default in DEFAULTS:
        assert preprocess(origin=default.word).source == f"built in for {default.whose}"


# --------------------------------------------------------------------------------------------------------------------
# Sizes, channels, classes, mistakes


def test_another_size_keeps_the_share() -> None:
    cfg = get_pretrained_cfg("flexivit_base.1200ep_in1k")
    assert cfg is not None
    images = preprocess({"pretrained_cfg": cfg.to_dict()}, size=(96, 160), file_size=(240, 240)).preprocessing
    assert (images.img_size, images.crop_pct) == ((96, 160), 0.95)


@pytest.mark.parametrize(
    ("channels", "mean"), [(1, 0.449), (2, (0.485, 0.456)), (3, IMAGENET[0]), (5, (0.485, 0.456, 0.406, 0.485, 0.456))]
)
def test_other_channels(channels: int, mean: float | tuple[float, ...]) -> None:
    images = preprocess(origin="torchvision", channels=channels).preprocessing
    assert images.in_channels == len(images.mean) == len(images.std) == channels
    assert images.mean == pytest.approx(mean if isinstance(mean, tuple) else (mean,))


@pytest.mark.parametrize(
    ("config", "classes"),
    [
        ({"id2label": {"0": "cat", "1": "dog", "2": "naïve owl"}}, ("cat", "dog", "naïve owl")),
        ({"id2label": {2: "owl", 0: "cat", 1: "dog"}}, ("cat", "dog", "owl")),
        ({"label_names": ["cat", "dog", "owl"]}, ("cat", "dog", "owl")),
        ({"label_names": {"0": "cat", "2": "dog", "7": "owl"}}, ()),  # timm allows gaps
        ({"pretrained_cfg": {"label_names": ["cat", "dog", "owl"]}}, ("cat", "dog", "owl")),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, ()),
        ({"id2label": {"0": "cat", "1": "dog"}}, ()),
        ({"label_names": ["cat", "dog", ""]}, ()),
        ({"label_names": "cat"}, ()),
        ({"label_names": 3}, ()),
        ({}, ()),
    ],
)
def test_classes(config: Config, classes: tuple[str, ...]) -> None:
    assert preprocess(config, classes=3).classes == classes


@pytest.mark.parametrize(
    ("config", "preprocessor", "message"),
    [
        ({}, {"image_mean": "half", "image_std": [1]}, "preprocessor_config.json: image_mean 'half' must be numbers; mend"),
        ({}, {"image_mean": [0.5], "image_std": [0.5, 0]}, r"image_std \[0.5, 0\] must be numbers above 0; mend the file"),
        ({}, {"image_processor_type": "CLIPImageProcessor", "crop_size": "small"}, "crop_size 'small' must be numbers above 0"),
        ({}, {"image_processor_type": "ViTImageProcessor", "rescale_factor": 0}, "rescale_factor 0 must be numbers above 0"),
        (
            {"pretrained_cfg": {"std": [math.nan] * 3}},
            {},
            r"timm's pretrained_cfg: std \[nan, nan, nan\] must be numbers above 0",
        ),
        ({"pretrained_cfg": {"crop_pct": 1.2}}, {}, "timm's pretrained_cfg: crop_pct 1.2 must be at most 1; mend the file"),
        ({"preprocess_cfg": {"mean": [None]}}, {}, r"open_clip's preprocess_cfg: mean \[None\] must be numbers; mend the file"),
    ],
)
def test_what_can_t_be_is_refused_in_one_line(config: Config, preprocessor: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        preprocess(config, preprocessor)
    assert "\n" not in str(error.value)
