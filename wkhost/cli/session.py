"""What every command shares: the settings of the server it is about, the link to it, output."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.text import Text

from wkhost.config import CONFIG_VARIABLE, Settings, load_settings
from wkhost.config.values import Raw
from wkhost.errors import ConfigError
from wkhost.link.client_sync import connect_operator
from wkhost.link.contract import Error, Request, Response
from wkhost.link.errors import NoServerError

DEFAULT_FILE = Path("wk.yaml")
ANSWER_TIMEOUT_S = 60.0
"""An install or a reload waits for the plugin's new process."""
F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")


class CommandError(click.ClickException):
    """A command failed; `message` is one sentence for people."""

    exit_code = 1


class Session:
    """One invocation of `wkhost`: which server it is about and how it speaks."""

    def __init__(self, file: Path | None) -> None:
        self.out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)
        self._file = file

    def settings(self, overrides: Mapping[str, Raw] | None = None) -> Settings:
        """Load the settings and tell of warnings. Raises ConfigError."""
        settings, warnings = load_settings(
            self.config_file(), os.environ, {} if overrides is None else overrides
        )
        for sentence in warnings:
            self.warn(sentence)
        return settings

    @property
    def names_server(self) -> bool:
        """Whether --config was given: the person means one certain server."""
        return self._file is not None

    def config_file(self) -> Path | None:
        """--config, else WK_CONFIG, else ./wk.yaml where there is one."""
        if self._file is not None:
            return self._file
        named = os.environ.get(CONFIG_VARIABLE, "")
        if named:
            return Path(named)
        return DEFAULT_FILE if DEFAULT_FILE.is_file() else None

    def program(self) -> str:
        """Return how a person calls wkhost about the same server from the same folder."""
        script = Path(sys.executable).with_name("wkhost")
        command = "wkhost" if shutil.which("wkhost") else f"{sys.executable} -m wkhost"
        if command != "wkhost" and script.is_file():
            near = os.path.relpath(script)
            command = str(script) if near.startswith("..") else near
        file = self.config_file()
        return command if file in (None, DEFAULT_FILE) else f"{command} --config {file}"

    def warn(self, sentence: str) -> None:
        self.err.print(Text(f"warning: {plain(sentence)}", style="yellow"))

    def note(self, sentence: str) -> None:
        """Say something to the person that is not the command's result."""
        self.err.print(Text(sentence, style="dim"))

    def line(self, text: str = "", style: str = "") -> None:
        self.out.print(Text(plain(text), style=style))

    def json(self, value: object) -> None:
        """Print one JSON document on one line."""
        sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
        sys.stdout.flush()

    def ask(self, data_dir: Path, request: Request, expect: type[R]) -> R:
        """Ask the running server.

        Raises NoServerError when none is running, CommandError when the server says no.
        """
        with connect_operator(data_dir, timeout_s=ANSWER_TIMEOUT_S) as link:
            return expected(link.ask(request), expect)

    def ask_or(
        self, data_dir: Path, request: Request, expect: type[R], offline: Callable[[], R]
    ) -> R:
        """Ask the running server, or do it directly on the data directory when it is stopped."""
        try:
            return self.ask(data_dir, request, expect)
        except NoServerError:
            return offline()


def expected(answer: Response, expect: type[R]) -> R:
    """Return the answer if it is of type `expect`; raises CommandError otherwise."""
    if isinstance(answer, expect):
        return answer
    if isinstance(answer, Error):
        raise CommandError(plain(answer.text))
    raise CommandError(f"the server answered {type(answer).__name__}, not {expect.__name__}")


def plain(text: str) -> str:
    """Escape control and direction characters: text from plugins must not move the cursor."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def json_option(command: F) -> F:
    """Add `--json`; the command gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


pass_session = click.make_pass_decorator(Session)


def one_sentence(error: BaseException) -> str:
    """Return the text of an error for people."""
    prefix = "configuration: " if isinstance(error, ConfigError) else ""
    return prefix + plain(str(error))
