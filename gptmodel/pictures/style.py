"""One look for all pictures: colours, sizes, axes with units, and PNG files for light and for dark pages.

Colours are those of Okabe and Ito (2008), told apart by all kinds of eyes, and where two lines share axes they differ
in width or marks as well. The same numbers give the same bytes: neither a time nor a version is written into a file.

    def draw(theme: Theme) -> Figure:
        figure, axes = new_figure(theme, "Loss", "training tokens", "loss (nats per token)")
        axes.plot(tokens, losses, color=theme.blue, label="training")
        return with_legend(figure)

    save(draw, Path("loss.png"))  # and loss-dark.png
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmodel.store.space import storage_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE, _DPI = (8.0, 4.5), 120  # inches and dots per inch: 960 x 540 pixels
_MARGINS = {"left": 0.105, "right": 0.895, "top": 0.88, "bottom": 0.12}  # fixed: half the time of finding them
_FONTS = ["DejaVu Sans"]  # comes with matplotlib, so it is the same everywhere


@dataclass(frozen=True)
class Theme:
    """The colours of a picture: `page` behind it, `ink` for words, `soft` for axes, and of what is drawn."""

    name: str
    page: str
    ink: str
    soft: str
    grid: str
    blue: str
    orange: str
    green: str
    purple: str


LIGHT = Theme("light", "#ffffff", "#1b1f24", "#59636e", "#d9dee3", "#0072b2", "#d98200", "#009e73", "#a8558a")
DARK = Theme("dark", "#14171c", "#e8ebef", "#a3adb8", "#333a44", "#56b4e9", "#f0a830", "#2fc79a", "#e39ac4")
THEMES = (LIGHT, DARK)
Draw = Callable[[Theme], "Figure | None"]
"""Draws one picture in the colours of a theme; None where there is nothing to draw."""


def new_figure(
    theme: Theme, title: str, x_name: str, y_name: str, *, left: float = _MARGINS["left"]
) -> tuple[Figure, Any]:
    """(figure, its axes) with title, names with units, and a grid. `left` is the margin, as a share of the width."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.family": _FONTS, "font.size": 10}):
        figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor=theme.page)
        axes = figure.subplots(gridspec_kw=_MARGINS | {"left": left})
        axes.set_title(title, loc="left", color=theme.ink, fontsize=12, fontweight="bold", pad=12)
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    dress(axes, theme)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def dress(axes: Any, theme: Theme, colour: str = "") -> Any:
    """Axes (a second scale too) in the theme's colours; with `colour`, that of the line that the scale belongs to."""
    axes.set_facecolor(theme.page)
    axes.tick_params(which="both", colors=colour or theme.soft, labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(colour or theme.soft)
    for spine in axes.spines.values():
        spine.set_color(theme.soft)
    return axes


def second_scale(axes: Any, theme: Theme, name: str, colour: str = "") -> Any:
    """A scale of its own on the right, for another unit."""
    right = dress(axes.twinx(), theme, colour)
    right.set_ylabel(name)
    right.spines[["top", "left", "bottom"]].set_visible(False)
    return right


def counted(axis: Any) -> None:
    """Ticks such as 50k, 1.2M."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))


def in_front(axes: Any, behind: Any) -> None:
    """Draw axes over those of a second scale, which stay seen."""
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


def with_legend(figure: Figure, theme: Theme, *, above: bool = True) -> Figure:
    """A legend of all lines with names: in a row above the axes, where it hides nothing, or inside them."""
    found = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    if found:
        place: dict[str, Any] = {"loc": "best"}
        if above:
            place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": len(found), "borderaxespad": 0.4}
        handles, names = zip(*found, strict=True)
        figure.axes[0].legend(
            handles,
            names,
            frameon=False,
            labelcolor=theme.ink,
            fontsize=9,
            handlelength=1.6,
            columnspacing=1.4,
            **place,
        )
    return figure


def png(figure: Figure) -> bytes:
    """The picture as a PNG file, without the name of what made it."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"font.family": _FONTS}):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save(draw: Draw, path: Path) -> list[Path]:
    """Write `name.png` for light pages and `name-dark.png` for dark ones, each whole or not at all.

    The paths of both; none where there is nothing to draw. StorageError where they cannot be written.
    """
    written = []
    for theme in THEMES:
        if (figure := draw(theme)) is None:
            return []
        where = path if theme is LIGHT else path.with_stem(f"{path.stem}-dark")
        write(where, figure)
        written.append(where)
    return written


def save_all(pictures: Mapping[str, Draw], folder: Path) -> list[Path]:
    """Each picture under its name, as `save` does it."""
    return [path for name, draw in pictures.items() for path in save(draw, folder / f"{name}.png")]


def write(path: Path, figure: Figure) -> None:
    """A PNG file, whole or not at all. StorageError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with storage_errors("the picture", path.absolute().parent):
            temporary.write_bytes(png(figure))
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
