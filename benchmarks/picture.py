"""The figure people look for first, as a picture: what each member adds to a call, beside one hop through nginx."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from .stack import MEMBERS

__all__ = ["INK", "MUTED", "draw", "sheet", "text_at"]

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 760, 190, 90, 64, 40
INK, MUTED = "#1f2933", "#616e7c"
_COLORS = {"legacy": "#2f6f9f", "modern": "#e08a3c"}
_LABELS = {
    "nginx": "one nginx hop",
    "echo+resource_server": "resource server",
    "echo+limiter": "limiter",
    "echo+authorization": "tool authorization",
    "echo+affinity": "session affinity",
    "echo+tracing": "trace context",
    "echo+audit": "audit log",
    "echo+all": "all six",
}


def draw(results: Mapping[str, Any]) -> str:
    """An SVG: added p50 at one connection and the smallest body, both eras."""
    smallest = min((row["bytes"] for row in results["cases"]), default=0)
    added = {
        (row["variant"], row["era"]): row["added_p50"]
        for row in results["cases"]
        if row["bytes"] == smallest and row["connections"] == 1 and row["variant"] in _LABELS and "added_p50" in row
    }
    order = ["nginx", *(f"echo+{member}" for member in MEMBERS), "echo+all"]
    shown = [variant for variant in order if any(name == variant for name, _ in added)]
    most = max([*added.values(), 1.0])
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    parts = [
        text_at(16, 26, "Added to a call at p50, in microseconds", size=16, weight="bold"),
        text_at(16, 46, f"one connection, {smallest} bytes of text, the same echo server behind each", fill=MUTED),
    ]
    for number, variant in enumerate(shown):
        top = _TOP + number * _ROW
        parts.append(text_at(_LEFT - 10, top + 21, _LABELS[variant], anchor="end"))
        for place, (era, color) in enumerate(_COLORS.items()):
            value = added.get((variant, era))
            if value is None:
                continue
            length = max(1.0, value * scale)
            y = top + place * 15
            parts.append(f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="13" rx="2" fill="{color}"/>')
            parts.append(text_at(_LEFT + length + 6, y + 11, f"{value:.0f}", size=11, fill=MUTED))
    bottom = _TOP + len(shown) * _ROW + 14
    for place, (era, color) in enumerate(_COLORS.items()):
        x = _LEFT + place * 110
        parts.append(f'<rect x="{x}" y="{bottom - 10}" width="12" height="12" rx="2" fill="{color}"/>')
        parts.append(text_at(x + 18, bottom, f"{era} era", fill=MUTED))
    height = bottom + 18
    return sheet(_WIDTH, height, parts)


def sheet(width: int, height: int, parts: Sequence[str]) -> str:
    """A white SVG of that size with ``parts`` on it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def text_at(
    x: float, y: float, text: str, *, size: int = 13, weight: str = "normal", anchor: str = "start", fill: str = INK
) -> str:
    """A line of text; ``y`` is its base line."""
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{fill}">{escape(text)}</text>'
    )
