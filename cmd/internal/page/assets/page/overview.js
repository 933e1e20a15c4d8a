// The director as a whole: notices, tiles, packets refused, realservers that leave.

import { Chart } from "./chart.js";
import { clock, count, plural, present, rate, short, span, total } from "./format.js";
import { F, down, lost } from "./model.js";

export const $ = (id) => document.getElementById(id);

// text sets a node's text if it has changed: other nodes are not drawn again.
export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

// The tiles in the order of the history's series; unit stands behind the figure and in the chart.
const tiles = [
  { id: "new", label: "New connections", unit: "a second", write: rate, value: (m) => rate(m.totals.new_rate), side: (m) => `${short(sum(m, F.active))} active, ${short(sum(m, F.inactive))} inactive` },
  { id: "packets", label: "Packets in", unit: "a second", write: rate, value: (m) => rate(m.totals.in.packet_rate), side: (m) => `${short(m.totals.in.packets)} since the start` },
  { id: "bits", label: "Traffic in", unit: "bit/s", write: short, value: (m) => short(m.totals.in.bit_rate), side: (m) => `${short(m.totals.in.bytes)}B since the start` },
  { id: "refused", label: "Packets refused", unit: "a second", write: rate, value: (m) => rate(m.totals.drop_rate), side: (m) => `${total(m.totals.drops)} since the start` },
  {
    id: "table", label: "Connections", unit: "in the table", write: present, value: (m) => total(m.totals.connections.count),
    side: ({ totals: { connections: c } }) => `${percent(c.count, c.max)} of ${short(c.max)}, ${present(c.half_open)} half-open`,
  },
];

// fit brings a table to n rows of cells, the last of which is for words.
function fit(body, n, cells, numbers) {
  while (body.rows.length > n) body.deleteRow(-1);
  while (body.rows.length < n) {
    body.append(row(cells, "", numbers)[0].parentNode);
    body.rows[body.rows.length - 1].cells[cells - 1].className = "";
  }
}

function sum(m, index) {
  return m.services.reduce((n, s) => n + s.figures[index], 0);
}

function percent(part, whole) {
  const p = whole ? (100 * part) / whole : 0;
  return p === 0 || p >= 10 ? `${p.toFixed(0)}\u202f%` : p < 0.1 ? "< 0.1\u202f%" : `${p.toFixed(1)}\u202f%`;
}

export class Overview {
  #drops = new Map(); // reason to its cells
  #notices = "";

  constructor(showTrouble) {
    this.showTrouble = showTrouble;
    this.tiles = tiles.map((t) => {
      const figure = $("tile-template").content.cloneNode(true).firstElementChild;
      figure.id = `tile-${t.id}`;
      const at = (selector) => figure.querySelector(selector);
      at(".label").textContent = t.label;
      at(".unit").textContent = t.unit;
      const tile = { ...t, figure: at("b"), side_: at(".side"), peak: at(".peak"), pointed: null };
      tile.chart = new Chart(at(".spark"), {
        name: `${t.label}, ${t.unit},`, write: t.write,
        read: (value, ago) => {
          tile.pointed = value === null ? null : `${value} ${ago ? `${span(ago)} ago` : "now"}`;
          this.#peak(tile);
        },
      });
      $("tiles").append(figure);
      return tile;
    });
  }

  #peak(tile) {
    text(tile.peak, tile.pointed ?? (tile.chart.most ? `peak ${tile.write(tile.chart.most)}` : ""));
  }

  draw(history) {
    this.tiles.forEach((tile, i) => {
      tile.chart.draw(history.total[i], history.seconds);
      this.#peak(tile);
    });
  }

  update(m) {
    const d = m.director;
    text($("about"), `${d.version} · up ${span(m.now() - d.started)} · pid ${d.pid} · ${d.tun}, ${plural(d.queues, "queue")}${d.offloads ? `, ${d.offloads}` : ""}`);
    for (const tile of this.tiles) {
      text(tile.figure, tile.value(m));
      text(tile.side_, tile.side(m));
    }
    this.#tally(m);
    this.#refused(m);
    this.#conflicts(m);
    this.#roles(m);
    this.#exchange(m);
    this.#sessions(m);
    this.#names(m);
    this.#leaving(m.leaving);
  }

  #tally(m) {
    const all = m.services.flatMap((s) => s.realservers);
    const failed = all.filter(down).length;
    const out = m.services.filter(lost);
    const hit = m.services.filter((s) => s.realservers.some(down)).length;
    text($("tally"), `${plural(m.services.length, "service")}, ${plural(all.length, "realserver")}`);
    const c = m.totals.connections;
    const notices = [];
    for (const s of out.slice(0, 3)) {
      notices.push(["bad", `${s.state.name}: ${s.state.sorry ? "its sorry server answers" : "too few realservers are up"} (weight ${s.state.weight_up} up, quorum ${s.state.quorum})`, true]);
    }
    if (out.length > 3) notices.push(["bad", `${plural(out.length - 3, "more service")} below quorum`, true]);
    if (failed) notices.push(["bad", `${plural(failed, "realserver")} of ${count(all.length)} down, in ${plural(hit, "service")}`, true]);
    if (c.count >= 0.9 * c.max) notices.push(["bad", `The connection table is ${percent(c.count, c.max)} full: raise connections.max, or shorten its timeouts`, false]);
    if (c.half_open_max && c.half_open * 2 > c.half_open_max) notices.push(["warn", `${count(c.half_open)} half-open connections, of ${count(c.half_open_max)} at most: a SYN flood?`, false]);
    if (m.conflicts.length) notices.push(["bad", `${plural(new Set(m.conflicts.map((x) => x.vip)).size, "VIP")} used by another host, too: see Conflicts`, false]);
    for (const x of m.roles.filter((r) => r.trouble)) notices.push(["bad", `${x.name}: ${x.note}`, false]);
    if (m.exchange?.trouble) notices.push(["bad", m.exchange.trouble, false]);
    const unresolved = m.names?.list.filter((n) => n.note).length;
    if (unresolved) notices.push(["warn", `${plural(unresolved, "name")} of realservers cannot be resolved as a whole: see Names`, false]);
    if (m.sessions?.trouble) notices.push(["bad", m.sessions.trouble, false]);
    const key = JSON.stringify(notices);
    if (key === this.#notices) return;
    this.#notices = key;
    $("notices").replaceChildren(...notices.map(([kind, words, show]) => {
      const li = document.createElement("li");
      li.className = kind;
      li.append(words);
      if (show) {
        const b = document.createElement("button");
        b.type = "button";
        b.textContent = "Show";
        b.setAttribute("aria-label", `Show: ${words}`);
        b.addEventListener("click", this.showTrouble);
        li.append(" ", b);
      }
      return li;
    }));
    document.title = (failed || out.length ? `▲ ${count(failed)} down · ` : "") + "vstun director";
  }

  #refused(m) {
    const rows = m.drops.map((d) => [d.reason, d.rate, d.total]);
    if (m.totals.overruns) rows.push(["overruns: the director was too slow", null, m.totals.overruns]);
    $("drops").hidden = !rows.length;
    $("no-drops").hidden = rows.length > 0;
    const body = $("drops").tBodies[0];
    if (rows.length !== this.#drops.size || rows.some(([reason]) => !this.#drops.has(reason))) {
      this.#drops = new Map(rows.map(([reason]) => [reason, row(3, reason)]));
      body.replaceChildren(...[...this.#drops.values()].map((cells) => cells[0].parentNode));
    }
    for (const [reason, r, total] of rows) {
      const cells = this.#drops.get(reason);
      text(cells[1], r === null ? "" : rate(r));
      text(cells[2], count(total));
      cells[0].parentNode.classList.toggle("moving", r > 0);
    }
    $("send-error").hidden = !m.director.send_error;
    text($("send-error"), m.director.send_error ? `Last send error: ${m.director.send_error}` : "");
  }

  #conflicts(m) {
    $("conflicts").hidden = !m.conflicts.length;
    const body = $("conflicts").querySelector("tbody");
    while (body.rows.length > m.conflicts.length) body.deleteRow(-1);
    while (body.rows.length < m.conflicts.length) body.append(row(5, "", 3)[0].parentNode);
    m.conflicts.forEach((x, i) => {
      [x.vip, x.device, x.mac, count(x.packets), `${span(m.now() - x.last)} ago`].forEach((words, j) => text(body.rows[i].cells[j], words));
    });
  }

  #roles(m) {
    $("roles").hidden = !m.roles.length;
    const body = $("roles").querySelector("tbody");
    fit(body, m.roles.length, 6, 3);
    m.roles.forEach((x, i) => {
      [x.name, x.interface, x.conflict ? `${x.role}, CONFLICT` : x.role, x.priority, span(m.now() - x.since), x.note].forEach((words, j) => text(body.rows[i].cells[j], words));
    });
  }

  #exchange(m) {
    const x = m.exchange;
    $("exchange").hidden = !x;
    if (!x) return;
    text($("exchanged"), `Connections are exchanged in the mode ${x.mode}: ${plural(x.sent, "record")} sent, ${count(x.received)} received, ${plural(x.lost, "datagram")} lost.`);
    const body = $("exchange").querySelector("tbody");
    fit(body, x.peers.length, 6, 2);
    x.peers.forEach((p, i) => {
      const table = p.table ? `complete ${span(m.now() - p.table)} ago` : x.mode === "vstun" ? "incomplete" : "";
      [p.address, p.alive ? "alive" : "silent", `${span(m.now() - p.heard)} ago`, count(p.records), count(p.lost), table].forEach((words, j) => text(body.rows[i].cells[j], words));
    });
  }

  #sessions(m) {
    const x = m.sessions;
    $("sessions").hidden = !x;
    if (!x) return;
    const state = { announcing: "", held: " It waits for the connections of its peers.", graceful_shutdown: " They will be withdrawn.", standby: " It is on standby." }[x.state] ?? "";
    text($("announced"), `This director announces ${plural(x.announced, "VIP")} to routers by BGP; ${count(x.withdrawn)} are not announced.${state}`);
    const body = $("sessions").querySelector("tbody");
    fit(body, x.peers.length, 6, 2);
    x.peers.forEach((p, i) => {
      const bfd = p.bfd ? `, BFD ${p.bfd}` : "";
      [p.address, (p.up ? "established" : "DOWN") + bfd, String(p.as), span(m.now() - p.since), count(p.vips), p.note].forEach((words, j) => text(body.rows[i].cells[j], words));
    });
  }

  #names(m) {
    const x = m.names;
    $("names").hidden = !x;
    if (!x) return;
    const body = $("names").querySelector("tbody");
    fit(body, x.list.length, 5, 3);
    x.list.forEach((n, i) => {
      [n.name, n.services, n.state, n.answered ? `${span(m.now() - n.answered)} ago` : "", n.note].forEach((words, j) => text(body.rows[i].cells[j], words));
    });
    $("more-names").hidden = x.count <= x.list.length;
    text($("more-names"), `and ${count(x.count - x.list.length)} more, without trouble`);
  }

  #leaving(l) {
    $("leaving").hidden = !l.realservers;
    const body = $("leaving").querySelector("tbody");
    const list = l.list ?? [];
    while (body.rows.length > list.length) body.deleteRow(-1);
    while (body.rows.length < list.length) body.append(row(5, "", 3)[0].parentNode);
    list.forEach((x, i) => {
      [x.name, x.service, x.method, count(x.active), count(x.inactive)].forEach((words, j) => text(body.rows[i].cells[j], words));
    });
    $("more-leaving").hidden = l.realservers <= list.length;
    text($("more-leaving"), `and ${count(l.realservers - list.length)} more; ${plural(l.connections, "connection")} in all`);
  }

  // link shows whether the figures are up to date.
  link(m, { state, trouble, seconds }) {
    document.body.dataset.state = state;
    $("link").dataset.state = state;
    text($("link-text"), { connecting: "Connecting", live: "Live", stale: "Stale" }[state]);
    const stale = state === "stale";
    // The words stay the same while it lasts, for screen readers.
    text($("stale"), !stale ? "" : seconds === null ? `No answer from the director: ${trouble}. Trying again.`
      : `No news from the director since ${clock(m.now() - seconds)}${trouble ? ` (${trouble})` : ""}: these are old figures. Trying again.`);
    $("stale").hidden = !stale;
  }
}

// row makes a row of cells. The first has the text; those from the first number on are figures.
function row(n, first, figures = 1) {
  const tr = document.createElement("tr");
  for (let i = 0; i < n; i++) {
    const cell = document.createElement(i ? "td" : "th");
    if (i) cell.className = i >= figures ? "n" : "";
    else cell.scope = "row";
    tr.append(cell);
  }
  tr.firstChild.textContent = first;
  return [...tr.children];
}
