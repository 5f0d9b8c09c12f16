"""Encode what is missing of one teacher's features, window by window, and write the parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence, Set
from functools import partial

from rich.progress import Progress

from pipeline.encode.engine import Engine
from pipeline.encode.parts import PartWriter
from pipeline.encode.windows import Job, Window, plan_windows
from pipeline.first_seen import first_seen
from stores import Shard
from stores.features import part_batch_size
from stores.layout import Layout
from stores.parameters import Extract


def extract_features(
    engine: Engine,
    shards: Sequence[Shard],
    pending: Sequence[Shard],
    layout: Layout,
    settings: Extract,
    progress: Progress,
) -> None:
    """Encode the rows of the `pending` ones among all `shards` with the engine's teacher and write their parts.

    Raises:
        TeacherError: a row does not fit into memory, or an encoding process is lost for good.
    """
    teacher = engine.card
    total = sum(shard.rows(teacher.level) for shard in pending)
    title = f"{teacher.modality}s · {teacher.slug}"
    task = progress.add_task(title, total=total, note=f"{teacher.precision}, {engine.description}")
    names = {shard.name for shard in pending}
    batch_size = _batch_size(engine, {shard.name for shard in shards} - names, layout, settings)
    writer = PartWriter(teacher, shards, layout, batch_size)
    planned: deque[Window] = deque()

    def noted(windows: Iterator[Window]) -> Iterator[Window]:
        for window in windows:
            planned.append(window)
            yield window

    with first_seen(layout.root) as seen:
        windows = plan_windows(shards, names, teacher.level, settings.window, layout, seen)
        advance = partial(progress.advance, task)
        job = Job(layout=layout, shards=tuple(shards), batch_size=batch_size)
        for encoded in engine.encode(noted(windows), job, advance):
            writer.write(planned.popleft(), encoded)
            if writer.invalid:
                progress.update(task, note=f"{writer.invalid:,} failed")


def _batch_size(engine: Engine, whole: Set[str], layout: Layout, settings: Extract) -> int:
    """Return the engine's batch size, or for `auto` that of the `whole` parts: another would round otherwise."""
    given = settings.image_batch if engine.card.modality == "image" else settings.text_batch
    if given != "auto" or not whole:
        return engine.batch_size
    return part_batch_size(layout.features(engine.card.slug, min(whole)))
