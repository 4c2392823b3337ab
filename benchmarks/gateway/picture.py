"""The figure people look for first, as a picture: what each adds to a call to the same server."""

import math
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from .contenders import DIRECT, LABELS

__all__ = ["draw"]

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 760, 270, 90, 76, 34
_INK, _MUTED = "#1f2933", "#616e7c"
_OURS, _OTHERS = "#2f6f9f", "#9aa5b1"


def draw(results: Mapping[str, Any]) -> str:
    """An SVG: what each adds to a call at p50 with one connection. Its scale is logarithmic: the slowest takes some
    hundred times as long as the fastest."""
    added = {
        row["name"]: row["added_p50"]
        for row in results["cases"]
        if row["client"] == "load.py" and row["connections"] == 1 and not row["apart"] and row["name"] != DIRECT
    }
    least = 10 ** math.floor(math.log10(max(1.0, min([*added.values(), 1000.0]))))
    decades = max(1.0, math.log10(max([*added.values(), 10.0 * least]) / least))
    scale = (_WIDTH - _LEFT - _RIGHT) / decades
    parts = [
        _text(16, 26, "Added to a call at p50, in microseconds (logarithmic)", size=16, weight="bold"),
        _text(16, 46, f"one connection, {results['bytes']} bytes of text, the same server behind each", fill=_MUTED),
    ]
    for number, (name, value) in enumerate(added.items()):
        top = _TOP + number * _ROW
        length = max(2.0, math.log10(max(value, least) / least) * scale)
        color = _OURS if LABELS[name].startswith("our") else _OTHERS
        parts.append(_text(_LEFT - 10, top + 14, LABELS[name], anchor="end"))
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="20" rx="2" fill="{color}"/>')
        parts.append(_text(_LEFT + length + 6, top + 15, f"{value:,.0f}", size=12, fill=_MUTED))
    height = _TOP + len(added) * _ROW + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif">\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _text(
    x: float, y: float, text: str, *, size: int = 13, weight: str = "normal", anchor: str = "start", fill: str = _INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{fill}">{escape(text)}</text>'
    )
