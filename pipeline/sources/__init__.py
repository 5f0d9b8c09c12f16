"""Data sets: the embedded scenes, Karpathy's split files, COCO captions files."""

from pathlib import Path
from typing import Any

from pipeline.sources.annotations import coco_source, karpathy_source, read_json
from pipeline.sources.base import BadRecord, Record, Rejected, Source, Truth
from pipeline.sources.scenes.source import ScenesSource
from stores.errors import SourceError
from stores.parameters import Data

__all__ = ["BadRecord", "Record", "Rejected", "Source", "Truth", "open_source"]


def open_source(data: Data) -> Source:
    """Open the data set that `data` names, recognising a caption file's format by its content.

    Raises:
        SourceError: a file is absent, unreadable, or of no known format.
    """
    if data.source == "scenes":
        return ScenesSource(data.scenes)
    images = Path(data.images) if data.images else None
    if images and not images.is_dir():
        raise SourceError(
            f"The image folder {images} does not exist. Set data.images (--images) to the folder of the images."
        )
    named = isinstance(data.source, dict)
    files = {split: Path(path) for split, path in data.source.items()} if isinstance(data.source, dict) else {}
    files = files or {"train": Path(str(data.source))}
    contents = {split: read_json(path) for split, path in files.items()}
    if all(_has_lists(content, "images", "annotations") for content in contents.values()):
        if not named:
            raise SourceError(
                f"{data.source} is a COCO captions file, which names no split. "
                f"Say which split each file is: --source train={data.source}, or data.source: {{train: {data.source}}}."
            )
        return coco_source(files, contents, images)
    if not named and _has_lists(contents["train"], "images"):
        return karpathy_source(files["train"], contents["train"], images)
    found = "; ".join(f"{path} has the keys {', '.join(list(contents[split])[:8])}" for split, path in files.items())
    raise SourceError(
        f"No known format: {found}. Expected Karpathy's split file (images[].split), "
        f"or one COCO captions file a split (images, annotations)."
    )


def _has_lists(content: dict[str, Any], *keys: str) -> bool:
    return all(isinstance(content.get(key), list) for key in keys)
