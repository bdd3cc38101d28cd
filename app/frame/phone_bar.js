// The bar of pages at the bottom of a narrow window. A wide one has Streamlit's menu, and nothing is drawn here.
const NARROW = matchMedia("(max-width: 767px)");

function link([name, title, address], page, choose) {
  const node = document.createElement("a");
  node.textContent = title;
  node.href = address;
  if (name === page) node.setAttribute("aria-current", "page");
  node.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    choose(name);
  });
  return node;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const bar = parentElement.querySelector("nav");
  const draw = () => bar.replaceChildren(
    ...(NARROW.matches ? data.pages.map((one) => link(one, data.page, (name) => setTriggerValue("page", name))) : []));
  draw();
  NARROW.addEventListener("change", draw);
  return () => NARROW.removeEventListener("change", draw);
}
