"""What a model card says of intended use and limits: what follows from the data and the figures, and nothing else."""

from __future__ import annotations

from typing import Any

from gptmodel.markdown_text import counted
from gptmodel.pages.card_facts import Facts

_CHINCHILLA = 20  # tokens a parameter: Hoffmann et al. 2022


def limits(facts: Facts) -> str:
    """What follows from the data and the figures, and from nothing else."""
    said = [
        "It continues text in the manner of what it was trained on: to study pretraining with, or to train on from. "
        "It was not taught to follow instructions, to answer, or to refuse."
    ]
    if facts.is_trained:
        said += _limits_of_training(facts)
    else:
        said.append("What the weights were trained on, and so what they may repeat, is not known here.")
    if any(found.summary["split"] == "train" for found in facts.evaluations):
        said.append("Figures on the train split tell how well it remembers, not how well it generalises.")
    said += [
        f"Perplexities are per token of its vocabulary, {_windows(facts)}: they cannot be compared across "
        "tokenizers, or with other windows. Bits per byte can be compared across tokenizers, on the same text.",
        "The language of the text is not recorded, nor is a licence of data or weights: settle that before publishing.",
        _memory(facts) + "What biases or errors it took from its training text was not measured.",
    ]
    return "\n".join(f"- {words}" for words in said)


def _windows(facts: Facts) -> str:
    """How the figures of its evaluations were scored; those of recipe 1 had no stride."""
    context = facts.architecture["context_length"]
    strides = sorted({int(found.summary.get("stride") or context) for found in facts.evaluations})
    if strides and strides != [context]:
        return f"in windows of {context:,} tokens that go on {' or '.join(f'{each:,}' for each in strides)} at a time"
    return "in windows that do not overlap"


def _memory(facts: Facts) -> str:
    """What the newest evaluation says of passages from the training text."""
    told = facts.evaluations[-1].summary if facts.evaluations else {}
    if told.get("memorisation_rate") is None:
        return "Whether it repeats its training text was not measured. "
    return (
        f"Of the samples of its newest evaluation {told['memorisation_rate']:.0%} held a long passage of its training "
        f"text, the longest {counted(told['overlap_tokens_max'], 'token')}: few samples, which prove little. "
    )


def _limits_of_training(facts: Facts) -> list[str]:
    n_params, said = facts.n_params, []
    share = facts.tokens / (_CHINCHILLA * n_params)
    said.append(
        f"It was trained on {facts.tokens / n_params:.2f} tokens a parameter, {share:.1%} of the {_CHINCHILLA} at "
        "which Hoffmann et al. 2022 (arXiv:2203.15556) found compute spent best."
    )
    if facts.epochs > 1:
        said.append(
            f"It saw each training token about {facts.epochs:.1f} times: repeated text is more easily memorised."
        )
    elif facts.epochs:
        said.append(f"It saw {facts.epochs:.0%} of its training data, once.")
    if facts.corpus is not None:
        asked = facts.corpus.request.config
        said.append(
            f"A document is for validation if a keyed hash of its text falls below {asked['validation_fraction']:g}. "
            f"{_kept_apart(asked)}{_cut(facts.corpus.summary, asked)}"
        )
        if asked["source"]["kind"] == "embedded":
            said.append("Its text is presidential addresses alone: it knows their manner, and no other.")
    if facts.train["publish"] == "best":
        said.append(_chosen_by(facts.shards.request.config if facts.shards else {}))
    return said


def _kept_apart(asked: dict[str, Any]) -> str:
    if asked.get("near_duplicates", "keep") == "keep":
        return "Only exact duplicates were dropped, so the two sides may share passages."
    return (
        f"Training documents nearly equal ({asked.get('similarity', 0.8):g} or more) to a validation document were "
        "left out, but shorter passages may be on both sides."
    )


def _cut(summary: dict[str, Any], asked: dict[str, Any]) -> str:
    if not summary.get("cut_documents"):
        return ""
    if asked.get("split_by", "piece") == "text":
        return " All pieces of a text that was cut are on one side."
    return " Pieces of one text that was cut may stand on both sides."


def _chosen_by(shards: dict[str, Any]) -> str:
    if shards.get("side", "all") == "training":
        return (
            f"The step was chosen by the loss on {shards['selection_fraction']:.0%} of the training documents, so "
            "figures on these are a little too good; held-out documents had no part in it."
        )
    return "The step was chosen by validation loss, so figures on validation data are a little too good."
