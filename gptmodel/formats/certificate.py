"""What can be said of imported weights, so that anybody can check it: hashes of all tensors, and logits on fixed ids.

It stands in the manifest of the weights, and not in their content digest: equal weights are equal, wherever they came
from. Logits are those of this processor: another differs by rounding.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from gptmodel.config import GPT2_VOCAB_SIZE
from gptmodel.errors import first_line
from gptmodel.model import GPT
from gptmodel.tokenizer import gpt2
from gptmodel.words import size

log = logging.getLogger(__name__)
PROMPTS = ("Every effort moves you", "The capital of France is")
TOLERANCE = 1e-4
"""Largest difference of a logit from transformers' that counts as equal."""
_TOP = 5
_RANDOM_IDS = 64


@torch.no_grad()
def certify(model: GPT) -> dict[str, Any]:
    """Parameters, sha256 of every tensor (float32, as stored), logits on fixed ids, and the distance to transformers.

    `model` is on the CPU in eval mode. `transformers.largest_difference` is None, with a reason, where that library is
    not installed or cannot take the model.
    """
    return {
        "n_params": model.num_parameters(),
        "tensors": {
            name: {"shape": list(tensor.shape), "sha256": _sha256(tensor)} for name, tensor in model.named_parameters()
        },
        "logits": [_logits(model, name, ids) for name, ids in fixed_ids(model).items()],
        "transformers": compare_with_transformers(model),
    }


def fixed_ids(model: GPT) -> dict[str, list[int]]:
    """Token ids by what they are: two prompts where the vocabulary is GPT-2's, and a row of drawn ids for any."""
    config = model.config
    draw = np.random.default_rng(0)
    length = min(_RANDOM_IDS, config.context_length)
    found = {f"{length} drawn ids": draw.integers(0, config.vocab_size, length).tolist()}
    if config.vocab_size == GPT2_VOCAB_SIZE:
        found = {text: gpt2().encode(text).tolist()[:length] for text in PROMPTS} | found
    return found


def _logits(model: GPT, name: str, ids: list[int]) -> dict[str, Any]:
    logits_V = model(torch.tensor([ids]))[0, -1].float()
    best = torch.topk(logits_V, min(_TOP, len(logits_V)))
    return {
        "prompt": name,
        "ids": ids,
        "top": [[int(i), round(float(v), 4)] for v, i in zip(best.values, best.indices, strict=True)],
        "mean": round(float(logits_V.mean()), 6),
        "sha256": _sha256(logits_V),
    }


def compare_with_transformers(model: GPT) -> dict[str, Any]:
    """Version and largest absolute difference of any logit on the fixed ids, all positions."""
    if importlib.util.find_spec("transformers") is None:
        return _not_compared("transformers is not installed")
    needed = 2.2 * 4 * model.num_parameters()  # their copy, and the file that it is read from
    if psutil.virtual_memory().available < needed:
        return _not_compared(f"it would take {size(needed)} of memory")
    try:
        version, worst = _distance(model)
    except Exception as error:  # another library's business is no reason to fail an import
        return _not_compared(first_line(error))
    if not math.isfinite(worst):
        return _not_compared("its logits are not finite")
    if worst > TOLERANCE:
        log.warning("logits differ from transformers' by up to %.1e; up to %.0e is rounding", worst, TOLERANCE)
    return {"version": version, "largest_difference": worst}


def _not_compared(reason: str) -> dict[str, Any]:
    log.warning("not compared with transformers: %s", reason)
    return {"largest_difference": None, "reason": reason}


def _distance(model: GPT) -> tuple[str, float]:
    from gptmodel.formats.hf_export import write_hf_model

    transformers: Any = importlib.import_module("transformers")  # optional, and without types
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="gptflow-certificate-") as temporary:
        write_hf_model(model, Path(temporary))
        theirs = transformers.GPT2LMHeadModel.from_pretrained(temporary, dtype=torch.float32).eval()
    found = []
    for ids in fixed_ids(model).values():
        ids_BT = torch.tensor([ids])
        found.append((model(ids_BT) - theirs(ids_BT).logits).abs().max())
    return str(transformers.__version__), float(torch.stack(found).max())  # of torch: a NaN stays one


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
