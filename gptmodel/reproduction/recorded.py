"""What the store recorded of how an artifact was made, put back into settings that make it again.

A manifest holds what decided the bytes, without paths; a run's `job.json` holds the whole config, paths too. The two
must say the same wherever both speak.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptmodel.checked import ConfigT
from gptmodel.config import (
    CorpusConfig,
    EvaluateConfig,
    ModelConfig,
    PipelineConfig,
    ShardsConfig,
    SourceConfig,
    TrainConfig,
    recipe,
    with_later,
)
from gptmodel.config.known import Named
from gptmodel.config.listing import flat
from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.lineage.differences import Curve, curve_of
from gptmodel.pretraining.step import RUNS, run_dir_of
from gptmodel.settings import parse_config
from gptmodel.store.artifacts import Artifact, Store, canonical
from gptmodel.store.manifests import read_manifest
from gptmodel.text.corpus import SOURCES
from gptmodel.text.download import content_digest
from gptmodel.tokens.shards import NO_SETTINGS
from gptmodel.training.metrics_log import curve, read_lines

log = logging.getLogger(__name__)
JOB_FILE = "job.json"
# What a manifest leaves out of a source or puts in other words: paths become names, a branch becomes a commit.
_PINNED = frozenset({"paths", "sha256", "dataset", "revision"})

_CLASSES: dict[str, type[Any]] = {
    "model": ModelConfig,
    "train": TrainConfig,
    "corpus": CorpusConfig,
    "shards": ShardsConfig,
    "evaluation": EvaluateConfig,
}


@dataclass(frozen=True)
class Machine:
    """What a training computed on, as far as it was recorded. 0 and "" are not known."""

    precision: str = ""
    threads: int = 0
    device: str = ""
    """cpu, or cuda:0 and the like."""
    name: str = ""
    """The device's own name, or the processor's vector capability."""


def read_job(run_dir: Path) -> dict[str, Any]:
    """A run's `job.json`; empty where there is none. ArtifactError if it cannot be read."""
    path = run_dir / JOB_FILE
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}); put it back from a backup: without it nobody knows what to repeat"
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise ArtifactError(
            f"{path} is no job of a training run; put it back from a backup: without it nobody knows what to repeat"
        )
    return found


def read_jobs(store: Store) -> Iterator[dict[str, Any]]:
    """The jobs of all runs of the store that can be read."""
    for path in sorted((store.root / RUNS).glob(f"*/{JOB_FILE}")):
        with suppress(ArtifactError):
            yield read_job(path.parent)


def machine_of(checkpoint: Artifact) -> Machine:
    """What a checkpoint's summary says that it was computed on."""
    told = checkpoint.summary.get("machine") or {}
    threads = str(told.get("threads", ""))
    return Machine(
        precision=str(checkpoint.summary.get("precision", "")),
        threads=int(threads) if threads.isdigit() else 0,
        device=str(told.get("device", "")),
        name=str(told.get("name", "")),
    )


def training_config(store: Store, checkpoint: Artifact) -> PipelineConfig:
    """The whole config of the run that made a checkpoint; where its job is gone, what the manifest alone says.

    ArtifactError if job and manifest differ, or if this code does not know a setting.
    """
    run_dir = run_dir_of(store, checkpoint.fingerprint)
    job, decided = read_job(run_dir), recorded_settings(checkpoint)
    whole = with_later(job["config"], PipelineConfig) if job else {}
    for group in ("model", "train"):
        if whole and (path := _disagreement(decided[group], whole.get(group, {}), group)):
            raise ArtifactError(
                f"{run_dir / JOB_FILE} and the manifest of {checkpoint.label} differ in {path}: one of them was "
                "changed after the training, so nobody can tell what to repeat; put the right one back"
            )
    return _parsed({**whole, **{g: {**whole.get(g, {}), **decided[g]} for g in decided}}, PipelineConfig, checkpoint)


def _disagreement(decided: Any, whole: Any, path: str) -> str:
    """The first setting that a manifest has otherwise than a job; the job may know more of them."""
    if isinstance(decided, dict) and isinstance(whole, dict):
        found = (_disagreement(value, whole.get(name), f"{path}.{name}") for name, value in decided.items())
        return next((bad for bad in found if bad), "")
    return "" if canonical(decided) == canonical(whole) else path


def recorded_curve(store: Store, checkpoint: Artifact) -> Curve:
    """The figures of a training as they were published; where that file is damaged, those of the run's log."""
    try:
        return curve_of(read_lines(checkpoint.file("curve.jsonl")))
    except ArtifactError as error:
        log.warning("%s; the run's log is compared instead", error)
        return curve_of(curve(run_dir_of(store, checkpoint.fingerprint) / "metrics.jsonl"))


def recorded_settings(artifact: Artifact) -> dict[str, Any]:
    """What a manifest says was asked, under the names of a config: a checkpoint has `model` and `train` already.

    Settings that this code got later stand there too, so that old and new manifests can be compared.
    """
    config = artifact.request.config
    named = config if artifact.kind == "checkpoint" else {artifact.kind: config}
    return {name: with_later(part, _CLASSES[name]) if name in _CLASSES else part for name, part in named.items()}


def of_artifact(store: Store, artifact: Artifact) -> Named:
    """What the store recorded: all settings for a model whose run is still there, else those that decided its bytes."""
    if artifact.kind == "checkpoint" and read_job(run_dir_of(store, artifact.fingerprint)):
        values = flat(training_config(store, artifact))
    elif artifact.kind == "evaluation":
        groups = recorded_settings(artifact)
        whole = flat({"evaluate": parse_config(groups["evaluation"], EvaluateConfig)})
        values = {path: value for path, value in whole.items() if path[1] in groups["evaluation"]}
    else:
        groups, at_top = recorded_settings(artifact), {path[0] for path in flat(PipelineConfig())}
        values = {path: value for path, value in flat(groups).items() if path[0] in at_top}
    if not values:
        raise ArtifactError(f"{artifact.label} records no settings of a pipeline; name a model, corpus or evaluation")
    return Named(artifact.label, values, dict.fromkeys(values, artifact.label))


def of_run(run_dir: Path, name: str) -> Named:
    """The settings of a training that has published nothing yet."""
    values = flat(parse_config(read_job(run_dir)["config"], PipelineConfig))
    return Named(name, values, dict.fromkeys(values, f"run {run_dir.name}"))


def shards_config(shards: Artifact) -> ShardsConfig:
    """The settings of shards, from their manifest."""
    found = {name: value for name, value in shards.request.config.items() if name not in NO_SETTINGS}
    return _parsed(found, ShardsConfig, shards)


def corpus_config(store: Store, corpus: Artifact | None, own: PipelineConfig | None) -> CorpusConfig | None:
    """Settings with paths that give this corpus: those of its `own` run, of another run on it, or of its manifest.

    With no manifest (None) the own run's are all there is. None where nothing says from where the text came.
    """
    if corpus is None:
        return own.corpus if own else None
    found = own.corpus if own is not None and _fits(own.corpus, corpus) else None
    found = found or next(_of_runs(store, corpus, _used), None) or _from_manifest(corpus)
    if found is None:  # a download: only runs know its address
        found = next((c for c in _of_runs(store, corpus) if _downloads_it(c, corpus)), None)
    if found is not None and found.source.follow:
        return replace(found, source=_as_it_came(found.source, corpus))
    if found is None or found.source.kind != "huggingface":
        return found
    # A branch may have moved on since: the commit that was read is what must be read again.
    commit = str(corpus.request.config["source"].get("revision", ""))
    return replace(found, source=replace(found.source, revision=commit))


def listed(corpus: Artifact) -> list[dict[str, Any]]:
    """The lines of a corpus's list of source files; none of one that was made by recipe 1, and has no list."""
    return list(read_lines(corpus.file(SOURCES))) if SOURCES in corpus.names() else []


def _as_it_came(source: SourceConfig, corpus: Artifact) -> SourceConfig:
    """A followed address gives other bytes by now: those that came then are known by their hashes."""
    with suppress(ArtifactError):  # of a list that is damaged, the corpus made again tells
        if hashes := tuple(str(item["sha256"]) for item in listed(corpus)):
            return replace(source, follow=False, sha256=hashes)
    return source


def _used(store: Store, job: dict[str, Any], corpus: Artifact) -> bool:
    """Whether a run was on shards of this very corpus: settings and names of files alone would fit others too."""
    try:
        shards = read_manifest(store.root / "shards" / Path(str(job.get("shards", ""))).name)
    except ArtifactError:
        return False
    return any(ref.kind == corpus.kind and ref.digest == corpus.digest for ref in shards.request.inputs)


def _of_runs(
    store: Store, corpus: Artifact, wanted: Callable[[Store, dict[str, Any], Artifact], bool] | None = None
) -> Iterator[CorpusConfig]:
    """The settings of all runs, or of the wanted ones, that fit this corpus."""
    for job in read_jobs(store):
        with suppress(ConfigError):
            config = parse_config(job["config"].get("corpus", {}), CorpusConfig)
            if (wanted is None or wanted(store, job, corpus)) and _fits(config, corpus):
                yield config


def _downloads_it(config: CorpusConfig, corpus: Artifact) -> bool:
    """Whether the files that these settings fetch are, by their sha256, those that the corpus was made from."""
    names, hashes = corpus.request.config["source"]["paths"], config.source.sha256
    same = len(names) == len(hashes)
    return same and content_digest(list(zip(names, hashes, strict=True))) == corpus.request.inputs[0].digest


def _fits(config: CorpusConfig, corpus: Artifact) -> bool:
    """Whether these settings ask for that corpus, as far as can be said without looking at the source."""
    asked, decided = with_later(recipe(config), CorpusConfig), recorded_settings(corpus)["corpus"]
    source = {name: value for name, value in asked["source"].items() if name not in _PINNED}
    recorded = {name: value for name, value in decided["source"].items() if name not in _PINNED}
    others = {name: value for name, value in decided.items() if name not in ("source", "minhash")}
    place = decided["source"].get("dataset") or config.source.dataset  # a folder's name is not recorded
    return not (
        _disagreement(others, asked, "") or _disagreement(recorded, source, "") or place != config.source.dataset
    )


def _from_manifest(corpus: Artifact) -> CorpusConfig | None:
    """The settings of a corpus that no run tells of. Sources whose place the manifest does not hold give None."""
    decided, origin = dict(corpus.request.config), corpus.summary.get("origin", {})
    decided.pop("minhash", None)  # what made the signatures: not a setting
    source = {name: value for name, value in decided["source"].items() if name not in _PINNED}
    kind = source["kind"]
    if kind == "files":
        source["paths"] = origin.get("paths", [])
    elif kind == "huggingface":
        source |= {"dataset": origin.get("dataset", ""), "revision": origin.get("revision", "")}
    elif kind != "embedded":  # of a download the manifest has neither query nor sha256
        return None
    return _parsed({**decided, "source": source}, CorpusConfig, corpus)


def weights_source(store: Store, digest: str, weights: Artifact | None) -> tuple[str, str]:
    """(repo id or directory, revision) that imported weights came from; ("", "") where nothing says it."""
    if weights is not None and weights.request.config["source"] != "local":
        return str(weights.request.config["source"]), str(weights.request.config["revision"])
    places = (str(job["config"].get("init_from", "")) for job in read_jobs(store) if job.get("init_digest") == digest)
    return next((place for place in places if place), ""), ""


def _parsed(data: dict[str, Any], cls: type[ConfigT], artifact: Artifact) -> ConfigT:
    try:
        return parse_config(data, cls)
    except ConfigError as error:
        commit = str(artifact.provenance.get("git_commit", ""))[:12]
        with_it = f"; commit {commit} made it" if commit else ""
        raise ArtifactError(
            f"{artifact.label} has settings that this code does not take ({error.problems[0]}){with_it}"
        ) from None
