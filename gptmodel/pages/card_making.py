"""The sections of a model card on what it took: cost, commands, environment."""

from __future__ import annotations

from gptmodel.arithmetic import rule_of_six
from gptmodel.markdown_text import code, counted, fenced
from gptmodel.pages.card_facts import Facts
from gptmodel.store.artifacts import Artifact
from gptmodel.words import duration, size

NAMED_FILES = 5


def cost(facts: Facts) -> str:
    summary, machine = facts.model.summary, facts.model.summary.get("machine", {})
    if not facts.is_trained or "seconds" not in summary:
        return ""
    n_tokens = summary["tokens"]  # to the last step, whichever was published
    flops = rule_of_six(facts.n_params) * n_tokens
    return (
        f"{duration(summary['seconds'])} in training steps, on {code(machine.get('device', '?'))} "
        f"({code(machine.get('name', '?'))}, {counted(int(machine.get('threads', 1)), 'thread')} a process); "
        f"{summary['tokens_per_second']:,.0f} tokens a second, and at most {size(summary['peak_memory_bytes'])} "
        f"of memory for its first process. About {flops:.2e} FLOP, as 6ND with N = {facts.n_params:,} parameters, "
        f"embeddings too, and D = {n_tokens:,} tokens (Kaplan et al. 2020, arXiv:2001.08361)."
    )


def commands(facts: Facts) -> str:
    label = facts.model.label
    words = [f"gptflow lineage {label}", f"gptflow verify {label}"]
    if facts.is_trained:
        words += [f"gptflow reproduce {label}", f"gptflow trace {label} --step 1"]
    return fenced("\n".join(words))


def environment(facts: Facts) -> str:
    made = facts.model.provenance
    commit = f"{code(made['git_commit'])}" if made.get("git_commit") else "not recorded"
    dirty = ", with changes that were not committed" if made.get("git_dirty") else ""
    versions = ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items())
    return f"Code: git commit {commit}{dirty}. Python {made.get('python')}, {versions}. {made.get('platform', '')}."


def label_of(artifact: Artifact, kind: str) -> str:
    ref = next(ref for ref in artifact.request.inputs if ref.kind == kind)
    return f"{kind}/{ref.fingerprint[:16]}"
