// The lanes: who wrote when. x is the step of the critical path, one row a branch, drawn as SVG.

const mvLanes = (() => {
  const ROW = 30;
  const BAR = 20;
  const AXIS = 26;
  const SIDE = 10;
  const LETTER = 7.2; // pixels of a letter of a bar's label, generously

  function svg(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // Rows from `row` down: the lane itself, then the paths of its blocks. Blocks follow one another and share rows.
  function place(lane, row) {
    lane.row = row;
    let height = 1;
    for (const block of lane.blocks.values()) {
      block.row = row + 1;
      let below = 1;
      if (block.folded) below += 1;
      else for (const path of block.paths) below += place(path, row + below);
      block.height = below - 1;
      height = Math.max(height, below);
    }
    return height;
  }

  function tickStep(length, room) {
    const least = (length * 70) / room;
    const unit = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
    return [1, 2, 5, 10].map((k) => k * unit).find((step) => step >= least) ?? Math.ceil(least);
  }

  function hueOf(lane) {
    let top = lane;
    while (top.parent && top.parent.id !== 0) top = top.parent;
    return top.block ? top.block.paths.indexOf(top) % 6 : -1;
  }

  class Lanes {
    // `choose(lane, start, end)` is told of tokens [start, end) that were clicked.
    constructor(model, choose) {
      this.model = model;
      this.choose = choose;
      this.zoom = 1;
      this.element = document.createElement("div");
      this.element.className = "mv-lanes";
      this.scroll = document.createElement("div");
      this.scroll.className = "mv-lanes-scroll";
      this.element.append(this.scroll);
      this.scroll.addEventListener("click", (event) => this.activate(event));
      this.scroll.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        this.activate(event);
      });
      this.observer = new ResizeObserver(() => {
        if (this.width === undefined || Math.abs(this.scroll.clientWidth - this.width) > 1) this.draw();
      });
      this.observer.observe(this.scroll);
    }

    activate(event) {
      const target = event.target.closest("[data-start],[data-fold]");
      if (!target) return;
      if (target.dataset.fold !== undefined) {
        const block = this.blocks.get(Number(target.dataset.fold));
        this.fold([block], !block.folded);
        this.scroll.querySelector(`[data-fold="${target.dataset.fold}"]`)?.focus();
      } else {
        this.choose(this.byId.get(Number(target.dataset.lane)), Number(target.dataset.start), Number(target.dataset.end));
      }
    }

    fold(blocks, folded) {
      for (const block of blocks) block.folded = folded;
      this.draw();
    }

    foldAll(folded) {
      this.fold(this.allBlocks(this.model.lanes), folded);
    }

    allBlocks(lane) {
      return [...lane.blocks.values()].flatMap((block) => [block, ...block.paths.flatMap((p) => this.allBlocks(p))]);
    }

    setZoom(zoom) {
      const middle = (this.scroll.scrollLeft + this.scroll.clientWidth / 2) / this.zoom;
      this.zoom = Math.min(64, Math.max(1, zoom));
      this.draw();
      this.scroll.scrollLeft = middle * this.zoom - this.scroll.clientWidth / 2;
    }

    x(step) {
      return SIDE + step * this.scale;
    }

    y(row) {
      return AXIS + row * ROW + (ROW - BAR) / 2;
    }

    draw() {
      this.width = this.scroll.clientWidth;
      const width = Math.max(300, this.width) * this.zoom;
      const top = this.model.lanes;
      const rows = place(top, 0);
      this.length = Math.max(1, top.x1);
      this.scale = (width - 2 * SIDE) / this.length;
      this.blocks = new Map();
      this.byId = new Map();
      this.height = AXIS + rows * ROW + 4;
      const root = svg("svg", { width, height: this.height, class: "mv-svg", role: "group" });
      root.setAttribute("aria-label", "Lanes: which path was written when");
      root.append(this.pattern());
      this.drawAxis(root);
      this.drawLane(root, top);
      this.cursor = svg("line", { class: "mv-cursor", y1: AXIS - 4, y2: this.height, visibility: "hidden" });
      root.append(this.cursor);
      this.scroll.replaceChildren(root);
      this.mark();
    }

    pattern() {
      const lines = svg("path", { d: "M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4", class: "mv-hatch" });
      const pattern = svg("pattern", { id: "mv-waiting", width: 8, height: 8, patternUnits: "userSpaceOnUse" }, lines);
      return svg("defs", {}, pattern);
    }

    drawAxis(root) {
      const step = tickStep(this.length, this.scale * this.length);
      const end = this.x(this.length);
      for (let at = 0; at <= this.length; at += step) {
        const x = this.x(at);
        root.append(svg("line", { class: "mv-tick", x1: x, x2: x, y1: AXIS - 6, y2: this.height }));
        if (end - x < 60 && at !== this.length && at !== 0) continue; // room for the label at the end
        const anchor = at ? "middle" : "start";
        root.append(svg("text", { class: "mv-axis", x, y: 14, "text-anchor": anchor }, at.toLocaleString("en")));
      }
      const label = `${this.length.toLocaleString("en")} steps`;
      root.append(svg("text", { class: "mv-axis mv-axis-end", x: end, y: 14, "text-anchor": "end" }, label));
    }

    drawLane(root, lane) {
      this.byId.set(lane.id, lane);
      for (const block of lane.blocks.values()) this.drawBlock(root, lane, block);
      const group = svg("g", { class: `mv-lane mv-hue-${hueOf(lane)}`, "data-of": lane.id });
      root.append(group);
      if (lane.block) this.drawWaiting(group, lane);
      let labelled = lane.id === 0;
      for (const run of lane.items) {
        if (run.paths || run.separator) continue;
        for (const part of this.model.partsOf(run)) {
          const bar = this.bar(lane, part);
          group.append(bar);
          if (!labelled) labelled = this.label(group, lane, part);
        }
        if (lane.critical) group.append(this.criticalLine(run.x0, run.x1, lane.row));
      }
    }

    bar(lane, part) {
      const x = this.x(this.model.stepOf(part.start));
      const width = Math.max(2, this.x(this.model.stepOf(part.end - 1) + 1) - x - 0.8);
      const name = lane.id === 0 ? "top level" : `path ${lane.label ?? ""}`;
      const bar = svg("rect", {
        class: `mv-bar mv-bar-${part.kind}`, x, y: this.y(lane.row), width, height: BAR, rx: Math.min(4, width / 2),
        tabindex: 0, role: "button", "data-lane": lane.id, "data-start": part.start, "data-end": part.end,
      });
      const count = `${part.end - part.start} ${this.model.unit}`;
      const title = this.model.titleOf(lane);
      const kind = part.kind === "text" ? "" : `, ${part.kind}`;
      const steps = `steps ${this.model.stepOf(part.start)} to ${this.model.stepOf(part.end - 1)}`;
      const text = `${name}${kind}${title ? `: ${title}` : ""} (${count}, ${steps})`;
      bar.setAttribute("aria-label", text);
      bar.append(svg("title", {}, text));
      return bar;
    }

    // The label of a path on one of its bars, if there is room for it.
    label(group, lane, part) {
      const room = Math.floor(((part.end - part.start) * this.scale - 12) / LETTER);
      const label = lane.label ?? String(lane.block.paths.indexOf(lane) + 1);
      if (room < label.length) return false;
      const title = this.model.titleOf(lane);
      let text = title && room > label.length + 6 ? `${label}  ${title}` : label;
      if (text.length > room) text = `${text.slice(0, room - 1).trimEnd()}…`;
      const y = this.y(lane.row) + BAR / 2 + 4;
      group.append(svg("text", { class: "mv-bar-label", x: this.x(this.model.stepOf(part.start)) + 6, y }, text));
      return true;
    }

    drawWaiting(group, lane) {
      const steps = lane.block.x1 - lane.x1;
      if (steps <= 0) return;
      const x = this.x(lane.x1);
      const place = { x, y: this.y(lane.row) + 3, width: steps * this.scale, height: BAR - 6 };
      const waiting = svg("rect", { class: "mv-wait", fill: "url(#mv-waiting)", ...place });
      waiting.append(svg("title", {}, `path ${lane.label ?? ""} waits ${steps} steps for the join`));
      group.append(waiting);
    }

    criticalLine(x0, x1, row) {
      const y = this.y(row) + BAR + 2.5;
      return svg("line", { class: "mv-critical", x1: this.x(x0), x2: this.x(x1), y1: y, y2: y });
    }

    drawBlock(root, lane, block) {
      const [x0, x1] = [this.x(block.x0), this.x(block.x1)];
      const bottom = AXIS + (block.row + block.height) * ROW;
      const frame = { x: x0 - 1, y: this.y(lane.row) + BAR / 2, width: Math.max(2, x1 - x0 + 2), rx: 5 };
      root.append(svg("rect", { class: "mv-block-frame", height: bottom - frame.y, ...frame }));
      const line = { x1: x0, x2: x1, y1: this.y(lane.row) + BAR / 2, y2: this.y(lane.row) + BAR / 2 };
      root.append(svg("line", { class: "mv-away", ...line }));
      if (block.folded) this.drawFolded(root, block, x0, x1);
      else for (const path of block.paths) this.drawLane(root, path);
      this.drawFold(root, lane, block, x0, x1);
    }

    drawFolded(root, block, x0, x1) {
      const first = block.paths[0];
      const last = block.paths[block.paths.length - 1];
      const y = this.y(block.row);
      const width = Math.max(2, x1 - x0 - 0.8);
      const text = `${block.paths.length} paths, ${block.numTokens} ${this.model.unit}`;
      const bar = svg("rect", {
        class: "mv-bar mv-bar-folded", x: x0, y, width, height: BAR, rx: 4, tabindex: 0, role: "button",
        "data-lane": block.parent.id, "data-start": first.start, "data-end": last.end, "aria-label": text,
      }, svg("title", {}, text));
      root.append(bar);
      const room = Math.floor((width - 12) / LETTER);
      const shown = [text, `${block.paths.length} paths`, String(block.paths.length)].find((s) => s.length <= room);
      if (shown) root.append(svg("text", { class: "mv-bar-label", x: x0 + 6, y: y + BAR / 2 + 4 }, shown));
      if (block.parent.critical) root.append(this.criticalLine(block.x0, block.x1, block.row));
    }

    drawFold(root, lane, block, x0, x1) {
      this.blocks.set(block.id, block);
      const y = this.y(lane.row) + BAR / 2;
      const middle = (x0 + x1) / 2;
      const arrow = block.folded ? `M${middle - 2},${y - 4} l4,4 l-4,4` : `M${middle - 4},${y - 2} l4,4 l4,-4`;
      const text = `${block.folded ? "Unfold" : "Fold"} the block of ${block.paths.length} paths`;
      root.append(svg("g", {
        class: "mv-fold", tabindex: 0, role: "button", "data-fold": block.id, "aria-expanded": String(!block.folded),
        "aria-label": text,
      }, svg("title", {}, text), svg("circle", { cx: middle, cy: y, r: 8 }), svg("path", { d: arrow })));
    }

    // Show a token's place and what it sees, or (null) nothing.
    showToken(index) {
      this.token = index;
      this.mark();
    }

    // Show which tokens are chosen, or (null) none.
    showChosen(start, end) {
      this.chosen = start === null ? null : [start, end];
      this.mark();
    }

    mark() {
      if (!this.cursor) return; // not drawn yet
      const { token, chosen, model } = this;
      const shift = model.tokens.num_prompt;
      const ranges = token === undefined || token === null ? null : model.visibleTo(token);
      for (const bar of this.scroll.querySelectorAll(".mv-bar")) {
        const [start, end] = [Number(bar.dataset.start), Number(bar.dataset.end)];
        bar.classList.toggle("mv-unseen", !!ranges && !mvModel.overlap(ranges, start + shift, end + shift));
        bar.classList.toggle("mv-chosen", !!chosen && chosen[0] < end && chosen[1] > start);
      }
      this.cursor.setAttribute("visibility", ranges ? "visible" : "hidden");
      if (!ranges) return;
      const x = this.x(model.stepOf(token) + 0.5);
      this.cursor.setAttribute("x1", x);
      this.cursor.setAttribute("x2", x);
    }
  }

  return { Lanes, hueOf };
})();
