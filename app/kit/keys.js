// Keys that no button of Streamlit's can have. Never while typing, never where an arrow already means something.
const TYPING = "input, textarea, select, canvas, [contenteditable=true], [role=slider], [role=grid], [role=listbox], " +
  "[role=combobox], [role=tab], [role=menu], [role=dialog]";

const field = (label) => document.querySelector(`input[aria-label="${label}"], textarea[aria-label="${label}"]`);

// The field may be drawn after this component is.
const focusSoon = (label, focused, tries = 40) => {
  const found = field(label);
  if (found) {
    found.focus();
    focused();
  } else if (tries) setTimeout(() => focusSoon(label, focused, tries - 1), 50);
};

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  if (parentElement.scopeKeys) document.removeEventListener("keydown", parentElement.scopeKeys);
  const heard = (event) => {
    const at = event.composedPath()[0];
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (at instanceof Element && at.closest(TYPING)) return;
    const name = data.keys[event.key];
    if (!name) return;
    event.preventDefault();
    if (Date.now() < (parentElement.scopeDeaf ?? 0)) return; // a field is on its way, and what is typed is meant for it
    if (name === "test") parentElement.scopeDeaf = Date.now() + 2000;
    if (name.startsWith("focus ")) field(name.slice(6))?.focus();
    else setTriggerValue("pressed", name);
  };
  parentElement.scopeKeys = heard;
  document.body.dataset.scopeKeys = "heard";
  document.addEventListener("keydown", heard);
  if (data.focus && parentElement.scopeFocus !== data.focus) focusSoon(data.focus, () => { parentElement.scopeDeaf = 0; });
  parentElement.scopeFocus = data.focus;
  return () => {
    document.removeEventListener("keydown", heard);
    delete document.body.dataset.scopeKeys;
  };
}
