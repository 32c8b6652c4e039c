"use strict";
// What the viewer knows of a record, without any DOM: sections of the text, tokens, and lanes along the steps.
// Offsets are in UTF-16 units, as JavaScript counts; a record counts characters.

const mvModel = (() => {
  const TAG = /<(\/?)(Think|think|Parallel|Goal|Outline|Path|Conclusion)>/g;
  const LABEL = /\s*([0-9]+(?:\.[0-9]+)*)\s*:/y;
  const PARENTS = {
    Think: ["Text"],
    Parallel: ["Text", "Think", "Path"],
    Goal: ["Parallel"],
    Outline: ["Goal"],
    Path: ["Parallel"],
    Conclusion: ["Parallel"],
  };

  const DEEPEST = 64; // sections in each other; a text that nests deeper is shown flat

  function section(kind, start, inner, parent) {
    return { kind, start, inner, innerEnd: -1, end: -1, parent, children: [], label: null, cut: false };
  }

  // The sections of a text, or null where its tags do not nest. A text that ends inside a section is cut off there.
  function parseSections(text) {
    const root = section("Text", 0, 0, null);
    let top = root;
    let depth = 0;
    for (const found of text.matchAll(TAG)) {
      const kind = found[2] === "think" ? "Think" : found[2];
      const after = found.index + found[0].length;
      if (!found[1]) {
        if (!PARENTS[kind].includes(top.kind) || ++depth > DEEPEST) return null;
        const child = section(kind, found.index, after, top);
        if (kind === "Path" || kind === "Outline") {
          LABEL.lastIndex = after;
          child.label = LABEL.exec(text)?.[1] ?? null;
        }
        top.children.push(child);
        top = child;
      } else {
        if (top.kind !== kind) return null;
        depth -= 1;
        top.innerEnd = found.index;
        top.end = after;
        top = top.parent;
      }
    }
    for (; top; top = top.parent) {
      top.cut = top !== root;
      top.innerEnd = top.end = text.length;
    }
    return root;
  }

  function outlineText(text, outline) {
    LABEL.lastIndex = outline.inner;
    const labelled = LABEL.exec(text);
    return text.slice(labelled ? LABEL.lastIndex : outline.inner, outline.innerEnd).trim();
  }

  // The outline of a path: the one in its place in the goal.
  function pathTitle(text, path) {
    const paths = path.parent.children.filter((child) => child.kind === "Path");
    const goal = path.parent.children.find((child) => child.kind === "Goal");
    const outline = goal?.children[paths.indexOf(path)];
    return outline ? outlineText(text, outline) : "";
  }

  // Counts of characters -> offsets in `text`.
  function toOffsets(text, counts) {
    if (!/[\ud800-\udbff][\udc00-\udfff]/.test(text)) return counts.map((n) => Math.min(n, text.length));
    const offsets = [0];
    for (const character of text) offsets.push(offsets[offsets.length - 1] + character.length);
    return counts.map((n) => offsets[Math.min(n, offsets.length - 1)]);
  }

  // Ranges [a, b) of tokens, counted from the start of the prompt, that token `index` of the response sees.
  function visibleTo(tokens, index) {
    const at = tokens.num_prompt + index;
    let low = 0;
    let high = tokens.nodes.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (tokens.nodes[middle][0] <= at) low = middle;
      else high = middle - 1;
    }
    const [start, , , sees] = tokens.nodes[low];
    return [...sees, [start, at + 1]];
  }

  // How many tokens of [start, end) lie in the ranges.
  function overlap(ranges, start, end) {
    return ranges.reduce((sum, [a, b]) => sum + Math.max(0, Math.min(b, end) - Math.max(a, start)), 0);
  }

  // The first index whose value is above `value`, in ascending numbers.
  function firstAbove(numbers, value) {
    let low = 0;
    let high = numbers.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (numbers[middle] > value) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  // Runs of tokens of one branch at consecutive steps, in the order of the text.
  function tokenRuns(tokens) {
    const runs = [];
    tokens.token_branches.forEach((branch, i) => {
      const last = runs[runs.length - 1];
      const step = tokens.positions[i] - tokens.num_prompt;
      if (last && last.branch === branch && last.x1 === step) {
        last.end = i + 1;
        last.x1 = step + 1;
      } else {
        runs.push({ branch, start: i, end: i + 1, x0: step, x1: step + 1, separator: false });
      }
    });
    return runs;
  }

  // The top level as a lane. A lane's items are runs of its own tokens and blocks; a block's paths are lanes.
  function buildLanes(tokens) {
    const lanes = tokens.branches.map((branch, id) => ({
      id, label: branch.label, endedBy: branch.ended_by, lineage: branch.lineage, items: [], blocks: new Map(),
      parent: null, block: null, critical: id === 0, started: id === 0, start: 0, end: 0, x0: 0, x1: 0, numTokens: 0,
    }));
    let numBlocks = 0;
    for (const run of tokenRuns(tokens)) {
      const lane = lanes[run.branch];
      if (!lane.started) numBlocks += attach(lane, lanes[tokens.branches[run.branch].parent ?? 0], run, numBlocks);
      lane.items.push(run);
      for (let up = lane; up; up = up.parent) {
        up.end = run.end;
        up.x1 = Math.max(up.x1, run.x1);
        up.numTokens += run.end - run.start;
      }
    }
    for (const lane of lanes) {
      lane.blocks.forEach(finishBlock);
      // A run is followed by another only where positions jump: after the separator behind a block's last path.
      lane.items.forEach((item, k) => {
        if (!item.paths && lane.items[k + 1]?.paths === undefined && k + 1 < lane.items.length) item.separator = true;
      });
    }
    return lanes[0];
  }

  // Make a lane a path of a block of its parent. Returns how many blocks are new.
  function attach(lane, parent, run, id) {
    const number = lane.lineage[lane.lineage.length - 2];
    let block = parent.blocks.get(number);
    const isNew = !block;
    if (block) {
      // What the lane around the block wrote since then stands between two of the paths.
      for (const item of parent.items.slice(parent.items.indexOf(block) + 1)) item.separator = true;
    } else {
      block = { id, paths: [], parent, number, x0: run.x0, x1: run.x1, numTokens: 0, folded: false };
      parent.blocks.set(number, block);
      parent.items.push(block);
    }
    Object.assign(lane, { parent, block, started: true, start: run.start, x0: run.x0 });
    block.paths.push(lane);
    return isNew ? 1 : 0;
  }

  function finishBlock(block) {
    block.x0 = Math.min(...block.paths.map((path) => path.x0));
    block.x1 = Math.max(...block.paths.map((path) => path.x1));
    block.numTokens = block.paths.reduce((sum, path) => sum + path.numTokens, 0);
    // Branches come parents first, so whether the lane around the block is on the critical path is known.
    const longest = block.paths.find((path) => path.x1 === block.x1);
    longest.critical = block.parent.critical;
    longest.decides = true;
  }

  class Model {
    constructor(record) {
      this.record = record;
      this.text = String(record.response ?? "");
      this.tokens = record.tokens && record.tokens.positions.length ? record.tokens : null;
      this.unit = this.tokens?.unit ?? "tokens";
      this.ends = this.tokens?.ends ? toOffsets(this.text, this.tokens.ends) : null;
      this.sections = parseSections(this.text);
      this.lanes = this.tokens ? buildLanes(this.tokens) : null;
      this.paths = [];
      if (this.sections) this.collectPaths(this.sections);
    }

    collectPaths(section) {
      for (const child of section.children) {
        if (child.kind === "Path") this.paths.push(child);
        this.collectPaths(child);
      }
    }

    get numTokens() {
      return this.tokens ? this.tokens.positions.length : 0;
    }

    startOf(i) {
      return i > 0 ? this.ends[i - 1] : 0;
    }

    // Tokens [first, last) that have text in [start, end).
    tokensIn(start, end) {
      const first = firstAbove(this.ends, start);
      const last = firstAbove(this.ends, end - 1) + 1;
      return [first, Math.min(last, this.ends.length)];
    }

    // The section that a lane shows, or null. Without the ends of tokens the order of the paths has to do.
    sectionOf(lane) {
      if (!this.sections || lane.id === 0) return this.sections;
      if (!this.ends) {
        return this.paths.length === this.tokens.branches.length - 1 ? this.paths[lane.id - 1] : null;
      }
      const [start, end] = [this.startOf(lane.start), this.ends[lane.end - 1]];
      return this.paths.find((path) => path.start >= start && path.start < end) ?? null;
    }

    // The lane that shows a path of the text, or null.
    laneOf(section) {
      if (!this.laneOfSection) {
        this.laneOfSection = new Map();
        const todo = this.lanes ? [this.lanes] : [];
        while (todo.length) {
          const lane = todo.pop();
          if (lane.id !== 0) this.laneOfSection.set(this.sectionOf(lane), lane);
          for (const block of lane.blocks.values()) todo.push(...block.paths);
        }
      }
      return this.laneOfSection.get(section) ?? null;
    }

    titleOf(lane) {
      const section = lane.id === 0 ? null : this.sectionOf(lane);
      return section ? pathTitle(this.text, section) : "";
    }

    // What a run is of: "goal", "conclusion" or "text", cut where that changes. -> [{kind, start, end}]
    partsOf(run) {
      if (!this.sections || !this.ends) return [{ kind: "text", start: run.start, end: run.end }];
      const parts = [];
      for (let i = run.start; i < run.end; i++) {
        const kind = this.kinds[i];
        const last = parts[parts.length - 1];
        if (last && last.kind === kind) last.end = i + 1;
        else parts.push({ kind, start: i, end: i + 1 });
      }
      return parts;
    }

    // For every token what it is of.
    get kinds() {
      if (!this.cachedKinds) {
        this.cachedKinds = new Array(this.numTokens).fill("text");
        this.markKinds(this.sections);
      }
      return this.cachedKinds;
    }

    markKinds(section) {
      for (const child of section.children) {
        if (child.kind === "Goal" || child.kind === "Conclusion") {
          // The tags of the block around it go with it, and the separator behind the last path.
          const before = section.children[section.children.indexOf(child) - 1];
          const start = child.kind === "Goal" ? section.start : (before?.end ?? child.start);
          const end = child.kind === "Goal" ? child.end : section.end;
          const [first, last] = this.tokensIn(start, end);
          this.cachedKinds.fill(child.kind.toLowerCase(), first, last);
        } else {
          this.markKinds(child);
        }
      }
    }

    stepOf(i) {
      return this.tokens.positions[i] - this.tokens.num_prompt;
    }

    visibleTo(i) {
      return visibleTo(this.tokens, i);
    }
  }

  return { Model, parseSections, pathTitle, visibleTo, overlap };
})();
