"""Pages that open by a double click: each one file, which loads nothing from elsewhere and runs no script.

All extend `page.html`, whose head forbids the rest and has the colours of day and night. What data says is escaped.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jinja2

from stores.ownership import write_signed


def write_html(path: Path, template: Path, **values: object) -> None:
    """Write the page that `template`, with `values` for its names, makes to `path`, atomically."""
    write_signed(path, rendered(template, **values))


def rendered(template: Path, **values: object) -> str:
    """Return what `template` makes of `values`; it may extend, import and include its neighbours, and `page.html`."""
    page = _environment(template.parent).get_template(template.name).render(**values)
    return page.replace("\0", "\N{REPLACEMENT CHARACTER}")  # a NUL is nothing that a page can hold


@cache
def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
