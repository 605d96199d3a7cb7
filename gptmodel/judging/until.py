"""Writing for tasks: each prompt continued until one of its stop texts, as a task's generation settings ask.

The rules are those of the Hugging Face backend of EleutherAI's harness (lm-eval 0.4, `lm_eval/models/huggingface.py`):
a prompt keeps its last tokens, as many as leave room for what is to be written; the end token stops; the text is cut
before the first stop text. Where a task samples and does not say `top_k`, it is 50, which is what `transformers` takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from gptmodel.config import DecodingConfig
from gptmodel.errors import ConfigError, DataError
from gptmodel.generate import Writer
from gptmodel.model import GPT
from gptmodel.progress import Progress
from gptmodel.tokenizer import END_TOKEN, gpt2

_FILTERS = {"top_k", "top_p", "min_p", "repetition_penalty"} & {f.name for f in fields(DecodingConfig)}
_TOP_K = 50  # transformers: GenerationConfig._get_default_generation_params
_NEUTRAL: dict[str, Any] = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True, "length_penalty": 1.0}
_KNOWN = {"do_sample", "temperature", "until", "max_gen_toks", *_FILTERS}


def decoding_of(asked: Mapping[str, Any], seed: int) -> DecodingConfig:
    """A task's generation settings (`do_sample`, `temperature`, `max_gen_toks`, ...) as a decoding.

    DataError for settings that are not known here, and for sampling without a temperature.
    """
    odd = [f"{name}={value!r}" for name, value in asked.items() if name not in _KNOWN and _NEUTRAL.get(name) != value]
    if odd:
        raise DataError(
            f"the task asks to decode with {', '.join(odd)}, which is not done here; it can be overridden by "
            f"generation settings of {', '.join(sorted(_KNOWN))} alone"
        )
    sampled, temperature = bool(asked.get("do_sample")), float(asked.get("temperature") or 0.0)
    if sampled and not temperature:
        raise DataError("the task samples (do_sample) and gives no temperature; give one: --gen-kwargs temperature=1.0")
    chosen: dict[str, Any] = {"top_k": _TOP_K} if sampled else {}
    chosen |= {name: asked[name] for name in _FILTERS if asked.get(name) is not None}
    if not sampled:
        chosen = {name: value for name, value in chosen.items() if name == "repetition_penalty"}
    try:
        return DecodingConfig(
            max_new_tokens=int(asked["max_gen_toks"]), temperature=temperature if sampled else 0.0, seed=seed, **chosen
        )
    except ConfigError as error:
        raise DataError(f"the task's generation settings cannot be used: {'; '.join(error.problems)}") from None


def write_until(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    decoding: DecodingConfig,
    until: Sequence[str],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> list[str]:
    """What the model writes after each prompt of token ids, up to the first text of `until`.

    A row's draws depend on its number alone, not on the batches. DataError where the context has no room for a prompt.
    """
    context_length = model.config.context_length
    room = context_length - decoding.max_new_tokens
    if room < 1:
        raise DataError(
            f"the task asks for {decoding.max_new_tokens} new tokens, and the model reads {context_length} at a time, "
            f"prompt and all; ask for fewer: --gen-kwargs max_gen_toks={max(1, context_length // 2)}"
        )
    texts: list[str] = []
    for start in range(0, len(prompts), batch_size):
        rows = [list(prompt)[-room:] for prompt in prompts[start : start + batch_size]]
        texts += _write(model, rows, decoding, until, first_row=start)
        if progress is not None:
            progress(len(texts), len(prompts), "texts")
    return texts


def _write(
    model: GPT, prompts: list[list[int]], decoding: DecodingConfig, until: Sequence[str], first_row: int
) -> list[str]:
    tokenizer = gpt2()
    known = min(tokenizer.vocab_size, model.config.vocab_size)  # ids of a padded table stand for nothing
    writer = Writer(model, prompts, decoding, END_TOKEN, first_row, use_cache=True, vocab_size=known)
    written: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(prompts)
    for drawn in writer:
        for index, token in drawn.items():
            if token != END_TOKEN:
                written[index].append(token)
                texts[index] = tokenizer.decode(written[index])
            if any(stop in texts[index] for stop in until if stop):
                writer.finish(index)
    return [cut_before(text, until) for text in texts]


def cut_before(text: str, until: Sequence[str]) -> str:
    """The text before the first of these; an empty one stops nothing."""
    for stop in until:
        text = text.split(stop)[0] if stop else text
    return text
