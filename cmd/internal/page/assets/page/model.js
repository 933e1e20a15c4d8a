// The state of the director: all answers, put together.

// Where the figures of a service or realserver lie; see figures.go.
export const F = { active: 0, inactive: 1, connections: 2, packets: 3, bytes: 4, newRate: 5, packetRate: 6, bitRate: 7, checked: 8, took: 9 };

export class Model {
  services = []; // {id, state, figures, realservers: [{state, figures}]}, and what the table notes there
  #byID = new Map();
  #offset = 0; // of the server's clock to ours, in milliseconds

  // apply takes over an answer and returns the changes: {full, services: Map from a service to its changed realservers}.
  apply(a) {
    this.#offset = a.now - performance.now();
    if (a.full) {
      const old = a.restarted ? new Map() : this.#byID;
      this.services = a.services.map((u) => ({
        id: u.id, state: u.state, figures: u.figures, points: old.get(u.id)?.points,
        realservers: (u.realservers ?? []).map((r) => ({ state: r.state, figures: r.figures })),
      }));
      this.#byID = new Map(this.services.map((s) => [s.id, s]));
    }
    const changed = new Map();
    if (!a.full) {
      for (const u of a.services ?? []) {
        const s = this.#byID.get(u.id);
        const touched = [];
        if (u.state) s.state = u.state;
        if (u.figures) s.figures = u.figures;
        for (const c of u.realservers ?? []) {
          const r = s.realservers[c.i];
          if (c.state) r.state = c.state;
          if (c.figures) r.figures = c.figures;
          touched.push({ realserver: r, state: Boolean(c.state) });
        }
        changed.set(s, { state: Boolean(u.state) || touched.some((t) => t.state), realservers: touched });
      }
    }
    Object.assign(this, { director: a.director, totals: a.totals, drops: a.drops ?? [], leaving: a.leaving, conflicts: a.conflicts ?? [], roles: a.roles ?? [], exchange: a.exchange ?? null, sessions: a.sessions ?? null, names: a.names ?? null, step: a.step });
    return { full: a.full, services: changed };
  }

  byID(id) {
    return this.#byID.get(id);
  }

  // now is the server's time, in Unix seconds.
  now() {
    return (performance.now() + this.#offset) / 1000;
  }
}

// down reports whether a realserver fails its checks.
export const down = (r) => r.state.health === "down";

// lost reports whether a service is out of quorum, or served by its sorry server.
export const lost = (s) => s.state.health === "down" || s.state.sorry;
