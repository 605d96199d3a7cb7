"""The list of commands that `gptflow` prints: by what a person wants to do, and not by the alphabet."""

from __future__ import annotations

import click

SECTIONS = {
    "Train": ("run", "prepare", "pretrain", "import", "check-data", "config", "plan", "sweep"),
    "Write, token by token": ("generate", "tokens", "next", "loss", "surprise"),
    "Judge": ("evaluate", "report", "pictures", "benchmark", "overlap", "rate"),
    "Know which bytes made it": ("lineage", "verify", "reproduce", "trace", "diff", "card"),
    "Retrain": ("champions", "promote", "rollback", "data-arrived"),
    "Keep in order": ("doctor", "store", "sync", "export"),
}


class Sectioned(click.Group):
    """A group whose help lists its commands by `SECTIONS`; what stands in none of them comes last."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Called by click for `--help`."""
        names = self.list_commands(ctx)
        rest = [name for name in names if not any(name in section for section in SECTIONS.values())]
        limit = formatter.width - 6 - max(map(len, names))
        for title, section in {**SECTIONS, "More": tuple(rest)}.items():
            rows = [(n, c.get_short_help_str(limit)) for n in section if (c := self.get_command(ctx, n)) is not None]
            if rows:
                with formatter.section(title):
                    # all sections with one column of names, so that what they do stands in one line
                    formatter.write_dl([(name.ljust(max(map(len, names))), told) for name, told in rows])
