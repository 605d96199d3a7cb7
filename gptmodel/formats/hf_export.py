"""A model in Hugging Face's layout: what `AutoModelForCausalLM` and `AutoTokenizer` of transformers load.

The tables of `gptmodel.formats.hf_format` read backwards; the weights are those of the artifact, float32, bit for bit,
so that importing the directory again gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gptmodel.config import GPT2_VOCAB_SIZE, ModelConfig
from gptmodel.errors import DataError
from gptmodel.formats.hf_format import SINGLE_FILE, key_map
from gptmodel.formats.target import free_directory
from gptmodel.model import GPT
from gptmodel.progress import Meter, progress
from gptmodel.store.artifacts import fsync_path, write_atomic
from gptmodel.store.space import require, storage_errors, used_bytes, weights_bytes
from gptmodel.tokenizer import END_TOKEN, data_files
from gptmodel.weights import CONFIG_FILE

_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
_END = "<|endoftext|>"
_TOKENIZER_NAMES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}  # ours to theirs; the bytes are the same


def export_hf(model: GPT, target: Path, *, card: str = "") -> list[str]:
    """Write model, tokenizer and card into a new directory, whole or not at all; the names of its files.

    DataError where `target` is there already and not empty. A model of another vocabulary than GPT-2's gets no
    tokenizer: its words are not known here.
    """
    target = free_directory(target)
    make_room(target, model)
    building = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        with writing(model, building):
            write_hf_model(model, building)
        if model.config.vocab_size == GPT2_VOCAB_SIZE:
            _write_tokenizer(building, model.config)
        if card:
            write_atomic(building / "README.md", card)
        for path in building.iterdir():
            fsync_path(path)
        os.replace(building, target)  # an empty directory may be replaced
    finally:
        shutil.rmtree(building, ignore_errors=True)
    fsync_path(target.parent)
    return sorted(path.name for path in target.iterdir())


def make_room(target: Path, model: GPT) -> None:
    """Make the folder that it goes into. StorageError where the weights do not fit there, or nothing can be written.

    DataError where its path leads through a file.
    """
    with storage_errors("the export", target.parent):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise DataError(f"{error.filename} is no directory; name a place under one that is") from None
        require(weights_bytes(model.num_parameters()), target.parent, "the export")


def writing(model: GPT, place: Path) -> AbstractContextManager[Meter]:
    """A meter of what stands in a directory, or in a file, of the model's bytes."""
    total = 4 * model.num_parameters()
    return progress("writing the model", total, "bytes", look=lambda meter: meter(_bytes_at(place)))


def _bytes_at(place: Path) -> int:
    return used_bytes(place) if place.is_dir() else place.stat().st_size


def write_hf_model(model: GPT, directory: Path) -> None:
    """`config.json` and `model.safetensors`, which is all that transformers needs for the logits."""
    parameters = dict(model.named_parameters())
    tensors = {
        f"transformer.{theirs}": (parameters[ours].detach().T if transposed else parameters[ours].detach())
        .to("cpu", torch.float32)
        .contiguous()
        for theirs, (ours, transposed) in key_map(model.config.n_layer).items()
    }
    save_file(tensors, directory / SINGLE_FILE, metadata={"format": "pt"})
    (directory / SINGLE_FILE).chmod(0o644)  # safetensors makes it readable for its owner alone
    write_atomic(directory / CONFIG_FILE, _json(_config(model.config)))


def _config(config: ModelConfig) -> dict[str, Any]:
    end = END_TOKEN if config.vocab_size > END_TOKEN else None
    return {
        "activation_function": _ACTIVATIONS[config.activation],
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": config.dropout,
        "bos_token_id": end,
        "embd_pdrop": config.dropout,
        "eos_token_id": end,
        "layer_norm_epsilon": config.layer_norm_eps,
        "model_type": "gpt2",
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": None,
        "n_layer": config.n_layer,
        "n_positions": config.context_length,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
    }


def _write_tokenizer(directory: Path, config: ModelConfig) -> None:
    for ours, path in data_files().items():
        shutil.copyfile(path, directory / _TOKENIZER_NAMES[ours])
    special = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": config.context_length,
        "add_prefix_space": False,
    }
    write_atomic(directory / "tokenizer_config.json", _json({**settings, **special}))
    write_atomic(directory / "special_tokens_map.json", _json(special))
    write_atomic(directory / "generation_config.json", _json({"bos_token_id": END_TOKEN, "eos_token_id": END_TOKEN}))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
