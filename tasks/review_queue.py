"""A rating round in MLflow's Review page: a queue for each rater, the four questions, and what was answered.

Each round has an experiment of its own, `human-eval/…`, since texts to rate are traces there, and traces turn an
experiment's page into another than that of trainings. One completion closes a text for a whole queue, and answers are
seen by all who see the text: so each rater has a queue, and texts, of his own. A queue bears the rater's number. Doing
it again adds what is missing.
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

from gptmodel.artifacts import Artifact
from gptmodel.errors import TrackingError, first_line
from gptmodel.rating.criteria import COMMENT, COMMENT_CHARS, CRITERIA, HIGHEST, LOWEST, check_scores
from gptmodel.rating.journal import Rating
from gptmodel.rating.rounds import Item, in_order
from tasks.mlflow_pages import address, is_there
from tasks.tracking import FAILURES, client

_ITEM, _RATER = "gptflow.item", "gptflow.rater"
_COMMENT = "comment"
_PAGE = 100
_lock = threading.Lock()


@dataclass(frozen=True)
class Answers:
    """What the queues of a round hold: whole ratings, and how many texts were closed without all four answers."""

    ratings: list[Rating]
    incomplete: int


def experiment_name(found: Artifact) -> str:
    return f"human-eval/{found.path.name[:8]}"


def put_before(found: Artifact, items: Sequence[Item], raters: Sequence[int]) -> dict[int, str]:
    """Make the queues of these raters; the page of each, or its name where no server shows pages.

    TrackingError if MLflow does not answer, or will not take it.
    """
    try:
        experiment = _experiment(found) or client().create_experiment(experiment_name(found))
        questions = _questions(experiment)
        return {rater: _page(experiment, _fill(experiment, found, items, rater, questions)) for rater in raters}
    except FAILURES as error:
        raise TrackingError(f"MLflow took no queues for {found.label} ({first_line(error)}); try again") from None


def read_back(found: Artifact) -> Answers:
    """What was answered in the queues. TrackingError if MLflow does not answer; nothing where there are no queues."""
    ratings, incomplete = [], 0
    try:
        if not is_there() or (experiment := _experiment(found)) is None:
            return Answers([], 0)
        for trace in _traces(experiment):
            answers = _answers_of(trace)
            if not answers:
                continue
            names = {criterion.title: criterion.name for criterion in CRITERIA}
            scores, wrong = check_scores({names.get(title, title): value for title, value in answers.items()})
            rater = re.fullmatch(r"[0-9]{1,6}", trace.info.tags.get(_RATER, ""))
            if wrong or rater is None:
                incomplete += 1
                continue
            comment = str(answers.get(_COMMENT, ""))[:COMMENT_CHARS]
            ratings.append(Rating(int(rater[0]), trace.info.tags.get(_ITEM, ""), scores, comment, "queue"))
    except FAILURES as error:
        raise TrackingError(
            f"MLflow at {address() or 'its default place'} does not answer ({first_line(error)}), so what was rated "
            "in its Review page is not known; try again"
        ) from None
    return Answers(ratings, incomplete)


def _experiment(found: Artifact) -> str | None:
    there = client().get_experiment_by_name(experiment_name(found))
    return str(there.experiment_id) if there is not None else None


def _questions(experiment: str) -> list[str]:
    """Ids of the questions; the page shows the one that was made last first."""
    there = {schema.name: schema for schema in label_schemas.list_label_schemas(experiment)}
    points = label_schemas.InputCategorical(options=[str(point) for point in range(LOWEST, HIGHEST + 1)])
    wanted: list[tuple[str, Any, str]] = [(_COMMENT, label_schemas.InputText(max_length=COMMENT_CHARS), COMMENT)]
    wanted += [(criterion.title, points, criterion.instruction) for criterion in reversed(CRITERIA)]
    ids = []
    for name, asked, words in wanted:
        found = there.get(name) or label_schemas.create_label_schema(
            name, type="feedback", input=asked, instruction=words, experiment_id=experiment
        )
        ids.append(str(found.schema_id))
    return ids


def _fill(experiment: str, found: Artifact, items: Sequence[Item], rater: int, questions: list[str]) -> str:
    """The id of the rater's queue, with all texts in it: the one attached last is shown first."""
    name = f"rater-{rater}"
    queues = review_queues.list_review_queues(experiment_id=experiment, max_results=_PAGE)
    queue = next((queue for queue in queues if queue.name == name), None)
    queue = queue or review_queues.create_review_queue(
        name, queue_type="custom", users=["default"], schema_ids=questions, experiment_id=experiment
    )
    traces = {t.info.tags.get(_ITEM): t.info.trace_id for t in _traces(experiment, rater)}
    attached = set(_attached(queue.queue_id))
    for item in reversed(in_order(found, rater, items)):
        trace = traces.get(item.id) or _trace(experiment, item, rater)
        if trace not in attached:
            review_queues.add_items_to_review_queue(queue.queue_id, item_ids=[trace])
    return str(queue.queue_id)


def _attached(queue: str) -> Iterator[str]:
    token = None
    while True:
        page = review_queues.list_review_queue_items(queue, max_results=_PAGE, page_token=token)
        yield from (item.item_id for item in page)
        if not (token := page.token):
            return


def _trace(experiment: str, item: Item, rater: int) -> str:
    """A text as the page shows it: the beginning as what was said, the continuation as the answer."""
    asked = {"messages": [{"role": "user", "content": _as_is(item.prompt)}]}
    answer = {"choices": [{"message": {"role": "assistant", "content": _as_is(item.text) or "(nothing)"}}]}
    tags = {_ITEM: item.id, _RATER: str(rater)}
    with _lock:  # the tracer is one for the process
        span = mlflow.start_span_no_context("text", inputs=asked, tags=tags, experiment_id=experiment)
        span.end(outputs=answer)
        mlflow.flush_trace_async_logging()
    if client().get_trace(span.trace_id, display=False) is None:
        raise MlflowException(f"the text {item.id} was not taken")
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
    """By question, a person's last answer that was not withdrawn."""
    found: dict[str, Any] = {}
    for said in sorted(trace.info.assessments or [], key=lambda a: a.last_update_time_ms or 0):
        feedback = getattr(said, "feedback", None)
        if feedback is not None and said.source.source_type == "HUMAN" and getattr(said, "valid", True) is not False:
            found[said.name] = feedback.value
    return found


def _page(experiment: str, queue: str) -> str:
    if not (server := address()).startswith(("http://", "https://")):
        return f"queue {queue}; the page is there when MLflow's server runs"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/review-queue?selectedQueueId={queue}"
