"""One GGUF file: read back tensor by tensor with the gguf package, and computed by transformers from the file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from gptmodel.config import ModelConfig
from gptmodel.errors import DataError
from gptmodel.formats.gguf_export import export_gguf
from gptmodel.model import GPT
from gptmodel.tokenizer import gpt2


def model_of(**changes: object) -> GPT:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 32, "vocab_size": 50_257}
    model = GPT(ModelConfig(**{**sizes, **changes}), seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return model


@pytest.mark.slow
def test_another_reader_computes_the_same_from_the_file(tmp_path: Path) -> None:
    import transformers

    model = model_of(context_length=1024)  # transformers takes no other from such a file
    export_gguf(model, tmp_path / "it.gguf", name="it")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="it.gguf", dtype=torch.float32)
    ids_BT = torch.randint(50_257, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(ids_BT) - theirs.eval()(ids_BT).logits).abs().max() < 1e-4


def test_the_file_holds_every_tensor_and_the_vocabulary(tmp_path: Path) -> None:
    model = model_of()
    export_gguf(model, tmp_path / "it.gguf", name="it")
    reader = gguf.GGUFReader(tmp_path / "it.gguf")
    parameters = dict(model.named_parameters())
    assert len(reader.tensors) == len(parameters)
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    up = parameters["blocks.1.mlp.up.weight"].detach().numpy()
    assert np.array_equal(found["blk.1.ffn_up.weight"].reshape(up.shape), up)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == gpt2().vocab_size
    assert tokens[gpt2().encode(" dog")[0]] == "Ġdog"
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == gpt2().end_token


def test_what_llama_cpp_would_not_compute_is_refused(tmp_path: Path) -> None:
    for changes, said in (({"vocab_size": 300}, "300 tokens"), ({"activation": "gelu"}, "exact one")):
        with pytest.raises(DataError, match=said):
            export_gguf(model_of(**changes), tmp_path / "it.gguf", name="it")
    (tmp_path / "it.gguf").write_text("mine")
    with pytest.raises(DataError, match="is there already"):
        export_gguf(model_of(), tmp_path / "it.gguf", name="it")
    assert [path.name for path in tmp_path.iterdir()] == ["it.gguf"]
