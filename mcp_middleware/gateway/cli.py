"""``mcp-gateway``: run the gateway, check its file, print the file's schema, or show it all at work.

Exit status: 0 as asked, 1 where it could not start, what it says not be written, or the file is dangerous to
``--strict``, 2 where the command line or the configuration is wrong, which an authorization server may say too, 128 and
the signal's number where a second signal ended it at once.
"""

import argparse
import gc
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mcp_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from .app import Gateway
    from .config import Config

__all__ = ["main"]

FIRST_PROBE: Final = 3.5
"""Seconds that the banner waits for servers: a little longer than a probe does, so that it knows who was silent."""
_NEEDED: Final = ("httptools", "uvicorn", "uvloop")
"""What serves and calls servers, of the extra ``gateway``; a file can be checked without."""
_LEVELS: Final = ("debug", "info", "warning", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what ``arguments`` (the process's own by default) say; the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if sys.platform == "win32" and (words[:1] in (["run"], ["demo"]) or "--online" in words):
        _complain("mcp-gateway: this does not work on Windows, which lacks the signals and calls it needs; use Linux")
        return 2
    if words[:1] == ["demo"]:  # its options are its own, and argparse hands on none that come first
        from .demo import main as demo

        return demo(words[1:])
    gc.disable()  # until a worker has started: what is loaded by then stays, and to walk it again and again takes time
    try:
        return _do(_parser().parse_args(words))
    finally:
        gc.enable()


def _do(given: argparse.Namespace) -> int:
    if given.command == "schema":
        from .schema import schema

        _print(json.dumps(schema(), indent=2))
        return 0
    from .config import load

    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing and (given.command == "run" or given.online):
        wanting = f"this needs {', '.join(missing)}: install mcp-middleware[gateway]"
        _complain(f"mcp-gateway: {wanting}")
        return 2
    try:
        config = load(given.file)
        _try_out(config, tls=given.command == "check")  # who serves by it tries it himself
    except ConfigurationError as error:
        _complain(str(error))
        return 2
    if given.command == "check":
        _summarize(config)
        status = int(given.strict and bool(config.warnings))
        return max(status, _ask(config)) if given.online else status
    return _run(config, Path(given.file).absolute(), given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mcp-gateway",
        description="One governed endpoint for many agents and many MCP servers.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mcp-gateway {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    run = commands.add_parser(
        "run", help="serve by a configuration file, until SIGTERM; SIGHUP reads it again", allow_abbrev=False
    )
    run.add_argument("--log-level", choices=_LEVELS, default="info", help="the least that is logged (info)")
    run.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="lines for people or programs (text)"
    )
    check = commands.add_parser(
        "check", help="say everything that is wrong with a configuration file; 2 if anything is", allow_abbrev=False
    )
    check.add_argument(
        "--online",
        action="store_true",
        help="ask authorization servers, servers and Redis as well; 2 if one contradicts the file, 1 if one is silent",
    )
    check.add_argument("--strict", action="store_true", help="1 if anything about it is dangerous")
    for command in (run, check):
        command.add_argument("file", help="the configuration, as gateway.yaml")
    commands.add_parser("schema", help="print the JSON Schema of a configuration file, for editors")
    commands.add_parser("demo", help="show it all at work, with no file or server of yours; needs the extra demo")
    return parser


def _try_out(config: "Config", *, tls: bool) -> None:
    """Make what a sound file may still be wrong about on this machine. Raises ConfigurationError."""
    from mcp_middleware.storage import RedisConnection

    try:
        if config.state != "memory":
            RedisConnection(config.state)  # connects to nothing yet, and says so where its extra is not installed
    except ConfigurationError as error:
        raise ConfigurationError(f"{config.source}: state: {error}") from None
    if tls and config.tls is not None:
        from .certificate import Certificate

        try:
            Certificate(config.tls)
        except ConfigurationError as error:
            raise ConfigurationError(f"{config.source}: {error}") from None


def _summarize(config: "Config") -> None:
    from .banner import capabilities

    lines = [f"{config.source}: good"]
    lines += [f"  {config.resource(name)} -> {', '.join(server.instances)}" for name, server in config.servers.items()]
    lines += [f"  {word}: {text}" for word, text in capabilities(config).items()]
    lines += [f"  dangerous: {warning}" for warning in config.warnings]
    _print("\n".join(lines))


def _print(text: str) -> None:
    """Print to whoever listens still: `| head` may have seen enough."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(_shown(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _complain(f"mcp-gateway: the output cannot be written: {error.strerror}; give it another place")
            raise SystemExit(1) from None


def _complain(text: str) -> None:
    print(_shown(text), file=sys.stderr)


def _shown(text: str) -> str:
    """``text``, in which nothing that is quoted moves the cursor."""
    from .access_log import visible

    return "\n".join(map(visible, text.split("\n")))


def _ask(config: "Config") -> int:
    import asyncio

    from .lines import configure_logging
    from .online import ask

    configure_logging(sys.stderr, "error", "text")  # what is a warning to who serves is said below
    logging.getLogger("mcp_middleware.storage").setLevel(logging.WARNING)  # but for why Redis cannot be reached
    try:
        findings = asyncio.run(ask(config))
    except ConfigurationError as error:  # of the environment, such as certificates that cannot be read
        _complain(f"mcp-gateway: {error}")
        return 2
    for finding in findings:
        text = f"  online: {finding.text}"
        (_complain if finding.wrong else _print)(text)
    return 2 if any(finding.wrong for finding in findings) else int(any(finding.silent for finding in findings))


def _run(config: "Config", path: Path, given: argparse.Namespace) -> int:
    from .lines import configure_logging
    from .server import StartError, Worker, listen
    from .supervisor import CANNOT_START, WRONG, supervise

    lines = configure_logging(sys.stderr, given.log_level, given.log_format)
    try:
        bound = listen(config.host, config.port)
    except StartError as error:
        _complain(f"mcp-gateway: {error}")
        return CANNOT_START

    async def announce(gateway: "Gateway", port: int) -> None:
        text = await _banner(gateway, port)
        if given.log_format == "json":
            logging.getLogger("mcp_middleware.gateway").info("%s", text)
        else:
            lines.say(text)

    def work(parent: int | None, first: bool, again: bool) -> int:
        from .access_log import AccessLogWriter, as_json, as_text

        render = as_json if given.log_format == "json" else as_text
        status = CANNOT_START
        lines.start()
        try:
            worker = Worker(
                bound,
                config,
                path=path,
                access_log=AccessLogWriter(lines.add, render) if config.access_log else None,
                announce=announce if first else None,
                parent=parent,
                again=again,
            )
            status = worker.run()
        except (StartError, ConfigurationError) as error:
            lines.say(_shown(f"mcp-gateway: {error}\n"))
            status = WRONG if isinstance(error, StartError) and error.wrong else CANNOT_START
        finally:
            if not lines.close():
                os._exit(status)  # nobody reads, and the interpreter's own end would wait for that
        return status

    return work(None, True, False) if config.workers == 1 else supervise(config.workers, work)


async def _banner(gateway: "Gateway", port: int) -> str:
    from .banner import render

    await gateway.probe(FIRST_PROBE)
    return render(gateway.config, port=port, readiness=gateway.readiness(), version=_version())


def _version() -> str:
    try:
        return version("mcp-middleware")
    except PackageNotFoundError:
        return "from its sources"
