// A training step: which numbers a number is made of. The data are, by matrix, its name, its power
// of ten, the columns that are shown, and where cell (i, j) is from: {matrix: [rows, columns]}, each
// "i", "j", "all", or a list that has for every i the list of them.
page.section("sentence", (element, pictures) => {
  const MANY = 8; // numbers that are not repeated in words
  const tables = new Map();
  for (const box of document.querySelectorAll("[data-picture]")) {
    tables.set(box.dataset.picture, box.querySelector("table"));
  }
  const bar = page.make("p", { class: "made-of", hidden: "", "aria-hidden": "true" });
  document.body.append(bar);
  let marked = [];

  const place = (cell) => {
    const key = cell.closest("[data-picture]").dataset.picture;
    const row = cell.parentElement;
    return { key, i: row.rowIndex - 1, column: cell.cellIndex - 1, table: tables.get(key) };
  };
  const cellOf = (table, i, column) => table.rows[i + 1]?.cells[column + 1];
  const label = (table, i) => table.rows[i + 1].cells[0].textContent;

  // The indices that a rule stands for, of n; null for all.
  const indices = (rule, i, j) => {
    if (rule === "all") return null;
    if (rule === "i") return [i];
    return rule === "j" ? [j] : rule[i];
  };

  const clear = () => {
    for (const cell of marked) cell.classList.remove("source", "chosen");
    marked = [];
    bar.hidden = true;
  };
  const mark = (cell, name) => {
    cell.classList.add(name);
    marked.push(cell);
  };

  const show = (cell) => {
    clear();
    const { key, i, column, table } = place(cell);
    const own = pictures[key];
    const j = own.columns[column];
    const head = table.tHead.rows[0].cells[column + 1].textContent;
    mark(cell, "chosen");
    const from = [];
    for (const [source, [rows, columns]] of Object.entries(own.from)) {
      const other = pictures[source];
      const where = tables.get(source);
      const chosen = indices(rows, i, j);
      const across = indices(columns, i, j);
      const numbers = [];
      for (const row of where.tBodies[0].rows) {
        const r = row.rowIndex - 1;
        if (chosen && !chosen.includes(r)) continue;
        other.columns.forEach((c, at) => {
          if (across && !across.includes(c)) return;
          mark(cellOf(where, r, at), "source");
          numbers.push(cellOf(where, r, at).textContent.trim());
        });
      }
      const of = chosen ? `row ${chosen.map((r) => label(where, r)).join(", ")}` : "";
      const down = across
        ? `column ${across.map((c) => where.tHead.rows[0].cells[other.columns.indexOf(c) + 1]?.textContent).join(", ")}`
        : "";
      const named = `${other.name}, ${[of, down].filter(Boolean).join(", ")}`;
      from.push(numbers.length > MANY ? named : `${named}: ${numbers.join(" ")}${other.factor}`);
    }
    const at = [label(table, i), head].filter(Boolean).join(", ");
    const made = from.length ? `, made of ${from.join("; of ")}` : "";
    const text = `${own.name}[${at}] = ${cell.textContent.trim()}${own.factor}${made}`;
    bar.textContent = text;
    bar.hidden = false;
    return text;
  };

  const cellAt = (event) => event.target.closest?.("[data-picture] tbody td");
  document.addEventListener("pointerover", (event) => {
    const cell = cellAt(event);
    if (cell) show(cell);
    else if (marked.length && !document.activeElement?.closest?.("[data-picture]")) clear();
  });
  document.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell) page.say(show(cell));
  });

  // A matrix that has the focus: arrows choose a cell, Escape none.
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  for (const table of tables.values()) {
    const box = table.parentElement;
    let at = null;
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        at = null;
        clear();
      }
      const step = steps[event.key];
      if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
      const next = at ? [at[0] + step[0], at[1] + step[1]] : [0, 0];
      const cell = next[0] >= 0 && next[1] >= 0 ? cellOf(table, ...next) : null;
      event.preventDefault();
      if (!cell) return;
      at = next;
      cell.scrollIntoView({ block: "nearest", inline: "nearest" });
      page.say(show(cell));
    });
    box.addEventListener("blur", clear);
  }
});
