"""Pictures of a training: loss and perplexity, learning rate and gradient norm, throughput; and of a calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gptmodel.pictures.style import Draw, Theme, counted, in_front, new_figure, second_scale, with_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[dict[str, Any]]
"""Of a metrics log or a curve: `step`, `tokens`, `metrics`."""
_TOKENS = "training tokens"
_PERPLEXITIES = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000]


def training_pictures(lines: Lines, unigram_loss: float = 0.0) -> dict[str, Draw]:
    """What can be drawn of a training, by name: `loss`, `optimizer`, `throughput`.

    `unigram_loss` (nats per token; 0 is unknown) is what guessing each token by its share of the text costs.
    """
    return {
        "loss": partial(loss_figure, lines, unigram_loss),
        "optimizer": partial(optimizer_figure, lines),
        "throughput": partial(throughput_figure, lines),
    }


def loss_figure(lines: Lines, unigram_loss: float, theme: Theme) -> Figure | None:
    """Loss in nats per token against training tokens, with the perplexities that belong to it on the right."""
    import numpy as np

    figure, axes = new_figure(theme, "Loss and perplexity", _TOKENS, "loss (nats per token)")
    training, validation = _points(lines, "train/loss"), _points(lines, "validation/loss")
    if not training and not validation:
        return None
    axes.plot(*training, color=theme.blue, linewidth=1.1, label="training")
    axes.plot(*validation, color=theme.orange, linewidth=2.0, marker="o", markersize=4.5, label="validation")
    if unigram_loss:
        axes.axhline(unigram_loss, color=theme.soft, linestyle="--", linewidth=1.1, label="guessing by frequency")
    counted(axes.xaxis)
    right = axes.secondary_yaxis("right", functions=(np.exp, lambda p: np.log(np.maximum(p, 1e-9))))
    right.set_ylabel("perplexity (tokens)", color=theme.soft)
    right.tick_params(colors=theme.soft, labelsize=9)
    right.spines["right"].set_visible(False)
    low, high = axes.get_ylim()
    shown = [tick for tick in _PERPLEXITIES if low <= math.log(tick) <= high]
    right.set_yticks(shown, [f"{tick:,}" for tick in shown])
    return with_legend(figure, theme)


def optimizer_figure(lines: Lines, theme: Theme) -> Figure | None:
    """Learning rate, and the gradient norm before clipping on a scale of its own, against training tokens."""
    rates, norms = _points(lines, "train/learning_rate"), _points(lines, "train/grad_norm")
    if not rates:
        return None
    figure, axes = new_figure(theme, "Learning rate and gradient norm", _TOKENS, "learning rate")
    right = second_scale(axes, theme, "gradient norm before clipping (logarithmic)")
    if norms:
        right.plot(*norms, color=theme.orange, linewidth=1.0, label="gradient norm")
    if norms and min(norms[1]) > 0:
        right.set_yscale("log")
        _plain_ticks(right.yaxis)
    axes.plot(*rates, color=theme.blue, linewidth=2.2, label="learning rate")
    in_front(axes, right)  # the smooth line over the ragged one
    axes.set_ylim(bottom=0)
    counted(axes.xaxis)
    axes.ticklabel_format(axis="y", style="plain")
    return with_legend(figure, theme)


def throughput_figure(lines: Lines, theme: Theme) -> Figure | None:
    """Tokens per second against training tokens, and on the right what share of the device's peak that is (MFU)."""
    speeds, shares = _points(lines, "speed/tokens_per_second"), _points(lines, "speed/mfu")
    if not speeds:
        return None
    figure, axes = new_figure(theme, "Throughput", _TOKENS, "tokens per second (median of 50 steps)")
    raw = _step_speeds(lines)
    if raw:
        axes.plot(*raw, ".", color=theme.orange, markersize=3, label="single steps")
    axes.plot(*speeds, color=theme.blue, linewidth=2.0, label="median of 50 steps")
    axes.set_ylim(bottom=0)
    counted(axes.xaxis)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if shares and speeds[1][-1] > 0 and shares[1][-1] > 0:
        each = shares[1][-1] / speeds[1][-1]  # of one token per second: the two are one measurement
        right = axes.secondary_yaxis("right", functions=(lambda v: 100 * each * v, lambda v: v / (100 * each)))
        right.set_ylabel("model FLOPs utilisation (% of the peak)", color=theme.soft)
        right.tick_params(colors=theme.soft, labelsize=9)
        right.spines["right"].set_visible(False)
    return with_legend(figure, theme)


def calibration_figure(bins: Lines, theme: Theme) -> Figure | None:
    """How often the most probable token was right, against how probable the model held it; on the line it is honest."""
    shown = [found for found in bins if found["tokens"]]
    if not shown:
        return None
    names = "probability of the most probable token", "share of such tokens that were right"
    figure, axes = new_figure(theme, "Calibration", *names)
    counts = second_scale(axes, theme, "tokens (bars, logarithmic)")
    places, heights = [found["above"] for found in shown], [found["tokens"] for found in shown]
    counts.bar(places, heights, 1 / len(bins), align="edge", color=theme.orange, alpha=0.25, linewidth=0)
    counts.set_yscale("log")
    counted(counts.yaxis)
    in_front(axes, counts)
    axes.plot([0, 1], [0, 1], color=theme.soft, linestyle="--", linewidth=1.1, label="as sure as right")
    sure, right = ([found[name] for found in shown] for name in ("probability", "accuracy"))
    axes.plot(sure, right, color=theme.blue, linewidth=2.0, marker="o", markersize=5, label="the model")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return with_legend(figure, theme)


def _points(lines: Lines, name: str) -> list[list[float]]:
    """Tokens and values of a metric where it is a finite number; empty where it never is."""
    found = [(line["tokens"], line["metrics"][name]) for line in lines if name in line.get("metrics", {})]
    finite = [[float(x), float(y)] for x, y in found if math.isfinite(y)]
    return [list(column) for column in zip(*finite, strict=True)]


def _step_speeds(lines: Lines) -> list[list[float]]:
    """Tokens per second of single steps. A line's tokens may be those of several steps since the line before."""
    found, before = [], (0, 0)
    for line in lines:
        seconds = line.get("metrics", {}).get("speed/step_seconds", 0.0)
        if seconds and line["step"] > before[0]:
            each = (line["tokens"] - before[1]) / (line["step"] - before[0])
            found.append([float(line["tokens"]), each / seconds])
            before = line["step"], line["tokens"]
    return [list(column) for column in zip(*found, strict=True)]


def _plain_ticks(axis: Any) -> None:
    """Numbers such as 0.5, 1, 2 and not powers at a logarithmic scale."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda *_: "")
