"use strict";
// The page in motion: a tooltip for the trial under the mouse, tables that sort, text that can be copied.
const tooltip = document.getElementById("tooltip");
const NEARBY = [[0, 0], [0, 3], [0, -3], [3, 0], [-3, 0], [4, 4], [-4, 4], [4, -4], [-4, -4], [0, 7], [0, -7], [7, 0], [-7, 0]];
let hot = [];

function trialAt(x, y) {
  for (const [dx, dy] of NEARBY) {
    const found = document.elementFromPoint(x + dx, y + dy)?.closest("[data-trial], [data-note]");
    if (found) return found;
  }
  return null;
}

function highlight(elements) {
  for (const element of hot) element.classList.remove("hot");
  hot = elements;
  for (const element of hot) element.classList.add("hot");
}

function textOf(row) {
  const names = row.closest("table").tHead.rows[0].cells;
  return Array.from(row.cells, (cell, i) => [names[i].textContent, cell.textContent])
    .filter(([, text]) => text)
    .map(([name, text]) => `${name}: ${text}`)
    .join("\n");
}

function show(element, x, y) {
  const search = element.closest("section");
  const same = element.dataset.trial === undefined
    ? [element]
    : Array.from(search.querySelectorAll(`[data-trial="${CSS.escape(element.dataset.trial)}"]`));
  highlight(same);
  const row = same.find((one) => one.tagName === "TR");
  tooltip.hidden = element === row;
  tooltip.textContent = [element.dataset.note, row ? textOf(row) : ""].filter(Boolean).join("\n");
  const left = x + 16 + tooltip.offsetWidth > innerWidth ? x - 16 - tooltip.offsetWidth : x + 16;
  tooltip.style.left = `${Math.max(4, left)}px`;
  tooltip.style.top = `${Math.max(4, Math.min(y + 16, innerHeight - tooltip.offsetHeight - 4))}px`;
}

document.addEventListener("pointermove", (event) => {
  const near = event.target.closest?.("svg[role=img], tr[data-trial]");
  const element = near && trialAt(event.clientX, event.clientY);
  if (element) show(element, event.clientX, event.clientY);
  else if (hot.length) { highlight([]); tooltip.hidden = true; }
});

function sortBy(header) {
  const body = header.closest("table").tBodies[0];
  const column = header.cellIndex;
  const turn = header.ariaSort === "ascending" ? -1 : 1;
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = Array.from(body.rows, (row) => [key(row), row]);
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [p, q] = [Number(a), Number(b)];
    return turn * (Number.isNaN(p) || Number.isNaN(q) ? a.localeCompare(b) : p - q);
  });
  body.append(...rows.map(([, row]) => row));
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.ariaSort = turn > 0 ? "ascending" : "descending";
}

document.addEventListener("click", (event) => {
  const header = event.target.closest(".trials th");
  if (header) sortBy(header);
  const button = event.target.closest(".copied button");
  if (button) {
    getSelection().selectAllChildren(button.parentNode.querySelector("pre"));
    button.textContent = document.execCommand("copy") ? "copied" : "selected";
  }
});

document.addEventListener("change", (event) => {
  if (!event.target.matches("select.switch")) return;
  const name = event.target.value;
  event.target.closest("section").querySelectorAll(".metrics").forEach((block) => {
    const own = block.querySelector("select.switch");
    if (!own || !Array.from(own.options, (one) => one.value).includes(name)) return;
    own.value = name;
    block.querySelectorAll(".switched").forEach((drawn) => { drawn.hidden = drawn.dataset.metric !== name; });
  });
});

// A page that is served hears that there is something new, and takes it over from a fresh copy of itself.
let isBusy = false, isLate = false;
async function refresh() {
  isLate = isBusy;
  if (isBusy) return;
  isBusy = true;
  try { await takeOver(); } finally { isBusy = false; }
  if (isLate) await refresh();
}

async function takeOver() {
  const answer = await fetch(location.href, { cache: "no-store" });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const chosen = Array.from(document.querySelectorAll("select.switch"), (one) => one.value);
  const opened = Array.from(document.querySelectorAll("details"), (one) => one.open);
  hot = [];
  tooltip.hidden = true;
  document.title = fresh.title;
  document.querySelector("main").replaceWith(fresh.querySelector("main"));
  document.querySelectorAll("details").forEach((one, i) => { one.open = opened[i] ?? one.open; });
  document.querySelectorAll("select.switch").forEach((one, i) => {
    if (chosen[i] === undefined) return;
    one.value = chosen[i];
    one.dispatchEvent(new Event("change", { bubbles: true }));
  });
}

if (document.body.dataset.events) {
  new EventSource(document.body.dataset.events).addEventListener("message", refresh);
}
