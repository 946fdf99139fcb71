"""Maps of a report: which method, within which time, and what is said of them."""

from __future__ import annotations

import time

import pytest
import torch
from PIL import Image

import vitrail
from vitrail.models.backbone import Backbone
from vitrail.report import explanations
from vitrail.report.explanations import Explained, Explanations, Faithfulness, explain_images
from vitrail.settings import Preprocessing


def tiny(name: str = "Ti/4", **fields: object) -> Backbone:
    settings = fields or {"depth": 1, "embed_dim": 24, "num_heads": 2}
    model = vitrail.create_model(name, **{"img_size": 16, "num_classes": 3, **settings}).eval()
    model.preprocessing = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    return model


def test_each_image_has_a_map_of_its_answer_and_scores() -> None:
    found = explain_images(tiny(), torch.randn(3, 3, 16, 16), [0, 2, 1])
    assert found.method == "relevance"
    assert [one.target for one in found.each if one is not None] == [0, 2, 1]
    for one in found.each:
        assert one is not None
        assert one.overlay.size == (16, 16)
        assert one.scores is not None
        assert 0 <= one.scores.insertion <= 1
        assert 0 <= one.scores.random_deletion <= 1
    assert found.note == ""


def test_a_model_without_global_attention_takes_another_method() -> None:
    swin = tiny("swin_t", patch_size=2, embed_dim=12, depths=(1, 1), num_heads=(1, 2), window_size=4)
    found = explain_images(swin, torch.randn(1, 3, 16, 16), [1])
    assert found.method == "gradcam"
    assert found.each[0] is not None


def test_a_model_without_a_head_says_so() -> None:
    found = explain_images(tiny(num_classes=0), torch.randn(2, 3, 16, 16), [0, 0])
    assert found.each == (None, None)
    assert "no head" in found.note
    assert found.verdict == ""


def test_the_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by a second at each look: the first map is made, and no scores."""
    now = iter(range(1000))
    monkeypatch.setattr(explanations.time, "perf_counter", lambda: float(next(now)))
    found = explain_images(tiny(), torch.randn(4, 3, 16, 16), [0] * 4, limit_s=2.0)
    assert found.each[0] is not None
    assert found.each[0].scores is None
    assert found.each[1:] == (None,) * 3
    assert "3 images have no map: 2 seconds were over" in found.note
    assert found.verdict == ""
    assert time.perf_counter is explanations.time.perf_counter


def explained(*gaps: tuple[float, float]) -> Explanations:
    """Explanations whose maps, and random orders, have these gaps."""
    picture = Image.new("L", (2, 2))
    scores = [Faithfulness(0.5 + gap, 0.5, 0.5 + chance, 0.5) for gap, chance in gaps]
    return Explanations("relevance", tuple(Explained(picture, 0, one) for one in scores))


def test_maps_are_called_faithful_only_beyond_chance() -> None:
    better, worse = (0.3, 0.1), (0.1, 0.3)
    verdict = explained(*[better] * 10, worse).verdict
    assert verdict.startswith(
        "The maps point at what the predictions depend on: the gap between insertion and deletion is 0.28"
    )
    assert "difference +0.16, 95 % interval +0.08 to +0.24, 11 images" in verdict
    for mixed in ([better] * 3 + [worse] * 3, [worse] * 12, [better, worse]):
        assert explained(*mixed).verdict.startswith("It is not shown that the maps say more than chance")
    assert explained(better).verdict == "", "one image has no interval"
