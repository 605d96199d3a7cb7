"""Pictures of a run. Blue for training, orange for validation: told apart by those who see no red or green, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#666666"
Lines = Sequence[dict[str, Any]]


def loss_figure(lines: Lines, unigram_loss: float = 0.0) -> Figure:
    """Loss in nats per token against training tokens, with the perplexities that belong to it on the right."""
    import numpy as np

    figure, axes = _figure()
    _plot(axes, lines, "train/loss", "training", _BLUE, linewidth=1.0)
    _plot(axes, lines, "validation/loss", "validation", _ORANGE, marker="o", markersize=4, linewidth=1.8)
    if unigram_loss:
        axes.axhline(unigram_loss, color=_GREY, linestyle="--", linewidth=1.0, label="guessing by token frequency")
    axes.set_ylabel("loss (nats per token)")
    right = axes.secondary_yaxis("right", functions=(np.exp, lambda p: np.log(np.maximum(p, 1e-9))))
    right.set_ylabel("perplexity (tokens)")
    ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000]
    low, high = axes.get_ylim()
    shown = [t for t in ticks if low <= np.log(t) <= high]
    right.set_yticks(shown, [f"{t:,}" for t in shown])
    return _finish(figure, axes, "Loss and perplexity")


def optimizer_figure(lines: Lines) -> Figure:
    """Learning rate and gradient norm against training tokens."""
    figure, axes = _figure()
    _plot(axes, lines, "train/learning_rate", "learning rate", _BLUE, linewidth=1.6)
    axes.set_ylabel("learning rate")
    norms = axes.twinx()
    _plot(norms, lines, "train/grad_norm", "gradient norm", _ORANGE, linewidth=1.0)
    norms.set_ylabel("gradient norm, before clipping")
    norms.set_ylim(bottom=0)
    norms.legend(loc="upper right", frameon=False, bbox_to_anchor=(1.0, 0.92))
    return _finish(figure, axes, "Learning rate and gradient norm")


def calibration_figure(bins: Lines) -> Figure:
    """How often the most probable token was right, against how probable the model held it; on the line it is honest."""
    figure, axes = _figure()
    shown = [found for found in bins if found["tokens"]]
    sure, right = ([found[name] for found in shown] for name in ("probability", "accuracy"))
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1.0, label="as sure as right")
    axes.plot(sure, right, color=_BLUE, marker="o", markersize=5, label="the model")
    counts = axes.twinx()
    places, heights = [found["above"] for found in shown], [found["tokens"] for found in shown]
    counts.bar(places, heights, 1 / len(bins), align="edge", color=_ORANGE, alpha=0.25)
    counts.set_ylabel("tokens (bars)")
    counts.set_yscale("log")
    axes.set_xlabel("probability of the most probable token")
    axes.set_ylabel("share of such tokens that were right")
    axes.set_title("Calibration")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", frameon=False)
    return figure


def _figure() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    return figure, figure.subplots()


def _plot(axes: Any, lines: Lines, name: str, label: str, color: str, **style: Any) -> None:
    points = [(line["tokens"], line["metrics"][name]) for line in lines if name in line.get("metrics", {})]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, label=label, **style)


def _finish(figure: Figure, axes: Any, title: str) -> Figure:
    from matplotlib.ticker import EngFormatter

    axes.set_title(title)
    axes.set_xlabel("training tokens")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", frameon=False)
    return figure
