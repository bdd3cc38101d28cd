// Heat strips. Everything that comes from text is set by textContent: markup in it is shown, never obeyed.
const element = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const IDLE = "Point at a cell for its value; arrow keys walk through them.";

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".heat");
  const scroll = element("div", "scroll");
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "group");
  scroll.setAttribute("aria-label", "latents by tokens; arrow keys show the value of each cell, Enter opens the latent");
  const readout = element("div", "readout", IDLE);
  readout.setAttribute("aria-live", "polite");
  const table = element("table"), head = element("thead"), titles = element("tr"), body = element("tbody");
  titles.append(element("td", "corner"));
  titles.firstChild.style.background = "none";
  data.tokens.forEach((token, n) => {
    const title = element("th", n === data.chosen ? "chosen" : "");
    title.scope = "col";
    title.append(element("span", "", token));
    titles.append(title);
  });
  head.append(titles);
  const grid = data.strips.map((strip, i) => {
    const row = element("tr"), name = element("th"), button = element("button");
    name.scope = "row";
    button.append(element("b", "", strip.name), ` `, element("bdi", "", strip.label));
    button.title = strip.label;
    button.addEventListener("click", () => setTriggerValue("picked", i));
    name.append(button);
    row.append(name);
    body.append(row);
    return strip.cells.map(([share, value]) => {
      const cell = element("td");
      if (value) {
        cell.style.background = `color-mix(in srgb, #CF7A00 ${Math.round(15 + 85 * share)}%, transparent)`;
        cell.append(element("span", "sr", value));
      }
      row.append(cell);
      return cell;
    });
  });
  let at = null;
  const show = (row, column) => {
    if (at) grid[at[0]][at[1]].classList.remove("here");
    at = row < 0 ? null : [row, column];
    if (!at) { readout.textContent = IDLE; return; }
    grid[row][column].classList.add("here");
    const strip = data.strips[row];
    const parts = [element("b", "", strip.name), " on ", element("bdi", "", data.tokens[column])];
    readout.replaceChildren(...parts, `: ${strip.cells[column][1] || "silent"}`);
  };
  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    const row = grid.findIndex((cells) => cells.includes(cell));
    if (row >= 0) show(row, grid[row].indexOf(cell));
  });
  table.addEventListener("pointerleave", () => show(-1));
  table.addEventListener("click", (event) => {
    const row = grid.findIndex((cells) => cells.includes(event.target.closest("td")));
    if (row >= 0) setTriggerValue("picked", row);
  });
  scroll.addEventListener("blur", () => show(-1));
  scroll.addEventListener("keydown", (event) => {
    const by = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (event.target !== scroll || !grid.length) return;
    if (event.key === "Enter" && at) { event.preventDefault(); setTriggerValue("picked", at[0]); }
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    if (!at) { show(0, Math.max(0, data.strips[0].cells.findIndex((cell) => cell[1]))); return; }
    const clamp = (n, most) => Math.min(Math.max(n, 0), most - 1);
    show(clamp(at[0] + by[0], grid.length), clamp(at[1] + by[1], data.tokens.length));
    grid[at[0]][at[1]].scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  table.append(head, body);
  scroll.append(table);
  root.replaceChildren(scroll, readout);
}
