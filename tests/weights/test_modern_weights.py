from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as T
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from vitrail.models.modern import ModernViT
from vitrail.models.receipt import Receipt
from vitrail.settings import Preprocessing
from vitrail.weights import load
from vitrail.weights.convert import convert

TINY: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 24}
VARIANTS = [  # one of each kind
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3_qkvb",
    "eva02_small_patch14_224",
    "eva02_base_patch14_224",
    "eva02_base_patch16_clip_224",
    "eva02_enormous_patch14_clip_224",
    "vit_pe_core_base_patch16_224",
    "vit_pe_spatial_base_patch16_512",
    "vit_betwixt_patch16_rope_reg4_gap_256",
    "vit_small_patch16_rope_ape_224",
    "vit_small_patch16_rope_mixed_224",
    "vit_base_patch16_sapiens2",
    "aimv2_large_patch14_224",
]


def random(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if re.search("gamma|lambda", name) else 0.1)
    return model.eval()


def of_timm(name: str, **fields: Any) -> Any:
    more: dict[str, Any] = {"num_classes": 5, "dynamic_img_size": True, **TINY, **fields}
    if "sapiens2" in name:
        more |= {"num_kv_heads": (2, 1, 1, 2), "depth": 4}
    return random(timm.create_model(name, **more))


def images(height: int = 24, width: int = 24, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def outputs_of(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


# --------------------------------------------------------------------------------------------------------------------
# timm


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_of_timm_computes_the_same_here_and_again_there(name: str, tmp_path: Path) -> None:
    theirs = of_timm(name)
    ours = load(theirs)
    assert isinstance(ours, ModernViT)
    for x in (images(), images(32, 20)):
        torch.testing.assert_close(outputs_of(ours, x), outputs_of(theirs, x), atol=1e-5, rtol=1e-5)
    receipt = ours.receipt
    assert isinstance(receipt, Receipt)
    assert receipt.origin == "timm, ModernViT"
    assert {entry.status for entry in receipt.entries} == {"exact"}
    convert(ours, "timm", tmp_path / "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    torch.testing.assert_close(outputs_of(again, images()), outputs_of(theirs, images()), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs_of(load(tmp_path / "timm"), images()), outputs_of(theirs, images()))
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    del config["vitrail"]
    third = load_with(load_file(tmp_path / "timm" / "model.safetensors"), config, tmp_path / "bare")
    torch.testing.assert_close(outputs_of(third, images()), outputs_of(theirs, images()), atol=1e-5, rtol=1e-5)


def load_with(state: dict[str, Tensor], config: dict[str, Any], folder: Path) -> Any:
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return load(folder)


def test_a_folder_of_timm(tmp_path: Path) -> None:
    theirs = of_timm("vit_base_patch16_dinov3", global_pool="token")
    save_for_hf(theirs, tmp_path, model_args={"num_heads": 2, "img_size": 24})
    ours = load(tmp_path)
    torch.testing.assert_close(outputs_of(ours, images()), outputs_of(theirs, images()), atol=1e-5, rtol=1e-5)
    assert ours.config.pool == "cls"
    assert ours.preprocessing is not None


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("vit_small_patch16_rope_mixed_224", {}),
        ("vit_base_patch16_sapiens2", {"rope": "centred"}),
        ("eva02_base_patch14_224", {"rope": "grid", "rope_ref_grid": 16, "num_heads": 2}),
        ("vit_small_plus_patch16_dinov3", {"rope": "centred", "num_heads": 2, "pool": "avg"}),
        ("vit_small_patch16_dinov3", {"rope": "centred", "num_heads": 2, "pool": "avg"}),
        ("eva02_small_patch14_224", {"rope": "grid", "rope_ref_grid": 16, "num_heads": 2}),
    ],
)
def test_tensors_alone_ask_for_what_they_do_not_show(name: str, answers: dict[str, Any]) -> None:
    theirs = of_timm(name)
    if answers:
        with pytest.raises(ValueError, match="tensors do not tell") as error:
            load(theirs.state_dict())
        assert "\n" not in str(error.value)
        assert "rope" in str(error.value)
    ours = load(theirs.state_dict(), **answers)
    torch.testing.assert_close(outputs_of(ours, images()), outputs_of(theirs, images()), atol=1e-5, rtol=1e-5)


def test_other_classes_channels_and_sizes() -> None:
    theirs = of_timm("eva02_base_patch14_224")
    ours = load(theirs, num_classes=9, in_channels=6, img_size=(32, 20), patch_size=4)
    assert isinstance(ours.receipt, Receipt)
    states = {entry.name: (entry.status, entry.note) for entry in ours.receipt.entries}
    assert states["patch_embed.proj.weight"] == ("adapted", "3 -> 6 channels")
    assert states["pos_embed"] == ("resized", "6x6 -> 8x5")
    assert states["head.weight"][0] == "new"
    x = images(32, 20)
    same = load(theirs, num_classes=0, img_size=(32, 20))
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        torch.testing.assert_close(same(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.embedding(x.repeat(1, 2, 1, 1)), expected, atol=1e-4, rtol=1e-4)
    larger = load(theirs, patch_size=8, img_size=48)
    assert larger(images(48, 48)).shape == (2, 5)
    states = {entry.name: entry.status for entry in larger.receipt.entries}  # type: ignore[union-attr]
    assert states["patch_embed.proj.weight"] == "resized"


# --------------------------------------------------------------------------------------------------------------------
# transformers

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
DINOV3 = {"patch_size": 4, "image_size": 24, "num_register_tokens": 4, **SHAPE}


def tokens_of(theirs: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return theirs(pixel_values=x).last_hidden_state


@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_of_transformers(gated: bool, tmp_path: Path) -> None:
    act = {"use_gated_mlp": True, "hidden_act": "silu"} if gated else {}
    theirs = random(T.DINOv3ViTModel(T.DINOv3ViTConfig(**DINOV3, **act)))
    for source in (theirs, saved(theirs, tmp_path / "theirs")):
        ours = load(source)
        for x in (images(), images(32, 20)):
            features = ours.features(x)
            torch.testing.assert_close(features.tokens, tokens_of(theirs, x), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(ours(x), theirs(pixel_values=x).pooler_output, atol=1e-5, rtol=1e-5)
    five = load_with(theirs.state_dict(), theirs.config.to_dict(), tmp_path / "five")  # names of version 5
    torch.testing.assert_close(ours(images()), five(images()))
    there = written(ours, T.DINOv3ViTModel, tmp_path / "ours")
    torch.testing.assert_close(tokens_of(there, images()), tokens_of(theirs, images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("native", "head"), [(False, False), (False, True), (True, False)])
def test_aimv2_of_transformers(native: bool, head: bool, tmp_path: Path) -> None:
    shape = {"patch_size": 4, "image_size": 24, "is_native": native, "use_head": head, **SHAPE}
    theirs = random(T.Aimv2VisionModel(T.Aimv2VisionConfig(**shape)))
    ours = load(saved(theirs, tmp_path / "theirs"))
    for x in (images(), images(32, 20))[: 2 if native else 1]:  # theirs has no other sizes with learned positions
        torch.testing.assert_close(ours.features(x).tokens, tokens_of(theirs, x), atol=1e-5, rtol=1e-5)
    if head:
        expected = theirs(pixel_values=images()).pooler_output
        torch.testing.assert_close(ours(images()), expected, atol=1e-5, rtol=1e-5)
    there = written(ours, T.Aimv2VisionModel, tmp_path / "ours")
    torch.testing.assert_close(tokens_of(there, images()), tokens_of(theirs, images()), atol=1e-5, rtol=1e-5)


def test_pixtral_of_transformers(tmp_path: Path) -> None:
    theirs = random(T.PixtralVisionModel(T.PixtralVisionConfig(patch_size=4, image_size=24, hidden_act="silu", **SHAPE)))
    ours = load(saved(theirs, tmp_path / "theirs"))
    for x in (images(), images(32, 20)):
        expected = tokens_of(theirs, x).view(2, -1, 32)
        torch.testing.assert_close(ours.features(x).tokens, expected, atol=1e-5, rtol=1e-5)
    odd = T.PixtralVisionModel(T.PixtralVisionConfig(patch_size=4, image_size=24, **SHAPE))
    with pytest.raises(ValueError, match='pixtral has hidden_act "gelu", and a modern ViT silu there'):
        load(odd)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_internvl_of_transformers(norm: str, tmp_path: Path) -> None:
    shape = {"patch_size": (4, 4), "image_size": (24, 24), "norm_type": norm, "use_qk_norm": norm == "rms_norm", **SHAPE}
    theirs = random(T.InternVLVisionModel(T.InternVLVisionConfig(**shape)))
    ours = load(saved(theirs, tmp_path / "theirs"))
    torch.testing.assert_close(ours.features(images()).tokens, tokens_of(theirs, images()), atol=1e-5, rtol=1e-5)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def written(model: Any, kind: Any, folder: Path) -> Any:
    model.preprocessing = model.preprocessing or Preprocessing(
        img_size=(24, 24), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    convert(model, "hf", folder)
    there, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return there.eval()


# --------------------------------------------------------------------------------------------------------------------
# Meta's DINOv3


def metas(theirs: Any, *, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of facebookresearch/dinov3 for a model of timm."""
    state: dict[str, Tensor] = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": 100.0 ** (torch.arange(4) / 4)}
    for name, value in theirs.state_dict().items():
        name = re.sub(r"gamma_(.)$", r"ls\1.gamma", name).replace("reg_token", "storage_tokens")
        name = name.replace("fc1_g", "w1").replace("fc1_x", "w2")
        if hasattr(theirs.blocks[0].mlp, "fc1_g"):
            name = name.replace("fc2", "w3")
        if name.endswith("q_bias"):
            state[name.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.randn(32), torch.zeros(32)])
            state[name.replace("q_bias", "qkv.bias_mask")] = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)])
        elif name.endswith("v_bias"):
            state[name.replace("v_bias", "qkv.bias")][64:] = value
        elif not name.startswith("head."):
            state[name] = value
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb", "vit_7b_patch16_dinov3"]
)
@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_names_of_meta(name: str, prefix: str) -> None:
    theirs = of_timm(name, num_classes=0, global_pool="token")
    ours = load(metas(theirs, prefix=prefix))
    for x in (images(), images(16, 40)):
        torch.testing.assert_close(outputs_of(ours, x), outputs_of(theirs, x), atol=1e-5, rtol=1e-5)
    assert isinstance(ours.receipt, Receipt)
    assert ours.receipt.origin == "DINOv3, ModernViT"
    assert {entry.status for entry in ours.receipt.entries} == {"exact"}
    assert ours.config.num_heads == 2
