"""Pictures of a corpus: how long its documents are, and where its text comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from gptmodel.pictures.style import Draw, Theme, counted, new_figure, with_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PLACE_IN_SOURCE = re.compile(r"(#\d+)+$")  # the number of a row, of a line, or of a piece that was cut
_BINS = 40
_TOP = 15
_NAME_CHARS = 34


@dataclass(frozen=True)
class Lengths:
    """UTF-8 bytes of the documents of each side, and of each source, the largest first."""

    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    sources: list[tuple[str, int]]


def read_lengths(files: Iterable[Path]) -> Lengths:
    """Of the `documents-*.parquet` files of a corpus; the text itself is not read."""
    sides: dict[str, list[npt.NDArray[np.int64]]] = {"train": [], "validation": []}
    sources: dict[str, int] = {}
    for path in files:
        table = pq.read_table(path, columns=["n_bytes", "split", "source"])
        n_bytes = table.column("n_bytes").to_numpy()
        split = table.column("split").to_numpy(zero_copy_only=False)
        for side, found in sides.items():
            found.append(n_bytes[split == side])
        for name, count in zip(table.column("source").to_pylist(), n_bytes.tolist(), strict=True):
            place = _PLACE_IN_SOURCE.sub("", name or "")
            sources[place] = sources.get(place, 0) + count
    train, validation = (np.concatenate(found or [np.empty(0, np.int64)]) for found in sides.values())
    return Lengths(train, validation, sorted(sources.items(), key=lambda item: (-item[1], item[0])))


def corpus_pictures(lengths: Lengths, context_bytes: float = 0.0) -> dict[str, Draw]:
    """`corpus-lengths`, with the model's context marked where it is known (bytes; 0 is not), and `corpus-sources`."""
    return {
        "corpus-lengths": partial(lengths_figure, lengths, context_bytes),
        "corpus-sources": partial(sources_figure, lengths),
    }


def lengths_figure(lengths: Lengths, context_bytes: float, theme: Theme) -> Figure | None:
    """A histogram of document lengths, training and validation, by a logarithmic scale of lengths."""
    together = np.concatenate([lengths.train, lengths.validation])
    together = together[together > 0]
    if not len(together):
        return None
    low, high = float(together.min()), float(together.max())
    edges = np.geomspace(low * 0.95, max(high, low + 1) * 1.05, _BINS + 1)
    figure, axes = new_figure(theme, "Document lengths", "bytes of UTF-8 text in a document (logarithmic)", "documents")
    # Validation is drawn as an outline, and so is told from training without colour.
    axes.hist(lengths.train, edges, color=theme.blue, alpha=0.75, label=f"training ({len(lengths.train):,})")
    named = f"validation ({len(lengths.validation):,})"
    axes.hist(lengths.validation, edges, color=theme.orange, histtype="step", linewidth=2.0, label=named)
    if low < context_bytes < high:
        axes.axvline(context_bytes, color=theme.soft, linestyle="--", linewidth=1.1, label="the model's context, about")
    axes.set_xscale("log")
    counted(axes.xaxis)
    counted(axes.yaxis)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.set_minor_formatter(lambda *_: "")
    return with_legend(figure, theme)


def sources_figure(lengths: Lengths, theme: Theme) -> Figure | None:
    """The sources that most of the text comes from, with their shares, and all others together."""
    total = sum(count for _, count in lengths.sources)
    if not total:
        return None
    shown = [(_fitted(name or "(not named)"), count) for name, count in lengths.sources[:_TOP]]
    share = sum(count for _, count in shown) / total
    title = f"The {len(shown)} largest of {len(lengths.sources):,} sources hold {share:.0%} of the text"
    figure, axes = new_figure(theme, title, "bytes of UTF-8 text (and share of all)", "", left=0.3)
    names, counts = zip(*shown, strict=True)
    places = range(len(shown), 0, -1)
    axes.barh(places, counts, color=theme.blue, height=0.7)
    axes.set_yticks(places, names)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(counts) * 1.1)
    for place, count in zip(places, counts, strict=True):
        axes.text(count, place, f" {count / total:.1%}", va="center", color=theme.soft, fontsize=8.5)
    counted(axes.xaxis)
    return figure


def _fitted(name: str) -> str:
    """The end of a long name says more than its beginning."""
    return name if len(name) <= _NAME_CHARS else f"…{name[1 - _NAME_CHARS :]}"
