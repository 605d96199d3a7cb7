"""What a night does where `retrain.active` is set. `pipeline` branches here, so its deployments keep their names."""

from __future__ import annotations

from dataclasses import replace

from gptmodel.config import PipelineConfig, ShardsConfig
from gptmodel.store.artifacts import Artifact
from tasks.evaluating import evaluate_model
from tasks.gating import Judged, pass_gate
from tasks.importing import import_pretrained
from tasks.preparing import fetch_corpus, tokenize_corpus
from tasks.retraining import News, arrivals_of, check_night, hold_out, look_for_news
from tasks.training import pretrain_model


def retrain(config: PipelineConfig, wait: bool) -> tuple[dict[str, Artifact], str]:
    """(what came out, the night in one line)."""
    news = look_for_news(config)
    if news.nothing_new:
        return {}, f"nothing new: {news.nothing_new}"
    config = news.config
    corpus = fetch_corpus(config.corpus, wait)
    check_night(corpus, config, news.previous, wait)
    shards = tokenize_corpus(corpus, side(config, "training"), wait)
    held_out = tokenize_corpus(corpus, side(config, "held-out"), wait)
    frozen = hold_out(config, news, shards, held_out)
    init = import_pretrained(config.init_from, wait=wait) if config.init_from else None
    model = pretrain_model(config, shards, init, wait)
    if news.champion is not None and model.digest == news.champion.digest:
        return {"model": model}, f"the model that came out is the champion itself, {model.label}"
    challenger = judge(config, news, model, frozen, held_out, wait)
    champion = judge(config, news, news.champion, frozen, held_out, wait) if news.champion else None
    facts = {"source": news.source, "corpus": corpus.label, "held_out": held_out.label}
    entry = pass_gate(config, challenger, champion, facts)
    found = {"corpus": corpus, "shards": shards, "held out": held_out, "model": model, "evaluation": challenger.frozen}
    return found, str(entry.facts["said"])


def side(config: PipelineConfig, name: str) -> ShardsConfig:
    """The settings for shards of one side of the corpus."""
    fraction = config.retrain.selection_fraction if name == "training" else 0.0
    return replace(config.shards, side=name, selection_fraction=fraction)  # type: ignore[arg-type]


def judge(
    config: PipelineConfig, news: News, model: Artifact, frozen: Artifact, held_out: Artifact, wait: bool
) -> Judged:
    """A model on the arrivals, if there are any, and on the frozen set: last, so that it is the newest evaluation."""
    since = arrivals_of(news, held_out)
    arrivals = evaluate_model(model, held_out, config.evaluate, wait, since) if since else None
    return Judged(model, evaluate_model(model, frozen, config.evaluate, wait), arrivals)
