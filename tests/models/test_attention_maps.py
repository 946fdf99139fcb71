from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitrail.models import ViT
from vitrail.models import vit as vit_module
from vitrail.models.positions import token_mask

DEPTH, HEADS, DIM = 3, 2, 16


def model(**fields: object) -> ViT:
    torch.manual_seed(0)
    base = {"img_size": 16, "patch_size": 4, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": 5}
    made = ViT(**base | fields).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def images(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def by_hand(vit: ViT, x: Tensor, layer: int) -> Tensor:
    """softmax(q kᵀ / √d) of one layer, head by head, from the tokens before it."""
    tokens, _ = vit.embed(x, pad=False, sizes=None)
    for block in vit.blocks[:layer]:
        tokens = block(tokens)
    block = vit.blocks[layer]
    assert isinstance(block, vit_module.Block)
    tokens = block.norm1(tokens)
    q, k, _ = (tokens @ block.attn.qkv.weight.T + block.attn.qkv.bias).split(DIM, dim=2)
    width = DIM // HEADS
    heads = []
    for h in range(HEADS):
        own = slice(h * width, (h + 1) * width)
        qh, kh = block.attn.q_norm(q[..., own]), block.attn.k_norm(k[..., own])
        heads.append(torch.softmax(qh @ kh.transpose(1, 2) / width**0.5, dim=-1))
    return torch.stack(heads, dim=1)  # (B, h, N, N)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_rows_sum_to_one_and_are_the_softmax_by_hand(qk_norm: bool) -> None:
    vit = model(reg_tokens=1, qk_norm=qk_norm)
    with torch.no_grad():
        maps = vit.attention_maps(images(), layers=range(DEPTH), queries="all")
        assert list(maps) == [0, 1, 2]
        for layer, weights in maps.items():
            assert weights.shape == (2, HEADS, 18, 18)
            assert (weights >= 0).all()
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, HEADS, 18))
            torch.testing.assert_close(weights, by_hand(vit, images(), layer), atol=1e-6, rtol=1e-5)
            assert weights.std() > 1e-3, "attention that is even shows nothing"


def test_queries_are_rows_of_the_whole() -> None:
    vit = model()
    with torch.no_grad():
        whole = vit.attention_maps(images(), queries="all")[-1]
        torch.testing.assert_close(vit.attention_maps(images())[-1], whole[:, :, :1])
        torch.testing.assert_close(vit.attention_maps(images(), queries=[5, 2, 16])[-1], whole[:, :, [5, 2, 16]])


def test_only_the_rows_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    vit, shapes = model(), []
    weights = vit_module.attention_weights

    def noted(q: Tensor, k: Tensor, *others: Tensor | None) -> Tensor:
        shapes.append((tuple(q.shape), tuple(k.shape)))
        return weights(q, k, *others)

    monkeypatch.setattr(vit_module, "attention_weights", noted)
    with torch.no_grad():
        vit.attention_maps(images(32, 32), layers=[1], queries=[0, 7])
    assert shapes == [((2, HEADS, 2, DIM // HEADS), (2, HEADS, 65, DIM // HEADS))], "two rows of one layer, no N x N"


def test_layers_behind_the_last_one_asked_for_are_not_run() -> None:
    vit = model()
    vit.blocks[2] = torch.nn.Identity()  # would fail: it takes no mask
    with torch.no_grad():
        assert list(vit.attention_maps(images(), layers=[1, 0])) == [1, 0]


def test_negative_layers_count_from_the_end() -> None:
    vit = model()
    with torch.no_grad():
        maps = vit.attention_maps(images(), layers=[-1, 0, 2, -3])
    assert list(maps) == [-1, 0, 2, -3], "as they were asked for"
    assert torch.equal(maps[-1], maps[2])
    assert torch.equal(maps[-3], maps[0])
    assert not torch.equal(maps[-1], maps[0])


def test_asking_changes_no_logit() -> None:
    vit = model()
    with torch.no_grad():
        before = vit(images())
        vit.attention_maps(images(), layers=range(DEPTH), queries="all")
        assert torch.equal(vit(images()), before)


def test_masked_keys_get_nothing() -> None:
    vit, sizes = model(), torch.tensor([[16, 8], [5, 16]])
    with torch.no_grad():
        weights = vit.attention_maps(images(), queries="all", sizes=sizes)[-1]
    mask = token_mask(sizes, grid=(4, 4), patch=(4, 4), prefix=vit.prefix_tokens)
    assert not weights.masked_select(~mask[:, None, None].expand_as(weights)).any()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, HEADS, 17))


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_does_not_exist(layer: int) -> None:
    with pytest.raises(ValueError, match=rf"^layer {layer} does not exist; this model has layers 0 to 2 \(or -3 to -1\)$"):
        model().attention_maps(images(), layers=[0, layer])


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ([0, 17], r"^query 17 does not exist; this image has tokens 0 to 16$"),
        ([-1], r"^query -1 does not exist; this image has tokens 0 to 16$"),
    ],
)
def test_a_query_that_does_not_exist(queries: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model().attention_maps(images(), queries=queries)


def test_no_class_token_to_ask_with() -> None:
    with pytest.raises(ValueError, match=r'^queries "cls": this model has no class token; ask for patches by position, or'):
        model(class_token=False, pool="avg").attention_maps(images())
