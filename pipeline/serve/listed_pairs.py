"""The lists of cusa-store missing and suspects that lie beside the store: browsed, and marked right or wrong."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from pipeline.inspection import missing_matches, suspects
from pipeline.inspection.missing_matches import holds_columns
from pipeline.serve.answering import Answering
from pipeline.serve.pictures_by_row import picture_path
from pipeline.serve.search_page import page
from pipeline.serve.served_store import ServedStore
from stores import StoreError
from stores.atomic import atomic_path
from stores.columns import Column

KINDS: Final = {
    "missing": (missing_matches.LIST_NAME, missing_matches.SCHEMA),
    "suspects": (suspects.LIST_NAME, suspects.LISTED),
}
"""The file of each list, and what it holds."""
_TRUTH: Final = ("relevant", "wrong")
"""Columns that are null where the store does not know."""
PAGE: Final = 24
_TYPES: Final = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}


SCHEMA: Final = pa.schema(
    [
        ("data", pa.string()),
        ("caption_row", pa.int64()),
        ("image_row", pa.int64()),
        ("caption", pa.large_string()),
        ("image_source_id", pa.string()),
        ("mark", pa.string()),
    ]
)
"""One row a pair that was marked, `right` or `wrong`; `data` is the fingerprint of the store's samples."""
MARKS: Final = ("right", "wrong")
_WRITING: Final = threading.Lock()


class Marks:
    """The marks of one list of pairs: that a caption fits an image, or does not; a Parquet file beside the store.

    A mark belongs to the data that it was made on: of others it is kept, and not shown.
    """

    def __init__(self, path: Path, data: str) -> None:
        """Keep marks at `path`, which are made on data of the fingerprint `data`."""
        self._path, self._data = path, data

    def table(self) -> pa.Table:
        """Return the marks of this data.

        Raises:
            StoreError: the file there is none of marks.
        """
        return pa.Table.from_pylist([row for row in self._all() if row["data"] == self._data], SCHEMA)

    def by_pair(self) -> dict[tuple[int, int], str]:
        """Return the marks of this data by the rows of caption and image."""
        return {(row["caption_row"], row["image_row"]): row["mark"] for row in self.table().to_pylist()}

    def set(self, pair: dict[str, Any], mark: str | None) -> None:
        """Mark a pair, given as the columns of `SCHEMA` that tell it; None takes its mark away.

        Raises:
            StoreError: the file there is none of marks.
        """
        row = {**pair, "data": self._data, "mark": mark}
        told = ("data", "caption_row", "image_row")
        with _WRITING:
            others = [one for one in self._all() if any(one[name] != row[name] for name in told)]
            table = pa.Table.from_pylist([*others, row] if mark else others, SCHEMA)
            with atomic_path(self._path) as temporary:
                pq.write_table(table, temporary)

    def _all(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        rows: list[dict[str, Any]] = _read(self._path, SCHEMA).to_pylist()
        return rows


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    """Return a table that a person may have got from anyone.

    Raises:
        StoreError: it cannot be read, is of another schema, or lacks values.
    """
    advice = "Move it elsewhere."
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"cannot be read ({error})", path=path, advice=advice) from None
    if not table.schema.equals(schema):
        found, expected = ([f"{field.name}: {field.type}" for field in one] for one in (table.schema, schema))
        raise StoreError("columns", path=path, found=found, expected=expected, advice=advice)
    for name in set(schema.names) - set(_TRUTH):
        if table[name].null_count:
            raise StoreError(path=path, where=f"column {name}", found="null", expected="a value each", advice=advice)
    return table


@dataclass(frozen=True, kw_only=True)
class PairList:
    """One list beside the store, and its marks."""

    now: ServedStore
    kind: str
    split: str

    @property
    def _beside(self) -> Path:
        return self.now.store.root.resolve()

    @property
    def file(self) -> Path:
        """Where the command writes it, unless it is told otherwise."""
        return self._beside.with_name(f"{self._beside.name}-{self.kind}-{self.split}") / KINDS[self.kind][0]

    def exists(self) -> bool:
        """Tell whether the command has made it."""
        return holds_columns(KINDS[self.kind][1].names)(self.file)

    @property
    def marks(self) -> Marks:
        place = self._beside.with_name(f"{self._beside.name}-marks")
        return Marks(place / f"{self.kind}-{self.split}.parquet", self.now.store.manifest.source_fingerprint)

    @property
    def image(self) -> str:
        """The column of the image's row."""
        return "image_row" if self.kind == "missing" else "sample_row"

    def table(self) -> pa.Table:
        """Return the pairs.

        Raises:
            HTTPException: there is no such list, or it is of other data.
            StoreError: it is damaged.
        """
        if not self.exists():
            command = f"cusa-store {self.kind} {self.now.store.root} --split {self.split}"
            raise HTTPException(404, f"There is no such list. Make it: {command}")
        table, store = _read(self.file, KINDS[self.kind][1]), self.now.store
        most = {"caption_row": len(store.captions), "image_row": len(store.samples), "sample_row": len(store.samples)}
        rows = {name: table[name].to_numpy() for name in most if name in table.column_names}
        if any(len(found) and not 0 <= found.min() <= found.max() < most[name] for name, found in rows.items()):
            raise HTTPException(409, f"The list {self.file.parent.name} is of other data. Make it again.")
        texts = Column(store.captions["text"]).values(rows["caption_row"])
        if texts != table["caption"].to_pylist():
            raise HTTPException(409, f"The list {self.file.parent.name} is of other captions. Make it again.")
        return table

    def pair(self, table: pa.Table, number: int) -> dict[str, Any]:
        """Return what tells a pair of the list.

        Raises:
            HTTPException: the list has no such pair.
        """
        if not 0 <= number < len(table):
            raise HTTPException(404, f"The list has no pair {number}.")
        row = {name: table[name][number].as_py() for name in table.column_names}
        source = row["image_source_id" if self.kind == "missing" else "sample_source_id"]
        told = {"caption_row": row["caption_row"], "image_row": row[self.image]}
        return {**told, "caption": row["caption"], "image_source_id": source}


def routes(answering: Answering) -> list[Route]:
    """Return the lists' pages, where a pair is marked, and the marks as files."""

    async def listed(request: Request) -> PairList:
        now = await to_thread.run_sync(answering.served.now)
        kind, split = request.path_params["kind"], request.path_params["split"]
        if kind not in KINDS or split not in now.store.manifest.splits:
            raise HTTPException(404, "There is no such list.")
        return PairList(now=now, kind=kind, split=split)

    async def index(request: Request) -> Response:
        now = await to_thread.run_sync(answering.served.now)
        return HTMLResponse(await to_thread.run_sync(_index, now))

    async def browse(request: Request) -> Response:
        number = _number(request.query_params.get("page", "1"))
        return HTMLResponse(await to_thread.run_sync(partial(_browsed, await listed(request), number)))

    async def mark(request: Request) -> Response:
        pairs = await listed(request)
        form = await request.form(max_files=0, max_fields=4, max_part_size=1000)
        number, said = _number(str(form.get("number", ""))), str(form.get("mark", ""))
        seen = tuple(_number(str(form.get(name, "")), 18) for name in ("caption_row", "image_row"))
        if said not in (*MARKS, ""):
            raise HTTPException(400, f"The mark is {said[:40]!r}, expected one of {', '.join(MARKS)}, or none.")
        await to_thread.run_sync(_mark, pairs, number, seen, said or None)
        place = f"/lists/{pairs.kind}/{pairs.split}?{urlencode({'page': number // PAGE + 1})}#pair-{number}"
        return RedirectResponse(place, 303)

    async def marks(request: Request) -> Response:
        pairs, form = await listed(request), request.path_params["form"]
        if form not in _TYPES:
            raise HTTPException(404, "Marks are csv or parquet.")
        data = await to_thread.run_sync(_written, pairs.marks, form)
        name = f"{pairs.kind}-{pairs.split}-marks.{form}"
        return Response(
            data, media_type=_TYPES[form], headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )

    return [
        Route("/lists", index),
        Route("/lists/{kind}/{split}", browse),
        Route("/lists/{kind}/{split}/mark", mark, methods=["POST"]),
        Route("/lists/{kind}/{split}/marks.{form}", marks),
    ]


def _number(text: str, digits: int = 9) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > digits:
        raise HTTPException(400, f"The number is {text[:40]!r}, expected one of the list's.")
    return int(text)


def _index(now: ServedStore) -> str:
    all_of = [PairList(now=now, kind=kind, split=split) for kind in KINDS for split in now.store.manifest.splits]
    found = [(one, pq.read_metadata(one.file).num_rows, _marked(one.marks)) for one in all_of if one.exists()]
    return page("lists.html", lists=found, store=now.store.root)


def _marked(marks: Marks) -> int | None:
    try:
        return len(marks.table())
    except StoreError:
        return None


def _browsed(pairs: PairList, number: int) -> str:
    table, marks = pairs.table(), pairs.marks.by_pair()
    start = PAGE * (max(number, 1) - 1)
    rows = table.slice(start, PAGE).to_pylist()
    for place, row in enumerate(rows, start):
        own = [row["image_row"], row["sample_row"]] if pairs.kind == "missing" else [row["sample_row"]]
        row |= {"number": place, "pictures": [(one, picture_path(pairs.now, one)) for one in own]}
        row["mark"] = marks.get((row["caption_row"], row[pairs.image]))
    last = max(1, -(-len(table) // PAGE))
    return page("pairs.html", pairs=pairs, rows=rows, total=len(table), marked=len(marks), number=number, last=last)


def _mark(pairs: PairList, number: int, seen: tuple[int, ...], mark: str | None) -> None:
    pair = pairs.pair(pairs.table(), number)
    if (pair["caption_row"], pair["image_row"]) != seen:
        raise HTTPException(409, "The list was made anew since this page was. Load it again.")
    pairs.marks.set(pair, mark)


def _written(marks: Marks, form: str) -> bytes:
    written = io.BytesIO()
    if form == "csv":
        pyarrow.csv.write_csv(marks.table(), written)
    else:
        pq.write_table(marks.table(), written)
    return written.getvalue()
