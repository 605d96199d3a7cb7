"""Models of the Hugging Face hub: fetched with its own client, checked against the hashes that it gave.

The client resumes and caches, but looks at sizes only. Its cache names each file by the hash that the hub stated:
sha256 for large files, git's for small ones. So what came is held against that name before it is used.
"""

from __future__ import annotations

import hashlib
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gptmodel.errors import DataError, GptflowError, NetworkError
from gptmodel.progress import Meter, progress, watchers
from gptmodel.store.artifacts import sha256_file
from gptmodel.store.space import explained, used_bytes
from gptmodel.text.download import retry_after

_PATTERNS = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json", "vocab.json"]


def download_repo(repo: str, revision: str) -> Path:
    """The directory of a model's files in the hub's cache, named by the commit; each file's hash is checked.

    DataError for what is not there or not what the hub said, NetworkError for what time may heal.
    """
    from huggingface_hub import snapshot_download  # slow to import, and only this needs it

    try:
        with progress(f"download of {repo}", unit="bytes", look=_BytesOf(repo)):
            found = snapshot_download(
                repo,
                revision=revision or None,
                allow_patterns=_PATTERNS,
                endpoint=os.environ.get("HF_ENDPOINT") or None,
            )
    except Exception as error:  # its errors have no common base
        raise _explained(error, repo, revision) from error
    for path in sorted(Path(found).iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in _PATTERNS):  # others' files are others' business
            _check_hash(repo, path)
    return Path(found)


class _BytesOf:
    """Sets a meter to what the hub's cache holds of a model. The client's own bars would be drawn over ours."""

    def __init__(self, repo: str) -> None:
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if watchers():
            disable_progress_bars()
        self._place = Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
        self._before = used_bytes(self._place)

    def __call__(self, meter: Meter) -> None:
        meter(used_bytes(self._place) - self._before)


def _check_hash(repo: str, path: Path) -> None:
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        sound = sha256_file(blob) == blob.name
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        sound = _git_hash(blob) == blob.name
    else:
        return  # a cache without links keeps no hashes
    if not sound:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise DataError(f"{repo}: {path.name} is not what the hub said ({blob.name[:16]}…); deleted, run it again")


def _git_hash(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _explained(error: BaseException, repo: str, revision: str) -> GptflowError | BaseException:
    """The error as one of ours, by the first in its chain of causes that says enough; itself if none does."""
    from huggingface_hub import constants, errors

    if told := explained(error, f"the download of {repo}", Path(constants.HF_HOME), setting="HF_HOME"):
        return told
    at = f" at revision {revision}" if revision else ""
    chain = _causes(error)
    for cause in chain:
        if isinstance(cause, errors.GatedRepoError):
            return DataError(f"{repo} asks for consent to its terms: accept them on its page, and set HF_TOKEN")
        if isinstance(cause, errors.RevisionNotFoundError):
            return DataError(f"{repo} has no revision {revision!r}; give a branch, tag or commit that it has")
        if isinstance(cause, errors.RepositoryNotFoundError):
            return DataError(
                f"there is no repository {repo}, or it is private (then set HF_TOKEN), and no directory of this name"
            )
        if isinstance(cause, errors.HFValidationError):
            return DataError(f"{repo} is not a repository id: {cause}")
        if isinstance(cause, errors.HfHubHTTPError) and cause.response is not None:
            return _refused(cause.response, f"{repo}{at}")
    offline = constants.is_offline_mode() or any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in chain)
    if offline:
        return DataError(f"{repo}{at} is not in the local cache and HF_HUB_OFFLINE is set; unset it, or fill the cache")
    # huggingface_hub speaks through httpx or httpx2, by version
    if any(isinstance(cause, OSError) or type(cause).__module__.startswith("httpx") for cause in chain):
        return NetworkError(f"the hub did not answer for {repo}{at} ({chain[-1]}); check the network and HF_ENDPOINT")
    return error


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _refused(response: Any, what: str) -> GptflowError:
    status = int(response.status_code)
    if status == 429 or status >= 500:
        wish = retry_after(response.headers.get("Retry-After", ""))
        return NetworkError(f"the hub answered {status} for {what}; try again later", wish)
    return DataError(f"the hub refused {what} with status {status}; check the name, and HF_TOKEN if it is private")
