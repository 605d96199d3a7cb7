"""Text -> corpus -> token shards."""

from __future__ import annotations

from prefect import flow

from flows.naming import after_settings
from gptmodel.overrides import PipelineOverrides, given
from gptmodel.presets import PresetName
from gptmodel.settings import load_config
from gptmodel.store.artifacts import Artifact
from tasks.data_gates import check_corpus
from tasks.holding import holding
from tasks.preparing import fetch_corpus, tokenize_corpus


@flow(name="prepare-data", flow_run_name=after_settings("prepare data for"))
def prepare_data(
    preset: PresetName = "quickstart",
    overrides: PipelineOverrides | None = None,  # type: ignore[valid-type]
    wait: bool = False,
) -> dict[str, Artifact]:
    """Fetch text, clean and split it, look at it, and tokenize it into shards.

    Args:
        preset: The settings to start from; corpus, data gates and shards are used.
        overrides: Single settings to change.
        wait: Wait for another run that makes the same artifact, instead of refusing.
    """
    config = load_config(preset, overrides=given(overrides))
    with holding():
        corpus = fetch_corpus(config.corpus, wait)
        check_corpus(corpus, config.data_gates, wait=wait)
        return {"corpus": corpus, "shards": tokenize_corpus(corpus, config.shards, wait)}
