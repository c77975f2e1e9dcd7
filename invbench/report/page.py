"""Pages: Markdown for pull requests and READMEs, and one self-contained HTML file."""

from __future__ import annotations

import html

from invbench.report.text import conclusion, grid, machine, method, notes, printable, title
from invbench.results import ResultSet

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
.answer { font-size: 1.25rem; font-weight: 600; }
.how { opacity: .75; }
"""


def render_markdown(results: ResultSet) -> str:
    """The answer, a table, and how it was measured."""
    head, rows = grid(results)
    lines = [f"**{conclusion(results)}**", "", f"{title(results)}  ", f"{machine(results)}  ", method(results), ""]
    lines += [_markdown_row(head), _markdown_row(["---", *["---:"] * (len(head) - 1)])]
    lines += [_markdown_row(row) for row in rows]
    lines += ["", *(f"* {note}" for note in notes(results))]
    return "\n".join(lines).rstrip()


def render_html(results: ResultSet) -> str:
    """A page of its own: no script, nothing fetched."""
    headings, cells = grid(results)
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings)
    rows = "\n".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in cells)
    remarks = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes(results))
    how = "<br>".join(html.escape(text) for text in (title(results), machine(results), method(results)))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>invbench</title>
<style>{STYLE}</style>
<h1>invbench</h1>
<p class="answer">{html.escape(conclusion(results))}</p>
<p class="how">{how}</p>
<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
<ul>{remarks}</ul>
<p class="how"><code>{html.escape(printable(results.command))}</code>, {html.escape(results.created)}, invbench \
{html.escape(results.tool_version)}</p>
</html>"""


def _markdown_row(texts: list[str]) -> str:
    escaped = [text.replace("|", "\\|") for text in texts]
    return f"| {' | '.join(escaped)} |"
