"""Text is looked at before anything is made of it."""

from __future__ import annotations

from prefect import get_run_logger, task

from gptmodel.config import DataGatesConfig
from gptmodel.errors import DataError
from gptmodel.store.artifacts import Artifact, open_store
from tasks.lineage.events import with_events
from tasks.pages import progress, show_words
from tasks.policy import STEP
from tasks.steps import figures_of, report


@task(name="check-data", task_run_name="check data", **STEP)
@with_events
def check_corpus(
    corpus: Artifact, config: DataGatesConfig, previous: Artifact | None = None, wait: bool = False
) -> Artifact:
    """Look at a corpus, and compare it with the previous one: left out, with the last of the same source in the store.

    DataError, which nothing retries, if a gate is not passed. The report is then in the store all the same.
    """
    from gptmodel.datagates import checked, markdown, previous_of, report_of

    store = open_store()
    with progress("looking at text") as update:
        before = previous or previous_of(store, corpus)
        artifact, reused = checked(store, corpus, config, before, wait=wait, progress=update)
    found = report_of(artifact)
    report(artifact, reused, figures_of(artifact, "passed", "failed", "warned", "documents"))
    show_words("data-gates", markdown(found), found.line)
    for finding in found.warned:
        get_run_logger().warning("data gate %s: %s", finding.gate, finding.said)
    if not found.passed:
        raise DataError(f"{found.line}. The documents are listed in {artifact.path}/report.md")
    return artifact
