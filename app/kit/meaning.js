// Words that explain themselves on hover and on focus; their look is in meaning.css.
const explain = (word, meaning, label) => {
  const place = () => { // on the side where the window has room
    const box = word.getBoundingClientRect();
    word.classList.toggle("leftwards", innerWidth - box.left < 290);
    word.classList.toggle("below", box.top < 190);
  };
  word.classList.add("meaning");
  word.dataset.meaning = meaning;
  word.setAttribute("aria-label", `${label}: ${meaning}`);
  word.addEventListener("pointerenter", place);
  word.addEventListener("focus", place);
  return word;
};

// A button that explains itself, or a plain word where there is nothing to explain.
const explained = (name, meaning) => {
  const word = document.createElement(meaning ? "button" : "span");
  word.textContent = name;
  return meaning ? explain(word, meaning, name) : word;
};

// Draws anew, and leaves the keyboard on the button of the same place.
const keepFocus = (root, draw) => {
  const buttons = () => [...root.querySelectorAll("button")];
  const at = buttons().indexOf(root.getRootNode().activeElement);
  draw();
  if (at >= 0) buttons()[at]?.focus();
};

