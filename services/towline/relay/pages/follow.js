const run = encodeURIComponent(new URLSearchParams(location.search).get("run"));
const turns = new Map(), asks = new Map(); // turn -> { agent, text }, approval_id -> the request
const source = new EventSource(`/runs/${run}/stream`); // comes back by itself, with Last-Event-ID
const on = (type, take) => source.addEventListener(type, (event) => event.data && (take(JSON.parse(event.data)), show()));

on("token", ({ turn, agent, text, offset }) => {
  const have = turns.get(turn)?.text ?? "";
  if ([...have].length === offset) turns.set(turn, { agent, text: have + text }); // else: wait for the message
});
on("message", ({ turn, agent, text }) => turns.set(turn, { agent, text }));
on("reset", ({ turn }) => (turn === undefined ? (turns.clear(), asks.clear(), ask()) : turns.delete(turn)));
on("status", ({ status }) => status !== undefined && say(JSON.stringify(status)));
on("approval", (one) => (one.phase === "refused" ? say(`decision refused: ${one.reason}`) : ask(one)));
on("end", ({ outcome }) => over(outcome));
on("error", ({ error }) => over(`failed: ${error.message}`));
source.onerror = ({ data }) => data || source.readyState === 2 && say("no such run, or it is not yours to see");

const say = (text, id = "status") => (document.getElementById(id).textContent = text);
const show = () => say([...turns.values()].map(({ agent, text }) => `${agent}: ${text}`).join("\n\n"), "text");
const over = (outcome) => (say(outcome), asks.clear(), ask(), source.close());
const decide = (id, body) =>
  fetch(`/runs/${run}/approvals/${encodeURIComponent(id)}`, { method: "POST", body: JSON.stringify(body) })
    .then(async (answer) => answer.ok || say((await answer.json()).detail), (error) => say(`not decided: ${error.message}`));
function ask(one) { // only when it changes: a button that is replaced while it is pressed is not clicked
  if (one) asks[one.phase === "requested" ? "set" : "delete"](one.approval_id, one);
  document.getElementById("asks").replaceChildren(...[...asks.values()].flatMap(({ approval_id: id, title, digest }) =>
    ["Approve", "Reject"].map((word) => Object.assign(document.createElement("button"), {
      textContent: `${word}: ${title ?? id}`, onclick: () => decide(id, { approved: word === "Approve", digest }),
    }))));
}
