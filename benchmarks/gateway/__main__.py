"""``python -m benchmarks.gateway``: measure the gateway beside others, print tables, write JSON and a picture."""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.identity import issuer
from benchmarks.processes import has_nginx
from benchmarks.report import to_json

from . import contextforge, footprint, picture, report, rounds, wrk
from .contenders import CONTEXTFORGE, LABELS, names, serving, site

RESULTS = Path("benchmarks/gateway.json")
PICTURE = Path("docs/benchmarks-gateway.svg")
_FILES = 8192
"""Open files: a thousand streams are two or three thousand of them."""


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark --gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: less than a minute and a half")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=LABELS, help="measure these only")
    parser.add_argument(
        "--contextforge",
        nargs="?",
        const="",
        metavar="PYTHON",
        help=f"measure ContextForge {contextforge.VERSION} too: downloads it, with an interpreter that it can run on",
    )
    parser.add_argument("--json", type=Path, help=f"file for the figures; a whole run writes {RESULTS}")
    parser.add_argument("--picture", type=Path, help=f"file for the SVG; a whole run writes {PICTURE}")
    options = parser.parse_args()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, _FILES) if hard < 0 else max(soft, min(hard, _FILES)), hard))
    skipped = {}
    if options.contextforge is None:
        skipped[LABELS[CONTEXTFORGE]] = "it was not asked for (--contextforge)"
    else:
        _tell("installing ContextForge, unless it is there")
        contextforge.install(options.contextforge or None)
    if not has_nginx():
        skipped["nginx"] = "it is not installed, so no nginx hops can be told"
    wanted = [
        name
        for name in names(with_contextforge=options.contextforge is not None)
        if not options.only or name in options.only
    ]
    plan = rounds.Plan.quick() if options.quick else rounds.Plan.full()
    if not wrk.is_installed():
        skipped["the load by wrk"] = "it is not installed"
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, issuer() as issued_by, site(Path(directory), issued_by) as there:
        at, echo = there
        taken = footprint.measure(at, plan.starts, _tell)
        with serving(at, echo, wanted, _tell) as contenders:
            figures = rounds.measure(plan, at, echo, contenders, _tell)
            quick = rounds.quick_enough(contenders, figures) if wrk.is_installed() else []
            by_wrk = rounds.with_wrk(plan, at, echo, quick, _tell)
            document = report.document(
                figures,
                by_wrk,
                taken,
                contenders,
                skipped=skipped,
                versions={} if CONTEXTFORGE not in wanted else {"mcp-contextforge-gateway": contextforge.VERSION},
                seconds=time.monotonic() - begun,
            )
    print(report.table(document))
    whole = not options.quick and not options.only
    for path, default, text in (
        (options.json, RESULTS, to_json(document)),
        (options.picture, PICTURE, picture.draw(document)),
    ):
        target = path or (default if whole else None)
        if target is not None:
            target.write_text(text)
            _tell(f"written: {target}")


if __name__ == "__main__":
    main()
