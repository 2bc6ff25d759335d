// Tables whose headers are buttons: numbers begin with the largest, texts with the first; again turns the order round.
function startTables() {
  for (const button of document.querySelectorAll('.sortable th button')) button.addEventListener('click', () => sortBy(button.closest('th')));
}

function sortBy(head) {
  const column = head.cellIndex, body = head.closest('table').tBodies[0], rows = [...body.rows];
  const numbers = rows.some((row) => row.cells[column].dataset.v !== undefined);
  const before = head.getAttribute('aria-sort'), up = before === 'none' ? !numbers : before === 'descending';
  const value = (row) => numbers ? +row.cells[column].dataset.v : row.cells[column].textContent;
  const order = new Intl.Collator(undefined, {numeric: true});
  const compare = numbers ? (a, b) => value(a) - value(b) : (a, b) => order.compare(value(a), value(b));
  rows.sort((a, b) => up ? compare(a, b) : compare(b, a));
  body.append(...rows);
  for (const each of head.parentElement.cells) each.setAttribute('aria-sort', each === head ? (up ? 'ascending' : 'descending') : 'none');
}
