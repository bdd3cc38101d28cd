// Columns of a histogram. All text is set by textContent and title.
const part = (className, text) => {
  const node = document.createElement("span");
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

export default function (component) {
  const { parentElement } = component;
  const root = parentElement.querySelector(".columns");
  const title = parentElement.querySelector(".title");
  return shownAhead(component, (data) => {
    keepFocus(title, () => title.replaceChildren(...(data.title[0] ? [explained(...data.title)] : [])));
    root.setAttribute("aria-label", data.alt);
    root.replaceChildren(...data.columns.map(([height, band, text]) => {
      const column = part(band ? "column band" : "column"), filled = part("filled");
      filled.style.height = 100 * height + "%";
      column.title = text;
      column.append(filled);
      return column;
    }));
    parentElement.querySelector(".scale").replaceChildren(...data.scale.map((text) => part("value", text)));
  });
}
