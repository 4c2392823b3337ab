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
from .render import FORMATS, REPORT_FORMATS
from .report import KEYS, check_keys

__all__ = ["main", "parse"]

_TIMES: Final = """\
times:
  2026-07-28            the first moment of that day, UTC
  2026-07-28T09:30      UTC; 2026-07-28T09:30+02:00 names its zone
  90s 30m 24h 7d 2w     that long ago

"""
_EPILOG: Final = f"""\
{_TIMES}examples:
  python -m mcp_middleware.audit audit.db --since 24h --decision denied
  python -m mcp_middleware.audit audit.jsonl --agent ci-bot --tool read_file --format csv

`python -m mcp_middleware.audit report` adds up what calls cost; see its own --help.
"""
_REPORT: Final = "report"
_REPORT_EPILOG: Final = f"""\
{_TIMES}examples:
  python -m mcp_middleware.audit report --by agent,tool --since 24h
  python -m mcp_middleware.audit report audit.db --by month,agent --since 2026-01-01 --format csv
"""
_DEFAULT_TRAIL: Final = "audit.db"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status: 0, or 1 if the trail cannot be read (wrong usage exits with 2)."""
    options = parse(sys.argv[1:] if arguments is None else arguments, datetime.now(UTC))
    wanted = AuditFilter(
        agent=options.agent,
        server=options.server,
        tool=options.tool,
        decision=None if options.is_report else options.decision,
        since=options.since,
        until=options.until,
    )
    trail = AuditTrail(options.path)
    try:
        if options.is_report:
            _print_report(trail, wanted, options)
        else:
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


def parse(arguments: Sequence[str], now: datetime) -> argparse.Namespace:
    """What the arguments ask for. Wrong ones end the process with status 2. A file of the name ``report`` is
    ``./report``."""
    is_report = bool(arguments) and arguments[0] == _REPORT
    parser = _report_parser(now) if is_report else _parser(now)
    options = parser.parse_args(arguments[1:] if is_report else arguments)
    if options.since is not None and options.until is not None and options.since >= options.until:
        parser.error("--until is not later than --since: no message can be between them")
    return options


def _print_report(trail: AuditTrail, wanted: AuditFilter, options: argparse.Namespace) -> None:
    with trail.report(options.by, wanted, top=options.top) as report:
        _print(REPORT_FORMATS[options.format](report))
        unpriced = report.total.unpriced
        if unpriced:
            calls = "1 call" if report.total.calls == 1 else f"{report.total.calls} calls"
            print(f"note: no cost is known of {unpriced} of {calls}", file=sys.stderr)
        if report.others is not None and options.format == "csv":
            hidden = "1 more row is" if report.others[0] == 1 else f"{report.others[0]} more rows are"
            print(f"note: {hidden} not shown", file=sys.stderr)


def _parser(now: datetime) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mcp_middleware.audit",
        description="Print the records of an audit trail, in the order in which they were written.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(is_report=False)
    parser.add_argument("path", help="a file written by SQLiteSink or JSONLinesSink")
    _add_filters(parser, now)
    parser.add_argument("--decision", choices=DECISIONS, help="only messages of which this was decided")
    parser.add_argument("--limit", type=_argument(_count), metavar="N", help="only the last N of them")
    parser.add_argument("--format", choices=[*FORMATS], default="table", help="default: table")
    return parser


def _report_parser(now: datetime) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m mcp_middleware.audit {_REPORT}",
        description="Add up what the calls in an audit trail took and cost. What costs most comes first.",
        epilog=_REPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(is_report=True)
    parser.add_argument(
        "path", nargs="?", default=_DEFAULT_TRAIL, help=f"a file written by a sink; default: {_DEFAULT_TRAIL}"
    )
    parser.add_argument(
        "--by",
        type=_argument(_keys),
        default="agent",
        metavar="KEY,...",
        help=f"a row for each {', '.join(KEYS)}, or several of them; default: agent",
    )
    _add_filters(parser, now)
    parser.add_argument("--top", type=_argument(_count), metavar="N", help="only the N rows that cost most")
    parser.add_argument("--format", choices=[*REPORT_FORMATS], default="table", help="default: table")
    return parser


def _add_filters(parser: argparse.ArgumentParser, now: datetime) -> None:
    time = _argument(lambda text: parse_time(text, now))
    parser.add_argument("--agent", help="only this OAuth client")
    parser.add_argument("--server", help="only messages for this server")
    parser.add_argument("--tool", help="only calls of this tool")
    parser.add_argument("--since", type=time, metavar="TIME", help="only messages that arrived then or later")
    parser.add_argument("--until", type=time, metavar="TIME", help="only messages that arrived earlier")


def _keys(text: str) -> tuple[str, ...]:
    return check_keys([key.strip() for key in text.split(",")])


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
