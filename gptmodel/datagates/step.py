"""The look at a corpus as a step: its report is an artifact, made once and reused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptmodel.config import DataGatesConfig, recipe
from gptmodel.datagates.check import check
from gptmodel.datagates.contamination import BENCHMARK_FILES
from gptmodel.datagates.report import Report, markdown, report_from
from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.progress import Progress
from gptmodel.store.artifacts import MANIFEST, SCRATCH, Artifact, Request, Store, sha256_file, write_atomic
from gptmodel.text.corpus import KIND as CORPUS
from gptmodel.text.minhash import ALGORITHM
from gptmodel.text.reading import local_path

KIND = "data-check"
RECIPE_VERSION = 2
REPORT, PAGE = "report.json", "report.md"
_GROWS = frozenset({"paths", "sha256", "revision", "last_year"})  # of a source: what another day has otherwise


def checked(
    store: Store,
    corpus: Artifact,
    config: DataGatesConfig,
    previous: Artifact | None = None,
    *,
    wait: bool = False,
    progress: Progress | None = None,
) -> tuple[Artifact, bool]:
    """(report artifact, reused). Errors as `check`; whether the gates are passed is asked of `report_of`.

    Files: `report.json`, all that a Report holds, and `report.md`, the same for people.
    """
    inputs = (corpus.ref, *([previous.ref] if previous else []))
    request = Request(KIND, RECIPE_VERSION, _asked(config), inputs)

    def build(directory: Path) -> dict[str, Any]:
        report = check(corpus, previous, config, scratch=directory / SCRATCH, progress=progress)
        write_atomic(directory / PAGE, markdown(report))
        write_atomic(directory / REPORT, json.dumps(report.as_dict(), ensure_ascii=False, indent=1) + "\n")
        return {
            "passed": report.passed,
            "failed": [finding.gate for finding in report.failed],
            "warned": [finding.gate for finding in report.warned],
            "documents": report.documents,
        }

    return store.produce(request, build, wait=wait)


def _asked(config: DataGatesConfig) -> dict[str, Any]:
    """The settings, with what benchmark files hold in place of where they lie."""
    files = []
    for path in config.benchmark_files:
        try:
            files.append([Path(path).name, sha256_file(local_path(path, BENCHMARK_FILES, ConfigError))])
        except OSError as error:
            raise ConfigError(
                f"benchmark file {path} cannot be read: {error.strerror}; mend {BENCHMARK_FILES}"
            ) from None
    return {**recipe(config), "benchmark_files": files, "minhash": ALGORITHM}


def report_of(artifact: Artifact) -> Report:
    """The report that an artifact holds. ArtifactError if it holds none."""
    if artifact.kind != KIND:
        raise ArtifactError(f"{artifact.label} is of kind {artifact.kind}; a report on data is a {KIND}")
    try:
        return report_from(json.loads(artifact.file(REPORT).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{artifact.label}: {REPORT} is no report ({error}); remove {artifact.path}") from None


def previous_of(store: Store, corpus: Artifact) -> Artifact | None:
    """The corpus of the store that was finished last before this one, of the same source and settings.

    The same but for what another day has otherwise: names of files, commit, last year. What is damaged is passed over.
    """
    found: list[Artifact] = []
    for path in store.directories(CORPUS):
        try:
            other = store.at(CORPUS, path.name)
        except ArtifactError:
            continue
        if other.fingerprint != corpus.fingerprint and _same(other) == _same(corpus) and _when(other) < _when(corpus):
            found.append(other)
    return max(found, key=_when, default=None)


def _when(corpus: Artifact) -> tuple[str, int]:
    """When it was finished: to the second as recorded, and within one as its file says."""
    return str(corpus.provenance.get("finished", "")), (corpus.path / MANIFEST).stat().st_mtime_ns


def _same(corpus: Artifact) -> dict[str, Any]:
    config = {name: value for name, value in corpus.request.config.items() if name != "hold_out"}
    source = {name: value for name, value in config.pop("source", {}).items() if name not in _GROWS}
    return {**config, "source": source}
