"""`wkhost run`: serve in the foreground, and say what listens where."""

from __future__ import annotations

import click

from wkhost.cli.session import Session, json_option, pass_session
from wkhost.config import Settings
from wkhost.config.values import Raw
from wkhost.errors import ConfigError

_LABELS = {
    "tcp": "clients, TCP",
    "ws": "clients, WebSocket",
    "wss": "clients, secure WebSocket",
    "http": "business API",
}


@click.command()
@click.option("--addr", metavar="ADDRESS", help="Where TCP clients connect.")
@click.option("--ws-addr", metavar="ADDRESS", help="Where WebSocket clients connect.")
@click.option("--wss-addr", metavar="ADDRESS", help="Where secure WebSocket clients connect.")
@click.option("--http-addr", metavar="ADDRESS", help="Where the business API listens.")
@click.option("--root-dir", metavar="FOLDER", help="Folder of everything the server keeps.")
@click.option("--mode", metavar="MODE", help="debug, release, bench or test.")
@click.option(
    "--plugins",
    metavar="A,B",
    help="Start with exactly these plugins instead of those enabled in the data directory.",
)
@json_option
@pass_session
def run(
    session: Session,
    addr: str | None,
    ws_addr: str | None,
    wss_addr: str | None,
    http_addr: str | None,
    root_dir: str | None,
    mode: str | None,
    plugins: str | None,
    as_json: bool,
) -> int:
    """Run the server in the foreground until SIGTERM or Ctrl-C.

    SIGTERM drains within 10 s and exits 0; SIGHUP reads the certificate again. With --json one
    line on stdout tells the addresses as soon as the server is ready.
    """
    flags: dict[str, str | None] = {
        "addr": addr,
        "wsAddr": ws_addr,
        "wssAddr": wss_addr,
        "httpAddr": http_addr,
        "rootDir": root_dir,
        "mode": mode,
        "plugin.use": plugins,
    }
    overrides: dict[str, Raw] = {key: value for key, value in flags.items() if value is not None}
    settings = session.settings(overrides)
    _make_root_dir(settings)

    from wkhost import log
    from wkhost.node import serve

    log.configure(
        log.level_of(settings.logger.level, debug=settings.debug),
        line_numbers=settings.logger.line_num,
    )

    def ready(listening: dict[str, str]) -> None:
        if as_json:
            session.json({"event": "ready", "listening": listening})
        else:
            for line in banner(settings, listening):
                session.line(line)

    use = settings.plugin.use
    return serve(settings, plugins=None if use is None else list(use), ready=ready)


def _make_root_dir(settings: Settings) -> None:
    try:
        settings.root_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"rootDir is {str(settings.root_dir)!r}, expected a folder that is there or can be "
            f"made: {error.strerror}"
        ) from error


def banner(settings: Settings, listening: dict[str, str]) -> list[str]:
    """Return the lines that tell what listens where and what to try next.

    `listening` maps tcp, ws, wss and http to the address as bound.
    """
    width = max(map(len, _LABELS.values()))
    lines = ["", "wkhost is ready"]
    for kind, label in _LABELS.items():
        if kind in listening:
            lines.append(f"  {label:<{width}}  {listening[kind]}")
    lines.append(f"  {'data':<{width}}  {settings.root_dir.absolute()}")
    api = listening.get("http", "").replace("0.0.0.0", "127.0.0.1")
    lines += ["", "try next"]
    if api:
        lines.append(f"  curl http://{api}/health")
    lines += [
        "  wkhost plugin install moderation    refuse or mask words",
        "  wkhost plugin list                  what decides on messages now",
        "  wkhost plugin new hello             a plugin of your own",
        "  Ctrl-C                              stop",
        "",
    ]
    return lines
