"""Scores of maps: by hand where one patch decides, against SciPy, and side by side for every way of pooling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vitrail.explain import score
from vitrail.explain.comparison import Comparison, compare
from vitrail.explain.inputs import open_scene
from vitrail.explain.maps import Maps
from vitrail.explain.score import (
    Compared,
    Scores,
    Trial,
    faithfulness,
    random_maps,
    rank_correlation,
    shuffled,
)
from vitrail.explain.table import NEEDS, usable
from vitrail.models import ViT

PATCH = 5  # of 16, the one that decides
FULL = 1 / (1 + math.exp(-2))  # the class's probability with it; without it, a half


def tiny(**fields: object) -> ViT:
    """A small model whose every part matters to the logits."""
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    torch.manual_seed(0)
    model = ViT(**sizes | fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def mean_of_pixels() -> ViT:
    """Logits 0 and 32 times the mean pixel."""
    model = ViT(
        img_size=16,
        patch_size=4,
        in_channels=1,
        embed_dim=8,
        depth=0,
        num_heads=2,
        num_classes=2,
        class_token=False,
        pool="avg",
        pos_embed="none",
        final_norm=False,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.patch_embed.proj.weight[0] = 1 / 16
        model.head.weight[1, 0] = 32.0
    return model


def one_patch() -> Tensor:
    """An image of zeros but for one patch of ones: logits 0 and 2."""
    image = torch.zeros(1, 1, 16, 16)
    image[..., 4:8, 4:8] = 1.0
    return image


def maps_from(values: Tensor, own: tuple[int, int] | None = None) -> Maps:
    """Maps of patches of 4 pixels."""
    batch, down, across = values.shape
    return Maps(
        maps=values.float(),
        method="by hand",
        labels=("",) * batch,
        patch=(4, 4),
        image_sizes=torch.tensor(own or (4 * down, 4 * across)).expand(batch, 2),
        pixels=None,
        names=("",) * batch,
    )


def decisive(*, first: bool) -> Maps:
    """The patch that decides comes first, or last."""
    values = torch.zeros(16)
    values[PATCH] = 1.0 if first else -1.0
    return maps_from(values.view(1, 4, 4))


def images(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------------------------------------------
# Insertion and deletion


def test_areas_are_those_of_trapezoids() -> None:
    scores = Scores(
        fractions=torch.tensor([[0.0, 0.25, 1.0]]),
        insertion_curves=torch.tensor([[0.0, 1.0, 1.0]]),
        deletion_curves=torch.tensor([[1.0, 0.0, 0.5]]),
    )
    assert scores.insertion.item() == pytest.approx(0.125 + 0.75)
    assert scores.deletion.item() == pytest.approx(0.125 + 0.1875)
    assert scores.gap.item() == pytest.approx(0.5625)


def test_deletion_of_a_known_probability_is_what_one_computes_by_hand() -> None:
    first = faithfulness(mean_of_pixels(), one_patch(), decisive(first=True), steps=16)
    last = faithfulness(mean_of_pixels(), one_patch(), decisive(first=False), steps=16)
    torch.testing.assert_close(first.fractions[0], torch.arange(17) / 16)
    torch.testing.assert_close(first.deletion_curves[0], torch.tensor([FULL] + 16 * [0.5]))
    torch.testing.assert_close(last.deletion_curves[0], torch.tensor(16 * [FULL] + [0.5]))
    step = (FULL + 0.5) / 2 / 16
    assert first.deletion.item() == pytest.approx(step + 0.5 * 15 / 16, abs=1e-6)
    assert last.deletion.item() == pytest.approx(step + FULL * 15 / 16, abs=1e-6)


def test_the_true_order_inserts_more_and_deletes_less_than_the_reversed() -> None:
    for baseline in ("mean", "blur"):
        first, last = (
            faithfulness(mean_of_pixels(), one_patch(), decisive(first=one), baseline=baseline) for one in (True, False)
        )
        assert first.insertion.item() > last.insertion.item() + 0.1
        assert first.deletion.item() < last.deletion.item() - 0.1
        assert first.gap.item() > 0 > last.gap.item()


def test_curves_begin_and_end_with_the_whole_images() -> None:
    model, x = tiny(), images()
    scores = faithfulness(model, x, maps_from(torch.rand(2, 4, 4)), target=[1, 2], steps=5)
    blur = score.blurred(x, torch.tensor([[16, 16], [16, 16]]), (4, 4))
    with torch.no_grad():
        whole, nothing, smooth = (model(one).softmax(dim=1)[torch.arange(2), torch.tensor([1, 2])] for one in (x, 0 * x, blur))
    torch.testing.assert_close(scores.insertion_curves[:, [0, -1]], torch.stack([smooth, whole], dim=1))
    torch.testing.assert_close(scores.deletion_curves[:, [0, -1]], torch.stack([whole, nothing], dim=1))
    torch.testing.assert_close(scores.fractions[0], torch.tensor([0, 3, 6, 10, 13, 16]) / 16)


def test_the_class_is_the_predicted_one_unless_given() -> None:
    model, x, maps = mean_of_pixels(), one_patch(), decisive(first=True)
    predicted, second, first = (faithfulness(model, x, maps, target=target) for target in (None, 1, 0))
    torch.testing.assert_close(predicted.deletion_curves, second.deletion_curves)
    torch.testing.assert_close(first.deletion_curves, 1 - second.deletion_curves)


def test_with_many_labels_each_class_has_its_own_probability() -> None:
    model = mean_of_pixels()
    with torch.no_grad():
        model.head.weight[0] = model.head.weight[1]  # of two equal logits the softmax knows nothing
    maps = decisive(first=True)
    assert faithfulness(model, one_patch(), maps, target=0).deletion_curves[0, 0].item() == pytest.approx(0.5)
    model.multi_label = True
    assert faithfulness(model, one_patch(), maps, target=0).deletion_curves[0, 0].item() == pytest.approx(FULL, abs=1e-6)


def test_few_images_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, maps = tiny(), images(), maps_from(torch.rand(2, 4, 4))
    together = faithfulness(model, x, maps, steps=6)
    seen: list[int] = []
    model.patch_embed.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr(score, "BATCH_TOKENS", 3 * 17 + 16)  # three images of 17 tokens
    apart = faithfulness(model, x, maps, steps=6)
    assert max(seen) == 3
    assert sum(seen) == 2 + 2 * 2 * 7  # the images themselves, then two curves of seven for each
    torch.testing.assert_close(apart.insertion_curves, together.insertion_curves)
    torch.testing.assert_close(apart.deletion_curves, together.deletion_curves)


def test_an_image_on_a_larger_canvas_has_its_own_scores() -> None:
    model, x, values = tiny(pos_embed="none"), images(12, 16), torch.rand(2, 3, 4)
    alone = faithfulness(model, x, maps_from(values), steps=4)
    canvas, wide = torch.full((2, 3, 16, 16), 7.0), torch.full((2, 4, 4), 9.0)
    canvas[:, :, :12], wide[:, :3] = x, values
    placed = faithfulness(model, canvas, maps_from(wide, own=(12, 16)), sizes=torch.tensor([[12, 16], [12, 16]]), steps=4)
    torch.testing.assert_close(placed.fractions, alone.fractions)
    torch.testing.assert_close(placed.insertion_curves, alone.insertion_curves, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(placed.deletion_curves, alone.deletion_curves, atol=1e-5, rtol=1e-5)


def test_more_steps_than_patches_are_one_patch_each() -> None:
    assert faithfulness(mean_of_pixels(), one_patch(), decisive(first=True), steps=100).fractions.shape == (1, 17)


def test_faithfulness_says_what_does_not_fit() -> None:
    model, x = tiny(), images()
    with pytest.raises(ValueError, match=r"maps of shape \(2, 2, 4\) do not fit images with patches of shape \(2, 4, 4\)"):
        faithfulness(model, x, maps_from(torch.rand(2, 2, 4)))
    with pytest.raises(ValueError, match="hold numbers that are not finite"):
        faithfulness(model, x, maps_from(torch.full((2, 4, 4), math.nan)))
    with pytest.raises(ValueError, match="steps 0 must be at least 1"):
        faithfulness(model, x, maps_from(torch.rand(2, 4, 4)), steps=0)
    with pytest.raises(ValueError, match="class 3 does not exist"):
        faithfulness(model, x, maps_from(torch.rand(2, 4, 4)), target=3)
    with pytest.raises(ValueError, match="no head"):
        faithfulness(tiny(num_classes=0), x, maps_from(torch.rand(2, 4, 4)))
    with open_scene(model, x) as seen, pytest.raises(ValueError, match='baseline "grey" is neither "mean" nor "blur"'):
        Trial.of(seen, target=None, steps=2, baseline="grey")


# --------------------------------------------------------------------------------------------------------------------
# Order and blur


def test_ranks_follow_the_numbers_and_patches_that_are_not_there_come_last() -> None:
    values = torch.tensor([[[3.0, -1.0, 2.0, 5.0]]])
    assert score.ranks_of(values, torch.ones(1, 1, 4, dtype=torch.bool), seed=0).tolist() == [[[1, 3, 2, 0]]]
    here = torch.tensor([[[True, True, True, False]]])
    assert score.ranks_of(values, here, seed=0).tolist() == [[[0, 2, 1, 3]]]


def test_equal_numbers_come_in_a_random_order_that_the_seed_decides() -> None:
    flat, here = torch.zeros(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    ranks = torch.stack([score.ranks_of(flat, here, seed=seed) for seed in range(300)]).flatten(2)  # (300, 2, 16)
    assert torch.equal(ranks.sort(dim=2).values, torch.arange(16).expand(300, 2, 16))
    assert ((ranks.double().mean(dim=0) - 7.5).abs() < 1.5).all()  # 5 standard errors
    assert not torch.equal(ranks[0, 0], ranks[0, 1])
    assert torch.equal(score.ranks_of(flat, here, seed=7).flatten(1), ranks[7])


def test_a_constant_map_scores_as_a_random_one() -> None:
    with open_scene(mean_of_pixels(), one_patch()) as seen:
        trial = Trial.of(seen, target=1, steps=16, baseline="mean")
        flat = maps_from(torch.ones(1, 4, 4))
        constant = torch.cat([trial.scores(flat, seed=seed).deletion for seed in range(30)])
        random = torch.cat([trial.scores(random_maps(flat, seed=seed)).deletion for seed in range(30)])
    expected = 0.5 + (FULL - 0.5) / 2  # the patch is as likely to go early as late
    for found in (constant, random):
        assert found.mean().item() == pytest.approx(expected, abs=0.06)  # 3 standard errors
        assert found.std().item() > 0.05


def test_blur_is_a_gaussian_one_patch_wide() -> None:
    spike = torch.zeros(1, 1, 48, 40)
    spike[..., 24, 20] = 1.0
    blur = score.blurred(spike, torch.tensor([[48, 40]]), (4, 3))[0, 0]
    away = torch.arange(-8, 9.0)
    torch.testing.assert_close(blur[16:33, 20] / blur[24, 20], torch.exp(-0.5 * (away / 4) ** 2), atol=2e-3, rtol=0)
    torch.testing.assert_close(blur[24, 12:29] / blur[24, 20], torch.exp(-0.5 * (away / 3) ** 2), atol=2e-3, rtol=0)


def test_blur_neither_darkens_the_border_nor_spills_into_the_padding() -> None:
    image = torch.full((2, 1, 16, 16), 3.0)
    image[1, :, 12:] = 100.0
    blur = score.blurred(image, torch.tensor([[16, 16], [12, 16]]), (4, 4))
    torch.testing.assert_close(blur[0], image[0])
    torch.testing.assert_close(blur[1, :, :12], image[1, :, :12])
    assert not blur[1, :, 12:].any()


# --------------------------------------------------------------------------------------------------------------------
# What to compare with


def test_random_maps_are_for_the_same_images_and_zero_where_no_patch_is() -> None:
    maps = maps_from(torch.zeros(2, 4, 4), own=(12, 16))
    one, same, other = (random_maps(maps, seed=seed).maps for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one[:, :3].all()
    assert not one[:, 3:].any()


def test_shuffled_weights_are_the_same_numbers_elsewhere() -> None:
    model = tiny(stem="conv", init_values=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied = shuffled(model, seed=3)
    after, parameters = copied.state_dict(), dict(copied.named_parameters())
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), name
        if name in parameters:
            assert torch.equal(after[name].flatten().sort().values, tensor.flatten().sort().values), name
            assert not torch.equal(after[name], tensor), name
        else:
            assert torch.equal(after[name], tensor), name
    assert {"pos_embed", "cls_token", "norm.weight"} <= set(parameters)
    with torch.no_grad():
        assert not torch.allclose(copied(images()), model(images()), atol=1e-2)
        torch.testing.assert_close(shuffled(model, seed=3)(images()), copied(images()))
        assert not torch.allclose(shuffled(model, seed=4)(images()), copied(images()), atol=1e-2)


def test_rank_correlation_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 6, (3, 4, 5), generator=generator).float() for _ in range(2))  # with ties
    found = rank_correlation(maps_from(a), maps_from(b))
    for index in range(3):
        expected = stats.spearmanr(a[index].flatten().numpy(), b[index].flatten().numpy()).statistic
        assert found[index].item() == pytest.approx(expected, abs=1e-6)


def test_rank_correlation_by_hand() -> None:
    up, down = torch.arange(8.0).view(1, 2, 4), -torch.arange(8.0).view(1, 2, 4)
    assert rank_correlation(maps_from(up), maps_from(up.exp())).item() == pytest.approx(1)
    assert rank_correlation(maps_from(up), maps_from(down)).item() == pytest.approx(-1)
    assert rank_correlation(maps_from(up), maps_from(torch.ones(1, 2, 4))).isnan().all()
    reversed_there = torch.cat([-up[:, :1], 9 + up[:, 1:]], dim=1)  # the second row is not there
    assert rank_correlation(maps_from(up, own=(4, 16)), maps_from(reversed_there, own=(4, 16))).item() == pytest.approx(-1)
    with pytest.raises(ValueError, match="have no patches in common"):
        rank_correlation(maps_from(up), maps_from(torch.ones(1, 4, 2)))


# --------------------------------------------------------------------------------------------------------------------
# Side by side


@pytest.mark.parametrize(
    "pooling", [{"pool": "cls"}, {"pool": "avg", "class_token": False}, {"pool": "map", "class_token": False}], ids=str
)
def test_all_methods_side_by_side(pooling: dict[str, object]) -> None:
    model, x = tiny(**pooling), images()
    model.classes = ("a", "b", "c")
    found = compare(model, x, steps=4, draws=3)
    assert list(found.methods) == usable(NEEDS, evidence=True)
    with torch.no_grad():
        predicted = model(x).argmax(dim=1).tolist()
    assert found.classes == tuple("abc"[number] for number in predicted)
    for name, one in found.methods.items():
        assert one.maps.method == one.shuffled_maps.method == name
        assert one.maps.maps.shape == (2, 4, 4)
        again = faithfulness(model, x, one.shuffled_maps, target=predicted, steps=4)  # of the model, not of its copy
        torch.testing.assert_close(one.shuffled_scores.gap, again.gap, atol=1e-5, rtol=1e-4)
    for labels in zip(found.methods["relevance"].maps.labels, found.methods["relevance"].shuffled_maps.labels, strict=True):
        assert len({label.split()[0] for label in labels}) == 1  # one class, whatever the shuffled copy would say
    table = found.table()
    assert [row["method"] for row in table] == [*usable(NEEDS, evidence=True), "random"]
    assert all(row["gap"] == pytest.approx(row["insertion"] - row["deletion"], abs=1e-5) for row in table)
    assert found.best == max(table[:-1], key=lambda row: row["gap"])["method"]
    assert found.best.replace("_", " ") in found.verdict


def test_where_the_truth_is_known_the_numbers_find_it() -> None:
    evidence = torch.linspace(-1, 2, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(0))].view(1, 1, 4, 4)
    image = evidence.repeat_interleave(4, 2).repeat_interleave(4, 3)
    found = compare(mean_of_pixels(), image, methods="integrated_gradients", draws=4)
    assert list(found.methods) == ["integrated_gradients"]
    assert found.beats_random("integrated_gradients")
    assert found.verdict.startswith("The numbers favour integrated gradients on 1 image: a gap of ")


def flat_scores(gap: float) -> Scores:
    """Of two images, with the same gap."""
    curves = torch.full((2, 2), 0.2 + gap)
    return Scores(fractions=torch.tensor([[0.0, 1.0]] * 2), insertion_curves=curves, deletion_curves=torch.full((2, 2), 0.2))


def by_hand(gaps: dict[str, float], correlations: dict[str, list[float]], random: list[float]) -> Comparison:
    maps = maps_from(torch.zeros(2, 1, 1))
    return Comparison(
        methods={
            name: Compared(maps, flat_scores(gap), maps, flat_scores(0.0), torch.tensor(correlations[name]))
            for name, gap in gaps.items()
        },
        random=tuple(flat_scores(gap) for gap in random),
        classes=("cat", "dog"),
    )


def test_the_verdict_names_the_best_and_warns_of_what_shuffled_weights_do_not_change() -> None:
    found = by_hand(
        {"rollout": 0.2, "relevance": 0.5, "gradcam": 0.09},
        {"rollout": [0.9, 0.96], "relevance": [0.1, math.nan], "gradcam": [math.nan, math.nan]},
        random=[0.0, 0.1],
    )
    assert found.best == "relevance"
    assert found.random_gap == pytest.approx(0.05)
    assert found.random_range == pytest.approx((0.0, 0.1))
    assert [found.beats_random(name) for name in found.methods] == [True, True, False]
    assert found.verdict == (
        "The numbers favour relevance on 2 images: a gap of 0.500 between insertion (0.700) and deletion (0.200), "
        "where random orders have 0.050 (0.000 to 0.100 in 2 draws); "
        "hardly changed by shuffled weights (rank correlation), so saying little of what was learned: rollout (0.93)."
    )
    assert [row["rank_correlation"] for row in found.table()] == [pytest.approx(0.93), pytest.approx(0.1), None, None]
    assert found.table()[-1]["gap"] == pytest.approx(0.05)


def test_the_verdict_says_when_nothing_beats_a_random_order() -> None:
    found = by_hand({"attention": 0.15, "rollout": 0.1}, {"attention": [0.2, 0.2], "rollout": [0.2, 0.2]}, random=[0.0, 0.2])
    assert found.verdict == (
        "No method beats every random order on 2 images: the best, attention, has a gap of 0.150 between insertion (0.350) and "
        "deletion (0.200), where random orders have 0.100 (0.000 to 0.200 in 2 draws)."
    )


def test_compare_says_what_is_possible() -> None:
    with pytest.raises(ValueError, match=r'method "rolout" is none of attention, .*; did you mean "rollout"'):
        compare(tiny(), images(), methods=["rolout"])
    with pytest.raises(ValueError, match='method "pca" is none of'):
        compare(tiny(), images(), methods="pca")
    with pytest.raises(ValueError, match="there are no methods to compare"):
        compare(tiny(), images(), methods=[])
    with pytest.raises(ValueError, match="draws 0 must be at least 1"):
        compare(tiny(), images(), draws=0)
