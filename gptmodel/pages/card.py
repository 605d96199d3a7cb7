"""The model card: what a model is, what it was made from and how it does, out of manifests and nothing else.

Markdown with the front matter of the Hugging Face hub, so that it can stand as a README.md there. It holds no time at
which it was written and no path of this machine: the same model with the same evaluations has the same card.
"""

from __future__ import annotations

from typing import Any

import yaml

from gptmodel.markdown_text import code
from gptmodel.pages import card_making as making
from gptmodel.pages import card_sections as sections
from gptmodel.pages.card_facts import Facts
from gptmodel.pages.card_limits import limits

CARD_FILE = "model_card.md"
LOSS_PICTURE = "plots/loss.png"
DESCRIPTION_CHARS = 5_000
"""The most that MLflow's database keeps as a version's description."""
_METRICS = {"perplexity": "perplexity", "loss": "loss", "bits_per_byte": "bits per byte"}


def card_text(facts: Facts, *, picture: str = "") -> str:
    """The whole card. `picture` is where the loss curve lies beside it."""
    front = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=120)
    shown = f"![Loss against training tokens]({picture})" if picture and facts.is_trained else ""
    parts = [
        f"---\n{front}---",
        f"# {facts.title}",
        sections.what_it_is(facts),
        *_titled(facts),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return text.replace("\n\n## Evaluation\n", f"\n\n{shown}\n\n## Evaluation\n", 1) if shown else text


def _titled(facts: Facts) -> list[str]:
    bodies = {
        "Data": sections.data(facts),
        "Training": sections.training(facts),
        "Curve": sections.curve(facts),
        "Evaluation": sections.evaluation(facts),
        "People's ratings": sections.ratings(facts),
        "Samples": sections.samples(facts),
        "Intended use and limits": limits(facts),
        "Cost": making.cost(facts),
        "Lineage": sections.lineage(facts),
        "Environment": making.environment(facts),
    }
    return [f"## {title}\n\n{body}" for title, body in bodies.items() if body]


def description_text(facts: Facts, where: str, room: int = DESCRIPTION_CHARS) -> str:
    """The card for a page with little room: its sections as far as they fit, the less needed left out.

    `where` says where the whole one is.
    """
    lead = [f"# {facts.title}", sections.what_it_is(facts)]
    wanted = [  # in the order in which they are read; the number says how soon one is left out
        (1, "Evaluation", sections.evaluation(facts)),
        (3, "Data", sections.data(facts)),
        (6, "Training", sections.training(facts)),
        (8, "Curve", sections.curve(facts)),
        (2, "Intended use and limits", limits(facts)),
        (5, "Cost", making.cost(facts)),
        (4, "Check it", f"Content digest {code(facts.model.digest)}\n\n{making.commands(facts)}"),
        (7, "Samples", sections.samples(facts)),
    ]
    parts = [(rank, f"## {title}\n\n{body}") for rank, title, body in wanted if body]
    while True:
        text = "\n\n".join([*lead, *(part for _, part in parts), where]) + "\n"
        if len(text) <= room or not parts:
            return text[:room]
        parts.remove(max(parts))


def front_matter(facts: Facts) -> dict[str, Any]:
    """What the hub reads of a card. Licence and language are not recorded, and so not claimed."""
    found: dict[str, Any] = {"pipeline_tag": "text-generation", "tags": ["gpt2", "causal-lm", "gptflow"]}
    if facts.corpus is not None:
        source = facts.corpus.request.config["source"]
        if source["kind"] == "huggingface" and source["dataset"]:
            found["datasets"] = [source["dataset"]]
    origin = facts.init if facts.is_trained else facts.model
    if origin is not None and "/" in str(origin.summary.get("source", "")):
        found["base_model"] = origin.summary["source"]
    if facts.evaluations:
        found["model-index"] = [{"name": facts.name or facts.model.label, "results": _results(facts)}]
    return found


def _results(facts: Facts) -> list[dict[str, Any]]:
    results = []
    for evaluation in facts.evaluations:
        ref = next(ref for ref in evaluation.request.inputs if ref.kind == "shards")
        metrics = [{"type": kind, "value": evaluation.summary[kind], "name": name} for kind, name in _METRICS.items()]
        dataset = {
            "type": "gptflow-shards",
            "name": f"shards/{ref.fingerprint[:16]}",
            "split": evaluation.summary["split"],
            "revision": ref.digest,
        }
        results.append({"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics})
    return results
