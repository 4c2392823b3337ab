"""The figure people look for first, as a picture: what each adds to a call to the same server."""

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.picture import MUTED, sheet, text_at

from .contenders import DIRECT, EVERYTHING, FORWARDER, LABELS, NOTHING, SAMPLED

__all__ = ["draw"]

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 760, 270, 90, 76, 34
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
        text_at(16, 26, "Added to a call at p50, in microseconds (logarithmic)", size=16, weight="bold"),
        text_at(16, 46, f"one connection, {results['bytes']} bytes of text, the same server behind each", fill=MUTED),
    ]
    for number, (name, value) in enumerate(added.items()):
        top = _TOP + number * _ROW
        length = max(2.0, math.log10(max(value, least) / least) * scale)
        color = _OURS if name in (FORWARDER, NOTHING, EVERYTHING, SAMPLED) else _OTHERS
        parts.append(text_at(_LEFT - 10, top + 14, LABELS[name], anchor="end"))
        parts.append(f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="20" rx="2" fill="{color}"/>')
        parts.append(text_at(_LEFT + length + 6, top + 15, f"{value:,.0f}", size=12, fill=MUTED))
    height = _TOP + len(added) * _ROW + 10
    return sheet(_WIDTH, height, parts)
