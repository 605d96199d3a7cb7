"""What Prefect says on the terminal, without what the command line says better."""

from __future__ import annotations

import logging

from gptmodel.errors import GptflowError


class _Quiet(logging.Filter):
    """Drops the traceback of an error or a signal that is told in one line at the end."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        told = isinstance(error, GptflowError) or (error is not None and not isinstance(error, Exception))
        return not (told or record.getMessage().startswith("Stopping temporary server"))


def quiet_prefect() -> None:
    """For the terminal only: the pages keep every line."""
    from prefect.logging.configuration import setup_logging

    setup_logging()
    for handler in logging.getLogger().handlers:  # where Prefect puts its console
        handler.addFilter(_Quiet())
