"""One self-contained HTML page: the claims first, then what they were read from."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxml.report import tables as tables_lib
from jaxml.report.claims import Claim


class Section(NamedTuple):
    """A paper's part of a report.

    Attributes:
      title: heading.
      claims: the claims, shown together at the top of the page.
      tables: ``{caption: rows}``.
      figures: ``{caption: PNG bytes}``.
      notes: sentences, for example what differs from the paper's set-up.
      error: why the paper has no result, or empty.
      link: address of the paper's own report, or empty.
    """

    title: str
    claims: Sequence[Claim] = ()
    tables: Mapping[str, tables_lib.Rows] = {}
    figures: Mapping[str, bytes] = {}
    notes: Sequence[str] = ()
    error: str = ""
    link: str = ""


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d9dee4;
  --page: #ffffff; --card: #f6f8fa; --yes: #116329; --no: #b3261e; --accent: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa5b1; --line: #363c44;
  --page: #14171b; --card: #1d2126; --yes: #6fd28b; --no: #ff9389; --accent: #7db7f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--accent); }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; font-weight: 400; }
.scroll { overflow-x: auto; margin: 1rem 0 1.5rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem;
  border-bottom: 1px solid var(--line); }
th { background: var(--card); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { font-weight: 700; }
.yes .verdict { color: var(--yes); } .no .verdict { color: var(--no); }
.unmeasured .verdict { color: var(--soft); font-weight: 400; }
code { font: .82rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
.claims td:first-child { min-width: 13rem; }
.claims tr.command td { border-bottom: 2px solid var(--line); padding-top: 0; }
.claims tr.claim td { border-bottom: 0; }
figure { margin: 1.25rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: .5rem;
  border: 1px solid var(--line); border-radius: 8px; }
.error { border-left: 4px solid var(--no); background: var(--card); padding: .6rem .9rem;
  overflow-wrap: anywhere; }
@media (max-width: 44rem) {
  .claims thead { display: none; }
  .claims, .claims tbody, .claims tr, .claims td { display: block; }
  .claims td { padding: .15rem 0; border: 0; }
  .claims td:empty { display: none; }
  .claims td[data-name]:not(:first-child)::before { content: attr(data-name) ": ";
    color: var(--soft); }
  .claims tr.claim { padding-top: .8rem; } .claims td:first-child { font-weight: 600; }
  .claims tr.command { padding-bottom: .8rem; }
}
"""


def render(title: str, sections: Sequence[Section]) -> str:
    """Renders a page that needs no other file; it reads in light, in dark and on a phone.

    Args:
      title: heading of the page.
      sections: one for each paper; their claims stand together at the top.

    Returns:
      The HTML text, with every string escaped.
    """
    claims = [(section, claim) for section in sections for claim in section.claims]
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="soft">{_text(summary([c for _, c in claims]))}</p>',
        _claims(claims, with_section=len(sections) > 1),
        *(_section(section) for section in sections),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def summary(claims: Sequence[Claim]) -> str:
    """Counts the verdicts in one sentence."""
    if not claims:
        return "No claim was measured."
    known = sum(claim.holds is False and bool(claim.reason) for claim in claims)
    of_them = f" ({known} of them for a known reason)" if known else ""
    said = []
    for verdict, one, many, note in (
        (True, "holds", "hold", ""),
        (False, "does not hold", "do not hold", of_them),
        (None, "cannot be measured at this scale", "cannot be measured at this scale", ""),
    ):
        if count := sum(claim.holds is verdict for claim in claims):
            said.append(f"{count} {one if count == 1 else many}{note}")
    return f"{len(claims)} claim{'s' * (len(claims) > 1)}: {', '.join(said)}."


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)


def _claims(claims: list[tuple[Section, Claim]], *, with_section: bool) -> str:
    if not claims:
        return ""
    names = ("claim", "paper's number", "number here", "baseline it beats", "seeds, spread")
    head = "".join(f"<th>{name}</th>" for name in (*names, "holds"))
    rows = []
    for section, claim in claims:
        source = f"{section.title}, {claim.paper}" if with_section else claim.paper
        cells = (
            f'{_text(claim.claim)}<br><span class="soft">{_text(source)}</span>',
            *map(_text, (claim.paper_value, claim.value, claim.baseline)),
            _text(", ".join(part for part in (claim.seeds, claim.spread) if part)),
        )
        told = claim.reason and not claim.holds
        reason = f'<p class="soft">{_text(claim.reason)}</p>' if told else ""
        kind = {True: "yes", False: "no", None: "unmeasured"}[claim.holds]
        tds = "".join(
            f'<td data-name="{_text(name)}">{cell}</td>'
            for name, cell in zip(names, cells, strict=True)
        )
        rows.append(
            f'<tr class="claim {kind}">{tds}'
            f'<td data-name="holds" class="verdict">{_text(claim.verdict)}</td></tr>\n'
            f'<tr class="command"><td colspan="6">{reason}<code>{_text(claim.command)}</code>'
            "</td></tr>"
        )
    return (
        f'<div class="scroll"><table class="claims">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{_text(section.title)}</h2>"]
    if section.error:
        parts.append(f'<p class="error">{_text(section.error)}</p>')
    parts += [f"<p>{_text(note)}</p>" for note in section.notes]
    for caption, png in section.figures.items():
        data = base64.b64encode(png).decode()
        # Bytes 16 to 20 of a PNG are its width; ours have 1.6 pixels for each one of the page.
        width = round(int.from_bytes(png[16:20], "big") / 1.6)
        parts.append(
            f'<figure><img alt="{_text(caption)}" width="{width}" '
            f'src="data:image/png;base64,{data}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )
    parts += [_table(caption, rows) for caption, rows in section.tables.items() if rows]
    if section.link:
        parts.append(f'<p><a href="{_text(section.link)}">Tables and notes of this paper</a></p>')
    return "\n".join(parts)


def _table(caption: str, rows: tables_lib.Rows) -> str:
    names = tables_lib.columns(rows)
    numeric = tables_lib.numeric_columns(rows)
    attribute = {name: ' class="number"' if name in numeric else "" for name in names}
    head = "".join(f"<th{attribute[name]}>{_text(name)}</th>" for name in names)
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{attribute[n]}>{_text(tables_lib.cell(row.get(n)))}</td>" for n in names)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{_text(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )
