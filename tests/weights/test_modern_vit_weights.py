"""timm's VisionTransformer with other blocks, and VisionTransformerRelPos, read and written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitrail.models.modern import ModernViT
from vitrail.models.receipt import Receipt
from vitrail.settings import Preprocessing
from vitrail.weights import load
from vitrail.weights.convert import convert

TINY: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 24, "num_classes": 5}
TELLS_ALL = [  # their tensors show everything, or the name of the layout does
    "vit_base_patch16_xp_224",
    "vit_dwee_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256",
    "test_vit_relpos",
    "vit_srelpos_small_patch16_224",
    "vit_relpos_medium_patch16_cls_224",
    "vit_relpos_base_patch16_clsgap_224",
    "vit_relpos_base_patch16_plus_240",
]
ASKS: dict[str, dict[str, Any]] = {
    "vit_small_patch16_18x2_224": {"num_heads": 2},
    "vit_pwee_patch16_reg1_gap_256": {"num_heads": 2},
    "beit3_base_patch16_224": {"num_heads": 2},
    "test_vit4": {"num_heads": 2},
    "vit_relpos_small_patch16_rpn_224": {"norm_position": "res-post"},
}
VARIANTS = [*TELLS_ALL, *ASKS, "vit_base_patch16_rpn_224"]


def of_timm(name: str, **fields: Any) -> Any:
    torch.manual_seed(0)
    more = {} if "relpos" in name else {"dynamic_img_size": True}
    model = timm.create_model(name, **{**TINY, **more, **fields})
    for key, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if re.search("gamma|lambda|rel_pos", key) else 0.1)
    return model.eval()


def images(height: int = 24, width: int = 24) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same(ours: Any, theirs: Any, *sizes: tuple[int, int]) -> None:
    for size in sizes or ((24, 24),):
        if hasattr(theirs, "shared_rel_pos") and not isinstance(theirs, ModernViT):
            theirs.set_input_size(size)
        with torch.no_grad():
            torch.testing.assert_close(ours(images(*size)), theirs(images(*size)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_of_timm_computes_the_same_here_and_again_there(name: str, tmp_path: Path) -> None:
    theirs = of_timm(name)
    ours = load(theirs)
    assert isinstance(ours, ModernViT)
    assert_same(ours, theirs, (24, 24), (32, 20), (16, 40))
    receipt = ours.receipt
    assert isinstance(receipt, Receipt)
    assert receipt.origin == "timm, ModernViT"
    assert {entry.status for entry in receipt.entries} == {"exact"}
    convert(ours, "timm", tmp_path / "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert_same(ours, again)
    assert_same(ours, load(tmp_path / "timm"))
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    del config["vitrail"]
    bare = tmp_path / "bare"
    bare.mkdir()
    save_file(load_file(tmp_path / "timm" / "model.safetensors"), bare / "model.safetensors")
    (bare / "config.json").write_text(json.dumps(config))
    assert_same(ours, load(bare))


@pytest.mark.parametrize("name", TELLS_ALL)
def test_tensors_alone_tell_everything(name: str) -> None:
    theirs = of_timm(name)
    assert_same(load(theirs.state_dict()), theirs)


@pytest.mark.parametrize(("name", "answers"), ASKS.items())
def test_tensors_alone_ask_for_what_they_do_not_show(name: str, answers: dict[str, Any]) -> None:
    theirs = of_timm(name)
    with pytest.raises(ValueError, match=f"tensors do not tell {next(iter(answers))}") as error:
        load(theirs.state_dict())
    assert "\n" not in str(error.value)
    assert_same(load(theirs.state_dict(), **answers), theirs)


def test_norms_behind_the_branches_are_asked_for() -> None:
    theirs = of_timm("vit_base_patch16_rpn_224")
    with pytest.raises(ValueError, match=r'rpn_224, .* give norm_position="res-post" and rope="none"'):
        load(theirs.state_dict(), num_heads=2)
    assert_same(load(theirs.state_dict(), num_heads=2, norm_position="res-post", rope="none"), theirs)


def test_positions_of_registers_are_added_to_them() -> None:
    theirs = of_timm("test_vit4", reg_tokens=3)
    ours = load(theirs.state_dict(), num_heads=2)
    assert ours.get_parameter("pos_embed").shape == (1, 36, 32)
    assert_same(ours, theirs, (24, 24), (32, 20))
    beside = of_timm("test_vit4", no_embed_class=True)
    assert_same(load(beside.state_dict(), num_heads=2), beside)


def test_other_classes_channels_and_sizes() -> None:
    theirs = of_timm("vit_relpos_medium_patch16_cls_224")
    ours = load(theirs, num_classes=9, in_channels=6, img_size=(32, 20))
    assert isinstance(ours.receipt, Receipt)
    states = {entry.name: (entry.status, entry.note) for entry in ours.receipt.entries}
    assert states["patch_embed.proj.weight"] == ("adapted", "3 -> 6 channels")
    assert states["head.weight"][0] == "new"
    larger = load(of_timm("vit_dpwee_patch16_reg1_gap_256"), img_size=(32, 20))
    assert isinstance(larger.receipt, Receipt)
    states = {entry.name: (entry.status, entry.note) for entry in larger.receipt.entries}
    assert states["pos_embed"] == ("resized", "6x6 -> 8x5")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"relative_bias": "block", "pos_embed": "learn"}, 'VisionTransformerRelPos has no pos_embed "learn", only "none"'),
        ({"block": "pair", "norm": "rms"}, 'VisionTransformer has no rms norm of norm_eps 1e-06 with block "pair"'),
        ({"mlp": "swiglu"}, 'VisionTransformer has no mlp "swiglu", only "gelu"'),
        ({"norm_position": "post"}, 'VisionTransformer has no norm_position "post", only "pre" or "res-post"'),
    ],
)
def test_what_timm_has_no_class_for(fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    base = {"rope": "none", "key_bias": True, "norm_eps": 1e-6, "reg_tokens": 0}
    model = ModernViT(**{**TINY, **base, **fields})
    model.preprocessing = Preprocessing(img_size=(24, 24), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ValueError, match=says) as error:
        convert(model, "timm", tmp_path / "timm")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"has no|only"):
        convert(model, "hf", tmp_path / "hf")
