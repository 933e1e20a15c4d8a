// Small charts of the last minutes, drawn as SVG.

const WIDTH = 120; // of the drawing, and the points that it takes
const HEIGHT = 40;
const TOP = 3; // above the highest point

// Chart draws into one <svg class="spark">.
export class Chart {
  #points = [];
  #top = 0;

  // name is for screen readers; write formats a point's value; scale is the least value of the top.
  constructor(svg, { name, write, scale = 1, read = () => {} }) {
    Object.assign(this, { svg, name, write, scale, read });
    [this.area, this.line, this.cursor] = svg.querySelectorAll("path");
    svg.addEventListener("pointermove", (e) => this.#point(e));
    svg.addEventListener("pointerleave", () => this.#leave());
  }

  // draw shows points, the newest last, that are seconds apart.
  draw(points, seconds) {
    this.#points = points.slice(-WIDTH);
    this.seconds = seconds;
    const n = this.#points.length;
    const most = n ? Math.max(...this.#points) : 0;
    this.#top = Math.max(most, this.scale);
    const x = (i) => WIDTH - ((n - 1 - i) * WIDTH) / (WIDTH - 1);
    const y = (v) => HEIGHT - 1 - (v / this.#top) * (HEIGHT - 1 - TOP);
    const line = this.#points.map((v, i) => `${i ? "L" : "M"}${x(i).toFixed(2)} ${y(v).toFixed(2)}`).join("");
    attribute(this.line, "d", line);
    attribute(this.area, "d", n ? `${line}L${WIDTH} ${HEIGHT}L${x(0).toFixed(2)} ${HEIGHT}Z` : "");
    const say = n ? `now ${this.write(this.#points[n - 1])}, at most ${this.write(most)}` : "nothing yet";
    attribute(this.svg, "aria-label", `${this.name} over the last 10 minutes: ${say}`);
    this.most = most;
  }

  #point(e) {
    const box = this.svg.getBoundingClientRect();
    const n = this.#points.length;
    const i = n - 1 - Math.round(((box.right - e.clientX) / box.width) * (WIDTH - 1));
    if (i < 0 || i >= n) return this.#leave();
    const at = WIDTH - ((n - 1 - i) * WIDTH) / (WIDTH - 1);
    attribute(this.cursor, "d", `M${at.toFixed(2)} 0V${HEIGHT}`);
    this.read(this.write(this.#points[i]), (n - 1 - i) * this.seconds);
  }

  #leave() {
    attribute(this.cursor, "d", "");
    this.read(null);
  }
}

function attribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// History fetches the points of visible charts.
export class History {
  #known = 0; // steps of the whole director's charts
  seconds = 5;
  total = [[], [], [], [], []];

  // forget is for another run of the director.
  forget() {
    this.#known = 0;
    this.total = this.total.map(() => []);
  }

  // fetch brings these services' points, and the director's, up to date: three lists each, of new connections, packets and bits.
  async fetch(services, step) {
    // Services seen before need the newest points only, others all.
    const groups = Map.groupBy(services.filter((s) => s.points?.to !== step), (s) => s.points?.to ?? 0);
    if (this.#known !== step && !groups.has(this.#known)) groups.set(this.#known, []);
    for (const [after, group] of groups) {
      for (let i = 0; i === 0 || i < group.length; i += 200) {
        const part = group.slice(i, i + 200);
        const query = new URLSearchParams({ after, ids: part.map((s) => s.id).join(",") });
        const response = await fetch(`page/history?${query}`, { cache: "no-store", signal: AbortSignal.timeout(8000) });
        if (!response.ok) throw new Error(`history: ${response.status}`);
        this.#take(await response.json(), part, after);
      }
    }
  }

  #take(h, services, after) {
    this.seconds = h.seconds;
    const join = (old, more) => more.map((points, i) => [...(old?.[i] ?? []), ...points].slice(-WIDTH));
    if (after === this.#known) {
      this.total = join(after ? this.total : null, h.total);
      this.#known = h.to;
    }
    for (const s of services) {
      const more = h.services[s.id];
      if (more) s.points = { to: h.to, series: join(after ? s.points?.series : null, more) };
    }
  }
}
