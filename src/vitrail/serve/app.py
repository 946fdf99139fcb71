"""The ASGI app: routes, what every request passes, and the page."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from vitrail.serve import page
from vitrail.serve.engine import Engine
from vitrail.serve.middleware import LimitBody, Outermost, RequireHost, RequireToken
from vitrail.serve.models import ServedModel
from vitrail.serve.problems import Problem, problem_response
from vitrail.serve.routes import router
from vitrail.serve.settings import ServeSettings

DESCRIPTION = "Images to labels, embeddings and explanations. An image is the body itself, a file of a form, or base64 in JSON."


def create_app(models: Mapping[str, ServedModel], settings: ServeSettings) -> FastAPI:
    """Return the app of models by name; the first is the default. Raises ValueError without a model.

    Its engine, which is `app.state.engine`, lives as long as the app: at its end requests inside are answered.
    """
    engine = Engine(models, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    app = FastAPI(
        title="Vitrail",
        description=DESCRIPTION,
        version=importlib.metadata.version("vitrail"),
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.engine = engine
    app.include_router(router)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    if files := page.read_files(page.STATIC):
        app.mount("/", page.Page(files))
    app.add_middleware(LimitBody, settings=settings)
    if settings.token is not None:
        app.add_middleware(RequireToken, token=settings.token)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    if settings.hosts:
        app.add_middleware(RequireHost, hosts=settings.hosts)
    app.add_middleware(Outermost, observe=engine.metrics.observe_request, log=settings.access_log)
    return app


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem_response(error.status_code, str(error.detail), headers=error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """Name the first field that is wrong, without the value."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "query")
    return problem_response(422, f"{place}: {first['msg']}")
