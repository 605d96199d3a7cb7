"""A scaling law in MLflow: a run of its own, with the runs of its rungs as children."""

from __future__ import annotations

from typing import Any

from mlflow.entities import Metric, Run

from gptmodel.lineage.walk import artifact_of
from gptmodel.planning.law_pictures import law_pictures
from gptmodel.planning.law_text import asked_budget, law_sections, told_of
from gptmodel.planning.own_law import law_of
from gptmodel.planning.plan_text import markdown
from gptmodel.pretraining.step import run_dir_of
from gptmodel.store.artifacts import MANIFEST, Artifact, Store
from gptmodel.store.locks import Hold
from tasks.tracking.cards import Card, code_tags, load_card
from tasks.tracking.logged import PLOTS, finished_ms, log_pictures
from tasks.tracking.runs import COMPLETE_TAG, client, find_or_create_run, find_run, set_status, set_tags
from tasks.tracking.syncing import Outcome, alone, sync_evaluation

LAW_TAG = "gptflow.scaling-law"
"""Of a rung's run and of the law's own: the digest of the law."""
_PARENT = "mlflow.parentRunId"
_ADVICE = "gptflow.advice-for"  # operations; written last, so that what was cut short is told again


def sync_law(store: Store, law: Artifact, best_for: float = 0.0) -> Outcome:
    """Coefficients, files, pages and pictures of a law, once, after the runs of its rungs, which become its children.

    A run that another sweep has as its child already stays there, and gets this law's tag. LockHeldError if another
    process is at the law's run or at that of a rung.
    """
    told = told_of(law)
    asked = f"{asked_budget(told, best_for):g}"
    with alone(run_dir_of(store, law.fingerprint), _name(law)) as hold:
        run = find_run(law.fingerprint)
        if run is not None and _is_told(run, asked if best_for else ""):
            return Outcome(law.label, "current")
        evaluations = [artifact_of(store, ref) for ref in law.request.inputs]
        for evaluation in evaluations:
            sync_evaluation(store, evaluation)
        models = [artifact_of(store, evaluation.request.inputs[0]) for evaluation in evaluations]
        hold.check()
        run, _ = find_or_create_run(_card(store, law, told, models[0]))
        _record(run, law, told, asked, hold)
        for model in models:
            _join(store, model, law, run.info.run_id)
        hold.check()
        set_status(run, "FINISHED")
        set_tags(run.info.run_id, {LAW_TAG: law.digest, COMPLETE_TAG: "true", _ADVICE: asked})
    return Outcome(law.label, "sent")


def _is_told(run: Run, asked: str) -> bool:
    """Whether the run has the advice that was asked for, or any where none was."""
    said = run.data.tags.get(_ADVICE)
    return said is not None and asked in ("", said)


def _record(run: Run, law: Artifact, told: dict[str, Any], asked: str, hold: Hold) -> None:
    own, run_id = law_of(law), run.info.run_id
    advice = own.advise(float(asked))
    values = {f"law/{name}": value for name, value in told["coefficients"].items()}
    values |= {
        f"law/{name}_{side}": pair[i]
        for name, pair in told["intervals"].items()
        for i, side in enumerate(("low", "high"))
    }
    values |= {"law/scatter": told["scatter"], "law/runs": len(told["points"])}
    finished, known = finished_ms(law), set(run.data.metrics)
    metrics = [Metric(name, float(v), finished, 0, run_id=run_id) for name, v in values.items() if name not in known]
    client().log_batch(run_id, metrics=metrics)
    for name in (*law.names(), MANIFEST):
        client().log_artifact(run_id, str(law.path / name), "law")
    client().log_text(run_id, markdown(law_sections(law, float(asked))), f"advice/{asked}.md")
    client().log_dict(
        run_id,
        {"flops": advice.flops, "n_params": advice.n_params, "n_tokens": advice.n_tokens, "loss": advice.loss,
         "intervals": advice.intervals, "outside": advice.outside},
        f"advice/{asked}.json",
    )  # fmt: skip
    hold.check()
    log_pictures(run_id, law_pictures(own, told["points"], float(asked)), PLOTS)


def _join(store: Store, model: Artifact, law: Artifact, parent: str) -> None:
    """Under the lock of the rung's run: of two laws at a time only one becomes its parent."""
    run_dir = run_dir_of(store, model.fingerprint)
    with alone(run_dir, load_card(run_dir).run_name):
        rung = find_run(model.fingerprint)
        if rung is not None:
            joined = {} if _PARENT in rung.data.tags else {_PARENT: parent}
            set_tags(rung.info.run_id, {f"{LAW_TAG}.{law.path.name}": law.digest, **joined})


def _name(law: Artifact) -> str:
    return f"scaling-law-{law.path.name[:8]}"


def _card(store: Store, law: Artifact, told: dict[str, Any], first: Artifact) -> Card:
    """In the experiment of the rungs, which their own cards know."""
    experiment = load_card(run_dir_of(store, first.fingerprint)).experiment
    params = {**law.request.config, "runs": len(told["points"]), "form": told["form"]}
    return Card(experiment, _name(law), law.fingerprint, params, code_tags(law.provenance), kind=law.kind)
