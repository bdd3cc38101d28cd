// Steps to the next or previous latent at once: what the first screen shows of the neighbours is fetched before it is asked for.
// The server then shows the same, with all the rest of the page; what is pressed meanwhile rests until it has come. A neighbour
// that is not fetched yet, or consists of other parts, is shown when the server shows it.
const TYPING = "input, textarea, select, canvas, [contenteditable=true], [role=slider], [role=grid], [role=listbox], " +
  "[role=combobox], [role=tab], [role=menu], [role=dialog]";
const STEPS = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };
const REST = new Set(["a", "e", "n", "s", "t", "x", "1", "2", "3", "4"]); // keys that act on the latent that the server has
const PATIENCE = 1500; // milliseconds of a server that runs no script: it will not come to the latent any more

const fetched = new Map(); // parts by latent, for one view of one pack
let asked = "";

const connected = () => {
  const app = document.querySelector("[data-testid=stApp]")?.dataset;
  return app === undefined || app.testConnectionState === "CONNECTED";
};
const running = () => document.querySelector("[data-testid=stApp]")?.dataset.testScriptState === "running";

async function fetchAll(query, latents) {
  if (query !== asked) fetched.clear();
  asked = query;
  const missing = latents.filter((latent) => !fetched.has(latent));
  if (!missing.length) return;
  const answer = await fetch(new URL(`latents?${query}&f=${missing.join()}`, location.href)).catch(() => null);
  if (!answer?.ok || query !== asked) return;
  for (const [latent, parts] of Object.entries(await answer.json())) fetched.set(Number(latent), parts);
}

function give(own) { // back to what the server shows
  ahead.waits = null;
  clearInterval(own.watch);
  delete document.body.dataset.scopeAhead;
  const held = ahead.held.splice(0);
  held.forEach((act) => act());
}

function step(own, by) {
  const { of, place, before, after, parts } = own.data;
  const line = [...before, { latent: of, place }, ...after];
  const to = line[line.findIndex(({ latent }) => latent === (ahead.waits ?? of)) + by];
  if (!to || !connected()) return false;
  ahead.waits = to.latent;
  document.body.dataset.scopeAhead = to.latent;
  const found = fetched.get(to.latent);
  if (found && Object.keys(found).join() === parts.join()) {
    const head = { ...found.head, place: to.place };
    document.dispatchEvent(new CustomEvent("scope-ahead", { detail: { ...found, head } }));
  }
  own.send("to", to.latent);
  let idle = Date.now();
  clearInterval(own.watch);
  own.watch = setInterval(() => {
    if (running()) idle = Date.now();
    if (connected() && Date.now() - idle < PATIENCE) return;
    ahead.held.length = 0;
    give(own);
    document.dispatchEvent(new CustomEvent("scope-ahead"));
  }, 250);
  return true;
}

const taken = (event) => {
  event.preventDefault();
  event.stopImmediatePropagation();
};

function onKey(own, event) {
  const at = event.composedPath()[0];
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (at instanceof Element && at.closest(TYPING)) return;
  const by = STEPS[event.key];
  if (by && ahead.view && step(own, by)) return taken(event);
  if (ahead.waits === null || (!by && !REST.has(event.key))) return;
  taken(event);
  if (!event.repeat) {
    const again = { key: event.key, code: event.code, bubbles: true, cancelable: true };
    ahead.held.push(() => document.body.dispatchEvent(new KeyboardEvent("keydown", again)));
  }
}

function onClick(own, event) {
  const button = event.target.closest?.("button");
  const by = button?.closest(".st-key-Next") ? 1 : button?.closest(".st-key-Previous") ? -1 : 0;
  if (by && !button.disabled && ahead.view && step(own, by)) return taken(event);
  if (ahead.waits === null || !button?.closest(".st-key-latent-bar, .st-key-latent-examples")) return;
  taken(event);
  ahead.held.push(() => button.click());
}

export default function ({ data, parentElement, setTriggerValue }) {
  const own = (parentElement.scopeAheadOwn ??= {});
  Object.assign(own, { data, send: setTriggerValue });
  if (!own.stop) {
    const key = (event) => onKey(own, event), click = (event) => onClick(own, event);
    window.addEventListener("keydown", key, true);
    window.addEventListener("click", click, true);
    own.stop = () => {
      window.removeEventListener("keydown", key, true);
      window.removeEventListener("click", click, true);
      delete own.stop;
      if (ahead.waits !== null) ahead.held.length = 0;
      give(own);
    };
  }
  const whole = (act, tries = 80) => { // once the script has ended: only then does the server know what its buttons mean
    if ((!running() && ahead.view !== null) || !tries) act();
    else setTimeout(() => whole(act, tries - 1), 25);
  };
  whole(() => {
    if (own.data !== data) return;
    if (ahead.waits === data.of) give(own);
    if (ahead.view) fetchAll(`${data.query}&${ahead.view}`, [...data.after, ...data.before].map(({ latent }) => latent));
  });
  return own.stop;
}
