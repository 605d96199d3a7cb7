"""A rating round: prompts, what each model makes of them, and planted checks, as an artifact that nobody changes.

Each prompt is continued by every model with the same decoding and the same random numbers. Raters see a text by an id
that says nothing, in an order of their own; which model wrote it stands in the round's file alone.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from gptmodel.config import DecodingConfig, recipe
from gptmodel.errors import ArtifactError, ConfigError
from gptmodel.progress import Progress
from gptmodel.rating.passages import Passage, draw_passages, word_salad
from gptmodel.store.artifacts import Artifact, Request, Store, write_atomic

KIND = "rating-round"
RECIPE_VERSION = 1
ITEMS = "items.jsonl"
_BATCH = 16  # prompts continued at once
_MOST_TEXTS = 1_000  # a person rates about one a minute


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """What is put before raters."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "use_attribute_docstrings": True}

    prompts: tuple[str, ...] = ()
    """Beginnings of your own, continued by every model."""
    from_validation: int = 10
    """Beginnings drawn from documents of the validation split, besides your own."""
    prompt_words: int = 30
    """Length of a drawn beginning."""
    checks: int = 2
    """Real passages, and as many word salads, planted among the texts; 0 plants none, and then nobody is flagged."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How every model writes."""
    seed: int = 0
    """Of the choice of passages, the salads and the ids; another seed is another round."""

    def __post_init__(self) -> None:
        problems = [
            (self.from_validation < 0, f"from_validation is {self.from_validation}; give 0 or more"),
            (not self.prompts and self.from_validation == 0, "there are no prompts; give some, or from_validation"),
            (any(not p.strip() for p in self.prompts), "a prompt is empty; leave it out"),
            (len(set(self.prompts)) < len(self.prompts), "a prompt is given twice; leave one out"),
            (self.prompt_words < 1, f"prompt_words is {self.prompt_words}; give at least 1"),
            (not 0 <= self.checks <= 20, f"checks is {self.checks}; give 0 to 20"),
            (self.from_validation + len(self.prompts) > _MOST_TEXTS, f"more than {_MOST_TEXTS} prompts; give fewer"),
        ]
        if found := [f"RoundConfig: {message}" for wrong, message in problems if wrong]:
            raise ConfigError(found)


@dataclass(frozen=True)
class Item:
    """One text to rate."""

    id: str
    prompt: str
    text: str
    """What comes after the prompt."""
    kind: Literal["model", "real", "salad"]
    model: int
    """Which of the round's models wrote it; -1 for a check."""
    passage: int
    """Texts of one number have the same prompt."""
    document: str
    """Where the prompt is from; empty for one of your own."""


def build_round(
    store: Store,
    models: Sequence[Artifact],
    corpus: Artifact | None,
    config: RoundConfig,
    *,
    wait: bool = False,
    progress: Progress | None = None,
) -> tuple[Artifact, bool]:
    """(round artifact, reused). Its inputs are the models, in order, and the corpus if passages are drawn from it.

    ConfigError for models given twice, or none, or for passages without a corpus; DataError as from `draw_passages`,
    and for a prompt outside a model's vocabulary.
    """
    if not models:
        raise ConfigError("a round needs a model")
    digests = [model.digest for model in models]
    if twice := [model.label for model in models if digests.count(model.digest) > 1]:
        raise ConfigError(f"{' and '.join(dict.fromkeys(twice))}: the same model twice; give each model once")
    drawn = config.from_validation + 2 * config.checks
    if drawn and corpus is None:
        raise ConfigError("no corpus to draw passages from; name one, or set from_validation=0 and checks=0")
    inputs = (*(model.ref for model in models), *((corpus.ref,) if corpus is not None and drawn else ()))
    request = Request(KIND, RECIPE_VERSION, recipe(config), inputs)

    def build(directory: Path) -> dict[str, Any]:
        items = list(_items(models, corpus, config, request.fingerprint, progress))
        lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items]
        write_atomic(directory / ITEMS, "".join(lines))
        return {
            "texts": len(items),
            "prompts": len({item.passage for item in items if item.kind == "model"}),
            "models": len(models),
            "checks": sum(item.kind != "model" for item in items),
        }

    return store.produce(request, build, wait=wait)


def read_items(found: Artifact) -> list[Item]:
    """All texts of a round, as they stand in its file. ArtifactError for what is no round, or a damaged one."""
    if found.kind != KIND:
        raise ArtifactError(f"{found.label} is a {found.kind}, and a rating-round is needed; see `gptflow rate status`")
    return [Item(**json.loads(line)) for line in found.file(ITEMS).read_bytes().splitlines()]


def models_of(found: Artifact) -> list[str]:
    """Labels of the models of a round, or of its ratings, in the order in which they were given."""
    return [ref.label for ref in found.request.inputs if ref.kind in ("checkpoint", "weights")]


def in_order(found: Artifact, rater: int, items: Sequence[Item]) -> list[Item]:
    """The texts in the order of this rater: its own for each, the same every time."""
    order = sorted(items, key=lambda item: item.id)
    random.Random(f"{found.digest} {rater}").shuffle(order)
    return order


def find_round(store: Store, name: str = "") -> Artifact:
    """The named round; without a name the one that was made last. ArtifactError if there is none."""
    if name:
        return store.resolve(name, KIND)
    rounds = [store.at(KIND, path.name) for path in store.directories(KIND)]
    if not rounds:
        raise ArtifactError(f"no rating round in {store.root}; start one with `gptflow rate start`")
    return max(rounds, key=lambda a: (str(a.provenance.get("finished", "")), a.fingerprint))


def _items(
    models: Sequence[Artifact],
    corpus: Artifact | None,
    config: RoundConfig,
    fingerprint: str,
    progress: Progress | None,
) -> Iterator[Item]:
    passages = _passages(corpus, config)
    asked, checks = passages[: config.from_validation], passages[config.from_validation :]
    prompts = [(prompt, "") for prompt in config.prompts] + [(p.prompt, p.document) for p in asked]
    number = 0

    def item(prompt: str, text: str, kind: Any, model: int, passage: int, document: str) -> Item:
        nonlocal number
        number += 1  # never a number alone, which a spreadsheet would rewrite
        name = f"t-{hashlib.sha256(f'{fingerprint} {number}'.encode()).hexdigest()[:10]}"
        return Item(name, prompt, text, kind, model, passage, document)

    for index, model in enumerate(models):
        texts = _written(model, [prompt for prompt, _ in prompts], config, index, len(models), progress)
        for passage, ((prompt, document), text) in enumerate(zip(prompts, texts, strict=True)):
            yield item(prompt, text, "model", index, passage, document)
    draw = random.Random(f"salad {config.seed}")
    for place, check in enumerate(checks, len(prompts)):
        is_real = (place - len(prompts)) % 2 == 0
        text = check.rest if is_real else word_salad(passages, len(check.rest.split()), draw)
        yield item(check.prompt, text, "real" if is_real else "salad", -1, place, check.document)


def _passages(corpus: Artifact | None, config: RoundConfig) -> list[Passage]:
    n = config.from_validation + 2 * config.checks
    if corpus is None or not n:
        return []
    tokens = config.decoding.max_new_tokens
    return draw_passages(corpus, n, prompt_words=config.prompt_words, rest_tokens=tokens, seed=config.seed)


def _written(
    model: Artifact, prompts: list[str], config: RoundConfig, index: int, models: int, progress: Progress | None
) -> list[str]:
    from gptmodel.device import pick_device
    from gptmodel.weights import load_model
    from gptmodel.writing import continue_texts

    gpt = load_model(model).to(pick_device("auto")).eval()
    texts: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        texts += continue_texts(gpt, prompts[start : start + _BATCH], config.decoding, row=start)
        if progress:
            progress(index * len(prompts) + len(texts), models * len(prompts), "texts")
    return texts
