"""`gptflow report`: how a model of the store does, as a page."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.options import page_option


@click.command()
@click.argument("model", required=False, default="")
@click.option(
    "--evaluation", default="", help="The evaluation to report; left out, the newest of the validation split."
)
@click.option("--champion", default="", help="A model to compare with; left out, the registered model's @champion.")
@page_option("report.html")
@click.option("--local", is_flag=True, help="Do not ask MLflow for names, versions and the champion.")
def report(model: str, evaluation: str, champion: str, out: Path, local: bool) -> None:
    """Write a page on MODEL: figures with intervals, curve, sources, documents, samples, surprisal, ratings, lineage.

    MODEL is a checkpoint or weights of the store, an MLflow run id or a registered version; left out, the newest
    checkpoint. It must have been evaluated; what the store does not hold is left out.
    """
    from gptmodel.pages.frame import write_page
    from gptmodel.pages.report import report_page
    from gptmodel.pages.report_facts import report_facts
    from gptmodel.store.artifacts import open_store
    from tasks.tracking.champions import Standing, standing_of
    from tasks.tracking.naming import find_artifact, named_model

    store = open_store()
    found = named_model(store, model)
    judged = find_artifact(store, evaluation, "evaluation") if evaluation else None
    standing = Standing() if local else standing_of(store, found)
    rival = find_artifact(store, champion) if champion else standing.champion
    facts = report_facts(
        store,
        found,
        judged,
        name=standing.name,
        version=standing.version,
        champion=rival,
        champion_name=rival.label if champion and rival else standing.champion_name,
    )
    write_page(out, report_page(facts))
    if champion and facts.champion is None:
        click.echo(f"{champion} has no evaluation on the same tokens, so it is left out", err=True)
    click.echo(f"{out} is written; open it in a browser", err=True)
