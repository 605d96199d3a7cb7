"""Our model in EleutherAI's harness against the harness's own Hugging Face backend: run by a test, where both are.

python tests/harness_peer.py FOLDER [CHECKPOINT]   prints one JSON object for each model
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from gptmodel.config import BenchmarkConfig, ModelConfig
from gptmodel.formats.hf_export import export_hf
from gptmodel.judging.harness import OWN_TASKS, HarnessModel, load_tasks, run_tasks
from gptmodel.judging.speech_items import held_out
from gptmodel.model import GPT
from gptmodel.weights import load_model

LIMIT = 8


def main(folder: Path, checkpoint: str) -> None:
    models = {"random": _sure(GPT(ModelConfig(n_layer=2, n_head=2, n_embd=64, context_length=64), seed=3))}
    if checkpoint:
        models["trained"] = load_model(Path(checkpoint))
    for name, model in models.items():
        export_hf(model, folder / name)
        theirs = HFLM(pretrained=str(folder / name), device="cpu", batch_size=5)
        ours = HarnessModel(model, batch_size=7)
        told = {"model": name, **_requests(ours, theirs), "metrics": _metrics(model, theirs)}
        print(json.dumps(told), flush=True)


def _sure(model: GPT) -> GPT:
    """Far from flat, so that greedy writing does not hang on rounding."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model.eval()


def _requests(ours: HarnessModel, theirs: HFLM) -> dict[str, Any]:
    draw = random.Random(1)
    words = " ".join(text for _, text in held_out()[:3]).split()

    def some(n: int) -> str:
        start = draw.randrange(len(words) - n)
        return " ".join(words[start : start + n])

    prompts = [some(n) for n in (1, 5, 30, 80)]
    stops: list[tuple[Any, int]] = [([], 20), (["\n", "."], 30), (" the", 12), ([" a", "e"], 25)]
    settings: list[dict[str, Any]] = [{}, {"do_sample": False}, {"temperature": 0.0}]
    writing = [
        (prompt, {"until": until, "max_gen_toks": n, **more})
        for prompt in prompts
        for until, n in stops
        for more in settings
    ]
    pairs = [(some(draw.choice([1, 5, 20, 60, 90])), " " + some(draw.choice([1, 1, 2, 8, 20]))) for _ in range(60)]
    pairs += [
        ("", some(5)),
        ("trailing  ", "  spaces"),
        ("a<|endoftext|>b", " c"),
        ("", "<|endoftext|> x"),
        ("日", "本"),
    ]
    pairs += [("The choice is", f" {word}") for word in ("A", "B", "C", "antidisestablishment")]
    greedy = theirs.generate_until(_instances("generate_until", [(p, {"max_gen_toks": 3}) for p in prompts]), True)
    pairs += [(prompt, text) for prompt, text in zip(prompts, greedy, strict=True) if text.strip()]
    texts = [(some(n),) for n in (1, 10, 50, 63, 64, 65, 200, 400)] + [("",), ("x<|endoftext|>y",)]
    likelihoods = [lm.loglikelihood(_instances("loglikelihood", pairs), True) for lm in (ours, theirs)]
    rolling = [lm.loglikelihood_rolling(_instances("loglikelihood_rolling", texts), True) for lm in (ours, theirs)]
    written = [lm.generate_until(_instances("generate_until", writing), True) for lm in (ours, theirs)]
    return {
        "loglikelihood": max(_apart(a[0], b[0]) for a, b in zip(*likelihoods, strict=True)),
        "greedy": [sum(a[1] == b[1] for a, b in zip(*likelihoods, strict=True)), len(pairs)],
        "greedy_true": sum(found[1] for found in likelihoods[1]),
        "rolling": max(_apart(a, b) for a, b in zip(*rolling, strict=True)),
        "written": [sum(a == b for a, b in zip(*written, strict=True)), len(writing)],
        "different_texts": len(set(written[0])),
    }


def _instances(kind: str, asked: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, arguments, number, ("t", number, 1)) for number, arguments in enumerate(asked)]


def _apart(one: float, other: float) -> float:
    return abs(one - other) / max(1.0, abs(other))


def _metrics(model: GPT, theirs: HFLM) -> dict[str, list[Any]]:
    """Of whole tasks: (ours, theirs) by task and metric."""
    ours = run_tasks(model, load_tasks(BenchmarkConfig(limit=LIMIT, bootstrap_iters=200)))["results"]
    manager = TaskManager(include_path=str(OWN_TASKS), include_defaults=False)
    found = lm_eval.simple_evaluate(theirs, tasks=["speeches"], task_manager=manager, limit=LIMIT, bootstrap_iters=1000)
    return {
        f"{task}/{key}": [value, found["results"][task][key]]
        for task, values in ours.items()
        for key, value in values.items()
        if isinstance(value, float) and "_stderr" not in key
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
