// A word that explains itself on hover and on focus (meaning.css); a plain word where there is nothing to explain.
function explained(name, meaning) {
  const word = document.createElement(meaning ? "button" : "span");
  word.textContent = name;
  if (!meaning) return word;
  word.className = "meaning";
  word.dataset.meaning = meaning;
  word.setAttribute("aria-label", `${name}: ${meaning}`);
  return word;
}

