"""`gptflow champions`, `promote` and `rollback`: who is the champion of a name, why, and moving it by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from flows.commands.options import UTF8, json_option

if TYPE_CHECKING:
    from gptmodel.retraining.ledger import Entry, Ledger
    from gptmodel.store.artifacts import Store

_REASON = click.option("--reason", default="", type=UTF8, help="Why; it is asked for, and stands in the ledger.")


@click.command()
@click.argument("name", required=False, default="")
@json_option
def champions(name: str, as_json: bool) -> None:
    """Show who is champion, previous and challenger of NAME, and every decision that led there; left out, of all names.

    It is what the ledger in the store says; MLflow is not asked.
    """
    from gptmodel.errors import ConfigError
    from gptmodel.retraining.ledger import Ledger, ledgers
    from gptmodel.store.artifacts import open_store
    from tasks.promoting import rows

    store = open_store()
    found = [Ledger(store, name)] if name else list(ledgers(store))
    if name and not found[0].path.exists():
        known = ", ".join(each.name for each in ledgers(store)) or "none"
        raise ConfigError(
            f"{store.root} has no ledger of {name!r} (there is {known}); is the name right, and GPTFLOW_STORE?"
        )
    told: dict[str, Any] = {}
    for ledger in found:
        state = ledger.read()
        roles = ("champion", "previous", "challenger", "frozen")
        told[ledger.name] = {role: each.label if (each := getattr(state, role)) else None for role in roles}
        told[ledger.name] |= {"told": state.last is None or ledger.is_told(state.last), "entries": rows(state)}
    if as_json:
        click.echo(json.dumps({"store": str(store.root), "names": told}, ensure_ascii=False))
        return
    for each, said in told.items():
        click.echo(f"{each}: champion {said['champion'] or 'none'}, previous {said['previous'] or 'none'}")
        if not said["told"]:
            click.echo("  MLflow was not told all yet; `gptflow sync` does it")
        for row in said["entries"]:
            model = f"  {row['model']}" if row["model"] else ""
            click.echo(
                f"  {row['number']:>4}  {row['at'][:16]}  {row['action']:9}{model}  by {row['by']}: {row['why']}"
            )
    if not told:
        click.echo(f"nothing was ever promoted in {store.root}")


@click.command()
@click.argument("model")
@click.option("--name", default="", help="The registered name, where MODEL does not say it.")
@_REASON
@json_option
def promote(model: str, name: str, reason: str, as_json: bool) -> None:
    """Make MODEL the champion of its name, whatever the gate said.

    MODEL is a registered version (nightly/3, nightly@challenger), or a checkpoint or weights of the store.
    """
    from gptmodel.store.artifacts import open_store
    from tasks.promoting import promote as move

    store = open_store()
    _said(store, *move(store, model, name, reason), already=f"{model} is the champion already", as_json=as_json)


@click.command()
@click.argument("name")
@_REASON
@json_option
def rollback(name: str, reason: str, as_json: bool) -> None:
    """Put the previous champion of NAME back in its place; done again, the one before that."""
    from gptmodel.store.artifacts import open_store
    from tasks.promoting import rollback as move

    store = open_store()
    _said(store, *move(store, name, reason), already="", as_json=as_json)


def _said(store: Store, ledger: Ledger, entry: Entry | None, *, already: str, as_json: bool) -> None:
    from tasks.promoting import tell

    untold, state = tell(store, ledger.name), ledger.read()
    champion = state.champion.label if state.champion else ""
    if as_json:
        told = {"name": ledger.name, "champion": champion, "changed": entry is not None, "not_told": untold}
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    click.echo(already if entry is None else f"the champion of {ledger.name} is now {champion}")
    if untold:
        click.echo(f"MLflow is told later ({untold}): by the next run, or by `gptflow sync`", err=True)
