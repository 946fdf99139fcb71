"""Bodies of every malformed kind: an answer below 500 that is a problem document, and a server that still answers."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from serving import LONG, app_of, picture

from vitrail.serve.models import ServedModel

PATHS = ("/v1/predict", "/v1/embed", "/v1/explain")
KINDS = (
    "image/png",
    "application/octet-stream",
    "application/json",
    "multipart/form-data; boundary=x",
    "multipart/form-data",
    "",
)
PICTURES = tuple(picture(seed, kind=kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")))
Request = tuple[str, str, bytes]


class Client:
    """A client of one app that lives as long as the tests of a module."""

    def __init__(self, model: ServedModel) -> None:
        self.runner = asyncio.Runner()
        app = app_of(model, max_body_bytes=200_000, max_images=4, max_pixels=10_000)
        transport = httpx.ASGITransport(app)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://vitrail", timeout=LONG)

    def send(self, path: str, kind: str, body: bytes) -> httpx.Response:
        headers = {"Content-Type": kind} if kind else {}
        return self.runner.run(self.client.post(path, content=body, headers=headers))

    def close(self) -> None:
        self.runner.run(self.client.aclose())
        self.runner.close()


@pytest.fixture(scope="module")
def client(model: ServedModel) -> Iterator[Client]:
    client = Client(model)
    yield client
    client.close()


def require_answer(response: httpx.Response) -> None:
    """Hold an answer to be one, or a problem of the client's."""
    if response.status_code == 200:
        return
    assert response.status_code < 500, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == response.status_code
    assert "\n" not in response.json()["detail"]


@st.composite
def damaged_pictures(draw: st.DrawFn) -> bytes:
    """Image files with bytes changed, cut off, put in or repeated."""
    contents = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(contents)))
        match draw(st.sampled_from(("change", "cut", "insert"))):
            case "change":
                contents[place : place + 1] = draw(st.binary(min_size=1, max_size=4))
            case "cut":
                del contents[place:]
            case "insert":
                contents[place:place] = draw(st.binary(max_size=20))
    return bytes(contents)


anything = st.binary(max_size=200) | damaged_pictures() | st.sampled_from(PICTURES)
json_values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=20) | anything.map(lambda body: base64.b64encode(body).decode()),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(("image", "images", "x")), inner, max_size=3),
    max_leaves=8,
)
parts = st.lists(
    st.tuples(
        st.sampled_from((b'name="a"; filename="b"', b'name="a"', b"", b'filename="c"', b"name=\xff; filename*=utf-8''%ff")),
        anything,
    ),
    max_size=6,
)


def form_of(items: list[tuple[bytes, bytes]]) -> bytes:
    heads = (b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + body + b"\r\n" for head, body in items)
    return b"".join(heads) + b"--x--\r\n"


bodies = anything | json_values.map(lambda value: json.dumps(value).encode()) | parts.map(form_of)
requests = st.tuples(st.sampled_from(PATHS), st.sampled_from(KINDS), bodies)


@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(requests)
def test_no_body_breaks_the_server(client: Client, request: Request) -> None:
    require_answer(client.send(*request))


def test_the_server_still_answers_well(client: Client) -> None:
    assert client.send("/v1/predict", "image/png", PICTURES[0]).status_code == 200


@pytest.mark.slow
def test_ten_thousand_bodies_do_not(client: Client) -> None:
    draw = random.Random(0)
    for _ in range(10_000):
        path, kind = draw.choice(PATHS[:2]), draw.choice(KINDS)
        contents = bytearray(draw.choice(PICTURES))
        for _ in range(draw.randrange(1, 5)):
            place = draw.randrange(len(contents) + 1)
            contents[place : place + draw.randrange(40)] = draw.randbytes(draw.randrange(40))
            del contents[draw.choice((draw.randrange(len(contents) + 1), len(contents))) :]
        body = bytes(contents)
        if kind == "application/json":
            body = json.dumps(
                {draw.choice(("image", "images")): draw.choice((base64.b64encode(body).decode(), [1], None))}
            ).encode()
            body = body[: draw.choice((len(body), draw.randrange(len(body))))]
        elif kind.startswith("multipart"):
            body = form_of([(b'name="a"; filename="b"', body)])[: draw.choice((10_000, draw.randrange(200)))]
        require_answer(client.send(path, kind, body))
    assert client.send("/v1/predict", "image/png", PICTURES[0]).status_code == 200


def test_what_openapi_allows_is_answered_as_it_says(model: ServedModel) -> None:
    """Calls that schemathesis makes of our OpenAPI: no 5xx, documented statuses, types and schemas."""
    app = app_of(model, max_body_bytes=200_000)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.checks.CHECKS.get_one("status_code_conformance"),
        schemathesis.checks.CHECKS.get_one("content_type_conformance"),
        schemathesis.checks.CHECKS.get_one("response_schema_conformance"),
    ]

    @hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def call(data: st.DataObject) -> None:
        for operation in operations:
            case = data.draw(operation.as_strategy())
            case.call_and_validate(checks=checks)

    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 7
    call()
