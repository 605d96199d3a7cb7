r"""Where a text may be cut without changing its GPT-2 tokens.

GPT-2 first splits text into pieces with a regex, and then encodes each piece alone:

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

So a cut between two pieces is safe if both sides still split as before. Nothing looks behind, so what follows a cut
never changes. What stands before it does not change either at:

1. a non-space followed by a space: no piece goes on from a non-space into a space, and the only look-ahead sits at the
   end of a run of spaces;
2. two non-spaces of different class (letter, number, other): a piece's non-spaces are all of one class, save for
   contractions such as `'ll`, so an apostrophe before a letter is no cut;
3. before the last space of a run of two or more that a non-space follows: `\s+(?!\S)` takes all but that last one, and
   alone they are matched whole.

"Space" here is Unicode's White_Space, as in the regex. A character that Python's Unicode tables do not know yet may be
a letter to the tokenizer, so no cut of rule 2 is made beside one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from gptmodel.errors import DataError

# Not str.isspace, which also takes U+001C to U+001F.
SPACES = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
CHUNK_CHARS = 1 << 18
LONGEST_RUN_CHARS = 1 << 20


def chunks(text: str, chars: int = CHUNK_CHARS, longest: int = LONGEST_RUN_CHARS) -> Iterator[str]:
    """Consecutive parts of `text`, each of at most `chars` characters unless no safe cut is found so early.

    Joined they are the text; encoded one by one they give its tokens. DataError where `longest` characters pass
    without a safe cut: encoding such a run as one piece would cost more time than anything in it is worth.
    """
    start = 0
    while len(text) - start > chars:
        stop = _cut(text, start, chars, longest)
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def _cut(text: str, start: int, chars: int, longest: int) -> int:
    for at in range(start + chars, start, -1):
        if is_safe_cut(text, at):
            return at
    end = min(len(text), start + longest)
    for at in range(start + chars + 1, end):
        if is_safe_cut(text, at):
            return at
    if end == len(text):
        return end
    head = text[start : start + 20]
    raise DataError(
        f"a run of more than {longest:,} characters without a break, at character {start:,} of {len(text):,}: "
        f"{head!r}…; this is hardly text: remove it, or break it with spaces"
    )


def is_safe_cut(text: str, at: int) -> bool:
    """Whether encoding `text[:at]` and `text[at:]` gives the tokens of `text`; False where that is not sure.

    `at` lies inside the text: 0 < at < len(text).
    """
    before, after = text[at - 1], text[at]
    if before in SPACES:
        return after in SPACES and at + 1 < len(text) and text[at + 1] not in SPACES
    if after in SPACES:
        return True
    left, right = char_class(before), char_class(after)
    return left != right and "unknown" not in (left, right) and not (before == "'" and right == "letter")


def char_class(char: str) -> str:
    """The class of a non-space in GPT-2's regex: letter, number, other, or unknown to these Unicode tables."""
    category = unicodedata.category(char)
    if category == "Cn":
        return "unknown"
    return {"L": "letter", "N": "number"}.get(category[0], "other")
