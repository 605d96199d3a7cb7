"""Weights from outside, into our own layout: a GPT-2 of the Hugging Face hub, a directory of one, or OpenAI's files.

Nothing is unpickled. HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from gptmodel.arithmetic import count_parameters
from gptmodel.config import ModelConfig
from gptmodel.errors import CheckpointError, ConfigError, DataError
from gptmodel.formats.certificate import certify
from gptmodel.formats.hf_format import read_hf
from gptmodel.formats.hub_models import download_repo
from gptmodel.formats.openai_fetch import fetch_openai
from gptmodel.formats.openai_format import HPARAMS_FILE, read_openai
from gptmodel.model import GPT
from gptmodel.progress import Progress
from gptmodel.progress import progress as measured
from gptmodel.store.artifacts import MANIFEST, Artifact, Ref, Request, Store, load_artifact, open_store, sha256_file
from gptmodel.store.space import weights_bytes
from gptmodel.text.addresses import shown
from gptmodel.text.download import content_digest
from gptmodel.text.reading import local_path
from gptmodel.weights import CONFIG_FILE, load_model, read_json, save_model

log = logging.getLogger(__name__)
RECIPE_VERSION = 1
DOWNLOADS = ".downloads"  # in the store

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ForeignModel(Protocol):
    """A model in somebody else's layout, checked but not read."""

    @property
    def directory(self) -> Path: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def files(self) -> tuple[str, ...]: ...
    @property
    def dtype(self) -> str: ...
    def load(self) -> GPT: ...


@dataclass(frozen=True)
class _Located:
    """Where a source's files are on this machine, and what it is called in records, without this machine's paths."""

    directory: Path
    name: str
    revision: str


def load_pretrained(path_or_repo: str | Path, *, revision: str = "") -> GPT:
    """A GPT on the CPU, float32, in eval mode: from a hub repo id, OpenAI's files, or a directory of theirs or ours.

    `path_or_repo` and `revision` as in `import_weights`, and so are the errors.
    """
    located = _locate(str(path_or_repo), revision, open_store())
    if _is_ours(located.directory):
        has_manifest = (located.directory / MANIFEST).is_file()
        return load_model(load_artifact(located.directory) if has_manifest else located.directory)
    return _read(located.directory).load()


def import_weights(
    store: Store,
    source: str,
    *,
    revision: str = "",
    wait: bool = False,
    allow_private: bool = False,
    progress: Progress | None = None,
) -> tuple[Artifact, bool]:
    """Return (weights artifact, reused) for weights from outside, with a certificate in its summary.

    `source` is a hub repo id, a directory in Hugging Face's layout or in OpenAI's, or the address that OpenAI's files
    lie under. `revision` is a branch, tag or commit of a repo; of an address, the digest of what it held when it was
    imported first. The artifact is named by what was read, never by where it lay. DataError: no such source, or none
    that is computed here. CheckpointError: tensors that do not fit or are damaged. NetworkError: a server did not
    answer, or answered that it cannot now.
    """
    located = _locate(source, revision, store, allow_private)
    if _is_ours(located.directory):
        raise DataError(f"{source} is already in this project's own layout; start from it as it is")
    with _dropping(located):
        found = _read(located.directory)
    hashes = _hashes(found, progress)
    digest = content_digest(list(hashes.items()))
    located = _pinned(located, digest)
    layout = "hf" if (located.directory / CONFIG_FILE).is_file() else "openai"
    request = Request(
        "weights",
        RECIPE_VERSION,
        {"source": located.name, "revision": located.revision, "format": layout},
        (Ref("source", digest, digest),),
    )

    def build(directory: Path) -> dict[str, Any]:
        with _dropping(located), measured("reading weights"):
            model = found.load()
        save_model(model, directory)
        return {
            "n_params": model.num_parameters(),
            "config": asdict(found.config),
            "source": located.name,
            "revision": located.revision,
            "files": hashes,
            "dtype": found.dtype,
            "certificate": _certified(model),
        }

    needed = weights_bytes(count_parameters(found.config).total)
    return store.produce(request, build, wait=wait, needed=needed)


def _certified(model: GPT) -> dict[str, Any]:
    with measured("comparing with transformers"):
        return certify(model)


@contextmanager
def _dropping(located: _Located) -> Iterator[None]:
    """What an address sent and what does not fit is not kept: the next try shall ask for it again."""
    try:
        yield
    except (CheckpointError, DataError):
        if _is_address(located.name):
            shutil.rmtree(located.directory, ignore_errors=True)
        raise


def _is_address(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _read(directory: Path) -> ForeignModel:
    return read_openai(directory) if _is_openai(directory) else read_hf(directory)


def _is_openai(directory: Path) -> bool:
    return (directory / HPARAMS_FILE).is_file() and not (directory / CONFIG_FILE).is_file()


def _check_address(source: str, revision: str) -> None:
    parts = urlsplit(source)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(f"{shown(source)}: give the address without a password, ? or #, since it is recorded")
    if revision and not re.fullmatch(r"[0-9a-f]{8,64}", revision):
        raise ConfigError(f"revision is {revision!r}; that of an address is the digest which its first import told")


def _pinned(located: _Located, digest: str) -> _Located:
    """An address with the digest of what it holds as its revision; DataError if another one was asked for."""
    if not _is_address(located.name):
        return located
    if not located.revision:
        log.warning(
            "%s publishes no hashes; to have these bytes or none next time, give --revision %s", located.name, digest
        )
    elif not digest.startswith(located.revision):
        shutil.rmtree(located.directory)
        raise DataError(
            f"{located.name} holds {digest[:16]}…, and revision {located.revision[:16]}… was asked for; deleted. "
            "Check the address and the revision"
        )
    return replace(located, revision=digest)


def _is_ours(directory: Path) -> bool:
    return not _is_openai(directory) and "context_length" in read_json(directory / CONFIG_FILE)


def _hashes(found: ForeignModel, progress: Progress | None) -> dict[str, str]:
    sizes = {name: (found.directory / name).stat().st_size for name in found.files}
    hashes, done = {}, 0
    for name, size in sizes.items():
        hashes[name] = sha256_file(found.directory / name)
        done += size
        if progress is not None:
            progress(done, sum(sizes.values()), "bytes")
    return hashes


def _locate(source: str, revision: str, store: Store, allow_private: bool = False) -> _Located:
    if _is_address(source):
        _check_address(source, revision)
        directory = fetch_openai(source, store.root / DOWNLOADS, allow_private=allow_private)
        return _Located(directory, shown(source.rstrip("/")), revision)
    path = local_path(source, "the path")
    if path.is_dir():
        if revision:
            raise DataError(f"{source} is a directory, and revision {revision!r} is for repositories; leave it out")
        return _Located(path, "local", "")
    if path.is_file():
        raise DataError(f"{source} is a file; give the directory that holds config.json and model.safetensors")
    if "@" in source and not revision:  # as `init_from` has it, which is one word
        source, revision = source.rsplit("@", 1)
    if not _REPO_ID.fullmatch(source):
        raise DataError(
            f"there is no directory {source}, and it is no repository id such as openai-community/gpt2; check the path"
        )
    directory = download_repo(source, revision)
    commit = directory.name
    return _Located(directory, source, commit if _COMMIT.fullmatch(commit) else revision)
