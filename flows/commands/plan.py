"""`gptflow plan`: what a training will take, before it is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.options import UTF8, Number, json_option
from flows.commands.settings_options import one_file
from gptmodel.errors import ConfigError
from gptmodel.planning.examples import EXAMPLES
from gptmodel.presets import PRESETS

if TYPE_CHECKING:
    from gptmodel.config import PipelineConfig
    from gptmodel.planning.own_law import OwnLaw
    from gptmodel.planning.plan_text import Section
    from gptmodel.planning.rates import Rates


@click.command()
@click.argument("what", default="quickstart")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file of settings.")
@click.option(
    "--set", "sets", multiple=True, type=UTF8, metavar="A.B=VALUE", help="Change one setting; may be repeated."
)
@click.option("--shards", default="", help="Shards of the store that it will read: how often, then, is known.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Try a few real steps on this machine.")
@click.option("--trial-steps", default=5, show_default=True, help="How many steps to time.")
@click.option("--on", multiple=True, metavar="HARDWARE", help="Reckon for this of the table; left out, for all.")
@click.option("--devices", default=1, show_default=True, help="How many of them.")
@click.option(
    "--mfu", type=Number(), default=0.0, help="Share of their peak to reckon with, such as 0.4; left out, the table's."
)
@click.option("--grid", default="world", show_default=True, help="Grid of the table, or grams of CO2 for a kWh.")
@click.option("--rates", "rates_file", type=click.Path(path_type=Path), help="Your own table of prices and power.")
@click.option(
    "--best-for", metavar="FLOPS", type=Number(), help="Best model size and tokens for a budget of operations."
)
@click.option("--plot", type=click.Path(path_type=Path), help="With --best-for: draw loss against size into this PNG.")
@click.option("--law", default="", metavar="NAME", help="A fitted law: artifact, JSON file, or published (theirs).")
@click.option("--report", is_flag=True, help="How far the forecasts of this store's past runs were off.")
@json_option
def plan(what: str, as_json: bool, rates_file: Path | None, **given: Any) -> None:
    """What training WHAT will take: parameters, operations, memory, time, money, energy, disk, loss.

    WHAT is a preset, a YAML file of settings, or a published training: llama-2-7b, gpt2-124m-llmc, gpt2-124m-nanogpt,
    gpt2-1558m-llmc, chinchilla-70b. Nothing is written to the store; a few steps on random tokens are timed here.
    """
    from gptmodel.planning.rates import load_rates

    rates = load_rates(rates_file)
    given["rates_given"] = rates_file is not None
    if given["plot"] and not given["best_for"]:
        raise ConfigError("--plot draws the answer of --best-for; give both, such as --best-for 1e18 --plot best.png")
    _check_question(what, given)
    if given["report"]:
        found, told = _report()
    elif given["best_for"] is not None:
        found, told = _advice(what, given)
    elif what in EXAMPLES:
        found, told = _example(what, rates, given["grid"])
    else:
        found, told = _training(what, rates, given)
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        show_sections(found)
        if command := told.get("shape", {}).get("command"):
            click.echo(f"Train it: {command}")


def _check_question(what: str, given: dict[str, Any]) -> None:
    """ConfigError for what would be passed over in silence."""
    best = given["best_for"] is not None
    if given["report"] and best:
        raise ConfigError("--report and --best-for are two questions; ask one at a time")
    if not (given["report"] or best or what in EXAMPLES):
        return
    whom = "--report" if given["report"] else "--best-for" if best else f"a published training, {what}"
    names = {"--config": "file", "--set": "sets", "--shards": "shards", "--on": "on", "--mfu": "mfu"}
    if best:  # they say on which text
        names = {name: key for name, key in names.items() if name not in ("--config", "--set")}
    else:
        names["--law"] = "law"
    idle = [name for name, key in names.items() if given[key]] + ["--devices"] * (given["devices"] != 1)
    if idle:
        raise ConfigError(f"{idle[0]} says nothing to {whom}; leave it out")


def _report() -> tuple[list[Section], dict[str, Any]]:
    from dataclasses import asdict

    from gptmodel.planning.plan_text import score_section
    from gptmodel.planning.score import past_scores
    from gptmodel.store.artifacts import open_store

    found = past_scores(open_store())
    told = {name: [{**asdict(score), "error": score.error} for score in each] for name, each in found.items()}
    return [score_section(found)], told


def _example(what: str, rates: Rates, grid: str) -> tuple[list[Section], dict[str, Any]]:
    from dataclasses import asdict

    from gptmodel.planning.plan_text import example_sections

    example = EXAMPLES[what]
    peak = rates.device(example.hardware).tflops * 1e12 if example.hardware else 0.0
    told = {
        **asdict(example),
        "flops": example.flops,
        "flops_by_rule": example.flops_by_rule,
        "price": example.price,
        "mfu": example.mfu(peak, example.flops) if peak else None,
        "mfu_by_rule": example.mfu(peak, example.flops_by_rule) if peak else None,
    }
    return example_sections(example, rates, rates.grid(grid)), told


def _training(what: str, rates: Rates, given: dict[str, Any]) -> tuple[list[Section], dict[str, Any]]:
    from gptmodel.planning.budget import over_budget
    from gptmodel.planning.budget_text import budget_section
    from gptmodel.planning.forecast import forecast
    from gptmodel.planning.measuring import measure
    from gptmodel.planning.past import correction, past
    from gptmodel.planning.plan_text import sections
    from gptmodel.planning.rates import load_rates
    from gptmodel.store.artifacts import open_store

    config = _settings(what, given["file"], given["sets"])
    budget = config.train.budget
    if budget.rates and not given["rates_given"]:
        rates = load_rates(Path(budget.rates))
    summary: dict[str, Any] = {}
    if given["shards"]:
        summary = open_store().resolve(given["shards"], "shards").summary
    reckon = {name: given[name] for name in ("on", "devices", "mfu", "grid")}
    reckon["own"] = _law(given["law"], config)
    forecast(config, rates, **reckon)  # a wrong argument is told before minutes are spent on measuring
    trial = measure(config, given["trial_steps"]) if given["measure"] else None
    known: dict[str, Any] = {"trial": trial, "past": past(open_store(), config)}
    known |= {"correction": correction(open_store(), trial)} if trial else {}
    tokens = {name: summary.get(name, 0) for name in ("train_tokens", "validation_tokens")}
    found = forecast(config, rates, **known, **tokens, **reckon)
    if not budget.is_set:
        return sections(found, rates), found.plain()
    words = [*sections(found, rates), budget_section(config, found)]
    return words, {**found.plain(), "over_budget": over_budget(config, found)}


def _settings(what: str, file: Path | None, sets: tuple[str, ...]) -> PipelineConfig:
    from gptmodel.config.known import is_file
    from gptmodel.settings import load_config

    if is_file(what):
        return load_config(file=one_file(what, file), sets=sets)
    if what not in PRESETS:
        known = ", ".join([*PRESETS, *EXAMPLES])
        raise ConfigError(f"nothing to plan is called {what!r}; give a YAML file of settings, or one of {known}")
    return load_config(what, file=file, sets=sets)


def _law(name: str, config: PipelineConfig | None) -> OwnLaw | None:
    """The law that was named, or the newest of the store that was fitted on the text of these settings."""
    from gptmodel.planning.own_law import law_for, load_law
    from gptmodel.store.artifacts import open_store

    if name == "published" or (not name and config is None):
        return None
    return load_law(open_store(), name) if name else law_for(open_store(), config)  # type: ignore[arg-type]


def _advice(what: str, given: dict[str, Any]) -> tuple[list[Section], dict[str, Any]]:
    from dataclasses import asdict

    from gptmodel.planning.advice_text import advice_section, shape_section
    from gptmodel.planning.own_law import SAID
    from gptmodel.planning.scaling import BESIROGLU, advise
    from gptmodel.planning.shape import RULE, suggest

    flops, plot = given["best_for"], given["plot"]
    config = None if what in EXAMPLES else _settings(what, given["file"], given["sets"])
    own = _law(given["law"], config)
    if not 1e12 <= flops <= 1e30:
        raise ConfigError(f"--best-for is {flops:g}; give floating-point operations from 1e12 to 1e30, such as 1e18")
    if own and config:
        own = own.beside(config.model)
    found = own.advise(flops) if own else advise(flops)
    counts = own.counts if own else "all"
    source = f"fitted to own runs, {own.label}" if own else f"{BESIROGLU.name}, {BESIROGLU.source}"
    if plot is not None and (plot.is_dir() or not plot.absolute().parent.is_dir()):
        raise ConfigError(f"--plot is {plot}; give a file in a folder that is there, such as best.png")
    if plot is not None:
        from gptmodel.planning.pictures import save_advice

        save_advice(found, plot, counts)
    words, told = [advice_section(found, source, SAID[counts])], {**asdict(found), "law": source, "counts": counts}
    if config is not None:
        shape = suggest(found, own.law if own else BESIROGLU, config, _named(what, given), counts)
        words.append(shape_section(shape, found, config.name, counts))
        told["shape"] = {**asdict(shape), "rule": RULE}
    return words, told


def _named(what: str, given: dict[str, Any]) -> list[str]:
    """The settings that were asked with, as the other commands take them."""
    named = ["--preset" if what in PRESETS else "--config", what]
    named += ["--config", str(given["file"])] if given["file"] is not None else []
    return [*named, *(word for each in given["sets"] for word in ("--set", each))]


def show_sections(found: list[Section]) -> None:
    """Print them as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for section in found:
        table = Table(show_header=False, box=None, title=f"[bold]{section.title}", title_justify="left", padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(style="dim")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
        console.print()
