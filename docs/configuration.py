"""Writes docs/configuration.md and docs/presets/*.yaml from the settings classes: `python docs/configuration.py`."""

from __future__ import annotations

from pathlib import Path

from gptmodel.config.reference import page, preset_file
from gptmodel.presets import PRESETS

DOCS = Path(__file__).resolve().parent


def pages() -> dict[Path, str]:
    """Each file, relative to docs/, and what should stand in it."""
    files = {Path("presets") / f"{name}.yaml": preset_file(name) for name in PRESETS}
    return {Path("configuration.md"): page(), **files}


if __name__ == "__main__":
    (DOCS / "presets").mkdir(exist_ok=True)
    for file, text in pages().items():
        (DOCS / file).write_text(text, encoding="utf-8")
