// The search box: a combobox whose list the server fills. Labels enter the page by textContent alone.
const TYPING = "input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable=true], [role=slider], [role=combobox], [role=dialog]";

const element = (tag, className, text) => {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

function build(root, live) {
  const input = root.querySelector("input");
  const list = root.querySelector("[role=listbox]");
  let at = 0, timer = 0, asked = "";

  const open = (wanted) => {
    const shown = wanted && list.childElementCount > 0;
    list.hidden = !shown;
    input.setAttribute("aria-expanded", String(shown));
    if (!shown) input.removeAttribute("aria-activedescendant");
  };
  const mark = (n) => {
    at = n;
    [...list.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === n)));
    const option = list.children[n];
    if (!option) return;
    input.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
  };
  const choose = (n) => {
    live.component.setTriggerValue("chosen", [live.component.data.text, n]);
    open(false);
    input.value = "";
    asked = "";
    input.blur();
  };
  const ask = () => {
    const text = input.value.trim();
    if (text === asked) return;
    asked = text;
    live.wanted = undefined;
    live.component.setStateValue("text", text);
    if (!text) open(false);
  };
  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 120); });
  input.addEventListener("focus", () => { if (input.value.trim()) open(true); });
  input.addEventListener("blur", () => open(false));
  for (const kind of ["keyup", "keypress"]) input.addEventListener(kind, (event) => event.stopPropagation());
  input.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the pages have keys of their own
    const n = list.childElementCount;
    if (event.key === "Escape") { input.value = ""; clearTimeout(timer); ask(); input.blur(); }
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!n) return;
      if (list.hidden) open(true);
      else mark((at + (event.key === "ArrowDown" ? 1 : n - 1)) % n);
    } else if (event.key === "Enter" && input.value.trim()) {
      event.preventDefault();
      clearTimeout(timer);
      const ready = live.component.data.text === input.value.trim() && n;
      if (ready) choose(at);
      else { ask(); live.wanted = input.value.trim(); } // chosen when its list has come
    }
  });
  list.addEventListener("mousedown", (event) => {
    event.preventDefault();
    const option = event.target.closest("[role=option]");
    if (option) choose([...list.children].indexOf(option));
  });
  if (window.scopeSlash) document.removeEventListener("keydown", window.scopeSlash);
  window.scopeSlash = (event) => {
    const from = event.composedPath()[0];
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (from instanceof Element && from.closest(TYPING)) return;
    event.preventDefault();
    input.focus();
    input.select();
  };
  document.addEventListener("keydown", window.scopeSlash);
  live.draw = () => {
    list.replaceChildren(...live.component.data.results.map(([name, note], i) => {
      const option = element("div", "option");
      option.id = `found-${i}`;
      option.setAttribute("role", "option");
      option.append(element("bdi", "name", name), element("bdi", "note", note));
      return option;
    }));
    open(root.getRootNode().activeElement === input && Boolean(input.value.trim()));
    mark(0);
    if (live.wanted !== undefined && live.wanted === live.component.data.text && list.childElementCount) {
      live.wanted = undefined;
      choose(0);
    }
  };
}

export default function (component) {
  const root = component.parentElement.querySelector(".search");
  if (!root.scopeLive) build(root, (root.scopeLive = { component }));
  root.scopeLive.component = component;
  root.scopeLive.draw();
}
