"""The shell of pages with plots that need no network: style, scripts, and colours that follow the reader's."""

from __future__ import annotations

from html import escape

from plotly.offline import get_plotlyjs

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #5b636d; --ground: #fcfcfb; --line: #d9dde2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3abb5; --ground: #15181c; --line: #363c44; } }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .4rem; }
p { margin: .5rem 0; }
.lead, nav { color: var(--soft); }
nav a { color: inherit; margin-right: 1rem; white-space: nowrap; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); }
.left { text-align: left; }
h3 { font-size: 1rem; margin: 1.6rem 0 0; }
"""

#: Plots take the page's colours, also when the reader changes them.
_THEME = """
const dark = matchMedia('(prefers-color-scheme: dark)');
function paint() {
  const page = getComputedStyle(document.documentElement);
  const ink = page.getPropertyValue('--ink').trim(), line = page.getPropertyValue('--line').trim();
  for (const plot of document.querySelectorAll('.js-plotly-plot')) {
    const change = {'font.color': ink};
    for (const axis of ['xaxis', 'yaxis']) {
      change[axis + '.gridcolor'] = line;
      change[axis + '.linecolor'] = line;
      change[axis + '.zerolinecolor'] = line;
    }
    Plotly.relayout(plot, change);
  }
}
paint();
dark.addEventListener('change', paint);
"""


def html_page(title: str, lead: str, body: str) -> str:
    """Returns a page that stands alone.

    Args:
        title: Its heading.
        lead: A sentence below it.
        body: HTML; its plots come without Plotly's script, which is in the page.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}\n<script>{_THEME}</script>\n</body>\n</html>\n'
    )
