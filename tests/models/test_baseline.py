"""Baselines: models of torchvision and timm in the place of a ViT, from the settings to a run folder and back."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import vitrail
from cases import some_slow
from interrupts import interrupt_at
from vitrail import cli
from vitrail.models import Baseline, ViT, build_model, check_model, create_baseline, create_model, meta_model
from vitrail.models.backbone import View
from vitrail.models.baseline import BaselineConfig, published_classes
from vitrail.models.describe import describe_model
from vitrail.settings import ModelConfig, Preprocessing, layers
from vitrail.settings.baseline import BaselineModelConfig, is_baseline
from vitrail.train.notes import find_unused
from vitrail.train.step import Ema
from vitrail.weights import Receipt, convert, read_run, save_model
from vitrail.weights.adapt import adapt_channels
from vitrail.weights.model_card import model_card

TINY = ("torchvision:resnet18", "timm:test_resnet", "timm:test_efficientnet", "timm:test_vit")
FORMS = (
    *TINY,
    "torchvision:squeezenet1_1",
    "torchvision:googlenet",
    "torchvision:mobilenet_v3_small",
    "torchvision:convnext_tiny",
)


def side_of(name: str) -> int:
    return {"torchvision:squeezenet1_1": 48}.get(name, 32)


# --------------------------------------------------------------------------------------------------------------------
# Models


def test_names() -> None:
    assert is_baseline("torchvision:resnet18")
    assert is_baseline("timm:resnet50.a1_in1k")
    assert not any(map(is_baseline, ("B/16", "timm/resnet50", "timm", "torchvision", "hf:resnet", "runs/timm:x")))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_called_as_a_vit_is(name: str, channels: int) -> None:
    side = side_of(name)
    model = create_baseline(name, num_classes=7, img_size=side, in_channels=channels).eval()
    assert (model.config.name, model.num_classes, model.config.in_channels) == (name, 7, channels)
    images = torch.randn(2, channels, side, side)
    with torch.no_grad():
        logits, embedding = model(images), model.embedding(images)
        assert logits.shape == (2, 7)
        assert torch.equal(model(images), logits), "the head is back after `embedding`"
        model.reset_head(0)
        assert torch.equal(model(images), embedding)
        assert torch.equal(model.embedding(images), embedding)
    with pytest.raises(ValueError, match=rf"^images have {channels + 1} channels, and the model takes {channels}; convert"):
        model(torch.randn(2, channels + 1, side, side))


@pytest.mark.parametrize("name", TINY)
def test_another_head(name: str) -> None:
    model = create_baseline(name, num_classes=7, img_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model.embedding(images)
        model.reset_head(4)
        assert model.num_classes == 4
        assert model(images).shape == (2, 4)
        assert torch.equal(model.embedding(images), before)
    with pytest.raises(ValueError, match=r"^num_classes -1 must not be negative"):
        model.reset_head(-1)


def test_the_same_model_as_the_library_s() -> None:
    """The library's own weights and ours are the same numbers, channels-last or not."""
    images = torch.randn(2, 3, 64, 64)
    for name, theirs in (
        ("torchvision:resnet18", torchvision.models.resnet18(num_classes=10)),
        ("timm:test_efficientnet", timm.create_model("test_efficientnet", num_classes=10)),
    ):
        ours = create_baseline(name, num_classes=10, img_size=64)
        ours.net.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_other_channels_for_torchvision_are_those_of_adapted_checkpoints(channels: int) -> None:
    torch.manual_seed(0)
    three = create_baseline("torchvision:resnet18", num_classes=2)
    torch.manual_seed(0)
    other = create_baseline("torchvision:resnet18", num_classes=2, in_channels=channels)
    wanted = adapt_channels(three.net.conv1.weight, to=channels, how="repeat")  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(other.net.conv1.weight, wanted)  # type: ignore[union-attr]
    assert other.net.conv1.bias is None  # type: ignore[union-attr]
    with_bias = create_baseline("torchvision:convnext_tiny", num_classes=2, in_channels=channels)
    assert with_bias.net.get_submodule("features.0.0").bias is not None


def test_regularisation_is_what_the_settings_say() -> None:
    def dropouts(model: Baseline) -> set[float]:
        return {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)}

    def depths(model: Baseline) -> list[float]:
        return [layer.p for layer in model.modules() if isinstance(layer, StochasticDepth)]

    plain = create_baseline("torchvision:efficientnet_b0", num_classes=2)
    assert dropouts(plain) == {0.0}
    assert set(depths(plain)) == {0.0}
    wild = create_baseline("torchvision:efficientnet_b0", num_classes=2, drop_rate=0.3, drop_path_rate=0.4)
    assert dropouts(wild) == {0.3}
    rates = depths(wild)
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.4)
    assert rates == sorted(rates)
    theirs = timm.create_model("test_efficientnet", drop_path_rate=0.4)
    ours = create_baseline("timm:test_efficientnet", drop_path_rate=0.4)
    assert [m.drop_prob for m in ours.modules() if hasattr(m, "drop_prob")] == [
        m.drop_prob for m in theirs.modules() if hasattr(m, "drop_prob")
    ]


@pytest.mark.slow
def test_stochastic_depth_of_every_model_of_torchvision_can_be_turned_off() -> None:
    """Their defaults go up to 0.5: none is left at 0 of the settings, and each can be set."""
    for name in torchvision.models.list_models(module=torchvision.models):
        if name.startswith(("convnext", "efficientnet", "swin", "maxvit")) and name.endswith(("tiny", "b0", "_t", "v2_s")):
            model = meta_model(BaselineModelConfig(name=f"torchvision:{name}", drop_path_rate=0.2))
            rates = [layer.p for layer in model.modules() if isinstance(layer, StochasticDepth)]
            assert max(rates) == pytest.approx(0.2), name


def test_what_a_vit_has_and_a_baseline_has_not() -> None:
    model = create_baseline("timm:test_resnet", num_classes=2)
    with pytest.raises(ValueError, match=r"^timm:test_resnet has no attention maps as a ViT has"):
        model.attention_maps(torch.randn(1, 3, 32, 32))
    with pytest.raises(AttributeError, match=r"^timm:test_resnet, a model of timm and no ViT, has no attribute 'blocks'$"):
        _ = model.blocks
    assert not hasattr(model, "blocks")
    model.checkpointing = False
    with pytest.raises(ValueError, match=r"^train.checkpointing recomputes a ViT's blocks, and timm:test_resnet has none"):
        model.checkpointing = True
    assert isinstance(create_model("timm:test_resnet", num_classes=3), Baseline)
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    assert torch.equal(model.features(images).pooled, model.embedding(images))
    with pytest.raises(ValueError, match=r"^timm:test_resnet looks at whole images only; use a ViT$"):
        model.features(images, View(patch_size=4))


def test_batch_norms_are_in_the_running_mean() -> None:
    model, mean = (create_baseline("timm:test_resnet", num_classes=2, img_size=32) for _ in range(2))
    ema = Ema(model, mean, 0.9)
    model(torch.randn(4, 3, 32, 32))
    ema.update(0)
    ours, theirs = dict(model.named_buffers()), dict(mean.named_buffers())
    assert ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"name": "torchvision:resnet19"},
            r'^model "torchvision:resnet19": torchvision has no "resnet19"; did you mean resnet18',
        ),
        ({"name": "timm:efficentnet_b0"}, r'^model "timm:efficentnet_b0": timm has no .* did you mean efficientnet_b0'),
        ({"name": "timm:zzz"}, r'timm has no "zzz"; timm\'s list_models\(\) has [\d,]+ names$'),
        ({"name": "torchvision:fcn_resnet50"}, r'torchvision has no "fcn_resnet50"'),
        (
            {"drop_path_rate": 0.1},
            r"^model.drop_path_rate 0.1: torchvision:resnet18 has no stochastic depth; leave the setting out$",
        ),
        ({"drop_rate": 0.1}, r"^model.drop_rate 0.1: torchvision:resnet18 has no dropout before its head; leave"),
        (
            {"name": "timm:vgg11", "drop_path_rate": 0.1},
            r"^model.drop_path_rate 0.1: timm:vgg11 has no stochastic depth; leave",
        ),
        ({"name": "torchvision:vgg11", "img_size": 28}, r"does not work on images of 28x28 px \(.*\); use model.img_size 32$"),
        (
            {"name": "torchvision:inception_v3", "img_size": 32},
            r"does not work on images of 32x32 px .* use model.img_size 75$",
        ),
        ({"name": "timm:test_vit", "img_size": 40}, r"does not work on images of 40x40 px .* use model.img_size 32$"),
        ({"name": "torchvision:vit_b_16", "img_size": (32, 48)}, r"takes square images, not 32x48; use model.img_size 32$"),
    ],
)
def test_what_can_t_be_built_says_so_in_a_line(fields: dict[str, Any], said: str) -> None:
    cfg = BaselineModelConfig(**{"name": "torchvision:resnet18", "num_classes": 3, **fields})
    with pytest.raises(ValueError, match=said) as error:
        check_model(cfg)
    assert "\n" not in str(error.value)


def test_check_lets_pass_what_can_be_built() -> None:
    for name, side in (("torchvision:resnet18", 28), ("torchvision:regnet_y_400mf", 32), ("timm:test_vit", 32)):
        check_model(BaselineModelConfig(name=name, img_size=side, in_channels=1, num_classes=3))
        built = build_model(BaselineModelConfig(name=name, img_size=side, in_channels=1, num_classes=3))
        assert isinstance(built, Baseline)
    assert isinstance(build_model(ModelConfig(name="Ti/16", embed_dim=12, num_heads=2, depth=1)), ViT)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_not_installed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ValueError, match=rf"^{library}:resnet18 needs {library} .*: pip install 'vitrail\[baselines\]'$"
    ) as error:
        create_baseline(f"{library}:resnet18", num_classes=2)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------------------
# Published weights, without the network


def test_torchvision_s_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision.models.resnet18().eval()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    ours = vitrail.load("torchvision:resnet18")
    assert isinstance(ours, Baseline)
    assert not ours.training
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert (ours.config.img_size, len(ours.classes), published_classes("torchvision:resnet18")) == (224, 1000, 1000)
    assert ours.preprocessing is not None
    assert ours.preprocessing.mean == (0.485, 0.456, 0.406)
    assert ours.preprocessing.crop_pct == pytest.approx(224 / 256)

    other = vitrail.load("torchvision:resnet18", num_classes=5, in_channels=1, img_size=96)
    assert (other.preprocessing.img_size, len(other.preprocessing.mean), other.classes) == ((96, 96), 1, ())  # type: ignore[union-attr]
    torch.testing.assert_close(other.embedding(images[:, :1]), ours.embedding(images[:, :1].expand(-1, 3, -1, -1)))
    receipt = other.receipt
    assert isinstance(receipt, Receipt)
    states = {entry.name: entry.status for entry in receipt.entries}
    assert (states["conv1.weight"], states["fc.weight"], states["bn1.weight"]) == ("adapted", "new", "exact")
    with pytest.raises(ValueError, match=r"^depth is a part of a ViT, and torchvision:resnet18 is none: it takes img_size"):
        vitrail.load("torchvision:resnet18", depth=3)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_two_of_torchvision_s_normalise_anew_and_get_images_as_they_want_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = torchvision.models.get_model(name, init_weights=False, transform_input=True, aux_logits=True).eval()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: theirs.state_dict())
    ours = vitrail.load(f"torchvision:{name}")
    assert list(ours.net.state_dict()) == list(create_baseline(f"torchvision:{name}").net.state_dict())
    pixels = torch.rand(2, 3, 96, 96)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    assert ours.preprocessing is not None
    with torch.no_grad():
        wanted = theirs(normalised((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        got = ours(normalised(ours.preprocessing.mean, ours.preprocessing.std))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_timm_s_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm.create_model("test_resnet").eval()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(theirs.state_dict()))
    monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda *_, **__: True)
    ours = vitrail.load("timm:test_resnet")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert ours.config.img_size == (160, 160)
    assert ours.preprocessing is not None
    assert ours.preprocessing.crop_pct == theirs.pretrained_cfg["crop_pct"]
    assert ours.preprocessing.interpolation == theirs.pretrained_cfg["interpolation"]
    assert vitrail.load("timm:test_resnet", num_classes=3, in_channels=1)(images[:, :1]).shape == (2, 3)


def test_weights_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(
        ValueError, match=r"^torchvision's default weights of resnet18 can't be fetched .*\(no route\); for"
    ) as error:
        vitrail.load("torchvision:resnet18")
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------------------
# Saved and loaded


def saved(name: str, folder: Path, *, channels: int = 3) -> Baseline:
    model = create_baseline(name, num_classes=5, img_size=32, in_channels=channels)
    model.train()(torch.randn(4, channels, 32, 32))  # batch norms have seen something
    model.preprocessing = Preprocessing(img_size=(32, 32), in_channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    model.classes = tuple("abcde")
    save_model(model, folder, data="toys")
    return model.eval()


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("channels", [1, 3])
def test_saved_and_loaded_is_the_same_to_the_bit_and_opens_in_its_library(name: str, channels: int, tmp_path: Path) -> None:
    model = saved(name, tmp_path, channels=channels)
    images = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        logits = model(images)
        loaded = vitrail.load(tmp_path)
        assert isinstance(loaded, Baseline)
        assert not loaded.training
        assert torch.equal(loaded(images), logits)
        assert torch.equal(vitrail.load(tmp_path)(images), logits)
    assert (loaded.config, loaded.classes, loaded.preprocessing) == (model.config, model.classes, model.preprocessing)
    assert read_run(tmp_path).config == model.config
    assert isinstance(loaded.receipt, Receipt)
    assert {entry.status for entry in loaded.receipt.entries} == {"exact"}

    library, _, theirs = name.partition(":")
    if library == "timm":
        opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        torch.testing.assert_close(opened(images), logits, atol=1e-5, rtol=1e-5)
    elif channels == 3:
        peer = torchvision.models.get_model(theirs, num_classes=5).eval()
        peer.load_state_dict(load_file(tmp_path / "model.safetensors"))
        torch.testing.assert_close(peer(images), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_a_run_for_other_classes_and_channels(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path)
    other = vitrail.load(tmp_path, num_classes=7, in_channels=1)
    images = torch.randn(2, 1, 32, 32)
    assert other(images).shape == (2, 7)
    torch.testing.assert_close(other.embedding(images), model.embedding(images.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)
    assert other.classes == ()
    receipt = other.receipt
    assert isinstance(receipt, Receipt)
    assert receipt.backbone_share == 1
    assert [entry.note for entry in receipt.entries if entry.status == "adapted"] == ["3 -> 1 channels"]
    assert len([entry for entry in receipt.entries if entry.status == "new"]) == 2
    kept = vitrail.load(tmp_path, in_channels=4, channels="keep")
    torch.testing.assert_close(
        kept(torch.cat([images.expand(-1, 3, -1, -1), images], dim=1)), model(images.expand(-1, 3, -1, -1))
    )


def test_mistakes_with_a_run(tmp_path: Path) -> None:
    saved("timm:test_vit", tmp_path)
    with pytest.raises(
        ValueError, match=r"^embed_dim is a part of a ViT, and timm:test_vit is none: it takes img_size, in_cha"
    ):
        vitrail.load(tmp_path, embed_dim=12)
    with pytest.raises(
        ValueError, match=r"^pos_embed is 1x5x64 in .* and 1x10x64 in the .*; leave img_size as the run has it$"
    ):
        vitrail.load(tmp_path, img_size=48)
    with pytest.raises(ValueError, match=r"^timm:test_vit has the names of its own library in its model.safetensors already$"):
        convert(tmp_path, "hf", tmp_path / "there")
    config = json.loads((tmp_path / "config.json").read_text())
    config["vitrail"]["baseline"]["name"] = "timm:test_resnet"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has no .*, so it is not of timm:test_resnet; restore it from a copy$"):
        vitrail.load(tmp_path)
    config["vitrail"]["baseline"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"can't be read \(TypeError: .*depth"):
        vitrail.load(tmp_path)


def test_the_model_card_says_what_it_is(tmp_path: Path) -> None:
    saved("timm:test_resnet", tmp_path)
    card = model_card(tmp_path)
    assert "A model of timm, trained with Vitrail." in card
    assert "vision-transformer" not in card


# --------------------------------------------------------------------------------------------------------------------
# Settings


def test_a_baseline_s_section() -> None:
    below = {"model": {"img_size": 28, "in_channels": 1, "num_classes": 10}}
    settings = layers.build([below, layers.read_recipe("cifar10"), {"model": "torchvision:resnet18"}])
    assert (settings.model.name, settings.model.img_size, settings.model.num_classes) == ("torchvision:resnet18", 28, 10)
    text = layers.to_yaml(settings)
    assert "embed_dim" not in text
    assert "patch_size:" not in text
    assert layers.from_yaml(text) == settings
    with pytest.raises(
        ValueError, match=r"^model.embed_dim is a part of a ViT, and torchvision:resnet18 is none: it takes img_"
    ):
        layers.build([{"model": {"name": "torchvision:resnet18", "embed_dim": 768}}])
    with pytest.raises(ValueError, match=r"^model.depth is a part of a ViT"):
        layers.build([{"model": "timm:test_resnet"}, {"model": {"depth": 3}}])
    assert layers.build([{"model": "timm:test_resnet"}, {"model": "Ti/4"}]).model.embed_dim == 192
    with pytest.raises(ValueError, match=r'^model "torchvison:x": the libraries are torchvision and timm, as in "torchvision:'):
        layers.build([{"model": "torchvison:x"}])


def test_settings_that_do_nothing_are_said() -> None:
    settings = layers.build([{"model": "torchvision:resnet18", "optim": {"name": "muon"}, "train": {"accumulate": 2}}])
    said = find_unused(settings, meta_model(settings.model))
    muon = "optim.name muon is for a Transformer's blocks, and AdamW updates all of torchvision:resnet18; it has no effect here"
    assert muon in said
    assert any(line.startswith("train.accumulate 2: the batch norms of torchvision:resnet18 see one") for line in said)


@pytest.mark.slow
def test_what_it_costs() -> None:
    cost = describe_model(BaselineConfig(name="torchvision:resnet50"))
    assert cost.parameters == 25_557_032  # as torchvision's documentation has it
    assert cost.flops == pytest.approx(2 * 4.09e9, rel=0.01)
    state = torchvision.models.resnet50().state_dict()
    assert cost.weights_bytes == sum(value.nbytes for value in state.values())
    assert describe_model(BaselineConfig(name="torchvision:regnet_y_400mf")).parameters == 4_344_144
    with pytest.raises(ValueError, match=r"^torchvision:vgg11 does not work on images of 16x16 px"):
        describe_model(BaselineConfig(name="torchvision:vgg11", img_size=16))


# --------------------------------------------------------------------------------------------------------------------
# Runs

FIELDS: dict[str, Any] = {
    "data": {"val_fraction": 0.2},
    "augment": {"crop": "pad", "mixup_alpha": 0.8, "erase_prob": 0.3},
    "optim": {"name": "adamw", "label_smoothing": 0.1},
    "train": {"steps": 4, "batch_size": 8, "device": "cpu", "precision": "fp32", "ema_decay": 0.9, "eval_every": 1.0},
}


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """Forty images of 32 pixels in two classes."""
    rng = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 100)):
        folder = tmp_path / "toys" / label
        folder.mkdir(parents=True)
        for number in range(20):
            Image.fromarray(rng.integers(low, low + 156, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "toys"


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


@pytest.mark.parametrize(
    "model",
    some_slow(
        [
            {"name": "timm:test_efficientnet", "drop_path_rate": 0.3, "drop_rate": 0.2},
            {"name": "torchvision:resnet18"},
            {"name": "torchvision:mobilenet_v3_small", "drop_rate": 0.2},
        ]
    ),
    ids=lambda model: model["name"],
)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(
    model: dict[str, Any], toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norms' statistics, dropout, stochastic depth, EMA: nothing of the state is left behind."""
    fields = {**FIELDS, "model": {**model, "img_size": 32}}
    straight = vitrail.train(toys, out=tmp_path / "straight", console=quiet(), **fields)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 2)
        with pytest.raises(KeyboardInterrupt, match=r"^step 2 is saved"):
            vitrail.train(toys, out=tmp_path / "broken", console=quiet(), **fields)
    torch.manual_seed(12345)
    resumed = vitrail.resume(tmp_path / "broken", console=quiet())
    assert resumed.steps == straight.steps == 4
    assert (resumed.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()
    state = load_file(resumed.folder / "model.safetensors")
    counted = [value for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert {int(value) for value in counted} == {4}, "evaluation adds nothing to the batch norms"


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def type_it(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return type_it


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:test_resnet"])
def test_a_run_from_the_command_line(name: str, toys: Path, tmp_path: Path, typed: Callable[..., tuple[int, str, str]]) -> None:
    """One command each: the same words train a CNN where they would train a ViT, and every command knows the run."""
    run = tmp_path / "run"
    short = ("--train.steps=3", "--train.batch_size=8", "--train.device=cpu", "--train.precision=fp32", "--train.ladder=false")
    code, out, err = typed("train", toys, "--model", name, "--model.img_size=32", "--out", run, *short)
    assert (code, err) == (0, "")
    assert f"{name}: " in out
    assert "embed_dim" not in (run / "config.yaml").read_text()
    assert json.loads((run / "config.json").read_text())["vitrail"]["baseline"]["name"] == name

    code, out, err = typed("evaluate", run, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["top1"] == json.loads((run / "evaluation.json").read_text())["top1"]
    code, out, err = typed("predict", run, toys / "dark" / "0.png", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)[0]["label"] in ("dark", "light")
    code, out, err = typed("show", run, "--groups")
    assert (code, err) == (0, "")
    assert out.startswith(f"{name}\n  images      32 x 32 px, 3 channels; 2 classes\n")
    assert "of activations for 1 image in fp32" in out
    assert "recomputed" not in out
    assert "net.conv1" in out

    code, out, err = typed("train", toys, "--weights", run, "--out", tmp_path / "again", *short)
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["vitrail"]["receipt"]["origin"] == name
    code, out, err = typed("train", toys, "--weights", run, "--model", "timm:test_vit", "--out", tmp_path / "x", *short)
    assert (code, out) == (2, "")
    assert err == f'vitrail: model.name "timm:test_vit" is not the model of the weights {run}, {name}; leave --model out\n'


def test_published_weights_are_a_start(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision.models.resnet18()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: theirs.state_dict())
    fields = {**FIELDS, "model": {"img_size": 32}, "train": {**FIELDS["train"], "steps": 1, "ladder": False}}
    run = vitrail.train(toys, weights="torchvision:resnet18", out=tmp_path / "run", console=quiet(), **fields)
    loaded = vitrail.load(run.folder)
    assert isinstance(loaded, Baseline)
    assert loaded.config == BaselineConfig(name="torchvision:resnet18", img_size=32, num_classes=2)
    assert loaded.preprocessing is not None
    assert loaded.preprocessing.mean == (0.485, 0.456, 0.406), "the weights' own"
    moved = (loaded.net.layer1[0].conv1.weight - theirs.layer1[0].conv1.weight).abs().max()  # type: ignore[union-attr, index]
    assert 0 < moved < 0.1, "it started from them"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"optim": {"layer_decay": 0.7}}, r"^optim.layer_decay 0.7 needs a model with blocks; use 1.0$"),
        ({"optim": {"freeze": 2}}, r"^optim.freeze 2 is too .* no blocks; use 0$"),
        ({"train": {"checkpointing": True}}, r"^train.checkpointing recomputes a ViT's blocks, and timm:test_resnet has none"),
        ({"train": {"patch_sizes": [8, 16]}}, r'^train.patch_sizes are for a ViT, and "timm:test_resnet" cuts no patches'),
        ({"model": {"patch_size": 16}}, r"^model.patch_size is a part of a ViT, and timm:test_resnet is none"),
    ],
)
def test_settings_of_a_vit_are_refused(toys: Path, tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    fields: dict[str, Any] = {
        "train": FIELDS["train"],
        "optim": {"name": "adamw"},
        "model": {"name": "timm:test_resnet", "img_size": 32},
    }
    merged = {name: {**fields.get(name, {}), **sections.get(name, {})} for name in fields}
    with pytest.raises(ValueError, match=said) as error:
        vitrail.train(toys, out=tmp_path / "run", console=quiet(), **merged)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compiled_whole(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no blocks in common; the backend is left out, which takes a minute."""
    compiled = []

    def traced(model: nn.Module) -> None:
        compiled.append(model)
        nn.Module.compile(model, backend="eager")

    monkeypatch.setattr(Baseline, "compile", traced, raising=False)
    fields = {**FIELDS, "model": {"name": "timm:test_resnet", "img_size": 32}}
    plain = vitrail.train(toys, out=tmp_path / "plain", console=quiet(), **fields)
    fields["train"] = {**FIELDS["train"], "compile": True}
    run = vitrail.train(toys, out=tmp_path / "run", console=quiet(), **fields)
    assert [type(model) for model in compiled] == [Baseline]
    state, wanted = (load_file(folder / "model.safetensors") for folder in (run.folder, plain.folder))
    assert state.keys() == wanted.keys()
    for name in state:
        torch.testing.assert_close(state[name], wanted[name], atol=1e-4, rtol=1e-4)
