"""All pictures of a model: of its training, its text, its lineage, and of how it was judged."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from gptmodel.errors import ArtifactError
from gptmodel.judging.surprisal import passages_of
from gptmodel.lineage.graph import Graph
from gptmodel.pages.frame import write_page
from gptmodel.pages.lineage import picture
from gptmodel.pages.surprisal_picture import surprisal_picture
from gptmodel.pictures.curves import calibration_figure, training_pictures
from gptmodel.pictures.style import Draw, save_all
from gptmodel.pictures.text import corpus_pictures, read_lengths
from gptmodel.pretraining.step import run_dir_of
from gptmodel.store.artifacts import Artifact, Store
from gptmodel.training.metrics_log import read_lines


def text_pictures(store: Store, model: Artifact) -> dict[str, Draw]:
    """Of the corpus that a model was trained on; none where the store does not hold it."""
    try:
        shards = store.input_of(model, "shards")
        corpus = store.input_of(shards, "corpus")
    except ArtifactError:
        return {}
    names = corpus.names(suffix=".parquet", prefix="documents-")
    context = model.request.config.get("model", {}).get("context_length", 0)
    return corpus_pictures(
        read_lengths(corpus.file(name) for name in names), context * shards.summary.get("bytes_per_token", 0.0)
    )


def evaluation_pictures(evaluation: Artifact) -> dict[str, Draw]:
    """Of an evaluation: `calibration`; none of one that was made before it was measured."""
    told = json.loads(evaluation.file("evaluation.json").read_text())
    return {"calibration": partial(calibration_figure, told["calibration"])} if "calibration" in told else {}


def save_gallery(store: Store, model: Artifact, evaluation: Artifact | None, graph: Graph, folder: Path) -> list[Path]:
    """Write all pictures of a model that the store holds something for; their paths.

    PNG files come in pairs, `name.png` and `name-dark.png`; `lineage.svg` and `surprisal.svg` follow the screen by
    themselves. StorageError where they cannot be written.
    """
    pictures: dict[str, Draw] = {}
    log = run_dir_of(store, model.fingerprint) / "metrics.jsonl"
    curve = log if log.exists() else model.path / "curve.jsonl"
    if curve.exists():
        level = float(evaluation.summary.get("unigram_loss", 0.0)) if evaluation is not None else 0.0
        pictures |= training_pictures(list(read_lines(curve)), level)
    pictures |= text_pictures(store, model)
    pictures |= evaluation_pictures(evaluation) if evaluation is not None else {}
    written = save_all(pictures, folder)
    drawings = {"lineage.svg": picture(graph)}
    if evaluation is not None and (passages := passages_of(evaluation)):
        drawings["surprisal.svg"] = surprisal_picture(passages[0])
    for name, drawing in drawings.items():
        write_page(folder / name, drawing)
        written.append(folder / name)
    return written
