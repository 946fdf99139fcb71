"""What is saved comes back, what is damaged is refused, and timm opens the folder too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import vitrail
from vitrail.models import ViT
from vitrail.settings import Preprocessing
from vitrail.weights import load, read_run, save_model
from vitrail.weights.model_card import model_card
from vitrail.weights.run_folder import write_atomically

PREPROCESSING = Preprocessing(img_size=(8, 12), in_channels=1, mean=(0.2,), std=(0.3,), crop_pct=0.9, interpolation="bilinear")


def model(**fields: object) -> ViT:
    torch.manual_seed(0)
    base = {
        "img_size": (8, 12),
        "patch_size": 4,
        "in_channels": 1,
        "embed_dim": 8,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 3,
    }
    made = ViT(**base | fields).eval()
    made.preprocessing, made.classes = PREPROCESSING, ("cat", "dog", "naïve owl")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


IMAGES = torch.randn(2, 1, 8, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "fields", [{}, {"stem": "conv", "pool": "map", "mlp": "swiglu", "head": "mlp", "dist_token": True, "reg_tokens": 2}]
)
def test_saved_and_loaded_is_the_same(tmp_path: Path, fields: dict[str, object]) -> None:
    saved = model(**fields)
    save_model(saved, tmp_path, data="photos")
    loaded = load(tmp_path)
    assert not loaded.training
    assert loaded.config == saved.config
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.classes == saved.classes
    assert read_run(str(tmp_path)).data == "photos"
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(loaded(IMAGES), saved(IMAGES), atol=1e-6, rtol=1e-6)  # layouts in memory may differ
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_several_labels_an_image_are_remembered_with_the_head(tmp_path: Path) -> None:
    saved = model()
    saved.multi_label = True
    save_model(saved, tmp_path, data="photos")
    assert json.loads((tmp_path / "config.json").read_text())["multi_label"] is True
    assert read_run(tmp_path).multi_label
    assert vitrail.load(tmp_path).multi_label
    assert load(tmp_path).multi_label
    assert not load(tmp_path, num_classes=5).multi_label, "a fresh head has learned nothing yet"
    assert load(saved).multi_label, "a model in memory says it too"
    assert not load(saved, num_classes=5).multi_label
    assert not load(model()).multi_label
    scores = {"data": "photos", "split": "test", "count": 7, "mean_ap": 0.5, "mean_ap_interval": [0.4, 0.6]}
    (tmp_path / "evaluation.json").write_text(json.dumps(scores))
    assert "| mean average precision | 50.0% on 7 images, 95 % interval 40.0% to 60.0% (photos, test) |" in model_card(
        tmp_path, repo_id="me/beach"
    )
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    save_model(model(), tmp_path, data="photos")
    assert not load(tmp_path).multi_label


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qkv_bias": False, "qk_norm": True, "init_values": 0.5, "mlp_ratio": 2.0},
        {"reg_tokens": 2, "pos_drop_rate": 0.1},
        {"pool": "avg"},
        {"pool": "avg", "class_token": False, "fc_norm": True, "mlp_ratio": 2.3},
        {"pool": "map", "class_token": False, "reg_tokens": 1},
        {"mlp": "swiglu", "pool": "avg"},
        {"dist_token": True},
        {"pos_embed": "sincos2d"},
        {"pos_embed": "none", "class_token": False, "pool": "avg"},
        {"pre_norm": True, "mlp": "quick_gelu", "norm_eps": 1e-5},
    ],
    ids=str,
)
def test_timm_opens_a_run_folder(tmp_path: Path, fields: dict[str, object]) -> None:
    saved = model(**fields)
    save_model(saved, tmp_path, data="photos")
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        logits = saved(IMAGES)
        assert logits.std() > 0.01
        torch.testing.assert_close(theirs(IMAGES), logits, atol=1e-5, rtol=1e-5)
        ours = vitrail.load(tmp_path)
        assert torch.equal(ours(IMAGES), logits)
    assert theirs.pretrained_cfg["mean"] == [0.2]
    assert theirs.pretrained_cfg["crop_pct"] == 0.9
    assert theirs.pretrained_cfg["crop_mode"] == "center"
    assert theirs.pretrained_cfg["interpolation"] == "bilinear"


def test_beside_registers_the_class_token_holds_its_position(tmp_path: Path) -> None:
    """timm gives a position to all tokens before the patches or to none, and registers have none."""
    saved = model(reg_tokens=2)
    save_model(saved, tmp_path, data="photos")
    assert read_run(tmp_path).config == dataclasses.replace(saved.config, no_embed_class=True)
    tensors = load_file(tmp_path / "model.safetensors")
    position = saved.get_parameter("pos_embed")
    assert torch.equal(tensors["cls_token"], saved.get_parameter("cls_token") + position[:, :1])
    assert torch.equal(tensors["pos_embed"], position[:, 1:])


@pytest.mark.parametrize(
    "fields",
    [
        {"stem": "conv"},
        {"head": "mlp"},
        {"pool": "cls+avg"},
        {"patch_norm": True},
        {"norm_eps": 1e-12},
        {"mlp": "swiglu", "pool": "map"},
        {"dist_token": True, "pool": "avg"},
    ],
    ids=str,
)
def test_what_timm_lacks_is_not_promised_to_it(tmp_path: Path, fields: dict[str, object]) -> None:
    save_model(model(**fields), tmp_path, data="photos")
    assert "architecture" not in json.loads((tmp_path / "config.json").read_text())


def test_a_run_says_where_its_weights_come_from(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "vit.pth")
    (tmp_path / "run").mkdir()
    tuned = load(tmp_path / "vit.pth", num_heads=2, img_size=(8, 12), num_classes=5)
    tuned.receipt = dataclasses.replace(tuned.receipt, licence="apache-2.0")  # type: ignore[type-var]
    save_model(tuned, tmp_path / "run", data="photos")
    text = (tmp_path / "run" / "config.json").read_text()
    told = json.loads(text)
    assert (told["vitrail"]["licence"], told["pretrained_cfg"]["license"]) == ("apache-2.0", "apache-2.0")
    receipt = told["vitrail"]["receipt"]
    assert (receipt["origin"], receipt["file"]) == ("timm", "vit.pth")
    assert [tensor["name"] for tensor in receipt["tensors"] if tensor["status"] == "new"] == ["head.weight", "head.bias"]
    assert str(tmp_path) not in text
    card = model_card(tmp_path / "run")
    assert "license: apache-2.0" in card
    assert "| weights from | timm · vit.pth, licence apache-2.0 |" in card


def test_random_weights_come_from_nowhere(tmp_path: Path) -> None:
    fresh = load("Ti/16", depth=1, embed_dim=24)
    fresh.preprocessing = dataclasses.replace(PREPROCESSING, img_size=(224, 224), in_channels=3)
    save_model(fresh, tmp_path, data="photos")
    assert "receipt" not in json.loads((tmp_path / "config.json").read_text())["vitrail"]


@pytest.mark.parametrize("place", [0, 40, -1])
def test_one_flipped_byte_is_refused_in_one_line(tmp_path: Path, place: int) -> None:
    save_model(model(), tmp_path, data="photos")
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[place] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: its sha256 is \w+, expected \w+") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_run_from_before_there_was_a_crop_mode(tmp_path: Path) -> None:
    save_model(model(), tmp_path, data="photos")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vitrail"]["preprocessing"].pop("crop_mode") == "center"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_run(tmp_path).preprocessing == PREPROCESSING


def test_missing_weights_are_named(tmp_path: Path) -> None:
    save_model(model(), tmp_path, data="photos")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no weights"):
        vitrail.load(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "{}",
        '{"vitrail": 5}',
        '{"vitrail": {"model": {"depht": 2}, "preprocessing": {}, "data": "", "sha256": ""}, "label_names": []}',
        '{"vitrail": {"model": {"depth": -2}, "preprocessing": {}, "data": "", "sha256": ""}, "label_names": []}',
    ],
)
def test_a_config_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    save_model(model(), tmp_path, data="photos")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json (can't be read .*\(.+\)|holds a JSON)|give num_heads=") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused_in_one_line(tmp_path: Path) -> None:
    save_model(model(), tmp_path, data="photos")
    config = json.loads((tmp_path / "config.json").read_text())
    config["vitrail"]["model"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"blocks\.2\.norm1\.weight, .* give strict=False") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_folders_that_are_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\" does not exist; `vitrail train` makes one$"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no config.json, so it is not a finished run; `vitrail train` makes one$"):
        read_run(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {}")
    with pytest.raises(ValueError, match=r"its training is not finished: `vitrail resume .*`$"):
        read_run(tmp_path)


def test_a_model_without_preprocessing_is_not_saved(tmp_path: Path) -> None:
    unsaid = model()
    unsaid.preprocessing = None
    with pytest.raises(ValueError, match=r"set model.preprocessing before it is saved$"):
        save_model(unsaid, tmp_path, data="photos")
    assert not list(tmp_path.iterdir())


def test_saving_again_replaces_the_whole(tmp_path: Path) -> None:
    save_model(model(), tmp_path, data="photos")
    second = model(depth=1)
    save_model(second, tmp_path, data="more photos")
    assert load(tmp_path).config == dataclasses.replace(second.config)
    assert read_run(tmp_path).data == "more photos"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), write_atomically(path) as draft:
        draft.write_text("ne\udcff", encoding="utf-8")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("scores.json", "old")]
    with write_atomically(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("scores.json", "new")]


def test_a_card_is_text_whatever_the_names_hold(tmp_path: Path) -> None:
    ours = model()
    ours.classes = ("\udcff|", "a\n---\n", "\x1b[31m\u2028")
    save_model(ours, tmp_path, data="photos\ud800")
    (tmp_path / "evaluation.json").write_text(
        '{"top1": NaN, "top1_interval": [NaN, NaN], "count": 0, "data": "d", "split": "test"}'
    )
    with pytest.raises(ValueError, match=r"evaluation\.json") as error:
        model_card(tmp_path)
    assert len(str(error.value).splitlines()) == 1
    (tmp_path / "evaluation.json").unlink()
    card = model_card(tmp_path)
    assert "| classes | 3: \\udcff\\|, a --- , \\x1b[31m\\u2028 |" in card
    assert "for photos\\ud800\n" in card
    card.encode()
