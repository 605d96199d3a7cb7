"""The sections of a report on the texts that the model wrote: samples, repetition, and what people said of them."""

from __future__ import annotations

from collections.abc import Iterator

from gptmodel.markdown_text import counted
from gptmodel.pages.report_cells import (
    html_prose,
    html_table,
    safe,
    written_plainly,
)
from gptmodel.pages.report_facts import ReportFacts, Row
from gptmodel.rating.results import comments_of, preferences_of
from gptmodel.store.artifacts import Artifact

_SAMPLES, _COMMENTS = 12, 6
_SAMPLE_CHARS = 2_000


def samples(facts: ReportFacts) -> str:
    found = list(facts.lines(facts.evaluation, "samples.jsonl"))
    if not found:
        return ""
    parts = [_repetition(facts.evaluation.summary)]
    for sample in found[:_SAMPLES]:
        overlap = sample.get("overlap_tokens")
        told = f"; longest passage that stands in the training text: {overlap:,} tokens" if overlap is not None else ""
        parts.append(
            f'<p class="said">{safe(sample["decoding"])}{told}</p>\n<blockquote>{_sample(sample)}</blockquote>\n'
        )
    if len(found) > _SAMPLES:
        parts.append(f"<p>The first {_SAMPLES} of {len(found):,}.</p>\n")
    return "".join(parts)


def _sample(sample: Row) -> str:
    """Prompt in bold, and what stands in the training text underlined."""
    text, seen = sample["text"][:_SAMPLE_CHARS], sample.get("overlap_text") or ""
    at = text.find(seen) if seen else -1
    shown = html_prose(text)
    if at >= 0:
        shown = f"{html_prose(text[:at])}<mark>{html_prose(seen)}</mark>{html_prose(text[at + len(seen) :])}"
    return f"<b>{html_prose(sample['prompt'])}</b>{shown}{'…' if len(sample['text']) > _SAMPLE_CHARS else ''}"


def _repetition(summary: Row) -> str:
    """How much the samples repeat themselves and the training text, with unseen text beside it."""
    names = {
        "distinct_1": "different tokens among all",
        "distinct_2": "different pairs of tokens",
        "distinct_3": "different runs of 3 tokens",
        "distinct_4": "different runs of 4 tokens",
        "repeated_4": "runs of 4 tokens that a sample wrote before",
        "self_bleu": "self-BLEU: likeness of the samples to each other",
        "memorisation_rate": "samples with a long passage of training text",
        "overlap_tokens_mean": "longest passage of training text, mean (tokens)",
        "overlap_tokens_max": "longest passage of training text (tokens)",
    }
    rows = [
        [title, written_plainly(summary[name]), written_plainly(summary.get(f"unseen_{name}"))]
        for name, title in names.items()
        if summary.get(name) is not None
    ]
    has_unseen = any(row[2] != "–" for row in rows)
    head = ["", "samples", *(["validation text"] if has_unseen else [])]
    return html_table(head, rows if has_unseen else [row[:2] for row in rows], numeric={1, 2}) if rows else ""


def ratings(facts: ReportFacts) -> str:
    if facts.ratings is None:
        return ""
    summary = facts.ratings.summary
    own = summary.get("models", {}).get(facts.model.model.label)
    if not own:
        return ""
    alpha = summary.get("alpha", {})
    rows = [
        [
            criterion.replace("_", " "),
            f"{found['mean']:.2f}",
            "–" if found["low"] is None else f"{found['low']:.2f} to {found['high']:.2f}",
            f"{found['ratings']:,}",
            "–" if alpha.get(criterion) is None else f"{alpha[criterion]:.2f}",
        ]
        for criterion, found in own.items()
        if found["mean"] is not None
    ]
    if not rows:
        return ""
    flagged = summary.get("raters_flagged", 0)
    left_out = f", without {counted(flagged, 'rater')} who did not read" if flagged else ""
    told = (
        f"<p>Points from 1 (worst) to 5 (best), blind, by {counted(summary['raters'], 'rater')}{left_out}; "
        "intervals are of 95 %. Agreement is Krippendorff's alpha: 1 is full agreement, 0 is chance.</p>\n"
    )
    head = ["criterion", "mean", "interval", "ratings", "agreement"]
    table = told + html_table(head, rows, numeric={1, 2, 3, 4})
    return table + "".join(_preferences(facts, summary)) + _comments(facts.ratings, facts.model.model.label)


def _preferences(facts: ReportFacts, summary: Row) -> Iterator[str]:
    label = facts.model.model.label
    for pair in preferences_of(summary):
        how = "raters were asked" if pair["how"] == "asked" else "taken from their points, not asked"
        if label in (pair["a"], pair["b"]):
            p = "" if pair["p_value"] is None else f" (sign test: p = {pair['p_value']:.3f})"
            yield (
                f"<p>{safe(pair['a'])} was preferred after {pair['a_wins']:,} prompts, {safe(pair['b'])} after "
                f"{pair['b_wins']:,}, neither after {pair['ties']:,}{p}; {how}.</p>\n"
            )


def _comments(ratings: Artifact, label: str) -> str:
    said = comments_of(ratings, label)
    if not said:
        return ""
    more = f"<li>and {len(said) - _COMMENTS:,} more</li>" if len(said) > _COMMENTS else ""
    told = "".join(f"<li>{safe(comment)}</li>\n" for comment in said[:_COMMENTS])
    return f"<p>What raters wrote about its texts:</p>\n<ul>\n{told}{more}</ul>\n"
