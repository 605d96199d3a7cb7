"""Standard tasks through EleutherAI's harness (`lm-eval`), with a model of ours as one of its models.

This module needs the harness, which is an extra: `gptmodel.judging.benchmark` imports it when it is there. The harness
loads the tasks, makes the requests, and turns answers into metrics; what a request is answered with is decided in
`gptmodel.judging.likelihood` and `gptmodel.judging.until`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window

from gptmodel.config import BenchmarkConfig
from gptmodel.errors import ConfigError, DataError, GptflowError, NetworkError, first_line
from gptmodel.judging.benchmark import portable
from gptmodel.judging.likelihood import Continuation, score_continuations
from gptmodel.judging.until import decoding_of, write_until
from gptmodel.model import GPT
from gptmodel.progress import Progress
from gptmodel.tokenizer import END_TOKEN, gpt2

log = logging.getLogger(__name__)
logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of its own defaults, a page for each run
OWN_TASKS = Path(__file__).parent / "speeches"
_END_TEXT = "<|endoftext|>"
_MAX_GEN_TOKENS = 256  # of the Hugging Face backend, where a task does not say


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A GPT as the harness asks for it: log-likelihoods of continuations and whole texts, and writing up to a stop.

    Texts are encoded as the tokenizers of `transformers` do it: a literal `<|endoftext|>` is the end token.
    """

    def __init__(self, model: GPT, *, batch_size: int, seed: int = 0, progress: Progress | None = None) -> None:
        super().__init__()
        self._model, self._batch_size, self._seed, self._progress = model, batch_size, seed, progress

    @property
    def eot_token_id(self) -> int:
        """Stands before texts that have nothing before them, as in training."""
        return END_TOKEN

    @property
    def max_length(self) -> int:
        return self._model.config.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        first, *others = string.split(_END_TEXT)
        ids: list[int] = gpt2().encode(first).tolist()
        for part in others:
            ids += [END_TOKEN, *gpt2().encode(part).tolist()]
        return ids

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        wanted = [Continuation(tuple(context), tuple(ids)) for _, context, ids in requests]
        return [(found.log_probability, found.greedy) for found in self._score(wanted)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Of whole texts, in windows of the context's length that do not overlap but for the last one."""
        wanted, owners = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, ids in map(make_disjoint_window, windows):
                wanted.append(Continuation(tuple(context), tuple(ids)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, found in zip(owners, self._score(wanted), strict=True):
            totals[number] += found.log_probability
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Texts in the requests' order; those with the same settings are written together."""
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts = [""] * len(requests)
        for settings, numbers in alike.items():
            asked = normalize_gen_kwargs(json.loads(settings), _MAX_GEN_TOKENS)
            until = handle_stop_sequences(asked["until"], eos=_END_TEXT)
            prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
            decoding = decoding_of(asked, self._seed)
            written = write_until(
                self._model, prompts, decoding, until, batch_size=self._batch_size, progress=self._progress
            )
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
        return texts

    def _score(self, wanted: list[Continuation]) -> list[Any]:
        return score_continuations(self._model, wanted, batch_size=self._batch_size, progress=self._progress)


class _Loaded(TaskManager):  # type: ignore[misc]
    """A task manager that loads its tasks once: they are looked at before they are run."""

    def __init__(self, include: list[str], *, defaults: bool) -> None:
        super().__init__(include_path=include, include_defaults=defaults)
        self.loaded: dict[str, Any] = {}

    def load(self, task_list: Any) -> dict[str, Any]:
        self.loaded = self.loaded or super().load(task_list)
        return self.loaded


@dataclass(frozen=True)
class Tasks:
    """Tasks with their documents at hand."""

    names: list[str]
    """As asked for: tasks, groups and tags."""
    manager: _Loaded
    config: BenchmarkConfig

    def described(self) -> dict[str, dict[str, Any]]:
        """Of each task what decides its figures: version, a digest of its settings, and one of its documents."""
        return {name: self._described(task) for name, task in sorted(self.manager.loaded["tasks"].items())}

    def _described(self, task: Any) -> dict[str, Any]:
        settings = portable(task.dump_config())
        documents = list(islice(task.eval_docs, self.config.limit or None))
        shots = task.config.num_fewshot if self.config.fewshot is None else self.config.fewshot
        return {
            "version": task.VERSION,
            "settings": _digest(settings),
            "documents": _digest(documents),
            "n": len(documents),
            "examples": _digest(list(task.fewshot_docs())) if shots else "",
        }


def version() -> str:
    return str(lm_eval.__version__)


def load_tasks(config: BenchmarkConfig) -> Tasks:
    """The tasks that a config names, with their documents.

    ConfigError for a name that no task has. NetworkError where the hub is out of reach, DataError for a task that
    cannot be loaded.
    """
    include = [str(OWN_TASKS)]
    if config.include_path:
        if not Path(config.include_path).is_dir():
            raise ConfigError(
                f"include_path {config.include_path!r} is no directory; give one that holds tasks as YAML"
            )
        include.append(config.include_path)
    with _quiet():
        manager = _Loaded(include, defaults=False)
        if not set(config.tasks) <= set(manager.all_tasks):
            manager = _Loaded(include, defaults=True)  # thousands of files: seven seconds of a processor
        names = _known(config.tasks, manager)
        with _told(f"cannot load {', '.join(names)}"):
            manager.load(names)
    return Tasks(names, manager, config)


def _known(wanted: tuple[str, ...], manager: TaskManager) -> list[str]:
    """The names that are meant, with patterns spelled out."""
    problems = []
    for name in wanted:
        if not manager.match_tasks([name]):
            near = get_close_matches(name, manager.all_tasks, 1)
            said = f" (did you mean {near[0]}?)" if near else ""
            problems.append(f"no task {name!r}{said}; `lm-eval ls tasks` lists those of the harness")
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(found for name in wanted for found in manager.match_tasks([name])))


def run_tasks(model: GPT, tasks: Tasks, progress: Progress | None = None) -> dict[str, Any]:
    """The harness's own results, samples and all. DataError where a task cannot be run."""
    config = tasks.config
    lm = HarnessModel(model, batch_size=config.batch_size, seed=config.seed, progress=progress)
    with _quiet(), _told(f"cannot run {', '.join(tasks.names)}"):
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=lm,
            tasks=tasks.names,
            task_manager=tasks.manager,
            num_fewshot=config.fewshot,
            limit=config.limit or None,
            gen_kwargs=config.gen_kwargs or None,
            bootstrap_iters=config.bootstrap_iters,
        )
    return found


def plain(value: Any) -> Any:
    """Of a result what JSON can say."""
    return json.loads(json.dumps(value, default=handle_non_serializable, ensure_ascii=False))


@contextmanager
def _quiet() -> Iterator[None]:
    """Its prints go where its bars go: standard output is for results. And it forks no processes for its bootstrap."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What goes wrong in a task, in one line: its authors raise whatever they like."""
    try:
        yield
    except GptflowError:
        raise
    except ConnectionError as error:
        raise NetworkError(f"{what}: {first_line(error)}") from error
    except Exception as error:
        log.debug("%s", what, exc_info=True)
        raise DataError(f"{what}: {type(error).__name__}: {first_line(error)}") from error


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=handle_non_serializable, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
