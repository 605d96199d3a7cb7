"""What the store knows of a model, gathered for its card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptmodel.arithmetic import count_parameters
from gptmodel.config import ModelConfig, recipe
from gptmodel.errors import ArtifactError, ConfigError, GptflowError, first_line
from gptmodel.lineage.lookup import comparisons_of, evaluations_of, ratings_of
from gptmodel.lineage.walk import chain_of
from gptmodel.settings import parse_config
from gptmodel.store.artifacts import Artifact, Store

Figures = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a card is made from."""

    model: Artifact
    """A checkpoint, or imported weights."""
    chain: tuple[Artifact, ...]
    """All that it was made from, origins first, as far as the store has it."""
    evaluations: tuple[Artifact, ...]
    """Of this model, in the order in which they were made."""
    benchmarks: tuple[Artifact, ...] = ()
    """Of this model, in the order in which they were made."""
    ratings: tuple[Artifact, ...] = ()
    """By people, of this model, in the order in which they were made."""
    comparisons: tuple[Artifact, ...] = ()
    """Of this model with others, in the order in which they were made."""
    name: str = ""
    """In the registry."""
    version: str = ""

    @property
    def title(self) -> str:
        version = f", version {self.version}" if self.version else ""
        return f"{self.name}{version}" if self.name else self.model.label

    @property
    def is_trained(self) -> bool:
        return self.model.kind == "checkpoint"

    @property
    def shards(self) -> Artifact | None:
        return self._input(self.model, "shards")

    @property
    def corpus(self) -> Artifact | None:
        return self._input(self.shards, "corpus") if self.shards else None

    @property
    def init(self) -> Artifact | None:
        return self._input(self.model, "weights") or self._input(self.model, "checkpoint")

    @property
    def architecture(self) -> Figures:
        """The shape of the model: as asked for, as its import recorded it, or as the file beside the weights says.

        ArtifactError where none of them does.
        """
        told = self.model.request.config["model"] if self.is_trained else self.model.summary.get("config")
        found: Figures = told if isinstance(told, dict) else _shape_beside_weights(self.model)
        return found

    @property
    def n_params(self) -> int:
        """As recorded, or else as its shape has it."""
        found = self.model.summary.get("n_params")
        return found if isinstance(found, int) else count_parameters(ModelConfig(**self.architecture)).total

    @property
    def train(self) -> Figures:
        found: Figures = self.model.request.config["train"]
        return found

    @property
    def tokens(self) -> int:
        """Trained on, up to the step whose weights these are."""
        return (
            int(self.model.summary["step"]) * int(self.train["batch_size"]) * int(self.architecture["context_length"])
        )

    @property
    def epochs(self) -> float:
        """How often the windows of the train split were gone through; 0 if that is not known."""
        if self.shards is None:
            return 0.0
        windows = (self.shards.summary["train_tokens"] - 1) // self.architecture["context_length"]
        return float(self.model.summary["step"] * self.train["batch_size"] / windows)

    def _input(self, artifact: Artifact, kind: str) -> Artifact | None:
        digests = {ref.digest for ref in artifact.request.inputs if ref.kind == kind}
        return next((found for found in self.chain if found.kind == kind and found.digest in digests), None)


def _shape_beside_weights(model: Artifact) -> Figures:
    from gptmodel.weights import CONFIG_FILE, read_json  # late: torch takes seconds to import

    try:
        found = read_json(model.file(CONFIG_FILE))
        if lost := sorted(recipe(ModelConfig()).keys() - found.keys()):
            raise ConfigError(f"{CONFIG_FILE} lacks {', '.join(lost)}")
        shape: Figures = recipe(parse_config(found, ModelConfig))
        return shape
    except GptflowError as error:
        raise ArtifactError(
            f"{model.label} does not say what shape its model has ({first_line(error)}); import the weights again"
        ) from None


def facts_of(store: Store, model: Artifact, *, name: str = "", version: str = "") -> Facts:
    """What the store knows of a model. ArtifactError for what is no model."""
    if model.kind not in ("checkpoint", "weights"):
        raise ArtifactError(f"{model.label} is a {model.kind}, and a card is for a model: a checkpoint or weights")
    chain = tuple(chain_of(store, model))
    evaluations, benchmarks = (tuple(evaluations_of(store, model.digest, kind)) for kind in ("evaluation", "benchmark"))
    ratings = tuple(ratings_of(store, model.digest))
    comparisons = tuple(comparisons_of(store, evaluations))
    return Facts(model, chain, evaluations, benchmarks, ratings, comparisons, name, version)
