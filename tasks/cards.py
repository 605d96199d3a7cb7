"""What a run says about itself: written beside its log when it begins, so that it can be told to MLflow at any time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptmodel.artifacts import Artifact, write_atomic
from gptmodel.errors import ArtifactError
from gptmodel.pretraining import Training
from gptmodel.provenance import git_state

CARD_FILE = "card.json"


@dataclass(frozen=True)
class Card:
    """A run's experiment, name, params, lineage tags and datasets, and the name of the model that it will register."""

    experiment: str
    run_name: str
    fingerprint: str
    params: dict[str, Any]
    tags: dict[str, str]
    datasets: list[dict[str, str]] = field(default_factory=list)
    """name, digest, source_type, source, schema, profile, and the split as context."""
    kind: str = "checkpoint"
    model_name: str = ""


def save_card(run_dir: Path, card: Card, *, anew: bool = True) -> None:
    """Write the card; without `anew`, only where there is none."""
    if anew or not (run_dir / CARD_FILE).exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomic(run_dir / CARD_FILE, json.dumps(asdict(card), indent=2, ensure_ascii=False, default=str) + "\n")


def load_card(run_dir: Path) -> Card:
    """The card of a run; ArtifactError if it cannot be read."""
    try:
        return Card(**json.loads((run_dir / CARD_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{run_dir / CARD_FILE} cannot be read ({error}); run the step again") from None


def training_card(training: Training, corpus: Artifact) -> Card:
    """Params, lineage tags and datasets of a training."""
    config, shards = training.config, training.shards
    params = {
        **{f"model.{name}": value for name, value in training.request.config["model"].items()},
        **_flat(training.request.config["train"], "train"),
        "data.train_tokens": shards.summary["train_tokens"],
        "data.validation_tokens": shards.summary["validation_tokens"],
        "init_from": training.init.label if training.init else "random weights",
    }
    tags = {
        **_lineage_tags(corpus, shards),
        "gptflow.request": training.request.fingerprint,
        **({"gptflow.init": training.init.digest} if training.init else {}),
    }
    name = f"{config.name}-{training.request.fingerprint[:8]}"
    datasets = _datasets(shards, corpus)
    return Card(config.name, name, training.request.fingerprint, params, tags, datasets, model_name=config.name)


def model_card(model: Artifact, name: str, *, register: bool = True) -> Card:
    """The card of weights that were imported, or of a model that was trained without a tracker at hand."""
    params = {k: v for k, v in model.summary.items() if isinstance(v, int | float | str)}
    tags = {"gptflow.model": model.digest}
    return Card(
        *("imported-weights", name, model.fingerprint, params, tags),
        kind=model.kind,
        model_name=name if register else "",
    )


def _lineage_tags(corpus: Artifact, shards: Artifact) -> dict[str, str]:
    """Content digests of the chain, and the code that runs."""
    commit, dirty = git_state()
    return {
        "gptflow.corpus": corpus.digest,
        "gptflow.shards": shards.digest,
        "gptflow.git_dirty": str(dirty).lower(),
        **({"mlflow.source.git.commit": commit} if commit else {}),
        "mlflow.source.name": "gptflow",
        "mlflow.source.type": "JOB",
    }


def _datasets(shards: Artifact, corpus: Artifact) -> list[dict[str, str]]:
    """The train and validation splits: digest, source, schema and size."""
    found = []
    for split in ("train", "validation"):
        profile = {name: shards.summary[f"{split}_{name}"] for name in ("documents", "tokens", "bytes")}
        made_from = {"source": corpus.request.config.get("source", {})}
        source = {"corpus": corpus.digest, "shards": shards.digest, "split": split, **made_from}
        found.append(
            {
                "name": f"{split} tokens",
                "digest": shards.digest[:32],
                "source_type": "gptflow.shards",
                "source": json.dumps(source),
                "schema": json.dumps({"document": "string", "part": "int32", "tokens": "large_list<uint16>"}),
                "profile": json.dumps(profile),
                "context": split,
            }
        )
    return found


def _flat(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}.{name}") if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return flat
