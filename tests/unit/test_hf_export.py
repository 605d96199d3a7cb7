"""Out: what is exported, transformers loads, and what comes back in is the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptmodel.config import ModelConfig
from gptmodel.errors import DataError
from gptmodel.formats.hf_export import export_hf
from gptmodel.model import GPT
from gptmodel.pretrained import import_weights
from gptmodel.store.artifacts import Store, sha256_file
from gptmodel.tokenizer import gpt2
from gptmodel.weights import load_model


def model_of(**changes: object) -> GPT:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "context_length": 32, "vocab_size": 50_257}
    model = GPT(ModelConfig(**{**sizes, **changes}), seed=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return model


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_transformers_computes_the_same(tmp_path: Path, activation: str) -> None:
    model = model_of(activation=activation, layer_norm_eps=1e-4)
    export_hf(model, tmp_path / "out")
    import transformers  # here: seconds, which other processes of tests are spared

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids_BT = torch.randint(50_257, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(ids_BT) - theirs(ids_BT).logits).abs().max() < 1e-4
    assert theirs.config.eos_token_id == gpt2().end_token


def test_transformers_reads_text_as_we_do(tmp_path: Path) -> None:
    export_hf(model_of(), tmp_path / "out")
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("Every effort moves you", " naïve  café\n\n\t日本語 🙂", "I've 1,234 dogs'!", "\n"):
        assert theirs.encode(text) == gpt2().encode(text).tolist()
    assert theirs.encode("<|endoftext|>") == [gpt2().end_token]
    assert theirs.model_max_length == 32


def test_out_and_in_again_are_the_same_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    export_hf(model_of(dropout=0.05, vocab_size=1_000), tmp_path / "one")
    first, _ = import_weights(store, str(tmp_path / "one"))
    export_hf(load_model(first), tmp_path / "two")
    second, _ = import_weights(store, str(tmp_path / "two"))
    assert second.digest == first.digest
    for name in ("config.json", "model.safetensors"):
        assert sha256_file(tmp_path / "two" / name) == sha256_file(tmp_path / "one" / name)
    assert not (tmp_path / "one" / "vocab.json").exists(), "words of another vocabulary are not known"


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_hf(model_of(), tmp_path / "out", card="# A model\n")
    assert (tmp_path / "out" / "README.md").read_text() == "# A model\n"
    with pytest.raises(DataError, match="is there already"):
        export_hf(model_of(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(DataError, match="is there already"):
        export_hf(model_of(), tmp_path / "link")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is no directory"):
        export_hf(model_of(), tmp_path / "file" / "out")
