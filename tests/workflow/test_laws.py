"""A law in MLflow: its run comes after those of its rungs, and joins none that another process is at.

One tiny model and its evaluation are the whole ladder; the law is not fitted to them, since no law could be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from gptmodel.arithmetic import count_parameters
from gptmodel.config import EvaluateConfig, PipelineConfig
from gptmodel.errors import LockHeldError
from gptmodel.judging.evaluation import evaluate
from gptmodel.planning.own_law import LAW_FILE, RESAMPLES
from gptmodel.store.artifacts import Artifact, Request, Store
from gptmodel.store.locks import exclusive
from tasks.tracking import laws
from tasks.tracking.runs import find_run

Law = tuple[Store, Artifact, Artifact]


@pytest.fixture
def law(
    undisturbed: Artifact,
    tiny: Callable[..., PipelineConfig],
    fresh_mlflow: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Law:
    """(store, law, the model that is its rung), of which a new MLflow knows nothing."""
    shutil.copytree(undisturbed.path.parents[1], tmp_path / "store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", fresh_mlflow(tmp_path / "mlflow.db"))
    store = Store(tmp_path / "store")
    model, shape = store.resolve(undisturbed.label), count_parameters(tiny().model)
    evaluation, _ = evaluate(store, model, store.input_of(model, "shards"), EvaluateConfig(max_tokens=64))
    n, d = shape.total, 12 * 4 * 32
    point = {"shape": "1x16x1", "n_params": n, "n_blocks": shape.blocks, "n_tokens": d, "flops": 6 * n * d, "loss": 9.0}
    coefficients = {"E": 2.0, "A": 40.0, "B": 60.0, "alpha": 0.34, "beta": 0.37}
    told = {
        **{"form": "L", "counts": "all", "coefficients": coefficients, "scatter": 0.01, "confidence": 0.95},
        **{"intervals": {name: [value, value] for name, value in coefficients.items()}, "freedom": 1},
        **{"points": [{**point, "fitted": 9.0, "residual": 0.0, "epochs": 1.0, "model": model.label}]},
        "range": {"n": [n, n], "d": [d, d]},
    }

    def build(directory: Path) -> dict[str, str]:
        (directory / LAW_FILE).write_text(json.dumps(told))
        (directory / RESAMPLES).write_text("[]")
        return {}

    made, _ = store.produce(Request("scaling-law", 1, {"counts": "all"}, (evaluation.ref,)), build)
    return store, made, model


def lock_of(store: Store, model: Artifact) -> Path:
    return store.root / ".runs" / model.path.name / "mlflow.lock"


def test_a_law_has_no_run_before_its_rungs_are_told(law: Law) -> None:
    store, made, model = law
    with exclusive(lock_of(store, model), "another"), pytest.raises(LockHeldError):
        laws.sync_law(store, made)
    assert find_run(made.fingerprint) is None
    assert laws.sync_law(store, made).what == "sent"
    own, rung = find_run(made.fingerprint), find_run(model.fingerprint)
    assert own is not None
    assert rung is not None
    assert rung.data.tags["mlflow.parentRunId"] == own.info.run_id
    assert any(name.startswith("evaluation/") for name in rung.data.metrics)


@pytest.mark.slow
def test_a_law_joins_no_run_that_another_is_at(law: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another law, say, takes the rung's run after its evaluation was told: only one may become its parent."""
    store, made, model = law
    tell = laws.sync_evaluation
    with ExitStack() as held, monkeypatch.context() as patch:

        def tell_and_let_another_in(store: Store, evaluation: Artifact) -> None:
            tell(store, evaluation)
            held.enter_context(exclusive(lock_of(store, model), "another law"))

        patch.setattr(laws, "sync_evaluation", tell_and_let_another_in)
        with pytest.raises(LockHeldError):
            laws.sync_law(store, made)
        rung = find_run(model.fingerprint)
        assert rung is not None
        assert "mlflow.parentRunId" not in rung.data.tags
    assert laws.sync_law(store, made).what == "sent"
    rung, own = find_run(model.fingerprint), find_run(made.fingerprint)
    assert rung is not None
    assert own is not None
    assert rung.data.tags["mlflow.parentRunId"] == own.info.run_id
