"""`gptflow lineage`: what a model was made from, and what was made of a source, as a tree, chart, page or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gptmodel.lineage.graph import Graph
    from gptmodel.lineage.walk import Lineage
    from gptmodel.store.artifacts import Ref, Store


@click.command()
@click.argument("name", required=False, default="")
@click.option("--downstream", is_flag=True, help="What was made from it, instead of what it was made from.")
@click.option("--json", "as_json", is_flag=True, help="Print nodes and edges as one JSON object.")
@click.option("--mermaid", "as_mermaid", is_flag=True, help="Print a flowchart for GitHub and other Markdown pages.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with a drawing.")
@click.option("--local", is_flag=True, help="Do not ask MLflow for registered versions.")
def lineage(name: str, downstream: bool, as_json: bool, as_mermaid: bool, html: Path | None, local: bool) -> None:
    """Show what NAME was made from, with digests and figures; what is missing or damaged is shown as such.

    NAME is an artifact of the store (corpus/1f2e, a digest, a path), an MLflow run, a registered version (name/3,
    name@alias), or source/DIGEST, which shows all that was made from it. Left out, it is the newest checkpoint.
    """
    from gptmodel.lineage.graph import as_json as as_plain
    from gptmodel.lineage.text import mermaid
    from gptmodel.lineage.walk import Lineage

    if as_json and as_mermaid:
        raise click.UsageError("--json and --mermaid both print to standard output; give one of them")
    store, ref = _meant(name)
    found = Lineage(store)
    graph = found.downstream(ref) if downstream or ref.kind == "source" else found.around(ref)
    graph = graph if local else _with_versions(store, graph)
    if html is not None:
        _write(html, graph)
    if as_json:
        click.echo(json.dumps(as_plain(graph)))
    elif as_mermaid:
        click.echo(mermaid(graph), nl=False)
    elif html is None:
        _print_tree(graph)


def _meant(name: str) -> tuple[Store, Ref]:
    """The store and what is called so in it; what is gone from it may be known by what was made from it."""
    from gptmodel.errors import ArtifactError
    from gptmodel.lineage.walk import Lineage
    from gptmodel.store.artifacts import Store, open_store

    store = open_store()
    if not name:
        return store, Lineage(store).newest("checkpoint")
    try:
        artifact = store.resolve(name)
    except ArtifactError:
        ref = _known(Lineage(store), name)
        if ref is not None:
            return store, ref
        from tasks.tracking.naming import find_artifact

        artifact = find_artifact(store, name)
    return Store(artifact.path.resolve().parent.parent), artifact.ref  # it may be a path into another store


def _known(lineage: Lineage, name: str) -> Ref | None:
    from gptmodel.errors import ArtifactError

    try:
        return lineage.find(name)
    except ArtifactError:
        return None


def _with_versions(store: Store, graph: Graph) -> Graph:
    """With the registered versions, if MLflow says in a few seconds which there are."""
    from gptmodel.errors import TrackingError
    from gptmodel.lineage.graph import MODELS
    from tasks.tracking.mlflow_pages import briefly, is_there, versions_of

    if not is_there() or not any(node.kind in MODELS for node in graph.nodes):
        return graph
    try:
        return graph.with_versions(briefly(lambda: versions_of(store, graph)))
    except TrackingError as error:
        click.echo(f"gptflow: registered versions are left out: {error}", err=True)
        return graph


def _write(path: Path, graph: Graph) -> None:
    from gptmodel.pages.frame import write_page
    from gptmodel.pages.lineage import page

    write_page(path, page(graph))
    click.echo(f"{path} is written; open it in a browser", err=True)


def _print_tree(graph: Graph) -> None:
    """On a terminal two lines for each node, so that they fit; else one, to be searched."""
    from rich.console import Console
    from rich.text import Text

    from gptmodel.lineage.text import STATES, tree

    console = Console(highlight=False, soft_wrap=True)
    for line in tree(graph):
        if not console.is_terminal:
            click.echo(str(line))
            continue
        facts = "red" if line.node.state in STATES and not line.again else "dim"
        title = (line.title, "bold" if line.is_focus else "")
        console.print(Text.assemble(line.before, title, "  ", (line.facts, facts), f"  {line.mark}"))
        for part in line.wrapped(console.width):
            console.print(Text(part))
