// Draws what the server sent, or ahead of it what the page has already fetched of the latent that was asked for
// (feature/ahead.js). `data.part` names the component and `data.of` the latent; components without them are drawn as sent.
const ahead = (window.scopeAhead ??= { waits: null, view: null, held: [] });

// A trigger of this component; while the server has not yet come to the latent that is shown, it rests.
const sender = (own) => (...said) => (ahead.waits === null ? own.send(...said) : ahead.held.push(() => own.send(...said)));

function shownAhead({ data, parentElement, setTriggerValue }, draw) {
  const own = (parentElement.scopeOwn ??= {});
  Object.assign(own, { data, send: setTriggerValue });
  const show = (now) => {
    const text = JSON.stringify(now);
    if (text === own.text) return;
    own.text = text;
    draw(now, sender(own));
  };
  document.removeEventListener("scope-ahead", own.heard);
  own.heard = ({ detail }) => show(detail?.[data.part] ?? own.data);
  if (data.part) document.addEventListener("scope-ahead", own.heard);
  if (data.view !== undefined) ahead.view = data.view;
  if (ahead.waits === null || data.of === undefined || data.of === ahead.waits) show(data);
  return () => document.removeEventListener("scope-ahead", own.heard);
}
