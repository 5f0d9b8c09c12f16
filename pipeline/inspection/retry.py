"""Take in what was quarantined, where the fault has passed."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from pipeline.extract import extract
from pipeline.summary import summary
from stores import ExtractParameters, SourceError, Store
from stores.layout import Layout
from stores.parameter_loading import recorded_parameters
from stores.plugins import recorded_in


def retry(path: Path) -> tuple[Table, str]:
    """Make the shards again from which something was rejected, with the parameters of the store's last run.

    Returns:
        The summary of the store as it now is, and a sentence on what came back.

    Raises:
        CusaError: there is no finished store, or its source or teachers cannot be used.
    """
    store = Store.open(path)
    layout = Layout(path)
    before = layout.quarantine.read_bytes().count(b"\n") if layout.quarantine.is_file() else 0
    samples = len(store.samples)
    parameters = recorded_parameters(ExtractParameters, store.manifest.parameters, layout.manifest)
    try:
        with recorded_in(path):
            extracted = extract(parameters, path, retry=True)
    except SourceError as error:
        error.add_note(
            f"The store's source is {parameters.data.source}, seen from the folder where it was made. "
            f"Go there, or run cusa-extract --retry with --source and --images as they are now."
        )
        raise
    left = extracted.ingested.rejected.total()
    more = len(Store.open(path).samples) - samples
    said = f"{before:,} were in quarantine, {left:,} still are; the store has {more:,} more sample{'s' * (more != 1)}."
    return summary(extracted, path), said
