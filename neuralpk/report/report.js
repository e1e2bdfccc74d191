"use strict";
const byId = (name) => document.getElementById(name);

// ---- light and dark

const theme = byId("theme");
const themes = ["system", "light", "dark"];
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const next = themes[(themes.indexOf(root.dataset.theme || "system") + 1) % themes.length];
  if (next === "system") delete root.dataset.theme;
  else root.dataset.theme = next;
  theme.textContent = "Theme: " + next;
});

// ---- the data behind tables and figures

const frames = JSON.parse(byId("frames").textContent);
document.addEventListener("click", (event) => {
  const name = event.target.dataset ? event.target.dataset.csv : undefined;
  if (name === undefined) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([frames[name]], { type: "text/csv" }));
  link.download = name + ".csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

// ---- individuals: search, filter, order, step

const cards = byId("cards");
const all = Array.from(cards.children);
const covariates = new Map(all.map((card) => [card, JSON.parse(card.dataset.covariates || "{}")]));
let shown = all;
let place = 0;

function show() {
  all.forEach((card) => card.classList.remove("current"));
  place = Math.max(0, Math.min(place, shown.length - 1));
  const one = !byId("grid").checked;
  cards.className = (one ? "one" : "grid") + (byId("log").checked ? " log" : "");
  if (shown.length) shown[place].classList.add("current");
  byId("none").hidden = shown.length > 0;
  byId("place").textContent = !one
    ? shown.length + " of " + all.length
    : shown.length ? place + 1 + " of " + shown.length : "0 of " + all.length;
  byId("previous").disabled = !one || place === 0;
  byId("next").disabled = !one || place >= shown.length - 1;
}

function inRange(card) {
  const name = byId("covariate") ? byId("covariate").value : "";
  if (!name) return true;
  const values = covariates.get(card)[name];
  const low = byId("low").value === "" ? -Infinity : Number(byId("low").value);
  const high = byId("high").value === "" ? Infinity : Number(byId("high").value);
  return values !== undefined && values.some((value) => value >= low && value <= high);
}

function choose() {
  const wanted = byId("search").value.trim().toLowerCase();
  const current = shown[place];
  shown = all.filter((card) => card.dataset.id.toLowerCase().includes(wanted) && inRange(card));
  if (byId("order").value === "fit") shown.sort((a, b) => Number(b.dataset.fit) - Number(a.dataset.fit));
  all.forEach((card) => {
    card.hidden = !shown.includes(card);
    card.classList.toggle("match", !card.hidden);
  });
  shown.forEach((card) => cards.append(card));
  place = Math.max(0, shown.indexOf(current));
  show();
}

function step(by) {
  place += by;
  show();
}

if (all.length) {
  document.querySelector(".browser").hidden = false;
  ["search", "low", "high"].forEach((name) => byId(name) && byId(name).addEventListener("input", choose));
  byId("order").addEventListener("change", () => { place = 0; shown = []; choose(); });
  ["log", "grid"].forEach((name) => byId(name).addEventListener("change", show));
  if (byId("covariate")) byId("covariate").addEventListener("change", () => {
    const name = byId("covariate").value;
    const values = all.flatMap((card) => covariates.get(card)[name] || []);
    byId("range").hidden = !name;
    [["low", Math.min(...values)], ["high", Math.max(...values)]].forEach(([end, value]) => {
      byId(end).value = "";
      byId(end).placeholder = name ? value : "";
    });
    choose();
  });
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  document.querySelector(".browser").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (event.key === "/") byId("search").focus();
    else if (event.key in moves && !byId("grid").checked) step(moves[event.key]);
    else return;
    event.preventDefault();
  });
  choose();
}

// ---- where one is; everything is open on paper

const links = new Map(Array.from(document.querySelectorAll("nav a")).map((link) => [link.hash.slice(1), link]));
if ("IntersectionObserver" in window) {
  const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const link = links.get(entry.target.id);
    if (!link || !entry.isIntersecting) return;
    links.forEach((other) => other.removeAttribute("aria-current"));
    link.setAttribute("aria-current", "true");
  }), { rootMargin: "0px 0px -75% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));
}
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
