// Requests to the server, one after the other, and the state of the connection.

const PERIOD = 1000; // milliseconds between two requests; more where they take long
const TIMEOUT = 8000;
const PATIENCE = 3000; // without an answer the page is stale

// Live requests the changes.
export class Live {
  #boot = "";
  #number = 0;
  #page = "";
  #answered = 0; // when, by performance.now()
  #trouble = ""; // of the last request
  #timer = 0;
  #asking = false;

  // answer is called with each answer, link with the state of the connection, once a second at least.
  constructor(answer, link) {
    this.answer = answer;
    this.link = link;
  }

  start() {
    this.#ask();
    setInterval(() => this.#tell(), 1000);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#soon(0);
    });
    addEventListener("online", () => this.#soon(0));
  }

  #soon(milliseconds) {
    if (this.#asking) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ask(), milliseconds);
  }

  async #ask() {
    if (document.hidden && this.#number) return; // goes on when the page is visible again
    this.#asking = true;
    const began = performance.now();
    try {
      const query = new URLSearchParams({ boot: this.#boot, since: this.#number });
      const response = await fetch(`page/live?${query}`, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
      if (!response.ok) throw new Error(`it answers ${response.status}: ${(await response.text()).trim().slice(0, 200)}`);
      const a = await response.json();
      if (this.#page && this.#page !== a.page) return location.reload(); // another version of the director
      a.restarted = this.#boot !== "" && this.#boot !== a.boot;
      this.answer(a);
      [this.#boot, this.#number, this.#page] = [a.boot, a.number, a.page];
      this.#answered = performance.now() - a.age * 1000;
      this.#trouble = "";
    } catch (error) {
      this.#trouble = error.name === "TimeoutError" ? "no answer in time" : error instanceof TypeError ? "no connection" : error.message;
    }
    this.#asking = false;
    this.#tell();
    this.#soon(Math.max(PERIOD, 4 * (performance.now() - began)));
  }

  #tell() {
    if (document.hidden) return;
    const age = performance.now() - this.#answered;
    const state = !this.#number ? (this.#trouble ? "stale" : "connecting") : age < PATIENCE || (!this.#trouble && age < TIMEOUT) ? "live" : "stale";
    this.link({ state, trouble: this.#trouble, seconds: this.#number ? age / 1000 : null });
  }
}
