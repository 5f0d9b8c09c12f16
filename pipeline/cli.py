"""cusa-extract: stage 1 from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from stores import ExtractParameters, ParameterError, load_parameters
from stores.commands import loading, resumable
from stores.console import output
from stores.layout import SAFE_NAME, Layout
from stores.manifest import DamagedManifest, read_former_manifest
from stores.parameter_loading import PARAMS_FILE
from stores.plugins import recorded_in
from stores.streams import Command


@click.command(cls=Command, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--params", type=click.Path(path_type=Path), help="Parameters file; without it, ./params.yaml.")
@click.option(
    "--store", type=click.Path(path_type=Path), default=Path("artifacts/store"), help="Where the store is made."
)
@click.option(
    "--source",
    multiple=True,
    help="scenes; a file, folder, pattern or address (docs/formats.md); or SPLIT=… for each split  [data.source]",
)
@click.option("--images", help="Folder of the images  [data.images]")
@click.option(
    "--teacher",
    help="One to add: both towers of run:<folder> or open-clip:…, or any other, such as grid:…  [teachers.further]",
)
@click.option("--image-teacher", help="family:name  [teachers.image]")
@click.option("--image-weights", help="Its checkpoint file  [teachers.image_weights]")
@click.option("--text-teacher", help="family:name  [teachers.text]")
@click.option("--text-weights", help="Its checkpoint file  [teachers.text_weights]")
@click.option(
    "--features",
    multiple=True,
    metavar="NAME=FILE",
    help="Features of yours to import: .npy, .npz, .parquet or .h5, a row per sample  [data.features.NAME]",
)
@click.option("--engine", type=click.Choice(["local", "ray"]), help="Where features are computed  [extract.engine]")
@click.option("--retry", is_flag=True, help="Try again to take in what was quarantined.")
@click.option("-S", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override any parameter.")
def main(
    params: Path | None,
    store: Path,
    source: tuple[str, ...],
    images: str | None,
    teacher: str | None,
    image_teacher: str | None,
    image_weights: str | None,
    text_teacher: str | None,
    text_weights: str | None,
    features: tuple[str, ...],
    engine: str | None,
    retry: bool,
    overrides: tuple[str, ...],
) -> None:
    """Shard a data set and extract teacher features into a store. Run it again to resume or repair.

    Without --params and --source, --teacher and --features add to the store as it was made, and so does everything
    where there is no params.yaml.
    """
    flags = {
        "data.source": _source(source),
        "data.images": images,
        "teachers.further": teacher,
        "teachers.image": image_teacher,
        "teachers.image_weights": image_weights,
        "teachers.text": text_teacher,
        "teachers.text_weights": text_weights,
        "extract.engine": engine,
        **{f'data.features."{name}".file': file for name, file in map(_named_file, features)},
    }
    adds = params is None and not source and (bool(teacher or features) or not PARAMS_FILE.exists())
    made = store_parameters(store) if adds else None
    if teacher and adds and made is None:
        advice = "Name the store to add it to by --store, or a data set by --source or --params."
        raise ParameterError("there is no store that the teacher could be added to", path=store, advice=advice)
    parameters = load_parameters(ExtractParameters, params, flags, overrides, recorded=made)
    with resumable():
        # Imported late: the libraries behind it take seconds, a wrong flag should not.
        with loading(stays=True):
            from pipeline.extract import extract
            from pipeline.summary import summary

        with recorded_in(store if made else None):
            extracted = extract(parameters, store, retry=retry)
        output().print(summary(extracted, store))


def store_parameters(store: Path) -> dict[str, Any] | None:
    """Return the parameters that a store was last made with; None where there is none yet."""
    try:
        manifest = read_former_manifest(Layout(store))
    except DamagedManifest as error:
        error.add_note("It said what the store was made of as well: name that by --source or --params once more.")
        raise
    return None if manifest is None else manifest.parameters


def _named_file(given: str) -> tuple[str, str]:
    name, equals, file = given.partition("=")
    if not (name and equals and file):
        raise ParameterError(f"--features {given!r}: expected NAME=FILE, such as regions=regions.npy.")
    if not re.fullmatch(SAFE_NAME, name):
        expected = "letters, digits, dots, dashes and underscores, the first a letter or digit"
        raise ParameterError(where="--features, the name", found=name, expected=expected)
    return name, file


def _source(given: tuple[str, ...]) -> str | dict[str, str] | None:
    if not given:
        return None
    named = [re.fullmatch(r"([A-Za-z0-9_.-]+)=(.+)", entry) for entry in given]
    if len(given) == 1 and (named[0] is None or Path(given[0]).exists()):
        return given[0]
    pairs = {match[1]: match[2] for match in named if match}
    if len(pairs) != len(given):
        raise ParameterError(f"--source {' '.join(given)}: expected one place, or SPLIT=PLACE once for each split.")
    return pairs


if __name__ == "__main__":
    main()
