"""The settings of the whole chain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from gptmodel.checked import STRICT, check
from gptmodel.config.corpus import CorpusConfig, ShardsConfig
from gptmodel.config.gates import DataGatesConfig
from gptmodel.config.judging import EvaluateConfig
from gptmodel.config.model import GPT2_VOCAB_SIZE, ModelConfig
from gptmodel.config.retraining import RetrainConfig
from gptmodel.config.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The whole chain: text, shards, model, training, evaluation."""

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str = "quickstart"
    """Name of the model in the registry; the experiment bears it too."""
    corpus: CorpusConfig = CorpusConfig()  # noqa: RUF009 - frozen
    """Text in, documents out."""
    shards: ShardsConfig = ShardsConfig()  # noqa: RUF009 - frozen
    """Documents in, tokens out."""
    model: ModelConfig = ModelConfig()  # noqa: RUF009 - frozen
    """The architecture. With init_from the weights decide it, and only dropout is taken from here."""
    train: TrainConfig = TrainConfig()  # noqa: RUF009 - frozen
    """The training run."""
    evaluate: EvaluateConfig = EvaluateConfig()  # noqa: RUF009 - frozen
    """The judgement at the end."""
    data_gates: DataGatesConfig = DataGatesConfig()  # noqa: RUF009 - frozen
    """What the text is looked at for before it is tokenized."""
    init_from: str = ""
    """Start from these weights: a Hugging Face repo id (pinned with `@commit`), a directory in its layout or in that of
    OpenAI's files, the address of such files, an artifact of the store, or a registered version: `quickstart/3`,
    `quickstart@champion`, or just `champion` for that of this name. An alias is resolved when the run starts."""
    retrain: RetrainConfig = RetrainConfig()  # noqa: RUF009 - frozen
    """Whether and how a run goes on from a champion: what makes it train, and what makes the alias move."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"name", "retrain"})

    def __post_init__(self) -> None:
        check(
            self,
            [
                (
                    not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name),
                    f"name {self.name!r} is not a plain name; use up to 64 letters, digits, dots, dashes, underscores",
                ),
                (
                    self.model.vocab_size < GPT2_VOCAB_SIZE and not self.init_from,
                    f"model.vocab_size {self.model.vocab_size} is below the tokenizer's {GPT2_VOCAB_SIZE}; "
                    f"set it to {GPT2_VOCAB_SIZE}",
                ),
            ],
        )
