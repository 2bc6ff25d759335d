// The report's drawn data: columns come as differences, texts once each with their places (see encoding.py).
const data = JSON.parse(document.getElementById('data').textContent);

function summed(differences) { let sum = 0; return differences.map((each) => (sum += each)); }
function spelled({texts, at}) { return at.map((place) => texts[place]); }

function points(coded) {
  if (!coded) return null;
  const found = {...coded};
  for (const name of ['at', 'shards', 'starts', 'ends', 'live', 'inside']) found[name] = summed(coded[name]);
  for (const name of ['labels', 'layers', 'phases']) found[name] = spelled(coded[name]);
  found.stacks = coded.stacks.map(summed);
  found.recomputed = [...coded.recomputed].map((each) => each === '1');
  return found;
}

/** What each holder has after an operation: [category, owner, bytes], the most first. */
function heldAt(found, place) {
  const held = new Map();
  for (let each = 0; each <= place; each++) {
    const changes = found.changes[each];
    for (let k = 0; k < changes.length; k += 2) held.set(changes[k], (held.get(changes[k]) || 0) + changes[k + 1]);
  }
  return [...held].filter(([, bytes]) => bytes).map(([holder, bytes]) => [...found.holders[holder], bytes]).sort((a, b) => b[2] - a[2]);
}

for (const rank of data.ranks) {
  if (rank.measured && rank.measured.as_predicted) rank.measured = {...rank.predicted, ...rank.measured};
  rank.predicted = points(rank.predicted);
  rank.measured = points(rank.measured);
}
