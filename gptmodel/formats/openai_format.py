"""GPT-2 as OpenAI published it: a TensorFlow checkpoint with `hparams.json`, read without TensorFlow.

A directory of it holds `checkpoint` (which names the prefix), `hparams.json`, `model.ckpt.index` and
`model.ckpt.data-*`; `encoder.json` and `vocab.bpe` may lie beside them, and must then be GPT-2's own. Their layers hold
a weight as [1, in, out], which is [out, in] here. Every tensor is accounted for, as in `gptmodel.formats.hf_format`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from gptmodel.config import ModelConfig
from gptmodel.errors import CheckpointError, ConfigError, DataError
from gptmodel.formats.tensor_bundle import TensorBundle, read_bundle
from gptmodel.model import GPT
from gptmodel.settings import parse_config
from gptmodel.store.artifacts import sha256_file
from gptmodel.tokenizer import FILES
from gptmodel.weights import TensorInfo, check_tensors, empty_model, read_json, shapes_of

HPARAMS_FILE = "hparams.json"
STATE_FILE = "checkpoint"
PREFIX = "model.ckpt"
_SIZES = {"n_vocab": "vocab_size", "n_ctx": "context_length", "n_embd": "n_embd", "n_head": "n_head"} | {
    "n_layer": "n_layer"
}
_OUTER = {
    "model/wte": "wte.weight",
    "model/wpe": "wpe.weight",
    "model/ln_f/g": "ln_f.weight",
    "model/ln_f/b": "ln_f.bias",
}
_BLOCK = {
    "ln_1/g": "ln_1.weight",
    "ln_1/b": "ln_1.bias",
    "attn/c_attn/w": "attn.qkv.weight",
    "attn/c_attn/b": "attn.qkv.bias",
    "attn/c_proj/w": "attn.proj.weight",
    "attn/c_proj/b": "attn.proj.bias",
    "ln_2/g": "ln_2.weight",
    "ln_2/b": "ln_2.bias",
    "mlp/c_fc/w": "mlp.up.weight",
    "mlp/c_fc/b": "mlp.up.bias",
    "mlp/c_proj/w": "mlp.down.weight",
    "mlp/c_proj/b": "mlp.down.bias",
}
_FLOATS = ("float32", "float16", "bfloat16")
_STATE_LINE = re.compile(r'^\s*model_checkpoint_path:\s*"([^"\n]*)"\s*$', re.MULTILINE)
_LARGEST_STATE = 100_000  # bytes


@dataclass(frozen=True)
class OpenAIModel:
    """A checked directory of OpenAI's; `load` reads its tensors, each against its CRC32C."""

    directory: Path
    config: ModelConfig
    files: tuple[str, ...]
    """Names of the files that the model is made of."""
    dtype: str
    """What the weights are stored in; they become float32."""
    bundle: TensorBundle

    @torch.no_grad()
    def load(self) -> GPT:
        """The model, float32, on the CPU, in eval mode. CheckpointError for a tensor whose bytes are damaged."""
        model = empty_model(self.config)
        parameters = dict(model.named_parameters())
        for theirs, ours in _table(self.config.n_layer).items():
            values = torch.from_numpy(self.bundle.read(theirs).copy())
            parameters[ours].copy_(values[0].T if theirs.endswith("/w") else values)
        return model


def read_openai(directory: Path) -> OpenAIModel:
    """Check settings, file list, and every tensor's name, shape and dtype, without reading the tensors.

    DataError for settings that are not a GPT-2 we compute, CheckpointError for files that are damaged or do not fit.
    """
    config = _config(directory)
    prefix = _prefix(directory)
    _check_vocabulary(directory)
    bundle = read_bundle(directory / prefix)
    found = {name: TensorInfo(entry.dtype, entry.shape) for name, entry in bundle.entries.items()}
    if config.n_layer > len(found):  # before tables of the size that the settings claim are made
        raise CheckpointError(
            f"{HPARAMS_FILE} has n_layer {config.n_layer:,}, and the weights {len(found):,} tensors: they are not "
            "of one model; get both again"
        )
    check_tensors(str(directory), found, _expected(config))
    if odd := [name for name, info in found.items() if info.dtype not in _FLOATS]:
        raise CheckpointError(
            f"{min(odd)} is {found[min(odd)].dtype}; weights must be {', '.join(_FLOATS)}; convert them"
        )
    state = (STATE_FILE,) if (directory / STATE_FILE).is_file() else ()
    vocabulary = tuple(name for name in FILES if (directory / name).is_file())
    files = (HPARAMS_FILE, *state, *vocabulary, *(path.name for path in bundle.files))
    return OpenAIModel(directory, config, files, "+".join(sorted({info.dtype for info in found.values()})), bundle)


def prefix_of(state: str) -> str:
    """The prefix that a `checkpoint` file names: the last part of it, since TensorFlow writes whole paths."""
    found = _STATE_LINE.search(state)
    if found is None:
        raise CheckpointError(f"the file `{STATE_FILE}` names no model_checkpoint_path; get it again, or remove it")
    name = PurePosixPath(found[1]).name
    if name in ("", "..") or not name.isprintable() or len(name.encode()) > 200:
        raise CheckpointError(
            f"the file `{STATE_FILE}` names {found[1][:80]!r}, which is no checkpoint; get it again, or remove it"
        )
    return name


def _prefix(directory: Path) -> str:
    path = directory / STATE_FILE
    if not path.is_file():
        return PREFIX
    if path.stat().st_size > _LARGEST_STATE:
        raise CheckpointError(
            f"{path} has {path.stat().st_size:,} bytes; it should be a few lines; get it again, or remove it"
        )
    return prefix_of(path.read_text(errors="replace"))


def _config(directory: Path) -> ModelConfig:
    where, raw = directory / HPARAMS_FILE, read_json(directory / HPARAMS_FILE)
    problems = [f"{name} is missing" for name in _SIZES if name not in raw]
    problems += [f"{name} is not known, and may change the computation" for name in sorted({*raw} - {*_SIZES})]
    if problems:
        raise DataError(f"{where}: {'; '.join(problems)}")
    ours: dict[str, Any] = {name: raw[theirs] for theirs, name in _SIZES.items()}
    try:  # their code fixes the rest: tanh gelu, epsilon 1e-5; dropout is the paper's
        return parse_config({**ours, "dropout": 0.1}, ModelConfig)
    except ConfigError as error:
        raise DataError(f"{where}: {'; '.join(error.problems)}") from None


def _check_vocabulary(directory: Path) -> None:
    for name, expected in FILES.items():
        if (directory / name).is_file() and (found := sha256_file(directory / name)) != expected:
            raise DataError(
                f"{directory / name} is not GPT-2's: sha256 {found[:16]}…, expected {expected[:16]}…; weights of "
                "another vocabulary would read other words; get the file again"
            )


def _table(n_layer: int) -> dict[str, str]:
    blocks = {
        f"model/h{layer}/{theirs}": f"blocks.{layer}.{ours}"
        for layer in range(n_layer)
        for theirs, ours in _BLOCK.items()
    }
    return {**_OUTER, **blocks}


def _expected(config: ModelConfig) -> dict[str, TensorInfo]:
    shapes = shapes_of(config)
    return {
        theirs: TensorInfo("", (1, *shapes[ours][::-1]) if theirs.endswith("/w") else shapes[ours])
        for theirs, ours in _table(config.n_layer).items()
    }
