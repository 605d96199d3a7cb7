"""Model -> figures on standard tasks."""

from __future__ import annotations

from prefect import flow

from flows.naming import after
from gptmodel.config import BenchmarkConfig
from gptmodel.judging.benchmark import check_installed
from gptmodel.store.artifacts import Artifact, open_store
from tasks.benchmarking import benchmark_model
from tasks.holding import hold, holding
from tasks.tracking.naming import named_model


@flow(name="benchmark", flow_run_name=after("benchmark", "model", "the newest model"))
def benchmark(
    model: str = "",
    tasks: tuple[str, ...] = ("speeches",),
    limit: int = 0,
    fewshot: int | None = None,
    include_path: str = "",
    gen_kwargs: str = "",
    seed: int = 0,
    bootstrap_iters: int = 1_000,
    batch_size: int = 8,
    wait: bool = False,
) -> dict[str, Artifact]:
    """Run standard tasks through EleutherAI's harness (the package lm-eval) on any checkpoint or imported weights.

    Args:
        model: A checkpoint or weights, such as `checkpoint/1f2e3d4c` or `quickstart/3`; left out, the newest one.
        tasks: Tasks, groups or tags of the harness, or patterns; `speeches` ships with this project.
        limit: Only the first documents of each task; 0 is all.
        fewshot: Worked examples before each question; left out, what each task says.
        include_path: A directory with tasks of your own.
        gen_kwargs: Overrides how tasks decode, such as `temperature=0.8,max_gen_toks=64`.
        seed: Seed of what is sampled.
        bootstrap_iters: Resamples for the standard error of metrics that have no formula for it.
        batch_size: Requests answered at once.
        wait: Wait for another run that makes the same, instead of refusing.
    """
    check_installed()
    config = BenchmarkConfig(
        tasks=tuple(tasks),
        limit=limit,
        fewshot=fewshot,
        include_path=include_path,
        gen_kwargs=gen_kwargs,
        seed=seed,
        bootstrap_iters=bootstrap_iters,
        batch_size=batch_size,
    )
    with holding():
        judged = hold(named_model(open_store(), model))
        return {"model": judged, "benchmark": benchmark_model(judged, config, wait)}
