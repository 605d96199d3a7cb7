"""What runs of a flow are called in Prefect."""

from __future__ import annotations

from collections.abc import Callable

from prefect.runtime import flow_run


def after(words: str, parameter: str, default: str) -> Callable[[], str]:
    """These words and what the parameter is, or the default where it is empty."""
    return lambda: f"{words} {flow_run.parameters.get(parameter) or default}"


def after_settings(words: str) -> Callable[[], str]:
    """These words and the name that the settings bear: that of the overrides, or else the preset."""

    def name() -> str:
        overrides = flow_run.parameters.get("overrides")
        # Plain data where a deployment gave them, a form where a call did.
        own = overrides.get("name") if isinstance(overrides, dict) else getattr(overrides, "name", None)
        return f"{words} {own or flow_run.parameters.get('preset', '')}".strip()

    return name
