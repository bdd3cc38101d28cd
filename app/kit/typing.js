// Where keys and arrows already mean something: no shortcut acts there.
const TYPING = "input, textarea, select, canvas, [contenteditable=true], [role=slider], [role=grid], [role=listbox], " +
  "[role=combobox], [role=tab], [role=menu], [role=dialog]";

const isShortcut = (event) => {
  const at = event.composedPath()[0];
  const modified = event.ctrlKey || event.metaKey || event.altKey;
  return !event.defaultPrevented && !modified && !(at instanceof Element && at.closest(TYPING));
};

// The key's name, whatever Caps Lock makes of it.
const keyOf = (event) => (event.key.length === 1 ? event.key.toLowerCase() : event.key);

// A field that a key asked for is on its way, and what is typed is meant for it.
const fieldExpected = () => Date.now() < (window.scopeFieldExpected ?? 0);
