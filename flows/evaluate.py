"""Model and shards -> figures and samples."""

from __future__ import annotations

from prefect import flow

from flows.naming import after
from gptmodel.overrides import PipelineOverrides, given
from gptmodel.presets import PresetName
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, open_store
from tasks.evaluating import compare_models, evaluate_model
from tasks.holding import hold, holding
from tasks.preparing import find_shards
from tasks.tracking.naming import named_model


@flow(name="evaluate", flow_run_name=after("evaluate", "model", "the newest model"))
def evaluate(
    model: str = "",
    shards: str = "",
    preset: PresetName = "quickstart",
    overrides: PipelineOverrides | None = None,  # type: ignore[valid-type]
    wait: bool = False,
    against: str = "",
) -> dict[str, Artifact]:
    """Judge any checkpoint or imported weights on any shards.

    Args:
        model: A checkpoint or weights, such as `checkpoint/1f2e3d4c` or `quickstart/3`; left out, the newest one.
        shards: The shards to score, such as `shards/1f2e3d4c`; left out, those that the settings ask for.
        preset: The settings to start from; corpus, shards and evaluate are used.
        overrides: Single settings to change.
        wait: Wait for another run that makes the same, instead of refusing.
        against: Another model, judged on the same shards too: is the first one better, and how sure is that?
    """
    config = load_config(preset, overrides=given(overrides))
    with holding():
        judged = hold(named_model(open_store(), model))
        scored = find_shards(shards, config, wait)
        champion = hold(named_model(open_store(), against)) if against else None
        theirs = None
        if champion is not None:  # first, so that the report on the other one can show both
            theirs = evaluate_model(champion, scored, config.evaluate, wait)
        evaluation = evaluate_model(judged, scored, config.evaluate, wait)
        found = {"model": judged, "shards": scored, "evaluation": evaluation}
        if theirs is not None:
            found["comparison"] = compare_models(theirs, evaluation, config.evaluate, wait)
        return found
