// Shows what /api/status says, and at a node that invites /api/invites, every two seconds. All of it is text from this node or from
// peers, so it goes into the page as text only, never as markup.

const EVERY = 2000;
const PATIENCE = 5000;
const KEY = "meshnode-key";

const byId = (id) => document.getElementById(id);

function element(tag, content, className = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  for (const part of [content].flat()) made.append(part ?? "");
  return made;
}

const dash = (value) => (value === null || value === undefined || value === "" ? "–" : String(value));
const list = (values) => ((values ?? []).length ? values.join(", ") : "–");
const TONES = {
  ready: "good", connected: "good", loaded: "good", open: "good",
  loading: "busy", waiting: "busy", suspect: "busy", unloading: "busy", failed: "bad", revoked: "bad",
};
const date = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "–");
const state = (name) => element("span", dash(name), TONES[name] ?? "");

function bytes(count) {
  if (typeof count !== "number") return "–";
  return count < 1e9 ? `${(count / 1e6).toFixed(0)} MB` : `${(count / 1e9).toFixed(1)} GB`;
}

function duration(seconds) {
  if (typeof seconds !== "number") return "–";
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} days`;
}

function modelState(model) {
  const parts = [state(model.waiting ? "waiting" : model.state)];
  if (model.state === "loading" && !model.waiting && typeof model.progress === "number") {
    const bar = document.createElement("progress");
    bar.value = model.progress;
    parts.push(" ", bar);
  }
  for (const note of [model.error, shardNote(model.shard), ...(model.notes ?? [])]) {
    if (note) parts.push(element("span", note, "small"));
  }
  return parts;
}

function shardNote(shard) {
  return shard ? `an expert shard, with ${(shard.mass * 100).toFixed(1)} % of the routing mass` : "";
}

function modelRow(model) {
  const requests = model.slots
    ? `${model.active ?? 0} of ${model.slots}${model.queued ? `, ${model.queued} waiting` : ""}`
    : "–";
  const digest = element("span", model.digest ? model.digest.slice(0, 12) : "–", "mono");
  if (model.digest) digest.title = model.digest;
  return [dash(model.id), modelState(model), dash(model.context), requests, dash(model.device), digest];
}

function standbyRow(model) {
  const left = (model.active ?? 0) + (model.queued ?? 0);
  const waits = model.state ? element("span", `waiting for ${left} answers`, "small") : "";
  const digest = element("span", model.digest ? model.digest.slice(0, 12) : "–", "mono");
  return [dash(model.id), [state(model.state ?? "held"), waits], bytes(model.size_bytes), digest];
}

function inviteRow(invite) {
  const standing = invite.revoked ? "revoked" : invite.closed ? "closed" : "open";
  const used = invite.uses ? `${invite.used} of ${invite.uses}` : invite.used;
  const who = element("span", dash(invite.id), "mono");
  who.title = list(invite.peers);
  return [who, state(standing), dash(invite.role), date(invite.until), dash(used), date(invite.join_by)];
}

function peerRow(peer) {
  const who = [dash(peer.name), element("span", dash(peer.peer_id), "small mono")];
  const where = element("span", list(peer.addresses), "mono");
  return [who, state(peer.state), dash(peer.role), list(peer.models), where];
}

function pluginRow(plugin) {
  return [dash(plugin.name), dash(plugin.version), state(plugin.state), dash(plugin.reason)];
}

function fill(id, things, row) {
  const table = byId(id);
  const rows = (things ?? []).map((thing) => element("tr", row(thing).map((cell) => element("td", cell))));
  table.tBodies[0].replaceChildren(...rows);
  table.hidden = rows.length === 0;
  table.nextElementSibling.hidden = rows.length > 0;
}

function facts(status) {
  const has = status.resources ?? {};
  const shown = [
    ["API", status.api_url],
    ["Console", status.console_url],
    ["Peer id", status.peer_id],
    ["Mesh id", status.mesh_id],
    ["Addresses", list(status.p2p_addrs)],
    ["Revoked", `${status.revoked_peers ?? 0} peers${status.is_revoked ? ", and this node" : ""}`],
    ["Owners", list(status.owners)],
    ["Memory", `${bytes(has.memory_free)} free of ${bytes(has.memory_total)}`],
    ["Runs on", `${dash(has.device)}, ${dash(has.threads)} threads`],
    ["Up for", duration(status.uptime_s)],
    ["Version", `${dash(status.version)}, process ${dash(status.pid)}`],
  ];
  byId("facts").replaceChildren(
    ...shown.flatMap(([name, value]) => [element("dt", name), element("dd", dash(value))]),
  );
}

function show(status) {
  document.title = `${dash(status.name)} · meshnode`;
  byId("name").textContent = dash(status.name);
  byId("about").textContent = status.mesh_name || status.mesh_id
    ? `${dash(status.role)} of the mesh ${status.mesh_name || status.mesh_id}`
    : "not in a mesh yet";
  fill("models", status.models, modelRow);
  const leaving = (status.unloading ?? []).map((model) => ({ ...model, state: "unloading" }));
  const idle = leaving.concat(status.standby ?? []);
  fill("standby", idle, standbyRow);
  byId("held").hidden = idle.length === 0;
  fill("peers", status.peers, peerRow);
  fill("plugins", status.plugins, pluginRow);
  facts(status);
  byId("main").hidden = false;
}

function gone(isGone) {
  byId("gone").hidden = !isGone;
  byId("main").classList.toggle("stale", isGone);
}

async function refresh() {
  const response = await ask("api/status");
  const isLocked = response.status === 401;
  byId("key").hidden = !isLocked;
  gone(!response.ok && !isLocked);
  if (!response.ok) return;
  const status = await response.json();
  show(status);
  if (status.is_holder) await refreshInvites();
  byId("given").hidden = !status.is_holder;
}

async function refreshInvites() {
  const response = await ask("api/invites");
  if (response.ok) fill("invites", (await response.json()).invites, inviteRow);
}

function ask(path) {
  const key = sessionStorage.getItem(KEY);
  return fetch(path, {
    headers: key ? { authorization: `Bearer ${key}` } : {},
    signal: AbortSignal.timeout(PATIENCE),
  });
}

byId("key").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  sessionStorage.setItem(KEY, byId("secret").value);
  refresh().catch(() => gone(true));
});

async function watch() {
  try {
    await refresh();
  } catch {
    gone(true);
  }
  setTimeout(watch, EVERY);
}

watch();
