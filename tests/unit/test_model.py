"""The model against transformers, which nobody here wrote, and against what GPT-2 is known to be."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from gptmodel.config import ModelConfig
from gptmodel.errors import CheckpointError, DataError
from gptmodel.model import GPT
from gptmodel.presets import gpt2_124m, gpt2_355m, gpt2_774m, gpt2_1558m
from gptmodel.pretrained import load_pretrained
from gptmodel.store.artifacts import Request, Store
from gptmodel.weights import load_model, save_model

TINY = ModelConfig(vocab_size=101, context_length=24, n_layer=2, n_head=4, n_embd=32)


@pytest.mark.parametrize(
    ("preset", "count"),
    [(gpt2_124m, 124_439_808), (gpt2_355m, 354_823_168), (gpt2_774m, 774_030_080), (gpt2_1558m, 1_557_611_200)],
)
def test_the_published_sizes_have_the_published_parameter_counts(preset, count):
    with torch.device("meta"):
        model = GPT(preset().model)
    assert model.num_parameters() == count
    embeddings = model.config.n_embd * (model.config.vocab_size + model.config.context_length)
    assert model.num_parameters(embeddings=False) == count - embeddings


def test_a_model_is_made_without_torchs_compiler() -> None:
    """Its import takes seconds, and evaluating or generating would wait for it."""
    program = "import sys; from gptmodel.weights import empty_model; from gptmodel.config import ModelConfig\n"
    program += "empty_model(ModelConfig(n_layer=1, n_embd=12)); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_flops_per_token_of_gpt2_small_by_hand():
    with torch.device("meta"):
        model = GPT(gpt2_124m().model)
    assert model.flops_per_token() == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert model.flops_per_token(256) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 256


@pytest.mark.parametrize(
    ("shape", "activation"),
    [
        ({"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 11, "n_positions": 5}, "gelu_new"),
        ({"n_layer": 3, "n_head": 4, "n_embd": 64, "vocab_size": 257, "n_positions": 40}, "gelu_new"),
        ({"n_layer": 2, "n_head": 3, "n_embd": 48, "vocab_size": 500, "n_positions": 128}, "gelu"),
        ({"n_layer": 4, "n_head": 2, "n_embd": 96, "vocab_size": 1000, "n_positions": 64}, "gelu_pytorch_tanh"),
    ],
)
def test_logits_and_loss_equal_transformers(tmp_path, shape, activation):
    from transformers import GPT2Config, GPT2LMHeadModel  # here: seconds, which other processes of tests are spared

    torch.manual_seed(3)
    theirs = GPT2LMHeadModel(GPT2Config(**shape, activation_function=activation)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and norms too, and large enough to tell formulas apart
            parameter.add_(torch.randn_like(parameter) / math.sqrt(parameter.shape[-1]))
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    ids_BT = torch.randint(shape["vocab_size"], (2, shape["n_positions"]))
    with torch.no_grad():
        expected = theirs(ids_BT, labels=ids_BT)
        assert (ours(ids_BT) - expected.logits).abs().max() < 1e-4
        assert ours(ids_BT[:, :-1], ids_BT[:, 1:]).item() == pytest.approx(expected.loss.item(), abs=1e-5)


def test_initial_weights_are_gpt2s():
    config = ModelConfig(vocab_size=997, context_length=128, n_layer=8, n_head=4, n_embd=128)
    for name, parameter in GPT(config, seed=1).named_parameters():
        if name.endswith("bias"):
            assert parameter.count_nonzero() == 0, name
        elif ".ln_" in name or name.startswith("ln_f"):
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 8) if name.endswith(("attn.proj.weight", "mlp.down.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < std / 20, name


def test_equal_seeds_give_equal_weights_and_other_seeds_others():
    def first(seed=None):
        return GPT(TINY, seed=seed).state_dict()["blocks.1.mlp.down.weight"]

    assert torch.equal(first(5), first(5))
    assert not torch.equal(first(5), first(6))
    torch.manual_seed(9)
    one, two = first(), first()
    torch.manual_seed(9)
    assert torch.equal(one, first())
    assert not torch.equal(one, two)


def test_no_token_sees_a_later_one():
    model = GPT(TINY, seed=0).eval()
    ids_BT = torch.randint(101, (1, 24))
    changed = ids_BT.clone()
    changed[0, 13] = (changed[0, 13] + 1) % 101
    before, after = model(ids_BT), model(changed)
    assert torch.equal(before[0, :13], after[0, :13])
    assert (before[0, 13:] != after[0, 13:]).any(dim=-1).all()


def test_dropout_works_in_training_in_all_three_places_and_not_in_evaluation():
    model = GPT(replace(TINY, dropout=0.5), seed=0)
    ids_BT = torch.randint(101, (1, 24))
    assert not torch.equal(model(ids_BT), model(ids_BT))
    model.eval()
    assert torch.equal(model(ids_BT), model(ids_BT))
    x_BTC = torch.randn(1, 24, 32)
    attention = model.blocks[0].attn
    attention.train()
    attention.residual_dropout.eval()
    assert not torch.equal(attention(x_BTC, None, None), attention(x_BTC, None, None))  # of the attention weights
    model.eval()
    residual = [m for b in model.blocks for m in (b.attn.residual_dropout, b.mlp.residual_dropout)]
    for module in (model.dropout, *residual):
        module.train()
        assert not torch.equal(model(ids_BT), model(ids_BT))
        module.eval()


def test_too_long_a_context_is_a_clear_error():
    with pytest.raises(DataError, match="25 tokens do not fit a context of 24"):
        GPT(TINY)(torch.zeros(1, 25, dtype=torch.int64))


def test_bf16_autocast_stays_near_float32():
    model = GPT(replace(TINY, vocab_size=1009, n_embd=64), seed=2)
    ids_BT, targets_BT = torch.randint(1009, (4, 24)), torch.randint(1009, (4, 24))
    exact = model.loss(ids_BT, targets_BT)
    exact.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(ids_BT, targets_BT)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=2e-3)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-6)
        assert error < 0.03 or wanted[name].norm() < 1e-4, name


def test_saved_weights_load_back_equal_and_their_bytes_do_not_vary(tmp_path):
    model = GPT(replace(TINY, dropout=0.1), seed=4)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_model(model, tmp_path / folder)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_model(tmp_path / "a")
    assert loaded.config == model.config
    assert not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_model_loads_from_an_artifact_through_its_checks(tmp_path):
    model = GPT(TINY, seed=4)
    artifact, _ = Store(tmp_path).produce(Request("checkpoint", 1, {}), lambda d: save_model(model, d) or {})
    assert torch.equal(load_model(artifact).wte.weight, model.wte.weight)
    assert torch.equal(load_pretrained(artifact.path).wte.weight, model.wte.weight)
    path = artifact.path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Exception, match="is damaged"):
        load_model(artifact)


def _save(tmp_path, tensors, config=None):
    from safetensors.torch import save_file

    save_model(GPT(TINY, seed=0), tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_weights_that_do_not_fit_are_listed(tmp_path):
    tensors = {name: value.clone() for name, value in GPT(TINY, seed=0).state_dict().items()}
    del tensors["ln_f.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["wpe.weight"] = torch.zeros(3, 32)
    tensors["ln_f.weight"] = torch.zeros(32, dtype=torch.float16)
    with pytest.raises(CheckpointError) as caught:
        load_model(_save(tmp_path, tensors))
    for part in ("1 missing: ln_f.bias", "1 unknown: extra", "wpe.weight [3, 32], not [24, 32]", "ln_f.weight F16"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "its tensors take 117,888 bytes, and it holds 117,788"),
        (lambda data: data[:5], "not a whole safetensors file"),
        (lambda data: b"", "not a whole safetensors file"),
        (lambda data: b"\xff" * 64, "not a whole safetensors file"),
        (lambda data: data.replace(b'"ln_f.bias"', b'"wte.weight"'[:11]), "not a whole safetensors file"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path, damage, message):
    save_model(GPT(TINY, seed=0), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_tensor_that_stands_twice_is_refused(tmp_path):
    save_model(GPT(replace(TINY, n_layer=11), seed=0), tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    assert data.count(b"blocks.1.ln_1.bias") == 1
    path.write_bytes(data.replace(b"blocks.1.ln_1.bias", b"blocks.2.ln_1.bias"))
    with pytest.raises(CheckpointError, match=r"'blocks.2.ln_1.bias' stands in it twice"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"vocab_size": 101}', "lacks activation"),
        ('{"n_layers": 2}', "n_layers"),
        ('{"n_head": 5, "n_embd": 32}', "not divisible"),
    ],
)
def test_a_wrong_config_file_is_one_clear_error(tmp_path, text, message):
    save_model(GPT(TINY, seed=0), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json in"):
        load_model(tmp_path)
    save_model(GPT(TINY, seed=0), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights at"):
        load_model(tmp_path)


def test_the_head_is_the_token_table():
    model = GPT(TINY, seed=0)
    assert not any("head" in name for name, _ in model.named_parameters())
    model.loss(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)).backward()
    assert (model.wte.weight.grad.abs().sum(dim=1) > 0).all()  # as the head, every token's row learns
    assert isinstance(model.wte, nn.Embedding)
