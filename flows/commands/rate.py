"""`gptflow rate`: people judge what models write, blind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.options import UTF8, Number, json_option
from gptmodel.errors import ConfigError, DataError, TrackingError

if TYPE_CHECKING:
    from gptmodel.store.artifacts import Artifact, Store

_round = click.argument("name", metavar="[ROUND]", required=False, default="")
_at_least_one = click.IntRange(min=1)


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
@click.option(
    "--set", "sets", multiple=True, type=UTF8, metavar="A.B=VALUE", help="Another setting, as decoding.top_k=50."
)
@click.option("--seed", type=int, help="Another seed is another round.")
@click.option("--needed", type=click.IntRange(min=0), default=0, help="Answers that are enough; 0 is all of them.")
@click.option("--days", type=Number(above=0), default=7.0, show_default=True, help="How long there is time.")
@click.option("--queue/--no-queue", default=True, help="Make queues in MLflow's Review page.")
@click.option("--pairs/--no-pairs", default=True, help="With two or more models, ask which of two texts is better.")
@click.option("--wait", is_flag=True, help="Wait for another run of the same, instead of refusing.")
@json_option
def start(
    models: tuple[str, ...], sets: tuple[str, ...], raters: tuple[str, ...], as_json: bool, wait: bool, **options: Any
) -> None:
    """Let models write, plant the checks, and put the texts before the raters."""
    from gptmodel.rating.rounds import RoundConfig
    from gptmodel.settings import merge_layers, parse_config

    named = {name: options[name] for name in ("prompts", "from_validation", "checks", "seed")}
    _, given = merge_layers("", sets=sets, cls=RoundConfig)
    given |= {name: value for name, value in named.items() if value not in (None, ())}
    settings = parse_config(given, RoundConfig)
    if options["queue"] and not raters:
        raise ConfigError("nobody is named to rate; name each with --rater, or give --no-queue for whoever comes")
    from flows.human_eval import human_eval
    from tasks.console import quiet_prefect, start_server_apart

    quiet_prefect()
    start_server_apart()
    asked = {name: options[name] for name in ("corpus", "needed", "days", "queue", "pairs")}
    made = human_eval(list(models), list(raters), settings=settings, await_raters=False, wait=wait, **asked)
    found, numbers = made["round"], made["raters"]
    if as_json:
        told = {"round": found.label, "digest": found.digest, "summary": found.summary, "raters": numbers}
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    click.echo(f"{found.label}: {found.summary['texts']} texts for each rater, in an order of his own")
    for who, place in numbers.items():
        click.echo(f"  {who} is rater-{place['rater']}" + (f": {place['page']}" if place["page"] else ""))
        if place["pairs"]:
            click.echo(f"    then, which of two is better: {place['pairs']}")
    click.echo("At a terminal:  gptflow rate terminal --rater NAME")
    click.echo("On paper:       gptflow rate export --rater NAME --to sheet.csv")
    click.echo("How far it is:  gptflow rate status")


_pairs = click.option("--pairs", "only_pairs", is_flag=True, help="The pairs to compare, and not the single texts.")


@rate.command()
@_round
@click.option("--rater", required=True, help="Your name, as `rate start` was told it.")
@_pairs
def terminal(name: str, rater: str, only_pairs: bool) -> None:
    """Rate at the keyboard: 1 to 5 for each question, then A or B. Leave at any time and go on: each key is saved."""
    from flows.commands.rate_pairs import compare_pairs
    from flows.commands.rate_terminal import rate_texts
    from tasks.rating import pairs_asked

    store, found = _open(name)
    pairs = pairs_asked(store, found)
    if only_pairs and not pairs:
        raise ConfigError(f"{found.label} asks for no comparison; open it with `gptflow rate start` and two models")
    if (only_pairs or rate_texts(store, found, rater)) and pairs:
        compare_pairs(store, found, rater, pairs)


@rate.command()
@_round
@click.option("--rater", required=True, help="Whose sheet, as `rate start` was told the name.")
@click.option("--to", "target", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A CSV file.")
@_pairs
def export(name: str, rater: str, target: Path, only_pairs: bool) -> None:
    """Write a rater's sheet: a CSV file to fill in, with the questions in a text file beside it."""
    from gptmodel.rating.journal import Journal
    from gptmodel.rating.pair_sheets import pair_guide_text, pair_sheet_text
    from gptmodel.rating.pairs import pairs_in_order
    from gptmodel.rating.rounds import in_order, read_items
    from gptmodel.rating.sheets import guide_text, sheet_text
    from gptmodel.store.artifacts import write_atomic
    from tasks.rating import pairs_asked

    store, found = _open(name)
    pairs = pairs_asked(store, found) if only_pairs else []
    if only_pairs and not pairs:
        raise ConfigError(f"{found.label} asks for no comparison; open it with `gptflow rate start` and two models")
    journal = Journal(store, found.path.name)
    number = journal.number_told(rater)
    guide = target.with_suffix(".guide.txt" if target.suffix.lower() == ".txt" else ".txt")
    if target.exists() or guide.exists():
        raise DataError(f"{target if target.exists() else guide} is there already; give another name, or remove it")
    if only_pairs:
        words = pair_guide_text()
        sheet = pair_sheet_text(found, number, pairs_in_order(found, number, pairs), journal.comparisons())
    else:
        words = guide_text()
        sheet = sheet_text(found, number, in_order(found, number, read_items(found)), journal.ratings())
    try:
        write_atomic(guide, words)
        write_atomic(target, sheet)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}; name another place with --to") from None
    what = "pairs" if only_pairs else "texts"
    click.echo(f"{target}: the {what} for rater-{number}; {guide} says what to do. Back with `gptflow rate import`")


@rate.command("import")
@click.argument("sheets", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--round", "name", default="", help="Left out, the round that was made last.")
def import_(sheets: tuple[Path, ...], name: str) -> None:
    """Take filled-in sheets: all of them or, if a row is wrong, nothing. A sheet that is taken twice counts once."""
    from gptmodel.rating.journal import Journal
    from gptmodel.rating.pair_sheets import is_pair_sheet, read_pair_sheet
    from gptmodel.rating.rounds import read_items
    from gptmodel.rating.sheets import read_sheet
    from tasks.rating import pairs_asked

    store, found = _open(name)
    journal, items, pairs = Journal(store, found.path.name), read_items(found), pairs_asked(store, found)
    numbers = list(journal.raters().values())
    of_pairs = [sheet for sheet in sheets if is_pair_sheet(sheet)]
    compared = [word for sheet in of_pairs for word in read_pair_sheet(sheet, found, numbers, pairs)]
    ratings = [word for sheet in sheets if sheet not in of_pairs for word in read_sheet(sheet, found, numbers, items)]
    if ratings or not of_pairs:
        click.echo(f"{len(ratings)} ratings read, {journal.add(ratings)} of them new, for {found.label}")
    if of_pairs:
        click.echo(f"{len(compared)} comparisons read, {journal.compare(compared)} of them new, for {found.label}")


@rate.command()
@_round
@json_option
def status(name: str, as_json: bool) -> None:
    """How far a round is, rater by rater. Names are shown here and nowhere else."""
    from gptmodel.rating.journal import Journal
    from gptmodel.rating.rounds import models_of, read_items
    from tasks.rating import pairs_asked

    store, found = _open(name)
    _collect(store, found)
    journal, items, pairs = Journal(store, found.path.name), read_items(found), pairs_asked(store, found)
    done, compared = [rater for rater, _ in journal.ratings()], [rater for rater, _ in journal.comparisons()]
    raters = {
        who: {"rater": number, "rated": done.count(number), **({"compared": compared.count(number)} if pairs else {})}
        for who, number in journal.raters().items()
    }
    opening = journal.opening()
    if as_json:
        until = opening.deadline if opening else None
        told = {"round": found.label, "models": models_of(found), "texts": len(items), "raters": raters, "until": until}
        click.echo(json.dumps({**told, "needed": opening.needed if opening else None}, ensure_ascii=False))
        return
    click.echo(f"{found.label}: {len(items)} texts of {', '.join(models_of(found))}")
    for who, how in raters.items():
        also = f", {how['compared']} of {len(pairs)} pairs" if pairs else ""
        click.echo(f"  {who} (rater-{how['rater']}): {how['rated']} of {len(items)}{also}")
    if opening:
        given = len(done) + len(compared)
        click.echo(f"{given} of {opening.needed} answers are in; time until {opening.deadline}")


@rate.command()
@_round
@click.option("--require", "wanted", multiple=True, metavar="C>=X", help="As coherence>=3.0, or coherence.low>=3.0.")
@click.option("--model", default="", help="Which model the requirements are for; left out, the round's first.")
@json_option
def results(name: str, wanted: tuple[str, ...], model: str, as_json: bool) -> None:
    """Figures of what is rated so far, kept in the store and in MLflow. Exit code 1 if a requirement is not met.

    The interval is of 95 %, from a bootstrap of raters and prompts. `.low` asks its lower end to reach the points.
    """
    from flows.commands.rate_results import tell
    from gptmodel.rating.gate import judge
    from gptmodel.requirements import parse_requirement

    requirements = [parse_requirement(text) for text in wanted]
    store, found = _open(name)
    _collect(store, found)
    ratings = _publish(store, found)
    if model:
        from tasks.tracking.naming import named_model

        model = named_model(store, model).label
    verdicts = judge(ratings, model, requirements)
    tell(ratings, verdicts, as_json=as_json)
    if not all(verdict.met for verdict in verdicts):
        raise SystemExit(1)


@rate.command()
@click.argument("model")
@click.option("--against", "rival", default="", help="Another model: fails if raters prefer that one.")
@click.option("--require", "wanted", multiple=True, metavar="C>=X", help="As coherence>=3.0, or coherence.low>=3.0.")
@click.option(
    "--raters", type=_at_least_one, default=2, show_default=True, help="Raters who read; with fewer it does not pass."
)
@click.option("--ratings", type=_at_least_one, default=10, show_default=True, help="Ratings of its texts; likewise.")
@json_option
def gate(model: str, rival: str, wanted: tuple[str, ...], raters: int, ratings: int, as_json: bool) -> None:
    """Whether people's newest ratings of MODEL let it pass. Exit code 1 if it fails, or too few have rated."""
    from gptmodel.rating.gate import PeopleGate, decide
    from gptmodel.store.artifacts import open_store
    from tasks.tracking.naming import named_model

    asked = PeopleGate(requirements=wanted, least_raters=raters, least_ratings=ratings)
    store = open_store()
    found = [named_model(store, name) for name in (model, rival) if name]
    decision = decide(store, found[0].digest, asked, found[1].digest if rival else "")
    if as_json:
        verdicts = [{"require": str(v.requirement), "met": v.met, "mean": v.mean} for v in decision.verdicts]
        click.echo(json.dumps({**vars(decision), "model": found[0].label, "verdicts": verdicts}, ensure_ascii=False))
    else:
        click.echo(f"{found[0].label}: {decision.outcome}: {decision.why}")
    if decision.outcome != "pass":
        raise SystemExit(1)


def _publish(store: Store, found: Artifact) -> Artifact:
    from tasks.rating import figures
    from tasks.tracking.syncing import settle, sync_ratings

    ratings, _ = figures(store, found, wait=True)
    settle(lambda: sync_ratings(store, ratings), ratings.label)
    return ratings


def _open(name: str) -> tuple[Store, Artifact]:
    from gptmodel.rating.rounds import find_round
    from gptmodel.store.artifacts import open_store

    store = open_store()
    return store, find_round(store, name)


def _collect(store: Store, found: Artifact) -> None:
    """What is in MLflow's queues; where it cannot be asked, what is here must do, and that is said."""
    from tasks.rating import collect

    try:
        collect(store, found)
    except TrackingError as error:
        click.echo(f"gptflow: {error}; without it:", err=True)
