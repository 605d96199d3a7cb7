"""A scaling law of one's own: fitted to evaluations of the store, kept as an artifact, and asked by plans.

Files: `law.json` (coefficients with intervals, what N counts, range, text, points) and `resamples.json` (E, A, B,
alpha, beta of each resample, from which the bands of any question are made).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gptmodel.arithmetic import count_parameters
from gptmodel.config import CorpusConfig, LadderConfig, ModelConfig, PipelineConfig, recipe, with_later
from gptmodel.errors import ArtifactError, ConfigError, DataError
from gptmodel.judging.bootstrap import interval
from gptmodel.lineage.walk import artifact_of
from gptmodel.planning.law_fit import COEFFICIENTS, Fit, Point, fit_law
from gptmodel.planning.scaling import Additive, Advice, budget_curve
from gptmodel.settings import parse_config
from gptmodel.store.artifacts import Artifact, Request, Store, write_atomic

log = logging.getLogger(__name__)
KIND = "scaling-law"
RECIPE_VERSION = 1
LAW_FILE, RESAMPLES = "law.json", "resamples.json"
SAID = {"all": "all parameters, the tied head once", "without-embeddings": "parameters without embeddings"}


@dataclass(frozen=True)
class OwnLaw:
    """A fitted law with its bands, and where it was fitted."""

    law: Additive
    counts: str
    draws: npt.NDArray[np.float64]
    freedom: int
    confidence: float
    params: tuple[float, float]
    tokens: tuple[float, float]
    label: str = ""

    def of(self, n_params: float, n_blocks: float) -> float:
        """The N that this law counts."""
        return n_params if self.counts == "all" else n_blocks

    def beside(self, model: ModelConfig) -> OwnLaw:
        """Itself, with what the embeddings of such models cost where its N leaves them out."""
        rows = model.vocab_size + model.context_length
        return self if self.counts == "all" else replace(self, law=replace(self.law, rows=rows))

    def interval(self, ask: Callable[[Additive], float]) -> tuple[float, float]:
        """Between what an answer lies; the answer itself twice where there are no resamples."""
        if not len(self.draws):
            return ask(self.law), ask(self.law)
        answers = np.array([ask(Additive("", "", *row, rows=self.law.rows)) for row in self.draws.tolist()])
        return interval(answers, self.freedom + 1, self.confidence)

    def outside(self, n_params: float, n_tokens: float) -> str:
        """By how much a question is beyond the runs; empty within."""
        told = []
        for what, value, (low, high) in (("parameters", n_params, self.params), ("tokens", n_tokens, self.tokens)):
            if value > 1.05 * high:
                told.append(f"{value / high:,.3g} times the most {what} that it was fitted to")
            elif value < low / 1.05:
                told.append(f"{low / value:,.3g} times fewer {what} than it was fitted to")
        return f"extrapolated: {' and '.join(told)}" if told else ""

    def advise(self, flops: float) -> Advice:
        """Size and tokens for a budget, all with intervals."""
        n, d = self.law.optimum(flops)
        curve = budget_curve(self.law, flops)
        bands = [self.interval(lambda law, n=size, d=tokens: law.loss(n, d)) for size, tokens, _ in curve]  # type: ignore[misc]
        return Advice(
            flops,
            n,
            d,
            self.law.loss(n, d),
            curve,
            bands,
            {
                "n_params": self.interval(lambda law: law.optimum(flops)[0]),
                "n_tokens": self.interval(lambda law: law.optimum(flops)[1]),
                "loss": self.interval(lambda law: law.loss(*law.optimum(flops))),
            },
            self.outside(n, d),
        )


def fit_evaluations(
    store: Store, evaluations: Sequence[Artifact], ladder: LadderConfig, *, wait: bool = False
) -> tuple[Artifact, bool]:
    """(scaling-law artifact, reused): the law fitted to what these evaluations say of their models.

    DataError where they were judged on different text or in another way, or where they cannot tell the coefficients.
    """
    asked = {name: getattr(ladder, name) for name in ("counts", "huber_delta", "resamples", "confidence", "seed")}
    request = Request(KIND, RECIPE_VERSION, asked, tuple(made.ref for made in evaluations))

    def build(directory: Path) -> dict[str, Any]:
        rows, text = _rows(store, evaluations), _text(store, evaluations)
        name = "n_params" if ladder.counts == "all" else "n_blocks"
        points = [Point(row[name], row["n_tokens"], row["loss"]) for row in rows]
        fit = fit_law(points, delta=ladder.huber_delta, resamples=ladder.resamples, seed=ladder.seed)
        told = _told(fit, rows, points, ladder)
        write_atomic(directory / LAW_FILE, json.dumps({**told, "text": text}, indent=2) + "\n")
        write_atomic(directory / RESAMPLES, json.dumps(fit.draws.tolist()) + "\n")
        return told

    artifact, reused = store.produce(request, build, wait=wait)
    return artifact.verify(), reused


def _told(fit: Fit, rows: list[dict[str, Any]], points: list[Point], ladder: LadderConfig) -> dict[str, Any]:
    coefficients = {name: float(getattr(fit.law, name)) for name in COEFFICIENTS}
    bounds = [interval(column, fit.freedom + 1, ladder.confidence) for column in fit.draws.T]
    ranges = {
        name: [min(values), max(values)]
        for name, values in (("n", [p.n_params for p in points]), ("d", [p.n_tokens for p in points]))
    }
    return {
        "form": "L = E + A / N^alpha + B / D^beta; L in nats per token, D in training tokens",
        "counts": ladder.counts,
        "coefficients": coefficients,
        "intervals": {name: list(found) for name, found in zip(COEFFICIENTS, bounds, strict=True)},
        "confidence": ladder.confidence,
        "freedom": fit.freedom,
        "scatter": fit.scatter,
        "range": ranges,
        "points": [
            {**row, "fitted": fit.law.loss(p.n_params, p.n_tokens), "residual": off}
            for row, p, off in zip(rows, points, fit.residuals, strict=True)
        ],
    }


def _rows(store: Store, evaluations: Sequence[Artifact]) -> list[dict[str, Any]]:
    """What each evaluation says of its model, and how large and how long trained that is."""
    rows: list[dict[str, Any]] = []
    for made in evaluations:
        model = artifact_of(store, made.request.inputs[0])
        if model.kind != "checkpoint" or any(ref.kind in ("checkpoint", "weights") for ref in model.request.inputs):
            raise DataError(f"{made.label} judges {model.label}, which was not trained here from nothing; leave it out")
        shape = parse_config(json.loads(model.file("config.json").read_text()), ModelConfig)
        train, counted = model.request.config["train"], count_parameters(shape)
        n_tokens = model.summary["step"] * train["batch_size"] * shape.context_length
        rows.append(
            {
                "model": model.label,
                "evaluation": made.label,
                "shape": f"{shape.n_layer}x{shape.n_embd}x{shape.n_head}",
                "n_params": counted.total,
                "n_blocks": counted.without_embeddings,
                "n_tokens": n_tokens,
                "flops": 6.0 * counted.total * n_tokens,
                "epochs": n_tokens / artifact_of(store, model.request.inputs[0]).summary["train_tokens"],
                "loss": made.summary["loss"],
                "context_length": shape.context_length,
                "vocab_size": shape.vocab_size,
            }
        )
    return rows


def _text(store: Store, evaluations: Sequence[Artifact]) -> dict[str, Any]:
    """Settings of the corpus and shards that all were judged on. DataError where they differ."""
    first = evaluations[0]
    for made in evaluations:
        same = (made.request.config, made.request.inputs[1:]) == (first.request.config, first.request.inputs[1:])
        if not same:
            raise DataError(
                f"{first.label} and {made.label} judged on different text, or in another way, so their losses do not "
                "compare; evaluate all models on the same shards with the same settings"
            )
    shards = store.input_of(first, "shards")
    corpus = store.input_of(shards, "corpus")
    return {"shards": shards.request.config, "corpus": corpus.request.config}


def load_law(store: Store, name: str) -> OwnLaw:
    """From a JSON file (of `law.json`'s form; `coefficients` alone are enough) or an artifact of the store."""
    if Path(name).is_file():
        try:
            told = json.loads(Path(name).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the law in {name}: {' '.join(str(error).split())}") from None
        return _law_of(told, [], name, Path(name).name)
    try:
        made = store.resolve(name, KIND)
    except ArtifactError as error:
        raise ConfigError(f"no law {name}: {error}; `gptflow sweep` fits one, or give a JSON file") from None
    return law_of(made)


def law_of(made: Artifact) -> OwnLaw:
    """The law in an artifact."""
    told, draws = (json.loads(made.file(name).read_text()) for name in (LAW_FILE, RESAMPLES))
    return _law_of(told, draws, made.label, made.label)


def _law_of(told: Any, draws: list[list[float]], where: str, label: str) -> OwnLaw:
    values = told.get("coefficients") if isinstance(told, dict) else None
    good = isinstance(values, dict) and all(_is_above_0(values.get(name)) for name in COEFFICIENTS)
    if not isinstance(values, dict) or not good or told.get("counts", "all") not in SAID:
        raise ConfigError(
            f"{where} holds no law; give coefficients E, A, B, alpha and beta above 0, and counts of all or "
            "without-embeddings"
        )
    law = Additive(f"own runs ({label})", label, **{name: float(values[name]) for name in COEFFICIENTS})
    fitted = told.get("range") or {}
    n, d = (tuple(fitted.get(name, (0.0, math.inf))) for name in ("n", "d"))
    freedom, confidence = told.get("freedom", 1), told.get("confidence", 0.95)
    counts, bands = told.get("counts", "all"), np.array(draws).reshape(-1, 5)
    run = (told.get("points") or [{}])[0]
    tables = {name: run[name] for name in ("vocab_size", "context_length") if name in run}
    return OwnLaw(law, counts, bands, freedom, confidence, n, d, label).beside(ModelConfig(**tables))


def _is_above_0(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def law_for(store: Store, config: PipelineConfig) -> OwnLaw | None:
    """The newest law of the store that was fitted on the text of these settings; None where there is none."""
    found = []
    for path in store.directories(KIND):
        try:
            made = store.at(KIND, path.name)
            text = json.loads(made.file(LAW_FILE).read_text())["text"]["corpus"]
        except ArtifactError as error:  # no plan, and no training that shows one, fails for it
            log.warning("%s/%s is not used: %s", KIND, path.name, error)
            continue
        if _is_text_of(text, recipe(config.corpus)):
            found.append(made)
    if not found:
        return None
    newest = max(found, key=lambda a: str(a.provenance.get("finished", "")))
    newest.mark_used()
    return law_of(newest)


def _is_text_of(made: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a corpus was made by these settings, as far as they tell without a look at the source.

    What is found out only there (a commit, the bytes) is left out; of local files the names are compared.
    """
    made, asked = with_later(made, CorpusConfig), with_later(asked, CorpusConfig)
    ours, theirs = asked["source"], made["source"]
    if any(made.get(name) != asked[name] for name in asked if name != "source"):
        return False
    if any(ours[name] != theirs[name] for name in ours.keys() & theirs.keys() - {"paths", "sha256", "revision"}):
        return False
    patterns = [Path(name).name for name in ours["paths"]]
    return all(any(fnmatch(name, pattern) for pattern in patterns) for name in theirs["paths"])
