from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from timm.models.swin_transformer_v2_cr import checkpoint_filter_fn
from torch import Tensor, nn

from vitrail.models.swin_v2_cr import SwinV2Cr
from vitrail.settings import Preprocessing
from vitrail.weights import convert, load, save_model
from vitrail.weights.libraries.timm.swin_v2_cr import one_value

SHAPE: dict[str, Any] = {"embed_dim": 16, "depths": (2, 1, 2), "num_heads": (2, 4, 4)}


def random(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def of_timm(**fields: Any) -> Any:
    return random(timm.create_model("swinv2_cr_tiny_224", **{"img_size": 96, "num_classes": 5, **SHAPE, **fields}))


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *(size or (96, 96)), generator=torch.Generator().manual_seed(1))


def same(ours: Any, theirs: Any, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"extra_norm_stage": True},
        {"depths": (1, 1, 7), "extra_norm_period": 3},
        {"window_size": 5},
        {"window_size": (6, 20)},
        {"window_ratio": 4},
        {"img_size": (64, 160)},
    ],
)
def test_a_live_model(fields: dict[str, Any]) -> None:
    theirs = of_timm(**fields)
    ours = load(theirs)
    assert isinstance(ours, SwinV2Cr)
    same(ours, theirs, images(*theirs.img_size))
    assert ours.receipt is not None
    assert ours.receipt.origin == "timm, SwinV2Cr"
    assert ours.receipt.backbone_share == 1
    assert {entry.status for entry in ours.receipt.entries} == {"exact"}


@pytest.mark.parametrize("size", [(96, 96), (64, 64), (128, 192)])
def test_a_state_dict_at_any_size_is_timm_s_model_of_that_size(size: tuple[int, int]) -> None:
    """Windows follow the image's size, in timm and here."""
    theirs = of_timm()
    sized = timm.create_model("swinv2_cr_tiny_224", img_size=size, num_classes=5, **SHAPE).eval()
    sized.load_state_dict(theirs.state_dict())
    same(load(theirs.state_dict(), img_size=size), sized, images(*size))
    same(load(theirs, img_size=size), sized, images(*size))
    theirs.set_input_size(size)
    same(load(theirs), theirs, images(*size))


def test_folders_of_timm(tmp_path: Path) -> None:
    theirs = of_timm(window_size=5)
    save_for_hf(theirs, str(tmp_path / "timm"), model_args={"img_size": 96, "window_size": 5, **SHAPE})
    model = load(tmp_path / "timm")
    assert model.config.window_size == 5
    same(model, theirs)
    other = of_timm(img_size=224, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 4))
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    for config in ({"pretrained_cfg": {"input_size": [3, 224, 224]}}, {}):
        named = {"architecture": "swinv2_cr_tiny_224", **config}
        (tmp_path / "config.json").write_text(json.dumps(named), encoding="utf-8")
        same(load(tmp_path), other, images(224, 224))


def test_files_of_2022_have_temperatures(tmp_path: Path) -> None:
    theirs = of_timm(extra_norm_stage=True)
    old: dict[str, Tensor] = {}
    for name, value in theirs.state_dict().items():
        if name.endswith("logit_scale"):
            name, value = name.replace("logit_scale", "tau"), 1 / value.exp()
        old[name.replace("head.fc.", "head.")] = value
    theirs.load_state_dict(checkpoint_filter_fn(old, theirs))
    torch.save({"model": old}, tmp_path / "old.pth")
    same(load(tmp_path / "old.pth", img_size=96), theirs)


def test_an_image_size_that_nothing_tells_is_asked_for() -> None:
    theirs = of_timm()
    with pytest.raises(ValueError, match=r"does not tell img_size \(no tensor shows .*\): give img_size=224 or img_size=384"):
        load(theirs.state_dict())
    same(load(theirs.state_dict(), window_size=3), theirs)


def test_other_classes_channels_and_sizes() -> None:
    model = load(of_timm(), num_classes=3, in_channels=5, img_size=(128, 64), window_ratio=4)
    assert model(torch.zeros(1, 5, 128, 64)).shape == (1, 3)
    assert (model.config.window(0), model.config.img_size) == ((8, 4), (128, 64))
    assert model.receipt is not None
    statuses = {entry.name: entry.status for entry in model.receipt.entries}
    assert statuses["head.fc.weight"] == "new"
    assert statuses["patch_embed.proj.weight"] == "adapted"
    assert set(statuses.values()) == {"exact", "adapted", "new"}
    same(load(model), model, torch.randn(1, 5, 128, 64))
    sized = load(of_timm(window_size=5))
    assert [load(sized, **change).config.window(0) for change in ({}, {"window_ratio": 6})] == [(5, 5), (4, 4)]


def test_models_that_the_family_has_not() -> None:
    with pytest.raises(ValueError, match=r"^always_partition true pads maps"):
        load(of_timm(window_size=20, always_partition=True))
    with pytest.raises(ValueError, match=r"^windows of 3x3, 4x4, 3x3 in the stages are not one window_size"):
        load(of_timm(window_size=((3, 3), (4, 4), (3, 3))))
    with pytest.raises(ValueError, match=r"^timm's window_ratio \[8, 4\] differs between stages"):
        one_value("window_ratio", [8, 4])
    assert [one_value("window_size", value) for value in (7, [7, 6], [[7, 6], [7, 6], [7, 6]])] == [7, (7, 6), (7, 6)]
    state = of_timm().state_dict()
    state |= {f"stages.0.blocks.0.norm3.{part}": torch.ones(16) for part in ("weight", "bias")}
    with pytest.raises(ValueError, match=r"has norm3 in 0\.0, 2\.1, which is neither every so many blocks nor the end"):
        load(state, img_size=96)
    del state["stages.1.blocks.0.attn.proj.weight"]
    with pytest.raises(ValueError, match=r"norm3 in 0\.0|has no stages\.1\.blocks\.0\.attn\.proj\.weight"):
        load(state, img_size=96)


# --------------------------------------------------------------------------------------------------------------------
# Writing


def ours(**fields: Any) -> SwinV2Cr:
    model: SwinV2Cr = random(SwinV2Cr(**{"img_size": (64, 96), "num_classes": 5, **SHAPE, **fields}))
    height, width = model.config.img_size if isinstance(model.config.img_size, tuple) else (model.config.img_size,) * 2
    model.preprocessing = Preprocessing(img_size=(height, width), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    return model


@pytest.mark.parametrize(
    "fields",
    [{}, {"window_size": (4, 5), "extra_norm_stage": True}, {"window_ratio": 3, "extra_norm_period": 1, "num_classes": 0}],
    ids=["plain", "windows", "ratio"],
)
def test_written_for_timm(fields: dict[str, Any], tmp_path: Path) -> None:
    model = ours(**fields)
    convert(model, "timm", tmp_path / "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    same(theirs, model, images(64, 96))
    back = load(tmp_path / "timm")
    assert back.config == model.config
    same(back, model, images(64, 96))
    beside = json.loads((tmp_path / "timm" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "timm" / "config.json").write_text(json.dumps({key: beside[key] for key in beside if key != "vitrail"}))
    same(load(tmp_path / "timm"), model, images(64, 96))  # as a folder of timm's


@pytest.mark.parametrize(
    ("to", "fields", "message"),
    [
        ("timm", {"final_norm": False}, "SwinTransformerV2Cr has no final_norm false"),
        ("timm", {"norm_eps": 1e-6}, "SwinTransformerV2Cr has no norm_eps 1e-06"),
        ("timm", {"img_size": (50, 64)}, "cuts an image of 50x64 px to 48x64 px, and this model pads it; load it with another"),
        ("hf", {}, '"hf" has no SwinV2Cr'),
        ("torchvision", {}, '"torchvision" has no SwinV2Cr'),
    ],
)
def test_models_that_a_library_can_not_be(to: str, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        convert(ours(**fields), to, tmp_path / "out")


@pytest.mark.parametrize("fields", [{}, {"final_norm": False}], ids=["timm's", "ours alone"])
def test_a_run_folder_has_timm_s_names_if_timm_has_the_model(fields: dict[str, Any], tmp_path: Path) -> None:
    model = ours(**fields)
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", data="photos")
    back = load(tmp_path / "run", num_classes=5)
    same(back, model, images(64, 96))
    assert back.receipt is not None
    assert {entry.status for entry in back.receipt.entries} == {"exact"}
    part = "layers" if fields else "stages"
    assert f"{part}.0.blocks.0.attn.meta_mlp.fc1.weight" in load_file(tmp_path / "run" / "model.safetensors")
