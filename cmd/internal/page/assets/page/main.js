// The page of the director: requests data and shows it. It never makes markup of a string.

import { History } from "./chart.js";
import { Live } from "./live.js";
import { Model } from "./model.js";
import { $, Overview } from "./overview.js";
import { Services } from "./services.js";

const model = new Model();
const history = new History();
const overview = new Overview(() => {
  $("trouble").checked = true;
  chosen();
  $("services-heading").scrollIntoView({ block: "start" });
});
const services = new Services(model, history, points);

// points fetches what the charts in view lack, one request after the other.
let fetching = false, again = false;
async function points() {
  if (!model.step) return draw();
  if (fetching) return void (again = true);
  fetching = true;
  try {
    do {
      again = false;
      await history.fetch(services.seen, model.step);
      draw();
    } while (again);
  } catch {
    // The next step asks again; the state of the connection is shown by others.
  }
  fetching = false;
}

function draw() {
  overview.draw(history);
  services.draw();
}

// The choices are part of the address, so that they can be kept and passed on.
function chosen() {
  const hash = new URLSearchParams();
  if ($("search").value) hash.set("find", $("search").value);
  if ($("trouble").checked) hash.set("trouble", "");
  const figures = document.forms.controls.elements.figures.value;
  if (figures !== "rates") hash.set("figures", figures);
  if ($("charted").value !== "1") hash.set("chart", $("charted").value);
  const text = hash.toString();
  window.history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  services.search($("search").value, $("trouble").checked);
}

function shown() {
  chosen();
  services.show(document.forms.controls.elements.figures.value, Number($("charted").value));
}

const given = new URLSearchParams(location.hash.slice(1));
$("search").value = given.get("find") ?? "";
$("trouble").checked = given.has("trouble");
document.forms.controls.elements.figures.value = given.get("figures") === "totals" ? "totals" : "rates";
$("charted").value = ["0", "1", "2"].includes(given.get("chart")) ? given.get("chart") : "1";

$("controls").addEventListener("submit", (e) => e.preventDefault());
$("search").addEventListener("input", chosen);
$("trouble").addEventListener("change", chosen);
for (const radio of document.forms.controls.elements.figures) radio.addEventListener("change", shown);
$("charted").addEventListener("change", shown);
$("fold").addEventListener("click", () => services.fold());
document.addEventListener("keydown", (e) => {
  if (e.key === "/" && !e.ctrlKey && !e.metaKey && !e.altKey && e.target !== $("search")) {
    e.preventDefault();
    $("search").select();
  }
  if (e.key === "Escape" && e.target === $("search")) {
    $("search").value = "";
    chosen();
  }
});

let step = -1, first = true;
new Live((a) => {
  if (a.restarted) {
    history.forget();
    services.forget();
    step = -1;
  }
  const change = model.apply(a);
  overview.update(model);
  services.update(change);
  if (first) shown();
  first = false;
  if (model.step !== step || change.full) {
    step = model.step;
    points();
  }
}, (link) => overview.link(model, link)).start();
