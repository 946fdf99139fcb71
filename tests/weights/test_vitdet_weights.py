"""Checkpoints of ViTDet and of SAM's image encoders, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from vitrail.models.vitdet import VitDet
from vitrail.settings import Preprocessing
from vitrail.weights import convert, load, save_model

TIMM: dict[str, Any] = {"img_size": 96, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
TIMM |= {"window_size": 4, "neck_chans": 8, "global_attn_indexes": (1,)}
HF: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 96, "window_size": 4}


def random(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if "rel_pos" in name else 0.2, generator=generator)
    return model.eval()


def of_timm(**arguments: Any) -> Any:
    return random(timm.create_model("samvit_base_patch16", **{**TIMM, **arguments}))


def of_transformers(kind: str, **fields: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(**{**HF, **fields})
    return random(getattr(transformers, f"{kind}Model")(config))


SAM = {"global_attn_indexes": [1], "output_channels": 8, "mlp_ratio": 2.0}
VITDET: dict[str, Any] = {"window_block_indices": [0, 2], "use_relative_position_embeddings": True, "pretrain_image_size": 64}
SAM3 = {"global_attn_indexes": [1], "patch_size": 16, "intermediate_size": 60, "pretrain_image_size": 64}
PEERS: dict[str, Any] = {
    "timm": of_timm,
    "timm, one norm": lambda: of_timm(neck_chans=None, use_abs_pos=False, pre_norm=True, qkv_bias=False),
    "timm, a rectangle": lambda: of_timm(img_size=(64, 96)),
    "transformers SAM": lambda: of_transformers("SamVision", **SAM),
    "transformers SAM, HQ": lambda: of_transformers("SamHQVision", **SAM, use_abs_pos=False),
    "transformers ViTDet": lambda: of_transformers("VitDet", **VITDET, residual_block_indices=[2]),
    "transformers SAM 3": lambda: of_transformers("Sam3ViT", **SAM3),
}


def images(height: int = 96, width: int = 96) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def output_of(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        if isinstance(model, VitDet):
            return model(x) if model.config.num_classes else model.features(x).tokens  # type: ignore[return-value]
        out: Any = model(x)
        out = out if isinstance(out, Tensor) else out.last_hidden_state
    return out.flatten(2).mT if out.ndim == 4 else out


def same(ours: Any, theirs: Any, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    torch.testing.assert_close(output_of(ours, x), output_of(theirs, x), atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("peer", PEERS)
def test_a_live_model_and_its_folder(peer: str, tmp_path: Path) -> None:
    theirs = PEERS[peer]()
    x = images(64, 96) if peer == "timm, a rectangle" else images()
    ours = load(theirs)
    assert isinstance(ours, VitDet)
    same(ours, theirs, x)
    assert ours.receipt is not None
    assert ours.receipt.origin == f"{peer.partition(',')[0]}, VitDet"
    assert ours.config.img_size == ((64, 96) if peer == "timm, a rectangle" else 96)
    if peer.startswith("transformers"):
        theirs.save_pretrained(tmp_path / "theirs")
        same(load(tmp_path / "theirs"), theirs)


@pytest.mark.parametrize("peer", ["timm", "timm, a rectangle", "transformers SAM"])
def test_tables_of_two_sizes_show_windows(peer: str) -> None:
    """From the tensors alone."""
    theirs = PEERS[peer]()
    ours = load(theirs.state_dict())
    same(ours, theirs, images(64, 96) if peer == "timm, a rectangle" else images())
    assert (ours.config.window_size, ours.config.global_blocks) == (4, (1,))


def test_tables_of_one_size_do_not_show_windows() -> None:
    theirs = of_timm(window_size=6)
    with pytest.raises(
        ValueError, match=r"do not tell global_blocks \(.*\): give global_blocks=\(0, 1, 2\) or global_blocks=\(\)"
    ):
        load(theirs.state_dict())
    for size in ((96, 96), (128, 160)):
        same(load(theirs.state_dict(), global_blocks=(1,)), theirs, images(*size))
    same(load(of_timm(window_size=0).state_dict(), window_size=0), of_timm(window_size=0), images(128, 160))
    same(load(of_timm(global_attn_indexes=()).state_dict()), of_timm(global_attn_indexes=()), images(128, 160))


def test_what_no_tensor_shows_is_asked_in_one_line() -> None:
    theirs = of_transformers("VitDet", pretrain_image_size=96, window_block_indices=[0])
    with pytest.raises(ValueError, match=r"do not tell window_size \(.*; nor global_blocks \(.*; nor num_heads \(width 24"):
        load(theirs.state_dict())
    same(load(theirs.state_dict(), window_size=4, global_blocks=(1, 2), num_heads=3), theirs)


def test_a_folder_of_timm(tmp_path: Path) -> None:
    theirs = of_timm(window_size=6)
    save_for_hf(theirs, str(tmp_path / "timm"), model_args={**TIMM, "window_size": 6})
    same(load(tmp_path / "timm"), theirs, images(64, 128))


def meta_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"image_encoder.{name.replace('.mlp.fc', '.mlp.lin')}": value for name, value in state.items()}


def test_sam_s_own_file() -> None:
    """Whose epsilon is that of transformers, and whose other parts are dropped."""
    theirs = of_timm(num_classes=0, norm_layer=lambda width, **kwargs: nn.LayerNorm(width, eps=1e-6, **kwargs))
    rest = {"prompt_encoder.not_a_point_embed.weight": torch.zeros(1, 8), "mask_decoder.iou_token.weight": torch.zeros(1, 8)}
    model = load({**meta_names(theirs.state_dict()), **rest})
    assert model.config.norm_eps == 1e-6
    with torch.no_grad():
        torch.testing.assert_close(model.embedding(images()), theirs(images()), atol=1e-5, rtol=1e-5)
    assert model.receipt is not None
    assert model.receipt.origin == "SAM, VitDet"
    assert {entry.name for entry in model.receipt.entries if entry.status == "dropped"} == set(rest)


def test_vitdet_s_own_file() -> None:
    """detectron2's names are timm's, except a bottleneck's norms; positions are rows, behind one of a class token."""
    theirs = of_transformers("VitDet", **VITDET, residual_block_indices=[2])
    state = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.projection", "patch_embed.proj")
        name = name.replace("encoder.layer", "blocks").replace(".attention.", ".attn.")
        for part in "123":
            name = name.replace(f".residual.norm{part}.", f".residual.conv{part}.norm.")
        state[f"backbone.net.{name}"] = value
    model = load(state)
    same(model, theirs)
    same(model, theirs, images(64, 128))
    assert model.receipt is not None
    assert model.receipt.origin == "detectron2's ViTDet, VitDet"


@pytest.mark.parametrize("peer", ["timm", "transformers ViTDet"])
def test_other_classes_channels_sizes_and_windows(peer: str) -> None:
    theirs = PEERS[peer]()
    model = load(theirs, num_classes=3, in_channels=5, img_size=(128, 32), window_size=3)
    assert model(torch.zeros(1, 5, 128, 32)).shape == (1, 3)
    assert model.receipt is not None
    statuses = {entry.name: entry.status for entry in model.receipt.entries}
    assert statuses["head.fc.weight"] == "new"
    assert statuses["patch_embed.proj.weight"] == "adapted"
    assert statuses["blocks.0.attn.rel_pos_h"] == statuses["blocks.1.attn.rel_pos_w"] == "resized"
    assert statuses["pos_embed"] == ("resized" if peer == "timm" else "exact")  # ViTDet's are resized in every pass
    same(load(theirs, img_size=(128, 32)), theirs, images(128, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("blocks.1.attn.rel_pos_w"),
            r"has no blocks\.1\.attn\.rel_pos_w, so it is not all of a ViTDet",
        ),
        (
            lambda state: state.update(
                {"blocks.2.attn.rel_pos_h": torch.zeros(5, 8), "blocks.2.attn.rel_pos_w": torch.zeros(5, 8)}
            ),
            "tables of relative positions are of 3 sizes, and a ViTDet has one window",
        ),
        (lambda state: state.update({"blocks.0.ls1.gamma": torch.zeros(24)}), "this timm checkpoint is not a plain ViT"),
    ],
)
def test_files_that_are_no_vitdet(change: Any, message: str) -> None:
    state = of_timm().state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        load(state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "relu"}, 'activation "relu" is not GELU'),
        ({"rope_parameters": {"rope_type": "axial", "rope_theta": 9.0}}, "rope_theta 9.0 is not 10000"),
    ],
)
def test_configs_that_are_computed_otherwise(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(of_transformers("Sam3ViT", **SAM3, **fields))


# --------------------------------------------------------------------------------------------------------------------
# Writing


def ours(**fields: Any) -> VitDet:
    shape: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5, "img_size": 96, "window_size": 4}
    model: VitDet = random(VitDet(**{**shape, "global_blocks": (1,), "neck_channels": 8, **fields}))
    height, width = fields.get("img_size", (96, 96))
    model.preprocessing = Preprocessing(img_size=(height, width), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    model.classes = ("a", "b", "c", "d", "e")[: model.config.num_classes]
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm_eps": 1e-6, "pos_embed": "none", "qkv_bias": False},
        {"neck": "norm", "relative": "none", "pre_norm": True, "window_size": 0},
        {"img_size": (64, 96), "mlp_ratio": 2.5},
    ],
)
def test_written_for_timm(fields: dict[str, Any], tmp_path: Path) -> None:
    model = ours(**fields)
    convert(model, "timm", tmp_path / "timm")
    theirs: Any = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    back = load(tmp_path / "timm")
    for size in ((64, 96), (96, 160)):
        same(theirs, model, images(*size))
        same(back, model, images(*size))
    assert (back.classes, back.preprocessing) == (model.classes, model.preprocessing)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("SamVision", {}),
        ("SamVision", {"pos_embed": "none", "mlp_ratio": 2.5, "norm_eps": 1e-6}),
        ("VitDet", {"neck": "none", "residual_blocks": (0,), "pos_grid": 4, "pos_resize": "cubic", "norm_eps": 1e-6}),
        ("VitDet", {"neck": "none", "relative": "none", "window_size": 0}),
        ("Sam3ViT", {"neck": "none", "relative": "rotary", "pos_grid": 4, "pos_resize": "tile", "pre_norm": True}),
    ],
)
def test_written_for_transformers(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model = ours(num_classes=0, **fields)
    convert(model, "hf", tmp_path / "hf")
    theirs, info = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    same(theirs.eval(), model)
    same(load(tmp_path / "hf"), model)
    if kind == "VitDet" and "pos_grid" in fields:
        same(theirs, model, images(64, 128))


@pytest.mark.parametrize(
    ("to", "fields", "message"),
    [
        ("hf", {}, "transformers' SamVisionModel has no num_classes 5, only 0; load the model with num_classes=0"),
        ("hf", {"num_classes": 0, "img_size": (64, 96)}, "transformers' SamVisionModel has no img_size 64x96, only squares"),
        ("hf", {"num_classes": 0, "neck": "norm"}, 'transformers\' VitDetModel has no neck "norm", only "none"'),
        ("hf", {"num_classes": 0, "neck": "none", "pos_grid": 4}, 'has no pos_resize "bicubic", only "cubic"'),
        ("timm", {"norm_eps": 1e-12}, "timm's VisionTransformerSAM has no norm_eps 1e-12, only 1e-05 or 1e-06"),
        ("timm", {"residual_blocks": (1,)}, "has no residual_blocks"),
        ("timm", {"relative": "rotary", "embed_dim": 36}, 'has no relative "rotary", only "decomposed" or "none"'),
        ("torchvision", {}, '"torchvision" has no VitDet'),
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
    larger = load(tmp_path / "run", img_size=128)
    same(larger, model, images(128, 128))
