// A table that sorts by a click on a column's name. All text is set by textContent and attributes.
const element = (tag, className, text) => {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

function draw(root, columns, order, sorted) {
  const head = element("tr", "");
  columns.forEach((column, n) => {
    const cell = element("th", column.numbers ? "number" : "");
    const name = element("button", "", column.name);
    cell.scope = "col";
    cell.setAttribute("aria-sort", sorted.by !== n ? "none" : sorted.rising ? "ascending" : "descending");
    if (column.meaning) explain(name, column.meaning, column.name);
    name.addEventListener("click", () => sort(root, columns, n, sorted.by === n ? !sorted.rising : !column.numbers));
    cell.append(name);
    head.append(cell);
  });
  root.querySelector("thead").replaceChildren(head);
  root.querySelector("tbody").replaceChildren(...order.map((row) => {
    const line = element("tr", "");
    for (const column of columns) line.append(element("td", column.numbers ? "number" : "", column.texts[row]));
    return line;
  }));
}

function sort(root, columns, by, rising) {
  const { numbers, texts } = columns[by], sign = rising ? 1 : -1;
  const compare = numbers ? (a, b) => numbers[a] - numbers[b] : (a, b) => texts[a].localeCompare(texts[b]);
  const order = texts.map((_, row) => row).sort((a, b) => sign * compare(a, b) || a - b);
  keepFocus(root, () => draw(root, columns, order, { by, rising }));
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".scroll");
  root.setAttribute("aria-label", data.alt);
  keepFocus(root, () => draw(root, data.table, data.table[0].texts.map((_, row) => row), { by: -1, rising: false }));
}
