"""Each thing that a person can do wrong is answered as docs/errors.md says: one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mishaps import Case, furnish
from tests.provocations import AREAS, FLOWS
from tests.provoked import HEAD, outcome

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "errors.md").read_text()


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("furnished")
    return folder, furnish(folder)


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{a}: {c.how}") for a, cases in AREAS.items() for c in cases])
def test_it_is_told_as_the_page_says(case: Case, furnished: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    code, told = outcome(case, *furnished, tmp_path / "case")
    assert code == case.code
    assert "Traceback" not in told
    assert told in PAGE, f"{told}\nIf that is better than before: .venv/bin/python -m tests.provocations"


def test_the_page_has_no_more_than_the_cases() -> None:
    assert PAGE.startswith(HEAD)
    cases = [case for area in (AREAS, FLOWS) for each in area.values() for case in each]
    assert PAGE.count("\n$ ") == len(cases)
    assert [line[3:] for line in PAGE.splitlines() if line.startswith("## ")] == [*AREAS, *FLOWS]
