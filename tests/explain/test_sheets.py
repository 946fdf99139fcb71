"""One image to one sheet: which maps, with which numbers beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.explain import METHODS, attention_sheet, faithfulness, random_maps, rank_correlation, relevance, shuffled
from vitrail.explain.sheets import DRAWS, ExplainConfig, explain, side_by_side, unique_names
from vitrail.models import ViT
from vitrail.settings import Preprocessing

IMAGES = Preprocessing(img_size=(16, 24), in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


@pytest.fixture
def model() -> ViT:
    torch.manual_seed(0)
    vit = ViT(img_size=(16, 24), patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    vit.preprocessing, vit.classes = IMAGES, ("ant", "bee", "cat")
    return vit


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_every_method_makes_a_sheet(model: ViT, photo: Path, tmp_path: Path) -> None:
    for name in METHODS:
        made = explain(model, [photo], ExplainConfig(method=name, steps=2, query=(9, 3) if name == "similarity" else "cls"))
        assert [row["method"] for row in made.rows] == [name]
        assert (made.rows[0]["insertion"] is None) == (not METHODS[name].evidence)
        array = np.load(made.save_arrays(tmp_path / "maps.npy"))
        assert array.shape == (1, 1, 2, 3)


def test_the_numbers_are_those_of_the_map(model: ViT, photo: Path) -> None:
    made = explain(model, photo, ExplainConfig(steps=3, target="bee"))
    maps = relevance(model, photo, target=1)
    scores = faithfulness(model, photo, maps, target=1, steps=3)
    chance = [faithfulness(model, photo, random_maps(maps, seed=seed), target=1, steps=3) for seed in range(DRAWS)]
    [row] = made.rows
    assert row["class"] == "bee"
    assert row["insertion"] == pytest.approx(scores.insertion.item(), abs=1e-6)
    assert row["deletion"] == pytest.approx(scores.deletion.item(), abs=1e-6)
    blind = relevance(shuffled(model), photo, target=1)
    without = faithfulness(model, photo, blind, target=1, steps=3)
    assert row["shuffled_insertion"] == pytest.approx(without.insertion.item(), abs=1e-6)
    assert row["shuffled_deletion"] == pytest.approx(without.deletion.item(), abs=1e-6)
    assert row["rank_correlation"] == pytest.approx(rank_correlation(maps, blind).item(), abs=1e-6)
    assert row["random_insertion"] == pytest.approx(torch.stack([one.insertion for one in chance]).mean().item(), abs=1e-6)
    assert torch.equal(made.maps[0].maps, maps.maps)


def test_layers_and_heads_come_in_their_order(model: ViT, photo: Path) -> None:
    made = explain(model, [photo, photo], ExplainConfig(method="attention", layers="all", heads=(1, "max"), steps=1))
    expected = attention_sheet(model, [photo, photo], layers="all", heads=(1, "max"))
    assert [maps.labels[0] for maps in made.maps] == [maps.labels[0] for maps in expected]
    assert [row["label"] for row in made.rows] == [maps.labels[0] for maps in expected] * 2
    assert all(row["insertion"] is not None for row in made.rows)
    scores = faithfulness(model, [photo, photo], expected[3], steps=1)
    assert made.rows[7]["insertion"] == pytest.approx(scores.insertion[1].item(), abs=1e-6)


def test_too_many_maps_have_no_scores_and_the_sheet_says_so(model: ViT, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.explain.sheets.SCORED", 3)
    made = explain(model, photo, ExplainConfig(method="attention", layers="all", heads="all"))
    assert all(row["insertion"] is None for row in made.rows)
    words = " ".join(text.get_text() for text in made.figure.axes[0].texts)
    assert "no scores: 4 maps, and at most 3 are scored" in words


def test_without_a_head_attention_is_shown(model: ViT, photo: Path) -> None:
    model.reset_head(0)
    made = explain(model, photo, ExplainConfig())
    assert made.rows[0]["method"] == "attention"
    assert made.rows[0]["class"] is None


def test_side_by_side_has_every_method_and_a_verdict(model: ViT, photo: Path) -> None:
    made, comparison = side_by_side(model, [photo, photo], ExplainConfig(steps=2), methods=["relevance", "rollout"])
    assert [row["method"] for row in made.rows] == ["relevance", "rollout"] * 2
    assert made.verdict == comparison.verdict
    scores = comparison.methods["rollout"].scores
    assert made.rows[3]["deletion"] == pytest.approx(scores.deletion[1].item(), abs=1e-6)
    assert made.rows[0]["random_deletion"] == pytest.approx(
        torch.stack([one.deletion[0] for one in comparison.random]).mean().item(), abs=1e-6
    )


def test_side_by_side_says_what_each_method_says(photo: Path) -> None:
    vit = ViT(img_size=(16, 24), patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3, class_token=False, pool="avg")
    vit.preprocessing = IMAGES
    made, _ = side_by_side(vit, photo, ExplainConfig(steps=1, hold_norms=True), methods=["attention", "rollout", "gradcam"])
    words = " ".join(" ".join(text.get_text() for text in made.figure.axes[0].texts).split())
    assert "Attention, rollout: no class token is read" in words
    assert "Gradcam: the scales of the tokens' norms are held (Ali et al. 2022)." in words
    assert [row["note"] for row in made.rows][2] == "the scales of the tokens' norms are held (Ali et al. 2022)"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "relevanc"}, r'^method "relevanc" is none of attention, .*; did you mean "relevance"\?$'),
        (
            {"method": "relevance", "layers": (1,)},
            r"^relevance goes through all layers; leave the layers out, or use attention, ",
        ),
        (
            {"method": "gradcam", "heads": (1,)},
            r"^gradcam has no heads to choose; leave them out, or use attention or rollout$",
        ),
        ({"method": "attention", "discard_ratio": 0.5}, r"^discard_ratio is for rollout, not for attention; leave it out$"),
        ({"method": "rollout", "hold_norms": True}, r"^hold_norms is for gradcam or relevance, not for rollout; leave it out$"),
        ({"method": "pca", "query": (1, 2)}, r"^pca does not ask for a patch; leave 1,2 out, or use attention, "),
        ({"method": "attention", "target": "bee"}, r'^attention knows no class, so "bee" changes nothing; use gradcam, '),
    ],
)
def test_what_a_method_has_not(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ExplainConfig(**fields)


def test_single_heads_have_no_rollout(model: ViT, photo: Path) -> None:
    with pytest.raises(ValueError, match=r'^rollout makes one matrix of all heads; use "mean", "max" or "min", or attention'):
        explain(model, photo, ExplainConfig(method="rollout", heads=(0,)))


def test_sheets_have_names_of_their_own() -> None:
    assert list(unique_names(["a/x.png", "b/x.jpg", "x-2.png", "c/x.png"])) == ["x", "x-2", "x-2-2", "x-3"]
