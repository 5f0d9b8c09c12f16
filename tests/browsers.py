"""A page in a real browser: does it fit, is it light by day and dark by night."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium, which is no part of the project")


def fits(page: str, folder: Path, width: int) -> None:
    """Assert that nothing of the page runs over a screen's edge, and that it follows the colour scheme."""
    # In a frame, since a browser's own window has a least width; only this copy of the page has a script.
    script = "onload=()=>{parent.document.title=document.scrollingElement.scrollWidth}"
    inner = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", f"<script>{script}</script></body>")
    frame = f'<iframe style="border:0;width:{width}px;height:9000px" srcdoc="{html.escape(inner)}"></iframe>'
    (folder / "frame.html").write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{frame}')
    dumped = browser("--dump-dom", folder / "frame.html")
    measured = re.search(r"<title>(\d+)</title>", dumped)
    assert measured, "the browser ran the script"
    assert int(measured[1]) <= width, "nothing runs over the edge"
    (folder / "report.html").write_text(page)
    light, dark = (shot(folder / "report.html", width, scheme) for scheme in (1, 0))
    assert light.shape == dark.shape == (2000, width, 3)
    assert light[:, :4].mean() > 200, "a light page"
    assert dark[:, :4].mean() < 60, "a dark page"
    assert light.std() > 10, "something is drawn"


def shot(path: Path, width: int, scheme: int) -> np.ndarray:
    picture = path.with_name(f"{width}-{scheme}.png")
    settings = f"--blink-settings=preferredColorScheme={scheme}"
    browser("--hide-scrollbars", settings, f"--window-size={width},2000", f"--screenshot={picture}", path)
    return np.asarray(Image.open(picture).convert("RGB"), dtype=float)


def browser(*arguments: object) -> str:
    *options, path = arguments
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *map(str, options), f"file://{path}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
