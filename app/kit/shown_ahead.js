// Draws what the server sent, or ahead of it what the page has already fetched of the latent that was asked for
// (feature/ahead.js). `data.part` names the component and `data.of` the latent; components without them are drawn as sent.
const ahead = (window.scopeAhead ??= { waits: null, step: 0, view: null, held: [] });

// A trigger of this component; while the server has not yet come to the latent that is shown, it rests.
const sender = (state) => (...values) => (ahead.waits === null ? state.send(...values) : ahead.held.push(() => state.send(...values)));

function shownAhead({ data, parentElement, setTriggerValue }, draw) {
  const state = (parentElement.scopeState ??= {});
  Object.assign(state, { data, send: setTriggerValue });
  const show = (now) => {
    const text = JSON.stringify(now);
    if (text === state.text) return;
    state.text = text;
    draw(now, sender(state));
  };
  document.removeEventListener("scope-ahead", state.listener);
  state.listener = ({ detail }) => show(detail?.[data.part] ?? state.data);
  if (data.part) document.addEventListener("scope-ahead", state.listener);
  if (data.view !== undefined && data.view !== ahead.view) {
    ahead.view = data.view;
    document.dispatchEvent(new CustomEvent("scope-view"));
  }
  if (ahead.waits === null || data.of === undefined || data.of === ahead.waits) show(data);
  return () => document.removeEventListener("scope-ahead", state.listener);
}
