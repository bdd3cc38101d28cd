// Keys that no button of Streamlit's can have.

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
    const name = data.keys[keyOf(event)];
    if (!name || event.repeat || !isShortcut(event)) return;
    event.preventDefault();
    if (fieldExpected()) return;
    if (name.startsWith("focus ")) field(name.slice(6))?.focus();
    else press(name);
  };
  const press = (name, tries = 2) => {
    if (data.fields.includes(name)) window.scopeFieldExpected = Date.now() + 2000;
    setTriggerValue("pressed", name);
    if (tries) setTimeout(() => data.fields.includes(name) && fieldExpected() && press(name, tries - 1), 1000); // it can be lost
  };
  parentElement.scopeKeys = heard;
  document.body.dataset.scopeKeys = "heard";
  document.addEventListener("keydown", heard);
  if (data.focus && parentElement.scopeFocus !== data.focus) focusSoon(data.focus, () => { window.scopeFieldExpected = 0; });
  parentElement.scopeFocus = data.focus;
  return () => {
    document.removeEventListener("keydown", heard);
    delete document.body.dataset.scopeKeys;
  };
}
