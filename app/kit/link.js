// An address to copy. What stands in the page's own address is taken from there: a tab may have been opened since it was sent.
export default function ({ data, parentElement }) {
  const [shown, button] = [parentElement.querySelector("code"), parentElement.querySelector("button")];
  const refresh = () => {
    const address = new URL(data.address), now = new URLSearchParams(location.search);
    for (const name of data.live) now.has(name) ? address.searchParams.set(name, now.get(name)) : address.searchParams.delete(name);
    shown.textContent = address.href;
  };
  const select = () => getSelection().selectAllChildren(shown);
  button.onclick = async () => {
    refresh();
    try {
      await navigator.clipboard.writeText(shown.textContent);
      button.textContent = "Copied";
    } catch { // a page without the right to the clipboard, such as one that is served by http to another machine
      select();
      button.textContent = "Press Ctrl+C";
    }
  };
  shown.onclick = select;
  parentElement.onpointerenter = refresh;
  button.textContent = "Copy";
  refresh();
}
