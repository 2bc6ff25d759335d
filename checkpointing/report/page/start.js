// Draws all, and again when colours or width change.
startTables();
startTimeline();
// What is below the first screen comes when that is there.
setTimeout(() => { startPlots(); document.documentElement.dataset.drawn = 'all'; });

const select = document.getElementById('rank');
if (select) select.addEventListener('change', () => {
  chosen.rank = +select.value;
  chosen.cursor = null;
  for (const part of document.querySelectorAll('[data-rank]')) part.hidden = part.dataset.rank !== String(data.ranks[chosen.rank].rank);
  stepPlot.setAttribute('aria-label', data.ranks[chosen.rank].words);
  drawTimeline();
  drawSteps();
});

function drawAll() { drawTimeline(); drawFrontier(); drawPlan(); drawSteps(); }
painters.push(() => { drawAll(); document.querySelectorAll('.js-plotly-plot').forEach((plot) => Plotly.Plots.resize(plot)); });
matchMedia('(max-width: 639px)').addEventListener('change', drawAll);
