"""`gptflow surprise`: which tokens of a text surprise a model, as a page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from flows.commands.options import UTF8, given_text, page_option


@click.command()
@click.argument("text", required=False, default="-", type=UTF8)
@click.option("--model", default="", help="Checkpoint, weights, run id or registered version; left out, the newest.")
@page_option("surprisal.html")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=0),
    default=10_000,
    show_default=True,
    help="Read no more of the text than this; 0 is all. A page of so many has 3 MB.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as one JSON object, and write no page.")
def surprise(text: str, model: str, out: Path, max_tokens: int, as_json: bool) -> None:
    """Write a page of TEXT with each token in the colour of its loss.

    Point at a token, or go to it with the arrow keys: it tells its loss in nats and bits, its probability and rank, and
    what the model held likeliest there. Without TEXT, or with -, standard input is read, less one line end at its end.
    """
    from gptmodel.device import pick_device
    from gptmodel.judging.surprisal import read_text
    from gptmodel.pages.frame import write_page
    from gptmodel.pages.surprisal import surprisal_page
    from gptmodel.store.artifacts import open_store
    from gptmodel.weights import load_model
    from tasks.tracking.naming import named_model

    said = given_text(text)
    store = open_store()
    artifact = named_model(store, model)
    passage = read_text(load_model(artifact).to(pick_device("auto")), said, max_tokens=max_tokens)
    figures = passage.figures
    if as_json:
        told = {"model": artifact.label, "digest": artifact.digest, **asdict(figures)}
        click.echo(json.dumps({**told, "perplexity": figures.perplexity, "passage": asdict(passage)}))
        return
    write_page(out, surprisal_page([passage], artifact.label, artifact.digest))
    cut = f" (the first {figures.tokens:,} tokens; --max-tokens 0 takes all)" if passage.is_cut else ""
    click.echo(
        f"{figures.tokens:,} tokens, mean loss {figures.loss:.4f} nats ({figures.bits:.4f} bits), "
        f"perplexity {figures.perplexity:,.1f}{cut}"
    )
    click.echo(f"{out} is written; open it in a browser", err=True)
