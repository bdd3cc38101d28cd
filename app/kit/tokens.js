// Rows of tokens. Everything that comes from text is set by textContent: markup in a token is shown, never obeyed.
const element = (tag, className, text) => {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

// One line an example, the token that fires beginning at the same place in each: what precedes it is cut at its left.
function inOneLine(text, row, spans) {
  const peak = Math.max(row.cells.findIndex((cell) => cell[3].includes("p")), 0);
  const [before, after] = [element("span", "before"), element("span", "after")];
  const [inner, nodes] = [element("span", "inner"), [...text.childNodes]];
  const at = nodes.indexOf(spans[peak]);
  for (const span of spans) { // indentation takes no room here
    if (/␣{3,}/.test(span.textContent)) span.textContent = span.textContent.replace(/␣{3,}/g, "␣");
  }
  nodes.forEach((node, n) => (n < at ? inner : after).append(node));
  before.append(inner);
  text.replaceChildren(before, after);
}

// What lies beyond the left edge of a line, where no pointer reaches it: nodes to take away.
function beyondLeft(before) {
  const edge = before.getBoundingClientRect().left, inner = before.firstChild;
  const hidden = [...inner.children].filter((span) => {
    const box = span.getBoundingClientRect();
    return (box.left + box.right) / 2 < edge;
  });
  const nodes = [...inner.childNodes];
  return hidden.length ? nodes.slice(0, nodes.indexOf(hidden.at(-1)) + 1) : [];
}

// What follows the last token that fits into a line, so that no colour stands beyond the dots: nodes to take away.
function beyondRight(after) {
  if (after.scrollWidth <= after.clientWidth) return [];
  const edge = after.getBoundingClientRect().right - 16;
  const last = [...after.children].filter((span) => span.getBoundingClientRect().right <= edge).at(-1) ?? after.firstElementChild;
  const nodes = [...after.childNodes];
  return nodes.slice(nodes.indexOf(last) + 1);
}

// Cuts all lines at both ends. All are measured before any is cut: each cut would make the browser lay the page out again.
function cutLines(root) {
  const [before, after] = [".before", ".after"].map((name) => [...root.querySelectorAll(name)]);
  const left = before.flatMap(beyondLeft), right = after.map(beyondRight);
  left.forEach((node) => node.remove());
  right.forEach((nodes, n) => {
    nodes.forEach((node) => node.remove());
    if (nodes.length) after[n].append("…");
  });
}

function strip(row, index, options, send) {
  const root = element("div", "strip");
  const text = element("div", "text");
  text.tabIndex = 0;
  text.dir = row.direction;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "tokens; arrow keys show the value of each" + (options.pick ? ", Enter chooses it" : ""));
  const readout = element("span", "readout");
  readout.setAttribute("aria-live", "polite");
  const spans = row.cells.map(([glyphs, step, value, marks, breaks, start]) => {
    const word = glyphs.replace(/^ +/, "");
    if (text.hasChildNodes()) text.append(glyphs.slice(0, glyphs.length - word.length)); // uncoloured: no stripe at a line's end
    const span = element("span", "tok", word);
    if (step) span.classList.add("s" + step);
    if (marks.includes("p")) span.classList.add("peak");
    if (marks.includes("d")) span.classList.add("steered");
    if (marks.includes("x")) span.classList.add("parts");
    if (marks.includes("w")) span.classList.add("changed");
    if (marks.includes("c")) span.classList.add("chosen");
    if (marks.includes("j")) span.classList.add("joins");
    if (marks.includes("a")) span.classList.add("alone");
    if (value) span.title = value;
    if (options.pick) {
      span.classList.add("pickable");
      span.addEventListener("click", () => send("picked", [index, start]));
    }
    text.append(span);
    if (options.breaks) for (let n = 0; n < breaks; n++) text.append(document.createElement("br"));
    return span;
  });
  let shown = -1;
  const show = (n) => {
    if (shown >= 0) spans[shown].classList.remove("here");
    shown = n;
    if (n < 0) { readout.textContent = ""; return; }
    spans[n].classList.add("here");
    readout.replaceChildren(element("bdi", "", row.cells[n][0]), "  " + (row.cells[n][2] || "silent"));
  };
  text.addEventListener("pointerover", (event) => {
    const n = spans.indexOf(event.target);
    if (n >= 0) show(n);
  });
  text.addEventListener("pointerleave", () => show(-1));
  text.addEventListener("blur", () => show(-1));
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && options.pick && shown >= 0) {
      event.preventDefault();
      send("picked", [index, row.cells[shown][5]]);
      return;
    }
    const forward = row.direction === "rtl" ? -1 : 1;
    const move = { ArrowRight: forward, ArrowLeft: -forward }[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    const peak = row.cells.findIndex((cell) => cell[3].includes("p"));
    show(shown < 0 ? Math.max(peak, 0) : Math.min(Math.max(shown + move, 0), spans.length - 1));
  });
  if (options.line) inOneLine(text, row, spans);
  root.append(text, element("div", "side", row.value));
  const foot = element("div", "foot");
  for (const [name, value, meaning] of row.scores ?? []) {
    const score = element("button", "score", `${name} `);
    score.append(element("b", "", value));
    foot.append(explain(score, meaning, `${name} ${value}`));
  }
  if (options.line) root.title = row.notes.join("\n");
  else for (const note of row.notes) foot.append(element("bdi", "note", note));
  foot.append(readout);
  if (options.actions.length) {
    const group = element("span", "actions");
    for (const name of options.actions) {
      const button = element("button", "", name);
      button.addEventListener("click", () => send("picked", [index, name]));
      group.append(button);
    }
    foot.append(group);
  }
  root.append(foot);
  return root;
}

export default function (component) {
  const root = component.parentElement.querySelector(".strips");
  const draw = (data, send) => {
    root.classList.toggle("lines", Boolean(data.line));
    root.replaceChildren(...data.rows.map((row, n) => strip(row, n, data, send)));
    root.drawn = data;
    if (!data.line) return;
    cutLines(root);
    if (document.fonts.status !== "loaded") document.fonts.ready.then(() => { if (root.drawn === data) draw(data, send); }); // other widths
  };
  return shownAhead(component, draw);
}
