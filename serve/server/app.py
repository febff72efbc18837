"""The routes: each reads a request, has its images computed, and answers. `front.py` stands before them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from byol import __version__
from byol.serve.server import kserve, openai, schemas
from byol.serve.server.intake import Body, body_of, json_object, parsed, pictures_of, unless_gone
from byol.serve.server.page import page
from byol.serve.server.refusals import CLIENT_GONE, BadImage, Refused, answer, phrase
from byol.serve.server.service import ENCODER, Service

T = TypeVar("T")
Compute = Callable[[Sequence[bytes]], Awaitable[np.ndarray]]
_FEW = 1 << 14  # numbers: writing fewer takes some milliseconds
Post = Callable[[Request, Body], Awaitable[Response]]


def create_app(service: Service) -> FastAPI:
    """The application. Its own documentation is `/openapi.json`: FastAPI's pages load scripts from elsewhere."""
    app = FastAPI(title="byol serve", version=__version__, docs_url=None, redoc_url=None)
    for kind in (Refused, HTTPException):
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)  # and `Front` says where
    _add_plain(app, service)
    _add_openai(app, service)
    _add_kserve(app, service)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # no such route, or not with this method
        error = Refused(error.status_code, phrase(error.status_code))
    assert isinstance(error, Refused)
    return answer(request.url.path, error)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)  # it reaches nobody


async def _failed(request: Request, error: Exception) -> Response:
    return answer(request.url.path, Refused(500, "the server failed at this request"))


async def _written(outputs: np.ndarray, write: Callable[[np.ndarray], T]) -> T:
    """`write(outputs)`, apart from the event loop where that takes long."""
    return write(outputs) if outputs.size <= _FEW else await asyncio.to_thread(write, outputs)


def _json(values: Any) -> Response:
    return Response(json.dumps(values, allow_nan=False), media_type="application/json")


def _posting(service: Service, answered: Post) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that has `answered(request, body)` make the answer, unless its client goes away before."""

    async def endpoint(request: Request) -> Response:
        async with body_of(request, service.bounds, service.measures) as body:
            return await unless_gone(request, answered(request, body))

    return endpoint


# ------------------------------------------------------------------------------------------------------- plain


def _add_plain(app: FastAPI, service: Service) -> None:
    html = page(service)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(html)

    @app.get("/metrics", summary="Prometheus's metrics")
    async def metrics() -> Response:
        return Response(service.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def add(path: str, compute: Compute, describe: Callable[[np.ndarray], list[dict[str, Any]]], summary: str) -> None:
        async def answered(request: Request, body: Body) -> Response:
            sent = request.headers.get("content-type", "")
            files = await parsed(body, lambda body: pictures_of(sent, body, service.bounds.images), service.measures)
            try:
                outputs = await compute([content for _, content in files])
            except BadImage as error:
                raise Refused(400, f"{files[error.index][0]}: {error.reason}") from error

            def write(outputs: np.ndarray) -> Response:
                images = zip(files, describe(outputs), strict=True)
                return _json({"images": [{"name": name, **one} for (name, _), one in images]})

            return await _written(outputs, write)

        route = _posting(service, answered)
        app.post(path, summary=summary, name=path[1:], openapi_extra=schemas.PICTURES)(route)

    add("/features", service.encoder, _features, "Features of pictures")
    if service.classifier is not None:
        add("/classes", service.classifier, partial(_classes, service.classes), "Classes of pictures")
    else:
        app.post("/classes", include_in_schema=False)(_no_classifier)
    if service.index is not None:
        bank, encoder = service.index, service.encoder
        add("/neighbors", lambda pictures: encoder(pictures, bank.nearest), bank.described, "Nearest images")


def _features(outputs: np.ndarray) -> list[dict[str, Any]]:
    return [{"features": row} for row in outputs.tolist()]


def _classes(classes: list[str], outputs: np.ndarray) -> list[dict[str, Any]]:
    """The likeliest class of each image, and the probabilities of all."""
    rows = outputs.tolist()
    return [
        {"class": classes[best], "probabilities": dict(zip(classes, row, strict=True))}
        for best, row in zip(outputs.argmax(1).tolist(), rows, strict=True)
    ]


async def _no_classifier() -> Response:
    raise Refused(404, "this bundle has no classifier")


# ------------------------------------------------------------------------------------------------------ OpenAI


def _add_openai(app: FastAPI, service: Service) -> None:
    dim, most = service.opened.dim, service.bounds.images

    async def answered(request: Request, body: Body) -> Response:
        def read(body: bytes) -> openai.Question:
            return openai.question(json_object(body), ENCODER, dim, most)

        asked = await parsed(body, read, service.measures)
        try:
            features = await service.encoder(asked.pictures)
        except BadImage as error:
            raise Refused(400, f"input[{error.index}]: {error.reason}", f"input[{error.index}]") from error
        return await _written(features, lambda rows: _json(openai.embeddings(rows, ENCODER, asked.as_base64)))

    route = _posting(service, answered)
    app.post("/v1/embeddings", summary="Features, as OpenAI's API has it", openapi_extra=schemas.EMBEDDINGS)(route)

    @app.get("/v1/models", summary="The models of /v1/embeddings")
    async def models() -> Response:
        return JSONResponse(openai.models(ENCODER))

    @app.get("/v1/models/{name}", summary="One of them")
    async def model(name: str) -> Response:
        if name != ENCODER:
            raise Refused(404, f"there is no such model; this server's is {ENCODER!r}", "model", "model_not_found")
        return JSONResponse(openai.models(ENCODER)["data"][0])


# ------------------------------------------------------------------------------------------------------ KServe


def _add_kserve(app: FastAPI, service: Service) -> None:
    def model_of(name: str, version: str = kserve.VERSION) -> kserve.Model:
        if name not in service.models or version != kserve.VERSION:
            raise Refused(404, f"there is no such model; this server's are {', '.join(service.models)}, version 1")
        return service.models[name]

    async def answered(request: Request, body: Body) -> Response:
        model = model_of(**request.path_params)
        length = request.headers.get(kserve.HEADER)
        most = service.bounds.images
        asked = await parsed(body, lambda body: kserve.question(model, body, length, most), service.measures)
        try:
            outputs = await service.engine(model.name)(asked.items)
        except BadImage as error:
            raise Refused(400, f"images[{error.index}]: {error.reason}") from error
        content, head = await _written(outputs, partial(kserve.reply, model, asked))
        headers = {} if head is None else {kserve.HEADER: str(head)}
        return Response(content, 200, headers, "application/json" if head is None else "application/octet-stream")

    @app.get("/v2", summary="The server, as KServe's protocol has it")
    async def server() -> Response:
        return JSONResponse(kserve.server())

    @app.get("/v2/health/live", summary="Whether the server lives")
    async def live() -> Response:
        return Response()

    @app.get("/v2/health/ready", summary="Whether it takes requests")
    async def ready() -> Response:
        return Response(status_code=503 if service.bounds.draining else 200)

    infer = _posting(service, answered)
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        shown = "version" not in base

        async def metadata(request: Request) -> Response:
            return JSONResponse(model_of(**request.path_params).metadata())

        async def model_ready(request: Request) -> Response:
            model_of(**request.path_params)
            return await ready()

        how: dict[str, Any] = {"include_in_schema": shown, "openapi_extra": schemas.MODEL if shown else None}
        app.get(base, summary="A model: its input and output", **how)(metadata)
        app.get(f"{base}/ready", summary="Whether a model takes requests", **how)(model_ready)
        how["openapi_extra"] = schemas.INFER
        app.post(f"{base}/infer", summary="Features or probabilities", **how)(infer)
