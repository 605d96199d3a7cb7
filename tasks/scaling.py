"""A ladder's evaluations in; a scaling law out, with a run of its own in MLflow that joins those of the rungs."""

from __future__ import annotations

from prefect import task

from gptmodel.config import LadderConfig
from gptmodel.planning.law_text import law_sections
from gptmodel.planning.own_law import fit_evaluations
from gptmodel.planning.plan_text import markdown
from gptmodel.store.artifacts import Artifact, open_store
from tasks.lineage.events import with_events
from tasks.pages import show_words
from tasks.policy import STEP
from tasks.steps import figures_of, report


@task(name="fit-law", task_run_name="fit the scaling law", **STEP)
@with_events
def fit_scaling_law(
    evaluations: list[Artifact], ladder: LadderConfig, best_for: float = 0.0, wait: bool = False
) -> Artifact:
    """Fit L(N, D) to the ladder, and show runs, law and advice."""
    from tasks.tracking.laws import sync_law
    from tasks.tracking.syncing import settle

    store = open_store()
    artifact, reused = fit_evaluations(store, evaluations, ladder, wait=wait)
    settle(lambda: sync_law(store, artifact, best_for), artifact.label)
    words = f"# Scaling law {artifact.path.name}\n\n{markdown(law_sections(artifact, best_for))}"
    show_words("scaling-law-fit", words, "The runs of the ladder, the law fitted to them, and what it advises")
    return report(artifact, reused, figures_of(artifact, "counts", "scatter"))
