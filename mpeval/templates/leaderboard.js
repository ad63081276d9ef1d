"use strict";
// Sorts and filters the table in place, opens details, and keeps all of it in the location's hash.
(() => {
  const SELECTS = {task: "Task", benchmark: "Benchmark", protocol: "Protocol", kind: "Kind", family: "Family"};
  const UNKNOWN = "not recorded";
  const table = document.querySelector("table");
  const headings = [...table.tHead.rows[0].cells];
  const names = headings.map((heading) => heading.textContent);
  const bodies = [...table.tBodies].map((body) => ({body, rows: [...body.rows]}));
  const sorted = document.createElement("tbody");  // holds all rows while they are not in the order of boards
  const collator = new Intl.Collator("en", {numeric: true});
  const state = {sort: "", down: false, row: "", text: ""};
  const controls = {};
  const count = document.createElement("output");

  const cellText = (row, name) => row.cells[names.indexOf(name)].textContent;
  const items = bodies.flatMap(({rows}) => rows.flatMap((row, place) => {
    if (!row.classList.contains("number")) return [];
    const field = {
      task: cellText(row, SELECTS.task) || UNKNOWN,
      benchmark: cellText(row, SELECTS.benchmark),
      protocol: cellText(row, SELECTS.protocol),
      kind: cellText(row, SELECTS.kind),
      family: row.dataset.family || UNKNOWN,
    };
    const more = rows[place + 1];
    return [{row, more, field, text: `${row.textContent} ${more.textContent}`.toLowerCase(), keys: {}, opened: false}];
  }));
  const byId = new Map(items.map((item) => [item.row.id, item]));

  // ---- order ----

  const SIZES = {K: 1e3, M: 1e6, B: 1e9, T: 1e12};
  const number = (text) => {
    const found = /^(-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?)([KMBT]?)/.exec(text.replace(/^(\d{4})-(\d\d)-(\d\d)$/, "$1$2$3"));
    return found ? Number(found[1].replaceAll(",", "")) * (SIZES[found[2]] || 1) : null;
  };

  function key(item, column) {
    if (!(column in item.keys)) {
      const text = item.row.cells[column].textContent;
      item.keys[column] = "numeric" in headings[column].dataset ? number(text) : text || null;
    }
    return item.keys[column];
  }

  function order() {
    const column = names.indexOf(state.sort);
    headings.forEach((heading, place) => {
      if (place === column) heading.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    table.classList.toggle("sorted", column >= 0);
    if (column < 0) {
      for (const {body, rows} of bodies) body.append(...rows);
      sorted.remove();
      return;
    }
    const compare = "numeric" in headings[column].dataset ? (a, b) => a - b : collator.compare;
    const rank = (a, b) => {
      const [left, right] = [key(a, column), key(b, column)];
      if (left === null || right === null) return (left === null) - (right === null);  // the missing last
      return state.down ? compare(right, left) : compare(left, right);
    };
    const all = document.createDocumentFragment();
    for (const {row, more} of [...items].sort(rank)) all.append(row, more);
    sorted.append(all);
    table.append(sorted);
  }

  // ---- filters ----

  function filter() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = Object.entries(controls).filter(([, control]) => control.value).map(([name, control]) =>
      [name, control.value]);
    let shown = 0;
    for (const item of items) {
      const hide = !(wanted.every(([name, value]) => item.field[name] === value) &&
        words.every((word) => item.text.includes(word)));
      if (item.row.hidden !== hide) item.row.hidden = hide;
      if (item.opened) item.more.hidden = hide;
      shown += !hide;
    }
    const empty = bodies.map(({rows}) => !rows.some((row) => row.id && !row.hidden));
    bodies.forEach(({body}, place) => { body.hidden = Boolean(state.sort) || empty[place]; });
    for (const section of document.querySelectorAll(".charts")) {
      section.hidden = empty[section.dataset.board];
    }
    count.value = `${shown.toLocaleString("en")} of ${items.length.toLocaleString("en")} numbers`;
  }

  // ---- details ----

  function open(item, opened) {
    item.opened = opened;
    item.more.hidden = item.row.hidden;
    item.row.classList.toggle("open", opened);
    item.row.querySelector("a[href^='#']").setAttribute("aria-expanded", String(opened));
  }

  // ---- the location's hash ----

  function write() {
    const parts = new URLSearchParams();
    for (const [name, control] of Object.entries(controls)) if (control.value) parts.set(name, control.value);
    for (const name of ["text", "sort"]) if (state[name]) parts.set(name, state[name]);
    if (state.sort) parts.set("order", state.down ? "descending" : "ascending");
    const alone = state.row && ![...parts].length;
    if (state.row && !alone) parts.set("row", state.row);
    const hash = alone ? state.row : parts.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function read() {
    const hash = location.hash.slice(1);
    const parts = new URLSearchParams(hash.includes("=") ? hash : {row: hash});
    for (const [name, control] of Object.entries(controls)) {
      control.value = parts.get(name) || "";
      if (control.selectedIndex < 0) control.value = "";  // nothing is called so any more
    }
    state.text = search.value = parts.get("text") || "";
    state.sort = names.includes(parts.get("sort")) ? parts.get("sort") : "";
    state.down = parts.get("order") === "descending";
    state.row = byId.has(parts.get("row")) ? parts.get("row") : "";
    order();
    filter();
    if (state.row) {
      open(byId.get(state.row), true);
      byId.get(state.row).row.scrollIntoView({block: "center"});
    }
  }

  // ---- controls ----

  function labelled(text, control) {
    const label = document.createElement("label");
    label.append(text, control);
    return label;
  }

  function changed(work) {
    work();
    write();
  }

  const search = document.createElement("input");
  search.type = "search";
  search.addEventListener("input", () => changed(() => { state.text = search.value; filter(); }));
  const filters = document.getElementById("filters");
  for (const [name, words] of Object.entries(SELECTS)) {
    const values = [...new Set(items.map((item) => item.field[name]))].sort(collator.compare);
    const control = controls[name] = document.createElement("select");
    control.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    control.addEventListener("change", () => changed(filter));
    filters.append(labelled(words, control));
  }
  const reset = document.createElement("button");
  reset.type = "button";
  reset.textContent = "Show all";
  reset.addEventListener("click", () => { history.replaceState(null, "", "#"); read(); write(); });
  filters.append(labelled("Any text", search), reset, count);
  count.setAttribute("aria-live", "polite");
  filters.hidden = false;

  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => changed(() => {
      const first = "numeric" in heading.dataset;  // numbers begin with the largest, texts with A
      if (state.sort !== names[column]) [state.sort, state.down] = [names[column], first];
      else if (state.down === first) state.down = !first;
      else state.sort = "";
      order();
      filter();
    }));
    heading.append(button);
  });

  for (const item of items) open(item, false);
  table.addEventListener("click", (event) => {
    const item = byId.get(event.target.closest("a[href^='#']")?.hash.slice(1));
    if (!item) return;
    event.preventDefault();
    const opened = !item.opened;
    changed(() => { open(item, opened); state.row = opened ? item.row.id : ""; });
  });
  document.documentElement.classList.add("scripted");
  addEventListener("hashchange", read);
  read();
})();
