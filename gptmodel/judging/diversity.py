"""How much texts repeat: each one itself, and all of them each other. Figures of token ids, whatever they stand for.

They fall or rise with length and number of the texts: compare only what was drawn alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from gptmodel.tokenizer import gpt2

Text = Sequence[int]
_ORDER = 4  # of BLEU


def grams(text: Text, n: int) -> Iterator[tuple[int, ...]]:
    """All runs of n tokens."""
    return zip(*(text[i:] for i in range(n)), strict=False)


def distinct(texts: Sequence[Text], n: int) -> float | None:
    """distinct-n: the share of different ones among all n-grams of the texts together (Li et al. 2016).

    None where no text has n tokens.
    """
    found = Counter(gram for text in texts for gram in grams(text, n))
    return len(found) / total if (total := found.total()) else None


def repeated(texts: Sequence[Text], n: int) -> float | None:
    """The share of a text's n-grams that it wrote before, as the mean over the texts (seq-rep-n, Welleck et al. 2020).

    None where no text has n tokens.
    """
    shares = [distinct([text], n) for text in texts]
    known = [1.0 - share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def repetition(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    """distinct_1 to distinct_4, repeated_4 and self_bleu of samples with `text`; what is not defined is left out.

    Greedy samples of one prompt and decoding are all the same text, so one stands for them. Decodings of one name may
    end elsewhere, so the text tells them apart.
    """
    greedy = dict.fromkeys((s["prompt"], s["decoding"], s["text"]) for s in samples if s["temperature"] == 0)
    texts = [*(text for *_, text in greedy), *(s["text"] for s in samples if s["temperature"] != 0)]
    ids = [gpt2().encode(text).tolist() for text in texts]
    found = {f"distinct_{n}": distinct(ids, n) for n in range(1, 5)}
    found |= {"repeated_4": repeated(ids, 4), "self_bleu": self_bleu(ids)}
    return {name: value for name, value in found.items() if value is not None}


def self_bleu(texts: Sequence[Text]) -> float | None:
    """Mean BLEU of each text against all others, 0 to 1: high where a model writes the same again (Zhu et al. 2018).

    None for fewer than two texts.
    """
    if len(texts) < 2:
        return None
    return sum(bleu(t, [o for j, o in enumerate(texts) if j != i]) for i, t in enumerate(texts)) / len(texts)


def bleu(text: Text, references: Sequence[Text]) -> float:
    """BLEU-4 of one text, 0 to 1 (Papineni et al. 2002); the references share their n-grams.

    Orders that the text is too short for are left out, and an order without a match counts as half of one match, the
    next such as a quarter, and so on (NIST's smoothing): as `sacrebleu.sentence_bleu` has it by default.
    """
    logs, halving = [], 1.0
    for n in range(1, _ORDER + 1):
        own = Counter(grams(text, n))
        if not (total := own.total()):
            break
        allowed: Counter[tuple[int, ...]] = Counter()
        for reference in references:
            allowed |= Counter(grams(reference, n))
        if not (matches := (own & allowed).total()):
            if n == 1:
                return 0.0  # then no longer one matches either
            halving /= 2
        logs.append(math.log((matches or halving) / total))
    if not logs:
        return 0.0
    closest = min((abs(len(r) - len(text)), len(r)) for r in references)[1]
    brevity = min(0.0, 1.0 - closest / len(text))
    return math.exp(brevity + sum(logs) / len(logs))
