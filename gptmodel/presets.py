"""Named starting points. A preset is a whole PipelineConfig; files and `--set` change single values of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from gptmodel.config import (
    CorpusConfig,
    DecodingConfig,
    EvaluateConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
    ShardsConfig,
    SourceConfig,
    TrainConfig,
)
from gptmodel.config.retraining import RetrainConfig

# The four published sizes (Radford et al. 2019); parameter counts with the tied head counted once.
GPT2_124M = ModelConfig(n_layer=12, n_head=12, n_embd=768)  # 124,439,808
GPT2_355M = ModelConfig(n_layer=24, n_head=16, n_embd=1024)  # 354,823,168
GPT2_774M = ModelConfig(n_layer=36, n_head=20, n_embd=1280)  # 774,030,080
GPT2_1558M = ModelConfig(n_layer=48, n_head=25, n_embd=1600)  # 1,557,611,200


def quickstart() -> PipelineConfig:
    """A small GPT (11.5 M parameters) on the embedded corpus: minutes on two processor cores."""
    return PipelineConfig(
        name="quickstart",
        model=ModelConfig(n_layer=4, n_head=6, n_embd=192, context_length=256),
        train=TrainConfig(
            max_steps=300,
            batch_size=8,
            micro_batch_size=8,
            optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=30),
            eval_every=50,
            eval_tokens=16_384,
            checkpoint_every=50,
        ),
        evaluate=EvaluateConfig(max_tokens=65_536),
    )


def smoke() -> PipelineConfig:
    """The whole chain in seconds, to see that an installation works; the text it writes is noise."""
    return PipelineConfig(
        name="smoke",
        corpus=CorpusConfig(source=SourceConfig(first_year=2010, last_year=2020), validation_fraction=0.2),
        shards=ShardsConfig(shard_bytes=200_000),
        model=ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=64),
        train=TrainConfig(
            max_steps=20,
            batch_size=4,
            micro_batch_size=2,
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=4),
            eval_every=10,
            eval_tokens=2_048,
            checkpoint_every=5,
            sample=DecodingConfig(max_new_tokens=16),
        ),
        evaluate=EvaluateConfig(
            max_tokens=4_096,
            prompts=("The state of the Union is",),
            decodings=(DecodingConfig(temperature=0.0, max_new_tokens=16), DecodingConfig(max_new_tokens=16)),
        ),
    )


def ladder() -> PipelineConfig:
    """What the models of a scaling sweep share: small batches, so that short trainings have steps enough."""
    base = quickstart()
    return replace(
        base,
        name="ladder",
        model=ModelConfig(n_layer=2, n_head=2, n_embd=64, context_length=128),
        train=replace(
            base.train,
            batch_size=4,
            micro_batch_size=4,
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10),
            eval_every=10_000,
            eval_tokens=4_096,
            checkpoint_every=10_000,
            log_every=5,
            sample=DecodingConfig(max_new_tokens=16),
        ),
        evaluate=EvaluateConfig(
            max_tokens=16_384,
            prompts=("The state of the Union is",),
            decodings=(DecodingConfig(max_new_tokens=32),),
        ),
    )


def nightly() -> PipelineConfig:
    """What the scheduled deployment does: the quickstart's model for longer, against the champion, when data arrived.

    More is held out than elsewhere, since the gate decides by it, and a leak into it stops the night.
    """
    base = quickstart()
    return replace(
        base,
        name="nightly",
        corpus=replace(base.corpus, validation_fraction=0.2),
        data_gates=replace(base.data_gates, leak="fail", contamination="fail"),
        train=replace(base.train, max_steps=2_000, publish="best", early_stop_evals=5),
        evaluate=replace(base.evaluate, max_tokens=0),
        retrain=RetrainConfig(active=True),
    )


def _gpt2(name: str, model: ModelConfig, learning_rate: float, micro_batch_size: int) -> PipelineConfig:
    """0.5 M tokens a step for 19,073 steps: about 10 B tokens, the setting of the llm.c reproductions."""
    return PipelineConfig(
        name=name,
        model=model,
        shards=ShardsConfig(shard_bytes=256_000_000),
        train=TrainConfig(
            max_steps=19_073,
            batch_size=512,
            micro_batch_size=micro_batch_size,
            optimizer=OptimizerConfig(learning_rate=learning_rate, min_learning_rate_ratio=0.1, warmup_steps=700),
            compile=True,
            log_every=10,
            eval_every=250,
            eval_tokens=1_048_576,
            checkpoint_every=1_000,
        ),
    )


def gpt2_124m() -> PipelineConfig:
    """GPT-2 small. Bring a corpus of its size: the embedded one is a toy for it."""
    return _gpt2("gpt2-124m", GPT2_124M, 6e-4, 32)


def gpt2_355m() -> PipelineConfig:
    """GPT-2 medium."""
    return _gpt2("gpt2-355m", GPT2_355M, 3e-4, 16)


def gpt2_774m() -> PipelineConfig:
    """GPT-2 large."""
    return _gpt2("gpt2-774m", GPT2_774M, 2.5e-4, 8)


def gpt2_1558m() -> PipelineConfig:
    """GPT-2 XL."""
    return _gpt2("gpt2-1558m", GPT2_1558M, 2e-4, 4)


PresetName = Literal["quickstart", "smoke", "ladder", "nightly", "gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1558m"]
PRESETS: dict[str, Callable[[], PipelineConfig]] = {
    "quickstart": quickstart,
    "smoke": smoke,
    "ladder": ladder,
    "nightly": nightly,
    "gpt2-124m": gpt2_124m,
    "gpt2-355m": gpt2_355m,
    "gpt2-774m": gpt2_774m,
    "gpt2-1558m": gpt2_1558m,
}
