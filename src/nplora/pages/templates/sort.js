"use strict";
// A click on a column's head sorts by it; another one turns the order round. Numbers by size, empty cells last.
for (const head of document.querySelectorAll("thead th button")) {
  head.addEventListener("click", () => {
    const cell = head.parentElement, table = cell.closest("table"), body = table.tBodies[0];
    const column = cell.cellIndex, now = cell.getAttribute("aria-sort");
    const numeric = cell.classList.contains("number");
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    const up = numeric ? now === "descending" : now !== "ascending";
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => {
      const found = row.cells[column].dataset.value;
      return found === undefined ? null : numeric ? Number(found) : found;
    };
    const rows = [...body.rows].map(row => [value(row), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
      return up ? order : -order;
    });
    body.append(...rows.map(([, row]) => row));
  });
}
