from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from torchvision.models import swin_transformer

from vitrail.models.swin_v2 import SwinV2
from vitrail.settings import Preprocessing
from vitrail.weights import convert, load, save_model
from vitrail.weights.libraries.microsoft import swin_names

SHAPE: dict[str, Any] = {"embed_dim": 16, "depths": (2, 1, 2), "num_heads": (2, 4, 4)}


def random(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def of_timm(**fields: Any) -> Any:
    arguments = {"img_size": 64, "window_size": 4, "num_classes": 5, **SHAPE, **fields}
    return random(timm.create_model("swinv2_tiny_window8_256", **arguments))


def of_torchvision() -> Any:
    kinds = {"block": swin_transformer.SwinTransformerBlockV2, "downsample_layer": swin_transformer.PatchMergingV2}
    return random(swin_transformer.SwinTransformer([4, 4], 16, [2, 1, 2], [2, 4, 4], [4, 4], num_classes=5, **kinds))


def of_transformers(**fields: Any) -> Any:
    shape: dict[str, Any] = {"embed_dim": 16, "depths": [2, 1, 2], "num_heads": [2, 4, 4], "num_labels": 5}
    shape |= {"window_size": 4, "image_size": 64, "pretrained_window_sizes": [0, 0, 0], **fields}
    return random(transformers.Swinv2ForImageClassification(transformers.Swinv2Config(**shape)))


def microsoft_state(theirs: nn.Module) -> dict[str, Tensor]:
    """The paper's names for a model of timm's, with the buffers that its code stores."""
    tables = ("relative_coords_table", "relative_position_index")
    buffers = {name: buffer for name, buffer in theirs.named_buffers() if name.endswith(tables)}
    return {swin_names(name)[0]: value for name, value in theirs.state_dict().items()} | buffers


def images(side: int = 64) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def logits_of(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def same(ours: Any, theirs: Any, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    torch.testing.assert_close(logits_of(ours, x), logits_of(theirs, x), atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("timm", of_timm),
        ("timm", lambda: of_timm(window_size=8, pretrained_window_sizes=(6, 6, 3))),
        ("timm", lambda: of_timm(window_size=8, qkv_bias=False)),
        ("torchvision", of_torchvision),
        ("transformers", of_transformers),
        ("transformers", lambda: of_transformers(window_size=8, pretrained_window_sizes=[6, 6, 3])),
    ],
)
def test_a_live_model(library: str, make: Any) -> None:
    theirs = make()
    ours = load(theirs)
    assert isinstance(ours, SwinV2)
    same(ours, theirs)
    assert ours.receipt is not None
    assert ours.receipt.origin == f"{library}, SwinV2"
    assert ours.receipt.backbone_share == 1
    assert not [entry for entry in ours.receipt.entries if entry.status == "dropped"]


def test_folders_of_timm_and_transformers(tmp_path: Path) -> None:
    theirs = of_timm(window_size=8, pretrained_window_sizes=(6, 6, 3))
    arguments = {"img_size": 64, "window_size": [8, 8, 4], "pretrained_window_sizes": [6, 6, 3], **SHAPE}
    save_for_hf(theirs, str(tmp_path / "timm"), model_args=arguments)
    same(load(tmp_path / "timm"), theirs)
    others = of_transformers(window_size=8)
    others.save_pretrained(tmp_path / "hf")
    model = load(tmp_path / "hf")
    assert model.config.window_sizes == (8, 8, 4)
    same(model, others)


def test_tables_in_a_file_show_the_windows() -> None:
    """torchvision and the paper's code store them."""
    same(load(of_torchvision().state_dict()), of_torchvision())
    theirs = of_timm(window_size=8, pretrained_window_sizes=(6, 6, 3))
    model = load(microsoft_state(theirs))
    assert model.receipt is not None
    assert model.receipt.origin == "Microsoft, SwinV2"
    assert (model.config.window_sizes, model.config.pretrained_window_sizes) == ((8, 8, 4), (6, 6, 3))
    same(model, theirs)


def test_a_name_shows_the_windows(tmp_path: Path) -> None:
    theirs = of_timm(depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), img_size=256, window_size=16)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "swinv2_tiny_window16_256", "pretrained_cfg": {"input_size": [3, 256, 256]}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load(tmp_path)
    assert model.config.window_sizes == (16, 16, 16, 8)
    same(model, theirs, images(256))


def test_windows_that_nothing_tells_are_asked_for() -> None:
    theirs = of_timm()
    with pytest.raises(
        ValueError,
        match=r"does not tell window_size \(no tensor shows the side of a window\): give window_size=8 or window_size=16",
    ):
        load(theirs.state_dict())
    same(load(theirs.state_dict(), window_size=4), theirs)
    model = load(of_timm(window_size=8), window_size=4)
    assert (model.config.window_sizes, model.config.pretrained_window_sizes) == ((), (8, 8, 4))


def test_other_classes_channels_sizes_and_windows() -> None:
    theirs = of_torchvision()
    model = load(theirs.state_dict(), num_classes=3, in_channels=5, img_size=(96, 64), window_size=6)
    assert model(torch.zeros(1, 5, 96, 64)).shape == (1, 3)
    assert (model.config.window(0), model.config.pretrained_window(0), model.config.img_size) == (6, 4, (96, 64))
    assert model.receipt is not None
    statuses = {entry.name: entry.status for entry in model.receipt.entries}
    assert statuses["head.fc.weight"] == "new"
    assert statuses["patch_embed.proj.weight"] == "adapted"
    assert set(statuses.values()) == {"exact", "adapted", "new"}
    larger = load(model, window_size=8)
    assert (larger.config.window(0), larger.config.pretrained_window(0)) == (8, 4)


def test_an_incomplete_file() -> None:
    state = of_torchvision().state_dict()
    state.pop("features.1.0.attn.proj.weight")
    with pytest.raises(ValueError, match=r"has no features\.1\.0\.attn\.proj\.weight, so it is not all of a Swin"):
        load(state)


# --------------------------------------------------------------------------------------------------------------------
# Writing


def ours(**fields: Any) -> SwinV2:
    model: SwinV2 = random(SwinV2(**{"img_size": 64, "window_size": 4, "num_classes": 5, **SHAPE, **fields}))
    model.preprocessing = Preprocessing(img_size=(64, 64), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    return model


@pytest.mark.parametrize(
    "fields",
    [{}, {"window_size": 8, "window_sizes": (8, 8, 4), "pretrained_window_sizes": (6, 6, 3)}],
    ids=["plain", "windows"],
)
def test_written_for_timm_and_transformers(fields: dict[str, Any], tmp_path: Path) -> None:
    model = ours(**fields)
    convert(model, "timm", tmp_path / "timm")
    same(timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval(), model)
    convert(model, "hf", tmp_path / "hf")
    theirs, info = transformers.Swinv2ForImageClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    same(theirs.eval(), model)
    for folder in ("timm", "hf"):
        same(load(tmp_path / folder), model)


def test_written_for_torchvision(tmp_path: Path) -> None:
    model = ours()
    convert(model, "torchvision", tmp_path / "swin.pth")
    beside = json.loads((tmp_path / "swin.json").read_text(encoding="utf-8"))
    parts = {name: getattr(swin_transformer, kind) for name, kind in beside["parts"].items()}
    theirs = swin_transformer.SwinTransformer(**beside["arguments"], **parts).eval()
    theirs.load_state_dict(torch.load(tmp_path / "swin.pth", weights_only=True), strict=True)
    same(theirs, model, images(100))
    same(load(tmp_path / "swin.pth"), model)


@pytest.mark.parametrize(
    ("to", "fields", "message"),
    [
        (
            "torchvision",
            {"window_sizes": (4, 4, 2)},
            r"has no window_sizes \(4, 4, 2\); convert it to .timm.",
        ),
        ("torchvision", {"pretrained_window_sizes": (3, 3, 3)}, r"has no pretrained_window_sizes \(3, 3, 3\)"),
        ("timm", {"window_size": 16, "window_sizes": (16, 16, 4)}, "cuts a window of 16 to stage 1's map of 8x8"),
        ("hf", {"window_sizes": (4, 2, 4)}, r"has windows of \(4, 4, 4\) at 64x64 px, and this model of \(4, 2, 4\)"),
        ("npz", {}, '"npz" has no SwinV2'),
    ],
)
def test_models_that_a_library_can_not_be(to: str, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        convert(ours(**fields), to, tmp_path / "out")


def test_a_run_folder_is_ours_and_timms(tmp_path: Path) -> None:
    model = ours()
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", data="photos")
    same(load(tmp_path / "run"), model)
    same(timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval(), model)
    assert "layers.0.blocks.0.attn.q_bias" in load_file(tmp_path / "run" / "model.safetensors")
