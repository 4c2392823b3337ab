"""``python -m benchmarks.estimates``: the error of the default token estimate, by kind of text, as a Markdown table.

The true numbers are those of two public vocabularies. Texts are single documents: modules of Python's own library, this
project's own pages, the corpus of the tests, and documents made here from a seed, as tools answer them. Of each class
the error of the sum, and the least and greatest of a single document.
"""

import base64
import json
import random
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from mcp_middleware.ratelimit import EstimatingCounter, ExactCounter

ROOT = Path(__file__).parent.parent
VOCABULARIES = ("o200k_base", "cl100k_base")
MOST = 40_000
"""Characters of one document."""


def _files(root: Path, pattern: str, number: int) -> Iterator[str]:
    paths = sorted(path for path in root.glob(pattern) if path.stat().st_size > 200)
    for path in Random(1).sample(paths, min(number, len(paths))):  # noqa: S311  # the same each time
        yield path.read_text(encoding="utf-8", errors="replace")[:MOST]


def _uuid(draw: Random) -> str:
    text = draw.randbytes(16).hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _record(draw: Random, number: int) -> dict[str, Any]:
    return {
        "id": draw.randint(1, 10**9),
        "name": draw.choice(("Anna", "Bob", "Chiara", "Dmitri")) + str(number),
        "price": round(draw.random() * 100, draw.randint(2, 14)),
        "tags": draw.sample(("red", "blue", "urgent", "archived"), 2),
        "created": f"2026-07-{number % 28 + 1:02}T10:11:12Z",
    }


def _row(draw: Random, number: int) -> str:
    return f"{number},{draw.random():.4f},ACME GmbH,{draw.randint(0, 9999)},2026-01-0{number % 9 + 1}\n"


def _log(draw: Random, number: int) -> str:
    level = draw.choice(("INFO", "WARNING", "DEBUG"))
    return (
        f"2026-07-01T10:{number % 60:02}:12.{draw.randint(0, 999):03}Z {level} worker-{number % 7}: served in 12 ms\n"
    )


def _made(make: Callable[[Random], str], number: int = 10) -> list[str]:
    return [make(Random(seed)) for seed in range(number)]  # noqa: S311  # the same each time


def texts() -> dict[str, list[str]]:
    """Documents by class."""
    corpus = json.loads((ROOT / "tests" / "ratelimit" / "corpus.json").read_text(encoding="utf-8"))
    classes: dict[str, list[str]] = {}
    for entry in corpus:
        classes.setdefault(f"{entry['class']} (tests)", []).append(entry["text"])
    return classes | {
        "Python modules": list(_files(Path(sysconfig.get_path("stdlib")), "**/*.py", 400)),
        "Markdown pages": list(_files(ROOT / "docs", "**/*.md", 40)),
        "JSON records": _made(lambda draw: json.dumps([_record(draw, n) for n in range(60)])),
        "JSON, indented, with UUIDs": _made(
            lambda draw: json.dumps([{"id": _uuid(draw), "ok": True, "n": n} for n in range(40)], indent=2)
        ),
        "CSV rows": _made(lambda draw: "".join(_row(draw, n) for n in range(300))),
        "log lines": _made(lambda draw: "".join(_log(draw, n) for n in range(200))),
        "base64": _made(lambda draw: base64.b64encode(draw.randbytes(9000)).decode()),
        "hexadecimal": _made(lambda draw: draw.randbytes(4000).hex()),
        "URLs with tokens": _made(
            lambda draw: "".join(f"https://example.com/a/b?x={n}&token={draw.randbytes(8).hex()}\n" for n in range(50))
        ),
        "UUIDs": _made(lambda draw: "\n".join(_uuid(draw) for _ in range(200))),
        "digits": _made(lambda draw: str(draw.randint(10**3000, 10**3001))),
        "one letter repeated": [letter * 4000 for letter in "xAo-="],
        "blanks": [" " * 8000, "\n" * 5000, "\t" * 3000],
        "emoji": ["😀🎉👍🏽 " * 500],
    }


def _estimate(counter: EstimatingCounter, text: str) -> int:
    random.seed(1)  # where the slices of a long text begin is drawn
    return counter.count(text)


def table() -> str:
    """Markdown."""
    counter = EstimatingCounter()
    exact = {name: ExactCounter(name) for name in VOCABULARIES}
    lines = ["| text | documents | " + " | ".join(f"against `{name}`" for name in VOCABULARIES) + " |"]
    lines.append("|---|---|" + "---|" * len(VOCABULARIES))
    for name, documents in texts().items():
        estimates = [_estimate(counter, text) for text in documents]
        cells = []
        for one in exact.values():
            true = [one.count(text) for text in documents]
            errors = [100 * (estimate / number - 1) for estimate, number in zip(estimates, true, strict=True)]
            total = 100 * (sum(estimates) / sum(true) - 1)
            cells.append(f"{total:+.0f} % ({min(errors):+.0f} to {max(errors):+.0f} %)")
        lines.append(f"| {name} | {len(documents)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
