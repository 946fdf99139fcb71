"""The endpoints: every form of a body gives the predictor's own answers, and every limit a problem of one line."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from serving import CLASSES, LONG, PNG, Held, app_of, calls, make_run, picture, served, until

from vitrail.data.decode import eval_view
from vitrail.explain import METHODS
from vitrail.serve import schemas
from vitrail.serve.app import create_app
from vitrail.serve.models import ServedModel, Share, load_models, share_of, split_name
from vitrail.serve.settings import LOOPBACK_NAMES, ServeSettings, is_loopback


def in_base64(contents: bytes) -> str:
    return base64.b64encode(contents).decode()


def expected(model: ServedModel, contents: list[bytes], **options: Any) -> list[dict[str, Any]]:
    """The predictor's answers for image files."""
    pictures = [Image.open(io.BytesIO(one)) for one in contents]
    return [one.to_dict() for one in model.predictor.predict(pictures, **options)]


def problem(response: httpx.Response, status: int) -> str:
    """Hold an answer to be a problem of this status. Return its line."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    fields = schemas.ProblemAnswer.model_validate_json(response.content)
    assert fields.status == status
    assert "\n" not in fields.detail
    assert "Traceback" not in response.text
    return fields.detail


def close(given: Any, wanted: Any) -> None:
    """Hold two answers to be equal, numbers up to rounding: batches of other sizes round in other ways."""
    if isinstance(wanted, dict):
        assert given.keys() == wanted.keys()
        for key in wanted:
            close(given[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(given) == len(wanted)
        for pair in zip(given, wanted, strict=True):
            close(*pair)
    elif isinstance(wanted, float):
        assert given == pytest.approx(wanted, abs=1e-5)
    else:
        assert given == wanted


def test_all_forms_of_a_body_give_the_predictors_answers(model: ServedModel) -> None:
    files = [picture(seed, kind=kind) for seed, kind in enumerate(("PNG", "WEBP", "BMP"))]

    async def call(client: httpx.AsyncClient) -> None:
        raw = await client.post("/v1/predict", content=files[0], headers=PNG)
        octets = await client.post("/v1/predict", content=files[0], headers={"Content-Type": "application/octet-stream"})
        one = await client.post("/v1/predict", json={"image": in_base64(files[0])})
        many = await client.post("/v1/predict", json={"images": [in_base64(file) for file in files]})
        form = await client.post("/v1/predict", files=[("images", (f"{k}.x", file)) for k, file in enumerate(files)])
        for response in (raw, octets, one, many, form):
            assert response.status_code == 200, response.text
            answer = schemas.PredictAnswer.model_validate_json(response.content)
            assert (answer.model.name, answer.model.version) == ("animals", model.version)
        for response in (raw, octets, one):
            close(response.json()["predictions"], expected(model, files[:1]))
        close(many.json()["predictions"], expected(model, files))
        named = [wanted | {"path": f"{place}.x"} for place, wanted in enumerate(expected(model, files))]
        close(form.json()["predictions"], named)

    calls(app_of(model), call)


def test_options_are_the_predictors(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/predict?top=2&coverage=0.5", content=picture(), headers=PNG)
        close(response.json()["predictions"], expected(model, [picture()], top=2, coverage=0.5))
        assert "classes" in response.json()["predictions"][0]
        for query in ("top=0", "top=x", "coverage=1.5", "coverage=nan", "top=1&coverage=x"):
            detail = problem(await client.post(f"/v1/predict?{query}", content=picture(), headers=PNG), 422)
            assert detail.startswith(("top: ", "coverage: "))

    calls(app_of(model), call)


def test_requests_that_meet_in_a_batch_keep_their_own_options(animals: Path) -> None:
    model = served(animals, held=True)
    predictor = model.predictor
    assert isinstance(predictor, Held)
    files = [picture(seed) for seed in range(4)]
    queries = ["top=1", "top=5&coverage=0.9", "top=3", "top=5&coverage=0.5"]

    async def call(client: httpx.AsyncClient) -> None:
        first = asyncio.create_task(client.post("/v1/predict", content=picture(9), headers=PNG))
        await until(predictor.begun.is_set)
        tasks = [
            asyncio.create_task(client.post(f"/v1/predict?{query}", content=file, headers=PNG))
            for query, file in zip(queries, files, strict=True)
        ]
        await asyncio.sleep(0.05)
        predictor.go.set()
        assert (await first).status_code == 200
        answers = [(await task).json()["predictions"][0] for task in tasks]
        assert [len(answer["top"]) for answer in answers] == [1, 5, 3, 5]
        assert ["classes" in answer for answer in answers] == [False, True, False, True]
        for answer, file, top in zip(answers, files, (1, 5, 3, 5), strict=True):
            close(answer["top"], expected(model, [file], top=top)[0]["top"])

    calls(app_of(model), call)


def test_a_bad_image_costs_only_its_own_place(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        files = [("a", ("good.png", picture())), ("a", ("bad.png", b"no image")), ("b", ("cut.png", picture()[:-40]))]
        response = await client.post("/v1/predict", files=files)
        assert response.status_code == 200
        good, bad, cut = response.json()["predictions"]
        assert good["label"] in CLASSES
        assert bad["error"].startswith("not an image")
        assert "truncated" in cut["error"]
        assert (bad["path"], bad["label"], bad["top"]) == ("bad.png", None, [])
        embeddings = (await client.post("/v1/embed", files=files)).json()["embeddings"]
        assert [one["error"] is None for one in embeddings] == [True, False, False]
        for path in ("/v1/predict", "/v1/embed", "/v1/explain"):
            detail = problem(await client.post(path, content=b"no image", headers=PNG), 422)
            assert "not an image" in detail

    calls(app_of(model), call)


def test_a_model_of_several_labels_answers_with_them(tmp_path: Path) -> None:
    model = served(make_run(tmp_path / "labels", task="multi-label"), "labels")

    async def call(client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/predict", files=[("x", ("a", picture())), ("x", ("b", b"no"))])
        schemas.PredictAnswer.model_validate_json(response.content)
        good, bad = response.json()["predictions"]
        close(good["labels"], expected(model, [picture()])[0]["labels"])
        assert bad["labels"] == []
        problem(await client.post("/v1/predict?coverage=0.9", content=picture(), headers=PNG), 422)

    calls(app_of(model), call)


@pytest.mark.parametrize("pool", ["head", "cls", "avg"])
def test_embeddings_are_the_models(model: ServedModel, pool: str) -> None:
    from vitrail.data.augment import normalise
    from vitrail.deploy.embeddings import FEATURES

    async def call(client: httpx.AsyncClient) -> None:
        response = await client.post(f"/v1/embed?pool={pool}", content=picture(), headers=PNG)
        answer = schemas.EmbedAnswer.model_validate_json(response.content)
        view = normalise(eval_view(picture(), model.predictor.preprocessing)[None], model.predictor.preprocessing)
        with torch.inference_mode():
            wanted = FEATURES[pool](model.model.features(view), model.model)[0].tolist()
        assert answer.embeddings[0].embedding == pytest.approx(wanted, abs=1e-5)

    calls(app_of(model), call)


def test_a_pool_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    from vitrail import create_model
    from vitrail.weights import save_model

    plain = create_model("Ti/8", img_size=16, num_classes=3, depth=1, embed_dim=16, num_heads=2, class_token=False, pool="avg")
    plain.preprocessing = served(make_run(tmp_path / "other")).predictor.preprocessing
    (tmp_path / "plain").mkdir()
    save_model(plain, tmp_path / "plain", data="animals")

    async def call(client: httpx.AsyncClient) -> None:
        detail = problem(await client.post("/v1/embed?pool=cls", content=picture(), headers=PNG), 422)
        assert "no class token" in detail

    calls(app_of(served(tmp_path / "plain", "plain")), call)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains(model: ServedModel, method: str) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        response = await client.post(f"/v1/explain?method={method}", content=picture(), headers=PNG)
        assert response.status_code == 200, response.text
        answer = schemas.ExplainAnswer.model_validate_json(response.content)
        assert answer.method == method
        assert np.array(answer.maps[0].map).shape == (2, 2)
        wanted = METHODS[method].run(model.model, picture()).numpy()[0]
        np.testing.assert_allclose(answer.maps[0].map, wanted, atol=1e-5)

    calls(app_of(model), call)


def test_an_explanation_has_a_class_of_choice_scores_and_a_picture(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        query = "/v1/explain?method=relevance&target=dog&steps=3"
        answer = (await client.post(query, content=picture(), headers=PNG)).json()
        assert answer["target"] == "dog"
        assert all(0 <= answer["maps"][0][score] <= 1 for score in ("insertion", "deletion", "random_insertion"))
        response = await client.post(f"{query}&format=png", content=picture(), headers=PNG)
        assert response.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(response.content)).width > 100
        all_heads = (
            await client.post("/v1/explain?method=attention&layers=all&heads=all", content=picture(), headers=PNG)
        ).json()
        assert len(all_heads["maps"]) == 4
        assert len({one["label"] for one in all_heads["maps"]}) == 4

    calls(app_of(model), call)


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("method=magic", 'method "magic" is none of'),
        ("method=relevance&target=cow", 'class "cow" is none'),
        ("target=99", "class 99 does not exist"),
        ("method=attention&target=cat", "knows no class"),
        ("method=attention&layers=7", "layer 7 does not exist"),
        ("method=attention&layers=a", 'layers "a"'),
        ("method=attention&heads=9", "head 9 does not exist"),
        ("method=attention&heads=first", 'heads "first"'),
        ("method=attention&query=400,1", "outside"),
        ("query=left", 'query "left"'),
        ("steps=51", "more than the 50"),
        ("discard_ratio=0.5&method=relevance", "discard_ratio is for"),
    ],
)
def test_an_explanation_that_makes_no_sense_is_refused_in_a_line(model: ServedModel, query: str, line: str) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        assert line in problem(await client.post(f"/v1/explain?{query}", content=picture(), headers=PNG), 422)

    calls(app_of(model), call)


def test_one_image_at_a_time_is_explained(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        assert "one image" in problem(await client.post("/v1/explain", json={"images": [in_base64(picture())] * 2}), 422)

    calls(app_of(model), call)


def test_several_models_have_names(model: ServedModel, tmp_path: Path) -> None:
    other = served(make_run(tmp_path / "other", seed=1), "other")

    async def call(client: httpx.AsyncClient) -> None:
        first = (await client.post("/v1/predict", content=picture(), headers=PNG)).json()
        second = (await client.post("/v1/predict?model=other", content=picture(), headers=PNG)).json()
        assert (first["model"]["name"], second["model"]["name"]) == ("animals", "other")
        assert first["model"]["version"] != second["model"]["version"]
        close(second["predictions"], expected(other, [picture()]))
        detail = problem(await client.post("/v1/predict?model=othr", content=picture(), headers=PNG), 404)
        assert 'did you mean "other"' in detail
        answer = schemas.ModelsAnswer.model_validate_json((await client.get("/v1/model")).content)
        assert [one.name for one in answer.models] == ["animals", "other"]
        one = schemas.ModelsAnswer.model_validate_json((await client.get("/v1/model?model=other")).content).models
        assert [each.name for each in one] == ["other"]

    calls(app_of(model, other), call)


def test_the_model_describes_itself(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        answer = schemas.ModelsAnswer.model_validate_json((await client.get("/v1/model")).content)
        (one,) = answer.models
        assert one.version == model.version
        assert re.fullmatch("[0-9a-f]{64}", one.version)
        assert (one.classes, one.depth, one.heads, one.grid) == (list(CLASSES), 2, 2, (2, 2))
        assert [method.name for method in one.methods] == list(METHODS)
        assert one.calibration is not None
        assert one.calibration.temperature == 2.0
        assert answer.limits.max_images == 64

    calls(app_of(model), call)


# --------------------------------------------------------------------------------------------------------------------
# Limits


def test_health_answers_while_the_model_is_held_and_the_queue_is_full(animals: Path) -> None:
    model = served(animals, held=True)
    predictor = model.predictor
    assert isinstance(predictor, Held)

    async def call(client: httpx.AsyncClient) -> None:
        inside = [asyncio.create_task(client.post("/v1/predict", content=picture(), headers=PNG)) for _ in range(3)]
        await until(predictor.begun.is_set)
        await until(lambda: "vitrail_images_inside" in app.state.engine.metrics_text().decode())
        for path in ("/healthz", "/readyz", "/metrics", "/v1/model"):
            assert (await client.get(path)).status_code == 200
        refused = await client.post("/v1/predict", content=picture(), headers=PNG)
        assert "full" in problem(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        several = {"images": [in_base64(picture())] * 3}
        problem(await client.post("/v1/predict", json=several), 429)
        embedding = asyncio.create_task(client.post("/v1/embed", content=picture(), headers=PNG))  # in a queue of its own
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in [*inside, embedding])
        predictor.go.set()
        assert [(await task).status_code for task in [*inside, embedding]] == [200] * 4
        assert (await client.post("/v1/predict", json=several)).status_code == 200

    app = app_of(model, queue_images=3, max_images=3)
    calls(app, call)


def test_a_late_answer_is_503(animals: Path) -> None:
    model = served(animals, held=True)
    predictor = model.predictor
    assert isinstance(predictor, Held)

    async def call(client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/predict", content=picture(), headers=PNG)
        assert "not there in time" in problem(response, 503)
        assert response.headers["retry-after"] == "1"
        predictor.go.set()

    calls(app_of(model, timeout_s=0.05), call)


def test_the_end_answers_what_is_inside_and_takes_no_more(animals: Path) -> None:
    model = served(animals, held=True)
    predictor = model.predictor
    assert isinstance(predictor, Held)

    async def call(client: httpx.AsyncClient) -> None:
        inside = asyncio.create_task(client.post("/v1/predict", content=picture(), headers=PNG))
        await until(predictor.begun.is_set)
        closing = asyncio.create_task(app.state.engine.close())
        await asyncio.sleep(0)
        problem(await client.get("/readyz"), 503)
        problem(await client.post("/v1/predict", content=picture(), headers=PNG), 503)
        problem(await client.post("/v1/explain", content=picture(), headers=PNG), 503)
        assert (await client.get("/healthz")).status_code == 200
        predictor.go.set()
        answer = await inside
        assert answer.status_code == 200, answer.text
        await closing

    app = app_of(model)
    calls(app, call)


def test_explanations_have_a_queue_and_a_time_of_their_own(animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from vitrail.serve import routes

    begun, go = threading.Event(), threading.Event()

    def held(*arguments: Any) -> dict[str, Any]:
        begun.set()
        assert go.wait(LONG)
        return {"done": True}

    monkeypatch.setattr(routes, "explain_json", held)

    async def call(client: httpx.AsyncClient) -> None:
        first = asyncio.create_task(client.post("/v1/explain", content=picture(), headers=PNG))
        await until(begun.is_set)
        problem(await client.post("/v1/explain", content=picture(), headers=PNG), 429)
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200
        assert "longer than 0.3 s" in problem(await first, 503)
        problem(await client.post("/v1/explain", content=picture(), headers=PNG), 429)  # its thread is still busy
        go.set()
        await until(lambda: app.state.engine.model(None).explaining == 0)
        assert (await client.post("/v1/explain", content=picture(), headers=PNG)).json() == {"done": True}

    app = app_of(served(animals), queue_explanations=1, explain_timeout_s=0.3)
    calls(app, call)


def test_a_body_above_the_limit_is_refused_declared_or_not(model: ServedModel) -> None:
    read = 0

    async def in_pieces() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield bytes(1000)

    async def call(client: httpx.AsyncClient) -> None:
        problem(await client.post("/v1/predict", content=bytes(20_001), headers=PNG), 413)
        problem(await client.post("/v1/predict", content=in_pieces(), headers=PNG), 413)
        assert (await client.post("/v1/predict", content=picture(), headers=PNG)).status_code == 200
        big_form = [("a", ("a.png", bytes(30_000)))]
        problem(await client.post("/v1/predict", files=big_form), 413)

    calls(app_of(model, max_body_bytes=20_000), call)
    assert read <= 1000


def test_a_body_that_does_not_arrive_is_given_up(model: ServedModel) -> None:
    async def stuck() -> Any:
        yield b"x"
        await asyncio.sleep(LONG)

    async def call(client: httpx.AsyncClient) -> None:
        assert "too long to arrive" in problem(await client.post("/v1/predict", content=stuck(), headers=PNG), 408)

    calls(app_of(model, body_timeout_s=0.05), call)


def test_all_bodies_together_have_a_limit(animals: Path) -> None:
    model = served(animals, held=True)
    predictor = model.predictor
    assert isinstance(predictor, Held)
    body = picture(kind="BMP")

    async def call(client: httpx.AsyncClient) -> None:
        inside = [asyncio.create_task(client.post("/v1/predict", content=body, headers=PNG)) for _ in range(2)]
        await until(predictor.begun.is_set)
        refused = await client.post("/v1/predict", content=body, headers=PNG)
        assert "too many bodies" in problem(refused, 429)
        predictor.go.set()
        assert [(await task).status_code for task in inside] == [200, 200]
        assert (await client.post("/v1/predict", content=body, headers=PNG)).status_code == 200

    calls(app_of(model, max_body_bytes=2 * len(body), max_inside_bytes=2 * len(body) + 10), call)


def test_images_have_a_limit_in_number_and_in_pixels(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        three = [in_base64(picture())] * 3
        assert "3 images" in problem(await client.post("/v1/predict", json={"images": three}), 413)
        problem(await client.post("/v1/predict", files=[("a", ("a.png", picture()))] * 3), 413)
        large = picture(size=(40, 41))
        detail = problem(await client.post("/v1/predict", content=large, headers=PNG), 422)
        assert "41 x 40 pixels, more than 0.0016 megapixels" in detail
        problem(await client.post("/v1/explain", content=large, headers=PNG), 422)
        problem(await client.post("/v1/embed", content=large, headers=PNG), 422)

    calls(app_of(model, max_images=2, max_pixels=1600), call)


def test_an_image_that_takes_too_long_to_decode_is_given_up(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from vitrail.serve import engine

    free, slow = threading.Event(), picture(7)

    def decoding(contents: bytes, *arguments: Any, **options: Any) -> torch.Tensor:
        assert contents != slow or free.wait(LONG)
        return eval_view(contents, *arguments, **options)

    monkeypatch.setattr(engine, "eval_view", decoding)

    async def call(client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/predict", files=[("a", ("slow", slow)), ("a", ("quick", picture()))])
        late, quick = response.json()["predictions"]
        assert "longer than 0.05 s" in late["error"]
        assert quick["error"] is None
        free.set()

    calls(app_of(model, decode_timeout_s=0.05), call)


def test_bodies_of_another_kind_are_refused(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        for body, headers, status in (
            (b"x", {"Content-Type": "text/plain"}, 415),
            (b"x", {}, 415),
            (b"", PNG, 422),
            (b"{", {"Content-Type": "application/json"}, 400),
            (b"[1]", {"Content-Type": "application/json"}, 422),
            (b'{"image": 5}', {"Content-Type": "application/json"}, 422),
            (b'{"images": []}', {"Content-Type": "application/json"}, 422),
            (b'{"image": "*"}', {"Content-Type": "application/json"}, 422),
            (b'{"image": "data:image/png;base64,AAAA"}', {"Content-Type": "application/json"}, 422),
            (b'{"image": "http://127.0.0.1/a.png"}', {"Content-Type": "application/json"}, 422),
            (b"\xff\xfe", {"Content-Type": "application/json"}, 400),
            (b"[" * 100_000, {"Content-Type": "application/json"}, 400),
            (b"x", {"Content-Type": "multipart/form-data"}, 400),
            (b"x", {"Content-Type": "multipart/form-data; boundary=a"}, 400),
            (b"--a\r\nX: " + b"y" * 100_000, {"Content-Type": "multipart/form-data; boundary=a"}, 400),
        ):
            problem(await client.post("/v1/predict", content=body, headers=headers), status)
        problem(await client.post("/v1/predict", data={"images": "text"}, files={"images": ("a.png", picture())}), 400)
        problem(await client.get("/v1/predict"), 405)
        problem(await client.get("/v1/nothing"), 404)

    calls(app_of(model), call)


@pytest.mark.parametrize("path", ["/etc/passwd", "file:///etc/passwd", "../../run", "~/x"])
def test_a_path_of_the_client_is_a_name_and_no_file(model: ServedModel, path: str) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/predict", files={"images": (path, picture())})
        assert response.status_code == 200
        close(response.json()["predictions"], [expected(model, [picture()])[0] | {"path": path}])
        assert (await client.post("/v1/predict", json={"image": path})).status_code == 422
        for url in ("/../pyproject.toml", "/%2e%2e/settings.py", "//etc/passwd", "/static/../app.py"):
            assert (await client.get(url)).status_code == 404

    calls(app_of(model), call)


# --------------------------------------------------------------------------------------------------------------------
# Who may ask, what is said


def test_a_token_guards_all_but_health(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        for given in (None, "Bearer wrong", "Bearer", "Basic secret", "secret", "Bearer secret2", "Bearer \xe9"):
            headers = {} if given is None else {"Authorization": given.encode("latin-1")}
            for path in ("/v1/model", "/metrics", "/openapi.json"):
                refused = await client.get(path, headers=headers)
                problem(refused, 401)
                assert refused.headers["www-authenticate"] == "Bearer"
            assert (await client.post("/v1/predict", content=picture(), headers={**PNG, **headers})).status_code == 401
        for scheme in ("Bearer", "bearer"):
            headers = {"Authorization": f"{scheme} secret"}
            assert (await client.get("/metrics", headers=headers)).status_code == 200
            assert (await client.post("/v1/predict", content=picture(), headers={**PNG, **headers})).status_code == 200

    calls(app_of(model, token="secret"), call)


def test_a_server_answers_to_its_names_alone(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:9", "[::1]:8000", "[::1]"):
            assert (await client.get("/v1/model", headers={"Host": name})).status_code == 200
        for name in ("evil.example", "localhost.evil.example", "localhost:80:80", "", "evil.example:8000", "127.0.0.1.evil"):
            refused = await client.get("/v1/model", headers={"Host": name})
            assert "another name" in problem(refused, 421)
            assert refused.headers["x-content-type-options"] == "nosniff"

    calls(app_of(model, hosts=LOOPBACK_NAMES), call)


def test_other_origins_are_closed_unless_named(model: ServedModel) -> None:
    ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}

    async def closed(client: httpx.AsyncClient) -> None:
        for response in (await client.get("/v1/model", headers=ask), await client.options("/v1/predict", headers=ask)):
            assert "access-control-allow-origin" not in response.headers

    async def opened(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/model", headers=ask)).headers["access-control-allow-origin"] == "https://a.example"
        assert (await client.options("/v1/predict", headers=ask)).status_code == 200
        other = await client.get("/v1/model", headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers

    calls(app_of(model), closed)
    calls(app_of(model, origins=("https://a.example",), token="secret"), opened, headers={"Authorization": "Bearer secret"})


def test_every_answer_has_headers_that_browsers_honour(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        answers = [
            await client.get("/healthz"),
            await client.get("/nothing"),
            await client.get("/v1/model"),
            await client.post("/v1/predict", content=b"x", headers=PNG),
            await client.post("/v1/predict", content=bytes(2000), headers=PNG),
        ]
        for answer in answers:
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert "server" not in answer.headers
        assert answers[2].headers["content-security-policy"].startswith("default-src 'none'")
        assert answers[2].headers["cache-control"] == "no-store"

    calls(app_of(model, max_body_bytes=1000), call)


def test_an_error_of_ours_is_logged_and_not_told(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vitrail.serve import engine

    def broken(*arguments: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("the secret of /some/place")

    monkeypatch.setattr(engine, "eval_view", broken)

    async def call(client: httpx.AsyncClient) -> None:
        response = await client.post("/v1/predict", content=picture(), headers=PNG)
        assert problem(response, 500) == "an error of the server; its log says more"
        assert "secret" not in response.text
        assert "x-content-type-options" in response.headers

    calls(app_of(model), call)
    assert "the secret" in caplog.text


def test_the_access_log_is_json_without_image_data(model: ServedModel, capsys: pytest.CaptureFixture[str]) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        await client.post("/v1/predict?top=1", files={"images": ("private.png", picture())})
        await client.get("/nothing%0aline")

    calls(create_app({"animals": model}, ServeSettings(token="t0ken")), call, headers={"Authorization": "Bearer t0ken"})
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("POST", "/v1/predict", 200),
        ("GET", lines[1]["path"], 404),
    ]
    assert lines[0]["received"] > len(picture())
    assert lines[0]["sent"] > 100
    assert not any(word in json.dumps(lines) for word in ("private", "t0ken", "top=1"))


def test_metrics_count_requests_and_batches(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            await client.post("/v1/predict", content=picture(), headers=PNG)
        await client.post("/v1/predict", content=b"x", headers=PNG)
        await client.get("/made-up")
        await client.request("BREW", "/also-made-up")
        text = (await client.get("/metrics")).text
        assert 'vitrail_requests_total{method="POST",route="/v1/predict",status="200"} 2.0' in text
        assert 'vitrail_requests_total{method="POST",route="/v1/predict",status="422"} 1.0' in text
        assert 'vitrail_requests_total{method="GET",route="other",status="404"} 1.0' in text
        assert 'vitrail_batch_images_sum{model="animals",work="predict"} 2.0' in text
        assert "made-up" not in text
        assert "BREW" not in text

    calls(app_of(model), call)
    calls(app_of(model), lambda client: _no_count(client))  # another app has numbers of its own


async def _no_count(client: httpx.AsyncClient) -> None:
    assert "vitrail_batch_images_sum" not in (await client.get("/metrics")).text


def test_openapi_describes_every_form_and_error(model: ServedModel) -> None:
    async def call(client: httpx.AsyncClient) -> None:
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {"/v1/predict", "/v1/embed", "/v1/explain", "/v1/model", "/healthz", "/readyz", "/metrics"} <= paths.keys()
        predict = paths["/v1/predict"]["post"]
        kinds = {"image/png", "application/octet-stream", "multipart/form-data", "application/json"}
        assert kinds <= predict["requestBody"]["content"].keys()
        assert {"200", "401", "413", "415", "422", "429", "503"} <= predict["responses"].keys()
        assert predict["responses"]["429"]["content"].keys() == {"application/problem+json"}

    calls(app_of(model), call)


def test_the_page_is_served_from_memory(model: ServedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrail.serve import page

    (tmp_path / "parts").mkdir()
    (tmp_path / "index.html").write_text("<title>page</title>")
    (tmp_path / "parts" / "a.js").write_text("export const a = 1")
    (tmp_path.parent / "secret.txt").write_text("secret")
    monkeypatch.setattr(page, "STATIC", tmp_path)

    async def call(client: httpx.AsyncClient) -> None:
        (tmp_path / "index.html").unlink()
        first = await client.get("/")
        assert "<title>page" in first.text
        assert first.headers["content-type"].startswith("text/html")
        assert "script" not in first.headers["content-security-policy"]
        assert first.headers["content-security-policy"].startswith("default-src 'self'")
        assert (await client.get("/", headers={"If-None-Match": first.headers["etag"]})).status_code == 304
        script = await client.get("/parts/a.js")
        assert script.headers["content-type"].startswith("text/javascript")
        for url in ("/parts", "/parts/../index.html/x", "/../secret.txt", "/%2e%2e/secret.txt", "/parts/..%2f..%2fsecret.txt"):
            problem(await client.get(url), 404)
        problem(await client.post("/"), 405)
        assert (await client.get("/healthz")).json() == {"status": "ok"}

    calls(app_of(model, token="secret"), call)


# --------------------------------------------------------------------------------------------------------------------
# Settings and names


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"queue_images": 0}, "queue_images 0 must be at least 1"),
        ({"timeout_s": 0.0}, "timeout_s 0.0 must be a number above 0"),
        ({"timeout_s": float("nan")}, "must be a number above 0"),
        ({"max_images": 9, "queue_images": 8}, "max_images 9 is above queue_images 8"),
        ({"max_body_bytes": 9, "max_inside_bytes": 8}, "max_body_bytes 9 is above max_inside_bytes 8"),
        ({"token": ""}, "the token must be"),
        ({"token": "two words"}, "the token must be"),
        ({"token": "é"}, "the token must be"),
        ({"origins": ("example.org",)}, 'origin "example.org" is no origin'),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        ServeSettings(**options)


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(ServeSettings(token="secret"))


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("example", False)],
)
def test_loopback_is_known(host: str, inside: bool) -> None:
    assert is_loopback(host) is inside


def test_models_have_the_names_of_their_runs_or_given_ones(animals: Path, tmp_path: Path) -> None:
    assert split_name(f"new={animals}") == ("new", str(animals))
    assert split_name(str(animals)) == ("animals", str(animals))
    assert split_name(str(animals / "model.safetensors")) == ("model", str(animals / "model.safetensors"))
    assert split_name("timm/vit_tiny_patch16_224.augreg") == ("vit_tiny_patch16_224.augreg", "timm/vit_tiny_patch16_224.augreg")
    with_equals = tmp_path / "a=b"
    with_equals.mkdir()
    assert split_name(str(with_equals)) == ("a-b", str(with_equals))
    models = load_models([str(animals), f"again={animals}"], device="cpu", backend="fp32")
    assert list(models) == ["animals", "again"]
    assert models["animals"].version == models["again"].version
    with pytest.raises(ValueError, match='two models are called "animals"'):
        load_models([str(animals), str(animals)], device="cpu", backend="fp32")
    with pytest.raises(ValueError, match="is no name of a model"):
        ServedModel("a b", models["again"].predictor)
    with pytest.raises(ValueError, match="no model to serve"):
        create_app({}, ServeSettings())


@pytest.mark.parametrize(
    ("most", "one", "full", "beside", "share"),
    [
        (2, {1: 0.001, 2: 0.0009}, {}, True, Share(2, 1)),  # a small model
        (2, {1: 0.100, 2: 0.090}, {}, True, Share(2, 1)),  # one whose single image has no use for both cores
        (2, {1: 0.060, 2: 0.033}, {1: 1.0, 2: 0.55}, True, Share(1, 2)),  # a large one
        (16, {3: 0.001, 16: 0.001}, {}, True, Share(4, 3)),
        (2, {}, {1: 1.0, 2: 0.9}, False, Share(1, 1)),  # a small one of another runtime
        (16, {}, {15: 1.0, 16: 0.95}, False, Share(1, 15)),
        (1, {}, {}, True, Share(1, 1)),
    ],
)
def test_cores_are_shared_by_what_a_model_makes_of_them(
    most: int, one: dict[int, float], full: dict[int, float], beside: bool, share: Share
) -> None:
    assert share_of(most, one.__getitem__, full.__getitem__, beside=beside) == share
