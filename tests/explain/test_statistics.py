from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vitrail.data.batch import Batch
from vitrail.explain import passes, statistics
from vitrail.explain.statistics import (
    ModelStatistics,
    TokenNorms,
    TokenSample,
    even_distance,
    filter_components,
    head_statistics,
    linear_cka,
    position_similarity,
    token_norms,
)
from vitrail.models import ViT
from vitrail.models.positions import token_mask
from vitrail.settings import Preprocessing

HEIGHT, WIDTH, PATCH = 16, 12, 4  # a grid of 4 x 3
DEPTH, HEADS = 2, 2


def model(**others: Any) -> ViT:
    torch.manual_seed(0)
    base = {"img_size": (HEIGHT, WIDTH), "patch_size": PATCH, "embed_dim": 8, "depth": DEPTH, "num_heads": HEADS}
    made = ViT(**base | {"num_classes": 3} | others).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return made


def images(count: int = 3, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same(one: ModelStatistics, other: ModelStatistics) -> None:
    for field in fields(ModelStatistics):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, TokenNorms):
            for name in ("median", "p99", "max", "outliers"):
                torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=1e-5)
        elif isinstance(a, Tensor | float):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        else:
            assert a == b, field.name


# ---- heads


@torch.no_grad()
def reading(vit: ViT, x: Tensor, there: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """What the head reads of each token, (B, N), from its definition."""
    prefix, rows = vit.prefix_tokens, np.zeros((len(x), vit.prefix_tokens + there.shape[1]))
    if vit.config.class_token:
        rows[:, 0] = 1
    elif vit.attn_pool is not None:
        pool, tokens = vit.attn_pool, vit.forward_features(x, **how).numpy()[:, prefix:]
        dim = tokens.shape[2]
        query = pool.q(pool.latent)[0, 0].numpy().reshape(HEADS, -1)
        keys = (tokens @ pool.kv.weight.numpy()[:dim].T + pool.kv.bias.numpy()[:dim]).reshape(*tokens.shape[:2], HEADS, -1)
        scores = np.exp(np.einsum("hd,blhd->bhl", query, keys) / math.sqrt(dim / HEADS)) * there[:, None]
        rows[:, prefix:] = (scores / scores.sum(-1, keepdims=True)).mean(1)
    else:
        rows[:, prefix:] = there / there.sum(1, keepdims=True)
    return rows


@torch.no_grad()
def by_hand(vit: ViT, x: Tensor, **how: Any) -> dict[str, np.ndarray]:
    """Token by token, from the full attention maps."""
    depth, heads, prefix = vit.config.depth, vit.config.num_heads, vit.prefix_tokens
    maps = vit.attention_maps(x, layers=range(depth), queries="all", **how)
    patch = how.get("patch_size", PATCH)
    grid = (x.shape[2] // patch, x.shape[3] // patch)
    places = [((row + 0.5) * patch, (column + 0.5) * patch) for row in range(grid[0]) for column in range(grid[1])]
    there = np.ones((len(x), len(places)), dtype=bool)
    if "sizes" in how:
        there = token_mask(how["sizes"], grid=grid, patch=(patch, patch), prefix=prefix)[:, prefix:].numpy()
    reads = reading(vit, x, there, how)
    found = {name: np.zeros((depth, heads)) for name in ("distance", "entropy", "cls_to_patch", "patch_to_prefix")}
    found["head_similarity"] = np.zeros((depth, heads, heads))
    for layer in range(depth):
        every = maps[layer].double().numpy()
        for b in range(len(x)):
            part = 1 / (len(x) * there[b].sum())
            for h in range(heads):
                for query, row in enumerate(every[b, h]):
                    found["cls_to_patch"][layer, h] += reads[b, query] * row[prefix:].sum() / len(x)
                    if query < prefix or not there[b, query - prefix]:
                        continue
                    far = [math.dist(places[query - prefix], place) for place in places]
                    found["distance"][layer, h] += part * float(row[prefix:] @ far) / row[prefix:].sum()
                    found["entropy"][layer, h] -= part * sum(share * math.log2(share) for share in row if share > 0)
                    found["patch_to_prefix"][layer, h] += part * row[:prefix].sum()
                    for g in range(heads):
                        found["head_similarity"][layer, h, g] += part * np.sqrt(row * every[b, g, query]).sum()
    return found


@pytest.mark.parametrize(
    ("others", "how"),
    [
        ({}, {}),
        ({"reg_tokens": 2, "num_heads": 4}, {}),
        ({"class_token": False, "pool": "avg"}, {}),
        ({"class_token": False, "pool": "map", "reg_tokens": 1}, {}),
        ({"class_token": False, "pool": "map"}, {"sizes": torch.tensor([[16, 12], [5, 12], [16, 4]])}),
        ({"reg_tokens": 1}, {"sizes": torch.tensor([[16, 12], [5, 12], [16, 4]])}),
        ({"stem": "conv"}, {}),
        ({}, {"patch_size": 2}),
    ],
    ids=["plain", "registers", "no class token", "map pool", "map pool, padded", "padded", "conv stem", "other patch"],
)
def test_numbers_of_heads_are_those_of_the_whole_maps(others: dict[str, Any], how: dict[str, Any]) -> None:
    vit = model(**others)
    found = head_statistics(vit, images(), batch_size=2, **how)
    for name, expected in by_hand(vit, images(), **how).items():
        np.testing.assert_allclose(getattr(found, name).numpy(), expected, atol=2e-5, err_msg=name)
    assert found.images == 3
    assert found.distance.std() > 1e-3, "heads that are all alike show nothing"


def test_an_image_that_is_padded_is_as_it_is_without() -> None:
    vit, small = model(), images(2, 8, 12)
    canvas = torch.full((2, 3, 16, 12), 7.0)
    canvas[:, :, :8] = small
    alone, padded = head_statistics(vit, small), head_statistics(vit, canvas, sizes=torch.tensor([[8, 12], [8, 12]]))
    for name in ("even_distance", "even_entropy"):
        assert getattr(alone, name) == pytest.approx(getattr(padded, name))
    resized = model()  # positions of the smaller grid, at their places on the larger one
    with torch.no_grad():
        positions = vit.positions((2, 3))
        resized.get_parameter("pos_embed")[:, :7] = positions
    padded = head_statistics(resized, canvas, sizes=torch.tensor([[8, 12], [8, 12]]))
    for name in ("distance", "entropy", "cls_to_patch", "head_similarity", "cka"):
        torch.testing.assert_close(getattr(alone, name), getattr(padded, name), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone.token_norms.max, padded.token_norms.max)


def test_pad_is_the_models_own() -> None:
    vit, odd = model(), images(2, 15, 10)
    found, whole = head_statistics(vit, odd, pad=True), head_statistics(vit, torch.nn.functional.pad(odd, (0, 2, 0, 1)))
    assert_same(found, whole)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_even_attention(prefix: int) -> None:
    vit = model(reg_tokens=max(0, prefix - 1), class_token=prefix > 0, pool="cls" if prefix else "avg")
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv.weight[:16] = 0  # queries and keys
            block.attn.qkv.bias[:16] = 0
    found = head_statistics(vit, images())
    places = [(4 * row, 4 * column) for row in range(4) for column in range(3)]
    even = np.mean([math.dist(one, other) for one in places for other in places])
    tokens, every = 12 + prefix, torch.ones(DEPTH, HEADS)
    torch.testing.assert_close(found.entropy, every * math.log2(tokens))
    torch.testing.assert_close(found.distance, every * float(even))
    torch.testing.assert_close(found.cls_to_patch, every * 12 / tokens)
    torch.testing.assert_close(found.patch_to_prefix, every * prefix / tokens)
    torch.testing.assert_close(found.redundancy, torch.ones(DEPTH))
    assert found.even_distance == pytest.approx(even)
    assert found.even_entropy == pytest.approx(math.log2(tokens))


@pytest.mark.parametrize(("count", "side"), [(1, 4), (2, 16), (9, 3)])
def test_even_distance_on_a_line(count: int, side: int) -> None:
    expected = side * (count**2 - 1) / (3 * count)
    assert even_distance((1, count), (7, side)) == pytest.approx(expected)
    assert even_distance((count, 1), (side, 7)) == pytest.approx(expected)


def test_heads_with_the_same_weights_are_redundant() -> None:
    vit = model(num_heads=2)
    before = head_statistics(vit, images()).redundancy
    with torch.no_grad():
        weight, bias = vit.blocks[1].attn.qkv.weight, vit.blocks[1].attn.qkv.bias
        for start in (0, 8):  # queries, keys
            weight[start + 4 : start + 8], bias[start + 4 : start + 8] = weight[start : start + 4], bias[start : start + 4]
    found = head_statistics(vit, images()).redundancy
    assert found[1].item() == pytest.approx(1, abs=1e-5)
    assert found[0] == before[0]
    assert before.max() < 0.999


def test_a_single_head_has_no_other() -> None:
    found = head_statistics(model(num_heads=1), images(1))
    assert found.redundancy.isnan().all()
    assert "one head a layer: there is no other for it to be like" in found.notes
    assert [row["redundancy"] for row in found.table()] == [None, None]
    assert "redundancy" not in [finding.name for finding in found.early_and_late().findings]


# ---- however the images come


def streams(x: Tensor) -> Iterator[tuple[Any, int]]:
    yield x, 1
    yield x, 2
    yield [x[:2], x[2:]], 16
    yield iter([x[:1], x[1:]]), 3
    yield [(x[:4], torch.zeros(4)), (x[4:], torch.zeros(1))], 16
    yield [Batch(x, torch.eye(5), torch.arange(5), torch.arange(5))], 2


def test_batches_of_any_size_and_kind_give_the_same() -> None:
    vit, x = model(reg_tokens=1), images(5)
    whole = head_statistics(vit, x)
    for given, size in streams(x):
        assert_same(head_statistics(vit, given, batch_size=size), whole)


def test_a_sample_does_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CKA_TOKENS", 20)
    monkeypatch.setattr(statistics, "NORM_TOKENS", 31)
    vit, x = model(), images(5)
    whole = head_statistics(vit, x)
    assert_same(head_statistics(vit, x, batch_size=2), whole)
    assert "CKA is of 20 patch tokens, drawn from 60" in whole.notes
    assert "median and percentile of norms are of 31 patch tokens, drawn from 60" in whole.notes


def test_sizes_are_those_of_the_whole_stream() -> None:
    vit, x, sizes = model(), images(), torch.tensor([[16, 12], [5, 12], [16, 4]])
    assert_same(head_statistics(vit, [x[:2], x[2:]], sizes=sizes), head_statistics(vit, x, sizes=sizes))


def test_pictures_pass_through_the_models_own_view() -> None:
    vit = model()
    vit.preprocessing = Preprocessing(img_size=(HEIGHT, WIDTH), in_channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    pixels = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in pixels]
    tensor = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    whole = head_statistics(vit, tensor)
    assert_same(head_statistics(vit, pictures, batch_size=2), whole)
    assert_same(head_statistics(vit, iter(pictures)), whole)
    assert_same(head_statistics(vit, pictures[0]), head_statistics(vit, tensor[:1]))


def test_rows_of_attention_are_computed_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vit, x, shapes, rows_of = model(), images(), [], statistics.attention_rows
    whole = head_statistics(vit, x)

    def noted(seen: Any, rows: Any, mask: Any) -> Tensor:
        shapes.append(tuple((made := rows_of(seen, rows, mask)).shape))
        return made

    monkeypatch.setattr(statistics, "attention_rows", noted)
    monkeypatch.setattr(passes, "CHUNK_BYTES", 4 * 3 * HEADS * 13 * 5)  # five of the thirteen rows
    assert_same(head_statistics(vit, x), whole)
    assert shapes == [(3, HEADS, rows, 13) for rows in (5, 5, 3)] * DEPTH


def test_the_model_stays_as_it_was() -> None:
    vit = model(drop_path_rate=0.5, proj_drop_rate=0.5).train()
    one, two = head_statistics(vit, images()), head_statistics(vit, images())
    assert_same(one, two)
    assert all(module.training for module in vit.modules())
    with torch.inference_mode():
        assert_same(head_statistics(vit, images()), one)
    assert not any(tensor.requires_grad for tensor in (one.distance, one.cka, one.filters, one.positions))


def test_half_precision_and_what_wraps_a_model() -> None:
    vit = model()
    expected = head_statistics(vit, images())
    wrapper = torch.nn.DataParallel(vit) if torch.cuda.is_available() else torch.nn.Module()
    wrapper.module = vit
    found = head_statistics(wrapper, images().double())
    assert_same(found, expected)
    found = head_statistics(vit.bfloat16(), images())
    assert found.distance.dtype == found.cka.dtype == torch.float32
    torch.testing.assert_close(found.distance, expected.distance, atol=0.3, rtol=0.05)
    torch.testing.assert_close(found.token_norms.median, expected.token_norms.median, atol=0, rtol=0.05)


# ---- tokens


def song(k: np.ndarray, other: np.ndarray) -> float:
    """The unbiased estimate of HSIC, from its equation."""
    n = len(k)
    k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
    ones = np.ones(n)
    whole = np.trace(k @ other) + (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return float((whole - 2 / (n - 2) * (ones @ k @ other @ ones)) / (n * (n - 3)))


def test_cka_is_the_equation() -> None:
    features = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0)) + 2
    features[1] += features[0]
    grams = [x @ x.T for x in features.double().numpy()]
    expected = [[song(a, b) / math.sqrt(song(a, a) * song(b, b)) for b in grams] for a in grams]
    np.testing.assert_allclose(linear_cka(features).numpy(), expected, atol=1e-5)


def test_cka_does_not_see_rotation_scale_and_place() -> None:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    features = torch.stack([x, x @ turn, 7 * x, x + 3, x * torch.tensor([5.0, 1, 1, 1, 1, 1])])
    found = linear_cka(features)
    torch.testing.assert_close(found[:4, :4], torch.ones(4, 4))
    assert found[0, 4] < 0.9, "but it sees which directions count"


def test_cka_of_what_has_nothing_in_common() -> None:
    features = torch.randn(2, 40, 200, generator=torch.Generator().manual_seed(0))  # fewer examples than channels
    assert abs(linear_cka(features)[0, 1].item()) < 0.1


def test_cka_where_there_is_none() -> None:
    assert linear_cka(torch.randn(2, 3, 5)).isnan().all(), "three examples"
    features = torch.stack([torch.randn(8, 5), torch.randn(1, 5).expand(8, 5)])
    found = linear_cka(features)
    assert found[0, 0].item() == pytest.approx(1)
    assert found[0, 1].isnan()
    found = head_statistics(model(), images(1, 4, 12))
    assert found.cka.isnan().all()
    assert "CKA needs four patch tokens, and there are 3" in found.notes
    assert found.table()[0]["cka_with_input"] is None


def test_cka_and_norms_are_of_the_patch_tokens() -> None:
    vit, x = model(reg_tokens=2), images()
    found = head_statistics(vit, x)
    with torch.no_grad():
        first, _ = vit.embed(x, pad=False, sizes=None)
        stages = torch.stack([tokens[:, 3:].flatten(0, 1) for tokens in (first, *vit.outputs(x).features)])
    torch.testing.assert_close(found.cka, linear_cka(stages), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.cka.diagonal(), torch.ones(DEPTH + 1))
    norms = np.linalg.norm(stages.numpy(), axis=2)
    np.testing.assert_allclose(found.token_norms.median.numpy(), np.median(norms, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.token_norms.p99.numpy(), np.percentile(norms, 99, axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.token_norms.max.numpy(), norms.max(axis=1), rtol=1e-5)


def test_outliers_have_more_than_three_times_the_median() -> None:
    norms = torch.tensor([[1.0, 1.0, 1.0, 2.9, 3.1, 10.0], [4.0, 4.0, 4.0, 4.0, 4.0, 4.0]])
    found = token_norms(norms, torch.tensor([11.0, 4.0]))
    torch.testing.assert_close(found.median, torch.tensor([1.95, 4.0]))
    torch.testing.assert_close(found.outliers, torch.tensor([1 / 6, 0.0]))
    torch.testing.assert_close(found.max, torch.tensor([11.0, 4.0]))


def test_a_token_that_sticks_out_is_counted() -> None:
    vit = model(depth=1)
    with torch.no_grad():
        vit.get_parameter("pos_embed")[0, 1 + 5] = 100.0  # one patch of twelve
    found = head_statistics(vit, images()).token_norms
    torch.testing.assert_close(found.outliers, torch.full((2,), 1 / 12))
    assert found.max[0] > 3 * found.median[0]


def test_a_sample_is_of_the_smallest_keys() -> None:
    keys, rows = torch.rand(50, dtype=torch.float64), torch.arange(100.0).view(2, 50, 1)
    for step in (1, 7, 50):
        sample = TokenSample(8)
        for start in range(0, 50, step):
            part = slice(start, start + step)
            sample.add(rows[:, part][:, sample.admit(keys[part])])
        assert torch.equal(sample.rows[0, :, 0].sort().values, keys.argsort()[:8].sort().values.float())
        assert torch.equal(sample.rows[1], sample.rows[0] + 50)


# ---- filters and positions


def test_components_are_those_of_the_filters_covariance() -> None:
    vit = model(embed_dim=64)
    components, shares = filter_components(vit, count=5)
    flat = vit.patch_embed.proj.weight.detach().double().flatten(1).numpy()
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    assert components.shape == (5, 3, PATCH, PATCH)
    np.testing.assert_allclose(shares.numpy(), values[::-1][:5] / values.sum(), rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.einsum("kn,nk->k", components.flatten(1), vectors[:, ::-1][:, :5])), 1, atol=1e-4)
    assert (components.flatten(1).abs().amax(1) == components.flatten(1).amax(1)).all(), "the largest number is positive"


def test_components_are_no_more_than_filters_have() -> None:
    vit = model(embed_dim=64)
    with torch.no_grad():
        weight = vit.patch_embed.proj.weight
        weight.copy_(torch.outer(torch.linspace(-1, 1, 64), torch.linspace(0, 1, 48)).view_as(weight))
    components, shares = filter_components(vit)
    assert len(components) == 1
    assert shares.item() == pytest.approx(1)


def test_filters_of_a_convolutional_stem_are_no_patches() -> None:
    found = head_statistics(model(stem="conv"), images(1))
    assert found.filters.shape[1:] == (3, 3, 3)
    assert any(note.startswith("convolutional stem: the filters are its first convolution's") for note in found.notes)


@pytest.mark.parametrize("others", [{}, {"no_embed_class": True, "reg_tokens": 1}, {"pos_embed": "sincos2d"}])
def test_positions_are_compared_by_their_cosine(others: dict[str, Any]) -> None:
    vit = model(**others)
    found = position_similarity(vit)
    assert found is not None
    assert vit.pos_embed is not None
    rows = vit.pos_embed.detach()[0, -12:].numpy()
    for one, other in ((0, 0), (2, 7), (11, 4)):
        expected = rows[one] @ rows[other] / np.linalg.norm(rows[one]) / np.linalg.norm(rows[other])
        assert found[one // 3, one % 3, other // 3, other % 3].item() == pytest.approx(float(expected), abs=1e-5)


def test_no_positions() -> None:
    found = head_statistics(model(pos_embed="none"), images(1))
    assert found.positions is None
    assert "no position embedding" in found.notes


# ---- what to conclude


def made(depth: int, heads: int = 2, **others: Any) -> ModelStatistics:
    """Numbers that are the same in every layer."""
    level = torch.ones(depth, heads)
    norms = {name: torch.ones(depth + 1) for name in ("median", "p99", "max")}
    given: dict[str, Any] = {
        "distance": 16 * level,
        "entropy": 5 * level,
        "cls_to_patch": 0.5 * level,
        "patch_to_prefix": 0.1 * level,
        "head_similarity": torch.ones(depth, heads, heads),
        "cka": torch.ones(depth + 1, depth + 1),
        "token_norms": TokenNorms(**norms, outliers=torch.zeros(depth + 1)),
        "filters": torch.ones(1, 3, 16, 16),
        "filter_shares": torch.ones(1),
        "positions": None,
        "images": 4,
        "patch": (16, 16),
        "grids": ((14, 14),),
        "prefix_tokens": 1,
        "even_distance": 100.0,
        "even_entropy": 7.6,
        "query_name": "class token",
        "notes": (),
    }
    return ModelStatistics(**given | others)


@pytest.mark.parametrize(
    ("depth", "early", "late"),
    [
        (2, range(1), range(1, 2)),
        (5, range(2), range(3, 5)),
        (6, range(2), range(4, 6)),
        (12, range(4), range(8, 12)),
        (40, range(13), range(27, 40)),
    ],
)
def test_which_layers_are_early_and_late(depth: int, early: range, late: range) -> None:
    found = made(depth).early_and_late()
    assert (found.early, found.late) == (early, late)
    assert [finding.name for finding in found.findings] == [
        "distance",
        "entropy",
        "cls_to_patch",
        "redundancy",
        "norm_median",
        "outlier_share",
    ]
    assert {finding.verdict for finding in found.findings} == {"same"}
    assert all("no difference" in sentence for sentence in found.sentences)


def test_a_difference_beyond_the_spread() -> None:
    distance = 16 * torch.tensor([[2.0, 4.0]] * 4 + [[5.0, 5.0]] * 4 + [[8.0, 10.0]] * 4)
    finding = made(12, distance=distance).early_and_late().findings[0]
    assert (finding.early, finding.late, finding.low, finding.high) == (3, 9, 2, 10)
    assert finding.spread == pytest.approx(np.std([2, 4] * 4, ddof=1))
    assert finding.verdict == "more"
    assert finding.sentence == (
        "heads look 3 patches far in layers 0-3 and 9 in layers 8-11: late layers look farther, by 6, beyond the spread "
        "(standard deviation within a part 1.07, heads from 2 to 10)"
    )
    finding = made(12, distance=distance.flip(0)).early_and_late().findings[0]
    assert finding.verdict == "less"
    assert "late layers look nearer, by 6, beyond" in finding.sentence


def test_a_difference_within_the_spread() -> None:
    share = torch.tensor([[0.1, 0.9], [0.2, 0.9], [0.3, 0.9], [0.2, 0.9]])
    finding = made(4, cls_to_patch=share).early_and_late().findings[2]
    assert finding.verdict == "same"
    assert finding.sentence == (
        "of the attention of the class token, patches have 52.5% in layers 0-1 and 57.5% in layers 2-3: no difference beyond "
        f"the spread (5.0 points apart, standard deviation within a part {100 * finding.spread:.1f} points, heads from 10.0% "
        "to 90.0%)"
    )


def test_a_difference_that_nothing_can_be_held_against() -> None:
    norms = replace(made(2).token_norms, median=torch.tensor([1.0, 2.0, 5000.0]))
    finding = made(2, token_norms=norms).early_and_late().findings[4]
    assert (finding.verdict, finding.spread) == ("open", None)
    assert finding.sentence == (
        "the median patch token has norm 2 behind layer 0 and 5,000 behind layer 1: late layers make longer tokens, by 4,998; "
        "one number each, so no spread to judge it by"
    )


def test_without_prefix_tokens_nothing_is_said_of_them() -> None:
    found = head_statistics(model(class_token=False, pool="avg"), images(1)).early_and_late()
    assert "cls_to_patch" not in [finding.name for finding in found.findings]


def test_the_table_is_plain() -> None:
    found = head_statistics(model(reg_tokens=1), images())
    rows = json.loads(json.dumps(found.table()))
    assert [row["layer"] for row in rows] == [0, 1]
    assert rows[1]["distance_px"] == pytest.approx(found.distance[1].mean().item())
    assert rows[1]["distance_patches"] == pytest.approx(found.distance[1].mean().item() / 4)
    assert rows[0]["entropy_bits_max"] == pytest.approx(found.entropy[0].max().item())
    assert rows[0]["norm_max"] == pytest.approx(found.token_norms.max[1].item())
    assert rows[1]["cka_with_input"] == pytest.approx(found.cka[1, 2].item())
    assert found.layers == ("layer 0", "layer 1")
    assert found.heads == ("head 0", "head 1")


# ---- errors


@pytest.mark.parametrize("given", [[], torch.empty(0, 3, HEIGHT, WIDTH), [torch.empty(0, 3, HEIGHT, WIDTH)]])
def test_no_images(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^there are no images; give at least one$"):
        head_statistics(model(), given)


def test_one_line_says_what_is_wrong() -> None:
    vit, x = model(), images()
    with pytest.raises(ValueError, match=r"^batch_size 0 must be at least 1$"):
        head_statistics(vit, x, batch_size=0)
    with pytest.raises(ValueError, match=r"^this model has no layers, so there is no attention to measure; give one with"):
        head_statistics(model(depth=0), x)
    with pytest.raises(ValueError, match=r"^images of shape \(3, 16, 12\) are not \(B, C, H, W\); one image is images\["):
        head_statistics(vit, x[0])
    with pytest.raises(ValueError, match=r"^sizes has 2 rows, and there are more images; give height and width of each$"):
        head_statistics(vit, x, sizes=torch.full((2, 2), 8))
    with pytest.raises(ValueError, match=r"^sizes has 4 rows for 3 images; give height and width of each$"):
        head_statistics(vit, x, sizes=torch.full((4, 2), 8))
    with pytest.raises(ValueError, match=r"^sizes has a side of 0 px; each must be at least 1$"):
        head_statistics(vit, x, sizes=torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^this model has 1 layer; early and late take two$"):
        head_statistics(model(depth=1), x).early_and_late()
    other = torch.nn.Linear(2, 2)
    other.config = SimpleNamespace(name="resnet50")
    with pytest.raises(ValueError, match=r"^resnet50 is no backbone of Vitrail, so it says nothing of tokens"):
        head_statistics(other, x)
