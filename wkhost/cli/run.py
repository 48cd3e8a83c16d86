"""`wkhost run`: serve in the foreground, and say what listens where."""

from __future__ import annotations

import click

from wkhost.cli.session import Session, json_option, pass_session
from wkhost.config import Settings
from wkhost.config.values import Raw
from wkhost.errors import ConfigError
from wkhost.plugin_host.registry import Registry

_LABELS = {
    "tcp": "clients, TCP",
    "ws": "clients, WebSocket",
    "wss": "clients, secure WebSocket",
    "http": "business API",
    "manager": "metrics",
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

    use = settings.plugin.use

    def ready(listening: dict[str, str]) -> None:
        if as_json:
            session.json({"event": "ready", "listening": listening})
            return
        names = _enabled(settings) if use is None else list(use)
        for line in banner(settings, listening, names, session.program()):
            session.line(line)

    return serve(settings, plugins=None if use is None else list(use), ready=ready)


def _make_root_dir(settings: Settings) -> None:
    try:
        settings.root_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"rootDir is {str(settings.root_dir)!r}, expected a folder that is there or can be "
            f"made: {error.strerror}"
        ) from error


def _enabled(settings: Settings) -> list[str]:
    entries = Registry(settings.plugin_path).entries()
    return sorted(no for no, entry in entries.items() if entry.enabled)


def banner(
    settings: Settings, listening: dict[str, str], plugins: list[str], program: str
) -> list[str]:
    """Return the lines that tell what listens where and what to try next.

    `listening` maps tcp, ws, wss, http and manager to the address as bound; `program` is how to
    call wkhost about this server.
    """
    names = ", ".join(plugins) or "none"
    facts = [(label, listening[kind]) for kind, label in _LABELS.items() if kind in listening]
    facts.append(("plugins", names if settings.plugin.on else "switched off (plugin.on)"))
    facts.append(("data", str(settings.root_dir.absolute())))
    tries = []
    if "http" in listening:
        api = listening["http"].replace("0.0.0.0", "127.0.0.1")
        tries.append((f"curl http://{api}/health", ""))
    if "moderation" not in plugins:
        tries.append((f"{program} plugin install moderation", "refuse or mask words"))
    tries.append((f"{program} plugin list", "what decides on messages"))
    tries.append((f"{program} plugin new hello", "a plugin of your own"))
    tries.append(("Ctrl-C", "stop"))
    return ["", "wkhost is ready", *_columns(facts), "", "try next", *_columns(tries), ""]


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in rows)
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in rows]
