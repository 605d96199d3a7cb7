"""Every setting there is: frozen dataclasses that say at once all that is wrong with them.

The same classes are the YAML format, the flags of the command line, the parameters of the flows, and what an
artifact's fingerprint is taken over. Fields named in a class's `EXECUTION` say how work is done and not what comes
out, so the fingerprint leaves them out. Fields that a class got after stores were filled stand in its `LATER` with
their default: at that value they are left out too, so that what was made before they came is still found.
"""

from __future__ import annotations

from gptmodel.config.budget import BudgetConfig
from gptmodel.config.corpus import CorpusConfig, ShardsConfig, SourceConfig
from gptmodel.config.decoding import DecodingConfig
from gptmodel.config.gates import Act, DataGatesConfig
from gptmodel.config.judging import BenchmarkConfig, EvaluateConfig
from gptmodel.config.ladder import LadderConfig
from gptmodel.config.model import GPT2_VOCAB_SIZE, ModelConfig
from gptmodel.config.pipeline import PipelineConfig
from gptmodel.config.recipes import recipe, with_later
from gptmodel.config.retraining import RetrainConfig
from gptmodel.config.training import OptimizerConfig, TrainConfig

__all__ = [
    "GPT2_VOCAB_SIZE",
    "Act",
    "BenchmarkConfig",
    "BudgetConfig",
    "CorpusConfig",
    "DataGatesConfig",
    "DecodingConfig",
    "EvaluateConfig",
    "LadderConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PipelineConfig",
    "RetrainConfig",
    "ShardsConfig",
    "SourceConfig",
    "TrainConfig",
    "recipe",
    "with_later",
]
