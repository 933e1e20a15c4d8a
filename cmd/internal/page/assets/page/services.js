// The table of services and realservers.

import { Chart } from "./chart.js";
import { count, present, rate, short, span, total } from "./format.js";
import { F, down, lost } from "./model.js";
import { $, text } from "./overview.js";

const SMALL = 100; // realservers in all: at most that many are shown from the beginning
const FOUND = 300; // found realservers that are shown at once

// columns of figures: rates, and totals since the start.
const columns = {
  rates: { connections: [F.newRate, rate, "New/s"], packets: [F.packetRate, rate, "Packets/s"], bytes: [F.bitRate, short, "bit/s"] },
  totals: { connections: [F.connections, total, "Connections"], packets: [F.packets, total, "Packets"], bytes: [F.bytes, short, "Bytes"] },
};
const charts = [["New connections a second", rate], ["Packets a second", rate], ["Bits a second", short]];
const shared = [F.newRate, F.packetRate, F.bitRate]; // what the share is of, by chart

export class Services {
  #opened = new Map(); // by hand: id to open or not
  #found = new Map(); // the same while something is searched
  #seen = new Set(); // services on the screen
  #words = [];
  #trouble = false;
  #figures = "rates";
  #charted = 1;

  // wanted is called when services come into view: their points may be missing.
  constructor(model, history, wanted) {
    Object.assign(this, { model, history });
    this.table = $("services");
    this.observer = new IntersectionObserver((entries) => {
      for (const e of entries) {
        const s = this.model.byID(Number(e.target.dataset.id));
        if (e.isIntersecting && s) this.#seen.add(s);
        else this.#seen.delete(s);
      }
      wanted();
    }, { rootMargin: "200px" });
  }

  get seen() {
    return [...this.#seen];
  }

  // forget is for another run of the director: its numbers mean other services.
  forget() {
    this.#opened.clear();
    this.#found.clear();
  }

  update(change) {
    if (change.full) return this.#rebuild();
    let moved = false;
    for (const [s, c] of change.services) {
      if (c.state) {
        moved = true;
        s.text = null;
      }
      this.#service(s);
      if (s.rows) for (const { realserver } of c.realservers) this.#realserver(s, realserver);
      if (s.rows) this.#shares(s);
    }
    if (moved) this.#arrange();
    this.#ages();
  }

  // search shows only rows with all these words and, with trouble, only rows that are down.
  search(words, trouble) {
    this.#words = words.toLowerCase().split(/\s+/).filter(Boolean);
    this.#trouble = trouble;
    this.#found.clear();
    this.#arrange();
  }

  // show chooses the figures ("rates" or "totals") and the chart.
  show(figures, charted) {
    [this.#figures, this.#charted] = [figures, charted];
    for (const [name, [, , label]] of Object.entries(columns[figures])) {
      text(this.table.querySelector(`thead .${name}`), label);
    }
    for (const s of this.model.services) {
      this.#service(s);
      this.#eachRow(s, (r) => this.#realserver(s, r));
      if (s.rows) this.#shares(s);
    }
    this.draw();
  }

  // fold opens everything, or closes it if most of it is open.
  fold() {
    const open = !this.#unfolded();
    for (const s of this.model.services) this.#choices().set(s.id, open);
    this.#arrange();
  }

  draw() {
    for (const s of this.#seen) {
      const [name, write] = charts[this.#charted];
      Object.assign(s.chart, { name: `${s.state.name}: ${name.toLowerCase()}`, write });
      s.chart.draw(s.points?.series[this.#charted] ?? [], this.history.seconds);
    }
  }

  #choices() {
    return this.#searching() ? this.#found : this.#opened;
  }

  #searching() {
    return this.#words.length > 0 || this.#trouble;
  }

  #unfolded() {
    const shown = this.model.services.filter((s) => !s.body.hidden);
    return shown.filter((s) => s.open).length * 2 > shown.length;
  }

  #rebuild() {
    const focused = document.activeElement?.closest?.("tbody[data-id]")?.dataset.id;
    this.observer.disconnect();
    this.#seen.clear();
    for (const body of [...this.table.tBodies]) body.remove();
    const all = document.createDocumentFragment();
    for (const s of this.model.services) {
      this.#build(s);
      all.append(s.body);
    }
    this.table.append(all);
    for (const s of this.model.services) this.observer.observe(s.body);
    this.#arrange();
    this.#ages();
    if (focused) this.model.byID(Number(focused))?.cells.toggle.focus();
  }

  #build(s) {
    s.body = $("service-template").content.cloneNode(true).firstElementChild;
    s.body.dataset.id = s.id;
    s.cells = cells(s.body, ["toggle", "title", "addresses", "how", "weight", "badge", "text", "reason", "active", "inactive", "connections", "packets", "bytes"]);
    s.cells.toggle.disabled = s.realservers.length === 0;
    s.chart = new Chart(s.body.querySelector(".spark"), { name: s.state.name, write: rate });
    s.cells.toggle.addEventListener("click", () => {
      this.#choices().set(s.id, !s.open);
      this.#arrange();
    });
    this.#service(s);
  }

  // arrange decides which rows are shown.
  #arrange() {
    const searching = this.#searching();
    let found = 0, seen = 0, all = 0;
    for (const s of this.model.services) {
      all += s.realservers.length;
      this.#match(s);
      found += s.matches;
    }
    for (const s of this.model.services) {
      const hidden = searching && !s.matches && !s.matched;
      hide(s.body, hidden);
      seen += !hidden;
      const open = !hidden && s.realservers.length > 0 && (this.#choices().get(s.id) ?? (searching ? found <= FOUND : all <= SMALL));
      this.#open(s, open);
    }
    $("nothing").hidden = seen > 0;
    text($("nothing"), this.model.services.length === 0 ? "No service is configured." : this.#trouble && !this.#words.length ? "No trouble: everything that is checked is up." : "Nothing matches.");
    const unfolded = this.#unfolded();
    text($("fold"), unfolded ? "Collapse all" : "Expand all");
  }

  // match notes the matches of a service: itself, and the number of its realservers.
  #match(s) {
    s.text ??= haystack(s);
    const own = this.#words.every((w) => s.text.includes(w));
    const bad = lost(s);
    s.matches = 0;
    for (const r of s.realservers) {
      r.match = (!this.#trouble || down(r)) && (own || this.#words.every((w) => s.text.includes(w) || r.text.includes(w)));
      if (r.match) s.matches++;
    }
    s.matched = own && (!this.#trouble || bad);
  }

  #open(s, open) {
    if (s.open !== open) {
      s.open = open;
      s.body.classList.toggle("open", open);
      s.cells.toggle.setAttribute("aria-expanded", String(open));
    }
    if (open && !s.rows) {
      const all = document.createDocumentFragment();
      s.rows = s.realservers.map((r) => {
        r.row = $("realserver-template").content.cloneNode(true).firstElementChild;
        r.cells = cells(r.row, ["name", "how", "weight", "badge", "text", "reason", "active", "inactive", "connections", "packets", "bytes", "own", "percent"]);
        this.#realserver(s, r);
        all.append(r.row);
        return r.row;
      });
      this.#shares(s);
      s.body.append(all);
      this.#age(s);
    } else if (!open && s.rows) {
      for (const row of s.rows) row.remove();
      s.rows = null;
      for (const r of s.realservers) r.row = r.cells = null;
    }
    if (s.rows) for (const r of s.realservers) hide(r.row, !r.match);
  }

  #eachRow(s, fn) {
    if (s.rows) s.realservers.forEach(fn);
  }

  #figuresOf(cells, figures) {
    figure(cells.active, figures[F.active], present);
    figure(cells.inactive, figures[F.inactive], present);
    for (const [name, [index, write, label]] of Object.entries(columns[this.#figures])) {
      figure(cells[name], figures[index], write);
      if (cells[name].dataset.label !== label) cells[name].dataset.label = label;
    }
  }

  #service(s) {
    const { cells: c, state: st } = s;
    text(c.title, st.name);
    if (s.addresses !== st.addresses || s.announced !== st.announced) {
      [s.addresses, s.announced] = [st.addresses, st.announced];
      const on = st.announced.split(" ");
      c.addresses.replaceChildren(...st.addresses.split(" ").filter(Boolean).map((a, i) => {
        const span = document.createElement("span");
        const devices = (on[i] || "-") === "-" ? "" : `, announced on ${on[i].replaceAll(",", ", ")}`;
        span.textContent = `${st.protocol}\u00a0${a}${devices}`;
        return span;
      }));
    }
    text(c.how, st.scheduler);
    const n = s.realservers.length;
    const failed = s.realservers.filter(down).length;
    const checked = s.realservers.some((r) => r.state.health !== "unchecked");
    badge(c, lost(s) ? "down" : failed ? "partly" : checked ? "up" : "unchecked",
      st.sorry ? "sorry server" : lost(s) ? "no quorum" : checked ? `${count(n - failed)} of ${count(n)} up` : n ? `${count(n)} unchecked` : "no realserver");
    text(c.reason, lost(s) ? `${count(n - failed)} of ${count(n)} up, weight ${st.weight_up}, quorum ${st.quorum}` : "");
    text(c.weight, String(s.realservers.reduce((sum, r) => sum + r.state.effective, 0)));
    this.#figuresOf(c, s.figures);
  }

  #realserver(s, r) {
    const { cells: c, state: st } = r;
    text(c.name, st.name);
    text(c.how, st.method);
    text(c.weight, st.effective === st.weight ? String(st.weight) : `${st.weight} → ${st.effective}`);
    r.row.classList.toggle("idle", st.effective === 0);
    this.#figuresOf(c, r.figures);
  }

  // shares shows each realserver's share of its service's traffic.
  #shares(s) {
    const index = shared[this.#charted];
    const all = s.figures[index];
    for (const r of s.realservers) {
      const part = all > 0 ? Math.min(100, (100 * r.figures[index]) / all) : 0;
      const words = all > 0 ? `${part.toFixed(0)}\u202f%` : "";
      text(r.cells.percent, words);
      const width = part.toFixed(1);
      if (r.cells.own.getAttribute("width") !== width) r.cells.own.setAttribute("width", width);
    }
  }

  #ages() {
    for (const s of this.model.services) if (s.rows && !s.body.hidden) this.#age(s);
  }

  // age updates the cells that depend on the time.
  #age(s) {
    const now = this.model.now();
    for (const r of s.realservers) {
      const { state: st, figures: f } = r;
      const since = st.since ? ` ${span(now - st.since)}` : "";
      const draining = st.weight === 0 && st.health !== "down";
      badge(r.cells, draining ? "draining" : st.health, draining ? "draining" : st.health + since);
      const took = st.health === "up" && f[F.took] > 0 ? ` in ${f[F.took] < 10 ? f[F.took] : count(f[F.took])}\u202fms` : "";
      const reason = st.check ? `${st.reason}${took}${f[F.checked] ? `, ${span(now - f[F.checked])} ago` : ""}` : "";
      text(r.cells.reason, [reason, operators(st)].filter(Boolean).join("; "));
      const hint = st.check ? `check: ${st.check}` : "";
      if (r.cells.reason.title !== hint) r.cells.reason.title = hint;
    }
  }
}

// figure writes a figure, with the exact number as its title if it is rounded.
function figure(cell, n, write) {
  text(cell, write(n));
  const exact = write === rate || cell.textContent === count(n) ? "" : count(n);
  if (cell.title !== exact) cell.title = exact;
}

function hide(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

function cells(root, names) {
  return Object.fromEntries(names.map((name) => [name, root.querySelector(`.${name}`) ?? root]));
}

function badge(c, kind, words) {
  if (c.badge.dataset.kind !== kind) c.badge.dataset.kind = kind;
  text(c.text, words);
}

// operators returns the configured weight, if an operator has set another.
const operators = (st) => st.configured === st.weight ? "" : `weight ${st.weight} is an operator's, ${st.configured} is configured`;

// haystack is the text of a service and of its realservers that the search looks at.
function haystack(s) {
  for (const r of s.realservers) {
    const st = r.state;
    r.text = `${st.name} ${st.method} ${st.health} ${st.reason} ${st.weight === 0 ? "draining" : ""} ${operators(st)}`.toLowerCase();
  }
  const st = s.state;
  return `${st.name} ${st.protocol} ${st.addresses} ${st.announced} ${st.scheduler} ${st.sorry ? "sorry" : ""}`.toLowerCase();
}
