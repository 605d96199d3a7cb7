"""The tutorial and the how-tos: each command is run as it stands, in order, and prints what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import ROOT, RUN, blocks, prefect_server, problem, run


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", RUN)
def test_a_page_tells_what_its_commands_print(page: str, tmp_path: Path) -> None:
    found = [block for block in blocks(page, (ROOT / page).read_text(encoding="utf-8")) if not block.not_run]
    assert sum(block.output is not None for block in found) >= 10
    wrong = []
    with prefect_server(tmp_path) as env:
        for block in found:
            code, printed = run(block, tmp_path, env)
            wrong += [said] if (said := problem(block, code, printed)) else []
            if code != block.exits:
                break  # those below it build on it
    assert not wrong, "\n\n".join(wrong)
