// The response as a tree of sections. Long texts are plain until they come into view; then every token is a span.

const mvText = (() => {
  const CHUNK = 1600; // characters that become spans at once
  const OPEN_BELOW = 9000; // characters of a response whose paths are open from the start

  function make(name, className, ...children) {
    const element = document.createElement(name);
    if (className) element.className = className;
    element.append(...children);
    return element;
  }

  // How likely a token was, as one of six shades; "forced" where the engine put it in, "" where nobody knows.
  function shade(tokens, i) {
    if (!tokens.logprobs) return "";
    const logprob = tokens.logprobs[i];
    if (logprob === null) return "mv-forced";
    const probability = Math.exp(logprob);
    return `mv-p${[0.9, 0.7, 0.5, 0.25, 0.1].filter((least) => probability < least).length}`;
  }

  class Text {
    // `choose(index, jump)` is told of a token that was clicked.
    constructor(model, choose) {
      this.model = model;
      this.chunks = [];
      this.elements = new Map();
      this.observer = new IntersectionObserver((entries) => this.show(entries), { rootMargin: "500px" });
      this.element = make("div", "mv-text");
      this.element.tabIndex = 0;
      this.element.setAttribute("role", "region");
      this.element.setAttribute("aria-label", "The response");
      this.render();
      this.element.addEventListener("click", (event) => {
        const token = event.target.closest?.("[data-i]");
        if (token && !window.getSelection()?.toString()) choose(Number(token.dataset.i));
      });
      this.element.addEventListener("mouseover", (event) => this.explain(event.target));
    }

    render() {
      const { model } = this;
      if (!model.sections) {
        this.element.classList.add("mv-flat");
        this.body(this.run(this.element), 0, model.text.length);
      } else {
        this.fill(this.element, model.sections);
      }
    }

    explain(target) {
      const i = target.dataset?.i;
      if (i === undefined || target.title) return;
      const { tokens } = this.model;
      const logprob = tokens.logprobs?.[i];
      const likely = tokens.logprobs ? (logprob === null ? "forced" : `p ${Math.exp(logprob).toFixed(3)}`) : "";
      target.title = [`${this.model.unit.slice(0, -1)} ${i}`, `step ${this.model.stepOf(i)}`, likely].filter(Boolean).join(" · ");
    }

    show(entries) {
      for (const { target, isIntersecting } of entries) {
        if (isIntersecting) this.split(this.chunks[Number(target.dataset.chunk)]);
      }
    }

    // A section with its tags into `parent`: runs of inline text, and its children between them.
    fill(parent, section) {
      let run = null;
      const inline = () => (run ??= this.run(parent));
      const between = (start, end) => {
        const isBlank = !run && !this.model.text.slice(start, end).trim() && end < section.innerEnd;
        this.prose(inline(), start, end);
        run.classList.toggle("mv-blank", isBlank);
      };
      let position = section.inner;
      if (section.inner > section.start) this.piece(inline(), section.start, section.inner, "mv-tag");
      for (const child of section.children) {
        if (child.start > position) between(position, child.start);
        run = null;
        this.child(parent, child);
        position = child.end;
      }
      if (section.innerEnd > position) this.prose(inline(), position, section.innerEnd);
      if (section.end > section.innerEnd) this.piece(inline(), section.innerEnd, section.end, "mv-tag");
      if (section.cut) inline().append(make("span", "mv-cut", `the text ends here, ${section.kind} is open`));
    }

    run(parent) {
      const run = make("div", "mv-run");
      parent.append(run);
      return run;
    }

    child(parent, section) {
      const make = { Parallel: "block", Path: "path" }[section.kind];
      const element = make ? this[make](section) : this.plain(section);
      this.elements.set(section, element);
      parent.append(element);
    }

    plain(section) {
      const element = make("div", `mv-section mv-${section.kind.toLowerCase()}`);
      if (section.kind === "Goal" || section.kind === "Conclusion") {
        element.append(make("div", "mv-heading", section.kind));
      }
      this.fill(element, section);
      return element;
    }

    block(section) {
      const paths = section.children.filter((child) => child.kind === "Path");
      const lane = paths.length ? this.model.laneOf(paths[0]) : null;
      const facts = [`${paths.length} path${paths.length === 1 ? "" : "s"}`];
      if (lane?.block) {
        const { x0, x1, numTokens } = lane.block;
        facts.push(`steps ${x0} to ${x1 - 1}`, `${numTokens} ${this.model.unit} in ${x1 - x0} steps`);
      }
      const element = make("details", "mv-block");
      element.open = true;
      element.append(this.summary("Block", "", facts));
      const body = make("div", "mv-block-body");
      element.append(body);
      this.fill(body, section);
      return element;
    }

    path(section) {
      const lane = this.model.laneOf(section);
      const element = make("details", `mv-path mv-hue-${lane ? mvLanes.hueOf(lane) : this.hueOf(section)}`);
      element.open = this.model.text.length <= OPEN_BELOW;
      const facts = [];
      if (lane) {
        facts.push(`${lane.numTokens} ${this.model.unit}`);
        const wait = lane.block.x1 - lane.x1;
        facts.push(wait > 0 ? `waits ${wait}` : "longest");
      }
      element.append(this.summary(section.label ?? "?", mvModel.pathTitle(this.model.text, section), facts));
      this.fill(element, section);
      return element;
    }

    // The place of the path at top level that a section stands in: nested paths share its colour.
    hueOf(section) {
      let top = section;
      for (let up = section; up; up = up.parent) if (up.kind === "Path") top = up;
      return top.parent.children.filter((child) => child.kind === "Path").indexOf(top) % 6;
    }

    summary(label, title, facts) {
      const summary = make("summary", "", make("span", "mv-label", label), make("span", "mv-title", title));
      if (facts.length) summary.append(make("span", "mv-facts-line", facts.join(" · ")));
      return summary;
    }

    // Text between tags: white space at its edges is shown small.
    prose(run, start, end) {
      const text = this.model.text.slice(start, end);
      const lead = text.length - text.trimStart().length;
      const tail = lead === text.length ? 0 : text.length - text.trimEnd().length;
      if (lead) this.piece(run, start, start + lead, "mv-space");
      if (lead < text.length) this.body(run, start + lead, end - tail);
      if (tail) this.piece(run, end - tail, end, "mv-space");
    }

    body(run, start, end) {
      const { ends, text } = this.model;
      for (let from = start; from < end; ) {
        let to = Math.min(end, from + CHUNK);
        if (ends && to < end) to = Math.min(end, Math.max(from + 1, ends[this.model.tokensIn(from, to)[1] - 1]));
        const chunk = this.add(run, from, to, "mv-chunk");
        chunk.element.textContent = text.slice(from, to);
        if (ends) this.observer.observe(chunk.element);
        from = to;
      }
    }

    piece(run, start, end, className) {
      const chunk = this.add(run, start, end, className);
      if (this.model.ends) this.split(chunk);
      else chunk.element.textContent = this.model.text.slice(start, end);
    }

    add(run, start, end, className) {
      const element = make("span", className);
      element.dataset.chunk = this.chunks.length;
      const [first, last] = this.model.ends ? this.model.tokensIn(start, end) : [0, 0];
      const chunk = { element, start, end, first, last, isSplit: false };
      this.chunks.push(chunk);
      run.append(element);
      return chunk;
    }

    // Turn a chunk's text into one span a token.
    split(chunk) {
      if (chunk.isSplit) return;
      chunk.isSplit = true;
      this.observer.unobserve(chunk.element);
      const { model } = this;
      const spans = document.createDocumentFragment();
      for (let i = chunk.first; i < chunk.last; i++) {
        const [from, to] = [Math.max(model.startOf(i), chunk.start), Math.min(model.ends[i], chunk.end)];
        if (to <= from) continue;
        const span = make("span", `mv-token ${shade(model.tokens, i)}`, model.text.slice(from, to));
        span.dataset.i = i;
        spans.append(span);
      }
      chunk.element.replaceChildren(spans);
      if (chunk.end > model.ends[model.ends.length - 1]) this.rest(chunk);
      this.markChunk(chunk);
    }

    // Text after the last token: shown, though no token is known for it.
    rest(chunk) {
      const known = Math.max(chunk.start, this.model.ends[this.model.ends.length - 1]);
      chunk.element.append(this.model.text.slice(known, chunk.end));
    }

    // The spans of a token; its section is opened if `reveal`.
    spansOf(i) {
      const [start, end] = [this.model.startOf(i), this.model.ends[i]];
      const chunks = this.chunks.filter((chunk) => chunk.start < end && chunk.end > start);
      chunks.forEach((chunk) => this.split(chunk));
      return chunks.flatMap((chunk) => [...chunk.element.querySelectorAll(`[data-i="${i}"]`)]);
    }

    reveal(element, block = "center") {
      for (let up = element?.parentElement; up && up !== this.element; up = up.parentElement) {
        if (up.tagName === "DETAILS") up.open = true;
      }
      if (element?.tagName === "DETAILS") element.open = true;
      element?.scrollIntoView({ block, inline: "nearest" });
    }

    // Mark tokens in `ranges` (of the response) with one class and all others with another; null clears.
    mark(ranges, inside, outside) {
      this.marks = ranges && { ranges, inside, outside };
      this.chunks.forEach((chunk) => this.markChunk(chunk));
    }

    markChunk(chunk) {
      const all = ["mv-seen", "mv-unseen", "mv-part"];
      chunk.element.classList.remove(...all);
      const hadMarks = chunk.isMixed;
      chunk.isMixed = false;
      if (hadMarks) for (const span of chunk.element.children) span.classList.remove(...all);
      if (!this.marks) return;
      const { ranges, inside, outside } = this.marks;
      const count = mvModel.overlap(ranges, chunk.first, chunk.last);
      if (count === 0 || count === chunk.last - chunk.first) {
        const name = count ? inside : outside;
        if (name) chunk.element.classList.add(name);
        return;
      }
      chunk.isMixed = true;
      if (!chunk.isSplit) return this.split(chunk);
      for (const span of chunk.element.children) {
        const i = Number(span.dataset.i);
        const name = mvModel.overlap(ranges, i, i + 1) ? inside : outside;
        if (name) span.classList.add(name);
      }
    }

    openAll(open) {
      for (const details of this.element.querySelectorAll("details")) details.open = open;
    }
  }

  return { Text, make };
})();
