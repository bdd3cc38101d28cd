// Bars of tokens. Everything that comes from text is set by textContent: markup in a token is shown, never obeyed.
const part = (className, text) => {
  const made = document.createElement("span");
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};

function row(bar) {
  const made = document.createElement("div");
  made.className = "row";
  made.setAttribute("role", "listitem");
  made.title = bar.whole;
  const track = part("track"), filled = part("filled");
  filled.style.width = 76 * bar.length + "%";
  filled.style.background = bar.colour;
  track.append(filled, part("value", bar.value));
  made.append(part("name", bar.name), track);
  return made;
}

export default function (component) {
  const root = component.parentElement.querySelector(".bars");
  const title = component.parentElement.querySelector(".title");
  return shownAhead(component, (data) => {
    keepFocus(title, () => title.replaceChildren(...(data.title[0] ? [explained(...data.title)] : [])));
    root.setAttribute("aria-label", data.alt);
    root.replaceChildren(...data.bars.map(row));
  });
}
