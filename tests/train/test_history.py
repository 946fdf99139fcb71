"""Losses are read late, all at once, and the first broken step is the one that is named."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.batch import Batch
from vitrail.train.history import History

number = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-1e6, max_value=1e6)


def batch(*indexes: int, stands_in: bool = False) -> Batch:
    rows = len(indexes)
    labels = torch.zeros(rows, dtype=torch.long)
    return Batch(torch.zeros(rows, 1, 2, 2), torch.zeros(rows, 2), labels, torch.tensor(indexes), stands_in=stands_in)


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


@given(
    rows=st.lists(st.tuples(number, st.one_of(st.none(), number)), min_size=1, max_size=12), looks=st.sets(st.integers(0, 11))
)
def test_means_are_of_all_steps_since_the_last_line_however_often_somebody_looked(
    rows: list[tuple[float, float | None]], looks: set[int]
) -> None:
    history = History()
    for step, (loss, norm) in enumerate(rows):
        history.add(step, 0, batch(step), losses(loss=loss) if norm is None else losses(loss=loss, grad_norm=norm))
        if step in looks:
            assert history.read() is None
    assert history.read() is None
    assert not history.unread
    means = history.means()
    assert means["loss"] == pytest.approx(sum(loss for loss, _ in rows) / len(rows), abs=1e-3)
    norms = [norm for _, norm in rows if norm is not None]
    assert ("grad_norm" in means) == bool(norms)
    if norms:
        assert means["grad_norm"] == pytest.approx(sum(norms) / len(norms), abs=1e-3)
    assert history.means() == {}


@given(
    steps=st.integers(1, 9),
    data=st.data(),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    name=st.sampled_from(["loss", "grad_norm"]),
)
def test_the_first_broken_step_is_named_with_its_images(steps: int, data: st.DataObject, value: float, name: str) -> None:
    first = data.draw(st.integers(0, steps - 1))
    history = History()
    for step in range(steps):
        broken = {name: value} if step >= first else {}
        history.add(step + 1, 2, batch(10 * step, 10 * step + 1), losses(**({"loss": 1.0, "grad_norm": 2.0} | broken)))
    found = history.read()
    assert found is not None
    assert (found.step.step, found.step.epoch, found.name) == (first + 1, 2, name)
    assert found.step.indexes is not None
    assert found.step.indexes.tolist() == [10 * first, 10 * first + 1]
    assert str(found.value) == str(value)


def test_other_losses_may_be_anything_and_placeholders_have_no_images() -> None:
    history = History()
    history.add(1, 0, batch(0), losses(loss=1.0, accuracy=math.nan))
    assert history.read() is None
    history.add(2, 0, batch(0, stands_in=True), losses(loss=math.nan))
    found = history.read()
    assert found is not None
    assert found.step.indexes is None
