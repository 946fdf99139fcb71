from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from vitrail.models.beit import Beit
from vitrail.settings import Preprocessing
from vitrail.weights import convert, load, save_model

SHAPE: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def random(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=1.0 if "table" in name or "lambda" in name else 0.2, generator=generator)
    return model.eval()


def of_timm(**arguments: Any) -> Any:
    return random(timm.create_model("beit_base_patch16_224", **{"img_size": 64, **SHAPE, **arguments}))


def of_transformers(kind: str = "Beit", head: str = "ForImageClassification", **fields: Any) -> Any:
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "num_labels": 5}
    config = getattr(transformers, f"{kind}Config")(**shape, image_size=64, **fields)
    return random(getattr(transformers, f"{kind}{head}")(config))


OWN, SHARED = {"use_relative_position_bias": True}, {"use_shared_relative_position_bias": True}
ABSOLUTE = {"use_absolute_position_embeddings": True}
PEERS: dict[str, Any] = {
    "timm": of_timm,
    "timm, shared and absolute": lambda: of_timm(
        use_rel_pos_bias=False, use_shared_rel_pos_bias=True, use_abs_pos_emb=True, qkv_bias=False
    ),
    "timm, class token": lambda: of_timm(global_pool="token", img_size=(64, 96)),
    "transformers": lambda: of_transformers(**OWN),
    "transformers, shared and absolute": lambda: of_transformers(**SHARED, **ABSOLUTE, layer_scale_init_value=0.0),
    "transformers, both, class token": lambda: of_transformers(**OWN, **SHARED, use_mean_pooling=False),
    "transformers, data2vec": lambda: of_transformers("Data2VecVision", **OWN, layer_norm_eps=1e-6),
    "transformers, data2vec, shared": lambda: of_transformers("Data2VecVision", **SHARED),
}


def images(height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def logits_of(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out if isinstance(out, Tensor) else out.logits


def same(ours: Any, theirs: Any, x: Tensor | None = None) -> None:
    x = images() if x is None else x
    torch.testing.assert_close(logits_of(ours, x), logits_of(theirs, x), atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("peer", PEERS)
def test_a_live_model_and_its_folder(peer: str, tmp_path: Path) -> None:
    theirs = PEERS[peer]()
    x = images(64, 96) if peer == "timm, class token" else images()
    ours = load(theirs)
    assert isinstance(ours, Beit)
    same(ours, theirs, x)
    assert ours.receipt is not None
    assert ours.receipt.origin == f"{peer.partition(',')[0]}, Beit"
    assert {entry.status for entry in ours.receipt.entries} == {"exact"}
    assert ours.receipt.total("exact") == sum(parameter.numel() for parameter in ours.parameters())
    if peer.startswith("transformers"):
        theirs.save_pretrained(tmp_path / "theirs")
        same(load(tmp_path / "theirs"), theirs)


def test_a_folder_of_timm(tmp_path: Path) -> None:
    theirs = of_timm()
    save_for_hf(theirs, str(tmp_path / "timm"), model_args={"img_size": 64, **SHAPE})
    same(load(tmp_path / "timm"), theirs)


def test_the_papers_own_file() -> None:
    """Its names are timm's; it stores the index of the pairs too, and while pre-training a mask token and a head of codes."""
    theirs = of_timm(use_rel_pos_bias=False, use_shared_rel_pos_bias=True, global_pool="token", num_classes=0)
    buffers = {name: buffer for name, buffer in theirs.named_buffers() if name.endswith("relative_position_index")}
    more = {"mask_token": torch.zeros(1, 1, 24), "lm_head.weight": torch.zeros(9, 24), "lm_head.bias": torch.zeros(9)}
    model = load({"model": {**theirs.state_dict(), **buffers, **more}})
    same(model, theirs)
    assert model.receipt is not None
    assert {entry.name for entry in model.receipt.entries if entry.status == "dropped"} == set(more)


def test_a_pre_trained_model_of_transformers() -> None:
    theirs = of_transformers(head="ForMaskedImageModeling", **SHARED, use_mean_pooling=False, use_mask_token=True, vocab_size=9)
    model = load(theirs, num_classes=3)
    assert model.config.relative_bias == "shared"
    with torch.no_grad():
        expected = theirs.beit(images()).last_hidden_state
        torch.testing.assert_close(model.features(images()).tokens, expected, atol=1e-5, rtol=1e-5)


def test_other_classes_channels_and_sizes() -> None:
    theirs = of_timm(use_abs_pos_emb=True)
    model = load(theirs.state_dict(), num_classes=3, in_channels=5, img_size=(96, 32))
    assert model(torch.zeros(1, 5, 96, 32)).shape == (1, 3)
    assert model.receipt is not None
    statuses = {entry.name: entry.status for entry in model.receipt.entries}
    assert statuses["head.weight"] == "new"
    assert statuses["patch_embed.proj.weight"] == "adapted"
    assert statuses["blocks.1.attn.relative_position_bias_table"] == statuses["pos_embed"] == "resized"
    theirs.set_input_size((96, 32))
    same(load(of_timm(use_abs_pos_emb=True), img_size=(96, 32)), theirs, images(96, 32))


def test_a_table_of_no_known_grid() -> None:
    state = of_timm(img_size=(64, 96)).state_dict()
    with pytest.raises(ValueError, match=r"relative positions of 80 rows are of no square grid; put the config\.json beside"):
        load(state)


def test_an_incomplete_file() -> None:
    state = of_timm().state_dict()
    state.pop("blocks.1.attn.relative_position_bias_table")
    with pytest.raises(ValueError, match=r"has no blocks\.1\.attn\.relative_position_bias_table, so it is not all of a BEiT"):
        load(state)


# --------------------------------------------------------------------------------------------------------------------
# Writing


def ours(**fields: Any) -> Beit:
    model: Beit = random(Beit(**{"img_size": 64, **SHAPE, **fields}))
    model.preprocessing = Preprocessing(img_size=(64, 64), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    model.classes = ("a", "b", "c", "d", "e")
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"relative_bias": "shared", "pos_embed": "learn", "init_values": None},
        {"relative_bias": "both", "pool": "cls", "fc_norm": False},
        {"relative_bias": "none", "pos_embed": "learn"},
    ],
)
def test_written_for_timm_and_transformers(fields: dict[str, Any], tmp_path: Path) -> None:
    model = ours(**fields)
    convert(model, "timm", tmp_path / "timm")
    same(timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval(), model)
    convert(model, "hf", tmp_path / "hf")
    theirs, info = transformers.BeitForImageClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    same(theirs.eval(), model)
    for folder in ("timm", "hf"):
        back = load(tmp_path / folder)
        same(back, model)
        assert back.classes == model.classes
        assert back.preprocessing == model.preprocessing


@pytest.mark.parametrize(
    ("to", "fields", "message"),
    [
        ("hf", {"num_classes": 0}, "has no num_classes 0; convert it to .timm."),
        ("hf", {"fc_norm": False}, r'has no pool "avg" with fc_norm False'),
        ("hf", {"img_size": (64, 96)}, "reads relative positions of 64x96 px in the wrong order"),
        ("timm", {"norm_eps": 1e-12}, "timm's Beit has no norm_eps 1e-12"),
        ("torchvision", {}, '"torchvision" has no Beit'),
    ],
)
def test_models_that_a_library_can_not_be(to: str, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = ours(**fields)
    model.classes = ()
    with pytest.raises(ValueError, match=message):
        convert(model, to, tmp_path / "out")


def test_a_run_folder_is_ours_and_timms(tmp_path: Path) -> None:
    model = ours(relative_bias="shared")
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", data="photos")
    same(load(tmp_path / "run"), model)
    same(timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval(), model)
    assert "rel_pos_bias.relative_position_bias_table" in load_file(tmp_path / "run" / "model.safetensors")
    larger = load(tmp_path / "run", img_size=96)
    same(larger, model, images(96, 96))
