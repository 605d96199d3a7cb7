"""`gptflow export`: a model in the layout of other tools."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flows.commands.options import json_option


@click.command("export")
@click.argument("model", required=False, default="")
@click.option(
    "--to", "target", type=click.Path(path_type=Path), required=True, help="hf: a new directory; gguf: a file."
)
@click.option("--format", "layout", type=click.Choice(["hf", "gguf"]), default="hf", show_default=True)
@json_option
def export(model: str, target: Path, layout: str, as_json: bool) -> None:
    """Write MODEL (a checkpoint, weights, run id or registered version; left out, the newest checkpoint) for others.

    hf gives a directory that AutoModelForCausalLM and AutoTokenizer of transformers load; gguf gives a file for
    llama.cpp, and wants the package gguf. The weights are the same, bit for bit.
    """
    from gptmodel.formats.target import free_directory, free_file
    from gptmodel.store.artifacts import open_store
    from tasks.tracking.naming import named_model

    (free_directory if layout == "hf" else free_file)(target)  # before anything slow
    store = open_store()
    artifact = named_model(store, model)

    from gptmodel.formats.gguf_export import export_gguf
    from gptmodel.formats.hf_export import export_hf
    from gptmodel.pages.card import card_text
    from gptmodel.pages.card_facts import facts_of
    from gptmodel.weights import load_model

    gpt = load_model(artifact)
    if layout == "hf":
        files = export_hf(gpt, target, card=card_text(facts_of(store, artifact)))
    else:
        files = export_gguf(gpt, target, name=artifact.label)
    if as_json:
        click.echo(json.dumps({"model": artifact.label, "digest": artifact.digest, "to": str(target), "files": files}))
        return
    click.echo(f"{artifact.label} is now in {target}" + (f": {', '.join(files)}" if layout == "hf" else ""))
    if layout == "hf" and "vocab.json" not in files:
        click.echo(
            f"Without a tokenizer: its {gpt.config.vocab_size:,} tokens are not GPT-2's, and its words not known here"
        )
    how = f"AutoModelForCausalLM.from_pretrained({str(target)!r})" if layout == "hf" else f"llama-cli -m {target} -p …"
    click.echo(f"Load it:  {how}")
