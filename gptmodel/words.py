"""Bytes and times as people read them: written in one way everywhere."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(n_bytes: float) -> str:
    """Three digits and a decimal unit: `999 B`, `1.20 kB`, `31.4 MB`, `512 GB`."""
    value, unit = float(n_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:  # what would be rounded up to 1,000
        value, unit = value / 1_000, unit + 1
    digits = 0 if unit == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """The two units that say most: `9.5 s`, `2 min 5 s`, `3 h 4 min`, `2 d 3 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    return f"{hours} h {minute} min" if hours else f"{minutes} min {second} s"
