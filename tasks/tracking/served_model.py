"""The model that MLflow keeps and serves: prompts in, continuations out. MLflow runs this file; nothing is pickled."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from gptmodel.config import DecodingConfig
from gptmodel.errors import ConfigError
from gptmodel.settings import parse_config

_CACHE_BYTES = 2_000_000_000  # of keys and values, float32: what rows that are written together may take
_CONTEXTS = 4  # times the context: the longest text, so that one request cannot hold a worker for ever


class GPTModel(PythonModel):
    """Takes a table with a column `prompt`; decoding settings come as params. Gives `prompt` and `text`."""

    def load_context(self, context: Any) -> None:
        from pathlib import Path

        from gptmodel.device import pick_device
        from gptmodel.weights import load_model

        self._model = load_model(Path(context.artifacts["weights"])).to(pick_device("auto")).eval()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        from gptmodel.writing import continue_texts

        given = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in (params or {}).items()}
        decoding, prompts = parse_config(given, DecodingConfig), list(model_input["prompt"])
        config = self._model.config
        if decoding.max_new_tokens > (most := _CONTEXTS * config.context_length):
            raise ConfigError(f"max_new_tokens is {decoding.max_new_tokens:,}; give at most {most:,}")
        rows = max(1, _CACHE_BYTES // (8 * config.n_layer * config.n_embd * config.context_length))
        texts: list[str] = []
        for start in range(0, len(prompts), rows):
            texts += continue_texts(self._model, prompts[start : start + rows], decoding, row=start)
        return pd.DataFrame({"prompt": prompts, "text": texts})


set_model(GPTModel())
