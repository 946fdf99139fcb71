"""Every family gives in each format the logits that it gives in torch: for any number of images, any size where it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import ANY_SIZE, MODELS, ONE_SIZE, make

from cases import some_slow
from vitrail.deploy.export.formats import FORMATS
from vitrail.deploy.export.raw import RawImages
from vitrail.deploy.export.trace import Traced, trace, trace_raw
from vitrail.deploy.forms import Forward
from vitrail.models.backbone import Backbone

TOLERANCE = 2e-5


def written(traced: Traced, to: str, folder: Path) -> Forward:
    """Write a format's file, and open it."""
    row = FORMATS[to]
    row.load().write(traced, folder / row.file, {"vitrail.card": "{}", "vitrail.sha256": ""})
    return row.load().open_forward(folder / row.file)


def assert_equal_logits(forward: Forward, model: Any, *images: torch.Tensor) -> None:
    with torch.inference_mode():
        for batch in images:
            torch.testing.assert_close(forward(batch), model(batch), atol=TOLERANCE, rtol=0)


def images(model: Backbone, count: int, *, more: tuple[int, int] = (0, 0)) -> torch.Tensor:
    assert model.preprocessing is not None
    height, width = model.preprocessing.img_size
    return torch.randn(count, model.config.in_channels, height + more[0], width + more[1])


def size_of(model: Backbone) -> tuple[int, int]:
    assert model.preprocessing is not None
    return model.preprocessing.img_size


@pytest.mark.parametrize("name", some_slow(MODELS))
def test_onnx(name: str, tmp_path: Path) -> None:
    model = make(name)
    forward = written(trace(model, size=size_of(model)), "onnx", tmp_path)
    assert_equal_logits(forward, model, images(model, 1), images(model, 3))


def test_openvino_says_what_it_lacks(tmp_path: Path) -> None:
    model = make("timm")  # which resizes its positions with antialiasing
    with pytest.raises(
        ValueError, match=r"OpenVINO can't compute aten._upsample_bicubic2d_aa of this model; export it to onnx"
    ):
        written(trace(model, size=size_of(model)), "openvino", tmp_path)


@pytest.mark.parametrize("name", some_slow([name for name in MODELS if name != "timm"]))
def test_openvino(name: str, tmp_path: Path) -> None:
    model = make(name)
    forward = written(trace(model, size=size_of(model)), "openvino", tmp_path)
    assert_equal_logits(forward, model, images(model, 1), images(model, 3))


@pytest.mark.parametrize("name", some_slow(MODELS))
def test_torch(name: str, tmp_path: Path) -> None:
    model = make(name)
    forward = written(trace(model, size=size_of(model)), "torch", tmp_path)
    assert_equal_logits(forward, model, images(model, 1), images(model, 3))


@pytest.mark.slow
def test_aoti(tmp_path: Path) -> None:
    model = make("vit")
    forward = written(trace(model, size=size_of(model)), "aoti", tmp_path)
    assert_equal_logits(forward, model, images(model, 1), images(model, 3))
    assert FORMATS["aoti"].load().read_metadata(tmp_path / "model.pt2")["vitrail.card"] == "{}"


ANY_SIZE_CASES = [("vit", "torch"), *((name, "onnx") for name in ANY_SIZE), ("vit", "openvino")]


@pytest.mark.parametrize("case", some_slow(ANY_SIZE_CASES), ids=[" to ".join(case) for case in ANY_SIZE_CASES])
def test_images_of_any_size(case: tuple[str, str], tmp_path: Path) -> None:
    name, to = case
    model = make(name)
    unit = model.side_unit[0]
    forward = written(trace(model, size=size_of(model), dynamic_size=True), to, tmp_path)
    sizes = [images(model, 1), images(model, 3, more=(unit, 0)), images(model, 2, more=(-unit, 3 * unit))]
    assert_equal_logits(forward, model, *sizes)


@pytest.mark.parametrize("name", ONE_SIZE)
def test_a_model_of_one_size_refuses_any_size(name: str) -> None:
    with pytest.raises(ValueError, match=r"is a graph for images of one size; leave --dynamic size out, or use a ViT"):
        trace(make(name), size=(32, 32), dynamic_size=True)


def test_positions_in_a_square_refuse_any_size() -> None:
    model = make("aimv2", pos_square=True, pos_embed="learn")
    with pytest.raises(ValueError, match=r"no graph for images of any size \(its positions are those of a square"):
        trace(model, size=(32, 32), dynamic_size=True)


@pytest.mark.parametrize("to", some_slow(["torch", "onnx", "openvino"]))
def test_decoded_images(to: str, tmp_path: Path) -> None:
    model = make("vit")
    assert model.preprocessing is not None
    forward = written(trace_raw(model), to, tmp_path)
    pictures = [torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8) for n, h, w in ((1, 61, 75), (2, 33, 32), (1, 9, 14))]
    in_torch = RawImages(model, model.preprocessing).eval()
    with torch.inference_mode():
        for picture in pictures:  # OpenVINO has no float64: some pixels are rounded to the next level
            torch.testing.assert_close(
                forward(picture), in_torch(picture), atol=5e-3 if to == "openvino" else TOLERANCE, rtol=0
            )
