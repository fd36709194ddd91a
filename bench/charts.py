"""Two kinds of chart as SVG text: lines over categories, and horizontal bars. Readable on light and dark pages, without a library:
what those draw needs either scripts and fonts from elsewhere, or a page of settings to look like this.

It knows values and labels. It must not know what they mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

WIDTH = 760
CHAR = 6.6  # pixels that a character of the 12-pixel text takes at the most, on average

#: Colours of text, grid and series, by scheme. A picture in a page follows the reader's scheme, and has its own ground in any case.
STYLE = """
  .ground { fill: #ffffff } text { fill: #1f2328; font: 12px system-ui, sans-serif } .title { font-weight: 600; font-size: 15px }
  .soft { fill: #59636e } .whisker { stroke: #1f2328; stroke-width: 1 }
  .grid { stroke: #d1d9e0; stroke-width: 1 } .line { fill: none; stroke-width: 2 } .spread { stroke-width: 1.2 }
  .k0 { fill: #0969da; stroke: #0969da } .k1 { fill: #bc4c00; stroke: #bc4c00 } .k2 { fill: #1a7f37; stroke: #1a7f37 }
  .k3 { fill: #8250df; stroke: #8250df } .bar.k1 { fill: #59636e } .bar.k2 { fill: #afb8c1 } .bar { stroke: none } .line { fill: none }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 } text { fill: #e6edf3 } .whisker { stroke: #e6edf3 } .soft { fill: #9198a1 } .grid { stroke: #30363d }
    .k0 { fill: #4493f8; stroke: #4493f8 } .k1 { fill: #f0883e; stroke: #f0883e } .k2 { fill: #3fb950; stroke: #3fb950 }
    .k3 { fill: #ab7df8; stroke: #ab7df8 } .bar.k1 { fill: #9198a1 } .bar.k2 { fill: #484f58 } .bar { stroke: none } .line { fill: none }
  }
"""


@dataclass(frozen=True)
class Point:
    """A median with the least and the most that was seen."""

    value: float
    low: float
    high: float


def number(value: float) -> str:
    """Return a figure as people read it: 12,300 or 4.56."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def line_chart(title: str, x_label: str, y_label: str, categories: list[str], series: dict[str, list[Point | None]], *,
               is_log: bool) -> str:
    """Draw a line for each of up to four series over categories, with its spread at each point.

    Args:
        series: name -> one point, or None, for each category.
        is_log: a logarithmic axis; then values must be above 0.
    """
    height, left, right, top, bottom = 410, 84, 24, 88, 58
    points = [point for line in series.values() for point in line if point is not None]
    ticks = _log_ticks(points) if is_log else _ticks(max(point.high for point in points))
    scale = math.log10 if is_log else float
    low, high = scale(ticks[0]), scale(ticks[-1])

    def y_of(value: float) -> float:
        return height - bottom - (scale(max(value, ticks[0])) - low) / (high - low) * (height - top - bottom)

    step = (WIDTH - left - right) / len(categories)
    parts = [_text(16, 26, title, "title"), _text(left - 8, top - 16, y_label, "soft", "end"),
             _text((left + WIDTH - right) / 2, height - 14, x_label, "soft", "middle")]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>')
        parts.append(_text(left - 8, y_of(tick) + 4, number(tick), "soft", "end"))
    for place, category in enumerate(categories):
        parts.append(_text(left + step * (place + 0.5), height - bottom + 20, category, "", "middle"))
    for kind, (name, line) in enumerate(series.items()):
        # Lines that meet at a point keep their spreads apart.
        shift = (kind - (len(series) - 1) / 2) * 7
        there = [(left + step * (place + 0.5) + shift, point) for place, point in enumerate(line) if point is not None]
        path = " ".join(f"{x:.1f},{y_of(point.value):.1f}" for x, point in there)
        parts.append(f'<polyline class="line k{kind}" points="{path}"/>')
        for x, point in there:
            parts.append(f'<line class="spread k{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{y_of(point.low):.1f}" y2="{y_of(point.high):.1f}"/>')
            parts.append(f'<circle class="k{kind}" cx="{x:.1f}" cy="{y_of(point.value):.1f}" r="3.5"/>')
    parts += _legend(list(series), "", 44)
    return _svg(height, title, parts)


def bar_chart(title: str, unit: str, kinds: list[str], rows: list[tuple[str, int, Point, str]]) -> str:
    """Draw a horizontal bar a row, on one linear axis from 0, each with its figure.

    Args:
        kinds: what up to three colours mean.
        rows: label, place of its kind, the figure, a note behind it.
    """
    top, row_height = 78, 28
    height = top + row_height * len(rows) + 18
    left = 24 + CHAR * max(len(label) for label, *_ in rows)
    right = 16 + CHAR * max(len(f"{number(point.value)}  {note}") for _, _, point, note in rows)
    most = max(point.high for _, _, point, _ in rows)
    unit_x = (WIDTH - left - right) / most
    parts = [_text(16, 26, title, "title"), _text(WIDTH - 16, 26, unit, "soft", "end"), *_legend(kinds, "bar ", 46)]
    for place, (label, kind, point, note) in enumerate(rows):
        y = top + place * row_height
        parts.append(_text(left - 10, y + 14, label, "", "end"))
        parts.append(f'<rect class="bar k{kind}" x="{left:.1f}" y="{y}" width="{max(1.0, point.value * unit_x):.1f}" height="19" rx="2"/>')
        parts.append(f'<line class="whisker" x1="{left + point.low * unit_x:.1f}" x2="{left + point.high * unit_x:.1f}" '
                     f'y1="{y + 9.5}" y2="{y + 9.5}"/>')
        end = left + max(point.value, point.high) * unit_x + 8
        parts.append(f'<text x="{end:.1f}" y="{y + 14}">{number(point.value)}<tspan class="soft" dx="8">{escape(note)}</tspan></text>')
    return _svg(height, title, parts)


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(names: list[str], style: str, y: float) -> list[str]:
    parts, x = [], 16.0
    for kind, name in enumerate(names):
        parts.append(f'<rect class="{style}k{kind}" x="{x:.1f}" y="{y - 1:.1f}" width="10" height="10" rx="2"/>')
        parts.append(_text(x + 16, y + 8, name, ""))
        x += 16 + CHAR * len(name) + 24
    return parts


def _ticks(most: float) -> list[float]:
    """Return round ticks from 0 to at least `most`, about five."""
    rough = max(most, 1e-9) / 5
    base = 10 ** math.floor(math.log10(rough))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= rough)
    return [step * count for count in range(math.ceil(most / step) + 1)]


def _log_ticks(points: list[Point]) -> list[float]:
    """Return ticks at 1, 2 and 5 times powers of ten (only powers over more than three decades) around all points."""
    low, high = min(point.low for point in points), max(point.high for point in points)
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    begin = max(place for place, tick in enumerate(ticks) if tick <= low)
    end = next(place for place, tick in enumerate(ticks) if tick >= high)
    return ticks[begin:max(end, begin + 1) + 1]


def _svg(height: float, title: str, parts: list[str]) -> str:
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
            f'aria-label="{escape(title)}">\n<style>{STYLE}</style>\n<rect class="ground" width="100%" height="100%" rx="6"/>\n'
            f'{body}\n</svg>\n')
