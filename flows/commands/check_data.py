"""`gptflow check-data`: the data gates by hand, on any corpus, with no server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.commands.options import UTF8
from gptmodel.errors import DataError
from gptmodel.presets import PRESETS

if TYPE_CHECKING:
    from gptmodel.datagates import Finding

_MARK = {
    "passed": "[green]passed[/green]",
    "warned": "[yellow]warned[/yellow]",
    "failed": "[red]failed[/red]",
    "not looked at": "[dim]–     [/dim]",
}
_SHOWN = 5


@click.command("check-data")
@click.option("--corpus", default="", help="Corpus of the store; left out, the one that the settings ask for, made.")
@click.option("--previous", default="", help="Corpus to compare with; left out, the last of the same source.")
@click.option("--preset", default="quickstart", show_default=True, help=f"One of {', '.join(PRESETS)}.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file of settings.")
@click.option(
    "--set", "sets", multiple=True, type=UTF8, metavar="A.B=VALUE", help="Change one setting; may be repeated."
)
@click.option("--wait", is_flag=True, help="Wait for another run of the same, instead of refusing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def check_data(
    corpus: str, previous: str, preset: str, file: Path | None, sets: tuple[str, ...], wait: bool, as_json: bool
) -> None:
    """Look at text before training: drift, languages, garbage, near duplicates, leaks, benchmarks, personal data.

    The settings stand in `data_gates`. The report is kept in the store, with the documents. Exit code 1 if a gate
    fails.
    """
    from gptmodel.settings import load_config

    config = load_config(preset, file, sets=sets)
    from gptmodel.datagates import checked, previous_of, report_of
    from gptmodel.store.artifacts import open_store
    from gptmodel.text.corpus import build_corpus

    store = open_store()
    found = store.resolve(corpus, "corpus") if corpus else build_corpus(store, config.corpus, wait=wait)[0]
    before = store.resolve(previous, "corpus") if previous else previous_of(store, found)
    artifact, _ = checked(store, found, config.data_gates, before, wait=wait)
    report = report_of(artifact)
    if as_json:
        click.echo(json.dumps({**report.as_dict(), "passed": report.passed, "path": str(artifact.path)}))
    else:
        against = f", compared with {report.previous}" if report.previous else ""
        click.echo(f"{report.corpus}: {report.documents:,} documents, {report.bytes:,} bytes{against}")
        for finding in report.findings:
            _say(finding)
        click.echo(f"\nThe whole report: {artifact.path}/report.md")
    if not report.passed:
        raise DataError(report.line)


def _say(finding: Finding) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{_MARK[finding.state]}  {finding.gate:<15} {escape(finding.said)}")
    if finding.state in ("warned", "failed"):
        for offender in finding.offenders[:_SHOWN]:
            where = f"{offender.id} ({offender.source})" if offender.source else offender.id
            console.print(escape(f"    {where}: {offender.why}"))
            if offender.excerpt:
                console.print(escape(f"      {offender.excerpt[:100]!r}"), style="dim")
        if finding.offenders_found > min(_SHOWN, len(finding.offenders)):
            console.print(f"    … {finding.offenders_found:,} in all", style="dim")
