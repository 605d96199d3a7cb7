"""Sheets for raters without a server: one CSV file for each rater, out and, filled in, back.

A sheet that comes back is taken whole or not at all, and taking it twice changes nothing. Comma, semicolon or tab may
part its fields, since spreadsheets choose by country.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Sequence
from pathlib import Path

from gptmodel.criteria import COMMENT_CHARS, CRITERIA, INTRODUCTION, NAMES, check_scores
from gptmodel.errors import DataError
from gptmodel.rating.deliveries import Rating
from gptmodel.rating.rounds import Item
from gptmodel.store.artifacts import Artifact

COLUMNS = ("round", "rater", "text_id", "beginning", "continuation", *NAMES, "comment")
_NEEDED = ("round", "rater", "text_id", *NAMES)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MOST_BYTES = 50_000_000
_TOLD = 20  # problems


def sheet_text(found: Artifact, rater: int, items: Sequence[Item], known: dict[tuple[int, str], Rating]) -> str:
    """The sheet of a rater, in his order, with what he said already filled in."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for item in items:
        said = known.get((rater, item.id))
        scores = [said.scores[name] for name in NAMES] if said else [""] * len(NAMES)
        shown = (harmless(item.prompt), harmless(item.text))
        row = (found.path.name, rater, item.id, *shown, *scores, harmless(said.comment if said else ""))
        writer.writerow(row)
    return "\ufeff" + out.getvalue()  # without the mark, spreadsheets take UTF-8 for something else


def guide_text() -> str:
    """What a rater reads first."""
    lines = [INTRODUCTION, ""]
    for criterion in CRITERIA:
        low, middle, high = criterion.anchors
        lines += [f"{criterion.title}: {criterion.question}", f"  1  {low}", f"  3  {middle}", f"  5  {high}", ""]
    return "\n".join(lines)


def read_sheet(path: Path, found: Artifact, raters: Sequence[int], items: Sequence[Item]) -> list[Rating]:
    """The ratings in a sheet; rows in which nothing is filled in are left out.

    DataError that names every bad row by its line and value; nothing of such a sheet should be used.
    """
    ids = {item.id for item in items}
    problems: list[str] = []
    ratings: dict[tuple[int, str], Rating] = {}
    for line, row in rows_of(path, _NEEDED)[1]:
        filled = [row.get(name, "") for name in NAMES]
        if not any(filled):
            continue
        scores, wrong = check_scores(dict(zip(NAMES, filled, strict=True)))
        wrong += wrong_names(row, found, raters, "text", ids)
        comment = row.get("comment", "").removeprefix("'")
        if len(comment) > COMMENT_CHARS:
            wrong.append(f"the comment has {len(comment):,} characters; at most {COMMENT_CHARS:,}")
        if wrong:
            problems += [f"line {line}: {message}" for message in wrong]
            continue
        rating = Rating(int(row["rater"]), row["text_id"], scores, comment, "csv")
        before = ratings.setdefault((rating.rater, rating.item), rating)
        if before != rating:
            problems.append(f"line {line}: {rating.item} was rated otherwise further up; leave one")
    if problems:
        raise DataError(refuse(path, problems))
    return list(ratings.values())


def refuse(path: Path, problems: Sequence[str]) -> str:
    """In one line, why a sheet is not taken."""
    more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
    return f"{path} was not taken, nothing of it is kept: {'; '.join(problems[:_TOLD])}{more}"


def wrong_names(
    row: dict[str, str], found: Artifact, raters: Sequence[int], what: str, ids: Container[str]
) -> list[str]:
    """What is wrong with a row's round, rater, and id, in its column `<what>_id`."""
    wrong = []
    if row["round"] != found.path.name:
        wrong.append(f"round is {row['round'][:40]!r}, and this is {found.path.name}")
    if row["rater"] not in {str(number) for number in raters}:
        wrong.append(f"rater {row['rater'][:40]!r} was never given a sheet of this round")
    if row[f"{what}_id"] not in ids:
        wrong.append(f"there is no {what} {row[f'{what}_id'][:40]!r} in this round")
    return wrong


def rows_of(path: Path, needed: Sequence[str]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """(columns, (line, fields by column) of each row). DataError for what is no sheet with the needed columns."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, which is no sheet of ratings")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; is the path right?") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start:,}; save it as 'CSV UTF-8'") from None
    head = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    rows = []
    try:
        columns = [name.strip() for name in next(reader, [])]
        if missing := [name for name in needed if name not in columns]:
            raise DataError(f"{path} has no column {', '.join(missing)}; use a sheet of `gptflow rate export`")
        start = reader.line_num + 1
        for fields in reader:
            if any(field.strip() for field in fields):
                padded = [field.strip() for field in fields] + [""] * (len(columns) - len(fields))
                rows.append((start, dict(zip(columns, padded, strict=False))))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path} is no CSV at line {reader.line_num}: {error}") from None
    return columns, rows


def harmless(text: str) -> str:
    """As a cell: a spreadsheet takes what begins like a formula for one, and would carry it out."""
    return f"'{text}" if text.startswith(_FORMULA) else text
