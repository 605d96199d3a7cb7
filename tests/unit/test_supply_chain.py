"""The audit, the licence check and the bill of materials of .ci/: what they find, and what they refuse to claim."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CI = Path(__file__).resolve().parents[2] / ".ci"
CANARY = {"id": "PYSEC-2018-97", "aliases": ["CVE-2018-6594"], "details": "weak ElGamal keys", "fixed_in": []}
BAD = {"id": "GHSA-1", "aliases": ["CVE-2026-1"], "details": "reads any file", "fixed_in": ["2.0"]}
TWICE = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "details": "reads any file", "fixed_in": ["2.0"]}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script of .ci/, imported; its folder is no package."""
    monkeypatch.syspath_prepend(str(CI))
    for name in ("bill", "audit", "licences"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A package index on loopback; the dict holds its pages by path, None for a page that breaks."""
    pages: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.removeprefix("/pypi/").removesuffix("/json"), 404)
            self.send_response(500 if page is None else 200 if isinstance(page, dict) else 404)
            body = json.dumps(page).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{server.server_port}/" + "simple")
        yield pages
        server.shutdown()


def page(version: str, *vulnerabilities: dict[str, Any]) -> dict[str, Any]:
    return {"info": {"version": version}, "vulnerabilities": list(vulnerabilities)}


@pytest.fixture
def audit(script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Audits a lock with `clean 1.0` and `leaky 1.5`: (exit code, what was said)."""
    (tmp_path / "requirements.lock").write_text(
        "clean==1.0 \\\n    --hash=sha256:00\nLeaky==1.5 ; python_version>'3'\n"
    )
    (tmp_path / "requirements-cuda.lock").write_text("")
    main = script("audit").main

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["--root", str(tmp_path), *arguments])
        return code, capsys.readouterr().out

    return run


def test_a_vulnerable_pin_is_found_once_under_all_its_names(audit: Any, index: dict[str, Any], tmp_path: Path) -> None:
    withdrawn = {**BAD, "id": "GHSA-9", "aliases": [], "withdrawn": "2026-01-01T00:00:00Z"}
    index |= {"pycrypto/2.6.1": page("2.6.1", CANARY), "clean/1.0": page("1.0", withdrawn)}
    index["leaky/1.5"] = page("1.5", BAD, TWICE)
    code, said = audit()
    assert code == 1
    assert said.count("VULNERABLE") == 1
    assert "VULNERABLE: leaky 1.5: PYSEC-2026-1, CVE-2026-1, GHSA-1" in said
    assert "fixed in: 2.0" in said

    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "audit.toml").write_text('[CVE-2026-1]\nwhy = "its server is not used"\n')
    code, said = audit()
    assert code == 0, said
    assert "accepted: its server is not used" in said

    index["leaky/1.5"] = page("1.5")  # withdrawn by now: the exception must not stay for ever
    code, said = audit()
    assert code == 1
    assert "accepts CVE-2026-1, which no locked version has any more" in said


def test_a_mirror_without_pages_of_releases_answers_for_the_newest_alone(audit: Any, index: dict[str, Any]) -> None:
    index |= {"pycrypto": page("2.6.1", CANARY), "clean": page("1.0"), "leaky": page("2.0")}
    code, said = audit()
    assert code == 3
    assert "not answered: leaky 1.5: no page of this release; the newest is 2.0" in said
    assert "1 of 2 locked versions answered, 1 not" in said

    index["leaky"] = page("1.5", BAD)
    assert audit()[0] == 1


@pytest.mark.parametrize("knows", [{"pycrypto": page("2.6.1")}, {"pycrypto": None}, {"pycrypto": {"info": {}}}, {}])
def test_an_index_that_knows_no_vulnerability_is_not_believed(
    audit: Any, index: dict[str, Any], knows: dict[str, Any]
) -> None:
    """Mirrors serve empty lists: all would look clean."""
    index |= {"clean": page("1.0"), "leaky": page("1.5"), **knows}
    code, said = audit()
    assert code == 3
    assert "NOT CONSULTED" in said
    assert "NOT AUDITED" in said
    assert "locked versions answered" not in said


def test_an_index_out_of_reach_is_no_audit(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/")
    code, said = audit()
    assert code == 3
    assert "NOT AUDITED" in said


@pytest.mark.parametrize(("fixed", "code"), [("1.6", 1), ("1.5", 0), ("1.4.9", 0)])
def test_records_of_ones_own_answer_for_every_version(audit: Any, tmp_path: Path, fixed: str, code: int) -> None:
    def record(id_: str, name: str, events: list[dict[str, str]], *versions: str) -> str:
        affected = {"package": {"ecosystem": "PyPI", "name": name}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
        return json.dumps(
            {"id": id_, "modified": "2026-10-01T00:00:00Z", "affected": [{**affected, "versions": versions}]}
        )

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.json", record("PYSEC-2018-97", "pycrypto", [], "2.6.1"))
        archive.writestr("b.json", record("GHSA-1", "LEAKY", [{"introduced": "0"}, {"fixed": fixed}]))
        archive.writestr("c.json", record("GHSA-2", "clean", [{"introduced": "1.1"}, {"last_affected": "3"}]))
    got, said = audit("--offline", "--advisories", str(tmp_path / "all.zip"))
    assert got == code, said
    assert "3 records, the newest of 2026-10-01: consulted" in said
    assert "2 of 2 locked versions answered" in said


def test_records_that_cannot_be_read_are_a_usage_error(audit: Any, tmp_path: Path) -> None:
    assert audit("--offline", "--advisories", str(tmp_path / "absent.zip"))[0] == 2


@pytest.mark.slow
def test_the_real_index_knows_a_real_vulnerability(audit: Any, tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("pycrypto==2.6.1\n")
    code, said = audit()
    if "NOT AUDITED" in said:
        pytest.skip(f"no database within reach: {said}")
    assert code == 1
    assert "CVE-2018-6594" in said


def component(name: str, *licences: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "licenses": [*licences]}


def licence(**said: str) -> dict[str, Any]:
    return said if "expression" in said else {"license": said}


TABLE = {
    "permissive": ["MIT", "Apache-2.0", "LicenseRef-BSD"],
    "open_files": ["MPL-2.0"],
    "cuda": ["LicenseRef-NVIDIA-Proprietary"],
    "spelled": {"License :: OSI Approved :: BSD License": "LicenseRef-BSD", "License :: OSI Approved": ""},
    "by_hand": {},
    "elsewhere": {},
}


@pytest.mark.parametrize(
    ("licences", "refused"),
    [
        ([licence(id="MIT")], ""),
        ([licence(expression="GPL-3.0-only OR MIT")], ""),
        ([licence(id="MPL-2.0"), licence(name="License :: OSI Approved :: BSD License")], ""),
        ([licence(expression="MIT AND AGPL-3.0-only")], "AGPL-3.0-only"),
        ([licence(expression="MIT AND (GPL-2.0-only OR GPL-3.0-only)")], "GPL-2.0-only"),
        ([licence(id="MIT"), licence(id="GPL-2.0-or-later")], "GPL-2.0-or-later"),  # a choice, or both? a person says
        ([licence(name="Ask Bob")], "`Ask Bob` is not spelled"),
        ([licence(name="License :: OSI Approved")], "unknown"),
        ([], "unknown"),
        ([licence(id="LicenseRef-NVIDIA-Proprietary")], "LicenseRef-NVIDIA-Proprietary"),
    ],
)
def test_licences(script: Callable[[str], ModuleType], licences: list[dict[str, Any]], refused: str) -> None:
    pins = {"requirements.lock": {"thing"}, "requirements-cuda.lock": set()}
    _, wrong = script("licences").judge([component("thing", *licences)], pins, TABLE)
    assert bool(wrong) == bool(refused), wrong
    assert refused in "\n".join(wrong)
    assert all(line.startswith("thing (1.0): ") for line in wrong)


def test_licences_by_hand_and_elsewhere_hold_only_what_is_needed(script: Callable[[str], ModuleType]) -> None:
    judge = script("licences").judge
    pins = {"requirements.lock": {"thing", "winonly"}, "requirements-cuda.lock": {"nvidia-x"}}
    table = {
        **TABLE,
        "by_hand": {"thing": {"licence": "MIT", "why": "its LICENSE file"}},
        "elsewhere": {"nvidia-*": "LicenseRef-NVIDIA-Proprietary"},
    }
    listed, wrong = judge([component("thing")], pins, table)
    assert wrong == ["winonly (not installed here): unknown: its metadata names no licence"]
    assert listed["LicenseRef-NVIDIA-Proprietary"] == ["nvidia-x (not installed here)"]
    pins = {"requirements.lock": {"thing"}, "requirements-cuda.lock": set()}
    _, wrong = judge([component("thing", licence(id="Apache-2.0"))], pins, table)
    assert len(wrong) == 2
    assert "drop it from by_hand" in wrong[0]
    assert wrong[1].startswith("nvidia-*: elsewhere has it")


@pytest.mark.slow
def test_the_bill_names_every_installed_package_of_the_lock(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    """Valid by CycloneDX's own schema, which `main` asks, and development apart from what runs."""
    bill = script("bill")
    bill.main(tmp_path / "bill.json")
    parts = {bill.normal(part["name"]): part for part in json.loads((tmp_path / "bill.json").read_text())["components"]}
    assert {"torch", "prefect", "mlflow", "starlette"} <= {
        n for n, part in parts.items() if part["scope"] == "required"
    }
    assert {"pytest", "mypy", "playwright"} <= {n for n, part in parts.items() if part["scope"] == "excluded"}
    pins = dict(bill.locked("requirements.lock"))
    said = [where["hashes"] for where in parts["prefect"]["externalReferences"] if "hashes" in where]
    assert [entry["content"] for entry in said[0]] == pins["prefect", parts["prefect"]["version"]]
    assert {name for name, _ in pins} - set(parts) <= {
        "async-timeout",
        "httpx2-jsfetch",
        "pywin32",
        "waitress",
        "whenever",
    }
