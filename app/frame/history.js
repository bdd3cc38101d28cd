const nameFileFields = () => { // Streamlit gives them a name and the role of an ornament, which screen readers leave out
  for (const field of document.querySelectorAll("[data-testid=stFileUploaderDropzone][role=presentation]")) field.setAttribute("role", "group");
};

// Makes every state of a page a step of the browser's history. Streamlit replaces the address when a control that is bound to it
// changes, and pushes two addresses when a script opens another page; Back then skips the first, and needs two steps for the second.
function install(SOON) { // milliseconds within which two changes are one step
  const push = history.pushState.bind(history);
  const replace = history.replaceState.bind(history);
  let last = { at: performance.now(), href: location.href, of: "" };
  const parameters = (address) => new URLSearchParams(address.search);
  const changed = (from, to) => {
    const [old, now] = [parameters(from), parameters(to)];
    return [...new Set([...old.keys(), ...now.keys()])].filter((k) => `${old.getAll(k)}` !== `${now.getAll(k)}`).sort();
  };
  const done = (of) => { last = { at: performance.now(), href: location.href, of }; };

  history.pushState = (state, title, url) => {
    const to = new URL(url, location.href);
    const soon = performance.now() - last.at < SOON && last.href === location.href;
    const opensPage = to.pathname !== location.pathname && to.search === location.search && last.of === "pushed" &&
      last.href === location.href && performance.now() - (last.ended ?? Infinity) < SOON / 2;
    const only = changed(location, to);
    const first = (k) => k === "page" && !parameters(to).has(k); // a new list, which begins at its first page
    const completes = to.pathname === location.pathname && only.every((k) => !parameters(location).has(k) || first(k));
    if (opensPage || (soon && completes && last.of !== "pushed")) replace(state, title, url);
    else push(state, title, url);
    done(to.pathname === location.pathname && only.length ? "pushed" : "opened");
  };

  history.replaceState = (state, title, url) => {
    const to = new URL(url ?? location.href, location.href);
    const byControl = /^https?:/.test(`${url}`) && to.pathname === location.pathname && to.search !== location.search;
    if (!byControl) return replace(state, title, url);
    const of = changed(location, to).join();
    const goesOn = last.of === of && performance.now() - last.at < SOON && last.href === location.href; // as a slider that is drawn
    (goesOn ? replace : push)(state, title, url);
    done(of);
  };
  // A script that opens another page does not end between its two addresses, or begins anew at once, however slow the machine is.
  new MutationObserver((changes) => {
    const ended = changes.some(({ target }) => target.dataset?.testScriptState === "notRunning");
    if (ended) last.ended ??= performance.now();
  }).observe(document.body, { attributes: true, attributeFilter: ["data-test-script-state"], subtree: true });
  addEventListener("popstate", () => done("opened"), true);
}

// A server that was started again does not know this page, and would answer its first click with nothing: it is told of it as soon
// as it is there. A script that runs then belongs to a server that was there all the time, and goes on.
function greetNewServer() {
  let lost = false;
  new MutationObserver(() => {
    const app = document.querySelector("[data-testid=stApp]")?.dataset;
    if (!app || (app.testConnectionState === "CONNECTED") !== lost) return;
    lost = !lost;
    const typing = document.activeElement?.matches("input, textarea"); // a new server knows nothing of a field that is open
    if (!lost && !typing && app.testScriptState !== "running") window.scopeGreets();
  }).observe(document.body, { attributes: true, attributeFilter: ["data-test-connection-state"], subtree: true });
}

export default function ({ data, setTriggerValue }) {
  window.scopeGreets = () => setTriggerValue("again", true);
  if (window.scopeHistory) return;
  window.scopeHistory = true;
  greetNewServer();
  install(data.soon);
  nameFileFields();
  new MutationObserver(nameFileFields).observe(document.body, { childList: true, subtree: true });
}
