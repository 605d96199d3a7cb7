"""Personal data by pattern: e-mail addresses, telephone numbers, IBANs and credit-card numbers.

Patterns find what is written in a usual way and nothing else: no names, no postal addresses. Numbers with check digits
are taken only if these are right (ISO 13616 for IBANs, Luhn for cards: ISO/IEC 7812), so that other long numbers stay.
What is found is never shown in whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b", re.ASCII)
# International (E.164: + and 8 to 15 digits), or North American with separators; bare digits are not taken.
_PHONE = re.compile(
    r"(?<![\w+.-])(?:\+[1-9](?:[ ().-]{0,2}\d){7,14}|(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4})(?![\w-]|\.\d)", re.ASCII
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b", re.ASCII)
_CARD = re.compile(r"(?<![\w.-])[3-6](?:[ -]?\d){12,18}(?![\w-]|\.\d)", re.ASCII)
_IBAN_LENGTHS = range(15, 35)


@dataclass(frozen=True)
class Found:
    """What kind of datum begins at which character, masked."""

    kind: str
    at: int
    masked: str


def find(text: str) -> Iterator[Found]:
    """All personal data in a text, kind by kind."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield Found("e-mail address", match.start(), _masked(match.group()))
    for match in _IBAN.finditer(text):
        if is_iban(match.group()):
            yield Found("IBAN", match.start(), _masked(match.group()))
    for match in _CARD.finditer(text):
        if is_card(match.group()):
            yield Found("card number", match.start(), _masked(match.group()))
    for match in _PHONE.finditer(text):
        yield Found("telephone number", match.start(), _masked(match.group()))


def is_card(text: str) -> bool:
    """Whether its digits are 13 to 19, not all the same, and their Luhn sum is right."""
    digits = [int(char) for char in text if char.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = (digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether it has an IBAN's length and its check digits are right: the number read in base 36 leaves 1 by 97."""
    packed = text.replace(" ", "")
    if len(packed) not in _IBAN_LENGTHS:
        return False
    turned = packed[4:] + packed[:4]
    return int("".join(str(int(char, 36)) for char in turned)) % 97 == 1


def _masked(text: str) -> str:
    """The first two characters, and the shape of the rest."""
    return text[:2] + re.sub(r"[A-Za-z]", "x", re.sub(r"\d", "#", text[2:]))
