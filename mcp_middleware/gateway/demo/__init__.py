"""``mcp-gateway demo``: the gateway with everything on, on this machine alone, and two agents that call servers by it.

``issuer.py``                 stands in for your identity provider; loopback only
``servers.py``                three MCP servers, one of them in two processes
``stage.py``                  starts them and the gateway, by a ``gateway.yaml`` that it writes
``agent.py``, ``story.py``    the agents, and what they do
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from textwrap import indent
from typing import TYPE_CHECKING, Final

from .processes import DemoError, until_signal

if TYPE_CHECKING:
    from .stage import Stage

__all__ = ["main"]

_NEEDED: Final = ("httptools", "mcp", "uvicorn")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration. Returns its exit status: 0, or 1 where something went otherwise than the story has it,
    or was ended before its end, 2 where a package is missing (wrong usage exits with 2, too)."""
    parser = argparse.ArgumentParser(
        prog="mcp-gateway demo",
        description="Run a gateway with everything on, three MCP servers and an issuer on this machine, show what "
        "agents meet there, and stay up until Ctrl-C. Nothing leaves the machine.",
        allow_abbrev=False,
    )
    parser.add_argument("--once", action="store_true", help="end after the story")
    parser.add_argument("--port", type=_port, help="the gateway's port (default: a free one)")
    parser.add_argument("--otlp", metavar="URL", help="send traces and metrics there, OTLP over HTTP")
    options = parser.parse_args(arguments)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        install = "pip install 'mcp-middleware[demo]'"
        verb = "comes" if len(missing) == 1 else "come"
        print(f"error: the demonstration needs {', '.join(missing)}, which {verb} with {install}", file=sys.stderr)
        return 2
    logging.getLogger("mcp").addHandler(logging.NullHandler())  # what its client meets is the story's to tell
    try:
        return asyncio.run(until_signal(_tell(once=options.once, port=options.port, otlp=options.otlp)))
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r}; it must be a whole number from 1 to 65535")
    return port


async def _tell(*, once: bool, port: int | None, otlp: str | None) -> int:
    from .stage import set_up
    from .story import Story

    print("Three MCP servers behind one gateway with everything on, and two agents that call them.", flush=True)
    async with set_up(port=port, otlp=otlp) as stage:
        _introduce(stage)
        story = Story(stage)
        await story.tell()
        await _print_trail(stage, "The audit trail")
        await _print_trail(stage, "What it cost", "report", "--by", "agent,server")
        if story.surprises:
            print(f"\n{len(story.surprises)} surprises; the gateway's log says more:", file=sys.stderr)
            print((stage.home / "gateway.log").read_text(errors="replace"), file=sys.stderr)
        if not once:
            _invite(stage)
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
    print(f"\nEverything has ended. What it left is in {stage.home}", flush=True)
    return 1 if story.surprises else 0


def _introduce(stage: "Stage") -> None:
    print(f"\n  {'gateway':<8}  {stage.origin}")
    print(f"  {'issuer':<8}  {stage.issuer}   in place of your identity provider; for this demonstration only")
    for server in ("search", "files", "tickets"):
        print(f"  {server:<8}  {stage.url(server)}")
    print(f"\nThe gateway runs by this file, {stage.home / 'gateway.yaml'}:\n")
    print(indent(stage.configuration, "  "), end="", flush=True)


async def _print_trail(stage: "Stage", title: str, *arguments: str) -> None:
    """What the audit trail has of all this, by the package's own command."""
    command = ["-m", "mcp_middleware.audit", *arguments, str(stage.home / "audit.db")]
    print(f"\n{title}: python {' '.join(command)}\n", flush=True)
    process = await asyncio.create_subprocess_exec(sys.executable, "-P", *command)
    if await process.wait():
        raise DemoError("the audit trail cannot be read")


def _invite(stage: "Stage") -> None:
    agent, tickets = stage.agents["assistant"], stage.url("tickets")
    print(
        f"""
Up until Ctrl-C; the logs are in {stage.home}. To call it with a client of your own:

  MCP server         {tickets}, or .../files/mcp, .../search/mcp
  OAuth client       client_id {agent.client_id}, client_secret {agent.secret} (client credentials)
  or with a token    Authorization: Bearer ..., whose value is the access_token that this prints, good for an hour:

  curl -s {stage.issuer}/token -u {agent.client_id}:{agent.secret} \\
    -d grant_type=client_credentials -d resource={tickets}
""",
        flush=True,
    )
