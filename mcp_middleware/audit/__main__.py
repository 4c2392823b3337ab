"""``python -m mcp_middleware.audit``: questions to an audit trail, from the command line."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from .query import AuditFilter, AuditTrail, TrailError, parse_time
from .record import DECISIONS
from .render import FORMATS

__all__ = ["main"]

_EPILOG: Final = """\
times:
  2026-07-28            the first moment of that day, UTC
  2026-07-28T09:30      UTC; 2026-07-28T09:30+02:00 names its zone
  90s 30m 24h 7d 2w     that long ago

examples:
  python -m mcp_middleware.audit audit.db --since 24h --decision denied
  python -m mcp_middleware.audit audit.jsonl --agent ci-bot --tool read_file --format csv
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status: 0, or 1 if the trail cannot be read (wrong usage exits with 2)."""
    options = _parser(datetime.now(UTC)).parse_args(arguments)
    wanted = AuditFilter(
        agent=options.agent,
        server=options.server,
        tool=options.tool,
        decision=options.decision,
        since=options.since,
        until=options.until,
    )
    trail = AuditTrail(options.path)
    try:
        _print(FORMATS[options.format](trail.read(wanted, limit=options.limit)))
    except TrailError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if trail.damaged:
        skipped = "1 damaged record was" if trail.damaged == 1 else f"{trail.damaged} damaged records were"
        print(f"warning: {skipped} skipped", file=sys.stderr)
    return 0


def _parser(now: datetime) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mcp_middleware.audit",
        description="Print the records of an audit trail, in the order in which they were written.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    time = _argument(lambda text: parse_time(text, now))
    parser.add_argument("path", help="a file written by SQLiteSink or JSONLinesSink")
    parser.add_argument("--agent", help="only this OAuth client")
    parser.add_argument("--server", help="only messages for this server")
    parser.add_argument("--tool", help="only calls of this tool")
    parser.add_argument("--since", type=time, metavar="TIME", help="only messages that arrived then or later")
    parser.add_argument("--until", type=time, metavar="TIME", help="only messages that arrived earlier")
    parser.add_argument("--decision", choices=DECISIONS, help="only messages of which this was decided")
    parser.add_argument("--limit", type=_argument(_count), metavar="N", help="only the last N of them")
    parser.add_argument("--format", choices=[*FORMATS], default="table", help="default: table")
    return parser


def _argument(convert: Callable[[str], object]) -> Callable[[str], object]:
    """``convert`` with its own words in argparse's error."""

    def converted(text: str) -> object:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise ValueError(f"{text!r} is no whole number from 1")
    return int(text)


def _print(lines: Iterable[str]) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", newline="")
    for line in lines:
        sys.stdout.write(line)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
