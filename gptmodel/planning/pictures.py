"""The IsoFLOP curve: loss against model size for one budget of operations."""

from __future__ import annotations

from pathlib import Path

from gptmodel.pictures.style import LIGHT, counted, new_figure, with_legend, write
from gptmodel.planning.scaling import Advice


def save_advice(advice: Advice, path: Path, counts: str = "all") -> None:
    """Draw it into a PNG file, whole or not at all. StorageError where it cannot be written."""
    what = "parameters" if counts == "all" else "parameters without embeddings"
    figure, axes = new_figure(
        LIGHT,
        f"{advice.flops:.3g} FLOPs spent on models of different sizes",
        f"{what} (as many tokens as the budget then leaves)",
        "expected loss (nats per token)",
    )
    axes.plot([n for n, _, _ in advice.curve], [loss for _, _, loss in advice.curve], color=LIGHT.blue, linewidth=2.0)
    if advice.bands:
        sizes = [n for n, _, _ in advice.curve]
        axes.fill_between(sizes, *zip(*advice.bands, strict=True), color=LIGHT.blue, alpha=0.16, linewidth=0)
    axes.plot([advice.n_params], [advice.loss], "o", color=LIGHT.orange, label="lowest loss")
    axes.set_xscale("log")
    counted(axes.xaxis)
    write(path, with_legend(figure, LIGHT))
