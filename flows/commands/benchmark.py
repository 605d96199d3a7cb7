"""`gptflow benchmark`: standard tasks through EleutherAI's harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from flows.commands.options import json_option


@click.command("benchmark")
@click.option("--tasks", default="speeches", show_default=True, metavar="NAME,...", help="Tasks, groups or patterns.")
@click.option("--model", default="", help="Checkpoint or weights of the store; left out, the newest checkpoint.")
@click.option("--limit", type=int, default=0, metavar="N", help="Only the first N documents of each task.")
@click.option("--fewshot", type=int, help="Worked examples before each question; left out, what each task says.")
@click.option(
    "--include-path",
    type=click.Path(path_type=Path),
    help="A directory with tasks of your own, as YAML that the harness reads.",
)
@click.option(
    "--gen-kwargs", default="", metavar="K=V,...", help="Change how tasks decode: temperature=0.8,max_gen_toks=64."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of what is sampled.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Requests answered at once.")
@click.option("--wait", is_flag=True, help="Wait for another run of the same, instead of refusing.")
@json_option
def benchmark(tasks: str, include_path: Path | None, as_json: bool, wait: bool, model: str, **asked: Any) -> None:
    """Judge a model by standard tasks: HellaSwag, LAMBADA, WikiText, and all else in EleutherAI's harness.

    Needs the package lm-eval. The tasks named `speeches` ship with this project and need no network.
    """
    from gptmodel.config import BenchmarkConfig
    from gptmodel.judging.benchmark import check_installed
    from gptmodel.settings import parse_config

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    where = str(include_path.expanduser().absolute()) if include_path else ""
    parse_config(
        {"tasks": names, "include_path": where, **asked}, BenchmarkConfig
    )  # wrong settings are told before anything starts
    check_installed()
    from flows.benchmark import benchmark as flow
    from flows.commands.terminal import as_plain, show
    from tasks.console import quiet_prefect, start_server_apart

    quiet_prefect()
    start_server_apart()
    made = flow(model=model, tasks=names, include_path=where, wait=wait, **asked)
    if as_json:
        click.echo(json.dumps(as_plain(made), ensure_ascii=False))
    else:
        show(made)
