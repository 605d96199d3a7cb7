"""Weights on disk, in our own layout: `model.safetensors` (float32, the model's own key names) and `config.json`."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gptmodel.config import ModelConfig, PipelineConfig, recipe
from gptmodel.errors import CheckpointError, ConfigError
from gptmodel.model import GPT
from gptmodel.settings import parse_config
from gptmodel.sharding import laid_out_like
from gptmodel.store.artifacts import Artifact, fsync_path, write_atomic
from gptmodel.store.strict_json import kind_of

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Of safetensors: its own limit is 100 MB, which takes seconds and a GB to parse. GPT-2 XL has 60 KB.
_MAX_HEADER_BYTES = 1_000_000
_MAX_JSON_BYTES = 4_000_000
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_MAX_NAMED = 5
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class TensorInfo:
    """What a safetensors header says of a tensor; dtype in its spelling, such as F32 or BF16."""

    dtype: str
    shape: tuple[int, ...]


def save_model(model: GPT, directory: Path) -> None:
    """Write the two files into an existing directory, each whole or not at all. Equal weights give equal bytes."""
    tensors = {
        name: parameter.detach().to("cpu", torch.float32).contiguous() for name, parameter in model.named_parameters()
    }
    temporary = directory / f".{WEIGHTS_FILE}.{os.getpid()}.tmp"
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})  # one entry: safetensors does not order several
        temporary.chmod(0o644)  # safetensors makes it readable for its owner alone
        fsync_path(temporary)
        os.replace(temporary, directory / WEIGHTS_FILE)
    finally:
        temporary.unlink(missing_ok=True)
    write_atomic(directory / CONFIG_FILE, json.dumps(recipe(model.config), indent=2, sort_keys=True) + "\n")


def load_model(source: Path | Artifact) -> GPT:
    """The model of a directory or artifact (checkpoint or weights), on the CPU, float32, in eval mode.

    Raises CheckpointError that lists every key that is missing, unknown, or of another shape or dtype.
    """
    if isinstance(source, Artifact):
        config_path, weights_path = source.file(CONFIG_FILE), source.file(WEIGHTS_FILE)
    else:
        config_path, weights_path = source / CONFIG_FILE, source / WEIGHTS_FILE
    raw = read_json(config_path)
    try:
        config = parse_config(raw, ModelConfig)
    except ConfigError as error:
        raise CheckpointError(f"{config_path}: {'; '.join(error.problems)}") from None
    if missing := sorted({*recipe(config)} - {*raw}):  # a default must not stand in for what the file lost
        raise CheckpointError(f"{config_path} lacks {', '.join(missing)}; get the file again")
    header = read_header(weights_path)
    if config.n_layer > len(header):  # before anything of the size that the config claims is made
        raise CheckpointError(
            f"{config_path} has n_layer {config.n_layer:,}, and the weights {len(header):,} tensors: they are not "
            "of one model; get both again"
        )
    check_tensors(str(weights_path), header, {name: TensorInfo("F32", s) for name, s in shapes_of(config).items()})
    model = empty_model(config)
    load_weights(model, weights_path)
    return model.eval()


def load_weights(model: GPT, path: Path) -> None:
    """Fill a model, on whatever device, from a file of our key names; CheckpointError as for `load_model`."""
    shapes = {name: TensorInfo("F32", tuple(p.shape)) for name, p in model.named_parameters()}
    check_tensors(str(path), read_header(path), shapes)
    fill(model, path, {name: name for name in shapes})


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of such a model, without making one; CheckpointError for one beyond all memory."""
    try:
        with torch.device("meta"):
            return {name: tuple(p.shape) for name, p in GPT(config, seed=0).named_parameters()}
    except (RuntimeError, OverflowError, TypeError) as error:
        raise CheckpointError(f"a model of {config} cannot be made ({str(error).splitlines()[0]})") from None


def untrained_model(config: PipelineConfig) -> GPT:
    """The random weights that a training of these settings begins with, on the processor, in training mode."""
    return GPT(config.model, seed=config.train.seed)


def empty_model(config: ModelConfig) -> GPT:
    """A float32 CPU model whose weights are still to be filled in; draws no random numbers for them."""
    with torch.device("meta"):
        model = GPT(config, seed=0)
    return model.to_empty(device="cpu").eval()


@torch.no_grad()
def fill(model: GPT, path: Path, names: Mapping[str, str], transposed: Iterable[str] = ()) -> None:
    """Copy tensors of a safetensors file into parameters: `names` maps the file's keys to ours.

    Copied and converted to float32 one at a time: the file is not mapped when this returns, and memory holds one
    extra tensor at most.
    """
    parameters = dict(model.named_parameters())
    turned = set(transposed)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for theirs, ours in names.items():
                tensor: Tensor = file.get_tensor(theirs)
                parameter = parameters[ours]
                parameter.copy_(laid_out_like(tensor.T if theirs in turned else tensor, parameter))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; get the file again") from None


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Name, dtype and shape of every tensor in a safetensors file; CheckpointError where it is damaged.

    safetensors itself lets a later tensor of the same name win, in silence; here it is an error. The tensors must fill
    the file, each byte belonging to one. Cheap whatever the file holds: nothing but a header of at most 1 MB is read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise ValueError(f"it has {size:,} bytes")
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header claims {length:,} bytes")
            entries = json.loads(file.read(length), object_pairs_hook=_unique)
        entries.pop("__metadata__", None)
        _check_offsets(entries, size - 8 - length)
        return {name: TensorInfo(str(info["dtype"]), tuple(info["shape"])) for name, info in entries.items()}
    except FileNotFoundError:
        raise CheckpointError(f"no weights at {path}; give a directory that holds {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); get the file again") from None


def _check_offsets(entries: dict[str, Any], n_bytes: int) -> None:
    """ValueError unless the tensors stand end to end over all `n_bytes`, each as long as its shape and dtype ask."""
    end = 0
    for name, info in sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"]):
        start, stop = info["data_offsets"]
        shape, item = info["shape"], _ITEM_BYTES.get(info["dtype"], 0)
        if not item:
            raise ValueError(f"{name[:80]!r} is of dtype {str(info['dtype'])[:20]!r}, which is none")
        if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 63 for n in (start, stop, *shape)):
            raise ValueError(f"{name[:80]!r} has a shape or offsets that cannot be")
        if start != end:
            raise ValueError(f"{name[:80]!r} begins at byte {start:,}, and the tensor before it ends at {end:,}")
        if stop - start != math.prod(shape) * item:
            raise ValueError(f"{name[:80]!r} has {stop - start:,} bytes, which does not fit its shape and dtype")
        end = stop
    if end != n_bytes:
        raise ValueError(f"its tensors take {end:,} bytes, and it holds {n_bytes:,}")


def check_tensors(where: str, found: Mapping[str, TensorInfo], expected: Mapping[str, TensorInfo]) -> None:
    """Raise one CheckpointError that lists all that differs; an expected dtype of "" admits any."""
    problems = _listed("missing", [name for name in expected if name not in found])
    problems += _listed("unknown", [name for name in found if name not in expected])
    both = [name for name in expected if name in found]
    problems += _listed(
        "of another shape",
        [
            f"{n} {list(found[n].shape)}, not {list(expected[n].shape)}"
            for n in both
            if found[n].shape != expected[n].shape
        ],
    )
    problems += _listed(
        "of another dtype",
        [f"{n} {found[n].dtype}" for n in both if expected[n].dtype not in ("", found[n].dtype)],
    )
    if problems:
        raise CheckpointError(
            f"{where} does not fit the model of its config: {'; '.join(problems)}; get both files again"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; CheckpointError where there is none."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and settings have a few hundred")
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}; give the directory of a model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}; get the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {kind_of(value)}, not the settings of a model; get the file again")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name[:80]!r} stands in it twice")
        result[name] = value
    return result


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return [f"{len(names)} {what}: {', '.join(sorted(names)[:_MAX_NAMED])}{more}"]
