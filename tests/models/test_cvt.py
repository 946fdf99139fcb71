"""CvT beside transformers': the same outputs, gradients and batch statistics, at any image size."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import vitrail
from vitrail.models.backbone import View
from vitrail.models.cvt import Cvt, spread_keys
from vitrail.settings.cvt import CVT_SIZES, CvtConfig, parse_cvt_name

SMALL: dict[str, Any] = {
    "embed_dims": (8, 12, 16),
    "depths": (1, 2, 3),
    "num_heads": (1, 3, 2),
    "num_classes": 5,
    "mlp": "gelu",
    "img_size": 64,
}
NAMES = (
    (r"^stage(\d)\.cls_token", r"cvt.encoder.stages.\1.cls_token"),
    (r"^stage(\d)\.patch_embed\.proj", r"cvt.encoder.stages.\1.embedding.convolution_embeddings.projection"),
    (r"^stage(\d)\.patch_embed\.norm", r"cvt.encoder.stages.\1.embedding.convolution_embeddings.normalization"),
    (r"^stage(\d)\.blocks", r"cvt.encoder.stages.\1.layers"),
    (r"attn\.conv_proj_(.)\.conv", r"attention.attention.convolution_projection_<\1>.convolution_projection.convolution"),
    (r"attn\.conv_proj_(.)\.bn", r"attention.attention.convolution_projection_<\1>.convolution_projection.normalization"),
    (r"attn\.proj_(.)", r"attention.attention.projection_<\1>"),
    (r"attn\.proj\.", r"attention.output.dense."),
    (r"<q>", "query"),
    (r"<k>", "key"),
    (r"<v>", "value"),
    (r"\.norm1", ".layernorm_before"),
    (r"\.norm2", ".layernorm_after"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
    (r"^norm\.", "layernorm."),
    (r"^head\.", "classifier."),
)


def random(model: nn.Module) -> Any:
    """With weights and running statistics that tell everything apart."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.5)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model.eval()


def some_images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def their_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def both() -> tuple[Any, Any]:
    ours = random(Cvt(**SMALL))
    shape: Any = {"embed_dim": [8, 12, 16], "depth": [1, 2, 3], "num_heads": [1, 3, 2], "num_labels": 5}
    theirs: Any = transformers.CvtForImageClassification(transformers.CvtConfig(**shape, drop_path_rate=[0.0, 0.0, 0.0]))
    theirs.eval()
    theirs.load_state_dict({their_name(name): value for name, value in ours.state_dict().items()}, strict=True)
    return ours, theirs


@pytest.mark.parametrize("name", CVT_SIZES)
def test_sizes_have_the_published_parameters(name: str) -> None:
    published = {"cvt_13": 19_997_480, "cvt_21": 31_622_696, "cvt_w24": 277_196_392}
    with torch.device("meta"):
        model = Cvt(CvtConfig(**CVT_SIZES[name]._asdict()))
    assert sum(parameter.numel() for parameter in model.parameters()) == published[name]


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (48, 90), (33, 71)])
def test_same_outputs_as_transformers(size: tuple[int, int]) -> None:
    ours, theirs = both()
    images = some_images(*size)
    with torch.no_grad():
        expected = theirs.cvt(images, output_hidden_states=True)
        torch.testing.assert_close(ours(images), theirs(images).logits, atol=1e-5, rtol=1e-5)
    seen = ours.features(images)
    for level, other in zip(seen.pyramid, expected.hidden_states, strict=True):
        torch.testing.assert_close(level, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.pooled, theirs.layernorm(expected.cls_token_value)[:, 0], atol=1e-5, rtol=1e-5)
    assert (seen.prefix, seen.grid) == (1, tuple(seen.pyramid[-1].shape[2:]))
    assert seen.tokens.shape == (2, 1 + seen.grid[0] * seen.grid[1], 16)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_and_batch_statistics_are_transformers_s(training: bool) -> None:
    ours, theirs = both()
    images = some_images(64, 96)
    for model in (ours, theirs):
        model.train(training)
        out = model(images)
        (out if isinstance(out, Tensor) else out.logits).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[their_name(name)], atol=1e-4, rtol=1e-4)
    statistics = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, statistics[their_name(name)], atol=1e-5, rtol=1e-5)


def test_recomputing_the_blocks_changes_neither_gradients_nor_statistics() -> None:
    images, results = some_images(64, 64), []
    for recompute in (False, True):
        model = random(Cvt(**SMALL)).train()
        model.stage1.blocks[0].attn.conv_proj_k.bn.eval()  # as frozen ones are
        model.checkpointing = recompute
        model(images).square().sum().backward()
        results.append([*(parameter.grad for parameter in model.parameters()), *model.buffers()])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_class_attention_is_spread_over_the_positions_of_a_key() -> None:
    model, images = random(Cvt(**SMALL)), some_images(48, 80)
    weights = model.class_attention(images)
    assert len(weights) == model.class_attention_layers == 3
    grid = model.features(images).grid
    assert grid == (3, 5)
    for layer in weights:
        assert layer.shape == (2, 2, 1 + 3 * 5)
        torch.testing.assert_close(layer.sum(-1), torch.ones(2, 2))
        cells = layer[..., 1:].unflatten(-1, grid)
        torch.testing.assert_close(cells[..., 0, 0], cells[..., 1, 1])
        assert not torch.allclose(cells[..., 0, 0], cells[..., 0, 2])
    spread = spread_keys(torch.tensor([[[0.1, 0.4, 0.2, 0.2, 0.1]]]), (3, 3), stride=2)
    expected = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    torch.testing.assert_close(spread[0, 0], torch.tensor(expected))


def test_stochastic_depth_rises_over_the_last_stage() -> None:
    model, images = random(Cvt(**SMALL, drop_path_rate=0.8)), some_images(64, 64)
    assert [[block.drop_path.rate for block in part.blocks] for part in model.parts] == [[0], [0, 0], [0, 0.4, 0.8]]
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_the_paper_s_activation_is_not_that_of_transformers() -> None:
    model = random(Cvt(**SMALL))
    other = Cvt(**SMALL | {"mlp": "quick_gelu"}).eval()
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(model(some_images(64, 64)), other(some_images(64, 64)), atol=1e-3)


def test_names() -> None:
    assert parse_cvt_name("cvt_w24_384") == {**CVT_SIZES["cvt_w24"]._asdict(), "img_size": 384}
    assert parse_cvt_name("swin_t") is None
    assert isinstance(vitrail.create_model("cvt_13", **SMALL), Cvt)
    with pytest.raises(ValueError, match=r'^model "cvt_14" is none of cvt_13, cvt_21, cvt_w24; "cvt_13_384" is a name too$'):
        parse_cvt_name("cvt_14")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"depths": (2, 2)}, "embed_dims .*, depths .* and num_heads .* must have one number for each stage"),
        ({"num_heads": (1, 3, 5)}, "num_heads 5 does not divide the width 16 of stage 2"),
        ({"depths": (1, 0, 2)}, "must be at least 1 in every stage"),
        ({"kv_stride": 0}, "kv_stride 0 must be at least 1"),
        ({"num_classes": -1}, "num_classes -1 must not be negative"),
        ({"depth": 3}, '"depth" is not a field of CvtConfig; did you mean "depths"'),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Cvt(**{**SMALL, **fields})


def test_views_that_cvt_does_not_have() -> None:
    model = Cvt(**SMALL)
    for view in (View(visible=torch.zeros(1, 1, dtype=torch.long)), View(patch_size=2), View(sizes=torch.ones(1, 2).long())):
        with pytest.raises(ValueError, match="use a ViT"):
            model.features(some_images(64, 64), view)
    with pytest.raises(ValueError, match=r"^CvT has a map after each of its 3 stages: use them, and leave View.blocks out$"):
        model.features(some_images(64, 64), View(blocks=(0,)))
    with pytest.raises(ValueError, match="images have 1 channels, and the model takes 3"):
        model(torch.zeros(1, 1, 64, 64))
