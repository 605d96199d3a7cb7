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
# The register of ISO 13616 (SWIFT, release 101), and countries that use IBANs without being in it.
_IBAN_COUNTRIES = {
    15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "AO CV GW LY MZ PT ST", 26: "DZ IR IS TR", 27: "BI CF CG CM DJ FR GA GQ GR IT KM MC MG MR SM TD",
    28: "AL AZ BF BJ BY CI CY DO GT HN HU LB MA ML NE NI PL SN SV TG", 29: "BR EG PS QA UA", 30: "JO KW MU YE",
    31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
_IBAN_LENGTHS = {country: length for length, names in _IBAN_COUNTRIES.items() for country in names.split()}


def _iban(length: int, countries: str) -> str:
    fours, rest = divmod(length - 4, 4)
    last = f" ?[A-Z0-9]{{{rest}}}" if rest else ""
    return rf"(?:{countries.replace(' ', '|')})\d\d(?: ?[A-Z0-9]{{4}}){{{fours}}}{last}"


# Looked for within a look-ahead, so that one may begin inside what turned out to be none.
_IBAN = re.compile(
    rf"\b(?=[A-Z]{{2}}\d\d)(?=({'|'.join(_iban(*each) for each in _IBAN_COUNTRIES.items())})\b)", re.ASCII
)
_CARD = re.compile(r"(?<![\w.-])(?=([3-6](?:[ -]?\d){12,18})(?![\w-]|\.\d))", re.ASCII)
# As they are printed, by first digits: without what follows, such as a date or a security code.
_CARD_ALONE = re.compile(
    r"(?:(?:[456]\d|35)\d\d([ -])\d{4}\1\d{4}\1\d{4}|3[47]\d\d([ -])\d{6}\2\d{5}|3[068]\d\d([ -])\d{6}\3\d{4}"
    r"|[3-6]\d{12,18})(?![\w-]|\.\d)",
    re.ASCII,
)


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
        if is_iban(match[1]):
            yield Found("IBAN", match.start(), _masked(match[1]))
    end = 0
    for match in _CARD.finditer(text):
        alone = _CARD_ALONE.match(text, match.start())
        number = next((each for each in (match[1], alone and alone[0]) if each and is_card(each)), "")
        if number and match.start() >= end:
            end = match.start() + len(number)
            yield Found("card number", match.start(), _masked(number))
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
    """Whether it is as long as its country's and its check digits are right: read in base 36 it leaves 1 by 97."""
    packed = text.replace(" ", "")
    if len(packed) != _IBAN_LENGTHS.get(packed[:2]):
        return False
    turned = packed[4:] + packed[:4]
    return int("".join(str(int(char, 36)) for char in turned)) % 97 == 1


def _masked(text: str) -> str:
    """The first two characters, and the shape of the rest."""
    return text[:2] + re.sub(r"[A-Za-z]", "x", re.sub(r"\d", "#", text[2:]))
