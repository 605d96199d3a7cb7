"""The small pipeline that `chaos.py` kills: its text, its server, the weights it starts from, and its flow process.

python tests/chaos_pipeline.py '["name=value", ...]'
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MAX_STEPS, EVAL_EVERY = 40, 5


class SlowServer(BaseHTTPRequestHandler):
    """Serves one file slowly enough to be killed meanwhile, and goes on where it is asked to."""

    file: Path

    def do_GET(self) -> None:
        data = self.file.read_bytes()
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(416 if asked and start >= len(data) else 206 if asked else 200)
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(max(0, len(data) - start)))
        self.end_headers()
        for at in range(start, len(data), 8192):
            try:
                self.wfile.write(data[at : at + 8192])
            except OSError:
                return  # the other side was killed
            time.sleep(0.005)

    def log_message(self, *_: Any) -> None:
        pass


def write_corpus(path: Path) -> None:
    draw = random.Random(1)
    words = [f"{a}{b}" for a in ("har", "mill", "ri", "cle", "far") for b in ("bour", "er", "ver", "rk", "mer")]
    with path.open("w") as file:
        for number in range(200):
            text = f"Document {number}. " + " ".join(draw.choice(words) for _ in range(400))
            file.write(json.dumps({"text": text}) + "\n")


def write_gpt2(directory: Path) -> None:
    """A GPT-2 of random numbers in Hugging Face's layout."""
    import torch
    from safetensors.torch import save_file

    c, shape = 16, {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 50257}
    sizes = {"wte.weight": (50257, c), "wpe.weight": (32, c), "ln_f.weight": (c,), "ln_f.bias": (c,)}
    for layer in range(2):
        for name, wide in (("attn.c_attn", 3 * c), ("attn.c_proj", c), ("mlp.c_fc", 4 * c), ("mlp.c_proj", c)):
            rows = 4 * c if name == "mlp.c_proj" else c
            sizes |= {f"h.{layer}.{name}.weight": (rows, wide), f"h.{layer}.{name}.bias": (wide,)}
        sizes |= {f"h.{layer}.{name}.{part}": (c,) for name in ("ln_1", "ln_2") for part in ("weight", "bias")}
    torch.manual_seed(1)
    directory.mkdir()
    save_file({name: torch.randn(*size) * 0.1 for name, size in sizes.items()}, directory / "model.safetensors")
    fixed = {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    (directory / "config.json").write_text(json.dumps({**fixed, **shape}))


def settings(url: str, sha256: str, weights: Path) -> list[str]:
    return [
        "name=chaos",
        f"init_from={weights}",
        "corpus.source.kind=http",
        f"corpus.source.paths=['{url}']",
        f"corpus.source.sha256=['{sha256}']",
        "corpus.source.allow_private_addresses=true",
        "shards.shard_bytes=20000",
        "model.dropout=0.1",
        f"train.max_steps={MAX_STEPS}",
        "train.batch_size=4",
        "train.micro_batch_size=2",
        f"train.eval_every={EVAL_EVERY}",
        "train.eval_tokens=512",
        "train.checkpoint_every=3",
        "train.precision=float32",
        "train.device=cpu",
        "train.threads=1",
        "train.sample.max_new_tokens=4",
        "evaluate.max_tokens=2048",
    ]


def chain(sets: list[str]) -> None:
    """What the flow process of `plain` does."""
    from gptmodel.pretraining.step import plan_training, pretrain
    from gptmodel.settings import load_config
    from gptmodel.store.artifacts import open_store
    from gptmodel.text.corpus import build_corpus
    from gptmodel.tokens.shards import build_shards

    store, config = open_store(), load_config("smoke", sets=sets)
    corpus, _ = build_corpus(store, config.corpus)
    shards, _ = build_shards(store, corpus, config.shards)
    from gptmodel.pretrained import import_weights  # torch takes seconds to import: late, as tasks do it

    init, _ = import_weights(store, config.init_from)
    model, _ = pretrain(store, plan_training(store, config, shards, init), on_line=partial(print, flush=True))
    from gptmodel.judging.evaluation import evaluate

    evaluate(store, model, shards, config.evaluate)


@contextmanager
def served(file: Path) -> Iterator[str]:
    handler = type("Handler", (SlowServer,), {"file": file})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/{file.name}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    chain(json.loads(sys.argv[1]))
