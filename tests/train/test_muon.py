"""Muon: one batched product for all matrices of one shape, equal to torch's step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vitrail.train import muon
from vitrail.train.muon import Muon, iterate_gram, orthogonalise

OPTIONS: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
SHAPES = ((12, 8), (8, 12), (8, 8), (12, 8), (8, 12))


def matrices() -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draws)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=draws) for shape in SHAPES]


def trained(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: int = 4) -> list[Tensor]:
    for step in range(steps):
        for weight, gradient in zip(weights, gradients(step), strict=True):
            weight.grad = gradient
        weights[2].grad = None if step == 1 else weights[2].grad  # a matrix without a gradient stays
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float32, 2e-2)])
@pytest.mark.parametrize("elements", [2**24, 200])
def test_as_torch_s(dtype: torch.dtype, tolerance: float, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 to the order of sums; in fp32 to bf16's rounding, which is torch's."""
    monkeypatch.setattr(muon, "BATCH_ELEMENTS", elements)
    ours, theirs = matrices(), matrices()
    for got, wanted in zip(
        trained(Muon(ours, dtype=dtype, **OPTIONS), ours), trained(torch.optim.Muon(theirs, **OPTIONS), theirs), strict=True
    ):
        assert (got - wanted).norm() < tolerance * wanted.norm()


def test_its_state_is_torch_s() -> None:
    """So that a run that began with torch's goes on."""
    ours, theirs = matrices(), matrices()
    first, second = Muon(ours, dtype=torch.bfloat16, **OPTIONS), torch.optim.Muon(theirs, **OPTIONS)
    trained(first, ours), trained(second, theirs)
    states = first.state_dict(), second.state_dict()
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, state in states[0]["state"].items():
        assert state.keys() == states[1]["state"][index].keys()
        torch.testing.assert_close(state["momentum_buffer"], states[1]["state"][index]["momentum_buffer"])
    first.load_state_dict(states[1])


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 1000))
def test_singular_values_end_near_one(rows: int, columns: int, seed: int) -> None:
    x = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(seed))
    values = torch.linalg.svdvals(orthogonalise(x))
    kept = torch.linalg.svdvals(x) > 0.05 * torch.linalg.matrix_norm(x)[:, None]
    assert bool(((values > 0.5) & (values < 1.4))[kept].all())
    assert torch.equal(orthogonalise(torch.zeros(2, rows, columns)), torch.zeros(2, rows, columns))


@given(rows=st.integers(1, 9), columns=st.integers(1, 40), seed=st.integers(0, 1000), fall=st.floats(0, 8))
def test_wide_matrices_by_their_gram_matrices(rows: int, columns: int, seed: int, fall: float) -> None:
    """As by the iteration itself in double precision; rows fall by 10^fall from the first to the last."""
    x = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x * torch.logspace(0, -fall, rows, dtype=torch.float64)[:, None]
    exact = orthogonalise(x)
    torch.testing.assert_close(orthogonalise(x.float()).double(), exact, rtol=0, atol=1e-2)
    if rows <= columns:
        unit = x / torch.linalg.matrix_norm(x, keepdim=True)
        torch.testing.assert_close(iterate_gram(unit @ unit.mT) @ unit, exact, rtol=0, atol=1e-9)
