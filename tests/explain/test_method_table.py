"""The table of methods is complete, agrees with the functions, and refuses what a method or a backbone does not have."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from vitrail import explain
from vitrail.explain import METHODS, table
from vitrail.explain.table import NEEDS, WITHOUT_EFFECT, Need, Option

COMMON = {"pad", "sizes", "patch_size", "img_size"}
OF_PYTHON = {"threshold", "steps", "baseline"}  # options that sheets and the command line leave at their defaults
EVERYTHING: frozenset[Need] = frozenset(NEEDS)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_agrees_with_its_function(name: str) -> None:
    row = METHODS[name]
    assert row.run is getattr(explain, name)
    assert name in explain.__all__
    parameters = inspect.signature(row.run).parameters
    options = {key for key, value in parameters.items() if value.kind is inspect.Parameter.KEYWORD_ONLY}
    assert options - COMMON - OF_PYTHON == row.options - {"single_heads"}
    assert options >= COMMON
    assert "single_heads" not in row.options or "heads" in row.options
    assert ("target" in row.options) == ("head" in row.needs)
    assert row.shows
    if row.run_sheet is not None:
        assert {"layers", "heads"} <= set(inspect.signature(row.run_sheet).parameters)


def test_the_words_of_options_and_needs_are_complete() -> None:
    assert set(WITHOUT_EFFECT) == set(get_args(Option))
    assert set(NEEDS) == set(get_args(Need))
    assert all(table.methods_with(option) for option in WITHOUT_EFFECT)


def test_no_other_file_of_the_package_knows_a_method_by_name() -> None:
    """Names stand in the table, in each method's own file, and in documentation.

    In rooms that `explain` is built on, which know nothing of it, "attention" is a field of a model.
    """
    source = Path(explain.__file__).parents[1]
    names = [f'"{name}"' for name in METHODS]
    for path in source.rglob("*.py"):
        if path.relative_to(source).parts[0] in ("settings", "models", "weights"):
            continue
        own = path.parent.name == "methods" or path.relative_to(source) in (
            Path("explain/table.py"),
            Path("explain/__init__.py"),
        )
        if not own:
            assert not any(name in path.read_text() for name in names), path


def test_the_overview_has_a_line_for_each_method() -> None:
    lines = table.overview().splitlines()
    assert [line.split()[0] for line in lines] == [name.replace("_", "-") for name in METHODS]
    assert [line.split(maxsplit=1)[1] for line in lines] == [row.shows for row in METHODS.values()]
    assert max(map(len, lines)) < 118


def test_the_table_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; from vitrail.explain import METHODS; assert METHODS"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_is_there() -> None:
    for name in explain.__all__:
        assert getattr(explain, name) is not None
    assert set(explain.__all__) <= set(dir(explain))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        explain.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("offers", "default", "usable"),
    [
        (EVERYTHING, "relevance", list(METHODS)),
        (EVERYTHING - {"head"}, "attention", ["attention", "rollout", "pca", "similarity"]),
        ({"grid", "head"}, "gradcam", ["gradcam", "integrated_gradients"]),
        ({"grid", "head", "tokens"}, "gradcam", ["gradcam", "integrated_gradients", "pca", "similarity"]),
        (EVERYTHING - {"attention"}, "gradcam", ["attention", "gradcam", "integrated_gradients", "pca", "similarity"]),
        ({"grid", "tokens"}, "pca", ["pca", "similarity"]),
    ],
)
def test_what_a_backbone_can_run(offers: set[Need], default: str, usable: list[str]) -> None:
    assert table.default_method(offers) == default
    assert table.usable(offers) == usable
    for name in METHODS:
        if name in usable:
            table.require_offered(name, offers, model="Swin")
        else:
            with pytest.raises(ValueError, match=r"needs|no head"):
                table.require_offered(name, offers, model="Swin")


@pytest.mark.parametrize(
    ("name", "offers", "line"),
    [
        (
            "attention",
            {"grid", "tokens", "head"},
            'method "attention" needs attention over the whole image, which Swin does not have; use gradcam or .*',
        ),
        ("rollout", {"tokens"}, 'method "rollout" needs global attention, which Swin does not have; use pca or similarity'),
        ("similarity", {"grid", "head"}, 'method "similarity" needs patch tokens, which Swin does not have; use gradcam or .*'),
        ("gradcam", {"head"}, 'method "gradcam" needs a grid of features, which Swin does not have; use a ViT'),
        (
            "relevance",
            EVERYTHING - {"head"},
            "this model has no head, so there is no class to explain; attention and rollout need none",
        ),
        ("gradcam", {"grid"}, "this model has no head, so there is no class to explain; give it one with reset_head"),
    ],
)
def test_a_need_that_is_not_met_is_one_line(name: str, offers: set[Need], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        table.require_offered(name, offers, model="Swin")


def test_a_model_with_nothing_to_explain() -> None:
    with pytest.raises(ValueError, match=r"^this model has neither tokens nor feature maps to explain; use a ViT"):
        table.default_method({"head"})


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("pca", {"heads": ("mean",)}, "pca has no heads to choose; leave them out, or use attention or rollout"),
        (
            "integrated_gradients",
            {"layer": (1,)},
            "integrated_gradients goes through all layers; leave the layers out, or use .*",
        ),
        ("rollout", {"single_heads": (0,)}, "rollout makes one matrix of all heads; use .*, or attention for single ones"),
    ],
)
def test_an_option_without_effect_is_one_line(name: str, given: dict[Option, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        table.require_options(name, given)
