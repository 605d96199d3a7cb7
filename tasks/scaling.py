"""A ladder's evaluations in; a scaling law out, with a run of its own in MLflow that joins those of the rungs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import task

from gptmodel.config import LadderConfig
from gptmodel.lineage.walk import artifact_of
from gptmodel.planning.law_text import asked_budget, law_sections, told_of
from gptmodel.planning.own_law import fit_evaluations, law_of
from gptmodel.planning.plan_text import markdown
from gptmodel.pretraining.step import run_dir_of
from gptmodel.store.artifacts import MANIFEST, Artifact, Store, open_store
from tasks.lineage.events import with_events
from tasks.pages import show_words
from tasks.policy import STEP
from tasks.steps import figures_of, report
from tasks.tracking.cards import Card, code_tags, load_card

LAW_TAG = "gptflow.scaling-law"
"""Of a rung's run and of the law's own: the digest of the law."""
_PARENT = "mlflow.parentRunId"
_ADVICE = "gptflow.advice-for"  # operations; written last, so that what was cut short is told again


@task(name="fit-law", task_run_name="fit the scaling law", **STEP)
@with_events
def fit_scaling_law(
    evaluations: list[Artifact], ladder: LadderConfig, best_for: float = 0.0, wait: bool = False
) -> Artifact:
    """Fit L(N, D) to the ladder, and show runs, law and advice."""
    from tasks.tracking.syncing import settle

    store = open_store()
    artifact, reused = fit_evaluations(store, evaluations, ladder, wait=wait)
    settle(lambda: sync_law(store, artifact, best_for), artifact.label)
    words = f"# Scaling law {artifact.path.name}\n\n{markdown(law_sections(artifact, best_for))}"
    show_words("scaling-law-fit", words, "The runs of the ladder, the law fitted to them, and what it advises")
    return report(artifact, reused, figures_of(artifact, "counts", "scatter"))


def sync_law(store: Store, law: Artifact, best_for: float = 0.0) -> Any:
    """Coefficients, files, pages and pictures of a law in a run of its own, once; the rungs' runs are its children.

    A run that another sweep has as its child already stays there, and gets this law's tag.
    """
    from mlflow.entities import Metric

    from gptmodel.pictures.style import save_all
    from gptmodel.planning.law_pictures import law_pictures
    from tasks.tracking.recording import finished_ms
    from tasks.tracking.runs import COMPLETE_TAG, client, find_or_create_run, find_run, set_status, set_tags
    from tasks.tracking.syncing import Outcome

    told, own = told_of(law), law_of(law)
    models = [artifact_of(store, artifact_of(store, ref).request.inputs[0]) for ref in law.request.inputs]
    run, _ = find_or_create_run(_card(store, law, told, models[0]))
    run_id, asked = run.info.run_id, f"{asked_budget(told, best_for):g}"
    if run.data.tags.get(_ADVICE) == asked or (_ADVICE in run.data.tags and not best_for):
        return Outcome(law.label, "current")
    advice = own.advise(float(asked))
    values = {f"law/{name}": value for name, value in told["coefficients"].items()}
    values |= {
        f"law/{name}_{side}": pair[i]
        for name, pair in told["intervals"].items()
        for i, side in enumerate(("low", "high"))
    }
    values |= {"law/scatter": told["scatter"], "law/runs": len(told["points"])}
    finished = finished_ms(law)
    known = set(run.data.metrics)
    metrics = [Metric(name, float(v), finished, 0, run_id=run_id) for name, v in values.items() if name not in known]
    client().log_batch(run_id, metrics=metrics)
    for name in (*law.names(), MANIFEST):
        client().log_artifact(run_id, str(law.path / name), "law")
    client().log_text(run_id, markdown(law_sections(law, best_for)), f"advice/{asked}.md")
    client().log_dict(
        run_id,
        {"flops": advice.flops, "n_params": advice.n_params, "n_tokens": advice.n_tokens, "loss": advice.loss,
         "intervals": advice.intervals, "outside": advice.outside},
        f"advice/{asked}.json",
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        for path in save_all(law_pictures(own, told["points"], float(asked)), Path(folder)):
            client().log_artifact(run_id, str(path), "plots")
    for model in models:
        if (rung := find_run(model.fingerprint)) is not None:
            parent = {} if _PARENT in rung.data.tags else {_PARENT: run_id}
            set_tags(rung.info.run_id, {f"{LAW_TAG}.{law.path.name}": law.digest, **parent})
    set_status(run, "FINISHED")
    set_tags(run_id, {LAW_TAG: law.digest, COMPLETE_TAG: "true", _ADVICE: asked})
    return Outcome(law.label, "sent")


def _card(store: Store, law: Artifact, told: dict[str, Any], first: Artifact) -> Card:
    """In the experiment of the rungs, which their own cards know."""
    experiment = load_card(run_dir_of(store, first.fingerprint)).experiment
    params = {**law.request.config, "runs": len(told["points"]), "form": told["form"]}
    name = f"scaling-law-{law.path.name[:8]}"
    return Card(experiment, name, law.fingerprint, params, code_tags(law.provenance), kind=law.kind)
