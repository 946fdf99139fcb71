"""NaFlex models: positions of a grid of their own, resized to every image's as their own code does it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as T
from safetensors.torch import save_file
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from command_line import Typed
from vitrail.models import Cvt, Swin
from vitrail.models.modern import ModernViT
from vitrail.models.packing import pack_images, packed_logits
from vitrail.settings import Preprocessing
from vitrail.settings.modern import ModernConfig
from vitrail.weights import load
from vitrail.weights.convert import convert
from vitrail.weights.targets import Inexpressible

SIZES = ((24, 24), (32, 20), (16, 40), (12, 12))  # the native grid first, which is 6x6 at patch 4
TINY: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5, "patch_size": 4}
ASKED = re.compile(r"(?:do not tell|nor) (\w+) \(")


def random(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.5 if re.search("gamma|lambda", name) else 0.1)
    return model.eval()


def image(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def close(got: Tensor | None, expected: Tensor) -> None:
    assert got is not None
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=1e-5)


def bare(model: nn.Module, live: Any) -> Any:
    """Load the tensors alone, with the answers to what they ask."""
    try:
        return load(model.state_dict())
    except ValueError as error:
        questions = str(error)
    return load(model.state_dict(), **{name: getattr(live.config, name) for name in ASKED.findall(questions)})


# --------------------------------------------------------------------------------------------------------------------
# timm


def of_timm(name: str, **fields: Any) -> Any:
    return random(timm.create_model(name, **{**TINY, "pos_embed_grid_size": (6, 6), **fields}))


@pytest.mark.parametrize("name", timm.list_models(module="naflexvit"))
def test_every_naflex_model_of_timm_computes_the_same_at_any_size(name: str) -> None:
    theirs = of_timm(name)
    live = load(theirs)
    assert isinstance(live, ModernViT)
    assert live.config.pos_grid == (6, 6)
    assert {entry.status for entry in live.receipt.entries} == {"exact"}  # type: ignore[union-attr]
    for ours in (live, bare(theirs, live)):
        for size in SIZES:
            with torch.no_grad():
                close(ours(image(*size)), theirs(image(*size)))
                close(ours.features(image(*size)).tokens, theirs.forward_features(image(*size)))


@pytest.mark.parametrize("name", ["naflexvit_base_patch16_par_gap", "naflexvit_base_patch16_radio_v3"])
def test_gradients_are_theirs_through_the_resizing(name: str) -> None:
    theirs = of_timm(name)
    ours = load(theirs)
    for model in (ours, theirs):
        (100 * model(image(32, 20))).square().sum().backward()
    close(ours.pos_embed.grad.reshape(6, 6, 32), theirs.embeds.pos_embed.grad[0])  # type: ignore[union-attr,operator]
    close(ours.blocks[0].attn.qkv.weight.grad, theirs.blocks[0].attn.qkv.weight.grad)  # type: ignore[index,union-attr]


def test_tensors_alone_ask_in_one_line_for_what_they_do_not_show() -> None:
    with pytest.raises(ValueError, match="tensors do not tell") as error:
        load(of_timm("naflexvit_base_patch16_siglip").state_dict())
    assert "\n" not in str(error.value)
    assert ASKED.findall(str(error.value)) == ["num_heads", "pos_resize", "pos_square", "mlp"]


def test_a_grid_that_is_no_square_and_arguments_that_change_the_resizing() -> None:
    fields = {"pos_embed_grid_size": (4, 7), "pos_embed_interp_mode": "bilinear", "pos_embed_antialias": False}
    theirs = of_timm("naflexvit_base_patch16_gap", **fields)
    ours = load(theirs)
    assert (ours.config.pos_grid, ours.config.pos_resize) == ((4, 7), "linear")
    with torch.no_grad():
        close(ours(image(32, 20)), theirs(image(32, 20)))
    with pytest.raises(ValueError, match=r"^timm's positions, resized with \('bicubic', True, True\), are none of bicubic, "):
        load(of_timm("naflexvit_base_patch16_gap", pos_embed_align_corners=True))


def test_sizes_change_no_positions_and_another_grid_does() -> None:
    theirs = of_timm("naflexvit_base_patch16_siglip")
    ours = load(theirs, img_size=(32, 20))
    close(ours.pos_embed, theirs.embeds.pos_embed.flatten(1, 2))  # type: ignore[arg-type]
    assert ours.grid == (8, 5)
    other = load(theirs, pos_grid=(8, 5))
    with torch.no_grad():
        close(other(image(32, 20)), theirs(image(32, 20)))
    assert load(ours, num_classes=0).config.pos_grid == (6, 6)


@pytest.mark.parametrize("name", ["naflexvit_base_patch16_par_gap", "naflexvit_base_patch16_siglip"])
def test_packed_images_compute_what_timm_computes_of_padded_patches(name: str) -> None:
    theirs = of_timm(name)
    images = [image(*size, count=1)[0] for size in SIZES]
    patches, shapes, valid = padded(images)
    coordinates = torch.zeros(*patches.shape[:2], 2, dtype=torch.long)
    for row, (height, width) in enumerate(shapes.tolist()):
        coordinates[row, : height * width] = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    with torch.no_grad():
        expected = theirs({"patches": patches, "patch_coord": coordinates, "patch_valid": valid.bool()})
        close(packed_logits(load(theirs), *pack_images(images)), expected)


def test_what_a_plain_block_does_not_compute_is_refused() -> None:
    rotary = timm.create_model("vit_small_patch16_rope_224", use_naflex=True, img_size=32, depth=2)
    with pytest.raises(ValueError, match="no plain ViT is in these") as error:
        load(rotary.state_dict())
    assert "\n" not in str(error.value)


def padded(images: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Cut patches of 4x4 as the NaFlex processors do, padded to one number; their grids and the mask."""
    cut = [one.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 3, 4, 0) for one in images]  # (gh, gw, P, P, C)
    flat = [one.flatten(2).flatten(0, 1) for one in cut]
    mask = [torch.ones(len(one), dtype=torch.long) for one in flat]
    pad = nn.utils.rnn.pad_sequence
    return pad(flat, batch_first=True), torch.tensor([one.shape[:2] for one in cut]), pad(mask, batch_first=True)


# --------------------------------------------------------------------------------------------------------------------
# transformers

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE: dict[str, Any] = {**SHAPE, "intermediate_size": 64}
SIDES: dict[str, Any] = {"image_size": 24, "patch_size": 4}
NAFLEX = {**WIDE, "patch_size": 4, "num_patches": 36}


def siglip2_of(model: Any, images: list[Tensor]) -> Any:
    patches, shapes, mask = padded(images)
    return model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)


def siglip2(head: bool = True) -> Any:
    return random(T.Siglip2VisionModel(T.Siglip2VisionConfig(**NAFLEX, vision_use_head=head)))


def siglip2_classifier() -> Any:
    return random(T.Siglip2ForImageClassification(T.Siglip2Config(vision_config=NAFLEX, text_config=WIDE, num_labels=5)))


@pytest.mark.parametrize("make", [siglip2, lambda: siglip2(head=False), siglip2_classifier])
def test_siglip_2_of_patches_cut_beforehand(make: Callable[[], Any]) -> None:
    theirs = make()
    live = load(theirs)
    for ours in (live, bare(theirs, live)):
        for size in SIZES:
            with torch.no_grad():
                expected, got = siglip2_of(theirs, list(image(*size))), ours.features(image(*size))
                if hasattr(expected, "logits"):
                    close(ours(image(*size)), expected.logits)
                    continue
                close(got.tokens, expected.last_hidden_state)
                if expected.pooler_output is not None:
                    close(got.pooled, expected.pooler_output)


def test_siglip_2_s_images_of_many_sizes_are_packed() -> None:
    images = [image(*size, count=1)[0] for size in SIZES]
    tower, classifier = siglip2(), siglip2_classifier()
    with torch.no_grad():
        close(packed_logits(load(tower), *pack_images(images)), siglip2_of(tower, images).pooler_output)
        close(packed_logits(load(classifier), *pack_images(images)), siglip2_of(classifier, images).logits)


def test_siglip_s_own_convolution_is_still_a_plain_vit() -> None:
    assert not isinstance(load(T.SiglipVisionModel(T.SiglipVisionConfig(**WIDE, **SIDES))), ModernViT)


TOWERS: dict[str, Callable[[], Any]] = {
    "C-RADIO": lambda: T.RadioModel(T.RadioConfig(**SHAPE, **SIDES, max_img_size=24)),
    "C-RADIO, gated": lambda: T.RadioModel(T.RadioConfig(**SHAPE, **SIDES, max_img_size=24, use_swiglu_ffn=True)),
    "Pixio": lambda: T.PixioModel(T.PixioConfig(**SHAPE, **SIDES)),
    "MLCD": lambda: T.MLCDVisionModel(T.MLCDVisionConfig(**WIDE, **SIDES)),
    "Sapiens2": lambda: T.Sapiens2Model(T.Sapiens2Config(**WIDE, **SIDES, num_key_value_heads_per_layer=[1, 1])),
    "Sapiens2, outer blocks whole": lambda: T.Sapiens2Model(
        T.Sapiens2Config(**{**WIDE, "num_hidden_layers": 4}, **SIDES, num_key_value_heads_per_layer=[2, 1, 1, 2])
    ),
    "Qianfan-OCR": lambda: T.QianfanOCRVisionModel(T.QianfanOCRVisionConfig(**WIDE, image_size=(24, 24), patch_size=(4, 4))),
}


@pytest.mark.parametrize("name", TOWERS)
def test_towers_of_transformers_compute_the_same_at_any_size(name: str) -> None:
    theirs = random(TOWERS[name]())
    live = load(theirs)
    for ours in (live, bare(theirs, live)):
        assert not [entry for entry in ours.receipt.entries if entry.status == "dropped"]
        for size in SIZES:
            with torch.no_grad():
                expected, got = theirs(image(*size)), ours.features(image(*size))
            if name == "MLCD":  # its tokens stand before the last norm
                close(got.pooled, expected.pooler_output)
            else:
                close(got.tokens, expected.last_hidden_state)


def test_c_radio_normalises_by_itself_and_says_what_its_summary_is() -> None:
    theirs = random(TOWERS["C-RADIO"]())
    ours = load(theirs)
    assert ours.preprocessing is not None
    assert (ours.preprocessing.mean, ours.preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)
    with torch.no_grad():
        tokens = ours.features(image(32, 20)).tokens
        assert tokens is not None
        close(tokens[:, [0, 1]].flatten(1), theirs(image(32, 20)).summary)
    assert any("summary_idxs" in text for text in ours.receipt.assumed)  # type: ignore[union-attr]


def test_learned_angles_of_the_class_token_are_packed_and_learn() -> None:
    ours = load(random(TOWERS["MLCD"]()))
    images = [image(*size, count=1)[0] for size in SIZES]
    with torch.no_grad():
        close(packed_logits(ours, *pack_images(images)), torch.cat([ours(one[None]) for one in images]))
    ours(image(24, 24)).square().sum().backward()
    assert ours.get_parameter("rope.cls").grad.abs().max() > 0  # type: ignore[union-attr]


def test_minicpm_merges_tokens_between_its_blocks_and_is_refused() -> None:
    from transformers.models.minicpmv4_7 import modeling_minicpmv4_7 as minicpm

    config = minicpm.MiniCPMV4_7VisionConfig(**WIDE, **SIDES, insert_layer_id=0)
    theirs = random(minicpm.MiniCPMV4_7VisionModel(config))
    with pytest.raises(ValueError, match="tokens are merged between its blocks; open it with its own library"):
        load(theirs)
    x = image(24, 24, count=1)
    strip = x[0].unfold(1, 4, 4).unfold(2, 4, 4).permute(0, 3, 1, 2, 4).reshape(1, 3, 4, -1)  # patches side by side
    with torch.no_grad():
        expected = theirs(strip, target_sizes=torch.tensor([[6, 6]], dtype=torch.int32), use_vit_merger=False)
        close(load(theirs, strict=False).features(x).tokens, expected.last_hidden_state)


# --------------------------------------------------------------------------------------------------------------------
# Encoders without a norm behind the last block

PYRAMID: dict[str, Any] = {"embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4, "image_size": 64}


def test_donut_s_encoder() -> None:
    theirs = random(T.DonutSwinModel(T.DonutSwinConfig(**PYRAMID)))
    for ours in (load(theirs), load(theirs.state_dict())):
        assert isinstance(ours, Swin)
        for size in ((64, 64), (96, 64), (40, 72)):
            with torch.no_grad():
                expected, got = theirs(image(*size)), ours.features(image(*size))
            close(got.tokens, expected.last_hidden_state)
            close(got.pooled, expected.pooler_output)
    classifier = random(T.DonutSwinForImageClassification(T.DonutSwinConfig(**PYRAMID, num_labels=5)))
    with torch.no_grad():
        close(load(classifier.state_dict())(image(64, 64)), classifier(image(64, 64)).logits)


def test_cvt_s_encoder() -> None:
    theirs = random(T.CvtModel(T.CvtConfig(embed_dim=[16, 32, 64], depth=[1, 2, 3], num_heads=[1, 2, 2])))
    for ours in (load(theirs), load(theirs.state_dict(), num_heads=(1, 2, 2))):
        assert isinstance(ours, Cvt)
        for size in ((64, 64), (96, 64), (48, 80)):
            with torch.no_grad():
                expected, tokens = theirs(image(*size)), ours.features(image(*size)).tokens
            assert tokens is not None
            close(tokens[:, :1], expected.cls_token_value)
            close(tokens[:, 1:], expected.last_hidden_state.flatten(2).mT)
    assert load(ours, num_classes=3)(image(64, 64)).shape == (2, 3)


# --------------------------------------------------------------------------------------------------------------------
# Settings, and writing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pos_grid": 16}, 'pos_grid 16 needs pos_embed "learn", not "none"; leave it out'),
        ({"pos_grid": 0, "pos_embed": "learn"}, "pos_grid 0 must be at least 1 patch"),
        ({"rope": "mixed", "rope_layout": "interleaved", "rope_class": True}, 'rope_class true needs .* not "mixed"'),
    ],
)
def test_settings_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModernConfig(**fields)


WRITTEN: dict[str, dict[str, Any]] = {
    **{name: {} for name in timm.list_models(module="naflexvit")},
    "naflexvit_base_patch16_gap": {"norm_layer": "rmsnorm", "qk_norm": True, "pos_embed_grid_size": (4, 7)},
    "naflexvit_base_patch16_map": {"act_layer": "quick_gelu", "attn_pool_num_heads": 4, "attn_pool_mlp_ratio": 2.0},
    "naflexvit_so150m2_patch16_reg1_map": {"pool_include_prefix": True, "pre_norm": True, "in_chans": 1},
}


def written_for_timm(model: Any, path: Path) -> Any:
    convert(model, "timm", path)
    return timm.create_model(f"local-dir:{path}", pretrained=True).eval()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_naflex_model_is_written_for_timm_with_its_own_tensors_and_arguments(name: str, tmp_path: Path) -> None:
    theirs = of_timm(name, **WRITTEN[name])
    ours = load(theirs)
    again = written_for_timm(ours, tmp_path / "timm")
    assert type(again) is type(theirs)
    if "parfac" not in name:  # whose rows and columns are a sum here
        torch.testing.assert_close(dict(again.state_dict()), dict(theirs.state_dict()), atol=0, rtol=0)
        resized = ("interp_mode", "antialias", "align_corners", "ar_preserving", "grid_size")
        for one in (f"pos_embed_{what}" for what in resized):
            got, expected = (getattr(model.embeds, one) for model in (again, theirs))
            assert (list(got) if one.endswith("size") else got) == (list(expected) if one.endswith("size") else expected)
    for model in (again, load(tmp_path / "timm"), load(again)):  # theirs, the folder read here, and theirs read again
        for size in SIZES:
            x = image(*size) if ours.config.in_channels == 3 else image(*size)[:, :1]
            with torch.no_grad():
                close(model(x), theirs(x))
    assert load(tmp_path / "timm").config == ours.config


@pytest.mark.parametrize("fields", [{"in_channels": 4}, {"patch_size": (4, 2)}, {"num_classes": 0}])
def test_patches_whose_width_does_not_tell_them_are_written_as_a_convolution(fields: dict[str, Any], tmp_path: Path) -> None:
    ours = load(of_timm("naflexvit_base_patch16_siglip"), **fields)
    again = written_for_timm(ours, tmp_path / "timm")
    assert again.embeds.is_linear is ("num_classes" in fields)
    x = torch.randn(2, ours.config.in_channels, 32, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        close(again(x), ours(x))
        close(load(tmp_path / "timm")(x), ours(x))


@pytest.mark.parametrize("name", ["C-RADIO", "Pixio", "Qianfan-OCR"])
def test_towers_of_transformers_are_naflex_models_of_timm(name: str, tmp_path: Path) -> None:
    theirs = random(TOWERS[name]())
    ours, again = load(theirs), written_for_timm(load(theirs), tmp_path / "timm")
    assert type(again).__name__ == "NaFlexVit"
    for size in SIZES:
        with torch.no_grad():
            expected = theirs(image(*size)).last_hidden_state
            close(again.forward_features(image(*size)), expected)
            close(load(tmp_path / "timm").features(image(*size)).tokens, expected)
    close(ours.pos_embed, load(theirs).pos_embed)  # type: ignore[arg-type]


def test_converting_a_run_folder_as_typed(vitrail: Typed, tmp_path: Path) -> None:
    theirs = of_timm("naflexvit_base_patch16_radio_v3")
    save_for_hf(theirs, tmp_path / "theirs", model_args={**TINY, "pos_embed_grid_size": [6, 6]}, safe_serialization=True)
    for source, target in (("theirs", "timm"), ("timm", "again")):  # a checkpoint of timm, then a run folder
        said = vitrail("convert", tmp_path / source, tmp_path / target, "--to", "timm")
        assert said.code == 0
        assert "create_model" in said.out
    model = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    with torch.no_grad():
        close(model(image(32, 20)), theirs(image(32, 20)))


def test_a_run_folder_from_before_still_loads(tmp_path: Path) -> None:
    """Its tensors have our names, and its config.json says nothing to timm."""
    ours = load(of_timm("naflexvit_base_patch16_siglip"))
    convert(ours, "timm", tmp_path / "run")
    weights, config_file = (tmp_path / "run" / name for name in ("model.safetensors", "config.json"))
    save_file({name: value.contiguous() for name, value in ours.state_dict().items()}, weights)
    config = json.loads(config_file.read_text())
    config["vitrail"]["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    config_file.write_text(json.dumps({key: config[key] for key in ("vitrail", "label_names")}))
    with torch.no_grad():
        close(load(tmp_path / "run")(image(32, 20)), ours(image(32, 20)))


@pytest.mark.parametrize(
    ("fields", "library", "message"),
    [
        ({"mlp": "swiglu"}, "timm", 'timm\'s NaFlexVit has no mlp "swiglu", only "gelu" or "gelu_tanh" or '),
        ({"norm_eps": 1e-5}, "timm", "timm's NaFlexVit has no norm_eps 1e-05, only 1e-06"),
        ({"mlp_bias": False}, "timm", "timm's NaFlexVit has no proj_bias other than mlp_bias"),
        ({"pos_square": True}, "hf", 'Siglip2ForImageClassification has no pos_square true, only false; convert it to "timm"'),
        ({"pos_grid": (4, 7)}, "hf", "has no pos_grid 4x7, only squares"),
        ({"in_channels": 4}, "hf", "has no in_channels 4, only 1 or 3"),
        ({"pool": "map", "num_classes": 5}, "hf", 'Siglip2ForImageClassification has no pool "map", only "avg"'),
    ],
)
def test_what_a_class_does_not_compute_is_refused_by_name(
    fields: dict[str, Any], library: str, message: str, tmp_path: Path
) -> None:
    shape: dict[str, Any] = {
        **TINY,
        "img_size": 24,
        "pos_grid": 6,
        "pos_embed": "learn",
        "pos_resize": "bilinear",
        "rope": "none",
    }
    shape |= {"class_token": False, "reg_tokens": 0, "init_values": None, "key_bias": True, "pool": "avg", "norm_eps": 1e-6}
    model = ModernViT(ModernConfig(**{**shape, **fields})).eval()
    channels = model.config.in_channels
    model.preprocessing = Preprocessing(img_size=(24, 24), in_channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    with pytest.raises(Inexpressible, match=re.escape(message)) as error:
        convert(model, library, tmp_path / library)
    assert "\n" not in str(error.value)
    assert not (tmp_path / library).exists()


def test_a_swin_without_a_norm_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(Inexpressible, match="timm's SwinTransformer has no final_norm false"):
        convert(load(random(T.DonutSwinModel(T.DonutSwinConfig(**PYRAMID)))), "timm", tmp_path / "swin")


@pytest.mark.parametrize("make", [siglip2, lambda: siglip2(head=False), siglip2_classifier])
def test_siglip_2_is_written_for_transformers_with_its_own_tensors(make: Callable[[], Any], tmp_path: Path) -> None:
    theirs = make()
    ours = load(theirs)
    with pytest.warns(UserWarning, match="image processor keeps the aspect ratio"):
        convert(ours, "hf", tmp_path / "hf")
    again, info = type(theirs).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    state = again.state_dict()
    kept = {name: value for name, value in theirs.state_dict().items() if name in state}
    assert {name for name in theirs.state_dict() if name not in state} == {
        name for name in theirs.state_dict() if hasattr(theirs, "classifier") and ".head." in name
    }  # a classifier's file has a pooling that nothing reads
    torch.testing.assert_close(dict(state), kept, atol=0, rtol=0)
    images = [image(*size, count=1)[0] for size in SIZES]
    with torch.no_grad():
        for what in ("logits", "last_hidden_state", "pooler_output"):
            expected, got = (getattr(siglip2_of(model, images), what, None) for model in (theirs, again.eval()))
            assert (expected is None) is (got is None)
            if expected is not None:
                close(got, expected)
        close(load(tmp_path / "hf")(image(32, 20)), ours(image(32, 20)))
    assert load(tmp_path / "hf").config == ours.config
    assert load(tmp_path / "hf").preprocessing == ours.preprocessing
    processor = T.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert (type(processor).__name__, processor.max_num_patches, processor.patch_size) == ("Siglip2ImageProcessor", 36, 4)


def test_siglip_2_goes_from_transformers_to_timm_and_back(tmp_path: Path) -> None:
    theirs = siglip2()
    convert(load(written_for_timm(load(theirs), tmp_path / "timm")), "hf", tmp_path / "hf")
    again = T.Siglip2VisionModel.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(dict(again.state_dict()), dict(theirs.state_dict()), atol=0, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# V-JEPA 2, whose image is a video of one frame shown twice

VIDEO = {**SHAPE, "patch_size": 4, "crop_size": 24, "frames_per_clip": 2, "num_pooler_layers": 1, "mlp_ratio": 2.0}
PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}


def video_config(**fields: Any) -> Any:
    return T.VJEPA2Config(**{**VIDEO, **PREDICTOR, **fields})


def still_tokens(theirs: Any, x: Tensor) -> Tensor:
    """Tokens of an image, with the rows and columns of its own grid: transformers counts those of crop_size's square."""
    rows, columns = torch.meshgrid(torch.arange(x.shape[2] // 4), torch.arange(x.shape[3] // 4), indexing="ij")
    for layer in theirs.encoder.layer:
        layer.attention.get_position_ids = lambda x, masks=None: (torch.zeros(rows.numel()), rows.flatten(), columns.flatten())
    tokens: Tensor = theirs(x[:, None], skip_predictor=True).last_hidden_state
    return tokens


@pytest.mark.parametrize("hidden", [32, 48, 64])  # heads of 24 turn all of their channels, those of 16 and 32 do not
def test_v_jepa_2_of_an_image_at_any_size(hidden: int) -> None:
    theirs = random(T.VJEPA2Model(video_config(hidden_size=hidden)))
    live = load(theirs)
    with torch.no_grad():
        square = image(24, 24)
        close(live.features(square).tokens, theirs(square[:, None], skip_predictor=True).last_hidden_state)
        for ours in (live, bare(theirs, live)):
            assert ours.config.rope == "video"
            assert not [entry for entry in ours.receipt.entries if entry.status == "dropped"]
            for size in SIZES:
                close(ours.features(image(*size)).tokens, still_tokens(theirs, image(*size)))


@pytest.mark.parametrize("fields", [{"hidden_size": 48}, {"qkv_bias": False, "hidden_act": "gelu_pytorch_tanh", "in_chans": 1}])
def test_v_jepa_2_s_encoder_is_written_for_transformers(fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = random(T.VJEPA2Model(video_config(**fields)))
    ours = load(theirs)
    with pytest.warns(UserWarning, match="not") as notes:
        convert(ours, "hf", tmp_path / "hf")
    assert [re.split("[ :]", str(note.message))[1] for note in notes] == ["predictor", "frames", "does"]
    again, info = T.VJEPA2Model.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all(name.startswith("predictor.") for name in info["missing_keys"])
    patch, state = "encoder.embeddings.patch_embeddings.proj.weight", theirs.state_dict()
    for name in (name for name in state if not name.startswith("predictor.") and name != patch):
        torch.testing.assert_close(again.state_dict()[name], state[name], atol=0, rtol=0)
    torch.testing.assert_close(again.state_dict()[patch].sum(2), state[patch].sum(2), atol=0, rtol=0)
    for name in ("hidden_size", "mlp_ratio", "hidden_act", "qkv_bias", "crop_size", "patch_size", "tubelet_size", "in_chans"):
        assert getattr(again.config, name) == getattr(theirs.config, name)
    x = image(24, 24)[:, : ours.config.in_channels]
    with torch.no_grad():
        expected = theirs(x[:, None], skip_predictor=True).last_hidden_state
        for video in (x[:, None], torch.stack([x, x], 1)):  # one frame, which is shown twice, and two
            close(again.eval()(video, skip_predictor=True).last_hidden_state, expected)
        close(load(tmp_path / "hf").features(x).tokens, expected)
    assert load(tmp_path / "hf").config == ours.config
    assert type(T.AutoModel.from_pretrained(tmp_path / "hf")).__name__ == "VJEPA2Model"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"img_size": (24, 32)}, "transformers' VJEPA2Model has no img_size 24x32, only squares"),
        ({"num_classes": 3}, "transformers' VJEPA2Model has no num_classes 3, only 0"),
    ],
)
def test_v_jepa_2_as_its_class_can_not_be(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Inexpressible, match=message):
        convert(load(random(T.VJEPA2Model(video_config())), **fields), "hf", tmp_path / "hf")


def test_v_jepa_2_s_gradients() -> None:
    theirs = random(T.VJEPA2Model(video_config()))
    ours = load(theirs)
    for tokens in (ours.features(image(24, 24)).tokens, still_tokens(theirs, image(24, 24))):
        tokens.square().sum().backward()
    close(ours.get_parameter("norm.weight").grad, theirs.encoder.layernorm.weight.grad)
    query, key, value = (getattr(theirs.encoder.layer[0].attention, part) for part in ("query", "key", "value"))
    joined = torch.cat([query.weight.grad, key.weight.grad, value.weight.grad])
    torch.testing.assert_close(ours.get_parameter("blocks.0.attn.qkv.weight").grad, joined, atol=1e-4, rtol=1e-4)


def test_v_jepa_2_in_the_names_of_its_authors() -> None:
    theirs = random(T.VJEPA2Model(video_config()))
    ours = load(theirs)
    state = {f"module.backbone.{name}": value for name, value in ours.state_dict().items()}
    name = "module.backbone.patch_embed.proj.weight"
    state[name] = theirs.encoder.embeddings.patch_embeddings.proj.weight.data
    again = load({"encoder": state, "predictor": {"module.backbone.mask_tokens.0": torch.zeros(1, 1, 24)}}, num_heads=2)
    with torch.no_grad():
        close(again.features(image(32, 20)).tokens, ours.features(image(32, 20)).tokens)
    assert any("256 px" in text for text in again.receipt.assumed)  # type: ignore[union-attr]


def test_v_jepa_2_with_a_head_leaves_its_attention_out() -> None:
    ours = load(random(T.VJEPA2ForVideoClassification(video_config())))
    dropped = [entry.name for entry in ours.receipt.entries if entry.status == "dropped"]  # type: ignore[union-attr]
    assert dropped
    assert all(name.startswith(("pooler.", "classifier.")) for name in dropped)
    assert ours.config.num_classes == 0
