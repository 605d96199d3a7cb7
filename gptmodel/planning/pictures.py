"""The IsoFLOP curve: loss against model size for one budget of operations."""

from __future__ import annotations

import os
from pathlib import Path

from gptmodel.planning.scaling import Advice
from gptmodel.store.space import storage_errors

_BLUE, _ORANGE = "#0072B2", "#E69F00"  # told apart by those who see no red or green, too


def save_advice(advice: Advice, path: Path) -> None:
    """Draw it into a PNG file, whole or not at all. StorageError where it cannot be written."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot([n for n, _, _ in advice.curve], [loss for _, _, loss in advice.curve], color=_BLUE, linewidth=1.8)
    axes.plot([advice.n_params], [advice.loss], "o", color=_ORANGE, label="lowest loss")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("parameters (as many tokens as the budget then leaves)")
    axes.set_ylabel("expected loss (nats per token)")
    axes.set_title(f"{advice.flops:.3g} FLOPs spent on models of different sizes")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper center", frameon=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with storage_errors("the plot", path.absolute().parent):
            figure.savefig(temporary, format="png")
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
