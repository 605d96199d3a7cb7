"""Standard tasks as a step: a model in; metrics with their standard errors, and every answer, out.

The tasks are run by EleutherAI's harness, which is an extra. What is asked is named by content: the harness's version,
each task's version, settings and documents; so a dataset that changes on the hub is another request.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmodel.config import GPT2_VOCAB_SIZE, BenchmarkConfig
from gptmodel.errors import ConfigError
from gptmodel.progress import Progress
from gptmodel.store.artifacts import Artifact, Request, Store, sha256_file, write_atomic

if TYPE_CHECKING:
    from gptmodel.judging.harness import Tasks

KIND = "benchmark"
RECIPE_VERSION = 1
RESULTS = "results.json"
_ANSWER_BYTES = 4_000  # of one document in the file of answers, packed
_KEPT = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
_TASK_FILES = (".yaml", ".yml", ".py")


def check_installed() -> None:
    """ConfigError, with the command that mends it, where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "the package lm-eval is not installed; install it: .venv/bin/python -m pip install 'lm-eval>=0.4.13,<0.5'"
        )


def benchmark(
    store: Store, model: Artifact, config: BenchmarkConfig, *, wait: bool = False, progress: Progress | None = None
) -> tuple[Artifact, bool]:
    """Return (benchmark artifact, reused) of a checkpoint or imported weights.

    Files: `results.json`, as the harness writes it but for times, hosts and paths, and `answers-TASK.jsonl.gz`, a line
    for each document with what was asked, answered and scored.
    """
    check_installed()
    from gptmodel.judging.harness import load_tasks, version

    tasks = load_tasks(config)
    described = tasks.described()
    asked = {
        "harness": f"lm-eval {version()}",
        "asked": tasks.names,
        "tasks": described,
        "task_files": _task_files(config),
        "limit": config.limit,
        "fewshot": config.fewshot,
        "gen_kwargs": config.gen_kwargs,
        "seed": config.seed,
        "bootstrap_iters": config.bootstrap_iters,
    }
    request = Request(KIND, RECIPE_VERSION, asked, (model.ref,))
    needed = _ANSWER_BYTES * sum(task["n"] for task in described.values())
    artifact, reused = store.produce(
        request, lambda directory: _build(directory, model, tasks, asked, progress), wait=wait, needed=needed
    )
    return artifact.verify(), reused  # no later step reads it, so it would be reused damaged


def _task_files(config: BenchmarkConfig) -> str:
    """A digest of a user's own tasks: of all files that can say how they are scored."""
    if not config.include_path:
        return ""
    root = Path(config.include_path)
    files = sorted(path for path in root.rglob("*") if path.suffix in _TASK_FILES and path.is_file())
    lines = [f"{sha256_file(path)} {path.relative_to(root).as_posix()}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _build(
    directory: Path, model: Artifact, tasks: Tasks, asked: dict[str, Any], progress: Progress | None
) -> dict[str, Any]:
    from gptmodel.device import pick_device
    from gptmodel.judging.harness import plain, run_tasks
    from gptmodel.weights import load_model

    gpt = load_model(model).to(pick_device("auto")).eval()
    if gpt.config.vocab_size < GPT2_VOCAB_SIZE:
        raise ConfigError(
            f"{model.label} knows {gpt.config.vocab_size:,} tokens, and tasks are texts in GPT-2's "
            f"{GPT2_VOCAB_SIZE:,}; take a model of GPT-2's vocabulary"
        )
    found = run_tasks(gpt, tasks, progress)
    for name, answers in found["samples"].items():
        lines = "".join(json.dumps(plain(answer), ensure_ascii=False, sort_keys=True) + "\n" for answer in answers)
        packed = gzip.compress(lines.encode(errors="surrogatepass"), mtime=0)
        write_atomic(directory / f"answers-{_file_name(name)}.jsonl.gz", packed)
    results = plain({name: found[name] for name in _KEPT if name in found})
    if "configs" in results:
        results["configs"] = {name: portable(settings) for name, settings in results["configs"].items()}
    write_atomic(directory / RESULTS, json.dumps({**results, **asked}, indent=2, ensure_ascii=False) + "\n")
    figures = figures_of(results, asked["tasks"])
    return {"harness": asked["harness"], "tasks": asked["asked"], "limit": asked["limit"], "figures": figures}


def portable(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a task without where its file and its documents lie: both are told by digests."""
    kept = {name: value for name, value in settings.items() if name != "dataset_kwargs"}
    if isinstance(metadata := kept.get("metadata"), dict):
        kept["metadata"] = {name: value for name, value in metadata.items() if name != "config_source"}
    return kept


def _file_name(task: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in task)


def figures_of(results: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each metric of each task and group: task, version, fewshot, n, metric, value, stderr (if there is one).

    The harness's key is `metric,filter`; a filter called `none` is left out of the name.
    """
    rows = []
    for name, values in {**results["results"], **results.get("groups", {})}.items():
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if metric.endswith("_stderr") or not _is_number(value) or not chosen:
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}")
            rows.append(
                {
                    "task": name,
                    "version": results["versions"].get(name),
                    "fewshot": results["n-shot"].get(name, 0),
                    "n": tasks.get(name, {}).get("n"),
                    "metric": metric if chosen == "none" else f"{metric} ({chosen})",
                    "value": value,
                    "stderr": stderr if _is_number(stderr) else None,
                }
            )
    return rows


def asked_name(row: dict[str, Any], asked: dict[str, Any]) -> str:
    """A figure's task with what was asked otherwise than it comes, as in `hellaswag 5-shot first 100`.

    Figures of one name can be compared.
    """
    said = [f"{row['fewshot']}-shot"] if asked["fewshot"] is not None else []
    said += [f"first {asked['limit']}"] if asked["limit"] else []
    said += [asked["gen_kwargs"]] if asked["gen_kwargs"] else []
    return " ".join([row["task"], *said])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
