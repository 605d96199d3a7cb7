"""A forecast in words: sections of (what, value, note), for the terminal and for pages."""

from __future__ import annotations

from dataclasses import dataclass

from gptmodel.markdown_text import counted
from gptmodel.planning.examples import Example
from gptmodel.planning.forecast import Forecast, Offer
from gptmodel.planning.rates import Bill, Rates, bill
from gptmodel.planning.score import BASES, FIGURES, Score, median_and_worst
from gptmodel.words import size

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
    if plan.pace is not None:
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
            (
                "steps",
                f"{plan.steps:,}",
                f"{counted(plan.evaluations, 'evaluation')}, {counted(plan.checkpoints, 'checkpoint')}",
            ),
            ("tokens", count(plan.tokens), f"{plan.tokens / plan.parameters.total:.3g} for each parameter; {data}"),
            ("FLOPs a token", count(flops.exact), f"all matrix products, forward and back: {parts}"),
            ("FLOPs in all", f"{plan.total_flops:.3g}", f"by the rule 6ND {plan.flops_by_rule:.3g}"),
        ],
    )


def _memory(plan: Forecast) -> Section:
    held = plan.memory
    beside = "beside activations, since a step has several micro-batches" if held.accumulates else "after activations"
    rows = [
        ("weights", size(held.weights), "float32"),
        ("gradients", size(held.gradients), f"float32, {beside}"),
        ("optimizer", size(held.optimizer), "two moments; Muon keeps one for the blocks' matrices"),
        ("activations", size(held.activations), "of one micro-batch (estimate)"),
        ("logits", size(held.logits), "some rows at a time"),
        ("head", size(held.head), "the token table's gradient, made with the loss"),
        ("gathered", size(held.gathered), "whole weights of what is at work; all others lie in parts")
        if held.gathered
        else ("casts", size(held.casts), "bfloat16 weights, under autocast"),
    ]
    if held.framework:
        rows += [
            ("copies", size(held.copies), "of weights and moments, while a checkpoint is written"),
            ("framework", size(held.framework), "Python and its libraries, as measured elsewhere"),
        ]
    note = "the most at one time (estimate)"
    rows.append(("together", size(held.total), note if held.framework else f"{note}; a few hundred MB come on top"))
    return Section(f"Memory on {'this processor' if held.framework else 'a GPU'}", rows)


def _here(plan: Forecast, rates: Rates) -> Section:
    pace, here = plan.pace, plan.here
    assert pace is not None
    assert here is not None
    found = plan.trial or plan.past
    assert found is not None
    several = f"{plan.processes} x {found.device}" if plan.processes > 1 else found.device
    if plan.trial is not None:
        how, fits = "measured", plan.trial.largest_micro_batch(plan.micro_batch_size)
        device = f"{several}, {plan.trial.machine}, {plan.trial.threads} threads, {found.precision}"
        room = f"; about {fits:,} would fit in the {size(plan.trial.free_memory_bytes)} that are free"
    else:
        assert plan.past is not None
        how, device, room = f"by {_runs(plan.past.runs)} of the same shape", f"{several}, {found.precision}", ""
    rows = [
        ("time", span(plan.seconds / 3600), f"start, steps, evaluations, samples and checkpoints{_corrected(plan)}"),
        ("step", f"{pace.step_seconds:.3g} s", f"{plan.tokens / plan.steps / pace.step_seconds:,.0f} tokens/s"),
    ]
    if plan.trial is not None:
        rows.append(("MFU", f"{100 * plan.mfu:.1f} %", f"of {plan.trial.peak_flops:.3g} FLOP/s, {_peak(plan)}"))
    each = "of each process, " if plan.processes > 1 else ""
    if plan.memory.gathered and plan.trial is not None:
        each = "of one process that holds all: cut up it is less; "
    rows.append(
        ("peak memory", size(pace.peak_memory_bytes), f"{each}at a micro-batch of {plan.micro_batch_size}{room}")
    )
    return Section(f"This machine, {how} ({device})", [*rows, *_money(here, rates)])


def _peak(plan: Forecast) -> str:
    assert plan.trial is not None
    said = "by its data sheet" if plan.trial.peak_source == "datasheet" else "as a matrix product measured"
    return f"each {said}" if plan.processes > 1 else said


def _runs(number: int) -> str:
    return "one past run" if number == 1 else f"the median of {number} past runs"


def _money(found: Bill, rates: Rates) -> list[Row]:
    return [
        ("cost", money(found.cost, rates.currency), f"by the table of {rates.as_of}; edit it with --rates"),
        ("energy, CO2", f"{energy(found.kwh)}, {mass(found.co2_kg)}", "at full power; CO2-equivalent of the grid"),
    ]


def _corrected(plan: Forecast) -> str:
    if plan.trial is None:
        return ""
    if plan.correction != 1.0:
        return (
            f"; times {plan.correction:.2f}, since {plan.corrected_by} past runs here took so much of their forecasts"
        )
    return f"; {plan.corrected_by} past runs here to correct it by, of the 3 that it needs" if plan.corrected_by else ""


def score_section(found: dict[str, list[Score]]) -> Section:
    """How far past forecasts were off: a row for each figure and each kind of forecast."""
    rows = [("nothing", "", "no training of this store has a forecast yet")]
    if found:
        rows = []
        for each in sorted(found.values(), key=lambda scores: list(FIGURES).index(scores[0].figure)):
            middle, worst = median_and_worst(each)
            runs = f"{len(each)} runs, worst {100 * worst:+.1f} %" if len(each) > 1 else "one run"
            rows.append((FIGURES[each[0].figure], f"{100 * middle:+.1f} %", f"foretold {BASES[each[0].basis]}; {runs}"))
    return Section("Past forecasts: how much more the runs took (median)", rows)


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
            ("training", size(plan.store_bytes), "room asked for: checkpoints kept and being written, log, product"),
            ("at its end", size(plan.kept_bytes), "checkpoints that are kept then, and the product"),
            ("model", size(plan.model_bytes), "what stays"),
            ("shards", size(plan.shard_bytes), f"of as many tokens, read once; {size(plan.text_bytes)} of English"),
        ],
    )


def _loss(plan: Forecast) -> Section:
    expected = plan.expected
    low, high = expected.perplexities
    whose = f"fitted to own runs, {expected.own}" if expected.own else "what three published fits span"
    rows = [("loss", f"{expected.low:.2f} to {expected.high:.2f}", f"{whose}, nats per token")]
    on = "on the text of those runs" if expected.own else "on text like theirs"
    rows.append(("perplexity", f"{low:,.1f} to {high:,.1f}", on))
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


def count(value: float) -> str:
    """1,234, or 11.5 M, 7.24 B, 2 T."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= unit * 0.9995:  # what would round up to 1,000 of the smaller one
            return f"{value / unit:.3g} {letter}"
    return f"{value:,.0f}"


def span(hours: float) -> str:
    """A time, in the unit that reads best."""
    if hours >= _YEAR_HOURS:
        return f"{hours / _YEAR_HOURS:,.1f} years"
    if hours >= 47.95:
        return f"{hours / 24:,.1f} days"
    if hours >= 59.95 / 60:
        return f"{hours:.1f} h"
    if hours >= 59.95 / 3600:
        return f"{hours * 60:.1f} min"
    return f"{hours * 3600:.3g} s" if hours >= 0.05 / 3600 else "under 0.1 s"


def money(value: float, currency: str) -> str:
    if value < 0.01:
        return f"under 0.01 {currency}"
    return f"{value:,.2f} {currency}" if value < 1000 else f"{value:,.0f} {currency}"


def energy(kwh: float) -> str:
    if kwh < 1e-5:
        return "under 0.01 Wh"
    return f"{kwh * 1000:.3g} Wh" if kwh < 1 else f"{kwh:,.4g} kWh" if kwh < 1e4 else f"{kwh / 1000:,.4g} MWh"


def mass(kg: float) -> str:
    if kg < 1e-5:
        return "under 0.01 g CO2"
    return f"{kg * 1000:.3g} g CO2" if kg < 1 else f"{kg:,.3g} kg CO2" if kg < 1000 else f"{kg / 1000:,.3g} t CO2"
