"""Where an export goes: a place that is free, told before a model is loaded."""

from __future__ import annotations

from pathlib import Path

from gptmodel.errors import DataError
from gptmodel.text.reading import local_path

_CHECK = "--to"


def free_directory(target: Path) -> Path:
    """The directory to write, absolute; DataError where something is there already, but for an empty directory."""
    place = local_path(str(target), _CHECK).absolute()
    if place.is_symlink() or (place.exists() and (not place.is_dir() or any(place.iterdir()))):
        raise DataError(f"{place} is there already; name a directory that is new or empty")
    return place


def free_file(target: Path) -> Path:
    """The file to write, absolute; DataError where something is there already."""
    place = local_path(str(target), _CHECK).absolute()
    if place.exists() or place.is_symlink():
        raise DataError(f"{place} is there already; name a file that is new")
    return place
