// Tiles of numbers. All text is set by textContent and attributes.
const element = (tag, className, text) => {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
};

function tile([name, value, note, meaning]) {
  const root = element("div", "tile", ""), term = element("dt", "", "");
  term.append(explained(name, meaning));
  root.append(term, element("dd", "value", value));
  if (note) root.append(element("dd", "note", note));
  return root;
}

export default function (component) {
  const root = component.parentElement.querySelector(".tiles");
  return shownAhead(component, (data) => {
    root.classList.toggle("small", !data.border);
    keepFocus(root, () => root.replaceChildren(...data.tiles.map(tile)));
  });
}
