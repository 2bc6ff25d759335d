'use strict';
// Plots take the page's colours, also when the reader changes them, and those of paper when the page is printed.
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function themed() {
  const ink = colour('--ink'), line = colour('--line');
  const change = {'font.color': ink};
  return {change, axis: {gridcolor: line, linecolor: line, zerolinecolor: line}};
}

function paint() {
  const {change, axis} = themed();
  for (const plot of document.querySelectorAll('.js-plotly-plot')) {
    const all = {...change};
    for (const name of Object.keys(plot._fullLayout).filter((key) => /^[xy]axis\d*$/.test(key)))
      for (const [key, value] of Object.entries(axis)) all[name + '.' + key] = value;
    Plotly.relayout(plot, all);
  }
}

/** What else is drawn in the page's colours; called with `paint` when they change. */
const painters = [];
function repaint() { paint(); painters.forEach((draw) => draw()); }
for (const query of ['(prefers-color-scheme: dark)', 'print']) matchMedia(query).addEventListener('change', repaint);
paint();
