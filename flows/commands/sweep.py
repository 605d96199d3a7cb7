"""`gptflow sweep`: a ladder of small models, the law fitted to it, and its advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from flows.commands.options import UTF8, Number, json_option


@click.command()
@click.option("--preset", default="ladder", show_default=True, help="What the models share.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file of settings.")
@click.option(
    "--set", "sets", multiple=True, type=UTF8, metavar="A.B=VALUE", help="Change one setting; may be repeated."
)
@click.option("--sizes", metavar="LxWxH,...", help="Shapes, as layers x width x heads: 2x64x2,3x96x3,4x160x4.")
@click.option("--budgets", metavar="FLOPS,...", help="Operations by the rule 6ND of one training: 4e11,1e12.")
@click.option("--counts", type=click.Choice(["all", "without-embeddings"]), help="What the law's N counts.")
@click.option("--resamples", type=int, help="Fits to losses drawn anew, for the intervals.")
@click.option(
    "--best-for", type=Number(), default=0.0, metavar="FLOPS", help="Advise for this; left out, 10 x the dearest."
)
@click.option("--plots", type=click.Path(path_type=Path), help="Draw the curves into this folder.")
@click.option("--wait", is_flag=True, help="Wait for another run of the same, instead of refusing.")
@json_option
def sweep(
    preset: str,
    file: Path | None,
    sets: tuple[str, ...],
    best_for: float,
    plots: Path | None,
    wait: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Train a ladder of small models, fit L(N, D) to them, and say what size and tokens suit a budget.

    Models that the store has already are not trained again. `gptflow plan` then uses the law for text like theirs.
    """
    from gptmodel.errors import ConfigError
    from gptmodel.overrides import PipelineOverrides
    from gptmodel.planning.ladder import rungs_of
    from gptmodel.settings import load_config, merge_layers

    if best_for and not 1e6 <= best_for <= 1e30:
        raise ConfigError(f"--best-for is {best_for:g}; give floating-point operations from 1e6 to 1e30, such as 1e15")
    ladder = _ladder(asked)
    preset, merged = merge_layers(preset, file, sets)
    rungs_of(load_config(preset, overrides=merged), ladder)  # what is wrong is told before anything starts
    from flows.scaling_sweep import scaling_sweep
    from tasks.console import quiet_prefect, start_server_apart

    quiet_prefect()
    start_server_apart()
    told = {"preset": preset, "overrides": PipelineOverrides.model_validate(merged), "wait": wait}
    made = scaling_sweep(ladder=ladder, best_for=best_for, **told)  # type: ignore[call-overload]
    _tell(made, best_for, plots, as_json)


def _ladder(asked: dict[str, Any]) -> Any:
    from gptmodel.config import LadderConfig
    from gptmodel.errors import ConfigError
    from gptmodel.settings import parse_config

    given = {name: value for name, value in asked.items() if value is not None}
    for name in ("sizes", "budgets"):
        if name in given:
            given[name] = tuple(part.strip() for part in given[name].split(",") if part.strip())
    try:
        if "budgets" in given:
            given["budgets"] = tuple(float(part) for part in given["budgets"])
    except ValueError:
        raise ConfigError(f"--budgets is {','.join(given['budgets'])}; give numbers such as 4e11,1e12") from None
    return parse_config(given, LadderConfig)


def _tell(made: dict[str, Any], best_for: float, plots: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from flows.commands.plan import show_sections
    from flows.commands.terminal import as_plain
    from gptmodel.planning.law_text import asked_budget, law_sections, told_of
    from gptmodel.planning.own_law import law_of

    law = made["law"]
    told, own = told_of(law), law_of(law)
    asked = asked_budget(told, best_for)
    if plots is not None:
        from gptmodel.pictures.style import save_all
        from gptmodel.planning.law_pictures import law_pictures
        from gptmodel.store.space import storage_errors

        with storage_errors("the pictures", plots.absolute().parent):
            plots.mkdir(parents=True, exist_ok=True)
        save_all(law_pictures(own, told["points"], asked), plots)
    if as_json:
        click.echo(json.dumps({**as_plain(made), "advice": asdict(own.advise(asked))}, ensure_ascii=False))
        return
    show_sections(law_sections(law, best_for))
    click.echo(f"The law: {law.path}\nPlan by it: .venv/bin/gptflow plan --best-for 1e15 --law {law.label}")
