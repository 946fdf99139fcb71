"""The switch that sends products in fp32 to oneDNN: when it is used, and that it is put back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from vitrail.models import onednn
from vitrail.models.device import Processor
from vitrail.models.onednn import fast_products, onednn_products, routes_products


@pytest.fixture
def fresh() -> Iterator[None]:
    """Answers that are not remembered from or for other tests."""
    for answer in (onednn.mkl_is_slow, onednn.routes_products):
        answer.cache_clear()
    yield
    for answer in (onednn.mkl_is_slow, onednn.routes_products):
        answer.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "slow"),
    [("GenuineIntel", False), ("AuthenticAMD", True), ("HygonGenuine", True)],
)
def test_mkl_is_fast_on_intels_processors(vendor: str, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "processor", lambda: Processor("a processor", vendor, frozenset()))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    onednn.mkl_is_slow.cache_clear()
    assert onednn.mkl_is_slow() == (slow and hasattr(torch.ops.mkldnn, "_linear_pointwise"))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    onednn.mkl_is_slow.cache_clear()
    assert not onednn.mkl_is_slow()
    onednn.mkl_is_slow.cache_clear()


PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "another route": (lambda a, b: (a.double() @ b.double()).float(), True),
    "the same route": (lambda a, b: a @ b, False),
    "rounded to bf16": (lambda a, b: (a.bfloat16() @ b.bfloat16()).float(), False),
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_route_has_to_be_another_one_and_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    product, taken = PRODUCTS[name]
    monkeypatch.setattr(onednn, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(onednn, "product", product)
    assert routes_products() is taken


@pytest.mark.usefixtures("fresh")
def test_no_route_where_mkl_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "mkl_is_slow", lambda: False)
    assert not routes_products()


def test_products_for_which_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    monkeypatch.setattr(onednn, "routes_products", lambda: True)
    with fast_products(torch.zeros(1)):
        assert switch.fp32_precision == "bf16"
    for other in (torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.float64), torch.zeros(1, device="meta")):
        with fast_products(other):
            assert switch.fp32_precision == before
    monkeypatch.setattr(onednn, "routes_products", lambda: False)
    with fast_products(torch.zeros(1)):
        assert switch.fp32_precision == before


def test_the_switch_is_put_back_by_the_last_thread() -> None:
    """In whichever order threads come and go, and after an error."""
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with onednn_products():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with onednn_products(), onednn_products():
        thread.start()
        assert inside.wait(10)
    assert switch.fp32_precision == "bf16"
    leave.set()
    thread.join()
    assert switch.fp32_precision == before
    with pytest.raises(ZeroDivisionError), onednn_products():
        raise ZeroDivisionError
    assert switch.fp32_precision == before


@pytest.mark.skipif(not routes_products(), reason="oneDNN is no other route here")
def test_products_stay_in_fp32() -> None:
    draws = torch.Generator().manual_seed(0)
    for shape in ((12, 197, 64, 197), (1, 768, 3152, 3072), (36, 50, 197, 64)):
        count, rows, inner, columns = shape
        a, b = torch.randn(count, rows, inner, generator=draws), torch.randn(count, inner, columns, generator=draws)
        exact = a.double() @ b.double()
        with onednn_products():
            got = a @ b
        assert (got - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.usefixtures("fresh")
def test_the_answer_does_not_depend_on_what_asks() -> None:
    expected = routes_products()
    routes_products.cache_clear()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.device("meta"):
        assert routes_products() is expected
