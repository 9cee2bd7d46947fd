#!/usr/bin/env python3
"""Draws what recipes lose at which share of the bytes: an SVG that reads on light and on dark pages.

  pith eval --recipes "pith;kvzip;keydiff:recent=16;snapkv" --keep 0.5,0.2,0.1,0.05 --output rows.json --json >/dev/null
  scripts/plot_quality.py rows.json > docs/quality.svg

Both axes are logarithmic: KL from the full cache (nats, mean over the answers' tokens of all tasks) over the share of
the full cache's bytes that is kept.
"""
import argparse
import json
import math
import sys

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 34, 48
COLORS = ["#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#868e96", "#e8590c"]


def curves(table):
    """{recipe: [(bytes, kl), ...]}, by bytes."""
    found = {}
    for row in table:
        if row["task"] == "all" and row["policy"] != "full" and row["kl"] > 0:
            found.setdefault(row["policy"], []).append((row["kept_bytes"], row["kl"]))
    return {name: sorted(points) for name, points in found.items()}


def ticks(low, high):
    """1, 2, 5 times powers of ten within [low, high]."""
    steps = [m * 10.0**e for e in range(-6, 3) for m in (1, 2, 5)]
    return [t for t in steps if low <= t <= high * 1.0001]


def scale(low, high, start, end):
    span = math.log(high) - math.log(low)
    return lambda v: start + (end - start) * (math.log(v) - math.log(low)) / span


def draw(found, title):
    xs = [x for points in found.values() for x, _ in points]
    ys = [y for points in found.values() for _, y in points]
    x_low, x_high = min(xs) * 0.9, max(xs) * 1.1
    y_low, y_high = min(ys) * 0.7, max(ys) * 1.4
    x_of = scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    y_of = scale(y_low, y_high, HEIGHT - BOTTOM, TOP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        "<style>text{fill:#495057}.grid{stroke:#adb5bd;stroke-opacity:.35}"
        "@media(prefers-color-scheme:dark){text{fill:#ced4da}}</style>",
        f'<text x="{LEFT}" y="18" font-weight="bold">{title}</text>',
    ]
    for t in ticks(x_low, x_high):
        out.append(f'<line class="grid" x1="{x_of(t):.1f}" x2="{x_of(t):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        out.append(f'<text x="{x_of(t):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{100 * t:g}%</text>')
    for t in ticks(y_low, y_high):
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(t):.1f}" y2="{y_of(t):.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y_of(t) + 4:.1f}" text-anchor="end">{t:g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">'
               "bytes kept, of the full f16 cache</text>")
    out.append(f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
               "KL from the full cache</text>")
    labels = sorted((y_of(points[0][1]), i, name) for i, (name, points) in enumerate(found.items()))
    for i, (name, points) in enumerate(found.items()):
        color = COLORS[i % len(COLORS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        width = 3.5 if name == "pith" else 1.8
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>')
        out.extend(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{color}"/>' for x, y in points)
    for row, (_, i, name) in enumerate(labels):
        y = TOP + 14 + 22 * row
        color = COLORS[i % len(COLORS)]
        out.append(f'<line x1="{WIDTH - RIGHT + 12}" x2="{WIDTH - RIGHT + 34}" y1="{y - 4}" y2="{y - 4}" '
                   f'stroke="{color}" stroke-width="3"/>')
        out.append(f'<text x="{WIDTH - RIGHT + 40}" y="{y}">{name}</text>')
    out.append("</svg>")
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="JSON that pith eval wrote")
    parser.add_argument("--title", default="What is lost where not everything fits")
    args = parser.parse_args()
    with open(args.results, encoding="utf-8") as file:
        results = json.load(file)
    table = results.get("table", results.get("summary", []))
    found = curves(table)
    if not found:
        sys.exit(f"{args.results} has no row of a recipe over all tasks")
    print(draw(found, args.title))


if __name__ == "__main__":
    main()
