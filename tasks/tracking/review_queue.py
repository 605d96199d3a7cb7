"""A rating round in MLflow's Review page: queues for each rater, the questions, and what was answered.

Each round has an experiment of its own, `human-eval/…`, since texts to rate are traces there, and traces turn an
experiment's page into another than that of trainings. One completion closes a text for a whole queue, and answers are
seen by all who see the text: so each rater has a queue, and texts, of his own. A queue bears the rater's number, and
pairs have a second one, since all things in a queue are asked the same questions. Doing it again adds what is missing.

A comment is the answer to a question of its own, in free text. Where somebody has switched MLflow's own comment on for
a question, that is the `rationale` of its answer, and is kept as well.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.genai import label_schemas, review_queues

from gptmodel.criteria import COMMENT, COMMENT_CHARS, CRITERIA, HIGHEST, LOWEST, check_scores
from gptmodel.errors import TrackingError, first_line
from gptmodel.rating.deliveries import Comparison, Rating
from gptmodel.rating.pairs import ANSWERS, LEFT, QUESTION, RIGHT, Pair, comparison, pairs_in_order, sides
from gptmodel.rating.rounds import Item, in_order
from gptmodel.store.artifacts import Artifact
from tasks.tracking.mlflow_pages import address, is_there
from tasks.tracking.runs import FAILURES, client, restored_experiment

_ITEM, _PAIR, _RATER = "gptflow.item", "gptflow.pair", "gptflow.rater"
_COMMENT, _PREFERENCE = "comment", "preference"
_PAGE = 100
_lock = threading.Lock()


@dataclass(frozen=True)
class Answers:
    """What the queues of a round hold: whole answers, and how many texts or pairs were closed without all of one."""

    ratings: list[Rating]
    comparisons: list[Comparison]
    incomplete: int


@dataclass(frozen=True)
class _Shown:
    """What one place of a queue shows: a beginning, and what came of it in Markdown; `tag` and `id` say what it is."""

    tag: str
    id: str
    prompt: str
    answer: str


def experiment_name(found: Artifact) -> str:
    return f"human-eval/{found.path.name[:8]}"


def put_before(
    found: Artifact, items: Sequence[Item], raters: Sequence[int], pairs: Sequence[Pair] = ()
) -> dict[int, list[str]]:
    """Make the queues of these raters, for texts and, if there are any, for pairs.

    Returns the page of each queue, or its name where no server shows pages. TrackingError if MLflow does not answer,
    or will not take it.
    """
    try:
        restored_experiment(experiment_name(found))
        experiment = _experiment(found) or client().create_experiment(experiment_name(found))
        points, preference = _questions(experiment)
        pages = {}
        for rater in raters:
            texts = [_text(item) for item in in_order(found, rater, items)]
            queues = [_fill(experiment, f"rater-{rater}", texts, rater, points)]
            if pairs:
                both = [_both(found, rater, pair) for pair in pairs_in_order(found, rater, pairs)]
                queues.append(_fill(experiment, f"rater-{rater}-pairs", both, rater, preference))
            pages[rater] = [_page(experiment, queue) for queue in queues]
        return pages
    except FAILURES as error:
        raise TrackingError(f"MLflow took no queues for {found.label} ({first_line(error)}); try again") from None


def read_back(found: Artifact, pairs: Sequence[Pair] = ()) -> Answers:
    """What was answered in the queues. TrackingError if MLflow does not answer; nothing where there are no queues."""
    answers, by_id = Answers([], [], 0), {pair.id: pair for pair in pairs}
    incomplete = 0
    try:
        if not is_there() or (experiment := _experiment(found)) is None:
            return answers
        for trace in _traces(experiment):
            if not (said := _answers_of(trace)):
                continue
            rater = re.fullmatch(r"[0-9]{1,6}", trace.info.tags.get(_RATER, ""))
            number = int(rater[0]) if rater else 0
            pair = by_id.get(trace.info.tags.get(_PAIR, ""))
            if pair is not None and number:
                word = comparison(found, number, pair, str(said.get(_PREFERENCE, "")), _comment(said), "queue")
                answers.comparisons.extend([word] if word else [])
                incomplete += word is None
                continue
            scores, wrong = check_scores({c.name: said[c.title] for c in CRITERIA if c.title in said})
            if wrong or not number:
                incomplete += 1
                continue
            item = trace.info.tags.get(_ITEM, "")
            answers.ratings.append(Rating(number, item, scores, _comment(said), "queue"))
    except FAILURES as error:
        raise TrackingError(
            f"MLflow at {address() or 'its default place'} does not answer ({first_line(error)}), so what was rated "
            "in its Review page is not known; try again"
        ) from None
    return Answers(answers.ratings, answers.comparisons, incomplete)


def _comment(said: dict[str, Any]) -> str:
    return str(said.get(_COMMENT, "")).strip()[:COMMENT_CHARS]


def _experiment(found: Artifact) -> str | None:
    there = client().get_experiment_by_name(experiment_name(found))
    return str(there.experiment_id) if there is not None else None


def _questions(experiment: str) -> tuple[list[str], list[str]]:
    """Ids of the questions on a text, and on a pair; the page shows the one that was made last first."""
    there = {schema.name: schema for schema in label_schemas.list_label_schemas(experiment)}
    points = label_schemas.InputCategorical(options=[str(point) for point in range(LOWEST, HIGHEST + 1)])
    wanted: list[tuple[str, Any, str]] = [(_COMMENT, label_schemas.InputText(max_length=COMMENT_CHARS), COMMENT)]
    wanted.append((_PREFERENCE, label_schemas.InputCategorical(options=list(ANSWERS)), QUESTION))
    wanted += [(criterion.title, points, criterion.instruction) for criterion in reversed(CRITERIA)]
    ids = {}
    for name, asked, words in wanted:
        found = there.get(name) or label_schemas.create_label_schema(
            name, type="feedback", input=asked, instruction=words, experiment_id=experiment
        )
        ids[name] = str(found.schema_id)
    on_pairs = [ids.pop(_PREFERENCE), ids[_COMMENT]]
    return list(ids.values()), on_pairs


def _fill(experiment: str, name: str, shown: Sequence[_Shown], rater: int, questions: list[str]) -> str:
    """The id of the queue, with all of these in it: the one attached last is shown first."""
    queues = review_queues.list_review_queues(experiment_id=experiment, max_results=_PAGE)
    queue = next((queue for queue in queues if queue.name == name), None)
    queue = queue or review_queues.create_review_queue(
        name, queue_type="custom", users=["default"], schema_ids=questions, experiment_id=experiment
    )
    there = ((trace.info.tags, trace.info.trace_id) for trace in _traces(experiment, rater))
    traces = {tags.get(_ITEM) or tags.get(_PAIR): trace for tags, trace in there}
    attached = set(_attached(queue.queue_id))
    for each in reversed(shown):
        trace = traces.get(each.id) or _trace(experiment, each, rater)
        if trace not in attached:
            review_queues.add_items_to_review_queue(queue.queue_id, item_ids=[trace])
    return str(queue.queue_id)


def _text(item: Item) -> _Shown:
    return _Shown(_ITEM, item.id, item.prompt, _as_is(item.text) or "(nothing)")


def _both(found: Artifact, rater: int, pair: Pair) -> _Shown:
    """The page has one column, so B stands below A."""
    parts = [
        f"**{side}**\n\n{_as_is(item.text) or '(nothing)'}"
        for side, item in zip((LEFT, RIGHT), sides(found, rater, pair), strict=True)
    ]
    return _Shown(_PAIR, pair.id, pair.prompt, "\n\n---\n\n".join(parts))


def _attached(queue: str) -> Iterator[str]:
    token = None
    while True:
        page = review_queues.list_review_queue_items(queue, max_results=_PAGE, page_token=token)
        yield from (item.item_id for item in page)
        if not (token := page.token):
            return


def _trace(experiment: str, shown: _Shown, rater: int) -> str:
    """As the page shows it: the beginning as what was said, the continuation as the answer."""
    asked = {"messages": [{"role": "user", "content": _as_is(shown.prompt)}]}
    answer = {"choices": [{"message": {"role": "assistant", "content": shown.answer}}]}
    tags = {shown.tag: shown.id, _RATER: str(rater)}
    with _lock:  # the tracer is one for the process
        span = mlflow.start_span_no_context("text", inputs=asked, tags=tags, experiment_id=experiment)
        span.end(outputs=answer)
        mlflow.flush_trace_async_logging()
    if client().get_trace(span.trace_id, display=False) is None:
        raise MlflowException(f"the text {shown.id} was not taken")
    return str(span.trace_id)


def _as_is(text: str) -> str:
    """The page reads Markdown: every mark that means something there is escaped, and each line end kept."""
    lines = [re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~$&])", r"\\\1", line.strip()) for line in text.strip("\n").split("\n")]
    return "  \n".join(lines)


def _traces(experiment: str, rater: int = 0) -> Iterator[Trace]:
    wanted = f"tags.`{_RATER}` = '{rater}'" if rater else None
    token = None
    while True:
        page = client().search_traces(
            locations=[experiment], filter_string=wanted, max_results=_PAGE, page_token=token, include_spans=False
        )
        yield from page
        if not (token := page.token):
            return


def _answers_of(trace: Trace) -> dict[str, Any]:
    """By question, a person's last answer that was not withdrawn; comments of all kinds in one."""
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for said in sorted(trace.info.assessments or [], key=lambda a: a.last_update_time_ms or 0):
        feedback = getattr(said, "feedback", None)
        if feedback is not None and said.source.source_type == "HUMAN" and getattr(said, "valid", True) is not False:
            found[said.name] = feedback.value
            reasons[said.name] = said.rationale or ""
    comments = [str(found.get(_COMMENT) or ""), *(f"{name}: {reason}" for name, reason in reasons.items() if reason)]
    if comment := "\n".join(filter(None, comments)):
        found[_COMMENT] = comment
    return found


def _page(experiment: str, queue: str) -> str:
    if not (server := address()).startswith(("http://", "https://")):
        return f"queue {queue}; the page is there when MLflow's server runs"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/review-queue?selectedQueueId={queue}"
