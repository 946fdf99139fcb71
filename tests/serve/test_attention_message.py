"""The attention message: quantised rows that are the model's own, in parts that fit, for every kind of attention."""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitrail.explain import attention
from vitrail.models import Beit, Cait, Swin, ViT, create_model
from vitrail.models.backbone import Backbone, on_meta
from vitrail.serve import attention as module
from vitrail.serve.attention import LEVELS, MAX_BYTES, attention_message, attention_size, quantise
from vitrail.settings import Preprocessing

SHAPE: dict[str, Any] = {"img_size": (16, 24), "patch_size": 8, "num_classes": 3, "embed_dim": 16, "depth": 3, "num_heads": 2}
PIXELS = Preprocessing(img_size=(16, 24), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def spread(model: Backbone) -> Any:
    """Weights that are large enough for attention to differ from one token to the next."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.preprocessing = PIXELS
    return model.eval()


MODELS = {
    "class token": lambda: ViT(**SHAPE),
    "registers": lambda: ViT(**SHAPE, reg_tokens=2),
    "mean of patches": lambda: ViT(**SHAPE, pool="avg", class_token=False),
    "pooling": lambda: ViT(**SHAPE, pool="map", class_token=False),
    "relative bias": lambda: Beit(**SHAPE),
}


class Read(NamedTuple):
    header: dict[str, Any]
    reading: np.ndarray
    weights: np.ndarray
    scales: np.ndarray
    pixels: bytes


def read(message: bytes) -> Read:
    """Read a message by the docstring of the module, and by nothing else."""
    assert message[:4] == b"VATT"
    (length,) = struct.unpack_from("<I", message, 4)
    assert length % 4 == 0
    header = json.loads(message[8 : 8 + length])
    at, rows = 8 + length, len(header["layers"]) * header["heads"] * header["queries"]
    reading = np.frombuffer(message, "<f4", header["queries"], at)
    at += reading.nbytes
    shape = (len(header["layers"]), header["heads"], header["queries"])
    scales = np.frombuffer(message, "<f4", rows, at).reshape(shape)
    at += scales.nbytes
    weights = np.frombuffer(message, np.uint8, rows * header["tokens"], at).reshape(*shape, header["tokens"])
    return Read(header, reading, weights / LEVELS * scales[..., None], scales, message[at + weights.nbytes :])


def image() -> Tensor:
    return torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", MODELS)
def test_every_row_is_the_models_own_but_for_half_a_level(kind: str) -> None:
    model = spread(MODELS[kind]())
    got = read(attention_message(model, image()).encode())
    assert got.header["layers"] == [0, 1, 2]
    assert got.header["grid"] == [2, 3]
    for layer, rows in model.attention_maps(image(), layers=[0, 1, 2], queries="all").items():
        error = np.abs(got.weights[layer] - rows[0].detach().numpy())
        assert (error <= got.scales[layer][..., None] * 0.501 / LEVELS).all()


@pytest.mark.parametrize("kind", MODELS)
def test_the_first_view_is_that_of_explain(kind: str) -> None:
    """What the page mixes of the rows is what `vitrail explain --query cls` shows."""
    model = spread(MODELS[kind]())
    got = read(attention_message(model, image()).encode())
    assert got.reading.sum() == pytest.approx(1, abs=1e-5)
    mixed = got.reading @ got.weights[1, 0]
    shown = attention(model, image(), layer=1, heads=0).numpy()[0].flatten()
    np.testing.assert_allclose(mixed[got.header["prefix"] :], shown, atol=2 / LEVELS * got.scales[1, 0].max())


def test_layers_come_in_parts_that_are_those_of_the_whole() -> None:
    model = spread(ViT(**SHAPE))
    whole, part = (read(attention_message(model, image(), layers=layers).encode()) for layers in (None, [-1, 0]))
    assert part.header["layers"] == [2, 0]
    np.testing.assert_array_equal(part.weights, whole.weights[[2, 0]])
    assert part.header["depth"] == 3


def test_pixels_are_those_that_the_model_sees() -> None:
    model = spread(ViT(**SHAPE))
    pixels = torch.randint(0, 256, (1, 3, 16, 24), generator=torch.Generator().manual_seed(0)).float()
    got = read(attention_message(model, (pixels / 255 - 0.5) / 0.25).encode())
    assert got.header["size"] == [16, 24]
    assert got.pixels == pixels[0].permute(1, 2, 0).byte().numpy().tobytes()
    model.preprocessing = None
    got = read(attention_message(model, image()).encode())
    assert got.header["size"] is None
    assert got.pixels == b""


def test_a_class_token_alone_has_one_row_a_layer() -> None:
    model = spread(Cait(img_size=16, patch_size=8, num_classes=3, embed_dim=16, depth=2, num_heads=2, class_depth=2))
    model.preprocessing = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    size = attention_size(model)
    assert size is not None
    assert (size.layers, size.heads, size.grid, size.queries) == (2, 2, (2, 2), "first")
    got = read(attention_message(model, torch.randn(1, 3, 16, 16)).encode())
    assert got.weights.shape == (2, 2, 1, 5)
    np.testing.assert_allclose(got.weights.sum(axis=-1), 1, atol=0.05)
    with pytest.raises(ValueError, match=r"only the class token has rows; ask for queries \"first\""):
        attention_message(model, torch.randn(1, 3, 16, 16), queries="all")


def test_a_model_without_attention_over_the_whole_image_has_none() -> None:
    model = Swin(img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), num_classes=3)
    assert attention_size(model) is None
    with pytest.raises(ValueError, match="needs attention over the whole image"):
        attention_message(model, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("Ti/16", 224, (12, 3, "all", 12)),
        ("L/16", 224, (24, 16, "all", 24)),  # 14.9 MB: the largest usual model in one message
        ("B/16", 384, (12, 12, "all", 4)),
        ("L/16", 384, (24, 16, "all", 3)),
        ("B/16", 1024, (12, 12, "first", 12)),  # 201 MB a layer
    ],
)
def test_large_models_come_in_parts_or_with_one_row(name: str, side: int, expected: tuple[object, ...]) -> None:
    size = attention_size(on_meta(lambda: create_model(name, img_size=side, num_classes=2)))
    assert size is not None
    assert (size.layers, size.heads, size.queries, size.layers_per_message) == expected
    assert bool(size.note) == (size.queries == "first")


def test_more_than_a_message_holds_is_refused_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = spread(ViT(**SHAPE))
    monkeypatch.setattr(module, "MAX_BYTES", 2 * 2 * 7 * 7)  # two layers
    with pytest.raises(ValueError, match=r"3 layers are .* above .* ask for 2"):
        attention_message(model, image())
    monkeypatch.setattr(module, "MAX_BYTES", 2 * 7 * 3)  # the rows of three tokens
    got = read(attention_message(model, image()).encode())
    assert got.header["queries"] == 1
    assert "use smaller images" in got.header["note"]
    shown = attention(model, image(), layer=2, heads=1).numpy()[0].flatten()
    np.testing.assert_allclose(got.weights[2, 1, 0, 1:], shown, atol=1 / LEVELS)
    with pytest.raises(ValueError, match='Ask for queries "first"'):
        attention_message(model, image(), layers=[0], queries="all")


@pytest.mark.parametrize(("layers", "words"), [([3], "layer 3 does not exist"), ([], "there are no layers to show")])
def test_layers_that_do_not_exist(layers: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attention_message(spread(ViT(**SHAPE)), image(), layers=layers)


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = spread(ViT(**SHAPE))
    model.blocks[0].attn.qkv.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        attention_message(model, image())


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.floats(0.1, 30), st.integers(0, 2**31))
def test_quantising_keeps_order_and_is_off_by_half_a_level(
    heads: int, queries: int, tokens: int, sharp: float, seed: int
) -> None:
    drawn = torch.randn(heads, queries, tokens, generator=torch.Generator().manual_seed(seed))
    rows = (sharp * drawn).softmax(dim=-1)
    scales, weights = quantise(rows)
    back = weights / LEVELS * scales[..., None]
    assert (np.abs(back - rows.numpy()) <= scales[..., None] * 0.501 / LEVELS).all()
    assert (weights.max(axis=-1) == LEVELS).all()
    order = rows.numpy().argsort(axis=-1)
    assert (np.diff(np.take_along_axis(weights, order, axis=-1).astype(int), axis=-1) >= 0).all()


def test_one_message_is_enough_for_the_usual_sizes() -> None:
    assert MAX_BYTES >= 24 * 16 * 197**2
