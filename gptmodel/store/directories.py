"""What lies where artifacts lie, by its names alone."""

from __future__ import annotations

import os
from pathlib import Path

from gptmodel.errors import ArtifactError
from gptmodel.store.manifests import MANIFEST, SCRATCH


def has_manifest(directory: Path) -> bool:
    """Whether a manifest lies there; also where that cannot be told, so that nobody takes what is closed for gone."""
    try:
        (directory / MANIFEST).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def is_artifact(name: str) -> bool:
    """Whether a name is the path of an artifact's directory, be it one that is closed to us."""
    return os.path.isdir(name) and has_manifest(Path(name))  # noqa: PTH112 - a name may be too long for a path


def is_link(path: Path) -> bool:
    """Whether a link lies there; False too where that cannot be told: whoever opens it meets the reason."""
    return os.path.islink(path)  # noqa: PTH114 - Path's own raises in a folder that is closed to us


def shown(folder: Path) -> list[Path]:
    """What is not hidden in a folder; nothing if it is none. ArtifactError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ArtifactError(
            f"{folder} cannot be listed ({error.strerror}), so nobody can tell what it holds; give this user the right"
        ) from None


def is_scratch(relative: Path) -> bool:
    return relative.parts[0] == SCRATCH or relative.name == MANIFEST or relative.name.endswith(".tmp")
