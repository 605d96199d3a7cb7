"""The sections of a report as HTML. One with nothing to say is empty. All text from outside goes through `text`."""

from __future__ import annotations

import math
import re

from gptmodel.judging.units import FEWEST, TOO_FEW, counted_units
from gptmodel.markdown_text import counted, number, short
from gptmodel.pages.line_chart import Line, line_chart
from gptmodel.pages.report_cells import (
    FIGURES,
    html_table,
    safe,
    written,
    written_interval,
)
from gptmodel.pages.report_facts import ReportFacts, Row
from gptmodel.store.artifacts import Artifact

_SOURCES, _DOCUMENTS = 20, 5
_LEAST_TOKENS = 64  # of a document that is called best or worst: short ones are so by luck
_PERPLEXITIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)


def lead(facts: ReportFacts) -> str:
    """What the model is, in two sentences."""
    shape, model = facts.model.architecture, facts.model.model
    how = "imported weights"
    if facts.model.is_trained:
        how = f"trained on {short(facts.model.tokens)} tokens in {model.summary['step']:,} steps"
    n_params = facts.model.n_params
    return (
        f"<p>A GPT of {short(n_params)} parameters ({counted(shape['n_layer'], 'layer')}, {shape['n_embd']} wide, "
        f"context {shape['context_length']:,} tokens), {how}. Judged on {facts.evaluation.summary['tokens']:,} tokens "
        f"of the {safe(facts.split)} split by {safe(facts.evaluation.label)}; the sha256 of the model is "
        f"<code>{safe(model.digest)}</code>.</p>\n"
    )


def figures(facts: ReportFacts) -> str:
    summary = facts.evaluation.summary
    intervals, drawn = summary.get("intervals", {}), summary.get("resampling", {})
    rows = []
    for name, (title, unit) in FIGURES.items():
        if name not in summary or (name.startswith("plain_") and summary[name] == summary[name[6:]]):
            continue
        rows.append([title, written(name, summary[name]), written_interval(name, intervals.get(name)), unit])
    said = ""
    if intervals:
        units = counted_units(drawn.get("units", 0), drawn.get("unit", "document"))
        said = (
            f"<p>Intervals hold the true figure with {drawn.get('confidence', 0.95):.0%} confidence: a bootstrap over "
            f"{safe(units)}, {drawn.get('resamples', 0):,} times drawn anew."
            f"{f' But {TOO_FEW}.' if drawn.get('units', 0) < FEWEST else ''}</p>\n"
        )
    else:
        rows = [[title, value, unit] for title, value, _, unit in rows]
    head = ["", "value", *(["interval"] if intervals else []), ""]
    return html_table(head, rows, numeric={1, 2} if intervals else {1}) + said


def champion(facts: ReportFacts) -> str:
    if (found := facts.champion) is None:
        return ""
    rows = [
        [
            FIGURES[each.name][0],
            written(each.name, each.challenger),
            written(each.name, each.champion),
            written(each.name, each.difference, "+"),
            f"{written(each.name, each.low, '+')} to {written(each.name, each.high, '+')}",
            f"{each.p_better:.1%}",
        ]
        for each in found.differences
        if each.name in FIGURES and not each.name.startswith("plain_")
    ]
    head = ["", "this model", "champion", "difference", "interval", "better in"]
    return (
        f"<p>{safe(facts.champion_name)} is the champion, and was judged on the same "
        f"{safe(counted_units(found.units, found.unit))}. They were drawn anew {found.resamples:,} times, the same "
        f"ones for both: an interval of the difference ({found.confidence:.0%}) that does not hold 0 says that one is "
        "better on such text; the last column is the share of the draws in which this model is.</p>\n"
        f"{html_table(head, rows, numeric={1, 2, 3, 4, 5})}"
    )


def training(facts: ReportFacts) -> str:
    if not facts.model.is_trained:
        return ""
    lines = list(facts.lines(facts.model.model, "curve.jsonl"))

    def points(name: str) -> list[tuple[float, float]]:
        return [(line["tokens"], line["metrics"][name]) for line in lines if name in line.get("metrics", {})]

    level = facts.evaluation.summary.get("unigram_loss")
    drawn = line_chart(
        [Line("training", "blue", points("train/loss")), Line("validation", "orange", points("validation/loss"), True)],
        "training tokens",
        "loss (nats per token)",
        x_words=_round_count,
        right=("perplexity", math.log, _PERPLEXITIES),
        reference=("guessing by frequency", level) if level else None,
    )
    if not drawn:
        return ""
    summary = facts.model.model.summary
    best = summary.get("best_validation_loss")
    lowest = f" Lowest validation loss {best:.4f}, at step {summary['best_step']:,}." if best is not None else ""
    epochs = f"{facts.model.epochs:.2f} times through the training text." if facts.model.epochs else ""
    return f"<figure>{drawn}</figure>\n<p>{epochs}{lowest}</p>\n"


def _round_count(value: float) -> str:
    """Such as 100 k, for a tick."""
    return re.sub(r"\.0(?= )", "", short(round(value)))


def sources(facts: ReportFacts) -> str:
    rows = facts.table("sources.parquet")
    if len(rows) < 2:
        return ""
    has_intervals = any(row.get("loss_low") is not None for row in rows)
    told = [
        [
            row["source"] or "(not named)",
            f"{row['documents']:,}",
            f"{row['n_tokens']:,}",
            number(row["loss"]),
            *([written_interval("loss", (row["loss_low"], row["loss_high"]))] if has_intervals else []),
            number(row["perplexity"]),
            f"{row['bits_per_byte']:.3f}",
        ]
        for row in rows
    ]
    head = ["source", "documents", "tokens", "loss", *(["interval"] if has_intervals else []), "perplexity"]
    shown = told if len(told) <= _SOURCES else [*told[: _SOURCES // 2], *told[-_SOURCES // 2 :]]
    more = f"<p>The hardest and the easiest of {len(told):,} sources.</p>\n" if len(shown) < len(told) else ""
    return html_table([*head, "bits per byte"], shown, numeric=set(range(1, 7))) + more


def documents(facts: ReportFacts) -> str:
    """The worst and the best predicted ones, of those that are long enough to say so."""
    rows = [row for row in facts.table("documents.parquet") if row["n_tokens"] >= _LEAST_TOKENS]
    if len(rows) < 2:
        return ""
    rows.sort(key=lambda row: (-row["loss"], row["document"]))
    few = min(_DOCUMENTS, len(rows) // 2)
    numeric = {1, 2, 3}
    head = ["document", "tokens", "loss", "perplexity"]
    parts = []
    for title, chosen in (("Worst predicted", rows[:few]), ("Best predicted", rows[::-1][:few])):
        told = [
            [_document(row), f"{row['n_tokens']:,}", number(row["loss"]), number(math.exp(min(row["loss"], 700.0)))]
            for row in chosen
        ]
        parts.append(f"<h3>{title}</h3>\n{html_table(head, told, numeric=numeric)}")
    command = f"gptflow trace {facts.model.model.label} --document {rows[0]['document'][:12]}"
    hint = f"<p>Of {len(rows):,} documents with at least {_LEAST_TOKENS} scored tokens.</p>\n"
    is_seen = facts.model.is_trained and facts.split == "train"
    return "".join(parts) + hint + (f"<p>When it was seen: <code>{safe(command)}</code></p>\n" if is_seen else "")


def _document(row: Row) -> str:
    source = row.get("source")
    return f"{source} ({row['document'][:12]})" if source else str(row["document"])


def calibration(facts: ReportFacts) -> str:
    bins = [each for each in facts.written.get("calibration", []) if each["tokens"]]
    if not bins:
        return ""
    rows = [
        [
            f"{each['above']:.0%} to {each['to']:.0%}",
            f"{each['tokens']:,}",
            f"{each['probability']:.1%}",
            f"{each['accuracy']:.1%}",
        ]
        for each in bins
    ]
    return (
        "<p>How probable the model held its first guess, and how often that guess was right: the two are equal where "
        "its sureness can be believed.</p>\n"
        + html_table(["first guess held", "tokens", "mean probability", "right"], rows, numeric={1, 2, 3})
    )


def lineage(facts: ReportFacts) -> str:
    chain: list[Artifact] = [*facts.model.chain, facts.model.model, facts.evaluation]
    chain += [facts.ratings] if facts.ratings else []
    rows = [[artifact.label, artifact.digest, str(artifact.provenance.get("finished", ""))] for artifact in chain]
    made = facts.model.model.provenance
    commit = f"<p>Code: git commit <code>{safe(made.get('git_commit'))}</code>" if made.get("git_commit") else ""
    commit += f"{', with changes that were not committed' if made.get('git_dirty') else ''}.</p>\n" if commit else ""
    label = facts.model.model.label
    words = [f"gptflow verify {label}", f"gptflow lineage {label}"]
    words += [f"gptflow reproduce {label}"] if facts.model.is_trained else []
    return (
        html_table(["artifact", "content digest (sha256)", "finished (UTC)"], rows)
        + commit
        + f"<pre>{safe(chr(10).join(words), keep_lines=True)}</pre>\n"
    )
