// The viewer of one record: `mvViewer.show(container, record)`. Data becomes text of nodes, never markup.

const mvViewer = (() => {
  const { make } = mvText;

  // Base64 of gzipped JSON -> the value.
  async function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  function number(value) {
    return value.toLocaleString("en", { maximumFractionDigits: 2 });
  }

  function shown(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value === "number") return number(value);
    return typeof value === "string" ? value : JSON.stringify(value);
  }

  function button(text, label, action) {
    const element = make("button", "mv-button", text);
    element.type = "button";
    element.title = label;
    element.setAttribute("aria-label", label);
    element.addEventListener("click", action);
    return element;
  }

  function checkbox(text, checked, action) {
    const input = make("input");
    input.type = "checkbox";
    input.checked = checked;
    input.addEventListener("change", () => action(input.checked));
    action(checked);
    return make("label", "mv-check", input, text);
  }

  function facts(pairs) {
    const list = make("dl", "mv-facts");
    for (const [name, value] of pairs) list.append(make("dt", "", name), make("dd", "", shown(value)));
    return list;
  }

  class Viewer {
    constructor(record) {
      this.record = record;
      this.model = new mvModel.Model(record);
      this.selected = null;
      this.element = make("div", "mv-viewer");
      this.panel = make("aside", "mv-panel");
      this.panel.setAttribute("aria-live", "polite");
      this.text = new mvText.Text(this.model, (i) => this.select(i));
      this.element.append(this.header());
      if (record.problems?.length) this.element.append(this.problems());
      this.element.append(this.model.lanes ? this.lanesCard() : this.withoutLanes());
      const columns = make("div", "mv-columns", this.textCard());
      if (this.model.ends) columns.append(this.panel);
      this.element.append(columns);
      this.explainPanel();
      this.element.addEventListener("keydown", (event) => this.key(event));
    }

    header() {
      const header = make("header", "mv-header", make("h2", "", shown(this.record.title)));
      if (this.record.question) {
        const question = make("details", "mv-question", make("summary", "", "Question"));
        question.open = String(this.record.question).length < 1200;
        question.append(make("div", "mv-question-text", String(this.record.question)));
        header.append(question);
      }
      if (this.record.before) {
        const before = make("details", "mv-question", make("summary", "", "Before: the sequential chain"));
        before.append(make("div", "mv-question-text", String(this.record.before)));
        header.append(before);
      }
      const chips = make("div", "mv-chips");
      for (const [name, value] of Object.entries(this.record.figures ?? {})) {
        const chip = make("span", "mv-chip", make("span", "mv-chip-name", name.replaceAll("_", " ")), shown(value));
        if (name === "correct") chip.classList.add(value ? "mv-good" : value === false ? "mv-bad" : "mv-unknown");
        chips.append(chip);
      }
      header.append(chips);
      return header;
    }

    problems() {
      const list = make("ul", "");
      for (const problem of this.record.problems) list.append(make("li", "", shown(problem)));
      const count = this.record.problems.length;
      return make("section", "mv-problems", make("h3", "", `${count} problem${count === 1 ? "" : "s"}`), list);
    }

    withoutLanes() {
      const why = this.record.problems?.length
        ? "The text is not laid out in lanes, since its form is not a trace's."
        : "There are no lanes: the positions of this response were not kept.";
      return make("p", "mv-note", why);
    }

    lanesCard() {
      this.lanes = new mvLanes.Lanes(this.model, (lane, start, end) => this.choose(lane, start, end));
      const { lanes } = this;
      const tools = make("div", "mv-tools");
      if (this.model.lanes.blocks.size) {
        tools.append(
          button("Fold all", "Fold all blocks", () => lanes.foldAll(true)),
          button("Unfold all", "Unfold all blocks", () => lanes.foldAll(false)),
        );
      }
      tools.append(
        button("−", "Zoom out", () => lanes.setZoom(lanes.zoom / 2)),
        button("+", "Zoom in", () => lanes.setZoom(lanes.zoom * 2)),
      );
      const heading = make("div", "mv-card-head", make("h3", "", "What was written when"), this.legend(), tools);
      const card = make("section", "mv-card", heading, lanes.element);
      if (this.model.unit !== "tokens") {
        card.append(make("p", "mv-note", `Positions count ${this.model.unit}: no tokenizer was given.`));
      }
      return card;
    }

    legend() {
      const names = [["text", "text"], ["path", "path"], ["wait", "waits for the join"], ["critical", "critical path"]];
      if (this.model.sections && this.model.ends) names.splice(1, 0, ["goal", "goal"], ["conclusion", "conclusion"]);
      const legend = make("div", "mv-legend");
      const few = this.model.lanes.blocks.size === 0;
      for (const [name, text] of few ? [] : names) {
        legend.append(make("span", "", make("i", `mv-key mv-key-${name}`), text));
      }
      return legend;
    }

    textCard() {
      const tools = make("div", "mv-tools");
      const toggle = (text, name, checked) =>
        checkbox(text, checked, (on) => this.text.element.classList.toggle(name, on));
      if (this.model.tokens?.logprobs && this.model.ends) tools.append(toggle("probabilities", "mv-tint", true));
      if (this.model.sections?.children.length) {
        tools.append(toggle("tags", "mv-tags", true), toggle("paths side by side", "mv-beside", false));
        tools.append(
          button("Open all", "Open all blocks and paths", () => this.text.openAll(true)),
          button("Close all", "Close all blocks and paths", () => this.text.openAll(false)),
        );
      }
      const heading = make("div", "mv-card-head", make("h3", "", "Response"), this.tintLegend(), tools);
      return make("section", "mv-card mv-text-card", heading, this.text.element);
    }

    tintLegend() {
      const legend = make("div", "mv-legend");
      if (!this.model.tokens?.logprobs || !this.model.ends) return legend;
      for (const [name, text] of [["p1", "p < 0.9"], ["p3", "< 0.5"], ["p5", "< 0.1"], ["forced", "forced"]]) {
        legend.append(make("span", "", make("i", `mv-key mv-${name}`), text));
      }
      return legend;
    }

    explainPanel() {
      const unit = this.model.unit.slice(0, -1);
      this.panel.replaceChildren(
        make("h3", "", `No ${unit} selected`),
        make("p", "", `Click a ${unit} to see what it could attend to when it was written.`),
        make("p", "mv-keys", make("kbd", "", "←"), make("kbd", "", "→"), ` the ${unit} before and after`),
        make("p", "mv-keys", make("kbd", "", "Esc"), " selects nothing"),
      );
    }

    // Select a token of the response: mark what it sees, and say what is known of it.
    select(i, block = "nearest") {
      for (const span of this.marked ?? []) span.classList.remove("mv-selected");
      this.selected = i;
      this.element.classList.toggle("mv-has-token", i !== null);
      if (i === null) return this.clear();
      const shift = this.model.tokens.num_prompt;
      const ranges = this.model.visibleTo(i).map(([a, b]) => [Math.max(0, a - shift), Math.max(0, b - shift)]);
      this.text.mark(ranges, "mv-seen", "mv-unseen");
      this.marked = this.text.spansOf(i);
      for (const span of this.marked) span.classList.add("mv-selected");
      if (this.marked.length) this.text.reveal(this.marked[0], block);
      this.lanes?.showChosen(null);
      this.lanes?.showToken(i);
      this.describe(i);
    }

    clear() {
      this.marked = [];
      this.text.mark(null);
      this.lanes?.showToken(null);
      this.lanes?.showChosen(null);
      for (const element of this.element.querySelectorAll(".mv-chosen-section")) {
        element.classList.remove("mv-chosen-section");
      }
      this.explainPanel();
    }

    describe(i) {
      const { model } = this;
      const { tokens } = model;
      const text = model.text.slice(model.startOf(i), model.ends[i]);
      const visible = mvModel.overlap(model.visibleTo(i), 0, Infinity);
      const inPrompt = mvModel.overlap(model.visibleTo(i), 0, tokens.num_prompt);
      const branch = tokens.branches[tokens.token_branches[i]];
      const pairs = [
        ["index", i],
        ["position", tokens.positions[i]],
        ["step", model.stepOf(i)],
        ["branch", branch.label || tokens.token_branches[i] ? `path ${branch.label ?? "?"}` : "top level"],
      ];
      if (tokens.logprobs) pairs.push(...this.likelihood(tokens.logprobs[i]));
      if (tokens.passes) pairs.push(["pass", tokens.passes[i]]);
      pairs.push(["sees", `${number(visible)} ${model.unit}`]);
      if (tokens.num_prompt) pairs.push(["… prompt", `${number(inPrompt)} of ${number(tokens.num_prompt)}`]);
      pairs.push(["… so far", `${number(visible - inPrompt)} of ${number(i + 1)}`]);
      const glyphs = text ? text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") : "no text of its own";
      const hidden = this.hiddenFrom(i);
      this.panel.replaceChildren(
        make("h3", "", model.unit.slice(0, -1).replace(/^./, (letter) => letter.toUpperCase())),
        make("div", text ? "mv-glyphs" : "mv-glyphs mv-empty", glyphs),
        facts(pairs),
        make("p", "mv-hidden", hidden.length ? `Hidden: ${hidden.join(", ")}.` : "Nothing before it is hidden."),
      );
    }

    likelihood(logprob) {
      if (logprob === null) return [["probability", "forced by the engine"]];
      return [["probability", Number(Math.exp(logprob).toPrecision(3))], ["log-probability", logprob.toFixed(4)]];
    }

    // Which paths hold earlier tokens that token i does not see, with how many.
    hiddenFrom(i) {
      const { tokens } = this.model;
      const counts = new Map();
      const ranges = this.model.visibleTo(i);
      for (let k = 0; k < i; k++) {
        const at = tokens.num_prompt + k;
        if (ranges.some(([a, b]) => a <= at && at < b)) continue;
        counts.set(tokens.token_branches[k], (counts.get(tokens.token_branches[k]) ?? 0) + 1);
      }
      return [...counts].map(([id, count]) => {
        const name = id ? `path ${tokens.branches[id].label ?? "?"}` : "the top level";
        return `${name} (${number(count)})`;
      });
    }

    // A bar of a lane was clicked: mark its text and go there.
    choose(lane, start, end) {
      this.select(null);
      this.lanes.showChosen(start, end);
      const section = this.model.sectionOf(lane);
      const element = section && this.text.elements.get(section);
      if (this.model.ends) this.text.mark([[start, end]], "mv-part", "");
      else element?.classList.add("mv-chosen-section");
      if (element && start === lane.start) return this.text.reveal(element, "start");
      for (let i = start; this.model.ends && i < end; i++) {
        const span = this.text.spansOf(i).pop();
        if (span) return this.text.reveal(span);
      }
      this.text.reveal(element, "start");
    }

    key(event) {
      if (event.target.closest("input, summary, button, [data-start], [data-fold]") && event.key !== "Escape") return;
      if (event.altKey || event.ctrlKey || event.metaKey || !this.model.ends) return;
      const last = this.model.numTokens - 1;
      const at = this.selected;
      const moves = {
        ArrowRight: at === null ? 0 : Math.min(last, at + 1),
        ArrowLeft: at === null ? last : Math.max(0, at - 1),
        Escape: null,
      };
      if (!(event.key in moves)) return;
      event.preventDefault();
      this.select(moves[event.key]);
    }
  }

  // Show a record in an element, in place of what was there.
  function show(container, record) {
    const viewer = new Viewer(record);
    container.replaceChildren(viewer.element);
    return viewer;
  }

  return { show, unpack, visibleTo: mvModel.visibleTo };
})();
