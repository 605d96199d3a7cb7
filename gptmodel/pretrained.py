"""Weights from outside: a GPT-2 of the Hugging Face hub, or a directory of one, into our own layout.

Only safetensors are read. HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptmodel.artifacts import MANIFEST, Artifact, Ref, Request, Store, load_artifact, sha256_file
from gptmodel.errors import DataError, GptflowError, NetworkError
from gptmodel.hf_format import HFModel, read_hf
from gptmodel.model import GPT
from gptmodel.space import explained, parameters, weights_bytes
from gptmodel.weights import CONFIG_FILE, load_model, read_json, save_model

RECIPE_VERSION = 1
Progress = Callable[[int, int, str], None]

_PATTERNS = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Located:
    """Where a source's files are on this machine, and what it is called in records, without this machine's paths."""

    directory: Path
    name: str
    revision: str


def load_pretrained(path_or_repo: str | Path, *, revision: str = "") -> GPT:
    """A GPT on the CPU, float32, in eval mode: from a hub repo id, a directory of Hugging Face's, or one of ours.

    `revision` is a branch, tag or commit of the repo. Errors as in `import_weights`.
    """
    located = _locate(str(path_or_repo), revision)
    if _is_ours(located.directory):
        has_manifest = (located.directory / MANIFEST).is_file()
        return load_model(load_artifact(located.directory) if has_manifest else located.directory)
    return read_hf(located.directory).load()


def import_weights(
    store: Store,
    source: str,
    *,
    revision: str = "",
    wait: bool = False,
    progress: Progress | None = None,
) -> tuple[Artifact, bool]:
    """Return (weights artifact, reused) for a repo id or a local directory in Hugging Face's layout.

    The artifact is named by what was read (repo, resolved commit, hashes of the files), never by where it lay.
    DataError: no such repo, revision or directory, or not a GPT-2 in safetensors. CheckpointError: tensors that do
    not fit. NetworkError: the hub did not answer, or answered that it cannot now.
    """
    located = _locate(source, revision)
    if _is_ours(located.directory):
        raise DataError(f"{source} is already in this project's own layout; start from it as it is")
    found = read_hf(located.directory)
    hashes = _hashes(found, progress)
    lines = "\n".join(f"{digest} {name}" for name, digest in sorted(hashes.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    request = Request(
        "weights",
        RECIPE_VERSION,
        {"source": located.name, "revision": located.revision, "format": "hf"},
        (Ref("source", digest, digest),),
    )

    def build(directory: Path) -> dict[str, Any]:
        model = found.load()
        save_model(model, directory)
        return {
            "n_params": model.num_parameters(),
            "config": asdict(found.config),
            "source": located.name,
            "revision": located.revision,
            "files": hashes,
            "dtype": found.dtype,
        }

    needed = weights_bytes(parameters(found.config))
    return store.produce(request, build, wait=wait, needed=needed)


def _is_ours(directory: Path) -> bool:
    return "context_length" in read_json(directory / CONFIG_FILE)


def _hashes(found: HFModel, progress: Progress | None) -> dict[str, str]:
    sizes = {name: (found.directory / name).stat().st_size for name in found.files}
    hashes, done = {}, 0
    for name, size in sizes.items():
        hashes[name] = sha256_file(found.directory / name)
        done += size
        if progress is not None:
            progress(done, sum(sizes.values()), "bytes")
    return hashes


def _locate(source: str, revision: str) -> _Located:
    path = Path(source).expanduser()
    if path.is_dir():
        if revision:
            raise DataError(f"{source} is a directory, and revision {revision!r} is for repositories; leave it out")
        return _Located(path, "local", "")
    if path.is_file():
        raise DataError(f"{source} is a file; give the directory that holds config.json and model.safetensors")
    if not _REPO_ID.fullmatch(source):
        raise DataError(f"there is no directory {source}, and it is not a repository id such as openai-community/gpt2")
    directory = _download(source, revision)
    commit = directory.name
    return _Located(directory, source, commit if _COMMIT.fullmatch(commit) else revision)


def _download(repo: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and only this needs it

    try:
        found = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=_PATTERNS,
            endpoint=os.environ.get("HF_ENDPOINT") or None,
        )
    except Exception as error:  # its errors have no common base
        raise _explained(error, repo, revision) from error
    return Path(found)


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
        wish = response.headers.get("Retry-After", "")
        retry_after = float(wish) if wish.isdigit() else None
        return NetworkError(f"the hub answered {status} for {what}; try again later", retry_after)
    return DataError(f"the hub refused {what} with status {status}; check the name, and HF_TOKEN if it is private")
