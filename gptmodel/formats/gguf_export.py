"""A model as one GGUF file, for llama.cpp and what is built on it: float32, with GPT-2's tokenizer inside.

Names and settings are those that llama.cpp reads for the architecture `gpt2`; the `gguf` package writes them. Its
matrices are [out, in], as ours are, and the head is the token table again.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import torch

from gptmodel.config import GPT2_VOCAB_SIZE
from gptmodel.errors import ConfigError, DataError
from gptmodel.formats.hf_export import make_room, writing
from gptmodel.formats.target import free_file
from gptmodel.model import GPT
from gptmodel.store.artifacts import fsync_path
from gptmodel.tokenizer import END_TOKEN, data_files

_OUTER = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
}
_BLOCK = {
    "ln_1": "attn_norm",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
_ALL_FLOAT32 = 0


def export_gguf(model: GPT, target: Path, *, name: str) -> list[str]:
    """Write the file, whole or not at all; its name in a list.

    ConfigError where the package `gguf` is missing. DataError where `target` is there already, for a model of another
    vocabulary than GPT-2's, and for one with the exact gelu, which llama.cpp does not compute for GPT-2.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("the package gguf is not installed; install it: .venv/bin/python -m pip install 'gguf>=0.17'")
    target = free_file(target)
    if model.config.vocab_size != GPT2_VOCAB_SIZE:
        raise DataError(
            f"the model has {model.config.vocab_size:,} tokens, and a GGUF file needs their words; only GPT-2's "
            f"{GPT2_VOCAB_SIZE:,} are known here; export it with --format hf"
        )
    if model.config.activation != "gelu_tanh":
        raise DataError(
            "llama.cpp computes GPT-2 with the tanh gelu, and this model has the exact one; export it with --format hf"
        )
    make_room(target, model)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with writing(model, temporary):
            _write(model, temporary, name)
        fsync_path(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(target.parent)
    return [target.name]


def _write(model: GPT, path: Path, name: str) -> None:
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(name)
    writer.add_file_type(_ALL_FLOAT32)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    _add_tokenizer(writer)
    for ours, parameter in model.named_parameters():
        writer.add_tensor(_name_of(ours), parameter.detach().to("cpu", torch.float32).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name_of(ours: str) -> str:
    if ours in _OUTER:
        return _OUTER[ours]
    _, layer, rest = ours.split(".", 2)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_BLOCK[part]}.{kind}"


def _add_tokenizer(writer: Any) -> None:
    from gguf import TokenType

    files = data_files()
    ids: dict[str, int] = json.loads(files["encoder.json"].read_text(encoding="utf-8"))
    merges = files["vocab.bpe"].read_text(encoding="utf-8").splitlines()[1:]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=lambda token: ids[token]))
    writer.add_token_types([TokenType.CONTROL if i == END_TOKEN else TokenType.NORMAL for i in range(len(ids))])
    writer.add_token_merges([line for line in merges if line])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id):
        add(END_TOKEN)
    writer.add_add_bos_token(False)
