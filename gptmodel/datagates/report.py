"""What the gates found: as data, as words, and as one line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["passed", "warned", "failed", "not looked at"]
_EXCERPT = 200  # characters of a document that are shown


@dataclass(frozen=True)
class Offender:
    """A document because of which a gate is not passed."""

    id: str
    source: str
    split: str
    why: str
    excerpt: str = ""


@dataclass(frozen=True)
class Finding:
    """What one gate found. `figures` are numbers; shares are of 1."""

    gate: str
    state: State
    said: str
    """One line: what was measured, and the bound."""
    figures: dict[str, Any] = field(default_factory=dict)
    offenders: tuple[Offender, ...] = ()
    """The first, or the worst, of them."""
    offenders_found: int = 0


@dataclass(frozen=True)
class Report:
    """All findings on a corpus, in the order of the gates."""

    corpus: str
    """Label of the artifact, such as `corpus/1f2e3d4c5b6a7980`."""
    previous: str
    """Label of the corpus that it was compared with; empty for none."""
    documents: int
    bytes: int
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no gate failed; one that warned is passed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.state == "failed")

    @property
    def warned(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.state == "warned")

    @property
    def line(self) -> str:
        """The outcome in one line."""
        told = [f"{finding.gate}: {finding.said}" for finding in self.failed]
        if told:
            return (
                f"{self.corpus} does not pass {len(told)} data {'gate' if len(told) == 1 else 'gates'}: "
                + "; ".join(told)
            )
        warned = ", ".join(finding.gate for finding in self.warned)
        return f"{self.corpus} passes the data gates" + (f", with a warning of {warned}" if warned else "")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def report_from(data: dict[str, Any]) -> Report:
    """The report that `as_dict` gave."""
    findings = (
        Finding(**{**finding, "offenders": tuple(Offender(**each) for each in finding["offenders"])})
        for finding in data["findings"]
    )
    return Report(**{**data, "findings": tuple(findings)})


def markdown(report: Report) -> str:
    """The report as a page. Excerpts of the text, which may hold anything, stand in code."""
    against = f", compared with {report.previous}" if report.previous else ""
    lines = [f"# Data gates of {report.corpus}", ""]
    lines += [f"{report.documents:,} documents, {report.bytes:,} bytes of text{against}.", "", report.line + ".", ""]
    lines += ["| gate | outcome | what was found |", "|---|---|---|"]
    lines += [f"| {f.gate} | {f.state} | {_cell(f.said)} |" for f in report.findings]
    for finding in report.findings:
        if finding.offenders:
            lines += ["", f"## {finding.gate}: documents", "", _how_many(finding), ""]
            lines += ["| document | source | split | why | begins |", "|---|---|---|---|---|"]
            lines += [_row(offender) for offender in finding.offenders]
    return "\n".join(lines) + "\n"


def _how_many(finding: Finding) -> str:
    shown, found = len(finding.offenders), finding.offenders_found
    return f"{shown:,} of {found:,} are listed." if shown < found else f"All {found:,}."


def _row(offender: Offender) -> str:
    cells = (offender.id, offender.source, offender.split, offender.why, offender.excerpt)
    return "| " + " | ".join(f"`{_cell(cell)}`" if cell else "" for cell in cells) + " |"


def _cell(text: str) -> str:
    return " ".join(text.replace("`", "'").replace("|", "¦").split())


def excerpt(text: str, at: int = 0) -> str:
    """The characters from `at` on, on one line, without what a terminal would obey."""
    piece = " ".join(text[at : at + 2 * _EXCERPT].split())[:_EXCERPT]
    return "".join(char if char.isprintable() else "\ufffd" for char in piece)


class Worst:
    """The numbers of the `most` documents with the highest score, the first ones among equals; and how many came."""

    def __init__(self, most: int) -> None:
        self._most, self.found = most, 0
        self._kept: list[tuple[float, int, str]] = []

    def add(self, number: int, why: str, score: float = 0.0) -> None:
        self.found += 1
        self._kept.append((-score, number, why))
        if len(self._kept) > 2 * self._most:
            self._cut()

    def _cut(self) -> None:
        self._kept = sorted(self._kept)[: self._most]

    @property
    def kept(self) -> dict[int, str]:
        """Why, by number; the worst first."""
        self._cut()
        return {number: why for _, number, why in self._kept}
