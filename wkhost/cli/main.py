"""The `wkhost` command: its global options, its sub-commands, and how errors look."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import click

from wkhost import __version__
from wkhost.cli.session import Session, one_sentence
from wkhost.errors import WkhostError

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("wkhost.cli.run", "Run the server in the foreground."),
    "demo": ("wkhost.cli.demo", "Show a throw-away server with three clients chatting."),
    "plugin": ("wkhost.cli.plugin", "Write, install and manage plugins."),
    "bench": ("wkhost.cli.bench", "Measure sends, fan-out, hook calls and idle connections."),
}
"""Name -> the module whose attribute of that name is the command, and one sentence of help."""


class LazyGroup(click.Group):
    """Imports a command's module only when it is called, so that `wkhost --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[name][0]), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Configuration file of the server; else WK_CONFIG, else ./wk.yaml where there is one.",
)
@click.version_option(__version__, prog_name="wkhost", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, file: Path | None) -> None:
    """A messaging server whose decisions are open to plugins."""
    ctx.obj = Session(file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    try:
        code = cli.main(arguments, prog_name="wkhost", standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.UsageError):
            error.show()
        else:
            _complain(error.format_message())
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away; the interpreter must not complain about it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (WkhostError, OSError, click.Abort, KeyboardInterrupt, BaseExceptionGroup) as error:
        return _failed(error)
    return code if isinstance(code, int) else 0


def _failed(error: BaseException) -> int:
    """Say what went wrong outside of our code; anything else is a bug and is raised."""
    causes = list(_leaves(error))
    if any(isinstance(each, click.Abort | KeyboardInterrupt) for each in causes):
        _complain("interrupted")
        return 130
    sentences = [_sentence_of(each) for each in causes]
    if None in sentences:
        raise error
    for sentence in dict.fromkeys(sentences):
        _complain(str(sentence))
    return 1


def _sentence_of(error: BaseException) -> str | None:
    if isinstance(error, WkhostError):
        return one_sentence(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors that are no groups: nurseries wrap what their tasks raise."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _complain(sentence: str) -> None:
    sys.stderr.write(f"wkhost: {sentence}\n")


if __name__ == "__main__":
    sys.exit(main())
