"""What a run says about itself: written beside its log when it begins, so that it can be told to MLflow at any time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptmodel.errors import ArtifactError
from gptmodel.pretraining.step import Training
from gptmodel.store.artifacts import Artifact, write_atomic
from gptmodel.store.provenance import provenance

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
        **data_tags(shards, corpus),
        **code_tags(provenance()),
        **({"gptflow.init": training.init.digest} if training.init else {}),
    }
    name = f"{config.name}-{training.request.fingerprint[:8]}"
    datasets = _datasets(shards, corpus)
    return Card(config.name, name, training.request.fingerprint, params, tags, datasets, model_name=config.name)


def model_card(model: Artifact, name: str, *, register: bool = True, chain: Sequence[Artifact] = ()) -> Card:
    """The card of weights that were imported, or of a model that was trained without a tracker at hand.

    `chain` is what it was made from, as far as the store still has it.
    """
    params = {k: v for k, v in model.summary.items() if isinstance(v, int | float | str)}
    return Card(
        *("imported-weights", name, model.fingerprint, params, model_tags(model, chain), datasets_of(model, chain)),
        kind=model.kind,
        model_name=name if register else "",
    )


def model_tags(model: Artifact, chain: Sequence[Artifact]) -> dict[str, str]:
    """Content digests of a model and of what it was trained on, and the code that made it."""
    shards, corpus = _data_of(model, chain)
    return {"gptflow.model": model.digest, **data_tags(shards, corpus), **code_tags(model.provenance)}


def data_tags(shards: Artifact | None, corpus: Artifact | None) -> dict[str, str]:
    """Content digests of the data, as far as it is known."""
    return {f"gptflow.{made.kind}": made.digest for made in (corpus, shards) if made is not None}


def code_tags(made_with: dict[str, Any]) -> dict[str, str]:
    """The code that made something, from its provenance."""
    commit = str(made_with.get("git_commit") or "")
    return {
        "gptflow.git_dirty": str(bool(made_with.get("git_dirty"))).lower(),
        **({"gptflow.code": str(made_with["code_digest"])} if "code_digest" in made_with else {}),
        **({"mlflow.source.git.commit": commit} if commit else {}),
        "mlflow.source.name": "gptflow",
        "mlflow.source.type": "JOB",
    }


def datasets_of(model: Artifact, chain: Sequence[Artifact]) -> list[dict[str, str]]:
    """The splits that a model was trained on and validated with; none if the store no longer has them."""
    shards, corpus = _data_of(model, chain)
    return _datasets(shards, corpus) if shards and corpus else []


def _data_of(model: Artifact, chain: Sequence[Artifact]) -> tuple[Artifact | None, Artifact | None]:
    """(shards, corpus) of a model itself: the chain also holds those of the weights that it began with."""

    def made_from(artifact: Artifact | None, kind: str) -> Artifact | None:
        digests = [ref.digest for ref in artifact.request.inputs if ref.kind == kind] if artifact else []
        return next((found for found in chain if found.kind == kind and found.digest in digests), None)

    shards = made_from(model, "shards")
    return shards, made_from(shards, "corpus")


def _datasets(shards: Artifact, corpus: Artifact) -> list[dict[str, str]]:
    """The train and validation splits: digest, source, schema and size."""
    made_from = {"source": corpus.request.config.get("source", {})}
    return [_split(shards, split, f"{split} tokens", split, made_from) for split in ("train", "validation")]


def evaluation_dataset(shards: Artifact, split: str) -> dict[str, str]:
    """The split that a model is judged on; by a name of its own, since MLflow keeps one context for each dataset."""
    return _split(shards, split, f"evaluated {split} tokens", "evaluation", {})


def _split(shards: Artifact, split: str, name: str, context: str, made_from: dict[str, Any]) -> dict[str, str]:
    corpus = next((ref.digest for ref in shards.request.inputs if ref.kind == "corpus"), "")
    profile = {name: shards.summary[f"{split}_{name}"] for name in ("documents", "tokens", "bytes")}
    return {
        "name": name,
        "digest": shards.digest[:32],
        "source_type": "gptflow.shards",
        "source": json.dumps({"corpus": corpus, "shards": shards.digest, "split": split, **made_from}),
        "schema": json.dumps({"document": "string", "part": "int32", "tokens": "large_list<uint16>"}),
        "profile": json.dumps(profile),
        "context": context,
    }


def _flat(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}.{name}") if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return flat
