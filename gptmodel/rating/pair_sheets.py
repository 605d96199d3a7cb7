"""Sheets of pairs for raters without a server: as `gptmodel.rating.sheets`, with one column for the answer."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from gptmodel.criteria import COMMENT_CHARS
from gptmodel.errors import DataError
from gptmodel.rating.deliveries import Comparison
from gptmodel.rating.pairs import ANSWERS, QUESTION, Pair, answer_of, comparison, sides
from gptmodel.rating.sheets import harmless, refuse, rows_of, wrong_names
from gptmodel.store.artifacts import Artifact

COLUMNS = ("round", "rater", "pair_id", "beginning", "A", "B", "preferred", "comment")
_NEEDED = ("round", "rater", "pair_id", "preferred")


def pair_sheet_text(
    found: Artifact, rater: int, pairs: Sequence[Pair], known: dict[tuple[int, str], Comparison]
) -> str:
    """The sheet of a rater, its pairs in the order given, with what he said already filled in."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for pair in pairs:
        said = known.get((rater, pair.id))
        shown = [harmless(text) for text in (pair.prompt, *(side.text for side in sides(found, rater, pair)))]
        answer = answer_of(found, pair, said) if said else ""
        comment = harmless(said.comment if said else "")
        writer.writerow((found.path.name, rater, pair.id, *shown, answer, comment))
    return "\ufeff" + out.getvalue()


def pair_guide_text() -> str:
    """What a rater reads first."""
    return f"{QUESTION}\n\nWrite {', '.join(ANSWERS[:-1])} or {ANSWERS[-1]} in the column 'preferred'.\n"


def is_pair_sheet(path: Path) -> bool:
    """Whether a sheet is one of pairs, by its columns. DataError for what is no sheet at all."""
    return "pair_id" in rows_of(path, ())[0]


def read_pair_sheet(path: Path, found: Artifact, raters: Sequence[int], pairs: Sequence[Pair]) -> list[Comparison]:
    """The preferences in a sheet; rows without one are left out.

    DataError that names every bad row by its line and value; nothing of such a sheet should be used.
    """
    by_id = {pair.id: pair for pair in pairs}
    problems: list[str] = []
    words: dict[tuple[int, str], Comparison] = {}
    for line, row in rows_of(path, _NEEDED)[1]:
        if not row["preferred"]:
            continue
        wrong = wrong_names(row, found, raters, "pair", by_id)
        comment = row.get("comment", "").removeprefix("'")
        if len(comment) > COMMENT_CHARS:
            wrong.append(f"the comment has {len(comment):,} characters; at most {COMMENT_CHARS:,}")
        if row["preferred"].lower() not in {answer.lower() for answer in ANSWERS}:
            wrong.append(f"preferred is {row['preferred'][:40]!r}; write {', '.join(ANSWERS)}")
        said = (
            None
            if wrong
            else comparison(found, int(row["rater"]), by_id[row["pair_id"]], row["preferred"], comment, "csv")
        )
        if said is None:
            problems += [f"line {line}: {message}" for message in wrong]
        elif words.setdefault((said.rater, said.pair), said) != said:
            problems.append(f"line {line}: {said.pair} was answered otherwise further up; leave one")
    if problems:
        raise DataError(refuse(path, problems))
    return list(words.values())
