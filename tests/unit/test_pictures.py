"""Pictures: for light and dark pages, the same bytes for the same numbers, and axes that say what they show."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from matplotlib.patches import Rectangle

from gptmodel.errors import StorageError
from gptmodel.judging.surprisal import Passage
from gptmodel.lineage.graph import Graph, Node
from gptmodel.pages.lineage import picture
from gptmodel.pages.surprisal_picture import surprisal_picture
from gptmodel.pictures import curves
from gptmodel.pictures.style import DARK, LIGHT, THEMES, Theme, png, save, save_all
from gptmodel.pictures.text import lengths_figure, read_lengths, sources_figure
from gptmodel.text.documents import Document, write_documents
from gptmodel.tokenizer import gpt2

LINES: list[dict[str, Any]] = [
    {"step": 0, "tokens": 0, "metrics": {"validation/loss": 10.8}},
    *(
        {
            "step": step,
            "tokens": step * 512,
            "metrics": {
                "train/loss": 10.8 - step / 4,
                "train/learning_rate": 1e-4 * step,
                "train/grad_norm": 3.0 / step,
                "speed/tokens_per_second": 1_000.0,
                "speed/step_seconds": 0.512,
                "speed/mfu": 0.25,
            },
        }
        for step in range(2, 13, 2)
    ),
    {"step": 12, "tokens": 6_144, "metrics": {"validation/loss": 8.0}},
]


def test_each_picture_has_a_light_and_a_dark_file_and_is_the_same_to_the_byte(tmp_path: Path) -> None:
    pictures = curves.training_pictures(LINES, 7.0)
    names = [f"{name}{dark}.png" for name in ("loss", "optimizer", "throughput") for dark in ("", "-dark")]
    assert [path.name for path in save_all(pictures, tmp_path)] == names
    (tmp_path / "again").mkdir()
    save_all(curves.training_pictures(LINES, 7.0), tmp_path / "again")
    for name in names:
        found = (tmp_path / name).read_bytes()
        assert found == (tmp_path / "again" / name).read_bytes()
        assert b"tIME" not in found
        assert b"Software" not in found
    assert (tmp_path / "loss.png").read_bytes() != (tmp_path / "loss-dark.png").read_bytes()


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_axes_say_units_and_lines_what_was_logged(theme: Theme) -> None:
    figure = curves.loss_figure(LINES, 7.0, theme)
    assert figure is not None
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training tokens", "loss (nats per token)")
    assert axes.child_axes[0].get_ylabel() == "perplexity (tokens)"
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert drawn["validation"] == [[0, 10.8], [6_144, 8.0]]
    assert drawn["training"] == [[step * 512, 10.8 - step / 4] for step in range(2, 13, 2)]
    assert figure.get_facecolor()[:3] == pytest.approx([int(theme.page[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def test_throughput_is_of_single_steps_too_and_mfu_is_a_scale_of_it() -> None:
    figure = curves.throughput_figure(LINES, LIGHT)
    assert figure is not None
    steps, median = figure.axes[0].get_lines()
    # A line stands for two steps, and its seconds are of one: 512 tokens in 0.512 s.
    assert steps.get_ydata() == pytest.approx([1_000.0] * 6)
    assert median.get_ydata() == pytest.approx([1_000.0] * 6)
    right = figure.axes[0].child_axes[0]
    assert right.get_ylabel() == "model FLOPs utilisation (% of the peak)"
    png(figure)  # it takes its limits when it is drawn
    assert right.get_ylim()[1] == pytest.approx(figure.axes[0].get_ylim()[1] / 1_000 * 25)


def test_a_number_that_is_none_is_left_out_and_nothing_to_draw_is_no_file(tmp_path: Path) -> None:
    lines = [*LINES, {"step": 13, "tokens": 6_656, "metrics": {"train/loss": math.nan}}]
    figure = curves.loss_figure(lines, 0.0, DARK)
    assert figure is not None
    assert figure.axes[0].get_lines()[0].get_xdata()[-1] == 6_144
    assert save_all(curves.training_pictures([]), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "loss.png").mkdir()
    with pytest.raises((StorageError, OSError)):
        save(curves.training_pictures(LINES)["loss"], tmp_path / "loss.png")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def documents(sizes: dict[str, int], folder: Path) -> Path:
    rows = [
        Document(f"{n}", "x" * size, name, size, "train" if n else "validation")
        for n, (name, size) in enumerate(sizes.items())
    ]
    write_documents(iter(rows), folder)
    return folder / "documents-00000.parquet"


def test_a_source_is_counted_whole_and_only_the_largest_are_drawn(tmp_path: Path) -> None:
    sizes = {"a.txt#1": 300, "a.txt#2#0": 700} | {f"b{n:02}.txt": 10 + n for n in range(20)}
    lengths = read_lengths([documents(sizes, tmp_path)])
    assert lengths.sources[0] == ("a.txt", 1_000)
    assert len(lengths.sources) == 21
    assert (lengths.validation.tolist(), sorted(lengths.train)[-1]) == ([300], 700)
    drawn = sources_figure(lengths, LIGHT)
    assert drawn is not None
    assert [bar.get_width() for bar in drawn.axes[0].patches] == [1_000, *range(29, 15, -1)]
    share = (1_000 + sum(range(16, 30))) / sum(sizes.values())
    assert drawn.axes[0].get_title(loc="left") == f"The 15 largest of 21 sources hold {share:.0%} of the text"


def test_every_document_is_in_the_histogram_and_the_context_is_marked(tmp_path: Path) -> None:
    lengths = read_lengths([documents({f"{n}": 2**n for n in range(1, 15)}, tmp_path)])
    figure = lengths_figure(lengths, 1_024.0, DARK)
    assert figure is not None
    axes = figure.axes[0]
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
    assert sum(bar.get_height() for bar in bars) == 13  # the fourteenth is validation, and drawn as an outline
    assert [line.get_xdata() for line in axes.get_lines()] == [[1_024.0, 1_024.0]]


def test_drawings_stand_alone_follow_the_screen_and_escape_what_strangers_wrote() -> None:
    text = "<script> & a token of some length\n\nand a line"
    ids = gpt2().encode(text).tolist()
    passage = Passage(
        ids, [float(n % 13) for n in range(len(ids))], [1] * len(ids), [[]] * len(ids), "ab" * 16, "<b>.txt"
    )
    node = Node(id="source/1", kind="source", name="<i>evil</i>")
    for drawing in (surprisal_picture(passage), picture(Graph("source/1", "upstream", (node,), ()))):
        root = ElementTree.fromstring(drawing)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in drawing
        assert not [e for e in root.iter() if e.tag.endswith(("script", "}i", "}b"))]
    words = "".join(
        e.text or "" for e in ElementTree.fromstring(surprisal_picture(passage)).iter() if "textLength" in e.attrib
    )
    assert words.replace(" ", "") == text.replace(" ", "").replace("\n", "")
