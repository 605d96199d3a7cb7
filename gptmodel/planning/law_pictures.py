"""Pictures of a law that was fitted to own runs: IsoFLOP curves, and loss against tokens, with measured points."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptmodel.pictures.style import Draw, Theme, counted, new_figure
from gptmodel.planning.own_law import OwnLaw

_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def law_pictures(law: OwnLaw, points: list[dict[str, Any]], best_for: float = 0.0) -> dict[str, Draw]:
    """By name. `points` are those of `law.json`; with `best_for` the curve of that budget is drawn too."""
    return {
        "isoflop": lambda theme: _isoflop(theme, law, points, best_for),
        "tokens": lambda theme: _tokens(theme, law, points),
    }


def budgets_of(points: list[dict[str, Any]]) -> list[tuple[float, list[dict[str, Any]]]]:
    """(operations, points) of trainings that took about as many, the cheapest first."""
    groups: list[list[dict[str, Any]]] = []
    for point in sorted(points, key=lambda p: float(p["flops"])):
        if groups and point["flops"] < 1.35 * groups[-1][0]["flops"]:
            groups[-1].append(point)
        else:
            groups.append([point])
    return [(float(np.exp(np.mean([np.log(p["flops"]) for p in group]))), group) for group in groups]


def _n(law: OwnLaw, point: dict[str, Any]) -> float:
    return law.of(point["n_params"], point["n_blocks"])


def _spent(law: OwnLaw, point: dict[str, Any]) -> float:
    return 6 * (_n(law, point) + law.law.embeddings(_n(law, point))) * float(point["n_tokens"])


def _isoflop(theme: Theme, law: OwnLaw, points: list[dict[str, Any]], best_for: float) -> Any:
    what = "parameters" if law.counts == "all" else "parameters without embeddings"
    figure, axes = new_figure(
        theme, "Loss of models of different sizes, by budget", f"{what} (N)", "loss (nats per token)"
    )
    sizes = [_n(law, point) for point in points]
    groups = budgets_of(points)
    # A law that leaves embeddings out is drawn at what its sizes cost in shapes of the rule, not in the ladder's.
    spent = [float(np.exp(np.mean([np.log(_spent(law, p)) for p in group]))) for _, group in groups]
    every = [*spent, *([best_for] if best_for else [])]
    for number, (flops, colour) in enumerate(zip(every, _shades(len(every), theme), strict=True)):
        is_asked = bool(best_for) and number == len(every) - 1
        best, tokens = law.law.optimum(flops)
        low, high = (best / 8, best * 8) if is_asked else (min(sizes) / 1.6, max(sizes) * 1.6)
        grid = np.geomspace(low, high, 60)
        losses = [law.law.loss(n, law.law.tokens(n, flops)) for n in grid]
        bands = [law.interval(lambda found, n=n, c=flops: found.loss(n, found.tokens(n, c))) for n in grid]  # type: ignore[misc]
        name = f"{flops:.2g} FLOPs" + ("\n(extrapolated)" if is_asked else "")
        axes.plot(grid, losses, color=colour, linewidth=1.9, linestyle="--" if is_asked else "-", label=name)
        axes.fill_between(grid, *zip(*bands, strict=True), color=colour, alpha=0.16, linewidth=0)
        if low <= best <= high:  # else it is at a size that nobody tried
            axes.plot([best], [law.law.loss(best, tokens)], "*", color=colour, markersize=13,
                      markeredgecolor=theme.page, zorder=5)  # fmt: skip
        if not is_asked:
            mark = _MARKS[number % len(_MARKS)]
            axes.plot([_n(law, p) for p in groups[number][1]], [p["loss"] for p in groups[number][1]], mark,
                      color=colour, markersize=6, markeredgecolor=theme.page)  # fmt: skip
    axes.plot([], [], "*", color=theme.soft, markersize=11, linestyle="none", label="lowest of its curve")
    axes.set_xscale("log")
    counted(axes.xaxis)
    _keep_in_sight(axes, points, [law.law.loss(*law.law.optimum(best_for))] if best_for else [])
    return _beside(figure, axes, theme, f"bands: {100 * law.confidence:g} %, points: measured")


def _tokens(theme: Theme, law: OwnLaw, points: list[dict[str, Any]]) -> Any:
    figure, axes = new_figure(
        theme, "Loss against training tokens, by size", "training tokens (D)", "loss (nats per token)"
    )
    sizes = sorted({_n(law, point) for point in points})
    tokens = [point["n_tokens"] for point in points]
    grid = np.geomspace(min(tokens) / 1.3, max(tokens) * 1.3, 50)
    for number, (n, colour) in enumerate(zip(sizes, _shades(len(sizes), theme), strict=True)):
        measured = [point for point in points if _n(law, point) == n]
        bands = [law.interval(lambda found, n=n, d=d: found.loss(n, d)) for d in grid]  # type: ignore[misc]
        axes.plot(grid, [law.law.loss(n, d) for d in grid], color=colour, linewidth=1.9, label=_short(n))
        axes.fill_between(grid, *zip(*bands, strict=True), color=colour, alpha=0.16, linewidth=0)
        axes.plot([p["n_tokens"] for p in measured], [p["loss"] for p in measured], _MARKS[number % len(_MARKS)],
                  color=colour, markersize=6, markeredgecolor=theme.page)  # fmt: skip
    axes.set_xscale("log")
    counted(axes.xaxis)
    _keep_in_sight(axes, points, [])
    return _beside(figure, axes, theme, f"bands: {100 * law.confidence:g} %, points: measured")


def _keep_in_sight(axes: Any, points: list[dict[str, Any]], more: list[float]) -> None:
    """A band far from all points may be wide without end; what was measured is what the picture is about."""
    losses = [*(point["loss"] for point in points), *more]
    room = 0.12 * (max(losses) - min(losses)) + 0.02
    axes.set_ylim(min(losses) - 2 * room, max(losses) + 1.5 * room)


def _shades(count: int, theme: Theme) -> list[Any]:
    """Of cividis, which reads the same to all eyes (Nunez et al. 2018): dark to light, away from the page's own end."""
    from matplotlib import colormaps

    ends = (0.0, 0.78) if theme.name == "light" else (0.32, 1.0)
    return [colormaps["cividis"](place) for place in np.linspace(*ends, max(count, 2))[:count]]


def _short(n: float) -> str:
    return f"N = {n / 1e6:.3g} M" if n >= 1e6 else f"N = {n / 1e3:.3g} k"


def _beside(figure: Any, axes: Any, theme: Theme, note: str) -> Any:
    """The legend to the right of the axes: curves cross all of them."""
    figure.set_size_inches(9.2, 5.2)
    axes.set_position((0.09, 0.12, 0.66, 0.76))
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, labelcolor=theme.ink, fontsize=9,
                         title=note)  # fmt: skip
    legend.get_title().set_color(theme.soft)
    legend.get_title().set_fontsize(8)
    return figure
