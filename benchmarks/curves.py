"""What a choice does to the loss: a small training with AdamW in float32 and in bfloat16, and with Muon, over seeds.

    make bench-curves

Real trainings in their child processes, on the embedded corpus. Prints and writes each one's validation losses, how far
bfloat16 ends from float32 against the spread of float32's seeds, and the step at which Muon reaches AdamW's last loss.
Learning rates are the same for all: nothing is tuned for either.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from gptmodel.config import CorpusConfig, PipelineConfig, ShardsConfig
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.shards import build_shards
from gptmodel.training.metrics_log import read_lines

RESULTS = Path(__file__).with_name("results") / "curves.json"
CHOICES = {
    "adamw float32": ("train.precision=float32",),
    "adamw bfloat16": ("train.precision=bfloat16",),
    "muon bfloat16": ("train.precision=bfloat16", "train.optimizer.kind=muon"),
}


def config(given: argparse.Namespace, *more: str) -> PipelineConfig:
    return load_config(
        "smoke",
        sets=[
            "corpus.source.first_year=1990",
            "model.n_layer=4",
            "model.n_head=1",
            f"model.n_embd={given.width}",
            "model.context_length=64",
            "model.dropout=0",
            f"train.max_steps={given.steps}",
            "train.batch_size=8",
            "train.micro_batch_size=8",
            "train.threads=1",
            "train.optimizer.learning_rate=2e-3",
            f"train.optimizer.warmup_steps={given.steps // 10}",
            f"train.eval_every={max(1, given.steps // 20)}",
            "train.eval_tokens=8192",
            f"train.checkpoint_every={given.steps}",
            "train.sample_prompts=[]",
            *more,
        ],
    )


def curve(store: Store, shards: Artifact, asked: PipelineConfig) -> dict[int, float]:
    """Validation loss by step."""
    training = plan_training(store, asked, shards)
    pretrain(store, training, on_line=lambda _: None)
    lines = ((line["step"], line.get("metrics", {})) for line in read_lines(training.metrics_file))
    return {step: found["validation/loss"] for step, found in lines if "validation/loss" in found}


def summary(curves: dict[str, dict[int, dict[int, float]]]) -> dict[str, Any]:
    """Over the seeds that all choices have."""
    seeds = sorted(set.intersection(*(set(found) for found in curves.values())))
    last = {name: [list(curves[name][seed].values())[-1] for seed in seeds] for name in curves}
    float32, bfloat16, muon = (last[name] for name in CHOICES)
    reached = []
    for seed, wanted in zip(seeds, bfloat16, strict=True):
        steps = [step for step, loss in curves["muon bfloat16"][seed].items() if loss <= wanted]
        reached.append(steps[0] if steps else None)
    return {
        "seeds": seeds,
        "last_validation_loss": last,
        "bfloat16_minus_float32": [b - f for b, f in zip(bfloat16, float32, strict=True)],
        "spread_of_float32_seeds": max(float32) - min(float32),
        "muon_minus_adamw": statistics.mean(m - a for m, a in zip(muon, bfloat16, strict=True)),
        "step_at_which_muon_has_adamws_last_loss": reached,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    curves: dict[str, dict[int, dict[int, float]]] = {name: {} for name in CHOICES}
    with tempfile.TemporaryDirectory() as temporary:
        store, base = Store(Path(temporary) / "store"), config(given)
        assert isinstance(base.corpus, CorpusConfig)
        assert isinstance(base.shards, ShardsConfig)
        corpus, _ = build_corpus(store, base.corpus)
        shards, _ = build_shards(store, corpus, base.shards)
        for seed in range(1, given.seeds + 1):
            for name, sets in CHOICES.items():
                curves[name][seed] = curve(store, shards, config(given, f"train.seed={seed}", *sets))
                print(f"seed {seed}  {name:15} {list(curves[name][seed].values())[-1]:.4f}", flush=True)
            found = {
                "machine": machine(),
                "steps": given.steps,
                "width": given.width,
                **summary(curves),
                "curves": curves,
            }
            given.out.parent.mkdir(exist_ok=True)  # after each seed: what is there is there
            given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k != "curves"}, indent=2))


if __name__ == "__main__":
    main()
