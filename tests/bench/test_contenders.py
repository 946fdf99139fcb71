"""The tables of contenders, each built and run in this process on a tiny model."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.bench import ceiling, prediction, run, training
from vitrail.bench.case import Case, write_case
from vitrail.bench.contender import Contender
from vitrail.bench.processes import Unmeasurable, Worker, array
from vitrail.deploy.forms import needs_bf16
from vitrail.models import create_model, machine
from vitrail.models.counts import count

TRAINING, PREDICTION = training.rows(("fp32", "bf16")), prediction.rows(("fp32", "bf16"))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_case("Ti/32", tmp_path_factory.mktemp("case"), img_size=32, batch_size=2, device="cpu")


def test_a_case_has_the_models_cost_and_products(case: Case) -> None:
    cost = count(create_model("Ti/32", img_size=32).config)
    assert (case.flops, case.parameters, case.shape) == (cost.flops, cost.parameters, (3, 32, 32))
    assert case.products == ((2, 192, 576), (2, 192, 192), (2, 192, 768), (2, 768, 192))
    assert not case.refused


def test_a_library_that_cannot_be_the_model_says_why(tmp_path: Path) -> None:
    narrow = write_case("Ti/32", tmp_path, img_size=(32, 64), batch_size=1, device="cpu")
    with pytest.raises(ValueError, match="torchvision"):
        narrow.file("torchvision")


def test_the_rows_are_unique_and_include_what_figures_refer_to() -> None:
    for rows in (TRAINING, PREDICTION):
        keys = [row.key for row in rows]
        assert len(set(keys)) == len(keys)
        assert {run.REFERENCE, run.OURS_FP32, "Vitrail bf16", "torchvision fp32"} <= set(keys)
    assert {"ONNX Runtime fp32", "OpenVINO fp32"} <= {row.key for row in PREDICTION}


def test_without_bf16_there_is_no_row_of_it() -> None:
    assert {row.precision for row in (*training.rows(("fp32",)), *prediction.rows(("fp32",)))} == {"fp32"}


@pytest.mark.parametrize("row", PREDICTION, ids=lambda row: row.key)
def test_every_library_predicts_the_same_logits(row: Contender, case: Case) -> None:
    if row.absent:
        pytest.skip(row.absent)
    if row.key == "Vitrail bf16" and (reason := needs_bf16(torch.device("cpu"))) is not None:
        pytest.skip(reason)
    (reference,) = (one for one in PREDICTION if one.key == run.OURS_FP32)
    difference = run.difference(array(row.build(case, row.precision)()), array(reference.build(case, "fp32")()))
    assert difference is not None
    assert difference < (1e-5 if row.precision == "fp32" else 0.1)


@pytest.mark.parametrize("row", TRAINING, ids=lambda row: row.key)
def test_every_step_runs_again(row: Contender, case: Case) -> None:
    if row.absent:
        pytest.skip(row.absent)
    step = row.build(case, row.precision)
    step()
    step()


@pytest.mark.parametrize("row", ceiling.rows(("fp32", "bf16"), "cpu"), ids=lambda row: row.key)
def test_every_ceiling_runs(row: Contender, case: Case) -> None:
    row.build(case, row.precision)()
    assert ceiling.flops(row.name, case) == 2 * 2 * 2 * (192 * 576 + 192 * 192 + 2 * 192 * 768)


def test_onednn_computes_the_same_products() -> None:
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    torch.testing.assert_close(ceiling.onednn_linear(x, weight), x @ weight.T)


def test_a_gpu_has_large_squares_as_well() -> None:
    rows = ceiling.rows(("fp32", "bf16"), "cuda:0")
    assert [row.name for row in rows] == [ceiling.MODEL] * 2 + [ceiling.SQUARE] * 2


def test_the_best_ceiling_of_a_type_counts() -> None:
    rows = ceiling.rows(("fp32", "bf16"), "cpu")
    rates = {row.key: [float(index)] * 3 for index, row in enumerate(rows)}
    assert run.best_rates("bf16", rows, rates) == rates["matmul bf16"]
    assert run.best_rates("fp32", rows, rates) == rates["matmul, oneDNN fp32"]
    assert run.best_rates("bf16", [], rates) is None


def test_shares_and_ratios_are_those_within_a_round(case: Case) -> None:
    row = TRAINING[0]
    each = {row.key: [1.0, 10.0, 1.0], run.REFERENCE: [2.0, 20.0, 2.0]}
    gflop = 3 * case.flops * case.batch_size / 1e9
    figures = run.result("training", case, row, each, [2 * gflop, gflop / 5, 2 * gflop], {row.key: run.First(4.0, None)})
    assert figures.images_per_s == {"median": 2.0, "min": 0.2, "max": 2.0}
    assert (figures.ratio, figures.share_of_ceiling) == ({"median": 2.0, "min": 2.0, "max": 2.0}, 0.5)
    assert (figures.first_call_s, figures.logits_difference) == (4.0, None)
    alone = run.result("training", case, row, {row.key: [1.0]}, None, {row.key: run.First(4.0, None)})
    assert (alone.ratio, alone.share_of_ceiling) == (None, None)


def test_a_difference_is_relative_to_the_greatest_logit() -> None:
    assert run.difference(np.array([1.0, -4.0]), np.array([1.0, -5.0])) == 0.2
    assert run.difference(None, np.array([1.0])) is None


def test_missing_packages_are_named() -> None:
    assert machine.missing(("torch",)) is None
    assert machine.missing(("torch", "no_such_a", "no_such_b")) == "no_such_a and no_such_b are not installed"


class Ready(Worker):
    """A worker whose calls take a given time."""

    def __init__(self, seconds: float, *, fails: str = "") -> None:
        self.seconds, self.fails, self.calls = seconds, fails, 0

    def built(self) -> None:
        if self.fails == "built":
            raise Unmeasurable("no kernel")

    def first(self) -> run.First:
        if self.fails == "first":
            raise Unmeasurable("no memory")
        return run.First(self.seconds, None)

    def take(self, times: int = 1) -> float:
        self.calls += times
        return self.seconds * times


def test_a_turn_has_as_many_calls_as_fit() -> None:
    workers: dict[str, Worker] = {
        "fast": Ready(0.01),
        "slow": Ready(0.5),
        "unbuilt": Ready(0, fails="built"),
        "large": Ready(0, fails="first"),
    }
    left_out: dict[str, str] = {}
    first, calls = run.prepare(workers, left_out, until=time.perf_counter() + 3600)
    assert (calls, list(first)) == ({"fast": 100, "slow": 2}, ["fast", "slow"])  # a second each
    assert left_out == {"unbuilt": "no kernel", "large": "no memory"}


def test_without_time_there_is_one_call_a_turn_and_none_to_calibrate() -> None:
    slow = Ready(9.0)
    _, calls = run.prepare({"fast": Ready(0.01), "slow": slow}, {}, until=time.perf_counter() + 10)
    assert calls == {"fast": 1, "slow": 1}
    assert slow.calls == 0


def test_nothing_to_measure_is_an_error_with_a_reason() -> None:
    workers: dict[str, Worker] = {"unbuilt": Ready(0, fails="built")}
    with pytest.raises(ValueError, match="nothing could be measured: no kernel"):
        run.prepare(workers, {}, until=time.perf_counter() + 10)


def test_a_turn_that_fails_names_the_contender() -> None:
    class Failing(Ready):
        def take(self, times: int = 1) -> float:
            raise Unmeasurable("memory")

    with pytest.raises(ValueError, match="timm fp32: memory"):
        run.take("timm fp32", Failing(1.0), 1)
