"""A fitted law in words: the runs, the coefficients, the advice."""

from __future__ import annotations

import json
from typing import Any

from gptmodel.planning.advice_text import advice_section
from gptmodel.planning.law_fit import SEARCHED
from gptmodel.planning.own_law import LAW_FILE, SAID, law_of
from gptmodel.planning.plan_text import Section, count
from gptmodel.store.artifacts import Artifact


def told_of(made: Artifact) -> dict[str, Any]:
    """All that `law.json` says."""
    told: dict[str, Any] = json.loads(made.file(LAW_FILE).read_text())
    return told


def asked_budget(told: dict[str, Any], best_for: float) -> float:
    """The budget to give advice for: what was asked, or ten times the dearest run."""
    return best_for or 10 * max(float(point["flops"]) for point in told["points"])


def law_sections(made: Artifact, best_for: float = 0.0) -> list[Section]:
    """The runs with how far the law is off each, the coefficients with their intervals, and the advice."""
    told = told_of(made)
    runs = [
        (
            f"{point['shape']}, N {count(point['n_params'])} ({count(point['n_blocks'])} without embeddings)",
            f"{point['loss']:.4f}",
            f"law {point['fitted']:.4f} ({100 * point['residual']:+.2f} %); {count(point['n_tokens'])} tokens, "
            f"{point['flops']:.2g} FLOPs, {point['model']}{_often(point['epochs'])}",
        )
        for point in told["points"]
    ]
    law = [("form", "", told["form"]), ("N", "", f"counts {SAID[told['counts']]}")]
    law += [
        (name, f"{value:.4g}", f"{told['intervals'][name][0]:.3g} to {told['intervals'][name][1]:.3g}")
        for name, value in told["coefficients"].items()
    ]
    law += [
        (
            "scatter",
            f"{100 * told['scatter']:.2f} %",
            f"of the loss, around the law; {told['freedom']} degrees of freedom",
        ),
        ("fitted to", f"{len(told['points'])} runs", f"N {_span(told, 'n')}, D {_span(told, 'd')} tokens"),
        ("intervals", f"{100 * told['confidence']:g} %", "parametric bootstrap, with the tails of a t distribution"),
    ]
    law += [("beware", name, words) for name, words in _untold(told["coefficients"])]
    advice = law_of(made).advise(asked_budget(told, best_for))
    return [
        Section("Runs: loss in nats per token on held-out text", runs),
        Section(f"The law, {made.label}", law),
        advice_section(advice, f"fitted to own runs, {made.label}", SAID[told["counts"]]),
    ]


def _untold(coefficients: dict[str, float]) -> list[tuple[str, str]]:
    """Exponents at an end of the search, which the runs say nothing of."""
    low, high = SEARCHED
    return [
        (name, f"is at an end of what was searched ({low:g} to {high:g}): these runs do not tell what {what}; {mend}")
        for name, what, mend in (
            ("alpha", "size does", "spread the sizes wider, or train them longer"),
            ("beta", "more text does", "spread the budgets wider"),
        )
        if not 1.01 * low < coefficients[name] < 0.99 * high
    ]


def _span(told: dict[str, Any], name: str) -> str:
    low, high = told["range"][name]
    return f"{count(low)} to {count(high)}"


def _often(epochs: float) -> str:
    """Up to 4 repetitions cost almost nothing (Muennighoff et al. 2023); the law counts each token as new."""
    return f"; the data read {epochs:.1f} times, which the law takes for new text" if epochs > 4 else ""
