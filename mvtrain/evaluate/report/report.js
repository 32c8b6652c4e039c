"use strict";
// The table of problems and the dialog with a sample. What is shown is in the address, so that a link leads back to it.
const mvReport = (() => {
  const PAGE = 50; // problems on a page
  const DEFAULTS = { q: "", task: "", mode: "", answer: "", form: "", run: "", sort: "problem", page: "1", open: "", sample: "" };
  const COLUMNS = [
    ["problem", "Problem", ""], ["", "Mode", ""], ["accuracy", "Right", "number"], ["parallelism", "Parallelism", "number"],
    ["tokens", "Tokens", "number"], ["critical_path", "Critical path", "number"], ["well_formed", "Well formed", "number"],
    ["answer", "Answer", ""], ["reference", "Reference", ""],
  ];
  const CHOICES = {
    answer: [["", "any"], ["right", "right"], ["wrong", "wrong"], ["ungradable", "ungradable"], ["none", "no answer"],
      ["one", "only one mode right"]],
    form: [["", "any"], ["blocks", "with blocks"], ["plain", "without blocks"], ["truncated", "truncated"],
      ["malformed", "not well formed"]],
  };
  const SAMPLE_COLUMNS = [["Sample", ""], ["Graded", ""], ["Answer", ""], ["Why", ""], ["Parallelism", "number"],
    ["Tokens", "number"], ["Critical path", "number"], ["Blocks", "number"], ["Time", "number"], ["Ended", ""], ["Here", ""]];
  const DETAILS = { 0: "no response", 1: "response", 2: "response, tokens" };
  const GRADES = { true: "right", false: "wrong", null: "ungradable" };

  const find = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(find(id).textContent);
  let data, records, about, state, views = [], turn = 0;

  function make(name, attributes, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // The address

  function readState() {
    const given = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, given.get(name) ?? value]));
  }

  function address(changes) {
    const next = { ...state, ...changes };
    const kept = Object.entries(next).filter(([name, value]) => value !== DEFAULTS[name]);
    return `#${new URLSearchParams(kept)}`;
  }

  function change(changes) {
    const to = address(changes);
    state = { ...state, ...changes };
    history.replaceState(null, "", to === "#" ? location.pathname : to);
    draw();
  }

  // Filters

  function options(select, pairs) {
    select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
  }

  function prepareFilters() {
    options(find("filter-task"), [["", "all"], ...data.tasks.map((name) => [name, name])]);
    options(find("filter-mode"), [["", "all"], ...data.modes.map((name) => [name, name])]);
    options(find("filter-run"), [["", "main"], ...data.budgets.map((b) => [String(b), `forced at ${b}`])]);
    find("run-label").hidden = !data.budgets.length;
    for (const name of ["answer", "form"]) options(find(`filter-${name}`), CHOICES[name]);
    for (const name of ["task", "mode", "answer", "form", "run"]) {
      find(`filter-${name}`).addEventListener("change", (event) => change({ [name]: event.target.value, page: "1" }));
    }
    find("search").addEventListener("input", (event) => change({ q: event.target.value, page: "1" }));
    find("filters").addEventListener("submit", (event) => event.preventDefault());
    find("filters").addEventListener("reset", (event) => {
      event.preventDefault();
      change({ ...DEFAULTS });
    });
  }

  function showFilters() {
    if (find("search").value !== state.q) find("search").value = state.q;
    for (const name of ["task", "mode", "answer", "form", "run"]) find(`filter-${name}`).value = state[name];
  }

  // The table

  function head() {
    const row = make("tr", {});
    for (const [key, text, kind] of COLUMNS) {
      const cell = make("th", { scope: "col", class: kind });
      if (key) {
        const sorted = state.sort.replace("-", "") === key;
        const falling = state.sort.startsWith("-");
        cell.setAttribute("aria-sort", sorted ? (falling ? "descending" : "ascending") : "none");
        const button = make("button", { type: "button", class: "sort", "data-sort": key }, text);
        button.addEventListener("click", () => change({ sort: sorted && !falling ? `-${key}` : key, page: "1" }));
        cell.append(button);
      } else {
        cell.append(text);
      }
      row.append(cell);
    }
    return row;
  }

  const number = (value, digits = 0) =>
    value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

  function modeName(mode) {
    const known = Object.hasOwn(about.modes, mode);
    return make("span", { class: `mode mode-${known ? mode : "other"}`, title: known ? about.modes[mode] : "" }, mode);
  }

  function problemCell(view) {
    const { problem } = view;
    const isOpen = state.open === String(problem.key);
    const button = make("button", { type: "button", class: "expand text", "aria-expanded": String(isOpen) }, problem.id);
    button.addEventListener("click", () => change({ open: isOpen ? "" : String(problem.key) }));
    const cell = make("th", { scope: "rowgroup", rowspan: view.lines.length, class: "text problem" });
    if (data.tasks.length > 1 && !problem.id.startsWith(problem.task)) {
      cell.append(make("span", { class: "soft" }, `${problem.task} / `));
    }
    cell.append(button, make("span", { class: "question" }, problem.question));
    return cell;
  }

  function lineCells(line) {
    const num = line.samples.length;
    const grade = line.right === num ? "right" : line.right ? "some" : line.samples.some((s) => s.correct === null) ? "ungradable" : "wrong";
    const right = num === 1 ? { right: "right", wrong: "wrong", ungradable: "ungradable" }[grade] : `${line.right} of ${num}`;
    const votes = line.answer !== null && num > 1 ? ` (${line.votes})` : "";
    return [
      make("td", {}, modeName(line.mode)),
      make("td", { class: "number" }, make("span", { class: `grade grade-${grade}` }, right)),
      make("td", { class: "number" }, number(line.parallelism, 2)),
      make("td", { class: "number" }, number(line.tokens)),
      make("td", { class: "number" }, number(line.critical_path)),
      make("td", { class: "number" }, num === 1 ? (line.formed ? "yes" : "no") : `${line.formed} of ${num}`),
      make("td", { class: "text answer" }, line.answer === null ? make("span", { class: "nothing" }, "none") : line.answer + votes),
    ];
  }

  function body(view) {
    const group = make("tbody", { "data-problem": view.problem.key });
    view.lines.forEach((line, place) => {
      const row = make("tr", { class: "line" });
      if (!place) row.append(problemCell(view));
      row.append(...lineCells(line));
      if (!place) row.append(make("td", { class: "text answer", rowspan: view.lines.length }, view.problem.reference));
      row.addEventListener("click", (event) => {
        if (event.target.closest("button, a") || getSelection().toString()) return;
        if (line.samples.length === 1) openSample(line.samples[0]);
        else change({ open: state.open === String(view.problem.key) ? "" : String(view.problem.key) });
      });
      group.append(row);
    });
    if (state.open === String(view.problem.key)) group.append(samplesRow(view));
    return group;
  }

  // The samples of an open row that the filters are after.
  function samplesRow(view) {
    const heads = SAMPLE_COLUMNS.map(([text, kind]) => make("th", { scope: "col", class: kind }, text));
    const table = make("table", { class: "samples" }, make("thead", {}, make("tr", {}, ...heads)));
    const rows = make("tbody", {});
    for (const sample of view.matching) {
      const row = make("tr", {}, ...sampleCells(sample));
      row.addEventListener("click", (event) => {
        if (!event.target.closest("a") && !getSelection().toString()) openSample(sample);
      });
      rows.append(row);
    }
    table.append(rows);
    return make("tr", { class: "expanded" }, make("td", { colspan: COLUMNS.length }, table));
  }

  function sampleCells(sample) {
    const grade = GRADES[sample.correct];
    const link = make("a", { href: address({ sample: pathOf(sample) }), class: "sample" }, `${sample.mode} ${sample.sample}`);
    const ended = { stop: "by itself", length: "cut off" }[sample.finish] ?? sample.finish;
    return [
      make("td", {}, link),
      make("td", {}, make("span", { class: `grade grade-${grade}` }, grade)),
      make("td", { class: "text answer" }, sample.answer ?? make("span", { class: "nothing" }, "none")),
      make("td", { class: "text reason" }, sample.reason),
      ...[number(sample.critical_path ? sample.tokens / sample.critical_path : 1, 2), number(sample.tokens),
        number(sample.critical_path), number(sample.blocks), sample.seconds === null ? "-" : `${number(sample.seconds, 1)} s`,
      ].map((text) => make("td", { class: "number" }, text)),
      make("td", { class: "text" }, sample.well_formed ? ended : `${ended}, not well formed`),
      make("td", { class: "soft" }, DETAILS[about.levels[sample.row]] ?? ""),
    ];
  }

  function pager(id, page, pages) {
    const button = (text, to) => {
      const element = make("button", { type: "button" }, text);
      element.disabled = to < 1 || to > pages || to === page;
      element.addEventListener("click", () => change({ page: String(to) }));
      return element;
    };
    const parts = [button("First", 1), button("Previous", page - 1), ` ${page} of ${pages} `, button("Next", page + 1), button("Last", pages)];
    find(id).replaceChildren(...(pages > 1 ? parts : []));
  }

  function draw() {
    showFilters();
    views = mvRows.select(data, state);
    const pages = Math.max(1, Math.ceil(views.length / PAGE));
    const page = Math.min(pages, Math.max(1, Math.floor(Number(state.page)) || 1));
    const table = find("problem-table");
    const focused = document.activeElement?.dataset?.sort;
    table.tHead.replaceChildren(head());
    for (const old of [...table.tBodies]) old.remove();
    table.append(...views.slice((page - 1) * PAGE, page * PAGE).map(body));
    if (focused) table.querySelector(`[data-sort="${focused}"]`)?.focus();
    const samples = views.reduce((total, view) => total + view.matching.length, 0);
    const word = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;
    find("status").textContent = `${word(views.length, "problem")} of ${number(data.problems.length)}, ${word(samples, "sample")}`;
    pager("pager-top", page, pages);
    pager("pager-bottom", page, pages);
  }

  // A sample

  function pathOf(sample) {
    const parts = [sample.problem.task, sample.mode, sample.problem.id, sample.sample];
    if (sample.budget !== null) parts.push(sample.budget);
    return parts.map((part) => encodeURIComponent(String(part).toWellFormed?.() ?? String(part))).join("/");
  }

  function inOrder() {
    return views.flatMap((view) => view.matching);
  }

  function sampleAt(path) {
    for (const problem of data.problems) for (const sample of problem.samples) if (pathOf(sample) === path) return sample;
    return null;
  }

  function openSample(sample) {
    change({ sample: pathOf(sample) });
    showSample(sample);
  }

  async function showSample(sample) {
    const dialog = find("sample"), own = ++turn, around = inOrder(), place = around.indexOf(sample);
    find("sample-title").textContent = [sample.problem.task, sample.problem.id, sample.mode, `sample ${sample.sample}`,
      ...(sample.budget === null ? [] : [`forced at ${sample.budget}`])].join(" / ");
    const grade = GRADES[sample.correct];
    find("sample-grade").replaceChildren(make("span", { class: `grade grade-${grade}` }, grade));
    find("sample-place").textContent = place < 0 ? "" : `${place + 1} of ${around.length}`;
    for (const [id, other] of [["sample-previous", around[place - 1]], ["sample-next", around[place + 1]]]) {
      find(id).disabled = place < 0 || !other;
      find(id).onclick = () => openSample(other);
    }
    if (!dialog.open) dialog.showModal();
    const container = find("sample-body");
    const packed = records[sample.row];
    if (!packed) {
      container.replaceChildren(make("p", { class: "warning" }, "The response of this sample is not in this file, to keep it small; samples.jsonl has it."));
      return;
    }
    const record = await mvViewer.unpack(packed);
    if (own !== turn) return; // another one was opened meanwhile
    if (record.tokens) record.tokens = mvExpand.tokens(record.tokens);
    mvViewer.show(container, record);
    container.scrollTop = 0;
  }

  function prepareDialog() {
    const dialog = find("sample");
    dialog.addEventListener("close", () => {
      turn += 1;
      change({ sample: "" });
    });
    find("sample-close").addEventListener("click", () => dialog.close());
    find("sample-copy").addEventListener("click", () => copy(location.href, find("sample-copy")));
    find("copy-command")?.addEventListener("click", (event) => copy(find("command").textContent, event.target));
  }

  async function copy(text, button) {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed here";
    }
    setTimeout(() => { button.textContent = before; }, 1500);
  }

  function follow() {
    const before = state?.sample;
    state = readState();
    draw();
    const sample = state.sample && sampleAt(state.sample);
    if (sample && state.sample !== before) showSample(sample);
    else if (!sample && find("sample").open) find("sample").close();
  }

  async function start() {
    about = read("data-about");
    records = read("data-records");
    const packed = read("data-index");
    data = packed ? mvRows.build(await mvViewer.unpack(packed)) : { tasks: [], modes: [], budgets: [], problems: [] };
    state = readState();
    prepareFilters();
    prepareDialog();
    draw();
    const sample = state.sample && sampleAt(state.sample);
    if (sample) showSample(sample);
    window.addEventListener("hashchange", () => { if (location.hash.includes("=") || !location.hash) follow(); });
    document.body.dataset.ready = "yes";
  }

  return { start };
})();
mvReport.start();
