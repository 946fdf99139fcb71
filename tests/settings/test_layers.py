"""Layers win in order, every key and type is checked in one line, and what a run wrote is read back exactly."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.settings import (
    OTHER_SPELLINGS,
    SIZES,
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RandAugment,
    Settings,
    TrainConfig,
    layers,
)
from vitrail.settings.families import family_of, parse_name
from vitrail.settings.layers import build, default_recipe, from_yaml, key_types, merge, read_config, read_recipe, to_yaml


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes of our own, in the place of the package's."""
    texts = {
        "from-scratch": "# Any folder.\nmodel: S/16\noptim: {lr: 1e-3, weight_decay: 0.1}\ntrain: {epochs: 100}",
        "cifar10": "extends: from-scratch\nmodel: {name: Ti/4, drop_path_rate: 0.1}\naugment: {crop: pad}\ntrain: {minutes: 5}",
        "fashion-mnist": "extends: cifar10\noptim: {lr: 2.0e-3}",
        "round": "extends: about",
        "about": "extends: round",
        "astray": "extends: nowhere",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(layers, "RECIPES", tmp_path)
    return tmp_path


# Recipes and files


def test_a_recipe_lies_above_those_it_extends(recipes: Path) -> None:
    layer = read_recipe("fashion-mnist")
    assert layer["optim"] == {"lr": 2e-3, "weight_decay": 0.1}
    assert layer["train"] == {"minutes": 5}
    assert layer["model"] == {**parse_name("Ti/4"), "name": "Ti/4", "drop_path_rate": 0.1}
    assert layer["augment"] == {"crop": "pad"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fasion-mnist", 'recipe "fasion-mnist" is none of .*from-scratch.*; did you mean "fashion-mnist"'),
        ("astray", 'recipe "nowhere" is none of'),
        ("round", "round -> about -> round"),
        ("mine.yaml", "use --config mine.yaml"),
        ("../from-scratch", 'recipe "../from-scratch" is none of'),
    ],
)
def test_a_recipe_that_cannot_be_read_says_why(recipes: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "recipe"),
    [("cifar10", "cifar10"), ("cifar100", "cifar10"), ("mnist", "fashion-mnist"), ("photos/cifar10", "from-scratch")],
)
def test_the_default_recipe_is_of_the_data(recipes: Path, data: str, recipe: str) -> None:
    assert default_recipe(data) == recipe


def test_every_recipe_of_the_package_builds() -> None:
    assert layers.recipes()
    for name in layers.recipes():
        build([{"model": {"in_channels": 3, "num_classes": 10, "img_size": 32}}, read_recipe(name)])


def test_a_config_file_may_extend_a_recipe(recipes: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("extends: from-scratch\noptim: {lr: 0.5}\naugment:\n")
    assert read_config(path) == {**read_recipe("from-scratch"), "optim": {"lr": 0.5, "weight_decay": 0.1}, "augment": {}}
    path.write_text("")
    assert read_config(path) == {}


@pytest.mark.parametrize(("text", "message"), [("optim: {lr: 1", "not YAML at line 1"), ("- 3", "must hold sections")])
def test_a_config_file_that_is_no_layer_says_so(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


# Layers


def test_later_layers_win_field_by_field() -> None:
    low = {"optim": {"lr": 1.0, "warmup": 0.1}, "augment": {"rand_augment": {"n": 1, "m": 5}}}
    high = {"optim": {"lr": 2.0}, "augment": {"rand_augment": {"m": 7}}}
    assert merge(low, high) == {"optim": {"lr": 2.0, "warmup": 0.1}, "augment": {"rand_augment": {"n": 1, "m": 7}}}
    assert low["augment"]["rand_augment"] == {"n": 1, "m": 5}


def test_a_name_starts_the_model_afresh_but_keeps_what_the_data_decides() -> None:
    facts = {"model": {"img_size": 28, "in_channels": 1, "num_classes": 10}}
    recipe = {"model": {"name": "Ti/4", "depth": 3, "stem": "conv", "drop_path_rate": 0.2}}
    merged = merge(facts, recipe, {"model": "B/16"}, {"model": {"depth": 6}})
    assert merged["model"] == {**facts["model"], **parse_name("B/16"), "name": "B/16", "depth": 6}
    assert merge(facts, {"model": {"name": "vit_base_patch16_224"}})["model"]["img_size"] == 224
    assert merge(recipe, {"model": {"depth": 6}})["model"]["stem"] == "conv"


def test_a_field_beside_a_name_wins_over_the_name() -> None:
    assert build([{"model": {"name": "B/16", "depth": 5}}]).model == ModelConfig(
        **{**parse_name("B/16"), "name": "B/16", "depth": 5}
    )


def test_without_a_name_the_shape_is_the_default_names() -> None:
    assert build([]).model.shape() == ModelConfig(**parse_name(ModelConfig.name)).shape()


@pytest.mark.parametrize("length", ["epochs", "steps", "minutes"])
@pytest.mark.parametrize("before", ["epochs", "steps", "minutes"])
def test_a_length_replaces_the_earlier_layers_lengths(before: str, length: str) -> None:
    whole = dataclasses.asdict(build([{"train": {before: 7}}]))
    assert build([whole, {"train": {length: 3}}]).train.length() == {"epochs": None, "steps": None, "minutes": None, length: 3}


def test_two_lengths_in_one_layer_are_refused() -> None:
    with pytest.raises(ValueError, match="only one of"):
        build([{"train": {"epochs": 1, "steps": 3}}])


@given(
    st.lists(st.sampled_from([{"model": "B/16"}, {"model": {"depth": 2}}, {"train": {"steps": 5}}, {"train": {"minutes": 1}}]))
)
def test_merging_step_by_step_is_merging_at_once(layers: list[dict[str, Any]]) -> None:
    one_by_one: dict[str, Any] = {}
    for layer in layers:
        one_by_one = merge(one_by_one, layer)
    assert {k: v for k, v in one_by_one.items() if v} == merge(*layers)


def test_values_are_taken_as_people_write_them() -> None:
    built = build(
        [
            yaml.safe_load(
                "{model: {img_size: 96x128, patch_size: [8, 4]}, optim: {lr: 1e-3, betas: [0.9, 1e-1]}, train: {epochs: 3}}"
            )
        ]
    )
    assert built.model.img_size == (96, 128)
    assert built.model.patch_size == (8, 4)
    assert built.optim.lr == 1e-3
    assert built.optim.betas == (0.9, 0.1)
    assert isinstance(built.train.epochs, float)
    assert build([{"augment": {"rand_augment": {"n": 3}}}]).augment.rand_augment == RandAugment(n=3)
    assert build([{"augment": {"rand_augment": RandAugment(m=4)}}]).augment.rand_augment == RandAugment(m=4)


# Keys and types


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"optim": {"lrr": 1}}, "optim.lrr is not a setting; did you mean optim.lr?"),
        ({"optim": {"zzz": 1}}, "optim.zzz is not a setting; vitrail train --help lists them all"),
        ({"model": {"num_layers": 1}}, "model.num_layers is not a setting; did you mean model.depth?"),
        ({"model": {"num-heads": 1}}, "did you mean model.num_heads?"),
        ({"model": {"nmu_layers": 1}}, "did you mean model.depth?"),
        ({"train": {"depth": 1}}, "did you mean model.depth?"),
        ({"augment": {"rand_augment": {"std": 1}}}, "std is not a setting; did you mean augment.rand_augment.mstd?"),
        ({"epochs": 1}, 'views, guard, train; did you mean train.epochs?'),
        ({"optm": {"lr": 1}}, 'did you mean "optim"?'),
        ({"optim": 3}, 'optim "3": a section holds fields, as in `optim: {name: …}`'),
        ({"model": {"name": "B16"}}, 'did you mean "B/16"?'),
        ({"model": "X/16"}, 'size "X" is none of'),
        ({"optim": {"name": "adam"}}, 'optim.name "adam": it takes one of adamw, muon, sgd; did you mean "adamw"?'),
        ({"optim": {"lr": "fast"}}, 'optim.lr "fast": it takes a number'),
        ({"optim": {"lr": None}}, 'optim.lr "null": it takes a number; leave the line out for the default'),
        ({"optim": {"lr": float("nan")}}, 'optim.lr "nan": it takes a finite number'),
        ({"optim": {"lr": -1}}, "optim.lr -1.0 must be above 0"),
        ({"optim": {"betas": [0.9]}}, "optim.betas \"[0.9]\": it takes two numbers, as in [0.5, 1.0]"),
        ({"train": {"steps": 2.5}}, 'train.steps "2.5": it takes a whole number, or null'),
        ({"train": {"compile": "maybe"}}, 'train.compile "maybe": it takes true or false'),
        ({"model": {"img_size": "96x"}}, 'model.img_size "96x": it takes a whole number, or height x width, as in 96x128'),
        ({"augment": {"rand_augment": True}}, "it takes fields, as in {n: 2, m: 9.0, mstd: 0.5}, or null"),
        ({"augment": {"rand_augment": {"n": "many"}}}, 'augment.rand_augment "many"'),
        ({"model": {"embed_dim": 100}}, "embed_dim 100 is not a multiple of num_heads 12; use 96"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_the_way_out(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        build([layer])
    assert "\n" not in str(caught.value)


def test_the_fields_of_every_library_lead_to_one_of_ours() -> None:
    for theirs, ours in OTHER_SPELLINGS.items():
        key = layers.nearest_key(f"model.{theirs}")
        assert key.rpartition(".")[2] == (theirs if theirs in {k.rpartition(".")[2] for k in key_types()} else ours)


def test_every_field_has_a_docstring_for_the_help() -> None:
    for cls in (*layers.SECTIONS.values(), RandAugment):
        documents = layers._documents(cls)
        assert all(documents[field.name] for field in dataclasses.fields(cls)), cls
        assert typing.get_type_hints(cls).keys() >= documents.keys()


# To YAML and back

unit = st.floats(0, 0.99)
positive = st.floats(1e-6, 1e6)
side = st.integers(1, 500) | st.tuples(st.integers(1, 500), st.integers(1, 500))
models = st.builds(
    lambda heads, per_head, **fields: ModelConfig(num_heads=heads, embed_dim=4 * heads * per_head, **fields),
    heads=st.integers(1, 8),
    per_head=st.integers(1, 16),
    name=st.sampled_from([f"{size}/{patch}" for size in SIZES for patch in (4, 16)] + ["S+/16", "vit_base_patch16_224"]),
    img_size=side,
    patch_size=side,
    mlp_ratio=positive,
    mlp=st.sampled_from(["gelu", "swiglu"]),
    pool=st.sampled_from(["cls", "avg", "map"]),
    init_values=st.none() | positive,
    qk_norm=st.booleans(),
    drop_path_rate=unit,
)
everything = st.builds(
    Settings,
    model=models,
    data=st.builds(DataConfig, path=st.text(st.characters(codec="utf-8"), max_size=8), val_fraction=unit),
    augment=st.builds(
        AugmentConfig,
        crop=st.sampled_from(["resized", "pad", "none"]),
        crop_scale=st.floats(1e-3, 1).map(lambda low: (low, 1.0)),
        rand_augment=st.none() | st.builds(RandAugment, n=st.integers(1, 5), m=st.floats(0, 10), mstd=st.floats(0, 2)),
        three_augment=st.booleans(),
    ),
    optim=st.builds(OptimConfig, lr=positive, betas=st.tuples(unit, unit), clip_norm=st.none() | positive),
    train=st.builds(TrainConfig, minutes=st.none() | positive, device=st.sampled_from(["auto", "cuda:1", "0", "null", "1e3"])),
)


@settings(max_examples=25)
@given(everything)
def test_settings_survive_yaml_exactly(whole: Settings) -> None:
    assert from_yaml(to_yaml(whole)) == whole


def test_the_file_says_every_setting() -> None:
    text = to_yaml(build([]))
    assert text.startswith("# Every setting of this run.")
    written = yaml.safe_load(text)
    leaves = {f"{section}.{name}" for section, fields in written.items() for name in fields}
    assert leaves == {key for key in key_types(family_of("B/16")) if key.count(".") == 1}


@pytest.mark.parametrize(
    "name", ["\x85", "a\u2028b", "\u2029", "\ufeffa", "a\nb", "\x1b[31m", " a ", "é\u0301", "\U0001f600", "\x7f\x80"]
)
def test_names_with_breaks_survive_yaml(name: str) -> None:
    cfg = Settings(data=DataConfig(path=name))
    assert from_yaml(to_yaml(cfg)) == cfg
