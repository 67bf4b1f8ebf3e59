// The one script of pages: it sorts tables by a click on a heading, and shows those items of a page
// that hold some words or belong to a paper, an experiment or a verdict, where an item that names
// none belongs to none. It moves and hides elements and makes none of what it reads. Without it the
// whole page is there.
"use strict";

const order = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return [parseFloat(text.replace("−", "-").replaceAll(",", "")), text];
};

const compare = ([a, first], [b, second]) =>
  isNaN(a) || isNaN(b)
    ? isNaN(a) - isNaN(b) || first.localeCompare(second, "en", { numeric: true })
    : a - b;

for (const { tHead, tBodies: [body] } of document.querySelectorAll("table")) {
  for (const [column, heading] of [...tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    button.title = "sort by this column";
    if (!button.textContent.trim()) button.textContent = "↕";
    heading.append(button);
    button.addEventListener("click", () => {
      const sign = heading.ariaSort === "ascending" ? -1 : 1;
      for (const other of tHead.rows[0].cells) other.ariaSort = null;
      heading.ariaSort = sign > 0 ? "ascending" : "descending";
      const rows = [...body.rows].sort((a, b) => sign * compare(order(a, column), order(b, column)));
      body.append(...rows);
    });
  }
}

const find = document.querySelector(".find");
if (find) {
  const [words, ...choices] = find.querySelectorAll("input, select");
  const items = [...document.querySelectorAll("[data-item]")];
  const groups = [...document.querySelectorAll("[data-group]")];
  const texts = items.map((item) => item.textContent.toLowerCase());

  const show = () => {
    const sought = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = choices.filter((choice) => choice.value);
    items.forEach((item, at) => {
      const belongs = ({ name, value }) => item.dataset[name]?.split("|").includes(value) ?? false;
      item.hidden = !(sought.every((word) => texts[at].includes(word)) && chosen.every(belongs));
    });
    const shown = items.filter((item) => !item.hidden).length;
    for (const group of groups) {
      group.hidden = shown < items.length && !group.querySelector("[data-item]:not([hidden])");
      group.open = shown < items.length;
    }
    find.querySelector("output").value =
      shown < items.length ? `${shown} of ${items.length} items` : "";
  };

  find.addEventListener("input", show);
  // A link leads to what it names, whatever is hidden.
  addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.closest("[hidden]")) return;
    for (const field of [words, ...choices]) field.value = "";
    show();
    for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) {
      fold.open = true;
    }
    target.scrollIntoView();
  });
  find.hidden = false;
}
