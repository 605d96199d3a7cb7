"""What came of making an artifact again: node by node, and in a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptmodel.lineage.differences import Change, FirstDifference


@dataclass(frozen=True)
class NodeVerdict:
    """A node made again, beside the recorded one."""

    name: str
    equal: bool | None
    """None where it was not made, or nothing is left to compare it with."""
    recorded_fingerprint: str = ""
    fingerprint: str = ""
    recorded_digest: str = ""
    digest: str = ""
    files: list[str] = field(default_factory=list)
    """Files with other bytes, or on one side only."""
    seconds: float = 0.0
    said: str = ""
    reused: bool = False
    """An earlier attempt in the same store had made it, in the same way; its files were hashed again."""


@dataclass(frozen=True)
class Verdict:
    """What came of it."""

    artifact: str
    equal: bool
    steps: int
    """Training steps that were made again; 0 where nothing was trained."""
    of_steps: int
    logged: int
    """Steps among them whose figures were recorded, and compared; 0 where the bytes of a whole training were."""
    last_logged: int
    """The last of those."""
    nodes: list[NodeVerdict]
    first_difference: FirstDifference | None
    """Of a training that differs: a is recorded, b is now, as in `code` and `environment`."""
    code: list[Change]
    """Of the first node that differs, else of the last."""
    environment: list[Change]
    notes: list[str]
    seconds: float

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        if self.equal and self.logged == self.steps < self.of_steps:
            return f"The first {self.steps:,} of {self.of_steps:,} steps give the same figures again, to the bit."
        if self.equal and self.steps < self.of_steps:
            return (
                f"The {self.logged:,} logged of the first {self.steps:,} of {self.of_steps:,} steps, the last of them "
                f"step {self.last_logged:,}, give the same figures again, to the bit."
            )
        if self.equal:
            return f"{self.artifact} was made again with the same bytes."
        bad = next(node for node in self.nodes if node.equal is False)
        if (first := self.first_difference) is None:
            return f"{bad.name} came out with other bytes: {bad.said or ', '.join(bad.files)}."
        values = f"{first.metric} was {_number(first.a)} and is {_number(first.b)}"
        return f"{bad.name} differs from step {first.step:,} on: {values}."


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value!r} ({float(value).hex()})"
