"""The report of a run as one web page that needs nothing else: no scripts, no other files; it prints, and follows light or dark screens.

    report_html(report) -> str          the content is `seglite.pictures.Report`, the same that report.png shows

Label maps and charts are inlined as PNG, photographs as JPEG. Small pictures are enlarged by the browser with their pixels kept square.
"""
from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from seglite.charts import LINES, line_chart, number, numbers, percent
from seglite.metrics import IGNORE
from seglite.pictures import Report, full_palette, png_bytes, score_of, tiles

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d2129; --muted: #667080; --rule: #d9dde3; --card: #f6f7f9; --bar: %s; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181d; --ink: #e6e8ec; --muted: #9aa3b2; --rule: #343a45; --card: #1f232a; --bar: #4aa3d8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 40px 28px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; } h2 { font-size: 20px; margin: 0 0 2px; } h3 { font-size: 16px; margin: 0 0 6px; }
section { border-top: 1px solid var(--rule); margin-top: 30px; padding-top: 18px; }
p { margin: 0 0 10px; } .muted, figcaption, caption { color: var(--muted); font-size: 14px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: 10px 14px; margin: 12px 0 0; white-space: pre-wrap;
      overflow-wrap: anywhere; font: 14px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 18px 0 0; padding: 0; }
.cards div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 16px; }
.cards dt { color: var(--muted); font-size: 14px; } .cards dd { margin: 0; font-size: 24px; font-weight: 650; } .small dd { font-size: 18px; }
.cards div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.row { display: grid; gap: 10px; margin-top: 4px; break-inside: avoid; } figure { margin: 0; min-width: 0; }
.row img { width: 100%%; display: block; background: #fff; } .row .pixels { image-rendering: pixelated; }
.sample { margin: 14px 0 0; break-inside: avoid; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%%, 480px), 1fr)); gap: 18px; margin-top: 12px; }
.charts img, .figure img { max-width: 100%%; background: #fff; border-radius: 6px; } .charts figure { background: #fff; border-radius: 6px; padding: 10px; }
.scroll { overflow-x: auto; } .tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%%, 420px), 1fr)); gap: 28px; margin-top: 12px; }
table { border-collapse: collapse; width: 100%%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 4px; } caption b { color: var(--ink); font-size: 16px; }
th { color: var(--muted); font-weight: 500; font-size: 14px; text-align: left; border-bottom: 1px solid var(--muted); padding: 4px 8px; white-space: nowrap; }
td:first-child { white-space: nowrap; }
td { border-bottom: 1px solid var(--rule); padding: 4px 8px; } .n { text-align: right; white-space: nowrap; } tr.strong td { font-weight: 700; } tr { break-inside: avoid; }
.swatch { display: inline-block; width: 14px; height: 14px; border-radius: 3px; border: 1px solid var(--rule); vertical-align: -2px; margin-right: 8px; }
.meter { background: var(--rule); height: 9px; border-radius: 2px; min-width: 120px; } .meter i { display: block; height: 9px; border-radius: 2px; background: var(--bar); }
.meter i, .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; padding: 0; margin: 16px 0 0; font-size: 14px; } ul.notes { margin: 8px 0 0; padding-left: 20px; }
@media print { main { max-width: none; padding: 0; } .charts { grid-template-columns: 1fr 1fr; } section { margin-top: 18px; } h2, h3 { break-after: avoid; } }
""" % LINES[0]


def data_uri(picture, photograph: bool = False) -> str:
    """A pillow picture or uint8 [H, W, 3] array as a data: address (JPEG for photographs of some size, PNG otherwise)."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    if photograph and picture.width * picture.height > 128 * 128:
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=88)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode()


def _cards(values: dict, kind: str = "") -> str:
    items = "".join(f"<div><dt>{escape(str(name))}</dt><dd>{escape(number(value))}</dd></div>" for name, value in values.items())
    return f'<dl class="cards {kind}">{items}</dl>'


def _swatch(colour) -> str:
    return f'<span class="swatch" style="background:#{"".join(f"{int(c):02x}" for c in colour)}"></span>'


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="muted">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _sample(sample: dict, palette: np.ndarray) -> str:
    """One row of pictures, shrunk to 640 pixels of width where they are larger."""
    height, width = np.asarray(sample["image"]).shape[:2]
    at = lambda wide: (wide, round(height * wide / width))  # noqa: E731
    shown = tiles(sample, palette, at(min(width, 640)))
    if "boundary" in shown:  # lines must be about as wide as they are shown: neither lost in a large photograph nor blocky in a small one
        shown["boundary"] = tiles(sample, palette, at(320))["boundary"]
    name = str(sample.get("name", ""))
    figures = "".join(
        f'<figure><figcaption>{escape(caption)}</figcaption><img class="{"pixels" if width < 200 else ""}" '
        f'src="{data_uri(picture, photograph=caption in ("image", "error", "boundary", "overlay"))}" alt="{escape(f"{name}: {caption}")}"></figure>'
        for caption, picture in shown.items())
    score = "  ·  ".join(escape(part) for part in (name, score_of(sample)) if part)
    return f'<div class="sample"><div class="row" style="grid-template-columns:repeat({len(shown)},1fr)">{figures}</div><p class="muted">{score}</p></div>'


def _legend(report: Report) -> str:
    colours = full_palette(report.palette)
    entries = [(name, colours[k]) for k, name in enumerate(report.classes)]
    entries += [("ignored", colours[IGNORE])] * report.has_ignored()
    return '<ul class="legend">' + "".join(f"<li>{_swatch(colour)}{escape(str(name))}</li>" for name, colour in entries) + "</ul>"


def _class_table(rows: Sequence[dict], palette: np.ndarray) -> str:
    head = "".join(f'<th class="n">{title}</th>' for title in ("IoU", "FP", "FN", "recall", "precision", "pixels"))
    body = []
    for k, row in enumerate(rows):
        meter = "absent" if row["iou"] is None else f'<div class="meter"><i style="width:{100 * row["iou"]:.1f}%"></i></div>'
        cells = "".join(f'<td class="n">{percent(row[key])}</td>' for key in ("iou", "fp", "fn", "recall", "precision"))
        body.append(f'<tr><td>{_swatch(palette[k])}{escape(str(row["class"]))}</td><td class="muted" style="width:30%">{meter}</td>{cells}'
                    f'<td class="n">{row["pixels"]:,}</td></tr>')
    return f'<div class="scroll"><table><thead><tr><th>class</th><th></th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _table(table: dict) -> str:
    columns, rows, strong = table["columns"], table["rows"], table.get("strong", ())
    numeric = [all(not isinstance(row[c], str) for row in rows) for c in range(len(columns))]
    kind = lambda c: ' class="n"' if numeric[c] else ""  # noqa: E731
    head = "".join(f"<th{kind(c)}>{escape(str(name))}</th>" for c, name in enumerate(columns))
    body = "".join(
        ('<tr class="strong">' if i in strong else "<tr>") + "".join(f"<td{kind(c)}>{escape(text)}</td>" for c, text in enumerate(row)) + "</tr>"
        for i, row in enumerate(zip(*(numbers([row[c] for row in rows]) for c in range(len(columns))))))
    note = f' {escape(table["note"])}' if table.get("note") else ""
    caption = f'<caption><b>{escape(table["title"])}</b>{note}</caption>' if table.get("title") else ""
    return f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _chart(curve: dict) -> str:
    """A chart at twice the size it is shown at, so that it stays sharp on fine screens."""
    picture = line_chart(**{"size": (560, 330), **curve}, zoom=2)
    return f'<figure><img src="{data_uri(picture)}" width="{picture.width // 2}" alt="{escape(curve.get("title") or "chart")}"></figure>'


def report_html(report: Report) -> str:
    """The whole report as the text of one HTML file."""
    head = f"<h1>{escape(report.title)}</h1>"
    if report.subtitle:
        head += f'<p class="muted">{escape(report.subtitle)}</p>'
    if report.command:
        head += f"<pre>{escape(report.command)}</pre>"
    if report.headline:
        head += _cards(report.headline)
    parts = []
    if report.samples:
        rows = "".join(_sample(sample, report.palette) for sample in report.samples)
        note = ("Error: wrong pixels are red, ignored ones hatched. Boundary: true borders are blue (pale where ignored), predicted ones amber on top."
                if report.has_truth() else "Predictions, and the same laid over the picture.")
        parts.append(_section("What it sees", rows + _legend(report), note))
    if report.per_class:
        note = "Percent. FP and FN are shares of the union, so that IoU + FP + FN = 100."
        parts.append(_section("Class by class", _class_table(report.per_class, report.palette), note))
    if report.curves:
        parts.append(_section("Curves", f'<div class="charts">{"".join(_chart(c) for c in report.curves)}</div>'))
    if report.tables:
        parts.append(_section("Tables", f'<div class="tables">{"".join(_table(t) for t in report.tables)}</div>'))
    for figure in report.figures:
        title = figure.get("title", "Figure")
        image = f'<div class="figure"><img src="{data_uri(figure["image"])}" alt="{escape(title)}"></div>'
        parts.append(_section(title, image, figure.get("note", "")))
    if report.costs:
        parts.append(_section("What it costs", _cards(report.costs, "small")))
    if report.note_lines():
        lines = "".join(f"<li>{f'<b>{escape(name)}</b>: ' if name else ''}{escape(sentence)}</li>" for name, sentence in report.note_lines())
        parts.append(_section("Notes", f'<ul class="notes">{lines}</ul>'))
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<header>{head}</header>\n"
            + "\n".join(parts) + "\n</main>\n</body>\n</html>\n")
