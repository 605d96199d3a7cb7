"""How near `gptflow plan` comes to what trainings take: `.venv/bin/python -m benchmarks.plan_accuracy`.

Real trainings on the embedded corpus, in a store of their own: the quickstart, and others of about its size. Each is
measured before its start as a budget has it measured, and forecasts itself after its first steps. Told is by how much
it came out above each forecast. `--only NAME` takes one of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from gptmodel.planning.score import BASES, FIGURES, scores
from gptmodel.pretraining.step import plan_training, pretrain
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Store
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.shards import build_shards

RUNS = {
    "quickstart": (),
    "bfloat16, 40 steps": ("train.precision=bfloat16", "train.max_steps=40"),
    "float32, 40 steps": ("train.precision=float32", "train.max_steps=40"),
    "accumulating 2 micro-batches": ("train.micro_batch_size=4", "train.max_steps=40"),
    "12 layers of 96, context 128": (
        *("model.n_layer=12", "model.n_embd=96", "model.context_length=128"),
        *("train.batch_size=16", "train.micro_batch_size=16", "train.max_steps=40"),
    ),
    "2 layers of 384": ("model.n_layer=2", "model.n_embd=384", "train.max_steps=30", "train.micro_batch_size=4"),
}


def main() -> None:
    """Train, print the table, and leave it in a file where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(RUNS), action="append", help="may be repeated")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    told = {}
    with TemporaryDirectory(prefix="gptflow-accuracy-") as folder:
        store = Store(Path(folder))
        base = load_config("quickstart")
        shards, _ = build_shards(store, build_corpus(store, base.corpus)[0], base.shards)
        for name in asked.only or RUNS:
            config = load_config("quickstart", sets=["train.budget.max_hours=10", *RUNS[name]])
            made, _ = pretrain(store, plan_training(store, config, shards), on_line=lambda _: None)
            found = scores(made.provenance, made.summary).values()
            told[name] = [
                {"figure": s.figure, "basis": s.basis, "forecast": s.forecast, "actual": s.actual, "error": s.error}
                for s in found
            ]
            print(f"\n{name} ({made.summary['precision']}, {made.summary['elapsed_seconds']:.0f} s)")
            for score in sorted(found, key=lambda score: list(FIGURES).index(score.figure)):
                line = f"{score.forecast:>16,.1f} {score.actual:>16,.1f} {100 * score.error:>+7.1f} %"
                print(f"  {FIGURES[score.figure]:12} {line}  {BASES[score.basis]}", flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
