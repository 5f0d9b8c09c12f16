"""The page, readable without JavaScript; a script adds dropped images, keys, and searching in place."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from anyio import to_thread
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from pipeline.inspection.neighbours import described
from pipeline.inspection.reranker import Reranker
from pipeline.serve.answering import Answering
from pipeline.serve.json_api import checked_values, found
from pipeline.serve.pictures_by_row import picture_path, row_of
from pipeline.serve.queries import MAX_IMAGE, MAX_RERANKED, SearchRequest
from pipeline.serve.served_store import ServedStore
from stores import CusaError
from stores.columns import Column
from stores.pages import rendered

_HERE: Final = Path(__file__).parent
_FIELDS: Final = ("q", "row", "of", "find", "model", "beside", "split", "label", "weight", "rerank")
_COUNT: Final = 24
_DEPTHS: Final = (16, 64, MAX_RERANKED)
"""Of the second stage."""
_LABELS: Final = 1000
"""So many are suggested; others can be typed."""


def routes(answering: Answering) -> list[Route]:
    """Return the search page, a sample's page, and the script of both."""

    async def search(request: Request) -> Response:
        given = await _given(request)
        now = await to_thread.run_sync(answering.served.now)
        columns: list[dict[str, Any]] = []
        if given["q"].strip() or given["image"] or given["row"]:
            for model in dict.fromkeys((given["model"] or now.first, given["beside"] or given["model"] or now.first)):
                columns.append(await _column(answering, given, model))
        failed = bool(columns) and all(column["error"] for column in columns)
        page = await to_thread.run_sync(partial(_search_page, now, given, columns, answering.reranker))
        return HTMLResponse(page, 400 if failed else 200)

    async def sample(request: Request) -> Response:
        now = await to_thread.run_sync(answering.served.now)
        return HTMLResponse(await to_thread.run_sync(_sample_page, now, row_of(request, len(now.store.samples))))

    script = (_HERE / "search.js").read_text(encoding="utf-8")

    async def search_js(request: Request) -> Response:
        return Response(script, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    return [
        Route("/", search, methods=["GET", "POST"]),
        Route("/sample/{row}", sample),
        Route("/search.js", search_js),
    ]


def page(template: str, **values: object) -> str:
    """Return a page of this room."""
    return rendered(_HERE / template, **values)


def problem(status: int, what: str) -> Response:
    """Return a page that says what is wrong."""
    return HTMLResponse(page("problem.html", what=what), status)


async def _given(request: Request) -> dict[str, Any]:
    """Return what the form says, by field: texts, and the image's bytes or None."""
    fields: Any = request.query_params
    image = None
    if request.method == "POST":
        form: FormData = await request.form(max_files=1, max_fields=len(_FIELDS) + 1, max_part_size=MAX_IMAGE)
        fields, upload = form, form.get("image")
        if isinstance(upload, UploadFile):
            image = await upload.read() or None
        await form.close()
    given = {name: fields.get(name, "") for name in _FIELDS}
    if not all(isinstance(value, str) for value in given.values()):
        raise HTTPException(400, "A file was sent where a text was expected.")
    return {**given, "image": image}


async def _column(answering: Answering, given: dict[str, Any], model: str) -> dict[str, Any]:
    """Return one model's answer, or why it has none."""
    try:
        answer = await answering.answer(_asked(given, model))
    except (CusaError, HTTPException) as error:
        what = error.message if isinstance(error, CusaError) else error.detail
        return {"model": model, "error": what, "hits": []}
    seconds = (answer.encode_seconds, answer.search_seconds)
    hits = (await to_thread.run_sync(found, answer)).results
    return {"model": model, "error": "", "hits": hits, "milliseconds": [1000 * one for one in seconds]}


def _asked(given: dict[str, Any], model: str) -> SearchRequest:
    weight = given["weight"] or "50"
    if not weight.isascii() or not weight.isdigit() or len(weight) > 3 or int(weight) > 100:
        raise HTTPException(400, f"The weight is {weight[:40]!r}, expected 0 to 100.")
    values = {
        "text": given["q"] if given["q"].strip() else None,
        "image": given["image"],
        "row": given["row"] or None,
        "row_of": given["of"] or "image",
        "text_weight": int(weight) / 100,
        "image_weight": 1 - int(weight) / 100,
        "modality": given["find"] or "image",
        "model": model,
        "split": given["split"] or None,
        "label": given["label"] or None,
        "count": _COUNT,
        "rerank": given["rerank"] or 0,
    }
    return checked_values(values)


def _search_page(
    now: ServedStore, given: dict[str, Any], columns: list[dict[str, Any]], reranker: Reranker | None
) -> str:
    manifest = now.store.manifest
    return page(
        "search.html",
        given=given,
        columns=columns,
        models=list(now.models),
        first=now.first,
        reranker=reranker and reranker.spec,
        depths=_DEPTHS,
        splits=manifest.splits,
        labels=now.labels[:_LABELS],
        query=_query_row(now, given),
        store=now.store.root.resolve().name,
        samples=sum(manifest.rows(split, "sample") for split in manifest.splits),
    )


def _query_row(now: ServedStore, given: dict[str, Any]) -> dict[str, Any] | None:
    """Return what tells the row whose neighbours are asked for; None where none is."""
    kind, text = given["of"] or "image", given["row"]
    rows = len(now.store.samples if kind == "image" else now.store.captions)
    if not (text.isascii() and text.isdigit()) or len(text) > 15 or int(text) >= rows or kind not in ("image", "text"):
        return None
    one = described(now.store, kind, np.array([int(text)]), np.ones(1, np.float32))[0]
    return {"texts": one.texts, "sample": one.sample, "thumbnail": picture_path(now, one.sample), "of": kind}


def _sample_page(now: ServedStore, row: int) -> str:
    told = {name: now.store.samples[name][row].as_py() for name in now.store.samples.column_names}
    first, count = told["caption_first"], told["caption_count"]
    captions = Column(now.store.captions["text"]).run(first, count).to_pylist()
    models = {name: towers for name, towers in now.models.items() if "image" in towers}
    texts = {name: towers for name, towers in now.models.items() if "text" in towers}
    return page(
        "sample.html",
        row=row,
        told=told,
        captions=list(enumerate(captions, first)),
        image=picture_path(now, row, "image"),
        models=models,
        texts=texts,
    )
