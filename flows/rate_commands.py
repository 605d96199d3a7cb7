"""`gptflow rate`: people judge what models write, blind."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptmodel.errors import DataError, TrackingError

if TYPE_CHECKING:
    from gptmodel.artifacts import Artifact, Store
    from gptmodel.rating.gate import Verdict

_round = click.argument("name", metavar="[ROUND]", required=False, default="")
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


@click.group()
def rate() -> None:
    """Have people rate what models write: coherence, fluency, relevance, factual accuracy, from 1 to 5.

    ROUND is a rating-round of the store; left out, the one that was made last.
    """


@rate.command()
@click.option("--model", "models", multiple=True, help="Left out, the newest checkpoint; repeat it to compare.")
@click.option("--rater", "raters", multiple=True, help="A name for each rater; it stays on this machine.")
@click.option("--prompt", "prompts", multiple=True, help="A beginning of your own; may be repeated.")
@click.option("--from-validation", type=int, help="Beginnings drawn from validation documents.  [default: 10]")
@click.option(
    "--checks", type=int, help="Real passages, and as many word salads, to find careless raters. [default: 2]"
)
@click.option("--corpus", default="", help="Where to draw them from; left out, what the first model learned from.")
@click.option("--set", "sets", multiple=True, metavar="A.B=VALUE", help="Another setting, as decoding.top_k=50.")
@click.option("--seed", type=int, help="Another seed is another round.")
@click.option("--needed", type=click.IntRange(min=0), default=0, help="Ratings that are enough; 0 is all of them.")
@click.option("--days", type=float, default=7.0, show_default=True, help="How long there is time.")
@click.option("--queue/--no-queue", default=True, help="Make queues in MLflow's Review page.")
@click.option("--wait", is_flag=True, help="Wait for another run of the same, instead of refusing.")
@_json
def start(
    models: tuple[str, ...], sets: tuple[str, ...], raters: tuple[str, ...], as_json: bool, wait: bool, **options: Any
) -> None:
    """Let models write, plant the checks, and put the texts before the raters."""
    from gptmodel.rating.rounds import RoundConfig
    from gptmodel.settings import merge_layers, parse_config

    named = {name: options[name] for name in ("prompts", "from_validation", "checks", "seed")}
    given = merge_layers("", sets=sets)[1] | {name: value for name, value in named.items() if value not in (None, ())}
    settings = parse_config(given, RoundConfig)
    from flows.human_eval import human_eval
    from tasks.console import quiet_prefect, start_server_apart

    quiet_prefect()
    start_server_apart()
    asked = {name: options[name] for name in ("corpus", "needed", "days", "queue")}
    made = human_eval(list(models), list(raters), settings=settings, await_raters=False, wait=wait, **asked)
    found, numbers = made["round"], made["raters"]
    if as_json:
        told = {"round": found.label, "digest": found.digest, "summary": found.summary, "raters": numbers}
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    click.echo(f"{found.label}: {found.summary['texts']} texts for each rater, in an order of his own")
    for who, place in numbers.items():
        click.echo(f"  {who} is rater-{place['rater']}" + (f": {place['page']}" if place["page"] else ""))
    click.echo("At a terminal:  gptflow rate terminal --rater NAME")
    click.echo("On paper:       gptflow rate export --rater NAME --to sheet.csv")
    click.echo("How far it is:  gptflow rate status")


@rate.command()
@_round
@click.option("--rater", required=True, help="Your name, as the round was told.")
def terminal(name: str, rater: str) -> None:
    """Rate at the keyboard: 1 to 5 for each question. Leave at any time and go on later: each key is saved."""
    from flows.rate_terminal import rate_texts

    store, found = _open(name)
    rate_texts(store, found, rater)


@rate.command()
@_round
@click.option("--rater", required=True, help="Whose sheet.")
@click.option("--to", "target", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A CSV file.")
def export(name: str, rater: str, target: Path) -> None:
    """Write a rater's sheet: a CSV file to fill in, with the questions in a text file beside it."""
    from gptmodel.artifacts import write_atomic
    from gptmodel.rating.journal import Journal
    from gptmodel.rating.rounds import in_order, read_items
    from gptmodel.rating.sheets import guide_text, sheet_text

    store, found = _open(name)
    journal = Journal(store, found.path.name)
    number = journal.number_of(rater)
    guide = target.with_suffix(".txt")
    if target.exists() or guide.exists():
        raise DataError(f"{target if target.exists() else guide} is there already; give another name, or remove it")
    try:
        write_atomic(guide, guide_text())
        write_atomic(target, sheet_text(found, number, in_order(found, number, read_items(found)), journal.ratings()))
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}") from None
    click.echo(f"{target}: the texts for rater-{number}; {guide} says what to do. Back with `gptflow rate import`")


@rate.command("import")
@click.argument("sheets", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--round", "name", default="", help="Left out, the round that was made last.")
def import_(sheets: tuple[Path, ...], name: str) -> None:
    """Take filled-in sheets: all of them or, if a row is wrong, nothing. A sheet that is taken twice counts once."""
    from gptmodel.rating.journal import Journal
    from gptmodel.rating.rounds import read_items
    from gptmodel.rating.sheets import read_sheet

    store, found = _open(name)
    journal, items = Journal(store, found.path.name), read_items(found)
    numbers = list(journal.raters().values())
    ratings = [rating for sheet in sheets for rating in read_sheet(sheet, found, numbers, items)]
    fresh = journal.add(ratings)
    click.echo(f"{len(ratings)} ratings read, {fresh} of them new, for {found.label}")


@rate.command()
@_round
@_json
def status(name: str, as_json: bool) -> None:
    """How far a round is, rater by rater. Names are shown here and nowhere else."""
    from gptmodel.rating.journal import Journal
    from gptmodel.rating.rounds import models_of, read_items

    store, found = _open(name)
    _collect(store, found)
    journal, items = Journal(store, found.path.name), read_items(found)
    done = [rater for rater, _ in journal.ratings()]
    raters = {who: {"rater": number, "rated": done.count(number)} for who, number in journal.raters().items()}
    opening = journal.opening()
    if as_json:
        until = opening.deadline if opening else None
        told = {"round": found.label, "models": models_of(found), "texts": len(items), "raters": raters, "until": until}
        click.echo(json.dumps({**told, "needed": opening.needed if opening else None}, ensure_ascii=False))
        return
    click.echo(f"{found.label}: {len(items)} texts of {', '.join(models_of(found))}")
    for who, how in raters.items():
        click.echo(f"  {who} (rater-{how['rater']}): {how['rated']} of {len(items)}")
    if opening:
        click.echo(f"{len(done)} of {opening.needed} ratings are in; time until {opening.deadline}")


@rate.command()
@_round
@click.option("--require", "wanted", multiple=True, metavar="C>=X", help="As coherence>=3.0, or coherence.low>=3.0.")
@click.option("--model", default="", help="Which model the requirements are for; left out, the round's first.")
@_json
def results(name: str, wanted: tuple[str, ...], model: str, as_json: bool) -> None:
    """Figures of what is rated so far, kept in the store and in MLflow. Exit code 1 if a requirement is not met.

    The interval holds 95 % of bootstrap samples of raters and prompts. `.low` asks its lower end to reach the points.
    """
    from gptmodel.rating.gate import judge, parse_requirement

    requirements = [parse_requirement(text) for text in wanted]
    store, found = _open(name)
    _collect(store, found)
    ratings = _publish(store, found)
    if model:
        from gptmodel.artifacts import find_model
        from tasks.naming import find_artifact

        model = find_model(store, str(find_artifact(store, model).path)).label
    verdicts = judge(ratings, model, requirements)
    _tell(ratings, verdicts, as_json=as_json)
    if not all(verdict.met for verdict in verdicts):
        raise SystemExit(1)


def _publish(store: Store, found: Artifact) -> Artifact:
    from gptmodel.rating.journal import Journal
    from gptmodel.rating.results import publish
    from tasks.syncing import settle, sync_ratings

    ratings, _ = publish(store, found, list(Journal(store, found.path.name).ratings().values()), wait=True)
    settle(lambda: sync_ratings(store, ratings), ratings.label)
    return ratings


def _open(name: str) -> tuple[Store, Artifact]:
    from gptmodel.artifacts import open_store
    from gptmodel.rating.rounds import find_round

    store = open_store()
    return store, find_round(store, name)


def _collect(store: Store, found: Artifact) -> None:
    """What is in MLflow's queues; where it cannot be asked, what is here must do, and that is said."""
    from tasks.rating import collect

    try:
        collect(store, found)
    except TrackingError as error:
        click.echo(f"gptflow: {error}; without it:", err=True)


def _tell(ratings: Artifact, verdicts: list[Verdict], *, as_json: bool) -> None:
    told = ratings.summary
    if as_json:
        gate = [
            {"require": str(v.requirement), "met": v.met, "mean": v.mean, "low": v.low, "high": v.high}
            for v in verdicts
        ]
        click.echo(json.dumps({"ratings": ratings.label, "digest": ratings.digest, "gate": gate, "summary": told}))
        return
    from rich.console import Console
    from rich.table import Table

    from tasks.rating import figure_rows

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    rows = figure_rows(ratings)
    table = Table(*rows[0], box=None, title=f"[bold]{ratings.label}", title_justify="left")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    for pair in told["preference"]:
        p_value = "none" if pair["p_value"] is None else f"{pair['p_value']:.3g}"
        console.print(
            f"{pair['a']} against {pair['b']}: better after {pair['a_wins']} prompts, worse after {pair['b_wins']}, "
            f"{pair['ties']} ties; sign test p = {p_value}"
        )
    for rater in told["by_rater"]:
        marks = [f"{what} {rater[what]:.2f}" for what in ("real", "salad") if rater[what] is not None]
        how = "FLAGGED and left out" if rater["flagged"] else "not checked" if len(marks) < 2 else "passed the checks"
        console.print(f"rater-{rater['rater']}: {rater['rated']} texts, {how} ({', '.join(marks) or 'no check rated'})")
    for verdict in verdicts:
        console.print(f"[bold]{verdict}")
