"""A step in OpenLineage's words: its events, with the facets that say what was read, made, by what, and how it ended.

Names are stable and hold no path of a machine. A dataset is `kind/fingerprint` in the namespace `gptflow`
(OPENLINEAGE_NAMESPACE), the same in every store, since a fingerprint is; its version is the content digest. A source
from outside is `source/…`, by what was asked of it. A job is the step's name, in the same namespace.
"""

from __future__ import annotations

import json
import math
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gptmodel.errors import GptflowError
from gptmodel.lineage.graph import MODELS
from gptmodel.store.artifacts import Artifact, Ref, canonical
from gptmodel.store.provenance import provenance

if TYPE_CHECKING:  # the library takes half a second to import
    from openlineage.client.event_v2 import InputDataset, OutputDataset
    from openlineage.client.facet_v2 import DatasetFacet, JobFacet, RunFacet

_PRODUCER = f"urn:gptflow:{version('gptflow')}"
_MESSAGE_CHARS, _TRACE_CHARS, _CONFIG_CHARS = 2_000, 10_000, 20_000


@dataclass(frozen=True)
class Attempt:
    """One attempt at a step: a run, in OpenLineage's words."""

    run_id: str
    job: str
    description: str = ""
    number: int = 1
    """The first try is 1, and each retry of the same task run one more."""
    task_run: str = ""
    flow: str = ""
    flow_run: str = ""
    nominal: str = ""
    """When a schedule wanted it, ISO 8601; "" if no schedule did."""
    inputs: Sequence[Artifact] = field(default=())


def namespace() -> str:
    return os.environ.get("OPENLINEAGE_NAMESPACE") or "gptflow"


def event(
    attempt: Attempt,
    kind: str,
    made: Artifact | None = None,
    reused: bool = False,
    error: BaseException | None = None,
) -> str:
    """One JSON line: START, COMPLETE, FAIL or ABORT, built from the library's own classes, which check it."""
    from openlineage.client import event_v2
    from openlineage.client.facet_v2 import set_producer
    from openlineage.client.serde import Serde

    set_producer(_PRODUCER)
    told = event_v2.RunEvent(
        eventTime=datetime.now(UTC).isoformat(),
        producer=_PRODUCER,
        eventType=event_v2.RunState(kind),
        run=event_v2.Run(attempt.run_id, _run_facets(attempt, made, reused, error)),
        job=event_v2.Job(namespace(), attempt.job, _job_facets(attempt)),
        inputs=_inputs(attempt, made),
        outputs=[_output(made, reused)] if made else [],
    )
    return str(Serde.to_json(told, ensure_ascii=False, allow_nan=False)) + "\n"


def aborted(start: dict[str, Any], why: str) -> str:
    """The end of a run whose process can no longer tell it, from its START."""
    facet = {
        "_producer": _PRODUCER,
        "_schemaURL": _schema_of_errors(),
        "message": why,
        "programmingLanguage": "PYTHON",
    }
    run = {**start["run"], "facets": {**start["run"].get("facets", {}), "errorMessage": facet}}
    told = {**start, "eventType": "ABORT", "eventTime": datetime.now(UTC).isoformat(), "run": run}
    return json.dumps(told, sort_keys=True, ensure_ascii=False) + "\n"


def _schema_of_errors() -> str:
    from openlineage.client.facet_v2 import error_message_run

    return error_message_run.ErrorMessageRunFacet._get_schema()


def _run_facets(
    attempt: Attempt, made: Artifact | None, reused: bool, error: BaseException | None
) -> dict[str, RunFacet]:
    from openlineage.client.facet_v2 import error_message_run, nominal_time_run, parent_run, processing_engine_run

    facets: dict[str, RunFacet] = {
        "processing_engine": processing_engine_run.ProcessingEngineRunFacet(
            version("prefect"), "Prefect", version("gptflow")
        ),
        "gptflow_code": _own_run_facet(**_code()),
        "gptflow_step": _own_run_facet(
            attempt=attempt.number,
            prefectTaskRun=attempt.task_run or None,
            reused=reused if made else None,
            fingerprint=made.fingerprint if made else None,
            recipeVersion=made.request.recipe_version if made else None,
            config=_short(made.request.config) if made else None,
        ),
    }
    if attempt.flow_run:
        job = parent_run.Job(namespace(), attempt.flow)
        facets["parent"] = parent_run.ParentRunFacet(parent_run.Run(attempt.flow_run), job)
    if attempt.nominal:
        facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(attempt.nominal)
    if error is not None:
        known = isinstance(error, GptflowError)  # its message says all; another one's trace is needed
        trace = "" if known else "".join(traceback.format_exception(error))[-_TRACE_CHARS:]
        message = (str(error) or type(error).__name__)[:_MESSAGE_CHARS]
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message, "PYTHON", trace or None)
    return facets


def _short(config: dict[str, Any]) -> dict[str, Any] | None:
    """A config that names a hundred thousand files is left to the manifest."""
    return config if len(canonical(config)) <= _CONFIG_CHARS else None


def _own_run_facet(**values: Any) -> RunFacet:
    from openlineage.client.facet_v2 import RunFacet

    facet = RunFacet().with_additional_properties(**values)
    assert isinstance(facet, RunFacet)
    return facet


@cache
def _code() -> dict[str, Any]:
    known = provenance()
    patch = known.get("code_patch", {})
    return {
        "commit": known["git_commit"] or None,
        "dirty": known["git_dirty"],
        "patch": patch.get("sha256"),
        "digest": known["code_digest"],
        "lock": known.get("lock_digest"),
        "packages": known["packages_digest"],
    }


def _job_facets(attempt: Attempt) -> dict[str, JobFacet]:
    from openlineage.client.facet_v2 import documentation_job, job_type_job, source_code_location_job

    facets: dict[str, JobFacet] = {"jobType": job_type_job.JobTypeJobFacet("BATCH", "PREFECT", "TASK")}
    if attempt.description:
        facets["documentation"] = documentation_job.DocumentationJobFacet(attempt.description)
    known = provenance()
    if remote := known.get("git_remote"):
        facets["sourceCodeLocation"] = source_code_location_job.SourceCodeLocationJobFacet(
            "git", remote, repoUrl=remote, version=known["git_commit"]
        )
    return facets


def _inputs(attempt: Attempt, made: Artifact | None) -> list[InputDataset]:
    """What the step was given, or, once it is known, what it was made from: the source of a corpus too."""
    from openlineage.client.event_v2 import InputDataset

    given = {artifact.digest: artifact for artifact in attempt.inputs}
    found = []
    for ref in made.request.inputs if made else [artifact.ref for artifact in attempt.inputs]:
        facets = _artifact_facets(given[ref.digest]) if ref.digest in given else _ref_facets(ref, made)
        found.append(InputDataset(namespace(), _name_of(ref), facets=facets))
    return found


def _output(made: Artifact, reused: bool) -> OutputDataset:
    from openlineage.client.event_v2 import OutputDataset
    from openlineage.client.facet_v2 import (
        OutputDatasetFacet,
        lifecycle_state_change_dataset,
        output_statistics_output_dataset,
    )

    facets = _artifact_facets(made)
    written: dict[str, OutputDatasetFacet] = {}
    if not reused:  # otherwise nothing was written
        create = lifecycle_state_change_dataset.LifecycleStateChange.CREATE
        facets["lifecycleStateChange"] = lifecycle_state_change_dataset.LifecycleStateChangeDatasetFacet(create)
        written["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=_rows_of(made), size=sum(entry.bytes for entry in made.files), fileCount=len(made.files)
        )
    return OutputDataset(namespace(), _name_of(made.ref), facets=facets, outputFacets=written)


def _name_of(ref: Ref) -> str:
    return f"{ref.kind}/{ref.fingerprint[:16]}"


def _rows_of(artifact: Artifact) -> int | None:
    """Documents of a corpus or of shards, and those that an evaluation scored; a model has no rows."""
    summary = artifact.summary
    if artifact.kind == "corpus":
        return int(summary["documents"])
    if artifact.kind == "shards":
        return int(summary["train_documents"] + summary["validation_documents"])
    return None


def _ref_facets(ref: Ref, made: Artifact | None) -> dict[str, DatasetFacet]:
    from openlineage.client.facet_v2 import dataset_version_dataset, datasource_dataset

    facets: dict[str, DatasetFacet] = {"version": dataset_version_dataset.DatasetVersionDatasetFacet(ref.digest)}
    if ref.kind == "source" and made is not None:
        kind, address = _where_from(made)
        facets["dataSource"] = datasource_dataset.DatasourceDatasetFacet(kind, address)
    return facets


def _where_from(made: Artifact) -> tuple[str, str | None]:
    """Kind and address of what a corpus or weights were made from; files of a machine have none others could use."""
    asked = made.request.config.get("source", {})
    if made.kind == "weights":  # an address, a repository's name, or `local`
        revision = str(made.request.config.get("revision", ""))
        if "://" in str(asked):
            return "http", str(asked)
        return ("huggingface", f"hf://{asked}@{revision}") if revision else (str(asked), None)
    origin = made.summary.get("origin", {})
    if urls := origin.get("urls"):
        return "http", urls[0]
    if package := origin.get("package"):
        return "embedded", f"pkg:pypi/{package}@{origin.get('version', '')}"
    if origin.get("revision"):
        return "huggingface", f"hf://datasets/{origin['dataset']}@{origin['revision']}"
    return str(asked.get("kind", made.kind)), None


def _artifact_facets(artifact: Artifact) -> dict[str, DatasetFacet]:
    from openlineage.client.facet_v2 import (
        DatasetFacet,
        dataset_type_dataset,
        dataset_version_dataset,
        datasource_dataset,
        schema_dataset,
    )

    figures = DatasetFacet().with_additional_properties(**_plain_figures(artifact.summary))
    assert isinstance(figures, DatasetFacet)
    kind = "MODEL" if artifact.kind in MODELS else "FILE"
    facets: dict[str, DatasetFacet] = {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(artifact.digest),
        "dataSource": datasource_dataset.DatasourceDatasetFacet("gptflow store", f"gptflow:{artifact.label}"),
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(kind),
        "gptflow_figures": figures,
    }
    if columns := _columns(artifact):
        fields = [schema_dataset.SchemaDatasetFacetFields(name, form) for name, form in columns]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields)
    return facets


def _plain_figures(summary: dict[str, Any]) -> dict[str, Any]:
    """Numbers, words and truths at the top of a summary, by names that a class can have; JSON knows no NaN."""
    return {
        name: value
        for name, value in summary.items()
        if name.isidentifier()
        and isinstance(value, int | float | str)
        and (not isinstance(value, float) or math.isfinite(value))
    }


def _columns(artifact: Artifact) -> list[tuple[str, str]]:
    """Names and types of the table that it holds, read from the head of its first file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if tables := artifact.names(suffix=".parquet"):
        schema = pq.read_schema(artifact.path / tables[0])
    elif tables := artifact.names(suffix=".arrow"):
        with pa.OSFile(str(artifact.path / tables[0])) as file:
            schema = pa.ipc.open_file(file).schema
    else:
        return []
    return [(column.name, str(column.type)) for column in schema]
