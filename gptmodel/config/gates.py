"""Settings of what text must be like before anything is trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from gptmodel.checked import STRICT, check

# YAML 1.1, which prefect.yaml is, reads an unquoted off as False.
Act = Annotated[Literal["off", "warn", "fail"], BeforeValidator(lambda found: "off" if found is False else found)]


@dataclass(frozen=True, kw_only=True)
class DataGatesConfig:
    """What text must be like before anything is trained on it. Each gate is off, warns, or fails: stops the run."""

    __pydantic_config__: ClassVar[Any] = STRICT

    size: Act = "fail"
    """The corpus against the last one of the same source: it may not have shrunk or grown out of all proportion."""
    largest_loss: float = 0.5
    """size: share of the last corpus's documents, or of its bytes, that may be gone."""
    largest_growth: float = 10.0
    """size: it may be so many times as large as the last one."""
    length: Act = "warn"
    """The lengths of the documents against those of the last corpus."""
    length_drift: float = 0.3
    """length: largest Kolmogorov-Smirnov distance between the two distributions of bytes a document."""
    language: Act = "warn"
    """The languages of a sample of documents, by py3langid."""
    languages: tuple[str, ...] = ()
    """language: codes such as `en` that are wanted; none given, only the drift is looked at."""
    other_languages: float = 0.1
    """language: share of documents that may be in other languages than the wanted ones."""
    language_drift: float = 0.2
    """language: largest total variation distance between the mix of languages and the last corpus's."""
    language_sample: int = 500
    """language: about so many documents are looked at."""
    garbage: Act = "fail"
    """Text that is no text: control characters, U+FFFD, few letters, encoded data, the same on and on."""
    garbage_share: float = 0.2
    """garbage: share of the corpus's bytes that may stand in such documents."""
    near_duplicates: Act = "warn"
    """Documents that are nearly equal to another one: MinHash over runs of 5 words."""
    near_duplicate_share: float = 0.3
    """near_duplicates: share of documents that may be nearly equal to an earlier one."""
    similarity: float = 0.8
    """near_duplicates, leak: estimated Jaccard similarity from which on two documents are nearly equal."""
    leak: Act = "warn"
    """Validation documents that are nearly equal to a training document."""
    leaked_share: float = 0.05
    """leak: share of validation documents for which this may be so."""
    contamination: Act = "warn"
    """Validation documents that stand in training text: by runs of 13 words (Brown et al. 2020, appendix C)."""
    ngram_words: int = 13
    """contamination, benchmarks: words of such a run."""
    contaminated_from: float = 0.5
    """contamination: a validation document counts if this share of its runs or more stands in training text."""
    contaminated_share: float = 0.05
    """contamination: share of validation documents that may count."""
    benchmarks: Act = "fail"
    """Items of named benchmarks of which a run of `ngram_words` words, or the whole of a shorter one, stands in
    training text."""
    benchmark_files: tuple[str, ...] = ()
    """benchmarks: files to look for: text with an item a line, or JSON lines with all their strings as one item."""
    benchmark_share: float = 0.01
    """benchmarks: share of a file's items that may be found."""
    pii: Act = "off"
    """Personal data: e-mail addresses, telephone numbers, and IBANs and card numbers whose check digits are right."""
    pii_share: float = 0.01
    """pii: share of documents that may hold some."""
    examples: int = 20
    """Offending documents listed for each gate."""

    def __post_init__(self) -> None:
        shares = (
            *("largest_loss", "length_drift", "other_languages", "language_drift", "garbage_share"),
            *("near_duplicate_share", "leaked_share", "contaminated_from", "contaminated_share"),
            *("benchmark_share", "pii_share"),
        )
        check(
            self,
            [
                *(
                    (not 0 <= getattr(self, n) <= 1, f"{n} is {getattr(self, n)}; give a share from 0 to 1")
                    for n in shares
                ),
                (
                    not 1 <= self.largest_growth < float("inf"),
                    f"largest_growth is {self.largest_growth}; give a number of at least 1, such as 10",
                ),
                (
                    not 0.5 <= self.similarity <= 1,
                    f"similarity is {self.similarity}; give 0.5 to 1, such as 0.8",
                ),
                (
                    not 5 <= self.ngram_words <= 50,
                    f"ngram_words is {self.ngram_words}; give 5 to 50, such as 13",
                ),
                *(
                    (getattr(self, n) < 1, f"{n} is {getattr(self, n)}; give a whole number of at least 1")
                    for n in ("language_sample", "examples")
                ),
            ],
        )
