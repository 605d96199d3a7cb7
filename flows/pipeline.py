"""The whole chain: text -> shards -> model -> figures and samples."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.naming import after_settings
from flows.retrain import retrain
from gptmodel.overrides import PipelineOverrides, given
from gptmodel.presets import PresetName
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact, open_store
from tasks.data_gates import check_corpus
from tasks.evaluating import evaluate_model
from tasks.holding import holding
from tasks.importing import import_pretrained
from tasks.preparing import fetch_corpus, tokenize_corpus
from tasks.promoting import resolved
from tasks.training import pretrain_model


@flow(name="pipeline", flow_run_name=after_settings("pipeline"))
def pipeline(
    preset: PresetName = "quickstart",
    overrides: PipelineOverrides | None = None,  # type: ignore[valid-type]
    wait: bool = False,
) -> dict[str, Artifact] | State[dict[str, Artifact]]:
    """Fetch, look at the text, tokenize, pretrain and evaluate. What is already there is reused.

    With retrain.active it first looks whether there is new data, and at the end whether the new model is better than
    the champion: see docs/retraining.md.

    Args:
        preset: The settings to start from.
        overrides: Single settings to change; all others stay as the preset has them.
        wait: Wait for another run that makes the same artifact, instead of refusing.
    """
    config = load_config(preset, overrides=given(overrides))
    with holding():
        if config.retrain.active:
            found, said = retrain(config, wait)
            return Completed(message=said, data=found)
        config = resolved(open_store(), config)
        corpus = fetch_corpus(config.corpus, wait)
        check_corpus(corpus, config.data_gates, wait=wait)
        shards = tokenize_corpus(corpus, config.shards, wait)
        init = import_pretrained(config.init_from, wait=wait) if config.init_from else None
        model = pretrain_model(config, shards, init, wait)
        evaluation = evaluate_model(model, shards, config.evaluate, wait)
    return {"corpus": corpus, "shards": shards, "model": model, "evaluation": evaluation}
