"""The JSON API: what there is, and search; its description is OpenAPI's, made of the classes that check requests."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final, TypeVar

from anyio import to_thread
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.serve.answering import Answer, Answering
from pipeline.serve.pictures_by_row import picture_path
from pipeline.serve.queries import MAX_VALUES, KnnRequest, Modality, SearchRequest
from stores.json_objects import parsed_object

B = TypeVar("B", bound=BaseModel)


class Hit(BaseModel):
    """One row that was found."""

    row: int
    similarity: float
    match: float | None
    """The second stage's logit; null of what it has not ranked."""
    sample: int
    key: str
    source_id: str
    split: str
    label: str | None
    texts: list[str]
    thumbnail: str | None
    image: str | None
    """Where they are asked for; null of a sample without an image."""


class Found(BaseModel):
    """The answer to a search, the most similar first."""

    model: str
    modality: Modality
    encode_seconds: float
    search_seconds: float
    results: list[Hit]


class Split(BaseModel):
    """A split of the store."""

    name: str
    samples: int
    captions: int


class Described(BaseModel):
    """What is served."""

    models: dict[str, list[str]]
    """By name, the modalities that it encodes and searches."""
    first: str
    reranker: str | None
    """The second stage, if there is one."""
    splits: list[Split]
    labels: list[str]


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


def routes(answering: Answering) -> list[Route]:
    """Return /api/store, /api/search and /openapi.json."""

    async def described(request: Request) -> Response:
        now = await to_thread.run_sync(answering.served.now)
        manifest = now.store.manifest
        splits = [
            Split(name=name, samples=manifest.rows(name, "sample"), captions=manifest.rows(name, "caption"))
            for name in manifest.splits
        ]
        models = {name: sorted(towers) for name, towers in now.models.items()}
        second = answering.reranker and answering.reranker.spec
        return _json(Described(models=models, first=now.first, reranker=second, splits=splits, labels=now.labels))

    async def search(request: Request) -> Response:
        asked = await to_thread.run_sync(checked, SearchRequest, await request.body())
        answer = await answering.answer(asked)
        return _json(await to_thread.run_sync(found, answer))

    async def openapi(request: Request) -> Response:
        return JSONResponse(OPENAPI)

    return [
        Route("/api/store", described),
        Route("/api/search", search, methods=["POST"]),
        Route("/openapi.json", openapi),
    ]


def checked(kind: type[B], body: bytes) -> B:
    """Return what a request's JSON asks for.

    Call it on a thread: a large body takes a while. A key that is not known is one fault, however many there are.

    Raises:
        HTTPException: it is no JSON, or asks for what there is not.
    """
    # Who parses holds up every other request: bytes of an image are soon parsed, millions of values are not.
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise HTTPException(400, f"The request has more than {MAX_VALUES:,} values.")
    try:
        asked = parsed_object(body.decode())
    except ValueError as error:
        raise HTTPException(400, f"The request is no JSON object ({str(error)[:200]}).") from None
    unknown = next((key for key in asked if key not in kind.model_fields), None)
    if unknown is not None and kind.model_config.get("extra") == "forbid":
        raise HTTPException(400, f"{unknown[:100]!r} is not known. Expected: {', '.join(kind.model_fields)}.")
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        raise HTTPException(400, told(error)) from None


def checked_values(values: dict[str, Any]) -> SearchRequest:
    """Return the search that plain values, as a form's, ask for.

    Raises:
        HTTPException: they ask for what there is not.
    """
    try:
        return SearchRequest.model_validate(values, strict=False)
    except ValidationError as error:
        raise HTTPException(400, told(error)) from None


def told(error: ValidationError) -> str:
    """Return what is wrong with a request, in a line."""
    faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_url=False)]
    return "; ".join(f"{place}: {message}" if place else message for place, message in faults[:5])[:2000]


def found(answer: Answer) -> Found:
    """Return an answer with what tells each sample."""
    now, table = answer.store, answer.store.store.samples
    hits = [
        Hit(
            **asdict(one),
            split=table["split"][one.sample].as_py(),
            label=table["label"][one.sample].as_py(),
            thumbnail=picture_path(now, one.sample),
            image=picture_path(now, one.sample, "image"),
        )
        for one in answer.found
    ]
    return Found(
        model=answer.model,
        modality=answer.modality,
        encode_seconds=answer.encode_seconds,
        search_seconds=answer.search_seconds,
        results=hits,
    )


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _described() -> dict[str, Any]:
    """Return the OpenAPI description."""
    classes = (SearchRequest, KnnRequest, Found, Described, Problem)
    template = "#/components/schemas/{model}"
    modes = [(one, "validation" if one in (SearchRequest, KnnRequest) else "serialization") for one in classes]
    _, schemas = models_json_schema(modes, ref_template=template)  # type: ignore[arg-type] # literals, of two modes

    def content(name: str) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": {"$ref": template.format(model=name)}}}}

    def operation(summary: str, answer: dict[str, Any], asked: str | None = None) -> dict[str, Any]:
        body = {"requestBody": {"required": True, **content(asked)}} if asked else {}
        refused = {"description": "Refused, with a message", **content("Problem")}
        return {"summary": summary, **body, "responses": {"200": {"description": "Found", **answer}, "4XX": refused}}

    neighbours = {"content": {"application/json": {"schema": {"type": "array", "items": {"type": "object"}}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "cusa-store serve", "version": "1"},
        "paths": {
            "/api/store": {"get": operation("What is served", content("Described"))},
            "/api/search": {
                "post": operation("Search by text, image, both, row or embedding", content("Found"), "SearchRequest")
            },
            "/knn-service": {"post": operation("The same by clip-retrieval's protocol", neighbours, "KnnRequest")},
        },
        "components": {"schemas": schemas["$defs"]},
    }


OPENAPI: Final = _described()
