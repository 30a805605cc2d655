const run = encodeURIComponent(new URLSearchParams(location.search).get("run"));
const turns = new Map(); // turn -> { agent, text }
const asks = new Map(); // approval_id -> the request
const source = new EventSource(`/runs/${run}/stream`); // comes back by itself, with Last-Event-ID
const on = (type, take) => source.addEventListener(type, (event) => event.data && (take(JSON.parse(event.data)), show()));

on("token", ({ turn, agent, text, offset }) => {
  const have = turns.get(turn)?.text ?? "";
  if (have.length === offset) turns.set(turn, { agent, text: have + text }); // else: wait for the message
});
on("message", ({ turn, agent, text }) => turns.set(turn, { agent, text }));
on("reset", ({ turn }) => (turn === undefined ? turns.clear() : turns.delete(turn)));
on("status", ({ status }) => status !== undefined && say("status", JSON.stringify(status)));
on("approval", (ask) => (ask.phase === "requested" ? asks.set(ask.approval_id, ask) : asks.delete(ask.approval_id)));
on("end", ({ outcome }) => (say("status", outcome), source.close()));
on("error", ({ error }) => (say("status", `failed: ${error.message}`), source.close()));

const say = (id, text) => (document.getElementById(id).textContent = text);
const decide = (id, approved, digest) =>
  fetch(`/runs/${run}/approvals/${encodeURIComponent(id)}`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ approved, digest }),
  });
function show() {
  say("text", [...turns.values()].map(({ agent, text }) => `${agent}: ${text}`).join("\n\n"));
  document.getElementById("asks").replaceChildren(...[...asks.values()].flatMap((ask) => [true, false].map((approved) =>
    Object.assign(document.createElement("button"), {
      textContent: `${approved ? "Approve" : "Reject"}: ${ask.title ?? ask.approval_id}`,
      onclick: () => decide(ask.approval_id, approved, ask.digest),
    }))));
}
