"""What a law advises, in words: size and tokens for a budget, and a shape with its training."""

from __future__ import annotations

from collections.abc import Callable

from gptmodel.planning.forecast import BYTES_A_TOKEN
from gptmodel.planning.plan_text import Section, count
from gptmodel.planning.scaling import Advice
from gptmodel.planning.shape import RULE, Suggestion
from gptmodel.words import size

_NEAR = 1.25  # between what is advised and a shape, from which on a word is said of it


def advice_section(advice: Advice, source: str, counts: str = "all parameters") -> Section:
    """Model size and tokens for a budget, and what other sizes would cost in loss."""
    step = max(1, len(advice.curve) // 8)
    bands: list[tuple[float, float] | None] = [*advice.bands] or [None] * len(advice.curve)
    picked = list(zip(advice.curve, bands, strict=True))[::step]

    def between(name: str, said: Callable[[float], str]) -> str:
        found = advice.intervals.get(name)
        return f"{said(found[0])} to {said(found[1])}; " if found else ""

    rows = [
        ("law", "", source),
        ("parameters", count(advice.n_params), f"{between('n_params', count)}N counts {counts}"),
        (
            "tokens",
            count(advice.n_tokens),
            f"{between('n_tokens', count)}{advice.n_tokens / advice.n_params:.1f} for each parameter",
        ),
        ("loss", f"{advice.loss:.3f}", f"{between('loss', '{:.3f}'.format)}nats per token, on the text of the law"),
    ]
    if advice.outside:
        rows.append(("beware", "", advice.outside))
    for (n, d, loss), band in picked:
        near = f" ({band[0]:.3f} to {band[1]:.3f})" if band else ""
        rows.append((f"  with {count(n)}", f"{loss:.3f}", f"and {count(d)} tokens{near}"))
    return Section(f"Best use of {advice.flops:.3g} FLOPs", rows)


def shape_section(found: Suggestion, advice: Advice, name: str, counts: str = "all") -> Section:
    """A shape near the advice and its training; `counts` is what the law's N counts, `name` the settings."""
    n = found.n_params if counts == "all" else found.n_blocks
    off = max(n / advice.n_params, advice.n_params / n)
    none = "no shape of the rule is nearer" if counts == "all" else "no nearer shape of the rule has a lower loss"
    far = f"; {off:,.3g} times what is advised: {none}" if off > _NEAR else ""
    rows = [
        ("shape", found.shape, f"layers x width x heads; {RULE}"),
        ("parameters", count(found.n_params), f"{count(found.n_blocks)} without embeddings{far}"),
        ("loss", f"{found.loss:.3f}", "of this shape on the budget, by the law"),
    ]
    step = f"a step has {found.step_tokens:,} tokens, as in {name}"
    if not found.steps:
        rows.append(("training", "none", f"the budget is less than a step: {step}; set a lower train.batch_size"))
        return Section("A shape to train", rows)
    text = f"about {size(found.n_tokens * BYTES_A_TOKEN)} of English, read once"
    steps = f"{found.steps:,} steps" if found.steps > 1 else "one step"
    rows.append(("training", steps, f"{count(found.n_tokens)} tokens, {text}; {step}"))
    rows.append(("settings", "", f"{', '.join(found.sets)}; the rest, such as the learning rate, is that of {name}"))
    return Section("A shape to train", rows)
