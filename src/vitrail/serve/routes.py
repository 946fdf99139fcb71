"""The endpoints: predict, embed, explain, the models, health and metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Query, Request
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from vitrail.explain.sheets import ExplainConfig
from vitrail.serve.engine import Engine
from vitrail.serve.explain import explain_json, explain_png, parse_heads, parse_layers, parse_query
from vitrail.serve.images import read_images
from vitrail.serve.models import ServedModel
from vitrail.serve.problems import Problem
from vitrail.serve.schemas import (
    EmbedAnswer,
    ExplainAnswer,
    HealthAnswer,
    ModelsAnswer,
    PredictAnswer,
    ProblemAnswer,
)


class DirectRoute(APIRoute):
    """Route whose function is called with its defaults, and nothing else, for a request without a query.

    To find out that there are no parameters takes FastAPI longer than all else that it does for a request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of requests."""
        resolved, endpoint = super().get_route_handler(), self.endpoint

        async def handler(request: Request) -> Response:
            if request.scope["query_string"]:
                return await resolved(request)
            return cast(Response, await endpoint(request))

        return handler


router = APIRouter(route_class=DirectRoute)

_FILE = {"schema": {"type": "string", "format": "binary"}}
_IMAGE_KINDS = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")
_BASE64 = {"type": "string", "format": "byte"}
_ONE_JSON = {"type": "object", "properties": {"image": _BASE64}, "required": ["image"], "additionalProperties": False}
_MANY_JSON = {
    "type": "object",
    "properties": {"images": {"type": "array", "items": _BASE64, "minItems": 1}},
    "required": ["images"],
    "additionalProperties": False,
}


def image_body(*, several: bool) -> dict[str, Any]:
    """Return OpenAPI's description of a body with images, in all forms."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    form = {"type": "object", "properties": {"images": files}, "required": ["images"]}
    shape = {"oneOf": [_ONE_JSON, _MANY_JSON]} if several else _ONE_JSON
    content = {
        **dict.fromkeys(_IMAGE_KINDS, _FILE),
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": shape},
    }
    return {"requestBody": {"required": True, "content": content}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of the errors of an endpoint."""
    content = {"application/problem+json": {"schema": ProblemAnswer.model_json_schema()}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in (401, *statuses)}


REFUSALS = problems(400, 404, 408, 413, 415, 422, 429, 503)
"""Errors of every endpoint that takes images."""
ModelName = Annotated[str | None, Query(description="name of the model; the first one without")]


_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def engine_of(request: Request) -> Engine:
    """Return the engine of the app that got a request."""
    return cast(Engine, request.app.state.engine)


def json_response(value: Any) -> Response:
    """Return a value as JSON. Raises ValueError for numbers that are not finite."""
    return Response(_ENCODER.encode(value), media_type="application/json")


def version_of(model: ServedModel) -> dict[str, str]:
    """Return the model's name and version, as every answer has them."""
    return {"name": model.name, "version": model.version}


@router.post("/v1/predict", response_model=PredictAnswer, responses=REFUSALS, openapi_extra=image_body(several=True))
async def predict(
    request: Request,
    model: ModelName = None,
    top: Annotated[int, Query(ge=1, le=1000, description="most probable classes of each image")] = 5,
    coverage: Annotated[float | None, Query(gt=0, lt=1, description="share of the sets that hold the right class")] = None,
) -> Response:
    """Labels and probabilities of one image or many."""
    engine = engine_of(request)
    served = engine.model(model)
    engine.require_room(served, "predict")
    uploads = await read_images(request, engine.settings)
    predictions = await engine.predict(served, uploads, top=top, coverage=coverage)
    require_some([prediction.error for prediction in predictions])
    return json_response({"model": version_of(served), "predictions": [one.to_dict() for one in predictions]})


def require_some(errors: Sequence[str | None]) -> None:
    """Raise Problem where every image of a request has an error."""
    if errors and all(error is not None for error in errors):
        more = f" (and {len(errors) - 1} more images)" if len(errors) > 1 else ""
        raise Problem(422, f"the image can't be read: {errors[0]}{more}")


@router.post("/v1/embed", response_model=EmbedAnswer, responses=REFUSALS, openapi_extra=image_body(several=True))
async def embed(
    request: Request,
    model: ModelName = None,
    pool: Annotated[Literal["head", "cls", "avg"], Query(description="input of the head, class token, or mean")] = "head",
) -> Response:
    """Embeddings of one image or many."""
    engine = engine_of(request)
    served = engine.model(model)
    engine.require_room(served, "embed")
    uploads = await read_images(request, engine.settings)
    rows = [
        {"path": upload.name, "embedding": None, "error": row}
        if isinstance(row, str)
        else {"path": upload.name, "embedding": row, "error": None}
        for upload, row in zip(uploads, await engine.embed(served, uploads, pool=pool), strict=True)
    ]
    require_some([cast("str | None", row["error"]) for row in rows])
    return json_response({"model": version_of(served), "pool": pool, "embeddings": rows})


@router.post(
    "/v1/explain",
    response_model=ExplainAnswer,
    responses=REFUSALS | {200: {"content": {"image/png": {}}}},
    openapi_extra=image_body(several=False),
)
async def explain(
    request: Request,
    model: ModelName = None,
    method: Annotated[
        str | None, Query(description="a method of /v1/model; the best one that the model can run without")
    ] = None,
    target: Annotated[str | None, Query(description="class by name or number; the predicted one without")] = None,
    layers: Annotated[str | None, Query(description="layers as in 0,-1, or all")] = None,
    heads: Annotated[str | None, Query(description="heads as in 0,3, or mean, max, min of them, or all")] = None,
    query: Annotated[str, Query(description="cls, or x,y in pixels of what the model sees")] = "cls",
    discard_ratio: Annotated[float, Query(ge=0, lt=1, description="rollout: smallest weights left out")] = 0.0,
    hold_norms: Annotated[bool, Query(description="a gradient that takes the norms' scales for constants")] = False,
    steps: Annotated[int, Query(ge=0, le=1000, description="steps of insertion and deletion; 0 for no scores")] = 0,
    format: Annotated[Literal["json", "png"], Query(description="numbers or a picture")] = "json",
) -> Response:
    """Explanation of one image: evidence for a class, or attention."""
    engine = engine_of(request)
    served = engine.model(model)
    engine.require_explain_room(served)
    if steps > engine.settings.max_explain_steps:
        raise Problem(422, f"steps {steps} is more than the {engine.settings.max_explain_steps} of this server")
    try:
        config = ExplainConfig(
            method=method,
            target=target,
            layers=parse_layers(layers),
            heads=parse_heads(heads),
            query=parse_query(query),
            discard_ratio=discard_ratio,
            hold_norms=hold_norms,
            steps=steps,
        ).for_model(served.model)
    except ValueError as error:
        raise Problem(422, str(error)) from None
    uploads = await read_images(request, engine.settings)
    if len(uploads) > 1:
        raise Problem(422, f"one image at a time is explained, and there are {len(uploads)}")
    most = engine.settings.max_pixels
    if format == "png":
        return Response(await engine.run_beside(served, explain_png, served, uploads[0], config, most), media_type="image/png")
    return json_response(await engine.run_beside(served, explain_json, served, uploads[0], config, most))


@router.get("/v1/model", response_model=ModelsAnswer, responses=problems(404))
async def model(request: Request, model: ModelName = None) -> Response:
    """The models that are served, or one of them, and the limits of a request."""
    engine = engine_of(request)
    chosen = [engine.model(model)] if model is not None else list(engine.models.values())
    settings = engine.settings
    limits = {name: getattr(settings, name) for name in ("max_body_bytes", "max_images", "max_pixels", "timeout_s")}
    return json_response({"models": [engine.descriptions[one.name] for one in chosen], "limits": limits})


@router.get("/healthz", response_model=HealthAnswer)
async def healthz(request: Request) -> Response:
    """Liveness: 200 while the process answers."""
    return json_response({"status": "ok"})


@router.get("/readyz", response_model=HealthAnswer, responses=problems(503))
async def readyz(request: Request) -> Response:
    """Readiness: 200, or 503 while the server stops."""
    if engine_of(request).stopping:
        raise Problem(503, "the server is stopping")
    return json_response({"status": "ready"})


@router.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems()})
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(engine_of(request).metrics_text(), media_type=CONTENT_TYPE_LATEST)
