from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from vitrail.data.draws import Draws, endless, permutation

MANY = torch.arange(20_000)
FAR = 1e-4  # a p-value below it says that the numbers are not what they should be; all draws are fixed, so no test is flaky


def draws(seed: int = 0, epoch: int = 0, indexes: Tensor = MANY) -> Draws:
    return Draws(seed=seed, epoch=epoch, indexes=indexes)


def p_uniform(values: Tensor) -> float:
    return float(stats.kstest(values.double().numpy(), "uniform").pvalue)


@pytest.mark.parametrize("stream", ["flip", "crop_area", "mix", "x", ""])
def test_uniform_across_samples(stream: str) -> None:
    values = draws().uniform(stream)[:, 0]
    assert values.dtype == torch.float32
    assert values.min() >= 0
    assert values.max() < 1
    assert p_uniform(values) > FAR


def test_uniform_within_a_sample_and_across_epochs_and_seeds() -> None:
    assert p_uniform(draws(indexes=torch.tensor([7])).uniform("a", 20_000)[0]) > FAR
    one = torch.tensor([3])
    assert p_uniform(torch.cat([draws(epoch=e, indexes=one).uniform("a")[0] for e in range(2000)])) > FAR
    assert p_uniform(torch.cat([draws(seed=s, indexes=one).uniform("a")[0] for s in range(2000)])) > FAR


def test_neighbouring_addresses_are_independent() -> None:
    base = draws().uniform("a", 2)
    columns = [
        base[:, 0],
        base[:, 1],
        base[:, 0].roll(1),  # the next sample
        draws().uniform("b")[:, 0],
        draws(epoch=1).uniform("a")[:, 0],
        draws(seed=1).uniform("a")[:, 0],
    ]
    for a, b in itertools.combinations(columns, 2):
        table = torch.zeros(8, 8).index_put_(((a * 8).long(), (b * 8).long()), torch.ones(len(a)), accumulate=True)
        assert stats.chi2_contingency(table.numpy()).pvalue > FAR
        assert stats.pearsonr(a.numpy(), b.numpy()).pvalue > FAR


def test_seed_and_epoch_are_not_interchangeable() -> None:
    assert not torch.equal(draws(seed=1, epoch=2).uniform("a"), draws(seed=2, epoch=1).uniform("a"))
    assert not torch.equal(draws(seed=12, epoch=3).uniform("a"), draws(seed=1, epoch=23).uniform("a"))


@given(seed=st.integers(-(2**63), 2**63), epoch=st.integers(0, 10**9), count=st.integers(0, 9), n=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_draw_depends_on_its_address_alone(seed: int, epoch: int, count: int, n: int) -> None:
    indexes = torch.arange(count) * 1_000_003
    together = draws(seed, epoch, indexes)
    again = draws(seed, epoch, indexes.flip(0))
    assert torch.equal(together.uniform("a", n), again.uniform("a", n).flip(0))
    assert torch.equal(together.normal("a", n), again.normal("a", n).flip(0))
    for row, index in enumerate(indexes):
        alone = draws(seed, epoch, index[None])
        assert torch.equal(alone.uniform("a", n)[0], together.uniform("a", n)[row])
        assert torch.equal(alone.beta("b", 0.8)[0], together.beta("b", 0.8)[row])
    assert torch.equal(together.uniform("a", n + 3)[:, :n], together.uniform("a", n))


def test_values_are_pinned() -> None:
    """A run made with one version can be made again with the next: these numbers must never change."""
    values = draws(seed=3, epoch=5, indexes=torch.tensor([0, 1, 49_999])).uniform("flip", 2)
    assert (values * 2**24).long().tolist() == [[10410774, 12429896], [14081660, 8098690], [2335668, 3785403]]
    assert permutation(8, seed=3, epoch=5).tolist() == [1, 2, 7, 4, 0, 3, 6, 5]


def test_the_hash_is_splitmix64() -> None:
    """Against SplitMix64 in Python's unbounded integers, from the same state."""
    one = draws(indexes=torch.tensor([11]))
    state = int(one._states("a")[0]) % 2**64
    expected = []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append((z ^ (z >> 31)) >> 40)
    assert (one.uniform("a", 5)[0] * 2**24).long().tolist() == expected


def test_normal() -> None:
    values = draws().normal("noise", 2)
    assert stats.kstest(values[:, 0].double().numpy(), "norm").pvalue > FAR
    assert stats.pearsonr(values[:, 0].numpy(), values[:, 1].numpy()).pvalue > FAR
    assert values.isfinite().all()


def test_normal_at_is_single_entries_of_normal() -> None:
    few = draws(indexes=torch.tensor([5, 1, 9]))
    rows, columns = torch.tensor([0, 2, 2, 1]), torch.tensor([7, 0, 3, 3])
    assert torch.equal(few.normal_at("a", rows=rows, columns=columns), few.normal("a", 8)[rows, columns])


@pytest.mark.parametrize("high", [1, 2, 9, 1000])
def test_integers(high: int) -> None:
    values = draws().integers("a", high=high)[:, 0]
    counts = torch.bincount(values, minlength=high)
    assert len(counts) == high
    assert stats.chisquare(counts.numpy()).pvalue > FAR or high == 1


def test_integers_with_a_bound_for_each_sample() -> None:
    high = torch.arange(len(MANY)) % 7 + 1
    values = draws().integers("a", high=high, n=2)
    assert (values >= 0).all()
    assert (values < high[:, None]).all()
    assert torch.equal(values[high == 5], draws().integers("a", high=5, n=2)[high == 5])


@pytest.mark.parametrize("alpha", [0.5, 0.8, 1.0, 2.0, 8.0, 32.0])
def test_beta(alpha: float) -> None:
    values = draws().beta("mixup", alpha)
    assert stats.kstest(values.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > FAR


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2])
def test_beta_that_crowds_at_its_ends(alpha: float) -> None:
    """So near to 0 and 1 that float32 rounds to them; between, the distribution is what it should be."""
    values = draws().beta("mixup", alpha)
    assert values.isfinite().all()
    assert values.min() >= 0
    assert values.max() <= 1
    expected = stats.beta(alpha, alpha)
    for edge in (1e-3, 0.1, 0.5, 0.9, 1 - 1e-3):
        below = int((values < edge).sum())
        assert stats.binomtest(below, len(values), expected.cdf(edge)).pvalue > FAR


def test_beta_needs_a_positive_parameter() -> None:
    with pytest.raises(ValueError, match="above 0"):
        draws().beta("mixup", 0.0)


@pytest.mark.parametrize("count", [0, 1, 2, 10, 5000])
def test_permutation(count: int) -> None:
    order = permutation(count, seed=0, epoch=0)
    assert torch.equal(order.sort().values, torch.arange(count))
    assert torch.equal(order, permutation(count, seed=0, epoch=0))
    if count > 5:
        assert not torch.equal(order, permutation(count, seed=0, epoch=1))
        assert not torch.equal(order, permutation(count, seed=1, epoch=0))


def test_permutation_leaves_no_trace_of_the_first_order() -> None:
    order = permutation(5000, seed=0, epoch=0)
    assert stats.spearmanr(order.numpy(), range(5000)).pvalue > FAR
    first = torch.tensor([int(permutation(4, seed=0, epoch=e)[0]) for e in range(2000)])
    assert stats.chisquare(torch.bincount(first, minlength=4).numpy()).pvalue > FAR


@pytest.mark.parametrize("count", [1, 2, 7])
def test_an_endless_row_holds_all_items_again_and_again(count: int) -> None:
    items = torch.arange(count) * 3 + 5
    row = endless(items, seed=0, start=0, count=20 * count)
    rounds = row.view(20, count)
    assert (rounds.sort(dim=1).values == items).all()
    assert len(rounds.unique(dim=0)) > 1 or count == 1
    assert torch.equal(endless(items, seed=0, start=5, count=11), row[5:16]) or count == 1
    assert not torch.equal(row, endless(items, seed=1, start=0, count=20 * count)) or count == 1
    assert not len(endless(items, seed=0, start=3, count=0))


def test_every_turn_of_a_sample_has_draws_of_its_own() -> None:
    index = torch.full((2000,), 17)
    turns = torch.arange(2000)
    values = Draws(seed=0, epoch=0, indexes=index, turns=turns).uniform("a")[:, 0]
    assert len(values.unique()) > 1990
    assert stats.kstest(values.numpy(), "uniform").pvalue > FAR
    assert values[0] == draws(indexes=index[:1]).uniform("a")[0, 0], "the first turn is as if there were no others"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_the_same_numbers() -> None:
    here, there = draws(), draws(indexes=MANY.cuda())
    assert torch.equal(here.uniform("a", 3), there.uniform("a", 3).cpu())
    assert torch.equal(here.integers("a", high=1000), there.integers("a", high=1000).cpu())
    torch.testing.assert_close(here.normal("a"), there.normal("a").cpu(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(here.beta("a", 0.8), there.beta("a", 0.8).cpu(), atol=1e-5, rtol=1e-5)
