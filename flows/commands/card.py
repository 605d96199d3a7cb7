"""`gptflow card`: the model card of a model of the store."""

from __future__ import annotations

import json
import re

import click


@click.command()
@click.argument("model", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Print the front matter and the card as one JSON object.")
def card(model: str, as_json: bool) -> None:
    """Print the model card of MODEL as Markdown: data, training, evaluation, cost, lineage, limits.

    MODEL is a checkpoint or weights of the store, an MLflow run id or a registered version; left out, the newest
    checkpoint. It is made anew from the store each time, with the evaluations that are there now.
    """
    from gptmodel.pages.card import card_text, front_matter
    from gptmodel.pages.card_facts import facts_of
    from gptmodel.store.artifacts import find_model, open_store
    from tasks.tracking.naming import find_artifact

    store = open_store()
    found = find_artifact(store, model) if model else find_model(store)
    said = re.fullmatch(r"(?:models:/)?([A-Za-z0-9._-]+)(?:/([0-9]{1,9})|@.+)", model)
    name, version = (said[1], said[2] or "") if said and said[1] not in ("checkpoint", "weights") else ("", "")
    facts = facts_of(store, found, name=name, version=version)
    if as_json:
        click.echo(json.dumps({"front_matter": front_matter(facts), "card": card_text(facts)}, ensure_ascii=False))
    else:
        click.echo(card_text(facts), nl=False)
