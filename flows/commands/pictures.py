"""`gptflow pictures`: all pictures of a model of the store, into a folder."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flows.commands.options import json_option


@click.command()
@click.argument("model", required=False, default="")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="pictures",
    show_default=True,
    help="The folder that they go into.",
)
@json_option
def pictures(model: str, out: Path, as_json: bool) -> None:
    """Draw MODEL: loss, learning rate, throughput, calibration, its text, its lineage and a surprisal map.

    MODEL is a checkpoint or weights of the store, an MLflow run id or a registered version; left out, the newest
    checkpoint. PNG files for light pages and, as NAME-dark.png, for dark ones; two SVG files follow the screen.
    """
    from gptmodel.lineage.lookup import evaluations_of
    from gptmodel.lineage.walk import Lineage
    from gptmodel.pages.gallery import save_gallery
    from gptmodel.store.artifacts import open_store
    from gptmodel.store.space import storage_errors
    from tasks.tracking.naming import named_model

    store = open_store()
    found = named_model(store, model)
    with storage_errors("the pictures", out.absolute().parent, setting="--out"):
        out.mkdir(parents=True, exist_ok=True)
    judged = evaluations_of(store, found.digest)
    unseen = [each for each in judged if each.summary["split"] == "validation"]
    newest = (unseen or judged)[-1] if judged else None
    written = save_gallery(store, found, newest, Lineage(store).around(found.ref), out)
    if as_json:
        click.echo(json.dumps({"model": found.label, "files": [str(path) for path in written]}, ensure_ascii=False))
    else:
        click.echo(f"{found.label}: {len(written)} pictures in {out}: {', '.join(path.name for path in written)}")
