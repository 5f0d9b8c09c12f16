"""ECCV Caption, CxC and COCO 5K as their authors measure them: by the package eccv-caption, from COCO's own ids.

1. The ids of a split's images are the source's; those of its captions are looked up in COCO's annotations by image and
   text, since the store keeps captions without ids (`coco_ids`).
2. The images and captions of COCO's test split are ranked, other rows left out: COCO has images with more than five
   captions, of which the benchmark takes five.
3. The package turns the best `DEPTH` of each query into its figures. Its data lie inside it; nothing is downloaded.
"""

from __future__ import annotations

import gzip
import io
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stores import CusaError, Store
from train.evaluation.evaluate import DIRECTIONS
from train.evaluation.rankings import top
from train.evaluation.similarities import Similarities

DEPTH: Final = 50
"""How many candidates of a query are handed over: the protocol's least; no query has more than 48 relevant ones."""

Ids = NDArray[np.int64]


def eccv_caption(found: Similarities, image_ids: Ids, caption_ids: Ids) -> dict[str, Any]:
    """Return in percent, both ways: mAP@R, R-Precision and R@1 of ECCV Caption; R@1, R@5, R@10 of CxC and COCO 5K.

    COCO's ids of the S images that were compared with T captions are (S,) and (T,).

    Raises:
        CusaError: the package is not installed, or the test split is not there whole.
    """
    package = _package()
    image_rows = _places(image_ids, package.coco_gts["i2t"], "images")
    caption_rows = _places(caption_ids, package.coco_gts["t2i"], "captions")
    ids = image_ids[image_rows], caption_ids[caption_rows]
    taken = found.part(image_rows, caption_rows)
    retrieved = {
        "i2t": _by_id(ids[0], ids[1], top(taken.rows(), DEPTH)),
        "t2i": _by_id(ids[1], ids[0], top(taken.columns(), DEPTH)),
    }
    # The package shows progress on stderr whether or not that is asked for.
    with redirect_stderr(io.StringIO()):
        measured = package.eccv_metrics(retrieved, "all")
    names = {"mAP@R": "eccv_map_at_r", "R-Precision": "eccv_rprecision", "R@1": "eccv_r1"}
    cxc = {f"R@{k}": package.cxc_recalls(retrieved, "all", K=k) for k in (1, 5, 10)}
    coco = {f"R@{k}": package.coco_5k_recalls(retrieved, "all", K=k) for k in (1, 5, 10)}
    return {
        "eccv_caption": _percent({name: measured[theirs] for name, theirs in names.items()}),
        "cxc": _percent(cxc),
        "coco_5k": _percent(coco),
    }


def coco_ids(store: Store, split: str, annotations: Path) -> tuple[Ids, Ids]:
    """Return COCO's ids of a split's images and captions: (S,) and (T,).

    The store was made from COCO, so that its source ids are COCO's image ids; `annotations` is COCO's captions file
    (captions_val2014.json) or Karpathy's dataset_coco.json.

    Raises:
        CusaError: the file cannot be read, or an image or caption is not COCO's.
    """
    known: dict[tuple[str, str], list[int]] = defaultdict(list)
    for image, text, caption in _captions(annotations):
        known[image, text.strip()].append(caption)
    samples, rows = store.rows(split, "sample"), store.rows(split, "caption")
    images = store.samples["source_id"].slice(samples[0], len(samples)).to_pylist()
    texts = store.captions["text"].slice(rows[0], len(rows)).to_pylist()
    owners = store.captions["sample"].slice(rows[0], len(rows)).to_numpy() - samples[0]
    found = np.empty(len(rows), dtype=np.int64)
    for row, (owner, text) in enumerate(zip(owners, texts, strict=True)):
        candidates = known.get((images[owner], text))
        if not candidates:
            raise CusaError(
                f"{annotations} has no caption {text[:100]!r} of image {images[owner]}, which the split {split} of "
                f"{store.root} holds. ECCV Caption needs COCO's own captions: captions_val2014.json or "
                f"dataset_coco.json, and a store made from them."
            )
        found[row] = candidates.pop(0)
    return np.array([int(image) for image in images], dtype=np.int64), found


def _captions(annotations: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (image id, text, caption id) of a COCO or Karpathy file."""
    try:
        opener = gzip.open if annotations.suffix == ".gz" else open
        with opener(annotations, "rb") as stream:
            content = json.load(stream)
        if "annotations" in content:
            yield from ((str(int(a["image_id"])), str(a["caption"]), int(a["id"])) for a in content["annotations"])
            return
        for image in content["images"]:
            for sentence in image["sentences"]:
                yield str(int(image["cocoid"])), str(sentence["raw"]), int(sentence["sentid"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem, expected = f"{type(error).__name__}: {error}", "captions_val2014.json or dataset_coco.json of COCO"
        raise CusaError(f"does not give COCO's caption ids ({problem})", path=annotations, expected=expected) from None


def _package() -> Any:
    try:
        with warnings.catch_warnings():
            # It warns that it would rather have ujson, which makes no difference here.
            warnings.simplefilter("ignore")
            package = import_module("eccv_caption")
    except ImportError:
        advice = "Install the extra: pip install -e '.[eccv]'."
        raise CusaError("eccv-caption, which measures ECCV Caption and CxC, is not installed", advice=advice) from None
    return package.Metrics()


def _places(ids: Ids, wanted: Iterable[int], what: str) -> Ids:
    """Return the rows of the wanted ids, by rising row."""
    needed = np.fromiter(wanted, dtype=np.int64)
    rows = np.flatnonzero(np.isin(ids, needed))
    missing = np.setdiff1d(needed, ids)
    if len(missing) or len(rows) != len(needed):
        raise CusaError(
            f"ECCV Caption and CxC are defined on the whole test split of COCO (Karpathy's), {len(needed):,} {what}: "
            f"{len(missing):,} of them are missing here (first: {', '.join(map(str, missing[:3])) or 'none'}) and "
            f"{len(rows) + len(missing) - len(needed):,} are there twice. Make the store from dataset_coco.json and "
            f"COCO's images, and look at its quarantine.jsonl."
        )
    return rows


def _by_id(queries: Ids, candidates: Ids, ranked: Iterator[Ids]) -> dict[int, list[int]]:
    """Return candidate ids, best first, by query id, as Python's own integers: the package looks them up in sets."""
    return dict(zip(queries.tolist(), (candidates[row].tolist() for block in ranked for row in block), strict=True))


def _percent(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the package's {metric: {i2t, t2i}} as {direction: {metric}}, in percent."""
    return {
        direction: {name: 100.0 * float(both[theirs]) for name, both in figures.items()}
        for direction, theirs in zip(DIRECTIONS, ("i2t", "t2i"), strict=True)
    }
