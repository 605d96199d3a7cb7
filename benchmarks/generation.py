"""How fast text is written: this project's generation beside `transformers.generate`, with the same weights.

    python -m benchmarks.generation [--models small,124m] [--batches 1,8] [--tokens 64] [--rounds 3] [--threads 2]

GPT-2 shapes with random weights and a prompt of 64 tokens; greedy, drawn with top-k 50, and greedy in bfloat16. The two
take turns in one process, each warmed up first. A greedy row in float32 counts only where both wrote the same tokens,
the others where the logits in float32 agree (the two draw from generators of their own, and round where they please).
Seconds are given twice: of the clock, and of the processor, which other work on the machine disturbs less. Rows of an
earlier call stay in the file until they are measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.machine import machine, spread
from gptmodel.config import DecodingConfig, ModelConfig
from gptmodel.formats.hf_export import write_hf_model
from gptmodel.generate import generate_batch
from gptmodel.model import GPT

RESULTS = Path(__file__).with_name("results") / "generation.json"
PROMPT_TOKENS = 64
MODELS = {
    "small": ModelConfig(n_layer=6, n_head=6, n_embd=384, context_length=256),
    "124m": ModelConfig(),
}
DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "top-k 50": {"temperature": 1.0, "top_k": 50},
    "greedy, bfloat16": {"temperature": 0.0, "precision": "bfloat16"},
}


def contestants(name: str) -> tuple[GPT, Any]:
    """The same random weights in both libraries, in evaluation mode."""
    ours = GPT(MODELS[name], seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        write_hf_model(ours, Path(folder))
        theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    return ours, theirs


def writers(ours: GPT, theirs: Any, ids_BT: Tensor, asked: dict[str, Any], tokens: int) -> dict[str, Callable[[], Any]]:
    """One call of each: new tokens for every row, end tokens ignored."""
    decoding = DecodingConfig(**asked, max_new_tokens=tokens, stop_at_end_token=False)
    drawn = {"do_sample": False} if decoding.temperature == 0 else {"do_sample": True, "top_k": 0, **asked}
    theirs = copy.deepcopy(theirs).to(torch.bfloat16) if decoding.precision == "bfloat16" else theirs

    def by_theirs() -> list[list[int]]:
        written = theirs.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            eos_token_id=None,
            pad_token_id=0,
            **drawn,
        )
        return list(written[:, PROMPT_TOKENS:].tolist())

    prompts = ids_BT.tolist()
    return {"gptflow": lambda: generate_batch(ours, prompts, decoding=decoding), "transformers": by_theirs}


def agree(ours: GPT, theirs: Any, ids_BT: Tensor) -> float:
    """Largest difference of a logit; AssertionError above 1e-3, where nothing could be compared."""
    with torch.no_grad():
        worst = (ours(ids_BT) - theirs(ids_BT).logits).abs().max().item()
    assert worst < 1e-3, f"logits differ by {worst}"
    return float(worst)


def race(calls: dict[str, Callable[[], Any]], rounds: int, tokens: int) -> dict[str, Any]:
    """Milliseconds a step (one token for every row) of each, in turns; medians, all values, and ratios."""
    found: dict[str, dict[str, list[float]]] = {name: {"clock": [], "processor": []} for name in calls}
    written: dict[str, Any] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            began, used = time.perf_counter(), time.process_time()
            written[name] = call()
            found[name]["clock"].append(1e3 * (time.perf_counter() - began) / tokens)
            found[name]["processor"].append(1e3 * (time.process_time() - used) / tokens)
    medians = {name: {of: statistics.median(values) for of, values in each.items()} for name, each in found.items()}
    ratios = {of: medians["transformers"][of] / medians["gptflow"][of] for of in ("clock", "processor")}
    spreads = {name: {of: spread(values) for of, values in each.items()} for name, each in found.items()}
    same = written["gptflow"] == written["transformers"]
    return {"same_tokens": same, "ms_per_step": medians, "spread_ms": spreads, "times_as_fast": ratios, "all_ms": found}


def save(given: argparse.Namespace, load_before: float, new: list[dict[str, Any]]) -> None:
    ran_on = {
        **machine("transformers", threads=given.threads),
        "load_before": round(load_before, 2),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    key = ("model", "batch", "decoding")
    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [*(row for row in old if all(any(row[k] != other[k] for k in key) for other in new)), *new]
    told = {"prompt_tokens": PROMPT_TOKENS, "new_tokens": given.tokens, "rounds": given.rounds}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**told, "machine": ran_on, "rows": rows}, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", default="small,124m")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--decodings", default="|".join(DECODINGS), help="separated by |")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    load_before = os.getloadavg()[0]
    for name in given.models.split(","):
        ours, theirs = contestants(name)
        for batch in map(int, given.batches.split(",")):
            ids_BT = torch.randint(50_257, (batch, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
            worst = agree(ours, theirs, ids_BT)
            for label in given.decodings.split("|"):
                asked = DECODINGS[label]
                for warm in writers(ours, theirs, ids_BT, asked, 4).values():
                    warm()
                calls = writers(ours, theirs, ids_BT, asked, given.tokens)
                row = {"model": name, "batch": batch, "decoding": label, "worst_logit": worst}
                rows.append({**row, **race(calls, given.rounds, given.tokens)})
                assert label != "greedy" or rows[-1]["same_tokens"], f"{row}: greedy tokens differ, nothing to compare"
                save(given, load_before, rows)  # after each row, for it takes long
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "all_ms"}), flush=True)


if __name__ == "__main__":
    main()
