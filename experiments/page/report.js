"use strict";

// In either direction: numbers, then words, then what is infinite, then what is missing.
const INFINITE = new Set(["inf", "-inf"]);
const MISSING = new Set(["", "-", "nan"]);

function sortKey(cell) {
  const text = cell.textContent.trim();
  const given = cell.dataset.value ?? text;
  if (INFINITE.has(given)) return { rank: 2, value: 0 };
  if (MISSING.has(given)) return { rank: 3, value: 0 };
  const number = Number(given);
  return Number.isFinite(number) ? { rank: 0, value: number } : { rank: 1, value: text };
}

function compareKeys(a, b, direction) {
  if (a.rank !== b.rank) return a.rank - b.rank;
  if (a.rank === 1) return direction * a.value.localeCompare(b.value, "en", { numeric: true });
  return direction * (a.value - b.value);
}

function sortBy(header) {
  const row = header.parentElement;
  const column = [...row.cells].indexOf(header);
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of row.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = header.closest("table").tBodies[0];
  const keyed = [...body.rows].map((line) => [sortKey(line.cells[column]), line]);
  keyed.sort(([a], [b]) => compareKeys(a, b, descending ? -1 : 1));
  body.append(...keyed.map(([, line]) => line));
}

for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}

async function copy(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code); // no clipboard here: the reader copies it
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1600);
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => copy(button));
}

// A box that scrolls can be reached from the keyboard; one that does not is no stop.
function markScrolling() {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", markScrolling);
addEventListener("resize", markScrolling);

addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
