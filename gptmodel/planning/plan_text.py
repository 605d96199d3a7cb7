"""A forecast in words: sections of (what, value, note), for the terminal and for pages."""

from __future__ import annotations

from dataclasses import dataclass

from gptmodel.planning.examples import Example
from gptmodel.planning.forecast import Forecast, Offer
from gptmodel.planning.rates import Bill, Rates, bill
from gptmodel.planning.scaling import Advice
from gptmodel.planning.score import Score, median_and_worst

Row = tuple[str, str, str]
_YEAR_HOURS = 24 * 365.25


@dataclass(frozen=True)
class Section:
    """A heading with its rows."""

    title: str
    rows: list[Row]


def sections(plan: Forecast, rates: Rates) -> list[Section]:
    """All of a forecast."""
    found = [_model(plan), _work(plan), _memory(plan)]
    if plan.trial is not None:
        found.append(_here(plan, rates))
    found += [_elsewhere(plan.offers, rates), _disk(plan), _loss(plan)]
    return found


def markdown(found: list[Section]) -> str:
    """The sections as tables of a Markdown page."""
    lines: list[str] = []
    for section in found:
        lines += [f"### {section.title}", "", "| | | |", "|---|---:|---|"]
        lines += [f"| {what} | {value} | {note.replace('|', '/')} |" for what, value, note in section.rows]
        lines.append("")
    return "\n".join(lines)


def _model(plan: Forecast) -> Section:
    found = plan.parameters
    return Section(
        "Model",
        [
            ("parameters", count(found.total), f"{found.total:,}; the tied head counts once"),
            ("without embeddings", count(found.without_embeddings), "neither tokens nor positions"),
        ],
    )


def _work(plan: Forecast) -> Section:
    data = f"the data, {plan.epochs:.2f} times" if plan.epochs else "how often the data is read: give --shards"
    flops = plan.flops
    parts = f"matrices {count(flops.matrices)}, attention {count(flops.attention)}, head {count(flops.head)}"
    return Section(
        "Work",
        [
            ("steps", f"{plan.steps:,}", f"{plan.evaluations} evaluations, {plan.checkpoints} checkpoints"),
            ("tokens", count(plan.tokens), f"{plan.tokens / plan.parameters.total:.2f} for each parameter; {data}"),
            ("FLOPs a token", count(flops.exact), f"all matrix products, forward and back: {parts}"),
            ("FLOPs in all", f"{plan.total_flops:.3g}", f"by the rule 6ND {plan.flops_by_rule:.3g}"),
        ],
    )


def _memory(plan: Forecast) -> Section:
    held = plan.memory
    rows = [
        ("weights", size(held.weights), "float32"),
        ("gradients", size(held.gradients), "float32"),
        ("optimizer", size(held.optimizer), "two moments; Muon keeps one for the blocks' matrices"),
        ("activations", size(held.activations), "of one micro-batch (estimate)"),
        ("logits", size(held.logits), "some rows at a time"),
        ("casts", size(held.casts), "bfloat16 weights, under autocast"),
        ("together", size(held.total), "estimate; the framework's own few hundred MB come on top"),
    ]
    return Section("Memory on a device", rows)


def _here(plan: Forecast, rates: Rates) -> Section:
    trial, here = plan.trial, plan.here
    assert trial is not None
    assert here is not None
    fits, room = trial.largest_micro_batch(plan.micro_batch_size), size(trial.free_memory_bytes)
    return Section(
        f"This machine, measured ({trial.device}, {trial.machine}, {trial.threads} threads, {trial.precision})",
        [
            (
                "time",
                span(plan.seconds / 3600),
                f"start, steps, evaluations, samples and checkpoints{_corrected(plan)}",
            ),
            ("step", f"{trial.step_seconds:.3g} s", f"{plan.tokens / plan.steps / trial.step_seconds:,.0f} tokens/s"),
            ("MFU", f"{100 * plan.mfu:.1f} %", f"of {trial.peak_flops:.3g} FLOP/s, {trial.peak_source}"),
            (
                "peak memory",
                size(trial.peak_memory_bytes),
                f"at micro-batch {plan.micro_batch_size}; about {fits:,} would fit in the {room} that are free",
            ),
            *_money(here, rates),
        ],
    )


def _money(found: Bill, rates: Rates) -> list[Row]:
    return [
        ("cost", money(found.cost, rates.currency), f"by the table of {rates.as_of}; edit it with --rates"),
        ("energy, CO2", f"{energy(found.kwh)}, {mass(found.co2_kg)}", "at full power; CO2-equivalent of the grid"),
    ]


def _corrected(plan: Forecast) -> str:
    return f"; times {plan.correction:.2f}, as past runs here took" if plan.correction != 1.0 else ""


def score_section(found: dict[str, list[Score]]) -> Section:
    """How far past forecasts were off."""
    rows = [("nothing", "", "no training of this store has a forecast yet")]
    if found:
        rows = [
            (name.replace("_", " "), f"{100 * middle:+.1f} %", f"median of {len(each)}; worst {100 * worst:+.1f} %")
            for name, each in found.items()
            for middle, worst in [median_and_worst(each)]
        ]
    return Section("Past forecasts: how much more the runs took", rows)


def budget_section(plan: Forecast, over: str) -> Section:
    """Whether the training would be started; `over` names the bounds that the forecast is above."""
    if plan.trial is None:
        return Section("Budget", [("not known", "", "nothing was measured here; plan without --no-measure")])
    row = ("over", "refused", over) if over else ("within", "yes", "by the forecast; the clock of the run decides")
    return Section("Budget", [row])


def _elsewhere(offers: tuple[Offer, ...], rates: Rates) -> Section:
    rows = []
    for offer in offers:
        fits = f"micro-batch up to {offer.micro_batch:,}" if offer.micro_batch else "does not fit on one device"
        note = (
            f"{money(offer.bill.cost, rates.currency)}, {energy(offer.bill.kwh)}, {mass(offer.bill.co2_kg)}; "
            f"MFU {offer.mfu:.2f} assumed; {fits}"
        )
        rows.append((f"{offer.devices} x {offer.label}", span(offer.hours), note))
    return Section(f"Elsewhere, reckoned (table of {rates.as_of})", rows)


def _disk(plan: Forecast) -> Section:
    return Section(
        "Disk",
        [
            ("training", size(plan.store_bytes), "checkpoints kept, the one being written, log and product"),
            ("model", size(plan.model_bytes), "what stays"),
            ("shards", size(plan.shard_bytes), f"of as many tokens, read once; {size(plan.text_bytes)} of English"),
        ],
    )


def _loss(plan: Forecast) -> Section:
    expected = plan.expected
    low, high = expected.perplexities
    rows = [("loss", f"{expected.low:.2f} to {expected.high:.2f}", "what three published fits span, nats per token")]
    rows.append(("perplexity", f"{low:,.1f} to {high:,.1f}", "on text like theirs"))
    rows += [(name, f"{loss:.3f}", "") for name, loss in expected.losses.items()]
    if expected.outside:
        rows.append(("beware", "", expected.outside))
    return Section("Expected loss", rows)


def example_sections(example: Example, rates: Rates, grams: float) -> list[Section]:
    """What was told of a published training, and what follows from it."""
    rows = [
        ("parameters", count(example.n_params), example.source),
        ("tokens", count(example.n_tokens), f"{example.n_tokens / example.n_params:.1f} for each parameter"),
        ("FLOPs in all", f"{example.flops:.3g}", f"(6N + 12 L C T) D; by the rule 6ND {example.flops_by_rule:.3g}"),
    ]
    if example.device_hours and example.hardware:
        hardware = rates.device(example.hardware)
        peak = hardware.tflops * 1e12
        exact, rule = example.mfu(peak, example.flops), example.mfu(peak, example.flops_by_rule)
        spent = bill(example.device_hours, hardware.watts, hardware.per_hour, rates.pue, grams)
        rows += [
            ("device-hours", f"{example.device_hours:,.0f}", f"told, of {hardware.label}"),
            ("MFU", f"{100 * (exact or 0):.1f} %", f"follows; by the rule 6ND {100 * (rule or 0):.1f} %"),
            ("energy, CO2", f"{energy(spent.kwh)}, {mass(spent.co2_kg)}", f"at {hardware.watts:g} W a device"),
            ("cost now", money(spent.cost, rates.currency), f"by the table of {rates.as_of}"),
        ]
    if example.cost and example.price:
        rows.append(("cost then", money(example.cost, "USD"), f"told: ${example.price:.2f} a device-hour follows"))
    return [Section(example.label, rows)]


def advice_section(advice: Advice, source: str) -> Section:
    """Model size and tokens for a budget, and what other sizes would cost in loss."""
    picked = advice.curve[:: max(1, len(advice.curve) // 8)]
    rows = [
        ("parameters", count(advice.n_params), source),
        ("tokens", count(advice.n_tokens), f"{advice.n_tokens / advice.n_params:.1f} for each parameter"),
        ("loss", f"{advice.loss:.3f}", "nats per token, on text like theirs"),
    ]
    rows += [(f"  with {count(n)}", f"{loss:.3f}", f"and {count(d)} tokens") for n, d, loss in picked]
    return Section(f"Best use of {advice.flops:.3g} FLOPs", rows)


def count(value: float) -> str:
    """1,234, or 11.5 M, 7.24 B, 2 T."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.3g} {letter}"
    return f"{value:,.0f}"


def size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def span(hours: float) -> str:
    """A time, in the unit that reads best."""
    if hours >= _YEAR_HOURS:
        return f"{hours / _YEAR_HOURS:,.1f} years"
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.2g} s"


def money(value: float, currency: str) -> str:
    if value < 0.01:
        return f"under 0.01 {currency}"
    return f"{value:,.2f} {currency}" if value < 1000 else f"{value:,.0f} {currency}"


def energy(kwh: float) -> str:
    return f"{kwh * 1000:.3g} Wh" if kwh < 1 else f"{kwh:,.4g} kWh" if kwh < 1e4 else f"{kwh / 1000:,.4g} MWh"


def mass(kg: float) -> str:
    return f"{kg * 1000:.3g} g CO2" if kg < 1 else f"{kg:,.3g} kg CO2" if kg < 1000 else f"{kg / 1000:,.3g} t CO2"
