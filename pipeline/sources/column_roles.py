"""Which column of a table is what: as data.columns names or numbers them, else by the usual names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pipeline.sources.file_names import is_image
from stores.errors import SourceError
from stores.parameters import Column, Columns

if TYPE_CHECKING:
    from pipeline.sources.table_source import Table

USUAL_NAMES: Final = {
    "image": (
        *("image", "image_path", "image_name", "filepath", "file_path", "filename", "file_name", "path"),
        *("img", "img_path", "jpg", "png", "webp"),
    ),
    "caption": ("caption", "captions", "text", "sentence", "sentences", "raw", "title", "comment"),
    # In COCO's way of speaking, `id` beside `image_id` numbers the captions.
    "id": ("image_id", "id", "key", "uid"),
    "split": ("split",),
    "label": ("label", "class"),
}
"""By which names a column is recognised, whatever their case; the first that a table has is taken."""
_REQUIRED: Final = {"image": "image", "caption": "text"}
"""What `data.require` calls that which is in a column of a role."""
_FOLDERS: Final = ("filepath", "file_path")
_FILES: Final = ("filename", "file_name")


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Which column of a table is what; an image may be named by two, its folder's and its file's."""

    image: tuple[str, ...]
    """None where `data.require` asks for no image, and there is no column of them; so with the caption."""
    caption: str | None
    id: str | None = None
    split: str | None = None
    label: str | None = None

    @property
    def wanted(self) -> list[str]:
        """The columns to read, each once."""
        names = (*self.image, self.caption, self.id, self.label, self.split)
        return list(dict.fromkeys(name for name in names if name is not None))


def role_of(name: str) -> str | None:
    """Return what a column of this name usually is."""
    return next((role for role, names in USUAL_NAMES.items() if _plain(name) in names), None)


def are_usual(names: Sequence[str], columns: Columns) -> bool:
    """Tell whether names of columns, with what data.columns says, tell the image's and the caption's."""
    return all(getattr(columns, role) in names or _usual(names, role) for role in ("image", "caption"))


def find_roles(table: Table, columns: Columns, require: Collection[str]) -> Roles:
    """Say which columns of a table are what; `require` says what each row must have: image, text.

    Raises:
        SourceError: a named column, or one for what is required, is not there, or neither image nor caption.
    """
    where, found = table.file, table.columns()
    roles = {role: _named(where, role, getattr(columns, role), found) for role in USUAL_NAMES}
    needed = [role for role, what in _REQUIRED.items() if what in require or not any(map(roles.get, _REQUIRED))]
    missing = next((role for role in needed if not roles[role]), None)
    if missing is not None:
        raise SourceError(
            f"{where} has the columns {_listed(found)}; expected one for the {missing} (usual names: "
            f"{', '.join(USUAL_NAMES[missing])}). Set data.columns.{missing} to the column of the {missing}"
            f"{_otherwise(missing, found)}."
        )
    image = roles["image"]
    if image and columns.image is None:
        image = _folder_and_file(image[0], table)
    single = {role: names[0] if names else None for role, names in roles.items()}
    return Roles(image=image, **{role: name for role, name in single.items() if role != "image"})


def check_names(where: object, names: Sequence[str], columns: Columns) -> None:
    """See that a first line names the columns.

    Raises:
        SourceError: it looks like a row, or data.columns names one of its values.
    """
    if are_usual(names, columns):
        # What data.columns names may be a whole sentence (a form's question), but no image.
        is_row = isinstance(columns.image, str) and columns.image in names and is_image(columns.image)
    else:
        is_row = any(map(_is_data, names))
    if is_row:
        raise _without_names(where, names)


def _named(where: object, role: str, wanted: Column | list[Column] | None, found: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that data.columns gives a role, or the usual one; none if there is none."""
    if wanted is None:
        name = _usual(found, role)
        return (name,) if name is not None else ()
    names = []
    for column in wanted if isinstance(wanted, list) else [wanted]:
        if isinstance(column, int) and column <= len(found):
            names.append(found[column - 1])
        elif isinstance(column, str) and (column in found or column.partition(".")[0] in found):
            names.append(column)
        else:
            raise SourceError(
                f"{where} has the columns {_listed(found)}; expected {column!r}, which data.columns.{role} names. "
                f"Set data.columns.{role} to the column of the {role}."
            )
    return tuple(names)


def _usual(found: Sequence[str], role: str) -> str | None:
    plain = {_plain(name): name for name in reversed(found)}
    return next((plain[name] for name in USUAL_NAMES[role] if name in plain), None)


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _folder_and_file(image: str, table: Table) -> tuple[str, ...]:
    """Return two columns where they are a folder's and a file's name, as in Hugging Face's Karpathy tables."""
    file = next((name for name in table.columns() if _plain(name) in _FILES), None)
    if _plain(image) not in _FOLDERS or file is None:
        return (image,)
    values = next((row.values for row in table.rows([image, file]) if not row.fault), ())
    are_names = bool(values) and all(isinstance(value, str) for value in values)
    return (image, file) if are_names and is_image(values[1]) and not is_image(values[0]) else (image,)


def _is_data(name: str) -> bool:
    """Tell whether the name of a column is rather a value: an image, an address, a sentence."""
    return is_image(name) or "://" in name or len(name.split()) > 3


def _without_names(where: object, found: Sequence[str]) -> SourceError:
    numbered = list(enumerate(found, start=1))
    image = next((n for n, value in numbered if is_image(value) or "://" in value), 1)
    others = [(len(value.split()), -n) for n, value in numbered if n != image]
    caption = -max(others)[1] if others else 2
    shown = "; ".join(f"{n}: {value[:60]!r}" for n, value in numbered[:10])
    return SourceError(
        f"{where}: the first line looks like data, not like names of columns ({shown}). If the file has no line of "
        f"names, give the columns' numbers, and that line is kept as the first row: "
        f"-S data.columns.image={image} -S data.columns.caption={caption}."
    )


def _otherwise(role: str, found: Sequence[str]) -> str:
    """Say what else may be meant by a table that lacks a column."""
    if len(found) == 1:
        return ", or data.delimiter or data.format, if that is one name too few"
    # As img2dataset's output_format files leaves them.
    return ", or data.format=folder if the images are files with a .txt beside each" if role == "image" else ""


def _listed(found: Sequence[str]) -> str:
    return ", ".join(map(repr, found[:30])) or "(none)"
