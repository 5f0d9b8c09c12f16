"""cusa-store: a finished store from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stores.commands import resumable
from stores.console import output
from stores.errors import CusaError
from stores.streams import Group

STORE = click.argument("store", type=click.Path(path_type=Path), default=Path("artifacts/store"))
FILE = click.Path(path_type=Path)


@click.group(cls=Group, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
def main() -> None:
    """Look into a store, prove it whole, and find what its data set leaves out."""


@main.command(short_help="Say what is in a store.")
@STORE
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def info(store: Path, as_json: bool) -> None:
    """Say what is in STORE."""
    # Imported late, as in every command here: the libraries behind them take seconds, a wrong flag should not.
    from pipeline.inspection.info import describe, render

    with resumable():
        found = describe(store)
        if as_json:
            click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        else:
            output().print(*render(found), sep="\n")


@main.command(short_help="Check all of a store; change nothing.")
@STORE
@click.option("--deep", is_flag=True, help="Decode every image too, and encode a sample again.")
@click.option("--sample", type=click.IntRange(min=0), default=64, help="Rows a teacher that --deep encodes again.")
@click.option("--image-weights", help="Checkpoint of the image teacher, where it is not at the recorded place.")
@click.option("--text-weights", help="Checkpoint of the text teacher, where it is not at the recorded place.")
@click.pass_context
def verify(
    context: click.Context,
    store: Path,
    deep: bool,
    sample: int,
    image_weights: str | None,
    text_weights: str | None,
) -> None:
    """Check all of STORE and change nothing. Exit code 1 says that something is damaged."""
    from pipeline.inspection.verify import render, verify

    with resumable():
        report = verify(store, sample if deep else None, {"image": image_weights, "text": text_weights})
        output().print(*render(report), sep="\n")
    if not report.whole:
        context.exit(1)


@main.command(short_help="Take in what was quarantined, if it is mended.")
@STORE
def retry(store: Path) -> None:
    """Try again to take in what was quarantined of STORE, as its last run would."""
    from pipeline.inspection.retry import retry

    with resumable():
        output().print(*retry(store), sep="\n")


@main.command(short_help="Show the rows nearest to a row, text or image.")
@STORE
@click.option("--row", type=int, help="A row of the store.")
@click.option("--text", help="A new text.")
@click.option("--image", type=FILE, help="A new image.")
@click.option("--modality", type=click.Choice(["image", "text"]), help="What --row counts; image if not said.")
@click.option("--teacher", help="A teacher, or its folder; the one that the store was last made with if not said.")
@click.option("--split", help="Where to search; the row's own, or the first split, if not said.")
@click.option("-k", "count", type=click.IntRange(min=1), default=10, help="How many rows.")
@click.option("--weights", help="Checkpoint of the teacher, where it is not at the recorded place.")
@click.option("--rerank", help="A student that ranks the nearest anew: a run's folder, x2vlm:…, blip:…")
@click.option("--rerank-k", type=click.IntRange(min=1), help="How many it looks at; 64 if not said.")
def neighbours(
    store: Path,
    row: int | None,
    text: str | None,
    image: Path | None,
    modality: str | None,
    teacher: str | None,
    split: str | None,
    count: int,
    weights: str | None,
    rerank: str | None,
    rerank_k: int | None,
) -> None:
    """Show the rows of STORE that are nearest to a row, a text, an image, or to a text and an image together."""
    if rerank_k is not None and rerank is None:
        raise click.UsageError("--rerank-k says how many --rerank looks at. Name its student.")
    if (row is not None) == (text is not None or image is not None):
        raise click.UsageError("Name one of --row, --text and --image, or both of these.")
    from pipeline.inspection.neighbours import Query, neighbours, render

    with resumable():
        query = Query(
            row=row,
            text=text,
            image=image,
            modality=modality,
            teacher=teacher,
            split=split,
            weights=weights,
            rerank=rerank,
            rerank_k=rerank_k or Query.rerank_k,
        )
        output().print(render(neighbours(store, query, count)))


@main.command(short_help="List unpaired captions and images that fit.")
@STORE
@click.option("--split", default="train", help="Where to search.")
@click.option("--count", type=click.IntRange(min=1), default=1000, help="How many pairs are listed.")
@click.option("--neighbours", "width", type=click.IntRange(min=1), default=50, help="Near rows looked at for each row.")
@click.option("--html", "shown", type=click.IntRange(min=0), default=100, help="Pairs shown on the page.")
@click.option("--out", type=FILE, help="Folder of the results; <store>-missing-<split> beside it if not said.")
def missing(store: Path, split: str, count: int, width: int, shown: int, out: Path | None) -> None:
    """List the pairs of STORE that belong together by its teachers, though its data set does not say so."""
    from pipeline.inspection.missing_matches import missing

    with resumable():
        output().print(missing(store, split=split, count=count, width=width, shown=shown, out=out))


@main.command(short_help="List pairs whose caption does not fit.")
@STORE
@click.option("--split", default="train", help="Whose pairs are judged.")
@click.option("--count", type=click.IntRange(min=1), default=1000, help="How many pairs are listed.")
@click.option("--neighbours", "width", type=click.IntRange(min=1), default=50, help="Near rows looked at for each row.")
@click.option("--html", "shown", type=click.IntRange(min=0), default=100, help="Pairs shown on the page.")
@click.option("--out", type=FILE, help="Folder of the results; <store>-suspects-<split> beside it if not said.")
def suspects(store: Path, split: str, count: int, width: int, shown: int, out: Path | None) -> None:
    """List the pairs of STORE whose caption does not fit its image by its teachers, the least fitting first."""
    from pipeline.inspection.suspects import suspects

    with resumable():
        output().print(suspects(store, split=split, count=count, width=width, shown=shown, out=out))


@main.command(short_help="Search a store in a browser.")
@STORE
@click.option("--teacher", help="The model to ask first, such as run:artifacts/run; a cross-modal one if not said.")
@click.option(
    "--host", default="127.0.0.1", help="Where to listen; others reach it only if you say more than loopback."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: any that is free.")
@click.option("--rerank", help="A student that may rank the nearest anew: a run's folder, x2vlm:…, blip:…")
@click.option("--fetch-images", is_flag=True, help="Open addresses of images on the open network (image_url).")
def serve(store: Path, teacher: str | None, host: str, port: int, rerank: str | None, fetch_images: bool) -> None:
    """Serve a page to search STORE by text and by image, and an API, until Ctrl-C; nothing in the store changes."""
    with resumable(lambda: ""):
        try:
            from pipeline.serve.server import serve
        except ModuleNotFoundError as error:
            raise CusaError(f"{error.name} is missing. Install cusa[serve].") from None

        serve(store, teacher=teacher, host=host, port=port, fetch_images=fetch_images, rerank=rerank)


@main.command(short_help="Number the words of the captions, for SGR and SAF.")
@STORE
@click.option("--split", "splits", multiple=True, default=("train", "val"), help="Whose captions.")
@click.option("--out", type=FILE, default=Path("vocabulary.json"), help="The file.")
def vocabulary(store: Path, splits: tuple[str, ...], out: Path) -> None:
    """Give a number to each word of STORE's captions, for student.sgraf.vocabulary."""
    from pipeline.inspection.words import write_vocabulary

    with resumable():
        output().print(write_vocabulary(store, splits, out))
