"""A ladder of small models -> a scaling law, and the best size and tokens for a budget."""

from __future__ import annotations

from prefect import flow

from flows.naming import after_settings
from gptmodel.config import LadderConfig
from gptmodel.overrides import PipelineOverrides, given
from gptmodel.planning.ladder import rungs_of
from gptmodel.presets import PresetName
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact
from tasks.evaluating import evaluate_model
from tasks.holding import holding
from tasks.preparing import find_shards
from tasks.scaling import fit_scaling_law
from tasks.training import pretrain_model


@flow(name="scaling-sweep", flow_run_name=after_settings("scaling-sweep"))
def scaling_sweep(
    preset: PresetName = "ladder",
    ladder: LadderConfig | None = None,
    overrides: PipelineOverrides | None = None,  # type: ignore[valid-type]
    best_for: float = 0.0,
    wait: bool = False,
) -> dict[str, Artifact]:
    """Train each size on each budget, fit L(N, D) = E + A / N^alpha + B / D^beta, and advise.

    Every rung is an ordinary training with its evaluation; one that the store has already is not trained again.

    Args:
        preset: What the rungs share: data, batch, learning rate, judgement.
        ladder: Sizes, budgets and how the law is fitted; left out, four small sizes on three budgets.
        overrides: Single settings of the preset to change.
        best_for: Floating-point operations to advise for; 0 is ten times the dearest rung.
        wait: Wait for another run that makes the same, instead of refusing.
    """
    ladder = ladder or LadderConfig()
    config = load_config(preset, overrides=given(overrides))
    rungs = rungs_of(config, ladder)
    with holding():
        shards = find_shards("", config, wait)
        evaluations = []
        for rung in rungs:
            model = pretrain_model(rung.config, shards, None, wait)
            evaluations.append(evaluate_model(model, shards, config.evaluate, wait))
        return {"shards": shards, "law": fit_scaling_law(evaluations, ladder, best_for, wait)}
