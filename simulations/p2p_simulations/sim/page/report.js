"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("time"), clock = document.getElementById("clock");
const says = document.getElementById("says"), links = document.getElementById("links");
const hand = document.getElementById("hand");
function at(spans, t) {
  let found = null;
  for (const span of spans) { if (span[0] <= t) found = span; else break; }
  return found;
}
function show(t) {
  clock.textContent = t.toFixed(1) + " s";
  for (const [node, spans] of Object.entries(data.roles)) {
    const dot = document.getElementById("dot-" + node), span = at(spans, t);
    if (dot && span) {
      dot.setAttribute("fill", data.colours[span[2]] || "#999");
      dot.querySelector("title").textContent = node + ": " + span[2] + " - " + span[3];
    }
  }
  const cut = data.cuts.find((c) => c[0] <= t && t < c[1]);
  links.replaceChildren();
  for (const [a, b] of cut ? cut[2] : []) {
    const one = data.places[a], other = data.places[b], line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("x1", one[0]); line.setAttribute("y1", one[1]);
    line.setAttribute("x2", other[0]); line.setAttribute("y2", other[1]);
    line.setAttribute("stroke", "#c9302c"); line.setAttribute("stroke-dasharray", "4 4");
    line.setAttribute("stroke-opacity", "0.6");
    links.appendChild(line);
  }
  const now = data.faults.filter((f) => f[0] <= t && t <= Math.max(f[1], f[0] + data.end / 60)).map((f) => f[2]);
  says.textContent = now.length ? now.join("; ") : (t >= data.healed ? "everything has healed" : "no fault at this moment");
  const x = data.left + (t / data.end) * data.width;
  hand.setAttribute("x1", x); hand.setAttribute("x2", x);
}
slider.addEventListener("input", () => show(Number(slider.value)));
let playing = null;
document.getElementById("play").addEventListener("click", (event) => {
  if (playing) { clearInterval(playing); playing = null; event.target.textContent = "play"; return; }
  event.target.textContent = "stop";
  if (Number(slider.value) >= data.end) slider.value = 0;
  playing = setInterval(() => {
    const t = Math.min(data.end, Number(slider.value) + data.end / 300);
    slider.value = t; show(t);
    if (t >= data.end) { clearInterval(playing); playing = null; event.target.textContent = "play"; }
  }, 50);
});
document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const row of document.querySelectorAll(".trace tr"))
    row.style.display = row.textContent.toLowerCase().includes(wanted) ? "" : "none";
});
show(Number(slider.value));
document.body.dataset.drawn = "yes";
