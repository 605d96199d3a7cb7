"""What goes wrong inside a flow is told at its end as docs/errors.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mishaps import Case, furnish
from tests.provocations import FLOWS
from tests.provoked import outcome

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "errors.md").read_text()


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("furnished")
    return folder, furnish(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("case", [pytest.param(c, id=f"{a}: {c.how}") for a, cases in FLOWS.items() for c in cases])
def test_it_is_told_as_the_page_says(case: Case, furnished: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    code, told = outcome(case, *furnished, tmp_path / "case")
    assert code == case.code
    assert told in PAGE, f"{told}\nIf that is better than before: .venv/bin/python -m tests.provocations"
