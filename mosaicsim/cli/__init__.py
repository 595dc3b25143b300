"""The command line: one short file a verb, imported when it is used."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib import import_module

import click

from mosaicsim import __version__
from mosaicsim.errors import MosaicsimError, nearest

VERBS = {
    "run": "Simulate a scenario and compare its schedulers.",
    "execute": "Run a scenario on real vLLM engines.",
    "plot": "Remake the plots of a result folder.",
    "trace": "Generate, import, inspect and validate traces.",
    "validate": "Hold the simulation against real runs, or a log of them.",
    "profile": "Make a profile file: what a model costs on a device.",
    "schedulers": "List the schedulers and their options.",
    "profiles": "List the models and devices that are profiled.",
    "doctor": "Say whether real engines can run here, and what is missing.",
    "schema": "Print the JSON schema of a scenario.",
}


class _Verbs(click.Group):
    """Imports a verb only when it runs, so that --help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(import_module(f"mosaicsim.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"no command '{args[0]}'{nearest(args[0], VERBS)}; commands: {', '.join(VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mosaicsim")
def cli() -> None:
    """Schedule Mixture-of-Agents workloads over a few GPUs, and see where the GPUs idle."""


def _interrupt(interrupted: list[int]) -> None:
    interrupted.append(1)
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: errors in one line, exit codes 0 ok, 1 failed, 2 wrong input."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    interrupted: list[int] = []
    for request in (signal.SIGINT, signal.SIGTERM):  # both clean up on their way out
        signal.signal(request, lambda number, frame: _interrupt(interrupted))
    try:
        code = cli(standalone_mode=False)
        sys.stdout.flush()
        if interrupted:  # the exception came up where Python cannot pass it on
            raise KeyboardInterrupt
    except MosaicsimError as error:
        click.echo(f"mosaicsim: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("mosaicsim: interrupted", err=True)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"mosaicsim: cannot write to standard output: {error.strerror}", err=True)
        sys.exit(1)
    # click returns the code a verb exits with instead of raising it
    sys.exit(code if isinstance(code, int) else 0)
