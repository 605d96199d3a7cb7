"""The model as MLflow serves it: prompts and decoding settings over HTTP, and what is wrong is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from gptmodel.config import DecodingConfig, ModelConfig
from gptmodel.formats.hf_export import export_hf
from gptmodel.model import GPT
from gptmodel.pretrained import import_weights
from gptmodel.store.artifacts import Store
from gptmodel.weights import load_model
from gptmodel.writing import continue_texts

PATIENCE_SECONDS = 240


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("served")
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, context_length=64), seed=1)
    with torch.no_grad():
        model.wte.weight.mul_(20)  # else it writes one word over and over
    export_hf(model, folder / "theirs")
    artifact, _ = import_weights(Store(folder / "store"), str(folder / "theirs"))
    return artifact


@pytest.fixture(scope="module")
def served(weights: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from tasks.tracking.serving import save_served_model

    folder = tmp_path_factory.mktemp("server")
    save_served_model(folder / "model", weights)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "model"), "-p", str(port)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts uvicorn by name
    env = {
        **os.environ,
        "PATH": path,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local", "-w", "1"], cwd=folder, env=env, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, server, folder / "log")
        yield url
    finally:
        if server.poll() is None:
            for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
                process.kill()
        server.wait()


def _await(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    began = time.monotonic()
    while server.poll() is None and time.monotonic() - began < PATIENCE_SECONDS:
        try:
            with urllib.request.urlopen(f"{url}/ping", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


def ask(url: str, prompts: list[str], **params: Any) -> tuple[int, Any]:
    body = {"dataframe_split": {"columns": ["prompt"], "data": [[prompt] for prompt in prompts]}, "params": params}
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


PROMPTS = ["The harbour", "My fellow citizens, and many more words"]


@pytest.mark.timeout(400)
def test_prompts_are_continued_as_the_settings_say(served: str, weights: Any) -> None:
    model = load_model(weights)
    for params in (
        {"temperature": 0.0, "max_new_tokens": 5},
        {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 3, "max_new_tokens": 12, "stop_at_end_token": False},
        {"temperature": 1.5, "min_p": 0.05, "repetition_penalty": 1.7, "max_new_tokens": 12},
        {},
    ):
        status, rows = ask(served, PROMPTS, **params)
        assert status == 200, rows
        assert [row["text"] for row in rows] == continue_texts(model, PROMPTS, DecodingConfig(**params))
        assert [row["prompt"] for row in rows] == PROMPTS
    free = continue_texts(model, PROMPTS[:1], DecodingConfig(temperature=0.0, max_new_tokens=20))[0]
    status, rows = ask(served, PROMPTS[:1], temperature=0.0, max_new_tokens=20, stop=[free[8:12]])
    assert (status, rows[0]["text"]) == (200, free[: free.index(free[8:12])])


@pytest.mark.timeout(400)
def test_wrong_settings_are_refused_by_name(served: str) -> None:
    status, said = ask(served, PROMPTS, temperature="warm")
    assert status == 400
    assert "temperature" in said
    status, said = ask(served, PROMPTS, top_p=7.0)
    assert status in (400, 500)
    assert "top_p is 7.0; give a share above 0 and up to 1" in said
    request = urllib.request.Request(
        f"{served}/invocations", b'{"inputs": {"words": ["x"]}}', {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 400
    assert "prompt" in caught.value.read().decode()
