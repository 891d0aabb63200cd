// What all pages do: charts, choices that a reload keeps, and the reload of a page that is renewed.
"use strict";

const page = {
  makers: new Map(), // of sections, by id
  views: [], // of Vega, one per chart
  ready: Promise.resolve(), // when all charts are drawn

  // The script of a section calls this: make(element, data) is run when the page starts.
  section(id, make) {
    page.makers.set(id, make);
  },

  // Choices of the reader. A browser may refuse to store them: then a reload loses them.
  keep(name, value) {
    try {
      sessionStorage.setItem(`${location.pathname} ${name}`, JSON.stringify(value));
    } catch { /* not stored */ }
  },
  kept(name, fallback) {
    try {
      return JSON.parse(sessionStorage.getItem(`${location.pathname} ${name}`)) ?? fallback;
    } catch {
      return fallback;
    }
  },

  // Say something to those who hear the page.
  say(text) {
    document.getElementById("said").textContent = text;
  },

  // Colour a cell of a matrix by a weight: 0 to 1, or -1 to 1 of signed values.
  shade(cell, weight) {
    const size = Math.min(Math.abs(weight), 1);
    cell.style.setProperty("--w", size.toFixed(3));
    cell.classList.toggle("less", weight < 0);
  },

  // Make an element: make("td", {class: "less"}, "text").
  make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  },

  data(element) {
    const script = element.querySelector(':scope > script[type="application/json"]');
    return script && JSON.parse(script.textContent);
  },

  start() {
    for (const [id, make] of page.makers) {
      const element = document.getElementById(id);
      if (element) make(element, page.data(element));
    }
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", page.draw);
    page.ready = page.draw();
    page.renew(Number(document.documentElement.dataset.refresh || 0));
  },
};

// Charts ------------------------------------------------------------------------------------------

page.colours = (width) => {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  const axis = { labelColor: of("quiet"), titleColor: of("quiet"), tickColor: of("line") };
  return {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: of("line") },
    axis: { ...axis, domainColor: of("line"), gridColor: of("line"), gridOpacity: 0.6, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
    legend: { labelColor: of("text"), titleColor: of("quiet"), orient: "top", columns: Math.max(1, Math.floor(width / 110)), labelFontSize: 12, title: null },
    header: { labelColor: of("text"), titleColor: of("quiet") },
    title: { color: of("text") },
    mark: { color: of("series-1") },
    rule: { color: of("quiet") },
    text: { color: of("text") },
    range: {
      category: [1, 2, 3, 4, 5, 6].map((i) => of(`series-${i}`)),
      ramp: [of("ground"), of("seq")],
      heatmap: [of("ground"), of("seq")],
      diverging: [of("less"), of("ground"), of("more")],
    },
  };
};

page.draw = async () => {
  for (const view of page.views.splice(0)) view.finalize();
  for (const [i, figure] of document.querySelectorAll("figure.chart").entries()) {
    const plot = figure.querySelector(".plot");
    const sanitize = (value) => (String(value) === "NaN" ? "–" : String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;"));
    const options = { actions: false, renderer: "svg", tooltip: { sanitize }, config: page.colours(plot.clientWidth), mode: "vega-lite" };
    const fit = { type: "fit-x", contains: "padding" };
    const spec = { width: "container", height: 260, autosize: fit, ...page.data(figure) };
    const result = await vegaEmbed(plot, spec, options);
    page.views.push(result);
    if (spec.params?.some((param) => param.name === "from")) page.zoom(figure, result.view, spec, i);
  }
};

// Zoom: the signals "from" and "to" of a chart are the ends of its horizontal axis.
page.zoom = (figure, view, spec, number) => {
  const [first, last] = ["from", "to"].map((name) => spec.params.find((p) => p.name === name).value);
  const least = (last - first) / 1000; // width
  let [from, to] = page.kept(`zoom ${number}`, [first, last]);
  if (to >= first + (last - first) * 0.999 || to > last) to = last;
  const show = (a, b) => {
    const width = Math.min(Math.max(b - a, least), last - first);
    from = Math.min(Math.max(a, first), last - width);
    to = from + width;
    page.keep(`zoom ${number}`, width === last - first ? null : [from, to]);
    return view.signal("from", from).signal("to", to).runAsync();
  };
  const zoom = (factor, at = (from + to) / 2) => show(at - (at - from) * factor, at + (to - at) * factor);
  const move = (share) => show(from + share * (to - from), to + share * (to - from));
  const svg = figure.querySelector("svg");
  const width = () => view.signal("width") || 1;
  const share = (event) => (event.clientX - svg.getBoundingClientRect().left - view.origin()[0]) / width();
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.shiftKey) return; // it scrolls the page
    event.preventDefault();
    zoom(Math.exp((event.deltaY || event.deltaX) / 400), from + share(event) * (to - from));
  }, { passive: false });
  let dragged = null;
  svg.addEventListener("pointerdown", (event) => { dragged = event.button ? null : event.clientX; });
  addEventListener("pointermove", (event) => {
    if (dragged === null || from === first && to === last) return;
    move((dragged - event.clientX) / width());
    dragged = event.clientX;
  });
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { dragged = null; });
  svg.addEventListener("dblclick", () => show(first, last));
  page.tools(figure, [
    ["+", "Zoom in", () => zoom(0.5)],
    ["−", "Zoom out", () => zoom(2)],
    ["←", "Earlier", () => move(-0.25)],
    ["→", "Later", () => move(0.25)],
    ["All", "Show all", () => show(first, last)],
  ]);
  show(from, to);
};

// Buttons that do what wheel, pointer and double click do, for keys and fingers.
page.tools = (figure, acts) => {
  figure.querySelector(".tools")?.remove(); // of the drawing before
  const name = `Zoom: ${figure.getAttribute("aria-label")}`;
  const tools = page.make("div", { class: "tools", role: "group", "aria-label": name });
  for (const [sign, label, act] of acts) {
    const button = page.make("button", { type: "button", "aria-label": label, title: label }, sign);
    button.addEventListener("click", act);
    tools.append(button);
  }
  figure.prepend(tools);
};

// Renewal -----------------------------------------------------------------------------------------

// Read the page again after so many seconds: never while the reader does something, and not while
// the reader has it paused. The place in the page, the focus and the choices are kept.
page.renew = (seconds) => {
  const place = page.kept("place", null);
  page.keep("place", null);
  if (place) {
    page.ready.then(() => {
      document.getElementById(place.focus)?.focus({ preventScroll: true });
      scrollTo({ top: place.top, behavior: "instant" });
    });
  }
  if (!seconds) return;
  let paused = page.kept("paused", false);
  let quiet = Date.now();
  for (const event of ["pointermove", "pointerdown", "keydown", "wheel", "scroll"]) {
    addEventListener(event, () => { quiet = Date.now(); }, { passive: true });
  }
  const text = page.make("span");
  const button = page.make("button", { type: "button", id: "pause" });
  const show = () => {
    text.textContent = paused ? "The run goes on; this page stands still." : `The run goes on: this page is renewed every ${seconds} s.`;
    button.textContent = paused ? "Renew" : "Pause";
  };
  button.addEventListener("click", () => {
    paused = !paused;
    page.keep("paused", paused);
    show();
    page.say(text.textContent);
  });
  show();
  document.querySelector("header h1").after(page.make("div", { class: "renewing" }, text, button));
  const began = Date.now();
  setInterval(() => {
    const idle = Date.now() - quiet > 2000;
    if (paused || document.hidden || !idle || Date.now() - began < 1000 * seconds) return;
    page.keep("place", { top: scrollY, focus: document.activeElement?.id });
    location.reload();
  }, 500);
};
