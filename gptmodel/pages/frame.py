"""The frame and the looks of our pages: for a browser, a mail, or an artifact of an MLflow run.

A page is one file and loads nothing. Its content security policy tells the browser so: no address is asked, and no
script runs but the one that the page was made with, known by its hash. So a script in a text that somebody forgot to
escape would not run. Colours of categories are those of Okabe and Ito (2008), told apart by all kinds of eyes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from pathlib import Path

from gptmodel.errors import StorageError
from gptmodel.store.artifacts import write_atomic

_EDGE = 16  # pixels around a drawing that stands alone
COLOURS = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --soft: #59636e; --box: #f6f8fa; --line: #8b949e;
  --bad: #b34700; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --ink: #e8ebef; --soft: #a3adb8; --box: #20252c;
  --line: #8b949e; --bad: #ff9a57; } }
"""
"""Of pages, and of drawings that stand alone: they follow what the reader's screen is set to."""
_STYLE = """
* { box-sizing: border-box; }
body { margin: 0; padding: 20px; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 20px; margin: 0 0 4px; overflow-wrap: anywhere; }
p { margin: 0 0 16px; color: var(--soft); max-width: 75ch; }
figure { margin: 0 0 20px; overflow-x: auto; }
svg { display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 6px 14px 6px 0; border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; border-top: 0; }
td, code { overflow-wrap: anywhere; }
.bad { color: var(--bad); }
"""


def html_page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """The whole page. `title` is escaped here; `body`, `style` and `script` are taken as they are."""
    run = f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'" + (
        run if script else ""
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{COLOURS}{_STYLE}{style}</style>\n</head>\n<body>\n{body}"
        f"{f'<script>{script}</script>' if script else ''}</body>\n</html>\n"
    )


def standalone(svg: str, style: str) -> str:
    """A drawing of a page as a file of its own, with its colours and a ground; `svg` begins with its opening tag."""
    opening, _, rest = svg.partition(">")
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', opening)
    if box is None:
        raise ValueError("the drawing has no viewBox")
    width, height = int(box[1]), int(box[2])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-_EDGE} {-_EDGE} {width + 2 * _EDGE} {height + 2 * _EDGE}" '
        f'width="{width + 2 * _EDGE}" height="{height + 2 * _EDGE}" role="img">\n<style>{COLOURS}'
        f'svg {{ font-family: system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }}\n{style}</style>\n'
        f'<rect x="{-_EDGE}" y="{-_EDGE}" width="100%" height="100%" fill="var(--page)"/>\n{rest.strip()}\n'
    )


def write_page(path: Path, page: str) -> None:
    """Write a page whole or not at all. StorageError where that is not possible."""
    try:
        write_atomic(path, page)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {(error.strerror or str(error)).lower()}; name another place"
        ) from None
