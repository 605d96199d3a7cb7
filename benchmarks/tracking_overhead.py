"""What tracking costs a training: step time without MLflow, with it, with a slow one, and with a dead one.

    python benchmarks/tracking_overhead.py [--rounds 4] [--steps 60]

The same small training again and again, in turns (none, up, slow, dead, none, up, ...), each in its own child process
on 1 thread, so that the feed has the other core. Prints and writes the median step time of each, after the first
tenth of the steps, and its ratio to none. The slow server answers each request after 10 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, spread
from benchmarks.mlflow_server import Answer, Forward, Proxy, Server, free_port, plainly
from gptmodel.config import CorpusConfig, PipelineConfig, ShardsConfig
from gptmodel.pretraining.step import Training, plan_training, pretrain
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.text.corpus import build_corpus
from gptmodel.tokens.shards import build_shards
from gptmodel.training.metrics_log import read_lines

RESULTS = Path(__file__).with_name("results") / "tracking_overhead.json"


def ten_seconds(method: str, path: str, body: bytes, forward: Forward) -> Answer:
    threading.Event().wait(10)
    return forward(body)


def config(seed: int, steps: int) -> PipelineConfig:
    """A model small enough that a step takes a tenth of a second, so that one cost of a step would show."""
    return load_config(
        "smoke",
        sets=[
            f"train.seed={seed}",
            f"train.max_steps={steps}",
            "train.threads=1",
            "train.precision=float32",
            "train.log_every=1",
            "train.batch_size=16",
            "train.micro_batch_size=8",
            f"train.eval_every={steps}",
            f"train.checkpoint_every={steps}",
            "train.eval_tokens=1024",
        ],
    )


def train(store: Store, shards: Artifact, corpus: Artifact, asked: PipelineConfig, tracked: bool) -> dict[str, float]:
    """Seconds of a step (median), and of the whole training with the end of its feed."""
    from tasks.tracking.cards import save_card, training_card
    from tasks.tracking.feed import followed

    training = plan_training(store, asked, shards)
    card = training_card(training, corpus)
    save_card(training.run_dir, card)
    watch: Callable[[Training], AbstractContextManager[Any]] = (
        (lambda t: followed(card, t.run_dir)) if tracked else nullcontext
    )
    started = time.perf_counter()
    pretrain(store, training, on_line=lambda _: None, watch=watch)
    whole = time.perf_counter() - started
    seconds = [
        line["metrics"]["speed/step_seconds"]
        for line in read_lines(training.metrics_file)
        if "speed/step_seconds" in line["metrics"]
    ]
    return {"step_seconds": statistics.median(seconds[len(seconds) // 10 :]), "whole_seconds": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"none": [], "up": [], "slow": [], "dead": []}
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary, Server(Path(temporary)) as server, Proxy(server.port) as proxy:
        store = Store(Path(temporary) / "store")
        base = config(0, given.steps)
        assert isinstance(base.corpus, CorpusConfig)
        assert isinstance(base.shards, ShardsConfig)
        corpus, _ = build_corpus(store, base.corpus)
        shards, _ = build_shards(store, corpus, base.shards)
        dead = f"http://127.0.0.1:{free_port()}"
        for number in range(given.rounds):
            for place, name in enumerate(found):
                os.environ["MLFLOW_TRACKING_URI"] = dead if name == "dead" else proxy.url
                proxy.rule = ten_seconds if name == "slow" else plainly
                asked = config(1 + number * len(found) + place, given.steps)
                found[name].append(train(store, shards, corpus, asked, tracked=name != "none"))
                print(f"round {number + 1}  {name:5} {json.dumps(found[name][-1])}", flush=True)
    medians = {name: statistics.median(r["step_seconds"] for r in rounds) for name, rounds in found.items()}
    result = {
        "machine": machine("mlflow", threads=1),
        "steps": given.steps,
        "rounds": given.rounds,
        "load_before": round(load_before, 2),
        "median_step_seconds": medians,
        "step_seconds": {name: spread([r["step_seconds"] for r in rounds]) for name, rounds in found.items()},
        "ratio_to_none": {name: round(seconds / medians["none"], 4) for name, seconds in medians.items()},
        "runs": found,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "runs"}, indent=2))


if __name__ == "__main__":
    main()
