// Attention: choose a layer and a head, and a query; the keys are coloured by their weights.
"use strict";

page.section("attention", (element, data) => {
  if (!data) return;
  const view = element.querySelector(".view");
  const at = { map: 0, layer: 0, head: 0, query: -1, ...page.kept("attention", {}) };
  const maps = data.maps.map((map) => ({ ...map, bytes: Uint8Array.from(atob(map.weights), (c) => c.charCodeAt(0)) }));
  let map;

  const per = (m) => (m.causal ? (m.rows.length * (m.rows.length + 1)) / 2 : m.rows.length * m.columns.length);
  const weight = (q, k, layer = at.layer, head = at.head) => {
    if (map.causal && k > q) return 0;
    const row = map.causal ? (q * (q + 1)) / 2 : q * map.columns.length;
    return map.bytes[(layer * map.heads + head) * per(map) + row + k] / 255;
  };
  const percent = (w) => (w < 0.5 / 255 ? "0 %" : w < 0.01 ? "< 1 %" : `${Math.round(100 * w)} %`);

  // A group of buttons of which one is chosen: it alone takes the tab key, arrow keys move on.
  const rove = (buttons, chosen) => {
    buttons.forEach((button, i) => {
      button.tabIndex = i === chosen ? 0 : -1;
      button.setAttribute("aria-pressed", i === chosen);
    });
  };

  // The map of a head on a canvas, in cells of so many pixels, from the left upper corner x, y.
  const draw = (context, cell, x, y, layer, head, colour) => {
    context.fillStyle = colour;
    for (let q = 0; q < map.rows.length; q++) {
      for (let k = 0; k < map.columns.length; k++) {
        const w = weight(q, k, layer, head);
        if (!w) continue;
        context.globalAlpha = Math.sqrt(w);
        context.fillRect(x + k * cell, y + q * cell, cell, cell);
      }
    }
    context.globalAlpha = 1;
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // Kinds of attention -------------------------------------------------------------------------
  const kinds = page.make("div", { class: "tools kinds", role: "group", "aria-label": "Kind of attention" });
  if (maps.length > 1) {
    maps.forEach((each, i) => {
      const button = page.make("button", { type: "button", id: `kind-${i}` }, each.kind);
      button.addEventListener("click", () => open(i));
      kinds.append(button);
    });
  }

  // Layers and heads ---------------------------------------------------------------------------
  const grid = page.make("div", { class: "scroll heads", role: "group", "aria-label": "Layers and heads: arrow keys choose" });
  let buttons = [];
  const build = () => {
    const rows = [];
    buttons = [];
    for (let layer = 0; layer < map.layers; layer++) {
      const row = page.make("div", { class: "layer" }, page.make("span", { class: "quiet" }, `layer ${layer}`));
      for (let head = 0; head < map.heads; head++) {
        const canvas = page.make("canvas", { width: 48, height: 48, "aria-hidden": "true" });
        const label = `layer ${layer}, head ${head}`;
        const button = page.make("button", { type: "button", id: `head-${layer}-${head}`, "aria-label": label, title: label }, canvas);
        button.addEventListener("click", () => choose(layer, head));
        buttons.push(button);
        row.append(button);
      }
      rows.push(row);
    }
    grid.replaceChildren(...rows);
  };
  const thumbnails = () => {
    const seq = colour("seq");
    const cell = 48 / Math.max(map.rows.length, map.columns.length);
    buttons.forEach((button, i) => {
      const context = button.firstChild.getContext("2d");
      context.clearRect(0, 0, 48, 48);
      draw(context, cell, 0, 0, Math.floor(i / map.heads), i % map.heads, seq);
    });
  };
  const arrows = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  grid.addEventListener("keydown", (event) => {
    const step = arrows[event.key];
    if (!step) return;
    event.preventDefault();
    choose(Math.min(Math.max(at.layer + step[0], 0), map.layers - 1), Math.min(Math.max(at.head + step[1], 0), map.heads - 1));
    buttons[at.layer * map.heads + at.head].focus();
  });

  // The text -----------------------------------------------------------------------------------
  const title = page.make("h3", { id: "head-title" });
  const text = page.make("div", { class: "texts" });
  const lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  lines.setAttribute("aria-hidden", "true");
  let queries = [], keys = [];
  const tokens = () => {
    const same = map.kind === "self" || map.kind === "encoder";
    const queryRow = page.make("div", { class: "tokens", role: "group", "aria-label": "Text: choose a token" });
    queries = map.rows.map((label, i) => {
      const button = page.make("button", { type: "button", class: "token", "aria-label": `token ${i}: ${label}` }, label);
      button.addEventListener("click", () => look(i));
      button.addEventListener("focus", () => look(i));
      button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && look(i));
      queryRow.append(button);
      return button;
    });
    queryRow.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      queries[Math.min(Math.max(at.query + step, 0), queries.length - 1)].focus();
    });
    if (same) {
      keys = queries;
      text.replaceChildren(queryRow);
      return;
    }
    keys = map.columns.map((label) => page.make("span", { class: "token" }, label));
    const [from, to] = map.kind === "cross" ? ["answer", "prompt"] : ["writes", "has read"];
    const keyRow = page.make("div", { class: "tokens" }, ...keys);
    text.replaceChildren(lines, page.make("span", { class: "quiet" }, from), queryRow, page.make("span", { class: "quiet" }, to), keyRow);
  };
  // Lines from every query to the key that it looks at most, and from the chosen one to all keys.
  const align = () => {
    lines.replaceChildren();
    if (keys === queries) return;
    const box = text.getBoundingClientRect();
    const centre = (node, bottom) => {
      const r = node.getBoundingClientRect();
      return [r.left + r.width / 2 - box.left, (bottom ? r.bottom : r.top) - box.top];
    };
    queries.forEach((query, q) => {
      const row = keys.map((_, k) => weight(q, k));
      const most = Math.max(...row);
      row.forEach((w, k) => {
        const chosen = q === at.query;
        if (chosen ? w < 0.02 : w < most || most < 0.2) return;
        const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
        const [x1, y1] = centre(query, true);
        const [x2, y2] = centre(keys[k], false);
        for (const [name, value] of Object.entries({ x1, y1, x2, y2 })) line.setAttribute(name, value);
        line.setAttribute("class", chosen ? "chosen" : "");
        line.style.opacity = chosen ? Math.sqrt(w) : 0.25;
        lines.append(line);
      });
    });
  };

  // The map ------------------------------------------------------------------------------------
  const canvas = page.make("canvas", { role: "img" });
  const value = page.make("p", { class: "quiet value" });
  const margin = { left: 0, top: 0, cell: 1 };
  const large = () => {
    const ratio = devicePixelRatio || 1;
    const room = Math.min(right.clientWidth, 620);
    const n = Math.max(map.rows.length, map.columns.length);
    const context = canvas.getContext("2d");
    const font = (size) => `${size}px ui-monospace, Menlo, Consolas, monospace`;
    context.font = font(11);
    const widest = (labels) => Math.ceil(Math.max(...labels.map((x) => context.measureText(x).width))) + 6;
    const named = (room - 40) / n >= 8;
    const upright = map.columns.every((label) => label.length === 1);
    margin.left = named ? Math.min(widest(map.rows), room / 3) : 0;
    margin.top = named ? Math.min(widest(map.columns), 120) : 0;
    margin.cell = Math.max(3, Math.min(22, Math.floor((room - margin.left) / map.columns.length)));
    const width = margin.left + margin.cell * map.columns.length + 1;
    const height = margin.top + margin.cell * map.rows.length + 1;
    canvas.width = ratio * width;
    canvas.height = ratio * height;
    canvas.style.width = `${width}px`;
    context.scale(ratio, ratio);
    context.strokeStyle = colour("line");
    context.strokeRect(margin.left + 0.5, margin.top + 0.5, width - margin.left - 1, height - margin.top - 1);
    draw(context, margin.cell, margin.left, margin.top, at.layer, at.head, colour("seq"));
    context.font = font(Math.min(11, margin.cell));
    context.textBaseline = "middle";
    if (named) {
      context.fillStyle = colour("quiet");
      map.rows.forEach((label, q) => {
        context.textAlign = "right";
        context.fillText(label, margin.left - 4, margin.top + (q + 0.5) * margin.cell, margin.left - 4);
      });
      map.columns.forEach((label, k) => {
        context.save();
        context.translate(margin.left + (k + 0.5) * margin.cell, margin.top - (upright ? 6 : 4));
        if (!upright) context.rotate(-Math.PI / 2);
        context.textAlign = upright ? "center" : "left";
        context.fillText(label, 0, 0, margin.top - 4);
        context.restore();
      });
    }
    context.strokeStyle = colour("series-2");
    context.lineWidth = 2;
    context.strokeRect(margin.left, margin.top + at.query * margin.cell, width - margin.left, margin.cell);
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const k = Math.floor((event.clientX - box.left - margin.left) / margin.cell);
    const q = Math.floor((event.clientY - box.top - margin.top) / margin.cell);
    return k >= 0 && q >= 0 && k < map.columns.length && q < map.rows.length ? [q, k] : null;
  };
  canvas.addEventListener("pointermove", (event) => {
    const cell = under(event);
    if (!cell) return;
    look(cell[0]);
    value.textContent = `“${map.rows[cell[0]]}” looks at “${map.columns[cell[1]]}”: ${percent(weight(...cell))}`;
  });
  canvas.addEventListener("pointerdown", (event) => {
    const cell = under(event);
    if (cell) look(cell[0]);
  });

  // What is chosen -----------------------------------------------------------------------------
  const look = (query) => {
    at.query = Math.min(query, map.rows.length - 1);
    const row = map.columns.map((_, k) => weight(at.query, k));
    const colored = keys === queries ? queries : keys;
    colored.forEach((node, k) => page.shade(node, Math.sqrt(row[k])));
    rove(queries, at.query);
    const best = row.map((w, k) => [w, k]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([w]) => w >= 0.01);
    const list = best.map(([w, k]) => `“${map.columns[k]}” (${k}) ${percent(w)}`).join(", ");
    const unseen = map.cut && !map.causal ? 1 - row.reduce((sum, w) => sum + w, 0) : 0;
    const rest = unseen > 0.05 ? `what is left out here ${percent(unseen)}` : "";
    value.textContent = `“${map.rows[at.query]}” (${at.query}) looks at ${[list, rest].filter(Boolean).join(", ") || "all alike"}`;
    align();
    large();
    page.keep("attention", at);
  };
  const choose = (layer, head) => {
    Object.assign(at, { layer, head });
    rove(buttons, layer * map.heads + head);
    title.textContent = `Layer ${layer}, head ${head}`;
    canvas.setAttribute("aria-label", `Weights of layer ${layer}, head ${head}: ${map.title}`);
    look(at.query);
    page.say(`${title.textContent}. ${value.textContent}`);
  };
  const caption = page.make("p", { class: "quiet" });
  const open = (i) => {
    at.map = Math.min(i, maps.length - 1);
    map = maps[at.map];
    [...kinds.children].forEach((button, j) => button.setAttribute("aria-pressed", j === at.map));
    caption.textContent = `${map.title[0].toUpperCase()}${map.title.slice(1)}.`;
    if (at.query < 0 || at.query >= map.rows.length) at.query = map.rows.length - 1;
    build();
    thumbnails();
    tokens();
    choose(Math.min(at.layer, map.layers - 1), Math.min(at.head, map.heads - 1));
  };
  const right = page.make("div", {}, title, canvas);
  view.append(page.make("div", {}, kinds, caption, grid, text, value), right);
  open(at.map);
  const again = () => { thumbnails(); look(at.query); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("resize", again);
});
