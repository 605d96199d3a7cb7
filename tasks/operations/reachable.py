"""Do Prefect, MLflow and the hub answer, in which version, and by which clock. For `gptflow doctor`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path

import httpx

from gptmodel.checkup import Finding, clock, safely
from gptmodel.errors import GptflowError, first_line
from tasks.operations.processes import port_taken
from tasks.operations.servers import HOST, MLFLOW_PORT, PREFECT_PORT

_SECONDS = 5.0
_HUB = "https://huggingface.co"


def services() -> Iterator[Finding]:
    """Each service that runs may need, as this process' environment names it."""
    dates: list[tuple[str, float, float]] = []
    yield safely("Prefect", lambda: _prefect(dates))
    yield safely("MLflow", lambda: _mlflow(dates))
    yield safely("hub", lambda: _hub(dates))
    for whose, server, own in dates[:1]:
        yield clock(server, own, whose)


def _get(
    url: str, whose: str, dates: list[tuple[str, float, float]], login: tuple[str, str] | None = None
) -> httpx.Response:
    """`login`: user and password, sent to this server and to none that it points to."""
    answer = httpx.get(url, timeout=_SECONDS, follow_redirects=True, auth=login)
    if told := answer.headers.get("date"):
        dates.append((whose, parsedate_to_datetime(told).timestamp(), time.time()))
    return answer


def _prefect(dates: list[tuple[str, float, float]]) -> Finding:
    own, url = version("prefect"), os.environ.get("PREFECT_API_URL", "")
    if not url:
        taken = _taken(PREFECT_PORT, "PREFECT_PORT")
        return taken or Finding("Prefect", "ok", f"{own}; no server is up: a run starts one for itself", "make up")
    try:
        answer = _get(f"{url.rstrip('/')}/admin/version", "Prefect", dates, _login_of_prefect())
    except httpx.HTTPError as error:
        return Finding("Prefect", "bad", f"{url} does not answer ({first_line(error)})", _up("PREFECT_API_URL"))
    if answer.status_code == 401:
        said = "refuses our password" if _login_of_prefect() else "asks for a password"
        return Finding("Prefect", "bad", f"{url} {said}", "export PREFECT_API_AUTH_STRING=user:password")
    if answer.status_code != 200:
        return Finding("Prefect", "bad", f"{url} answers {answer.status_code}", _up("PREFECT_API_URL"))
    theirs = answer.text.strip().strip('"')
    if theirs.split(".")[:2] != own.split(".")[:2]:
        return Finding("Prefect", "warn", f"{url} is {theirs}, and here is {own}", "run the same version on both sides")
    return Finding("Prefect", "ok", f"{theirs} at {url}")


def _mlflow(dates: list[tuple[str, float, float]]) -> Finding:
    own, uri = version("mlflow"), os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith("http"):
        taken = _taken(MLFLOW_PORT, "MLFLOW_PORT")
        return taken or Finding("MLflow", "ok", f"{own}, in {uri or 'its default place'}", "make up")
    try:
        answer = _get(f"{uri.rstrip('/')}/version", "MLflow", dates, _login_of_mlflow())
    except httpx.HTTPError as error:
        return Finding("MLflow", "bad", f"{uri} does not answer ({first_line(error)})", _up("MLFLOW_TRACKING_URI"))
    if answer.status_code in (401, 403):
        advice = "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=..., or allow this host there"
        return Finding("MLflow", "bad", f"{uri} refuses us ({answer.status_code})", advice)
    if answer.status_code != 200:
        return Finding("MLflow", "bad", f"{uri} answers {answer.status_code}", _up("MLFLOW_TRACKING_URI"))
    theirs = answer.text.strip()
    if theirs.split(".")[:2] != own.split(".")[:2]:
        return Finding("MLflow", "warn", f"{uri} is {theirs}, and here is {own}", "run the same version on both sides")
    return Finding("MLflow", "ok", f"{theirs} at {uri}")


def _login_of_prefect() -> tuple[str, str] | None:
    user, colon, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    return (user, password) if colon else None


def _login_of_mlflow() -> tuple[str, str] | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    return (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None


def _up(variable: str) -> str:
    return f"make up, or unset {variable}"


def _taken(port: int, variable: str) -> Finding | None:
    """`make up` would be refused its usual port by some other program."""
    if not port_taken(HOST, port):
        return None
    what = "Prefect" if variable.startswith("PREFECT") else "MLflow"
    said = f"its port {port} is taken by a program that `make up` in {Path.cwd().name} did not start"
    return Finding(what, "warn", said, f"{variable}={port + 1} make up")


def _hub(dates: list[tuple[str, float, float]]) -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on"):
        return Finding("hub", "ok", "not asked: HF_HUB_OFFLINE is set")
    url = os.environ.get("HF_ENDPOINT", "").strip() or _HUB
    try:
        answer = _get(url, "the hub", dates)
        if answer.status_code < 500:
            return Finding("hub", "ok", f"{url} answers")
        why = f"answers {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, GptflowError) as error:
        why = f"is out of reach ({first_line(error)})"
    advice = "only imports and hub datasets need it; HF_ENDPOINT names a mirror"
    return Finding("hub", "warn", f"{url} {why}", advice)
