"""What the name of a document's source tells: its file or dataset, and the text that it is a piece of.

`book.txt` is a whole file, `wiki.jsonl:7` a line, `web.parquet#7` a row; a text that was cut gives `…#0`, `…#1` and so
on. A row and a piece look alike, so the settings of the corpus have to tell them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PLACE = re.compile(r"([#:]\d+)+$")  # the number of a row, of a line, or of a piece that was cut
_LAST = re.compile(r"#\d+$")


def file_of(source: str) -> str:
    """The file or dataset, without the number of a row, a line or a piece."""
    return _PLACE.sub("", source)


def parent_of(source: str, asked: Mapping[str, Any]) -> str:
    """The text that a document is a piece of, empty for a whole one; `asked` is what its corpus records as `source`."""
    text = _LAST.sub("", source)
    if text == source or source in asked["paths"]:  # a file may be named so itself
        return ""
    if _is_of_rows(source, asked) and (text in asked["paths"] or not _LAST.search(text)):
        return ""
    return text


def _is_of_rows(source: str, asked: Mapping[str, Any]) -> bool:
    kind, form = str(asked["kind"]), str(asked["format"])
    if kind in ("embedded", "huggingface") or form != "auto":
        return kind == "huggingface" or (kind != "embedded" and form == "parquet")
    return Path(file_of(source)).suffix.lower() == ".parquet"
