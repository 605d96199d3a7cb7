"""Text in, token shards out."""

from __future__ import annotations

from prefect import task

from gptmodel.config import CorpusConfig, PipelineConfig, ShardsConfig
from gptmodel.store.artifacts import Artifact, open_store
from tasks.data_gates import check_corpus
from tasks.holding import hold
from tasks.lineage.events import with_events
from tasks.pages import progress
from tasks.policy import STEP
from tasks.steps import figures_of, report


@task(name="fetch-corpus", task_run_name="fetch corpus", **STEP)
@with_events
def fetch_corpus(config: CorpusConfig, wait: bool = False) -> Artifact:
    """Fetch the text, clean it, and decide each document's side of the split."""
    from gptmodel.text.corpus import build_corpus

    with progress("reading text") as update:
        artifact, reused = build_corpus(open_store(), config, wait=wait, progress=update)
    names = ("documents", "train_documents", "validation_documents", "train_bytes", "validation_bytes")
    dropped = ("empty_dropped", "duplicates_dropped", "near_duplicates_dropped", "invalid_utf8", "cut_documents")
    return report(artifact, reused, figures_of(artifact, *names, *dropped))


@task(name="tokenize", task_run_name="tokenize into shards", **STEP)
@with_events
def tokenize_corpus(corpus: Artifact, config: ShardsConfig, wait: bool = False) -> Artifact:
    """Turn the documents into shards of GPT-2 tokens."""
    from gptmodel.tokens.shards import build_shards

    with progress("tokenizing") as update:
        artifact, reused = build_shards(open_store(), corpus, config, wait=wait, progress=update)
    names = ("train_tokens", "validation_tokens", "shards", "bytes_per_token")
    history = ("documents_tokenized", "documents_reused", "bytes_tokenized")
    return report(artifact, reused, figures_of(artifact, *names, *history))


def find_shards(name: str, config: PipelineConfig, wait: bool = False) -> Artifact:
    """The named shards of the store, or those that the settings ask for, made if they are not there."""
    if name:
        return hold(open_store().resolve(name, "shards"))
    corpus = fetch_corpus(config.corpus, wait)
    check_corpus(corpus, config.data_gates, wait=wait)
    return tokenize_corpus(corpus, config.shards, wait)
