"""GPT-2 in Hugging Face's layout: which of its settings and tensors become which of ours, and what is refused.

Every tensor is accounted for by the tables below: one that is missing, unknown or of another shape is an error.
Every setting that would change the computation is either taken over or refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open

from gptmodel.config import ModelConfig
from gptmodel.errors import CheckpointError, ConfigError, DataError
from gptmodel.model import GPT
from gptmodel.settings import parse_config
from gptmodel.tokenizer import data_files
from gptmodel.weights import (
    CONFIG_FILE,
    TensorInfo,
    check_tensors,
    empty_model,
    fill,
    read_header,
    read_json,
    shapes_of,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# theirs: (ours, transposed). Their Conv1D holds [in, out] where nn.Linear holds [out, in].
_OUTER = {
    "wte.weight": ("wte.weight", False),
    "wpe.weight": ("wpe.weight", False),
    "ln_f.weight": ("ln_f.weight", False),
    "ln_f.bias": ("ln_f.bias", False),
}
_BLOCK = {
    "ln_1.weight": ("ln_1.weight", False),
    "ln_1.bias": ("ln_1.bias", False),
    "attn.c_attn.weight": ("attn.qkv.weight", True),
    "attn.c_attn.bias": ("attn.qkv.bias", False),
    "attn.c_proj.weight": ("attn.proj.weight", True),
    "attn.c_proj.bias": ("attn.proj.bias", False),
    "ln_2.weight": ("ln_2.weight", False),
    "ln_2.bias": ("ln_2.bias", False),
    "mlp.c_fc.weight": ("mlp.up.weight", True),
    "mlp.c_fc.bias": ("mlp.up.bias", False),
    "mlp.c_proj.weight": ("mlp.down.weight", True),
    "mlp.c_proj.bias": ("mlp.down.bias", False),
}
_BLOCK_BUFFERS = ("attn.bias", "attn.masked_bias")  # constants of the causal mask, in files of older versions
_HEAD = "lm_head.weight"  # if there, it must equal wte

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_SIZES = {"vocab_size": "vocab_size", "n_positions": "context_length"} | {n: n for n in ("n_layer", "n_head", "n_embd")}
# settings with only one value that this model computes; absent means that value
_FIXED: dict[str, Any] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
}
_UNSET = ("quantization_config", "pruned_heads", "auto_map")  # must be absent or empty
# What no logit depends on. Any other setting is refused, whatever its value: what it would change is not known here.
_WITHOUT_EFFECT = {
    # of their tooling: where the file came from, number formats in memory, which kernel does the same sum
    *("architectures", "transformers_version", "_name_or_path", "tokenizer_class", "torch_dtype", "dtype"),
    *("use_cache", "gradient_checkpointing", "torchscript", "use_bfloat16", "tf_legacy_loss", "transformers.js_config"),
    *("output_hidden_states", "output_attentions", "output_past", "return_dict", "use_return_dict"),
    *("_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "_commit_hash"),
    # of GPT-2's past and of other kinds of model, read by nothing in GPT-2
    *("n_ctx", "chunk_size_feed_forward", "is_decoder", "cross_attention_hidden_size", "tie_encoder_decoder"),
    *("decoder_start_token_id", "sep_token_id", "prefix"),
    # of the first weights, of training for other tasks, and of heads that this model does not have
    *("initializer_range", "task_specific_params", "finetuning_task", "problem_type"),
    *("id2label", "label2id", "num_labels", "_num_labels", "classifier_dropout"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    # of generation: older versions wrote them all into config.json
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_length", "min_length", "do_sample", "early_stopping"),
    *("num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate", "forced_bos_token_id"),
    *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    "begin_suppress_tokens",
}
# transformers takes these for the same settings, and the later one in the file wins: two that differ are no one model
_OTHER_NAMES = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}


@dataclass(frozen=True)
class HFModel:
    """A checked directory in Hugging Face's layout; `load` reads its tensors."""

    directory: Path
    config: ModelConfig
    files: tuple[str, ...]
    """Names of the files that the model is made of: config, index if there is one, weights."""
    dtype: str
    """What the weights are stored in, such as float16, or several with a + between; they become float32."""
    holders: dict[str, str]
    """Which file holds each tensor."""

    def load(self) -> GPT:
        """The model, float32, on the CPU, in eval mode. CheckpointError if the head is not the token table."""
        model = empty_model(self.config)
        table = _table(self.config.n_layer)
        for name in sorted({*self.holders.values()}):
            here = {key: table[_bare(key)] for key, holder in self.holders.items() if holder == name}
            wanted = {key: entry for key, entry in here.items() if entry is not None}
            turned = [key for key, (_, transposed) in wanted.items() if transposed]
            fill(model, self.directory / name, {key: ours for key, (ours, _) in wanted.items()}, turned)
        self._check_head(model)
        return model

    def _check_head(self, model: GPT) -> None:
        if _HEAD not in self.holders:
            return
        with safe_open(self.directory / self.holders[_HEAD], framework="pt", device="cpu") as file:
            if not torch.equal(file.get_tensor(_HEAD).float(), model.wte.weight):
                raise CheckpointError(
                    f"{_HEAD} differs from wte.weight; only models with a tied head can be taken over"
                )


def read_hf(directory: Path) -> HFModel:
    """Check config, file list, and every tensor's name, shape and dtype, without reading the tensors.

    DataError for a model that is not a GPT-2 we compute, CheckpointError for tensors that do not fit it.
    """
    config = to_model_config(read_json(directory / CONFIG_FILE), str(directory / CONFIG_FILE))
    _check_vocabulary(directory)
    names, listed = _weight_files(directory)
    holders: dict[str, str] = {}
    found: dict[str, TensorInfo] = {}
    for name in names:
        for key, info in read_header(directory / name).items():
            if _bare(key) in found:
                raise CheckpointError(
                    f"{_bare(key)} stands twice in the weights: in {name} and {holders.get(key, name)}; get the "
                    "files again"
                )
            found[_bare(key)] = info
            holders[key] = name
    if listed is not None and listed != holders:
        wrong = sorted({*listed.items()} ^ {*holders.items()})[0][0]
        raise CheckpointError(f"{INDEX_FILE} and the files disagree about {wrong}; get the files again")
    if config.n_layer > len(found):  # before tables of the size that the config claims are made
        raise CheckpointError(
            f"{CONFIG_FILE} has n_layer {config.n_layer:,}, and the weights {len(found):,} tensors: they are not "
            "of one model; get both again"
        )
    check_tensors(str(directory), found, _expected(config, found))
    if odd := sorted(key for key, info in found.items() if _table(config.n_layer)[key] and info.dtype not in _FLOATS):
        raise CheckpointError(
            f"{odd[0]} is {found[odd[0]].dtype}; weights must be {', '.join(_FLOATS.values())}; convert them"
        )
    dtypes = sorted({_FLOATS[info.dtype] for key, info in found.items() if _table(config.n_layer)[key]})
    files = (CONFIG_FILE, *([INDEX_FILE] if listed is not None else []), *names)
    return HFModel(directory, config, files, "+".join(dtypes), holders)


def _check_vocabulary(directory: Path) -> None:
    """The words beside the weights must be GPT-2's: by what they are, since tools write the file anew."""
    path = directory / "vocab.json"
    if path.is_file() and read_json(path) != read_json(data_files()["encoder.json"]):
        raise DataError(f"{path} is not GPT-2's vocabulary; weights of another one would read and write other words")


def to_model_config(raw: dict[str, Any], where: str) -> ModelConfig:
    """Our settings from a GPT-2 config.json. DataError that names every setting this model does not compute."""
    if raw.get("model_type") != "gpt2":
        raise DataError(f"{where}: model_type is {raw.get('model_type')!r}; only gpt2 can be taken over")
    problems = [
        f"{name} is {raw[name]!r}, and only {value!r} is computed here"
        for name, value in _FIXED.items()
        if name in raw and raw[name] is not value
    ]
    problems += [f"{name} is set, and must not be" for name in _UNSET if raw.get(name)]
    problems += [f"{name} is missing" for name in _SIZES if name not in raw]
    activation = raw.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        problems.append(f"activation_function is {activation!r}; known are {', '.join(_ACTIVATIONS)}")
    if raw.get("n_inner") not in (None, 4 * raw["n_embd"] if isinstance(raw.get("n_embd"), int) else None):
        problems.append(f"n_inner is {raw['n_inner']!r}, and only 4 * n_embd is computed here")
    dropouts = {name: raw.get(name, 0.1) for name in _DROPOUTS}
    if len({*map(str, dropouts.values())}) > 1:
        problems.append(f"{dropouts} differ, and there is one dropout here; set them equal in a copy of the file")
    problems += _unknown(raw)
    if problems:
        raise DataError(f"{where}: {'; '.join(problems)}")
    ours = {ours: raw[theirs] for theirs, ours in _SIZES.items()}
    ours |= {"activation": _ACTIVATIONS[activation], "dropout": dropouts["resid_pdrop"]}
    ours |= {"layer_norm_eps": raw.get("layer_norm_epsilon", 1e-5)}
    try:
        return parse_config(ours, ModelConfig)
    except ConfigError as error:
        raise DataError(f"{where}: {'; '.join(error.problems)}") from None


def _unknown(raw: dict[str, Any]) -> Iterator[str]:
    """Settings that GPT-2 does not have, or has under another name with another value; null is as good as absent."""
    for name, other in _OTHER_NAMES.items():
        if raw.get(other) not in (None, raw.get(name)):
            yield f"{other} is {raw[other]!r}, and {name}, the same, is {raw.get(name)!r}"
    known = {*_SIZES, *_DROPOUTS, *_FIXED, *_UNSET, *_WITHOUT_EFFECT, *_OTHER_NAMES.values()}
    known |= {"model_type", "activation_function", "n_inner", "layer_norm_epsilon"}
    if unknown := {name: raw[name] for name in sorted(raw) if name not in known and raw[name] is not None}:
        told = ", ".join(f"{name} ({str(value)[:40]})" for name, value in unknown.items())
        yield f"not known to GPT-2: {told}; what does not change the logits may be taken out of a copy of the file"


def _bare(key: str) -> str:
    return key.removeprefix("transformer.")


def key_map(n_layer: int) -> dict[str, tuple[str, bool]]:
    """Every parameter's key in their files, without its prefix: our key, and whether it is transposed."""
    return {key: entry for key, entry in _table(n_layer).items() if entry is not None}


def _table(n_layer: int) -> dict[str, tuple[str, bool] | None]:
    """Every key that may be there, without its prefix: where it goes, or None if it goes nowhere."""
    table: dict[str, tuple[str, bool] | None] = {**_OUTER, _HEAD: None}
    for layer in range(n_layer):
        for theirs, (ours, transposed) in _BLOCK.items():
            table[f"h.{layer}.{theirs}"] = (f"blocks.{layer}.{ours}", transposed)
        table |= {f"h.{layer}.{name}": None for name in _BLOCK_BUFFERS}
    return table


def _expected(config: ModelConfig, found: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    shapes = shapes_of(config)
    expected: dict[str, TensorInfo] = {}
    for key, entry in _table(config.n_layer).items():
        if entry is not None:
            ours, transposed = entry
            expected[key] = TensorInfo("", shapes[ours][::-1] if transposed else shapes[ours])
        elif key == _HEAD and key in found:
            expected[key] = TensorInfo("", shapes["wte.weight"])
        elif key in found:
            expected[key] = TensorInfo("", found[key].shape)
    return expected


def _weight_files(directory: Path) -> tuple[list[str], dict[str, str] | None]:
    """Names of the weight files, and which key stands in which by the index, if there is one."""
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE], None
    if (directory / INDEX_FILE).is_file():
        listed = read_json(directory / INDEX_FILE).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(n, str) for n in listed.values()):
            raise CheckpointError(f"{directory / INDEX_FILE} has no weight_map; get the file again")
        names = sorted({*listed.values()})
        if outside := [n for n in names if PurePosixPath(n).name != n or not n.endswith(".safetensors")]:
            raise CheckpointError(
                f"{INDEX_FILE} names {outside[0]!r}, which is not a .safetensors file beside it; get both again"
            )
        return names, listed
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    hint = "convert it where you trust it: GPT2LMHeadModel.from_pretrained(…).save_pretrained(…)"
    if pickles:
        raise DataError(f"{directory} has only {pickles[0]}, a pickle, which can run code and is never loaded; {hint}")
    raise DataError(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}; if it has a pytorch_model.bin, {hint}")
