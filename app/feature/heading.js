// The heading of a latent. All text is set by textContent and title: markup in a label is shown, never obeyed.
const element = (tag, className, text) => {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
};

export default function (component) {
  const root = component.parentElement.querySelector(".scope-heading");
  return shownAhead(component, (data, send) => {
    const line = element("div", "line", ""), about = element("div", "about", "");
    const title = element("h1", "", `${data.number}  ${data.label}`), edit = element("button", "", "Edit label");
    if (data.whole) { // a label too long for a heading: all of it on hover, and on a tap
      title.title = data.whole;
      title.addEventListener("click", () => { title.textContent = `${data.number}  ${data.whole}`; });
    }
    edit.title = "Key E";
    edit.addEventListener("click", () => send("edit", true));
    line.append(title, edit);
    about.append(element("span", "", data.source));
    for (const [flag, warns] of data.flags) about.append(element("span", warns ? "flag warns" : "flag", flag));
    if (data.place) about.append(element("span", "", data.place));
    keepFocus(root, () => root.replaceChildren(line, about));
  });
}
