"""Checkpoints of hybrids: timm's and Google's, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from google_reference import forward, random_weights
from timm.models._hub import save_for_hf
from torch import Tensor, nn

import vitrail
from timm_hybrid import DIM, KINDS, SHAPE, WIDTH, randomise, timm_hybrid
from vitrail.models.hybrid import Hybrid
from vitrail.models.receipt import Receipt
from vitrail.settings import Preprocessing
from vitrail.settings.hybrid import HybridConfig, parse_hybrid_name
from vitrail.weights import convert, load, save_model
from vitrail.weights.libraries.timm import RUN_FORMS
from vitrail.weights.targets import Inexpressible


def images(height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x)
    return out


def same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    expected = logits_of(theirs, x)
    torch.testing.assert_close(logits_of(ours, x), expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0.0)


def receipt_of(model: Any) -> Receipt:
    assert isinstance(model.receipt, Receipt)
    return model.receipt


# --------------------------------------------------------------------------------------------------------------------
# timm


@pytest.mark.parametrize("kind", KINDS)
def test_what_timm_holds_computes_the_same(kind: str) -> None:
    theirs = timm_hybrid(kind, img_size=(64, 96))
    ours = load(theirs)
    assert isinstance(ours, Hybrid)
    expected = HybridConfig(**{"img_size": (64, 96), "cnn_width": WIDTH if kind != "patches" else 64, **SHAPE, **KINDS[kind]})
    assert ours.config == expected
    same(ours, theirs, images(64, 96))
    receipt = receipt_of(ours)
    assert receipt.origin == "timm, Hybrid"
    assert {entry.status for entry in receipt.entries} == {"exact"}
    assert receipt.backbone_share == 1


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_small_resnet26d_224"])
def test_a_state_dict_and_a_folder_of_timm(name: str, tmp_path: Path) -> None:
    theirs = randomise(timm.create_model(name, depth=1, img_size=64, num_classes=5))
    ours = load(theirs.state_dict())
    same(ours, theirs, images())
    assert ours.config.num_heads == parse_hybrid_name(name)["num_heads"]  # type: ignore[index]
    save_for_hf(theirs, tmp_path, model_args={"depth": 1, "img_size": 64})
    again = load(tmp_path)
    same(again, theirs, images())
    assert again.config == ours.config


@pytest.mark.parametrize("kind", ["bit", "resnet-d", "patches"])
def test_other_sizes_channels_and_classes(kind: str) -> None:
    theirs = timm_hybrid(kind)
    stored = load(theirs)
    ours = load(theirs, img_size=(96, 32), in_channels=6, num_classes=9)
    entries = {entry.name: entry for entry in receipt_of(ours).entries}
    first = f"{ours.stems[0]}.weight"
    assert (entries[first].status, entries[first].note) == ("adapted", "3 -> 6 channels")
    assert entries["pos_embed"].status == "resized"
    assert entries["head.weight"].status == "new"
    assert logits_of(ours, images(96, 32, 6)).shape == (2, 9)
    resized = load(theirs, img_size=(96, 32))
    same(resized, stored, images(96, 32))  # the model resizes its positions in the same way
    assert logits_of(load(theirs, num_classes=0), images()).shape == (2, DIM)
    if kind != "bit":  # filters that are standardised do not care for scale, so the sum of channels is another one
        twice = logits_of(load(theirs, in_channels=6), images().repeat(1, 2, 1, 1))
        torch.testing.assert_close(twice, logits_of(theirs, images()), atol=1e-4, rtol=1e-4)


def test_another_patch_of_the_feature_map() -> None:
    ours = load(timm_hybrid("bit, first layer alone"), patch_size=8)
    entries = {entry.name: entry for entry in receipt_of(ours).entries}
    assert (entries["patch_embed.proj.weight"].status, entries["patch_embed.proj.weight"].note) == ("resized", "patch 16 -> 8")
    assert ours.features(images()).grid == (8, 8)


def test_arguments_of_timm_s_transformer() -> None:
    arguments = {"global_pool": "avg", "qkv_bias": False, "init_values": 0.1, "qk_norm": True, "no_embed_class": True}
    theirs = timm_hybrid("bit", **arguments)
    ours = load(theirs)
    same(ours, theirs, images())
    shown = {name: getattr(ours.config, name) for name in ("pool", "fc_norm", "qkv_bias", "qk_norm", "no_embed_class")}
    assert shown == {"pool": "avg", "fc_norm": True, "qkv_bias": False, "qk_norm": True, "no_embed_class": True}
    pooled = timm_hybrid("patches", global_pool="map", class_token=False)
    same(load(pooled), pooled, images())


def test_heads_that_nothing_shows_are_asked_for() -> None:
    state = timm_hybrid("bit").state_dict()
    with pytest.raises(ValueError, match=r"^the tensors do not tell num_heads \(width 24; .*\): give num_heads=1$"):
        load(state)
    same(load(state, num_heads=3), timm_hybrid("bit"), images())
    with pytest.raises(ValueError, match=r"the position embedding has 97 rows, which make no square; give img_size="):
        load(timm_hybrid("bit", img_size=(64, 96)).state_dict(), num_heads=3)
    state.pop("patch_embed.backbone.stages.0.blocks.1.norm2.bias")
    with pytest.raises(
        ValueError, match=r"has no patch_embed\..*norm2\.bias, so it is not all of a hybrid ViT; give a whole one"
    ):
        load(state, num_heads=3)


WRITTEN = ("vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224", "vit_small_resnet50d_s16_224", "vit_base_mci_224")


@pytest.mark.parametrize("name", WRITTEN)
def test_written_for_timm(name: str, tmp_path: Path) -> None:
    fields = {"depth": 1, "img_size": (64, 96), "num_classes": 3, "reg_tokens": 2 if "tiny" in name else 0}
    torch.manual_seed(0)
    model = randomise(vitrail.create_model(name, **fields))
    model.preprocessing = Preprocessing(img_size=(64, 96), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.classes = tuple("abc")
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", data="toys")
    downloads = "resnet" in name  # timm fetches the CNN's own weights first where pretrained is true
    if downloads:
        with pytest.warns(UserWarning, match="give checkpoint_path instead"):
            convert(model, "timm", tmp_path / "timm")
    else:
        convert(model, "timm", tmp_path / "timm")
    for folder in (tmp_path / "run", tmp_path / "timm"):
        how: dict[str, Any] = {"checkpoint_path": str(folder / "model.safetensors")} if downloads else {"pretrained": True}
        theirs = timm.create_model(f"local-dir:{folder}", **how).eval()
        same(theirs, model, images(64, 96))
        again = load(folder)
        assert (again.classes, again.preprocessing) == (model.classes, model.preprocessing)
        same(again, model, images(64, 96))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"cnn_depths": (2, 1), "patch_size": 8},
            r'no hybrid of cnn "bit" with cnn_depths \(2, 1\), only \(\) or \(2, 2, 2, 2\)',
        ),
        ({"cnn_width": 32}, "timm's hybrids have no cnn_width 32, only 64"),
        ({"cnn_eps": "google"}, 'have no cnn_eps "google", only "timm"; load it with cnn_eps="timm", which computes nearly'),
        ({"cnn": "patches", "cnn_depths": (), "embed_dim": 24}, "timm's hybrids have no embed_dim 24, only 768"),
        ({"norm_eps": 1e-5}, "has no norm_eps 1e-05, only 1e-06"),
        ({"dist_token": True}, "has no dist_token true, only false"),
    ],
)
def test_what_timm_does_not_have_is_said(fields: dict[str, Any], says: str) -> None:
    with torch.device("meta"):
        model = Hybrid(HybridConfig(**{"img_size": 64, "embed_dim": 768, "depth": 1, "num_heads": 12, **fields}))
    given = Preprocessing(img_size=(64, 64), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(Inexpressible, match=says):
        RUN_FORMS[HybridConfig](model, model.state_dict(), given, None)


# --------------------------------------------------------------------------------------------------------------------
# Google


def google_arrays(depths: tuple[int, ...], *, width: int = WIDTH) -> dict[str, np.ndarray[Any, Any]]:
    """An .npz of vision_transformer: the Transformer of `random_weights` behind a CNN, for a map of 4x4 cells."""
    rng, arrays = np.random.default_rng(0), random_weights(big_vision=False, pool="tok")
    out = width if not depths else width * 4 * 2 ** (len(depths) - 1)
    cells = 1 if depths else 4
    arrays["embedding/kernel"] = rng.normal(size=(cells, cells, out, 48)).astype(np.float32) * 0.1

    def conv(name: str, norm: str, side: int, before: int, after: int) -> None:
        arrays[f"{name}/kernel"] = rng.normal(0.3, 0.1, (side, side, before, after)).astype(np.float32)
        arrays[f"{norm}/scale"] = (1 + 0.2 * rng.normal(size=(1, 1, 1, after))).astype(np.float32)  # as the first files
        arrays[f"{norm}/bias"] = 0.2 * rng.normal(size=(1, 1, 1, after)).astype(np.float32)

    conv("conv_root", "gn_root", 7, 3, width)
    before = width
    for stage, depth in enumerate(depths, start=1):
        after = width * 4 * 2 ** (stage - 1)
        for unit in (f"block{stage}/unit{number}" for number in range(1, depth + 1)):
            if unit.endswith("unit1"):
                conv(f"{unit}/conv_proj", f"{unit}/gn_proj", 1, before, after)
            sides = ((1, before, after // 4), (3, after // 4, after // 4), (1, after // 4, after))
            for number, (side, inputs, outputs) in enumerate(sides, start=1):
                conv(f"{unit}/conv{number}", f"{unit}/gn{number}", side, inputs, outputs)
            before = after
    return arrays


def google_cnn(arrays: dict[str, np.ndarray[Any, Any]], x: Tensor, depths: tuple[int, ...]) -> Tensor:
    """The CNN by Google's formulas, in double precision: (w - mean) / (std + 1e-5), GroupNorm of epsilon 1e-6, "SAME"."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        kernel = torch.from_numpy(arrays[f"{name}/kernel"]).double()
        kernel = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2), correction=0) + 1e-5)
        x = F.conv2d(same_padded(x, kernel.shape[0], stride), kernel.permute(3, 2, 0, 1), stride=stride)
        scale, bias = (torch.from_numpy(arrays[f"{norm}/{leaf}"]).double().flatten() for leaf in ("scale", "bias"))
        return F.group_norm(x, 32, scale, bias, eps=1e-6)

    def same_padded(x: Tensor, kernel: int, stride: int) -> Tensor:
        total = max(0, kernel - stride)  # sides are multiples of the stride
        return F.pad(x, (total // 2, total - total // 2) * 2)

    x = F.max_pool2d(same_padded(conv(x.double(), "conv_root", "gn_root", 2).relu(), 3, 2), 3, 2)
    for stage, depth in enumerate(depths, start=1):
        for number in range(1, depth + 1):
            unit, stride = f"block{stage}/unit{number}", 2 if stage > 1 and number == 1 else 1
            y = conv(x, f"{unit}/conv1", f"{unit}/gn1").relu()
            y = conv(y, f"{unit}/conv2", f"{unit}/gn2", stride).relu()
            y = conv(y, f"{unit}/conv3", f"{unit}/gn3")
            x = conv(x, f"{unit}/conv_proj", f"{unit}/gn_proj", stride) if number == 1 else x
            x = (x + y).relu()
    return x


@pytest.mark.parametrize("depths", [(), (2, 1)])
def test_google_s_npz_computes_what_its_code_does(depths: tuple[int, ...], tmp_path: Path) -> None:
    arrays, x = google_arrays(depths), images(64, 64) if not depths else images(32, 32)
    np.savez(tmp_path / "R+B_16.npz", **arrays)
    ours = load(tmp_path / "R+B_16.npz")
    feature_map = google_cnn(arrays, x, depths).numpy()
    logits, _, tokens = forward(arrays, feature_map, pool="tok", big_vision=False)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).double(), torch.from_numpy(logits), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.features(x).tokens.double(), torch.from_numpy(tokens), atol=1e-4, rtol=1e-4)  # type: ignore[union-attr]
    cfg = ours.config
    assert (cfg.cnn_depths, cfg.num_heads, cfg.mlp, cfg.cnn_eps) == (depths, 3, "gelu_tanh", "google")
    receipt = receipt_of(ours)
    assert receipt.origin == "Google vision_transformer, Hybrid"
    assert {entry.status for entry in receipt.entries} == {"exact"}
    with pytest.warns(UserWarning, match="no place for preprocessing"):
        convert(ours, "npz", tmp_path / "again.npz")
    back = load(tmp_path / "again.npz")
    assert back.config == cfg
    assert torch.equal(logits_of(back, x), logits_of(ours, x))


def test_a_hybrid_of_timm_as_npz_says_what_it_lacks(tmp_path: Path) -> None:
    ours = load(timm_hybrid("bit"))
    with pytest.warns(UserWarning, match='epsilons in its CNN, and not those of Google\'s code: load it with cnn_eps="timm"'):
        convert(ours, "npz", tmp_path / "bit.npz")
    same(load(tmp_path / "bit.npz", cnn_eps="timm", mlp="gelu"), ours, images())
    with pytest.raises(ValueError, match='Google\'s hybrid has no cnn "resnet-d", only "bit"'):
        convert(load(timm_hybrid("resnet-d")), "npz", tmp_path / "d.npz")
