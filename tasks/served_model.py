"""The model that MLflow keeps and serves: prompts in, continuations out. MLflow runs this file; nothing is pickled."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from gptmodel.config import DecodingConfig
from gptmodel.settings import parse_config


class GPTModel(PythonModel):
    """Takes a table with a column `prompt`; decoding settings come as params. Gives `prompt` and `text`."""

    def load_context(self, context: Any) -> None:
        from pathlib import Path

        from gptmodel.tokenizer import gpt2
        from gptmodel.weights import load_model

        self._model = load_model(Path(context.artifacts["weights"])).eval()
        self._tokenizer = gpt2()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        from gptmodel.generate import generate

        decoding = parse_config(params or {}, DecodingConfig)
        texts = []
        for prompt in model_input["prompt"]:
            ids = self._tokenizer.encode(prompt).tolist()
            texts.append(self._tokenizer.decode(generate(self._model, ids, decoding=decoding)))
        return pd.DataFrame({"prompt": list(model_input["prompt"]), "text": texts})


set_model(GPTModel())
