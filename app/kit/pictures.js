// Pictures with maps. Everything that comes from a file's name or a text is set by textContent or setAttribute: markup is shown,
// never obeyed. The addresses of pictures are those that Python encoded.
const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

const picture = (source, alt) => {
  const made = element("img");
  if (/^data:image\/(png|jpeg);base64,/.test(source)) made.src = source;
  made.alt = alt;
  made.decoding = "async";
  made.addEventListener("load", () => made.classList.toggle("small", Math.max(made.naturalWidth, made.naturalHeight) <= 112));
  return made;
};

function words(card) {
  const made = element("figcaption", "words");
  if (card.value) made.append(element("span", "value", card.value));
  card.notes.forEach((note, n) => made.append(element("bdi", n ? "note line" : "note", note)));
  for (const line of made.querySelectorAll(".line")) line.title = line.textContent;
  return made;
}

// The frame of a patch, in parts of the picture.
function frame(box, patch, [rows, columns]) {
  box.style.left = (100 * (patch % columns)) / columns + "%";
  box.style.top = (100 * Math.floor(patch / columns)) / rows + "%";
  box.style.width = 100 / columns + "%";
  box.style.height = 100 / rows + "%";
}

function about(card, patch) {
  const [rows, columns] = card.grid, [width, height] = card.size;
  const row = Math.floor(patch / columns), column = patch % columns;
  const at = (share, side) => Math.round(share * side);
  const pixels = `pixels ${at(column / columns, width)} to ${at((column + 1) / columns, width)}, ` +
    `${at(row / rows, height)} to ${at((row + 1) / rows, height)}`;
  return `row ${row}, column ${column}: ${card.values[patch] || "silent"}; ${pixels}`;
}

function enlarged(dialog, cards, index, action, pick) {
  const card = cards[index], [rows, columns] = card.grid, n = rows * columns;
  const large = element("div", "large");
  large.style.aspectRatio = `${card.size[0]} / ${card.size[1]}`;
  large.style.setProperty("--ratio", card.size[0] / card.size[1]);
  const image = picture(card.drawn, card.alt);
  const patches = element("div", "patches");
  const readout = element("div", "readout");
  readout.setAttribute("aria-live", "polite");
  let here = -1;
  const box = element("div", "box herebox");
  const rest = card.peak === null ? card.alt : n > 1 ? "most: " + about(card, card.peak) : card.alt;
  const show = (patch) => {
    here = patch;
    box.hidden = patch < 0;
    if (patch >= 0) frame(box, patch, card.grid);
    readout.textContent = patch < 0 ? rest : about(card, patch);
  };
  if (n > 1) {
    const lines = element("div", "lines");
    lines.style.backgroundSize = `calc(100% / ${columns}) calc(100% / ${rows})`;
    patches.append(lines);
    if (card.peak !== null) {
      const peak = element("div", "box peakbox");
      frame(peak, card.peak, card.grid);
      patches.append(peak);
    }
    patches.append(box);
    patches.tabIndex = 0;
    patches.setAttribute("role", "group");
    patches.setAttribute("aria-label", "patches; arrow keys show the value of each");
    patches.addEventListener("pointermove", (event) => {
      const area = patches.getBoundingClientRect();
      const column = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - area.left) / area.width) * columns)));
      const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - area.top) / area.height) * rows)));
      show(row * columns + column);
    });
    patches.addEventListener("pointerleave", () => show(-1));
    patches.addEventListener("keydown", (event) => {
      const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      event.stopPropagation();
      if (here < 0) return show(card.peak ?? 0);
      const row = Math.min(rows - 1, Math.max(0, Math.floor(here / columns) + move[0]));
      const column = Math.min(columns - 1, Math.max(0, (here % columns) + move[1]));
      show(row * columns + column);
    });
  }
  large.append(image, patches);
  const title = element("p", "title");
  title.id = "title";
  if (card.value) title.append(element("span", "value", card.value));
  [...card.notes, ...(card.more ? [card.more] : [])].forEach((note, k) => title.append(k ? " · " : "", element("bdi", "", note)));
  const bar = element("div", "row");
  const button = (name, does, off = false) => {
    const made = element("button", "", name);
    made.disabled = off;
    made.addEventListener("click", does);
    bar.append(made);
    return made;
  };
  button("Close", () => dialog.close()).autofocus = true;
  if (n > 1) {
    const map = button("Hide map", () => {
      const on = map.getAttribute("aria-pressed") === "true";
      map.setAttribute("aria-pressed", String(!on));
      image.src = picture(on ? card.drawn : card.plain, "").src;
    });
    map.setAttribute("aria-pressed", "false");
  }
  const go = (to) => enlarged(dialog, cards, to, action, pick);
  button("Previous", () => go(index - 1), index === 0);
  button("Next", () => go(index + 1), index === cards.length - 1);
  if (action) button(action, () => { dialog.close(); pick(index); });
  show(-1);
  dialog.replaceChildren(title, large, readout, bar);
  if (!dialog.open) dialog.showModal();
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".pictures");
  root.style.setProperty("--wide", data.wide + "px");
  const dialog = element("dialog");
  dialog.setAttribute("role", "dialog");
  dialog.setAttribute("aria-labelledby", "title");
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  const figures = data.cards.map((card, index) => {
    const figure = element("figure", "card");
    figure.setAttribute("role", "listitem");
    const open = element("button", "open");
    open.type = "button";
    if (!data.pick) open.setAttribute("aria-haspopup", "dialog");
    open.setAttribute("aria-label", `${data.pick ? "Choose" : "Enlarge"} ${card.alt}`);
    open.classList.toggle("pick", data.pick);
    if (data.cards.length === 1) open.style.aspectRatio = `${card.size[0]} / ${card.size[1]}`; // alone, it needs no square
    open.append(picture(card.drawn, card.alt));
    open.addEventListener("click", () => data.pick ? setTriggerValue("picked", index) :
      enlarged(dialog, data.cards, index, data.action, (n) => setTriggerValue("picked", n)));
    figure.append(open, words(card));
    return figure;
  });
  root.replaceChildren(...figures);
  parentElement.querySelector("dialog")?.remove();
  root.after(dialog);
}
