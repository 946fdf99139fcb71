"""One call: at the size, channels and classes that are asked for, with a word on every tensor."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import CLASSES, DIM, HEADS, of_timm, same, some_images, timm_vit
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

import vitrail
from vitrail.models import ViT
from vitrail.models.receipt import Entry, Receipt
from vitrail.settings import Pair, Preprocessing
from vitrail.weights import load, save_model
from vitrail.weights.unwrap import Tensors

State = dict[str, Tensor]
RGB224 = timm_vit(side=224)
STATE: State = RGB224.state_dict()
MODELS = {
    "class token": RGB224,
    "no position for the class token": timm_vit("deit3_small_patch16_224", side=224),
    "registers": timm_vit("vit_medium_patch16_reg4_gap_256", side=224),
    "registers with positions": timm_vit("vit_small_patch16_224", side=224, reg_tokens=2),
    "distilled": timm_vit("deit_small_distilled_patch16_224", side=224),
    "no token at all": timm_vit("vit_base_patch16_siglip_gap_224", side=224),
}


def loaded(source: Any = STATE, **changes: Any) -> tuple[ViT, Receipt]:
    model = load(source, **{"num_heads": HEADS, "mlp": "gelu", **changes})
    assert isinstance(model.receipt, Receipt)
    return model, model.receipt


def told(receipt: Receipt) -> dict[str, tuple[str, str]]:
    """Of all that is not exact: status and note by name. What is dropped has an arrow before its name."""
    entries = (entry for entry in receipt.entries if entry.status != "exact")
    return {("-> " if e.status == "dropped" else "") + e.name: (e.status, e.note) for e in entries}


# --------------------------------------------------------------------------------------------------------------------
# Sources


def test_a_name_gives_a_fresh_model() -> None:
    torch.manual_seed(0)
    model = load("Ti/16", num_classes=3, img_size=(32, 64), in_channels=2, depth=1)
    assert (model.config.embed_dim, model.config.depth, model.config.img_size) == (192, 1, (32, 64))
    assert (model.preprocessing, model.classes, model.training) == (None, (), False)
    assert vitrail.load is load
    assert isinstance(model.receipt, Receipt)
    assert (model.receipt.origin, model.receipt.file, model.receipt.backbone_share) == ("random weights", "Ti/16", 0)
    assert {entry.status for entry in model.receipt.entries} == {"new"}


@pytest.mark.parametrize("source", ["runs/first", "b/16", "nowhere.safetensors", "timm/vit_small_patch16_224.dino"])
def test_nothing_of_that_name(source: str) -> None:
    with pytest.raises(ValueError, match=r"^.+$") as error:
        load(source)
    assert source in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no weights \(there are no files in it\)"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere"):
        load(tmp_path / "nowhere")


def test_an_unknown_field_is_named_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match=r'^"img_sise" is not a field of a model; did you mean "img_size"\?$'):
        load("no-such/repository", img_sise=32)
    with pytest.raises(ValueError, match=r'^"num_layers" is not a field of a model; did you mean "depth"\?$'):
        load(STATE, num_layers=1)


@pytest.mark.parametrize("source", [STATE, "B/16"])
def test_a_word_that_is_none_of_its_field_s(source: Any) -> None:
    """Else open_clip's spelling of QuickGELU would compute GELU."""
    with pytest.raises(ValueError, match=r'^mlp "quickgelu" is none of gelu, .*, swiglu; did you mean "quick_gelu"\?$'):
        load(source, mlp="quickgelu")
    with pytest.raises(ValueError, match=r'^pool "token" is none of cls, avg, cls\+avg, map$'):
        load(source, pool="token")


def test_a_file_and_a_folder_say_what_the_state_dict_says(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "plain.safetensors")
    torch.save({"model": STATE}, tmp_path / "plain.pth")
    save_for_hf(RGB224, tmp_path / "timm", model_args={"num_heads": HEADS})
    expected, images = of_timm(RGB224, some_images(224)), some_images(224)
    for source in (tmp_path / "plain.safetensors", str(tmp_path / "plain.pth"), tmp_path / "timm", RGB224, STATE):
        model, receipt = loaded(source)
        same(model, images, expected)
        assert not told(receipt)
        assert (receipt.sha256 is None) == (source in (RGB224, STATE) if not isinstance(source, str | Path) else False)


def test_the_model_is_its_own(tmp_path: Path) -> None:
    """Nothing of it depends on the file, or on the tensors that it was made from."""
    save_file(STATE, tmp_path / "plain.safetensors")
    model, _ = loaded(tmp_path / "plain.safetensors")
    (tmp_path / "plain.safetensors").write_bytes(b"\0" * 100)
    same(model, some_images(224), of_timm(RGB224, some_images(224)))
    state = {name: value.clone() for name, value in STATE.items()}
    model, _ = loaded(state)
    for value in state.values():
        value.zero_()
    same(model, some_images(224), of_timm(RGB224, some_images(224)))
    model.train()
    model(some_images(224)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_no_second_copy_of_the_weights() -> None:
    """Tensors are taken one by one, and each is let go before the next but few: nothing holds two copies."""
    live, peak = 0, 0

    def gone(size: int) -> None:
        nonlocal live
        live -= size

    def take(name: str) -> Tensor:
        nonlocal live, peak
        made = STATE[name].clone()
        live += made.nbytes
        peak = max(peak, live)
        weakref.finalize(made, gone, made.nbytes)
        return made

    source = Tensors({name: tuple(value.shape) for name, value in STATE.items()}, take)
    for changes in ({}, {"img_size": 96, "in_channels": 5, "patch_size": 8, "num_classes": 3}):
        loaded(source, **changes)
        assert live == 0
        assert peak <= 2 * max(value.nbytes for value in STATE.values())


# --------------------------------------------------------------------------------------------------------------------
# Other images, other classes


def timm_adapts(model: Any, **fields: Any) -> Any:
    """What timm makes of a model's weights for other images."""
    theirs = timm_vit(model.pretrained_cfg["architecture"], **fields)
    state = dict(model.state_dict())
    state["patch_embed.proj.weight"] = adapt_input_conv(fields.get("in_chans", 3), state["patch_embed.proj.weight"])
    if fields.get("num_classes", CLASSES) != CLASSES:
        state = {name: value for name, value in state.items() if not name.startswith("head.")}
    theirs.load_state_dict(checkpoint_filter_fn(state, theirs), strict=False)
    return theirs.eval()


def test_rgb_of_224_pixels_for_five_channels_of_96_by_160_and_nine_classes() -> None:
    model, receipt = loaded(img_size=(96, 160), in_channels=5, num_classes=9)
    theirs, images = timm_adapts(RGB224, side=(96, 160), in_chans=5, num_classes=9), some_images(96, 160, channels=5)
    expected = of_timm(theirs, images)
    same(model, images, {"tokens": expected["tokens"], "embedding": expected["embedding"]})
    assert model(images).shape == (2, 9)
    assert told(receipt) == {
        "pos_embed": ("resized", "14x14 -> 6x10"),
        "patch_embed.proj.weight": ("adapted", "3 -> 5 channels"),
        "head.weight": ("new", ""),
        "head.bias": ("new", ""),
        "-> head.weight": ("dropped", ""),
        "-> head.bias": ("dropped", ""),
    }
    assert receipt.backbone_share == 1
    assert model.config.num_classes == 9
    assert not model.head.bias.any()  # type: ignore[union-attr]
    assert 0.015 < model.head.weight.std() < 0.025  # type: ignore[union-attr, operator]
    assert model.preprocessing is not None
    assert (model.preprocessing.img_size, len(model.preprocessing.mean)) == ((96, 160), 5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", [(96, 160), (32, 32), (240, 224)])
def test_positions_are_those_that_timm_makes(name: str, side: Pair) -> None:
    theirs = MODELS[name]
    model, receipt = loaded(theirs.state_dict(), img_size=side)
    placed = theirs.pos_embed.shape[1] - 196
    grid = (side[0] // 16, side[1] // 16)
    expected = resample_abs_pos_embed(theirs.pos_embed, [*grid], [14, 14], num_prefix_tokens=placed)
    images = some_images(*side)
    with torch.no_grad():
        if name != "registers with positions":  # ours gives registers none: the token takes it
            torch.testing.assert_close(model.pos_embed, expected, atol=1e-6, rtol=1e-6)
        tokens = timm_adapts(theirs, side=side, **({"reg_tokens": 2} if name == "registers with positions" else {}))
        same(model, images, {"tokens": tokens.forward_features(images)})
    assert told(receipt)["pos_embed"] == ("resized", f"14x14 -> {grid[0]}x{grid[1]}")


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_channels(channels: int) -> None:
    model, receipt = loaded(in_channels=channels)
    weight = adapt_input_conv(channels, STATE["patch_embed.proj.weight"])
    torch.testing.assert_close(model.patch_embed.proj.weight.detach(), weight)
    assert told(receipt) == {"patch_embed.proj.weight": ("adapted", f"3 -> {channels} channels")}


def test_channels_that_start_at_zero() -> None:
    model, _ = loaded(in_channels=4, channels="keep")
    images = some_images(224, channels=4)
    same(model, images, of_timm(RGB224, images[:, :3]))
    with pytest.raises(ValueError, match=r'^1 channels can\'t keep the filters of all 3; take "repeat", or 3 and more$'):
        loaded(in_channels=1, channels="keep")


@pytest.mark.parametrize(("patch", "shown"), [(8, "8x8"), ((8, 16), "8x16"), (32, "32x32")])
def test_patches(patch: int | Pair, shown: str) -> None:
    model, receipt = loaded(patch_size=patch)
    size = list(patch) if isinstance(patch, tuple) else [patch, patch]
    expected = resample_patch_embed(STATE["patch_embed.proj.weight"].double(), size)
    torch.testing.assert_close(model.patch_embed.proj.weight.detach(), expected.float(), atol=1e-5, rtol=1e-4)
    grid = f"{224 // size[0]}x{224 // size[1]}"
    assert told(receipt) == {
        "patch_embed.proj.weight": ("resized", f"16x16 -> {shown}"),
        "pos_embed": ("resized", f"14x14 -> {grid}"),
    }


def test_a_larger_patch_sees_a_larger_image_as_the_small_one_sees_the_image() -> None:
    """FlexiViT's promise: where patches grow, a resized image has exactly the embedding of the original."""
    small, images = some_images(28), timm_vit("flexivit_small", side=28, patch_size=4)
    model, receipt = loaded(images.state_dict(), patch_size=8, img_size=56, in_channels=3)
    large = torch.nn.functional.interpolate(small[..., :4, :4], size=(8, 8), mode="bicubic", antialias=True)
    with torch.no_grad():
        before = images.patch_embed.proj(small[..., :4, :4]).flatten()
        torch.testing.assert_close(model.patch_embed.proj(large).flatten(), before, atol=1e-4, rtol=1e-4)
    assert told(receipt) == {"patch_embed.proj.weight": ("resized", "4x4 -> 8x8")}


def test_channels_and_patches_at_once() -> None:
    _, receipt = loaded(in_channels=1, patch_size=8, img_size=112)
    assert told(receipt) == {"patch_embed.proj.weight": ("adapted", "3 -> 1 channels, 16x16 -> 8x8")}


def test_heads() -> None:
    kept, receipt = loaded(num_classes=CLASSES)
    assert torch.equal(kept.head.weight, STATE["head.weight"])  # type: ignore[arg-type]
    assert not told(receipt)
    dropped, receipt = loaded(num_classes=0)
    assert told(receipt) == {"-> head.weight": ("dropped", ""), "-> head.bias": ("dropped", "")}
    same(dropped, some_images(224), {"logits": of_timm(RGB224, some_images(224))["embedding"]})
    torch.manual_seed(0)
    first, _ = loaded(num_classes=3)
    torch.manual_seed(0)
    second, _ = loaded(num_classes=3)
    assert torch.equal(first.head.weight, second.head.weight)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------------------
# Other parts


def test_layer_scale_that_the_file_does_not_have() -> None:
    model, _ = loaded()
    assert model.config.init_values is None
    assert not [name for name in model.state_dict() if "gamma" in name]
    model, receipt = loaded(init_values=0.25)
    assert {name for name, (status, _) in told(receipt).items() if status == "new"} == {
        f"blocks.{i}.ls{j}.gamma" for i in (0, 1) for j in (1, 2)
    }
    assert torch.equal(model.state_dict()["blocks.1.ls2.gamma"], torch.full((DIM,), 0.25))


def test_registers_that_the_file_does_not_have() -> None:
    model, receipt = loaded(reg_tokens=4)
    assert told(receipt) == {"reg_token": ("new", "")}
    assert 0.01 < model.reg_token.std() < 0.03  # type: ignore[union-attr, operator]
    assert receipt.backbone_share > 0.99


def test_other_numbers_of_registers() -> None:
    state = MODELS["registers"].state_dict()
    _, receipt = loaded(state, reg_tokens=2)
    assert told(receipt) == {"reg_token": ("new", ""), "-> reg_token": ("dropped", "")}
    _, receipt = loaded(state, reg_tokens=0)
    assert told(receipt) == {"-> reg_token": ("dropped", "")}


def test_fewer_blocks() -> None:
    model, receipt = loaded(depth=1)
    same(model, some_images(224), of_timm(timm_adapts(RGB224, side=224, depth=1), some_images(224)))
    assert {name.split(".")[1] for name in told(receipt)} == {"1"}
    assert {status for status, _ in told(receipt).values()} == {"dropped"}


def test_without_a_class_token() -> None:
    model, receipt = loaded(class_token=False, pool="avg")
    torch.testing.assert_close(model.pos_embed, STATE["pos_embed"][:, 1:])
    assert told(receipt) == {"pos_embed": ("adapted", "197 -> 196 rows"), "-> cls_token": ("dropped", "")}


def test_a_class_token_that_takes_its_position_along() -> None:
    model, receipt = loaded(no_embed_class=True)
    same(model, some_images(224), of_timm(RGB224, some_images(224)))
    assert told(receipt) == {
        "cls_token": ("adapted", "its position added"),
        "pos_embed": ("adapted", "197 -> 196 rows, the others added to their tokens"),
    }


def test_a_class_token_that_gets_a_position() -> None:
    theirs = MODELS["no position for the class token"]
    model, receipt = loaded(theirs.state_dict(), no_embed_class=False)
    same(model, some_images(224), of_timm(theirs, some_images(224)))
    assert told(receipt) == {"pos_embed": ("adapted", "196 -> 197 rows")}


def test_without_the_distillation_token() -> None:
    state = MODELS["distilled"].state_dict()
    model, receipt = loaded(state, dist_token=False)
    torch.testing.assert_close(model.pos_embed, state["pos_embed"][:, [0, *range(2, 198)]])
    assert told(receipt) == {
        "pos_embed": ("adapted", "198 -> 197 rows"),
        "-> dist_token": ("dropped", ""),
        "-> head_dist.weight": ("dropped", ""),
        "-> head_dist.bias": ("dropped", ""),
    }


def test_fixed_positions_instead_of_the_file_s() -> None:
    model, receipt = loaded(pos_embed="sincos2d")
    assert "pos_embed" not in dict(model.named_parameters())
    assert told(receipt) == {"pos_embed": ("new", "computed"), "-> pos_embed": ("dropped", "")}
    assert torch.equal(model.pos_embed, ViT(model.config).pos_embed)  # type: ignore[arg-type]
    _, receipt = loaded(pos_embed="none")
    assert told(receipt) == {"-> pos_embed": ("dropped", "")}


def test_rates_change_nothing() -> None:
    model, receipt = loaded(drop_path_rate=0.1, drop_rate=0.2, attn_drop_rate=0.1)
    assert model.config.drop_path_rate == 0.1
    assert not told(receipt)
    same(model, some_images(224), of_timm(RGB224, some_images(224)))


# --------------------------------------------------------------------------------------------------------------------
# What is not there, and what is too much


def test_less_than_95_percent() -> None:
    says = r"only 78\.\d% of the backbone's parameters come from a state dict, at least 95% have to; fresh are blocks\.2\."
    with pytest.raises(ValueError, match=rf"^{says}.* …; leave the field out that asks for them, or give strict=False$"):
        loaded(depth=3)
    with pytest.warns(UserWarning, match=f"^{says}"):
        model, receipt = loaded(depth=3, strict=False)
    assert {name.split(".")[1] for name in told(receipt)} == {"2"}
    assert 0.78 < receipt.backbone_share < 0.79
    assert 0.01 < model.state_dict()["blocks.2.attn.qkv.weight"].std() < 0.03


def test_a_tensor_of_another_shape() -> None:
    rule = r"^blocks\.0\.mlp\.fc1\.weight is 192x48 in the file and 96x48 in the model that is asked for; leave the field out"
    with pytest.raises(ValueError, match=rf"{rule} that changes it, or give strict=False for fresh weights there$"):
        loaded(mlp_ratio=2.0)
    with pytest.warns(UserWarning, match="backbone's parameters"):
        _, receipt = loaded(mlp_ratio=2.0, strict=False)
    assert told(receipt)["blocks.0.mlp.fc1.weight"] == ("new", "")
    assert told(receipt)["-> blocks.0.mlp.fc1.weight"] == ("dropped", "")


MISSING = {
    "norm.bias": "is not a plain ViT: norm.weight comes without a bias, as in RMSNorm",
    "blocks.1.norm2.weight": "is not whole: it has nothing for blocks.1.norm2.weight",
    "blocks.0.mlp.fc1.weight": "has nothing for blocks.0.mlp.fc1.weight",
    "blocks.0.attn.qkv.weight": "has nothing for blocks.0.attn.qkv.weight",
    "blocks.1.attn.qkv.weight": "has 2 blocks, but nothing for block 1",
    "patch_embed.proj.weight": "no plain ViT is in these 31 tensors",
}


@pytest.mark.parametrize(("missing", "says"), MISSING.items())
def test_a_tensor_that_is_missing(missing: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        loaded({name: value for name, value in STATE.items() if name != missing})
    assert "\n" not in str(error.value)


def test_a_missing_tensor_that_the_shape_does_not_need() -> None:
    state = {name: value for name, value in STATE.items() if name != "blocks.1.mlp.fc2.weight"}
    with pytest.raises(ValueError, match=r"^a state dict is not whole: it has nothing for blocks\.1\.mlp\.fc2\.weight; give"):
        loaded(state)
    with pytest.warns(UserWarning, match=r"only 91\.\d% of the backbone"):
        _, receipt = loaded(state, strict=False)
    assert told(receipt)["blocks.1.mlp.fc2.weight"] == ("new", "")


def test_biases_that_the_file_does_not_have_are_zero() -> None:
    state = {name: value for name, value in STATE.items() if name not in ("head.bias", "blocks.0.attn.proj.bias")}
    model, receipt = loaded(state)
    note = ("new", "zero: the file has none")
    assert told(receipt) == {"blocks.0.attn.proj.bias": note, "head.bias": note}
    assert torch.equal(model.head.weight, STATE["head.weight"])  # type: ignore[arg-type]
    assert not model.head.bias.any()  # type: ignore[union-attr]


def test_a_fresh_layer_is_fresh_as_a_whole() -> None:
    """A bias beside weights that are made afresh is not that of the file, and the receipt does not say that it were."""
    with pytest.warns(UserWarning, match="backbone's parameters"):
        model, receipt = loaded(mlp_ratio=2.0, strict=False)
    assert told(receipt)["blocks.0.mlp.fc2.bias"] == ("new", "")
    assert told(receipt)["-> blocks.0.mlp.fc2.bias"] == ("dropped", "")
    assert not model.state_dict()["blocks.0.mlp.fc2.bias"].any()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: torch.dtype) -> None:
    state = {**STATE, "blocks.0.attn.qkv.weight": torch.zeros(144, DIM).to(dtype)}
    with pytest.raises(ValueError, match=rf"^blocks\.0\.attn\.qkv\.weight holds numbers of type {dtype}: quantised weights"):
        loaded(state)


def test_what_no_plain_vit_has_is_refused_or_dropped() -> None:
    state = STATE | {f"blocks.{block}.attn.rel_pos_depth": torch.zeros(7, DIM // HEADS) for block in (0, 1)}
    with pytest.raises(ValueError, match=r"attention has relative position biases; .* or give strict=False to drop them$"):
        load(state, num_heads=HEADS)
    model = load(state, num_heads=HEADS, strict=False)
    assert isinstance(model.receipt, Receipt)
    dropped = [entry for entry in model.receipt.entries if entry.status == "dropped"]
    assert len(dropped) == 2
    assert all("rel_pos_depth" in entry.name and entry.parameters for entry in dropped)


@pytest.mark.parametrize("heads", [0, -1, 5, 1000])
def test_numbers_of_heads_that_can_t_be(heads: int) -> None:
    with pytest.raises(ValueError, match=rf"^num_heads {heads} does not divide the attention's width 48$"):
        load(STATE, num_heads=heads)


# --------------------------------------------------------------------------------------------------------------------
# Grids


def test_a_file_whose_grid_is_no_square() -> None:
    theirs, images = timm_vit(side=(96, 160)), some_images(96, 160)
    state = theirs.state_dict()
    with pytest.raises(
        ValueError, match=r"61 rows, which make no square; give img_size=\(height, width\) .* at patch 16 has 60"
    ):
        loaded(state)
    model, receipt = loaded(state, img_size=(96, 160))
    same(model, images, of_timm(theirs, images))
    assert not told(receipt)
    assert not [text for text in receipt.assumed if "grid" in text]


def test_a_size_that_fits_exactly_comes_before_a_square() -> None:
    """257 rows are a class token and 8 x 32 patches, or 16 x 16: the receipt says which was taken, and why."""
    theirs, images = timm_vit(side=(128, 512)), some_images(128, 512)
    model, receipt = loaded(theirs.state_dict(), img_size=(128, 512))
    same(model, images, of_timm(theirs, images))
    assert receipt.grid == "8x32 patches: of the img_size that is asked for, though a square of 16x16 has as many rows"
    assert receipt.grid in str(receipt)
    square, receipt = loaded(theirs.state_dict())
    assert square.grid == (16, 16)
    assert receipt.grid == "16x16 patches: assumed, a square: no size is in the file and none that fits is asked for"


@pytest.mark.parametrize(
    ("side", "patch"), [((224, 256), 16), ((128, 512), 16), ((96, 128), 16), ((32, 48), 8), ((64, 16), 8), ((16, 64), 8)]
)
def test_a_grid_that_is_no_square_stays_one(side: tuple[int, int], patch: int, tmp_path: Path) -> None:
    """Live, from a config beside the weights, and where the size is asked for; 14 x 16 and a class token are 15 x 15 rows."""
    theirs, images = timm_vit(side=side, patch_size=patch), some_images(*side)
    expected = of_timm(theirs, images)
    for model, receipt in (loaded(theirs), loaded(theirs, img_size=side), loaded(theirs.state_dict(), img_size=side)):
        same(model, images, expected)
        assert not told(receipt)
        assert model.grid == (side[0] // patch, side[1] // patch)
        assert receipt.grid.startswith(f"{side[0] // patch}x{side[1] // patch} patches: of ")
    smaller, receipt = loaded(theirs, img_size=(2 * side[0], side[1]))
    resized = resample_abs_pos_embed(
        theirs.pos_embed, [2 * side[0] // patch, side[1] // patch], list(theirs.patch_embed.grid_size), num_prefix_tokens=1
    )
    torch.testing.assert_close(smaller.pos_embed, resized, atol=1e-6, rtol=1e-6)
    save_for_hf(theirs, tmp_path, model_args={"img_size": list(side), "patch_size": patch})
    model, receipt = loaded(tmp_path)
    same(model, images, expected)
    assert receipt.grid.endswith("patches: of its own size")


@given(height=st.integers(1, 8), width=st.integers(1, 8), class_token=st.booleans(), registers=st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_any_grid_of_a_live_model(height: int, width: int, class_token: bool, registers: int) -> None:
    options: dict[str, Any] = {"class_token": class_token, "reg_tokens": registers, "num_classes": 3}
    options |= {} if class_token else {"global_pool": "avg"}
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=(4 * height, 4 * width), patch_size=4, embed_dim=48, num_heads=3, depth=1, **options
    ).eval()
    model, receipt = loaded(theirs)
    assert model.grid == (height, width)
    assert model.config.no_embed_class == theirs.no_embed_class
    images = some_images(4 * height, 4 * width)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert not receipt.total("resized")
    assert receipt.grid.startswith(f"{height}x{width} patches: of ")


@pytest.mark.parametrize("answer", [(240, 240), (224, 256)])
def test_rows_of_a_square_without_a_class_row_or_of_a_rectangle_with_one(answer: tuple[int, int]) -> None:
    """225 rows: FlexiViT's 15 x 15, or 14 x 16 and the class token. Each reading loads something else, so it is asked for."""
    name = "flexivit_small" if answer == (240, 240) else "vit_small_patch16_224"
    theirs, images = timm_vit(name, side=answer), some_images(*answer)
    with pytest.raises(
        ValueError, match=r"15x15 patches and no row for the class token.*img_size=\(240, 240\) or img_size=\(224, 256\)$"
    ):
        loaded(theirs.state_dict())
    model, _ = loaded(theirs.state_dict(), img_size=answer)
    same(model, images, of_timm(theirs, images))


def test_a_config_that_names_the_grid(tmp_path: Path) -> None:
    theirs = timm_vit(side=(128, 288))
    theirs.pretrained_cfg["input_size"] = (3, 128, 288)
    save_for_hf(theirs, tmp_path, model_args={"num_heads": HEADS})
    model = load(tmp_path)
    same(model, some_images(128, 288), of_timm(theirs, some_images(128, 288)))
    assert model.config.img_size == (128, 288)


# --------------------------------------------------------------------------------------------------------------------
# Runs, and models of ours

OURS: list[dict[str, Any]] = [
    {},
    {"pos_embed": "sincos2d"},
    {"pos_embed": "none", "class_token": False, "pool": "avg"},
    {"stem": "conv", "pool": "map", "mlp": "swiglu", "head": "mlp", "dist_token": True, "reg_tokens": 2},
    {"patch_norm": True, "head_dim": 5, "qk_norm": True, "qkv_bias": False, "init_values": 0.1},
    {"pre_norm": True, "fc_norm": True, "pool": "avg", "pool_include_prefix": True, "mlp": "quick_gelu", "norm_eps": 1e-3},
    {"no_embed_class": True, "reg_tokens": 3, "pool": "cls+avg", "num_classes": 0},
]
IMAGES = Preprocessing(img_size=(16, 24), in_channels=3, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), crop_pct=1.0)


def our_model(**fields: Any) -> ViT:
    torch.manual_seed(0)
    base = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    made = ViT(**{**base, **fields}).eval()
    made.preprocessing, made.classes = IMAGES, ("cat", "dog", "owl")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("fields", OURS, ids=lambda fields: ",".join(fields) or "plain")
def test_models_of_ours(fields: dict[str, Any], tmp_path: Path) -> None:
    """Live or saved, whatever their parts: nothing is asked and every tensor is exact."""
    saved = our_model(**fields)
    save_model(saved, tmp_path, data="photos")
    images = some_images(16, 24)
    for source in (saved, tmp_path):
        model = load(source)
        with torch.no_grad():
            torch.testing.assert_close(model(images), saved(images), atol=1e-6, rtol=1e-6)
        receipt = model.receipt
        assert isinstance(receipt, Receipt)
        assert not told(receipt)
        assert (receipt.origin, receipt.file) == (
            "vitrail",
            "a ViT" if source is saved else str(tmp_path / "model.safetensors"),
        )
        assert (model.preprocessing, receipt.preprocessing) == (IMAGES, "the run's config.json")
        assert model.classes == (saved.classes if model.config.num_classes else ())


def test_a_run_for_other_images_and_classes(tmp_path: Path) -> None:
    saved = our_model()
    save_model(saved, tmp_path, data="photos")
    model = load(tmp_path, img_size=32, in_channels=1, num_classes=5, patch_size=4)
    receipt = model.receipt
    assert isinstance(receipt, Receipt)
    assert told(receipt) == {
        "pos_embed": ("resized", "2x3 -> 8x8"),
        "patch_embed.proj.weight": ("adapted", "3 -> 1 channels, 8x8 -> 4x4"),
        "head.weight": ("new", ""),
        "head.bias": ("new", ""),
        "-> head.weight": ("dropped", ""),
        "-> head.bias": ("dropped", ""),
    }
    assert model.classes == ()
    mean = (sum(IMAGES.mean) / 3,)
    assert model.preprocessing == dataclasses.replace(IMAGES, img_size=(32, 32), in_channels=1, mean=mean, std=(1.0,))
    assert model(some_images(32, channels=1)).shape == (2, 5)
    assert load(tmp_path, num_classes=3).classes == saved.classes


def test_fixed_positions_of_a_run_for_other_images(tmp_path: Path) -> None:
    save_model(our_model(pos_embed="sincos2d"), tmp_path, data="photos")
    model = load(tmp_path, img_size=32)
    assert isinstance(model.receipt, Receipt)
    assert told(model.receipt) == {"pos_embed": ("resized", "computed")}
    assert torch.equal(model.pos_embed, ViT(model.config).pos_embed)  # type: ignore[arg-type]


def test_a_flipped_byte_of_a_run(tmp_path: Path) -> None:
    save_model(our_model(), tmp_path, data="photos")
    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"is damaged: its sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}; get it anew$"):
        load(tmp_path, num_classes=2)


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {name: Ti/16}\n")
    with pytest.raises(ValueError, match=r"holds no config\.json, so it is not a finished run"):
        load(tmp_path)


def test_a_config_of_another_kind_in_a_folder(tmp_path: Path) -> None:
    """It says nothing that is known: the tensors are asked."""
    save_file(STATE, tmp_path / "model.safetensors")
    for config in ({}, {"num_classes": 7, "something": "else"}, {"architectures": ["Unknown"], "model_type": "unheard-of"}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="do not tell num_heads"):
            load(tmp_path)
        same(load(tmp_path, num_heads=HEADS), some_images(224), of_timm(RGB224, some_images(224)))


# --------------------------------------------------------------------------------------------------------------------
# Whatever is asked for

SOURCES: dict[str, Mapping[str, Tensor]] = {
    name: timm_vit(MODELS[name].pretrained_cfg["architecture"], side=32).state_dict()
    for name in ("class token", "no position for the class token", "registers", "distilled", "no token at all")
}
CHANGES: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
    "num_classes": lambda: st.sampled_from([0, 3, CLASSES]),
    "img_size": lambda: st.sampled_from([16, 32, (32, 64), (48, 16)]),
    "patch_size": lambda: st.sampled_from([8, 16, (16, 8)]),
    "in_channels": lambda: st.integers(1, 5),
    "depth": lambda: st.integers(1, 3),
    "reg_tokens": lambda: st.integers(0, 4),
    "init_values": lambda: st.sampled_from([None, 0.1]),
    "no_embed_class": lambda: st.booleans(),
    "qkv_bias": lambda: st.booleans(),
    "qk_norm": lambda: st.booleans(),
    "pos_embed": lambda: st.sampled_from(["learn", "sincos2d", "none"]),
    "final_norm": lambda: st.just(True),
    "head": lambda: st.sampled_from(["linear", "mlp"]),
    "pre_norm": lambda: st.booleans(),
    "mlp_ratio": lambda: st.sampled_from([2.0, 4.0]),
    "drop_path_rate": lambda: st.just(0.1),
}


def check_the_books(model: ViT, state: Mapping[str, Tensor]) -> None:
    """Every tensor of ours is in one state, every one of the file's is used or dropped, and the totals add up."""
    receipt = model.receipt
    assert isinstance(receipt, Receipt)
    ours: list[Entry] = [entry for entry in receipt.entries if entry.status != "dropped"]
    assert {entry.name: entry.parameters for entry in ours} == {k: v.numel() for k, v in model.state_dict().items()}
    assert len({entry.name for entry in ours}) == len(ours)
    used = {entry.name for entry in ours if entry.status != "new"}
    dropped = [entry.name for entry in receipt.entries if entry.status == "dropped"]
    assert len(set(dropped)) == len(dropped)
    assert used | set(dropped) == set(state)
    assert not used & set(dropped)
    assert receipt.total("dropped") == sum(state[name].numel() for name in dropped)
    assert receipt.total("exact", "resized", "adapted", "new") == sum(value.numel() for value in model.state_dict().values())
    assert receipt.to_dict()["parameters"]["exact"] == receipt.total("exact")
    assert len(str(receipt).splitlines()) <= 10
    assert len(receipt.verbose().splitlines()) == len(str(receipt).splitlines()) + 1 + len(receipt.entries)
    for entry in ours:
        if entry.status == "exact":
            assert torch.equal(model.state_dict()[entry.name], state[entry.name])


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(SOURCES)), st.sets(st.sampled_from(sorted(CHANGES)), max_size=4))
def test_the_books_balance_whatever_is_asked_for(data: st.DataObject, name: str, fields: set[str]) -> None:
    changes = {field: data.draw(CHANGES[field](), field) for field in sorted(fields)}
    state = SOURCES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = loaded(state, **{**changes, "strict": False})
    check_the_books(model, state)
    config = model.config
    height, width = (config.img_size, config.img_size) if isinstance(config.img_size, int) else config.img_size
    with torch.no_grad():
        logits = model(some_images(height, width, channels=config.in_channels))
    assert logits.isfinite().all()
    assert {field: getattr(config, field) for field in changes} == changes


def test_a_convolutional_stem_keeps_its_order_in_memory_and_a_licence_goes_along(tmp_path: Path) -> None:
    model = ViT(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3, stem="conv")
    model.preprocessing = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    save_model(model, tmp_path, data="nothing")
    config = json.loads((tmp_path / "config.json").read_text())
    config["vitrail"]["licence"] = "apache-2.0"
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = vitrail.load(tmp_path)
    assert isinstance(loaded, ViT)
    for name, parameter in model.named_parameters():
        assert loaded.get_parameter(name).stride() == parameter.stride(), name
    assert loaded.receipt.licence == "apache-2.0"  # type: ignore[attr-defined]
