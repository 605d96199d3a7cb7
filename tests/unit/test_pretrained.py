"""Weights from outside: what transformers wrote, what a hub sends, and all that must be refused."""

import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from gptmodel.config import DecodingConfig, ModelConfig
from gptmodel.errors import CheckpointError, DataError, NetworkError
from gptmodel.generate import generate
from gptmodel.model import GPT
from gptmodel.pretrained import import_weights, load_pretrained
from gptmodel.sampling import choices, penalize_repeated
from gptmodel.store.artifacts import Store
from gptmodel.tokenizer import data_files
from gptmodel.weights import load_model, save_model

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 300, "n_positions": 256}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def theirs_of(seed=0, **changes):
    from transformers import GPT2Config, GPT2LMHeadModel  # here: seconds, which other processes of tests are spared

    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
        model.transformer.wpe.weight.mul_(10.0)  # else it writes the same few tokens over and over
    return model


@pytest.fixture(scope="module")
def theirs():
    return theirs_of()


@pytest.fixture
def saved(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(directory, change):
    tensors = load_file(directory / "model.safetensors")
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def worst(ours, theirs):
    ids_BT = torch.randint(theirs.config.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (ours(ids_BT) - theirs(ids_BT).logits).abs().max().item()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_continuation_of_200_tokens_equals_transformers(theirs, saved, penalty):
    prompt = [7, 8, 9]
    decoding = DecodingConfig(temperature=0.0, max_new_tokens=200, stop_at_end_token=False, repetition_penalty=penalty)
    ids_BT = torch.tensor([prompt])
    wanted = theirs.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=200, do_sample=False,
                             repetition_penalty=penalty, eos_token_id=None, pad_token_id=0)[0, 3:].tolist()  # fmt: skip
    assert len(set(wanted)) > 20
    assert generate(load_pretrained(saved), prompt, decoding=decoding) == wanted


def test_greedy_continuation_of_unequal_prompts_equals_transformers(theirs, saved):
    prompts = [[7, 8, 9], [5], [40, 41, 42, 43, 44, 45]]
    decoding = DecodingConfig(temperature=0.0, max_new_tokens=60, stop_at_end_token=False, repetition_penalty=1.2)
    ids_BT = torch.tensor([[0] * (6 - len(p)) + p for p in prompts])
    mask_BT = torch.tensor([[0] * (6 - len(p)) + [1] * len(p) for p in prompts])
    wanted = theirs.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=60, do_sample=False, eos_token_id=None,
                             repetition_penalty=1.2, pad_token_id=0)[:, 6:].tolist()  # fmt: skip
    assert len({*map(tuple, wanted)}) == 3
    assert generate(load_pretrained(saved), prompts, decoding=decoding) == wanted


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 40},
        {"temperature": 1.5, "top_p": 0.6},
        {"temperature": 2.0, "min_p": 0.05},
        {"temperature": 1.7, "top_k": 60, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.4},
    ],
    ids=str,
)
def test_the_distribution_of_the_next_token_equals_that_of_transformers(theirs, asked):
    """So the filters come in its order, whatever the numbers."""
    ids_BT = torch.tensor([[7, 8, 9, 7, 100, 101]])
    theirs_asked = {"top_k": 0, **asked}
    done = theirs.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=1, do_sample=True,
                           output_scores=True, return_dict_in_generate=True, eos_token_id=None, pad_token_id=0,
                           **theirs_asked)  # fmt: skip
    wanted = torch.softmax(done.scores[0][0].double(), -1)
    decoding = DecodingConfig(**asked)
    with torch.no_grad():
        logits_V = theirs(ids_BT).logits[0, -1]
    seen_V = torch.zeros(len(logits_V), dtype=torch.bool)
    seen_V[ids_BT[0]] = True
    ids, probs = choices(penalize_repeated(logits_V, seen_V, decoding.repetition_penalty), decoding)
    found = torch.zeros_like(wanted).index_put_((ids,), probs)
    assert torch.equal(found > 0, wanted > 0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-9)


def test_sharded_weights_with_an_index(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert worst(load_pretrained(tmp_path), theirs) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_and_is_recorded(tmp_path, dtype):
    theirs = theirs_of().to(dtype)
    theirs.save_pretrained(tmp_path / "hf")
    artifact, _ = import_weights(Store(tmp_path / "store"), str(tmp_path / "hf"))
    assert artifact.summary["dtype"] == str(dtype).removeprefix("torch.")
    ours = load_model(artifact)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert torch.equal(ours.wte.weight, theirs.transformer.wte.weight.float())
    assert worst(ours, theirs.float()) < 1e-4


def test_older_files_with_mask_buffers_without_prefix_and_with_the_head(theirs, saved):
    def change(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 256, 256, dtype=torch.uint8).tril() for layer in (0, 1)}
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()

    edit_tensors(saved, change)
    assert worst(load_pretrained(saved), theirs) < 1e-4


def _without_one(tensors):
    del tensors["transformer.h.1.mlp.c_fc.bias"]


def _with_an_unknown(tensors):
    tensors["score.weight"] = torch.zeros(2, 32)


def _untransposed(tensors):
    tensors["transformer.h.0.mlp.c_fc.weight"] = tensors["transformer.h.0.mlp.c_fc.weight"].T.contiguous()


def _untied(tensors):
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1


def _both_prefixes(tensors):
    tensors["wte.weight"] = tensors["transformer.wte.weight"].clone()


def _integers(tensors):
    tensors["transformer.ln_f.bias"] = torch.zeros(32, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_one, "1 missing: h.1.mlp.c_fc.bias"),
        (_with_an_unknown, "1 unknown: score.weight"),
        (_untransposed, r"h\.0\.mlp\.c_fc\.weight \[128, 32\], not \[32, 128\]"),
        (_untied, "lm_head.weight differs from wte.weight"),
        (_both_prefixes, "wte.weight stands twice"),
        (_integers, "ln_f.bias is I32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(saved, change, message):
    edit_tensors(saved, change)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt_neo"},
        {"activation_function": "relu"},
        {"n_inner": 100},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"tie_word_embeddings": False},
        {"add_cross_attention": True},
        {"quantization_config": {"bits": 4}},
        {"pruned_heads": {"0": [1]}},
        {"attn_pdrop": 0.2},
        {"n_head": 3},
        {"layer_norm_epsilon": -1},
        {"n_layer": "two"},
        {"activation_function": ["gelu"]},
        {"auto_map": {"AutoModelForCausalLM": "theirs.Model"}},
        {"sliding_window": 128},
        {"is_causal": False},  # transformers then lets GPT-2 look ahead
        {"num_hidden_layers": 1},  # transformers then has one layer
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_are_not_computed_are_refused_by_name(saved, changes):
    edit_config(saved, **changes)
    with pytest.raises(DataError, match=next(iter(changes)).replace("layer_norm_epsilon", "layer_norm_eps")):
        load_pretrained(saved)


def test_settings_that_are_computed_are_honoured(tmp_path):
    changes = {"activation_function": "gelu", "layer_norm_epsilon": 0.1, "n_inner": 128}
    theirs = theirs_of(**changes, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3)
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path)
    assert worst(ours, theirs) < 1e-4
    assert (ours.config.activation, ours.config.layer_norm_eps, ours.config.dropout) == ("gelu", 0.1, 0.3)


def test_every_setting_that_transformers_knows_is_known(saved, theirs):
    """Written in full, as older versions did; and what nothing depends on may have any value."""
    theirs.config.to_json_file(saved / "config.json", use_diff=False)
    edit_config(saved, model_type="gpt2", temperature=0.5, n_ctx=7, hidden_size=32, dtype="bfloat16", rope=None)
    assert worst(load_pretrained(saved), theirs) < 1e-4


def test_a_vocabulary_beside_the_weights_must_be_gpt2s(saved):
    words = json.loads(data_files()["encoder.json"].read_text())
    (saved / "vocab.json").write_text(json.dumps(words, indent=1))  # written anew by some tool
    load_pretrained(saved)
    (saved / "vocab.json").write_text(json.dumps({**words, "new": 50257}))
    with pytest.raises(DataError, match=r"vocab\.json is not GPT-2's vocabulary"):
        load_pretrained(saved)


def test_pickles_are_refused_with_a_hint(saved):
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model.bin, a pickle.*never loaded; convert it"):
        load_pretrained(saved)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "weights.bin"])
def test_an_index_may_name_only_safetensors_beside_it(saved, name):
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    with pytest.raises(CheckpointError, match=r"not a .safetensors file beside it"):
        load_pretrained(saved)


def test_an_index_that_disagrees_with_the_files_is_refused(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["transformer.ln_f.bias"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"disagree about transformer.ln_f.bias"):
        load_pretrained(tmp_path)


def test_a_damaged_file_is_one_clear_error(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="get the file again"):
        load_pretrained(saved)


def test_our_own_directory_loads_and_is_not_imported(tmp_path):
    model = GPT(ModelConfig(vocab_size=50, context_length=8, n_layer=1, n_head=1, n_embd=8), seed=1)
    save_model(model, tmp_path)
    assert torch.equal(load_pretrained(str(tmp_path)).wte.weight, model.wte.weight)
    with pytest.raises(DataError, match="already in this project's own layout"):
        import_weights(Store(tmp_path / "store"), str(tmp_path))


def test_the_artifact_is_named_by_what_was_read_and_not_by_where(saved, tmp_path, theirs):
    store = Store(tmp_path / "store")
    artifact, reused = import_weights(store, str(saved))
    assert not reused
    assert worst(load_model(artifact), theirs) < 1e-4
    assert artifact.names() == ["config.json", "model.safetensors"]
    assert artifact.summary["n_params"] == sum(p.numel() for p in theirs.parameters())
    assert artifact.summary["files"].keys() == {"config.json", "model.safetensors"}
    shutil.copytree(saved, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "README.md").write_text("not a part of the model")
    seen = []
    again, reused = import_weights(store, str(tmp_path / "elsewhere"), progress=lambda *a: seen.append(a))
    assert reused
    assert again.path == artifact.path
    assert seen[-1][0] == seen[-1][1] > 0
    assert str(tmp_path) not in json.dumps([artifact.request.config, artifact.summary])
    edit_tensors(saved, lambda tensors: tensors["transformer.ln_f.bias"].add_(1))
    other, reused = import_weights(store, str(saved))
    assert not reused
    assert other.path != artifact.path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere/at/all", "there is no directory ./nowhere/at/all"),
        ("/nowhere", "there is no directory /nowhere"),
        ("", "there is no directory|config.json"),
    ],
)
def test_a_missing_directory_is_a_clear_error(tmp_path, source, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DataError, CheckpointError), match=message):
        load_pretrained(source)


def test_a_file_or_a_revision_of_a_directory_is_a_clear_error(saved):
    with pytest.raises(DataError, match="is a file; give the directory"):
        load_pretrained(saved / "model.safetensors")
    with pytest.raises(DataError, match="leave it out"):
        load_pretrained(saved, revision="main")


class Hub:
    """As much of the hub's HTTP interface as a download needs, on loopback: one repository, ORG/gpt, one commit."""

    def __init__(self, files: Path):
        self.files, self.status, self.headers, self.asked = files, 0, {}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append(self.path)
                status, headers, body = hub.answer(self.path)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path):
        if self.status:
            return self.status, self.headers, b"{}"
        path = path.partition("?")[0]
        names = sorted(p.name for p in self.files.iterdir())
        as_json = {"Content-Type": "application/json"}
        if match := re.fullmatch(r"/api/models/ORG/gpt(?:/revision/(.+))?", path):
            if match[1] not in (None, "main", "v1", COMMIT):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
            body = {"id": "ORG/gpt", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            return 200, as_json, json.dumps(body).encode()
        if path.startswith("/api/models/ORG/gpt/tree/"):
            listed = [{"type": "file", "path": n, "size": (self.files / n).stat().st_size, "oid": n} for n in names]
            return 200, as_json, json.dumps(listed).encode()
        if match := re.fullmatch(rf"/ORG/gpt/resolve/{COMMIT}/([\w.-]+)", path):
            return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{match[1]}"'}, (self.files / match[1]).read_bytes()
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    server = Hub(saved)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # as an import in another test left it
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_a_repository_is_downloaded_and_recorded_with_its_commit(hub, theirs, tmp_path):
    (hub.files / "pytorch_model.bin").write_bytes(b"never fetched")
    artifact, _ = import_weights(Store(tmp_path / "store"), "ORG/gpt", revision="v1")
    assert worst(load_model(artifact), theirs) < 1e-4
    assert artifact.request.config == {"source": "ORG/gpt", "revision": COMMIT, "format": "hf"}
    assert import_weights(Store(tmp_path / "store"), "ORG/gpt@v1") == (artifact, True)
    assert not any("pytorch_model.bin" in path for path in hub.asked if "resolve" in path)
    assert import_weights(Store(tmp_path / "store"), "ORG/gpt")[1]  # main is the same commit


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("ORG/none", "", "there is no repository ORG/none"),
        ("ORG/gpt", "v9", "ORG/gpt has no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_a_data_error(hub, repo, revision, message):
    with pytest.raises(DataError, match=message):
        load_pretrained(repo, revision=revision)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_time_may_heal_is_a_network_error(hub, status):
    hub.status, hub.headers = status, {"Retry-After": "0"}
    with pytest.raises(NetworkError) as caught:
        load_pretrained("ORG/gpt")
    assert str(status) in str(caught.value)
    assert caught.value.retry_after == 0


def test_a_refusal_is_a_data_error(hub):
    hub.status = 403
    with pytest.raises(DataError, match="403"):
        load_pretrained("ORG/gpt")


def test_no_server_is_a_network_error(hub):
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(NetworkError, match="did not answer"):
        load_pretrained("ORG/gpt")


def test_offline_and_not_in_the_cache_is_told(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        load_pretrained("ORG/gpt")
    assert not hub.asked


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Real trained weights of GPT-2's architecture (PyPI microformer-mgm, MIT), converted to safetensors here."""
    folder = tmp_path_factory.mktemp("mgm")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), "microformer-mgm==0.5.8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot get microformer-mgm 0.5.8: {done.stderr.strip().splitlines()[-1:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for name in ("config.json", "pytorch_model.bin"):
            (folder / name).write_bytes(wheel.read(f"mgm/resources/general_model/{name}"))
    state = torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")
    kept = {name: value.contiguous() for name, value in state.items() if name != "lm_head.weight"}
    assert torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_real_trained_weights_equal_transformers(trained):
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(trained).eval()
    ours = load_pretrained(trained)
    ids_BT = torch.randint(9669, (4, 512), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (ours(ids_BT) - theirs(ids_BT).logits).abs().max().item()
    print(f"largest difference of a logit: {difference:.2e}")
    assert difference < 1e-4
    decoding = DecodingConfig(temperature=0.0, max_new_tokens=200, stop_at_end_token=False)
    prompt = torch.tensor([[2]])
    wanted = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, do_sample=False,
                             eos_token_id=None, pad_token_id=0)[0, 1:].tolist()  # fmt: skip
    assert generate(ours, [2], decoding=decoding) == wanted
