"""The command line: `gptflow COMMAND`, or `python -m flows COMMAND`.

Prefect, MLflow and torch take seconds to import, so each command imports what it needs when it runs.
"""

from __future__ import annotations

from flows.commands.starting import restore_interrupts  # isort: skip - a Ctrl-C while the rest is imported

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.bars import shown_progress
from flows.commands.benchmark import benchmark
from flows.commands.card import card
from flows.commands.champions import champions, promote, rollback
from flows.commands.check_data import check_data
from flows.commands.compare import diff, reproduce
from flows.commands.config import config
from flows.commands.doctor import doctor
from flows.commands.export import export
from flows.commands.learn import loss, model_options, next_, sampling_options, the_model, tokens
from flows.commands.lineage import lineage
from flows.commands.options import UTF8, given_texts, json_option
from flows.commands.output import told_output
from flows.commands.overlap import overlap
from flows.commands.pictures import pictures
from flows.commands.plan import plan
from flows.commands.rate import rate
from flows.commands.report import report
from flows.commands.sections import Sectioned
from flows.commands.settings_options import checked_overrides, settings_options, starts_from
from flows.commands.signals import data_arrived
from flows.commands.store import store
from flows.commands.surprise import surprise
from flows.commands.sweep import sweep
from flows.commands.tracing import trace
from flows.commands.verify import verify
from gptmodel.errors import ConfigError, GptflowError

if TYPE_CHECKING:
    from gptmodel.store.artifacts import Artifact


@click.group(cls=Sectioned, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gptflow")
def cli() -> None:
    """Pretrain GPT-2-style language models, and know which bytes made them.

    Settings come from a preset, a YAML file and --set, later ones winning. Artifacts go to GPTFLOW_STORE (./store).
    """


@cli.command()
@settings_options
@starts_from
def run(preset: str, file: Path | None, sets: tuple[str, ...], wait: bool, as_json: bool) -> None:
    """The whole pipeline: fetch, tokenize, pretrain, evaluate.

    WHAT is a preset or a YAML file, as with --preset and --config.
    """
    name, overrides = checked_overrides(preset, file, sets)
    from flows.pipeline import pipeline

    _show(_run(pipeline, preset=name, overrides=overrides, wait=wait), as_json)


@cli.command()
@settings_options
@starts_from
def prepare(preset: str, file: Path | None, sets: tuple[str, ...], wait: bool, as_json: bool) -> None:
    """Fetch text and tokenize it into shards.

    WHAT is a preset or a YAML file, as with --preset and --config.
    """
    name, overrides = checked_overrides(preset, file, sets)
    from flows.prepare_data import prepare_data

    _show(_run(prepare_data, preset=name, overrides=overrides, wait=wait), as_json)


@cli.command()
@click.option("--shards", default="", help="Shards of the store; left out, those that the settings ask for.")
@settings_options
@starts_from
def pretrain(shards: str, preset: str, file: Path | None, sets: tuple[str, ...], wait: bool, as_json: bool) -> None:
    """Train a model on shards, or go on with a training that was stopped.

    WHAT is a preset or a YAML file, as with --preset and --config.
    """
    name, overrides = checked_overrides(preset, file, sets)
    from flows.pretrain import pretrain as flow

    _show(_run(flow, preset=name, shards=shards, overrides=overrides, wait=wait), as_json)


@cli.command()
@click.option("--model", default="", help="Checkpoint or weights of the store; left out, the newest checkpoint.")
@click.option("--shards", default="", help="Shards of the store; left out, those that the settings ask for.")
@click.option("--against", default="", metavar="MODEL", help="Another model, to compare with by a paired bootstrap.")
@settings_options
def evaluate(
    model: str,
    shards: str,
    against: str,
    preset: str,
    file: Path | None,
    sets: tuple[str, ...],
    wait: bool,
    as_json: bool,
) -> None:
    """Score a model on shards, and let it write samples; or compare it with another on the same documents."""
    name, overrides = checked_overrides(preset, file, sets)
    from flows.evaluate import evaluate as flow

    asked = {"model": model, "shards": shards, "against": against}
    _show(_run(flow, **asked, preset=name, overrides=overrides, wait=wait), as_json)


@cli.command("import")
@click.argument("source")
@click.option("--revision", default="", help="Commit of the repo (left out, the newest), or digest of an address.")
@click.option("--name", default="", help="Name in the model registry.")
@click.option(
    "--allow-private-addresses", is_flag=True, help="Let an address lie on this machine or a private network."
)
@click.option("--wait", is_flag=True, help="Wait for another run of the same, instead of refusing.")
@json_option
def import_(source: str, as_json: bool, **parameters: Any) -> None:
    """Import GPT-2 weights from SOURCE, every tensor accounted for, with a certificate.

    SOURCE is a Hugging Face repo id, a local directory in its layout, or OpenAI's own TensorFlow files: a directory, or
    the address that they lie under.
    """
    from flows.import_weights import import_weights

    _show(_run(import_weights, source=source, **parameters), as_json)


@cli.command()
@json_option
def sync(as_json: bool) -> None:
    """Send to MLflow what it missed while it was out of reach: each step, picture and model once."""
    from flows.commands.terminal import sync as send

    send(as_json=as_json)


@cli.command()
@click.argument("prompt", nargs=-1, type=UTF8)
@model_options
@click.option("--samples", type=click.IntRange(min=1), default=1, show_default=True, help="Texts for each prompt.")
@click.option("--max-new-tokens", type=int, help="Stop after this many tokens.")
@click.option("--stop", multiple=True, type=UTF8, metavar="TEXT", help="Stop before this text; may be repeated.")
@sampling_options
@click.option(
    "--stop-at-end-token/--past-end-token", default=None, help="End at the end-of-text token (the default), or go on."
)
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="bfloat16 is faster, and rounds.")
@json_option
def generate(prompt: tuple[str, ...], model: str, untrained: str, samples: int, as_json: bool, **decoding: Any) -> None:
    """Let a model go on from each PROMPT, token by token; several are written together.

    Without PROMPT, or with -, standard input is read, less one line end at its end.
    """
    from gptmodel.config import DecodingConfig
    from gptmodel.settings import parse_config

    settings = parse_config({k: v for k, v in decoding.items() if v is not None}, DecodingConfig)
    prompts = given_texts(prompt)
    from flows.commands.terminal import write
    from gptmodel.device import pick_device

    label, gpt = the_model(model, untrained)
    rows = [text for text in prompts for _ in range(samples)]
    write(rows, label, gpt.to(pick_device("auto")), settings, as_json=as_json)


cli.add_command(benchmark)
cli.add_command(check_data)
cli.add_command(champions)
cli.add_command(config)
cli.add_command(data_arrived)
cli.add_command(diff)
cli.add_command(doctor)
cli.add_command(export)
cli.add_command(lineage)
cli.add_command(loss)
cli.add_command(next_)
cli.add_command(overlap)
cli.add_command(pictures)
cli.add_command(plan)
cli.add_command(promote)
cli.add_command(rate)
cli.add_command(reproduce)
cli.add_command(rollback)
cli.add_command(store)
cli.add_command(card)
cli.add_command(surprise)
cli.add_command(sweep)
cli.add_command(report)
cli.add_command(tokens)
cli.add_command(trace)
cli.add_command(verify)


def _prepare_environment() -> None:
    """Keep Prefect and MLflow to this folder, and to the servers of `make up` if they run."""
    from tasks.operations.servers import environment

    for name, value in environment().items():
        os.environ.setdefault(name, value)


def _run(flow: Callable[..., Any], **parameters: Any) -> dict[str, Artifact]:
    """Run a flow in this process and return its artifacts."""
    from tasks.console import quiet_prefect, start_server_apart

    quiet_prefect()
    start_server_apart()
    found: dict[str, Artifact] = flow(**parameters)
    return found


def _show(artifacts: dict[str, Artifact], as_json: bool) -> None:
    from flows.commands.terminal import as_plain, show

    if as_json:
        click.echo(json.dumps(as_plain(artifacts), ensure_ascii=False))
    else:
        show(artifacts)


_GOES_ON = {"run", "prepare", "pretrain", "evaluate", "import", "benchmark", "sweep", "check-data", "sync", "rate"}
"""Commands that keep each step that is finished."""


def _stop(signum: int, _frame: object) -> None:
    # Prefect turns the signal into an exception of its own first, reports the run, and sends it again to this one.
    raise SystemExit(128 + signum)


def _say_stopped(signum: int) -> int:
    kept = "; what is done is kept. Run the same command to go on" if {*sys.argv[1:2]} & _GOES_ON else ""
    click.echo(f"gptflow: stopped by {signal.Signals(signum).name}{kept}", err=True)
    return 128 + signum


def _lost_server(error: Exception) -> str:
    """What to say if Prefect's server is gone, so that its answer to a run that it carried could not be had."""
    if "prefect" not in sys.modules:
        return ""
    from tasks.console import last_word_on

    return last_word_on(error)


def main() -> None:
    """Entry point: one line for each error; exit code 1 for a failure, 2 for a wrong setting, 128 + n for signal n."""
    try:
        signal.signal(signal.SIGTERM, _stop)
        restore_interrupts()
        if "generate" not in sys.argv[1:2]:
            _prepare_environment()
        logging.getLogger("gptmodel").setLevel(logging.INFO)
        with told_output(), shown_progress():
            cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(_say_stopped(signal.SIGINT))
    except SystemExit as end:
        sys.exit(_say_stopped(signal.SIGTERM) if end.code == 128 + signal.SIGTERM else end.code)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"gptflow: {problem}", err=True)
        sys.exit(error.exit_code)
    except GptflowError as error:
        click.echo(f"gptflow: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if not (told := _lost_server(error)):
            raise
        click.echo(f"gptflow: {told}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
