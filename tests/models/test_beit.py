from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vitrail
from vitrail.explain import METHODS, head_statistics
from vitrail.models.attention import Attended
from vitrail.models.backbone import View
from vitrail.models.beit import Beit
from vitrail.models.relative_positions import pair_index, resize_table
from vitrail.settings.beit import BEIT_SIZES, parse_beit_name
from vitrail.weights.libraries.transformers.beit import BEIT_LAYOUTS
from vitrail.weights.targets import rename_family

SHAPE: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
KINDS = {  # by our relative_bias: arguments of timm
    "block": {"use_rel_pos_bias": True},
    "shared": {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
    "both": {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True},
    "none": {"use_rel_pos_bias": False},
}
SIZES = [(64, 64), (96, 160), (80, 32)]


def random(model: nn.Module) -> Any:
    """With weights that tell everything apart."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=1.0 if "table" in name or "gamma" in name else 0.2, generator=generator)
    return model.eval()


def beit(**fields: Any) -> Beit:
    model: Beit = random(Beit(**{"img_size": 64, **SHAPE, **fields}))
    return model


def images(height: int = 64, width: int = 64, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def of_timm(ours: Beit, **arguments: Any) -> Any:
    shape = {"img_size": 64, "use_abs_pos_emb": ours.pos_embed is not None, "init_values": 0.1, **SHAPE}
    theirs = timm.create_model("beit_base_patch16_224", **{**shape, **arguments}).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


def of_transformers(ours: Beit, **arguments: Any) -> Any:
    """transformers' model with our weights."""
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "num_labels": 5}
    data2vec = arguments.pop("data2vec", False)
    config = (transformers.Data2VecVisionConfig if data2vec else transformers.BeitConfig)(
        **shape,
        layer_norm_eps=1e-6,
        image_size=64,
        use_relative_position_bias=ours.config.relative_bias in ("block", "both"),
        use_shared_relative_position_bias=ours.config.relative_bias in ("shared", "both"),
        use_absolute_position_embeddings=ours.pos_embed is not None,
        use_mean_pooling=ours.config.fc_norm,
    )
    kind = transformers.Data2VecVisionForImageClassification if data2vec else transformers.BeitForImageClassification
    theirs = kind(config).eval()
    state = rename_family(ours, BEIT_LAYOUTS[4 if data2vec else 2])  # as its classes of today have them
    theirs.load_state_dict(state, strict=True)
    return theirs


# --------------------------------------------------------------------------------------------------------------------
# Equal to the other libraries


@pytest.mark.parametrize("name", BEIT_SIZES)
def test_sizes_have_the_published_parameters(name: str) -> None:
    published = {"beit_b16": 86_530_984, "beit_l16": 304_430_568}
    with torch.device("meta"):
        model = vitrail.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == published[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_same_outputs_as_timm(kind: str, size: tuple[int, int]) -> None:
    ours, x = beit(relative_bias=kind, pos_embed="learn" if kind != "block" else "none"), images(*size)
    theirs = of_timm(ours, **KINDS[kind])
    theirs.set_input_size(size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.features(x).tokens, theirs.forward_features(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"img_size": (96, 48)}, {"img_size": (96, 48)}),
        ({"qkv_bias": False, "init_values": None}, {"qkv_bias": False, "init_values": 0.0}),
        ({"pool": "cls", "fc_norm": False}, {"global_pool": "token"}),
        ({"pool": "avg", "fc_norm": False}, {"use_fc_norm": False}),
    ],
)
def test_other_shapes_are_timm_s_too(fields: dict[str, Any], arguments: dict[str, Any]) -> None:
    ours = beit(**fields)
    x = images(*fields.get("img_size", (64, 64)))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), of_timm(ours, **arguments)(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["block", "shared", "none"])
@pytest.mark.parametrize("data2vec", [False, True])
def test_same_outputs_as_transformers(kind: str, data2vec: bool) -> None:
    """At the trained size: elsewhere transformers resizes bilinearly."""
    mean = kind != "shared"
    ours = beit(relative_bias=kind, pos_embed="learn", fc_norm=mean, pool="avg" if mean else "cls")
    theirs, x = of_transformers(ours, data2vec=data2vec), images()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, atol=1e-5, rtol=1e-5)
        base = getattr(theirs, "data2vec_vision" if data2vec else "beit")
        torch.testing.assert_close(ours.features(x).tokens, base(x).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(96, 96), (32, 128)])
def test_transformers_at_other_sizes_without_tables(size: tuple[int, int]) -> None:
    ours, x = beit(relative_bias="none"), images(*size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), of_transformers(ours)(x).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["block", "shared"])
def test_gradients_are_timm_s(kind: str) -> None:
    ours, x = beit(relative_bias=kind, pos_embed="learn"), images()
    theirs = of_timm(ours, **KINDS[kind])
    for model in (ours, theirs):
        model(x).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------------------------------------
# Relative positions


@given(st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_a_pair_of_tokens_has_the_row_of_its_offset(height: int, width: int) -> None:
    index, seen = pair_index((height, width)), {}
    assert index.shape == (1 + height * width,) * 2
    for i in range(len(index)):
        for j in range(len(index)):
            (y, x), (v, u) = divmod(i - 1, width), divmod(j - 1, width)
            offset: Any = (y - v, x - u) if i and j else ("class" if not i else "", "class" if not j else "")
            assert seen.setdefault(offset, index[i, j].item()) == index[i, j].item()
    assert len(set(seen.values())) == len(seen)
    assert max(seen.values()) == (2 * height - 1) * (2 * width - 1) + 2


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_a_resized_table_keeps_constants_the_centre_and_the_class_token(gh: int, gw: int, height: int, width: int) -> None:
    table = torch.randn((2 * gh - 1) * (2 * gw - 1) + 3, 2)
    resized = resize_table(table, old=(gh, gw), new=(height, width))
    assert resized.shape == ((2 * height - 1) * (2 * width - 1) + 3, 2)
    assert torch.equal(resized[-3:], table[-3:])
    torch.testing.assert_close(resized[:-3][len(resized[:-3]) // 2], table[:-3][len(table[:-3]) // 2])
    torch.testing.assert_close(
        resize_table(torch.ones_like(table), old=(gh, gw), new=(height, width)), torch.ones_like(resized)
    )
    assert resize_table(table, old=(gh, gw), new=(gh, gw)) is table


# --------------------------------------------------------------------------------------------------------------------
# The contract of a backbone


@pytest.mark.parametrize("kind", ["block", "shared"])
def test_stages_hold_every_parameter_once(kind: str) -> None:
    model = Beit(img_size=32, relative_bias=kind, pos_embed="learn", **SHAPE)
    stages = model.stages()
    assert [stage.name for stage in stages] == ["stem", "blocks.0", "blocks.1", "head"]
    for name, parameter in model.named_parameters():
        assert sum(stage.owns(name) for stage in stages) == 1, name
        assert (name in model.no_decay) == name.endswith(("table", "cls_token", "pos_embed"))
        assert parameter.requires_grad
    owner = next(stage.name for stage in stages if stage.owns("rel_pos_bias.relative_position_bias_table"))
    assert owner == "stem"


@pytest.mark.parametrize("kind", ["block", "shared"])
def test_recomputing_the_blocks_changes_no_gradient(kind: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = beit(relative_bias=kind).train()
        model.checkpointing = recompute
        model(images(96, 48)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_a_fresh_head() -> None:
    model = beit()
    model.reset_head(7)
    assert model(images()).shape == (2, 7)
    assert model.config.num_classes == 7
    model.reset_head(0)
    torch.testing.assert_close(model(images()), model.embedding(images()))


def test_a_fresh_model_is_the_papers() -> None:
    torch.manual_seed(0)
    model = Beit(img_size=32, embed_dim=96, depth=4, num_heads=3, num_classes=100)
    assert float(model.blocks[3].mlp.fc2.weight.std()) == pytest.approx(0.02 / 8**0.5, rel=0.1)
    assert float(model.blocks[0].attn.qkv.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.head.weight.std()) == pytest.approx(0.02e-3, rel=0.1)
    assert torch.all(model.blocks[2].gamma_1 == 0.1)


def test_padded_images() -> None:
    model, x = beit(), images(60, 50)
    padded = nn.functional.pad(x, (0, 14, 0, 4))
    assert torch.equal(model(x, pad=True), model(padded))
    assert model.features(x, View(pad=True)).grid == (4, 4)
    with pytest.raises(ValueError, match=r"image side 60 is not a multiple of patch 16; use 64, or pad=True"):
        model(x)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_patches_and_masked_ones(kind: str) -> None:
    """Tokens of the visible patches alone, and of images on a canvas, have the bias of their places."""
    model, x = beit(relative_bias=kind, pos_embed="learn"), images(48, 80)
    every = torch.arange(15).expand(2, -1)
    whole = model.features(x)
    torch.testing.assert_close(model.features(x, View(visible=every)).tokens, whole.tokens)
    order = torch.stack([torch.randperm(15, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    turned = model.features(x, View(visible=order)).tokens
    torch.testing.assert_close(turned[:, 1:], whole.tokens[:, 1:].gather(1, order[..., None].expand(-1, -1, 24)))
    canvas = nn.functional.pad(x, (0, 16, 0, 0))
    seen = model.attention_maps(canvas, queries="all", sizes=torch.tensor([[48, 80], [48, 96]]))[-1].view(2, 3, 19, 19)
    absent = 1 + torch.tensor([5, 11, 17])
    assert not seen[0][..., absent].any()
    assert seen[1].gt(0).all()
    few = model.features(x, View(visible=every[:, :4])).tokens
    assert few.shape == (2, 5, 24)


def test_views_that_beit_does_not_have() -> None:
    model = beit()
    with pytest.raises(ValueError, match="images can't be packed; use a plain ViT"):
        model.packed_logits(images(), [(64, 64), (32, 32)])
    with pytest.raises(ValueError, match="images have 1 channels, and the model takes 3"):
        model(torch.zeros(1, 1, 64, 64))


# --------------------------------------------------------------------------------------------------------------------
# Attention, explained


@pytest.mark.parametrize("kind", KINDS)
def test_attention_maps_are_the_weights_of_the_pass(kind: str) -> None:
    model, x = beit(relative_bias=kind), images(48, 80)
    maps = model.attention_maps(x, layers=[0, -1], queries="all")
    assert list(maps) == [0, -1]
    tokens, places = model.embed(x, pad=False, sizes=None)
    for layer, block in zip((0, -1), model.blocks, strict=True):
        kept: list[Attended] = []
        tokens = block(tokens, places, kept)
        torch.testing.assert_close(maps[layer] @ kept[0].values, kept[0].out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.attention_maps(x, queries=[3, 0])[-1], maps[-1][:, :, [3, 0]])
    torch.testing.assert_close(model.attention_maps(x)[-1], maps[-1][:, :, :1])
    with pytest.raises(ValueError, match="layer 2 does not exist; this model has layers 0 to 1"):
        model.attention_maps(x, layers=[2])
    with pytest.raises(ValueError, match="query 99 does not exist; this image has tokens 0 to 15"):
        model.attention_maps(x, queries=[99])


@pytest.mark.parametrize("kind", ["block", "shared"])
def test_methods_of_attention_take_the_bias(kind: str) -> None:
    model, x = beit(relative_bias=kind), images(48, 80)
    weights = [each.double() for each in model.attention_maps(x, layers=[0, 1], queries="all").values()]
    rows = METHODS["attention"].run(model, x, query=(0, 0), layer=1)
    expected = weights[1].mean(1)[:, 1, 1:].unflatten(1, (3, 5))
    torch.testing.assert_close(rows.maps.double(), expected, atol=1e-5, rtol=1e-4)
    product = torch.eye(16, dtype=torch.float64)
    for weight in weights:
        product = (weight.mean(1) + torch.eye(16)) / 2 @ product
    rolled = METHODS["rollout"].run(model, x, query=(0, 0))
    torch.testing.assert_close(rolled.maps.double(), product[:, 1, 1:].unflatten(1, (3, 5)), atol=1e-5, rtol=1e-4)


def test_relevance_by_hand() -> None:
    """With attention as plain products, whose weights have gradients."""
    model, x = beit(), images(48, 80, count=1)
    tokens, places = model.embed(x, pad=False, sizes=None)
    weights = []
    for block in model.blocks:
        normed = block.norm1(tokens)
        q, k, v = block.attn.queries_keys_values(normed)
        weight = (q @ k.mT / 8**0.5 + block.attn.bias(places)).softmax(-1)
        weight.retain_grad()
        weights.append(weight)
        tokens = tokens + block.gamma_1 * block.attn.proj((weight @ v).transpose(1, 2).flatten(2))
        tokens = tokens + block.gamma_2 * block.mlp(block.norm2(tokens))
    model.read(tokens)[0, 2].backward()
    matrix = torch.eye(16)
    for weight in weights:
        assert weight.grad is not None
        matrix = matrix + (weight.grad * weight).clamp(min=0).mean(1)[0] @ matrix
    expected = (matrix - torch.eye(16))[1:].mean(0)[1:].unflatten(0, (3, 5))
    result = METHODS["relevance"].run(model, x, target=2)
    torch.testing.assert_close(result.maps[0], expected.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method: str) -> None:
    assert METHODS[method].run(beit(relative_bias="shared"), images(32, 48)).maps.isfinite().all()


def test_head_statistics() -> None:
    statistics = head_statistics(beit(pos_embed="learn"), images())
    assert statistics.distance.shape == (2, 3)
    assert statistics.positions is not None


# --------------------------------------------------------------------------------------------------------------------
# Names, shapes and costs


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("beit_b16", {"depth": 12, "init_values": 0.1, "patch_size": 16}),
        ("beit_l16", {"depth": 24, "init_values": 1e-5}),
        ("beit_base_patch16_384", {"img_size": 384, "embed_dim": 768}),
        ("beitv2_base_patch16_224", {"init_values": 1e-5, "img_size": 224}),
        ("beitv2_b16", {"init_values": 1e-5}),
    ],
)
def test_names(name: str, fields: dict[str, Any]) -> None:
    parsed = parse_beit_name(name)
    assert parsed is not None
    assert {key: parsed[key] for key in fields} == fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 5}, "embed_dim 24 is not a multiple of num_heads 5"),
        ({"reg_tokens": 4}, "reg_tokens 4 is no part of a BEiT; leave it at 0"),
        ({"img_size": 60}, "image side 60 is not a multiple of patch 16"),
        ({"mlp": "swiglu"}, "mlp swiglu is no part of a BEiT; leave it at gelu"),
    ],
)
def test_shapes_that_are_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Beit(**{**SHAPE, **fields})


def test_a_name_that_is_nearly_right() -> None:
    with pytest.raises(ValueError, match='model "beit_x16" is none of beit_b16, beit_l16'):
        vitrail.create_model("beit_x16")
