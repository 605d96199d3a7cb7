"""Text that is no text, and which languages it is in.

The marks of garbage, each taken of a document's first 100,000 characters. Repeated lines (over 0.3 of them) are a rule
of Gopher's filters (Rae et al. 2021, arXiv:2112.11446, appendix A); the others are chosen so that prose, poems,
dialogue, tables, code and scripts without spaces stay.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping

_LOOKED_AT = 100_000  # characters of a document
_SHORT = 200  # characters: too few for shares of them to mean much
_ODD = re.compile("[\ufffd\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
_NO_LETTER = re.compile(r"[\W\d_]+")
_ENCODED = re.compile(
    r"[!-~]{60,}"
)  # ASCII without a space; addresses are shorter, and scripts without spaces not ASCII
_ODD_SHARE, _LETTERS_SHARE, _ENCODED_SHARE, _LINES_SHARE, _SQUEEZED = 0.01, 0.4, 0.3, 0.3, 0.08
_FEW_LINES = 10
_LANGUAGE_CHARS = 1_000


def garbage(text: str) -> str:
    """Why a text is garbage; empty for one that is not."""
    text = text[:_LOOKED_AT]
    odd = len(_ODD.findall(text)) / len(text)
    if odd > _ODD_SHARE:
        return f"{odd:.0%} of its characters are control characters or U+FFFD"
    if len(text) < _SHORT:
        return ""
    packed = "".join(text.split())
    letters = len(_NO_LETTER.sub("", packed)) / max(1, len(packed))
    if letters < _LETTERS_SHARE:
        return f"only {letters:.0%} of what is no space are letters"
    encoded = sum(map(len, _ENCODED.findall(text))) / len(text)
    if encoded > _ENCODED_SHARE:
        return f"{encoded:.0%} of it are runs of 60 and more ASCII characters without a space"
    lines = [line for line in (raw.strip() for raw in text.split("\n")) if line]
    again = 1 - len(set(lines)) / len(lines)
    if len(lines) >= _FEW_LINES and again > _LINES_SHARE:
        return f"{again:.0%} of its lines stand there before"
    data = text.encode(errors="replace")
    if len(data) >= 10 * _SHORT and (squeezed := len(zlib.compress(data, 1)) / len(data)) < _SQUEEZED:
        return f"it says the same on and on: zlib makes it {squeezed:.0%} of its size"
    return ""


def language(text: str) -> str:
    """ISO 639-1 code of the language that a text most likely is in, by its first 1,000 characters."""
    import py3langid

    return str(py3langid.classify(text[:_LANGUAGE_CHARS])[0])


def mix_distance(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Total variation distance between two mixes: the share that would have to change to make them equal."""
    sums = [max(1, sum(counts.values())) for counts in (one, other)]
    return sum(abs(one.get(k, 0) / sums[0] - other.get(k, 0) / sums[1]) for k in {*one, *other}) / 2


def commonest(languages: Counter[str], most: int = 5) -> dict[str, float]:
    """The shares of the commonest languages."""
    total = max(1, sum(languages.values()))
    return {name: round(count / total, 4) for name, count in sorted(languages.items(), key=_by_count)[:most]}


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
