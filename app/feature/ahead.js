// Steps to the next or previous latent at once: what the first screen shows of the neighbours is fetched before it is asked for.
// The server then shows the same, with all the rest of the page; what is pressed meanwhile rests until it has come. A neighbour
// that is not fetched yet, or consists of other parts, is shown when the server shows it.
const STEPS = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };
const REST = new Set("aenstx1234"); // keys that act on the latent that the server has
const PATIENCE = 10_000; // milliseconds without a running script, after which the server will not come any more
const AGAIN = 1_000; // milliseconds of the same, after which the step is sent once more
const MOST = 60; // latents that are kept

const state = { data: null, send: null, drawn: null }; // of the component, which is drawn anew in the midst of fast steps
let fetched = new Map(), query = ""; // parts by latent, for one view of one pack

const app = () => document.querySelector("[data-testid=stApp]")?.dataset ?? {};
const connected = () => (app().testConnectionState ?? "CONNECTED") === "CONNECTED";
const running = () => app().testScriptState === "running";

async function fetchNear({ query: pack, before, after, parts }) {
  if (!parts.length || !ahead.view) return;
  if (`${pack}&${ahead.view}` !== query || fetched.size > MOST) fetched = new Map();
  query = `${pack}&${ahead.view}`;
  const into = fetched, missing = [...after, ...before].map(({ latent }) => latent).filter((latent) => !into.has(latent));
  if (!missing.length) return;
  const answer = await fetch(new URL(`latents?${query}&f=${missing.join()}`, location.href)).catch(() => null);
  const latents = answer?.ok ? await answer.json().catch(() => ({})) : {};
  for (const [latent, shown] of Object.entries(latents)) into.set(Number(latent), shown);
}

// Back to what the server shows. What rested acts now, up to the next step.
function arrive() {
  if (ahead.waits === null) return;
  ahead.waits = null;
  clearInterval(ahead.watch);
  delete document.body.dataset.scopeAhead;
  document.dispatchEvent(new CustomEvent("scope-ahead"));
  const held = ahead.held.splice(0);
  while (held.length && ahead.waits === null) held.shift()();
  ahead.held.push(...held);
}

function giveUp() {
  ahead.held.length = 0;
  arrive();
}

function step(by) {
  const { data } = state, { of, place, before, after, parts } = data;
  const line = [...before, { latent: of, place }, ...after];
  const at = line.findIndex(({ latent }) => latent === (ahead.waits ?? of));
  const to = at < 0 ? undefined : line[at + by];
  if (!to || !state.drawn || !connected()) return false;
  ahead.waits = to.latent;
  ahead.step += 1;
  document.body.dataset.scopeAhead = to.latent;
  const shown = query === `${data.query}&${ahead.view}` ? fetched.get(to.latent) : undefined;
  if (shown && Object.keys(shown).join() === parts.join()) {
    document.dispatchEvent(new CustomEvent("scope-ahead", { detail: { ...shown, head: { ...shown.head, place: to.place } } }));
  }
  const send = () => state.send("to", [ahead.waits, ahead.step]);
  send();
  let ran = Date.now(), sent = ran;
  clearInterval(ahead.watch);
  ahead.watch = setInterval(() => {
    const now = Date.now();
    if (running()) ran = now;
    if (!connected() || now - ran > PATIENCE) return giveUp();
    if (now - Math.max(ran, sent) > AGAIN) { // a trigger among several fast ones can be lost
      sent = now;
      send();
    }
  }, 250);
  return true;
}

const taken = (event) => {
  event.preventDefault();
  event.stopImmediatePropagation();
};

function onKey(event) {
  if (!isShortcut(event) || !(state.drawn || ahead.waits !== null)) return;
  const key = keyOf(event), by = STEPS[key];
  if (!by && !REST.has(key)) return;
  if (fieldExpected()) return taken(event);
  if (by && !ahead.held.length && step(by)) return taken(event);
  if (ahead.waits === null) return;
  taken(event);
  if (event.repeat) return;
  const again = { key: event.key, code: event.code, bubbles: true, cancelable: true };
  ahead.held.push(() => document.body.dispatchEvent(new KeyboardEvent("keydown", again)));
}

// The control of a click as it will be when the server has come: its node may be another one then.
function lasting(control) {
  const key = [...(control.closest("[class*=st-key-]")?.classList ?? [])].find((name) => name.startsWith("st-key-"));
  const alone = key !== undefined && document.querySelectorAll(`.${CSS.escape(key)} ${control.localName}`).length === 1;
  return () => (alone ? document.querySelector(`.${CSS.escape(key)} ${control.localName}`) : control)?.click();
}

function onClick(event) {
  const control = event.target.closest?.("[data-testid=stMain] :is(button, a, label, input)");
  if (!control || !(state.drawn || ahead.waits !== null)) return;
  const by = control.closest(".st-key-Next") ? 1 : control.closest(".st-key-Previous") ? -1 : 0;
  if (by && !control.disabled && !ahead.held.length && step(by)) return taken(event);
  if (ahead.waits === null) return;
  taken(event);
  ahead.held.push(lasting(control));
}

// Acts once the script has ended: only then does the server know what its buttons mean.
function whole(act, tries = 200) {
  if (!running() || !tries) act();
  else setTimeout(() => whole(act, tries - 1), 25);
}

// A step back in the history while a step was on its way can leave the address of the one beside the latent of the other.
function mendAddress(latent) {
  const address = new URL(location.href);
  if (!address.searchParams.has("f") || address.searchParams.get("f") === String(latent)) return;
  address.searchParams.set("f", latent);
  history.replaceState(history.state, "", `${address.pathname}${address.search}`);
}

function install() {
  window.addEventListener("keydown", onKey, true);
  window.addEventListener("click", onClick, true);
  window.addEventListener("popstate", giveUp, true);
  document.addEventListener("scope-view", () => state.drawn && fetchNear(state.data));
}

export default function ({ data, setTriggerValue }) {
  const drawn = {};
  if (state.data === null) install();
  Object.assign(state, { data, send: setTriggerValue, drawn });
  whole(() => {
    if (state.drawn !== drawn) return;
    if (data.step === ahead.step) arrive();
    if (ahead.waits === null) mendAddress(data.of);
    fetchNear(data);
  });
  return () => {
    if (state.drawn !== drawn) return;
    state.drawn = null;
    setTimeout(() => state.drawn || giveUp(), 1000); // another page, unless it is drawn anew
  };
}
