"use strict";
// The table's rows from the packed columns of payload.py: grouping, filtering and sorting. No document in here.
const mvRows = (() => {
  // index: what index_columns gives. Returns tasks, modes, budgets and problems, each with its samples.
  function build(index) {
    const problems = index.problems.map(([task, id, question], key) => ({
      key, id, question, task: index.tasks[task], place: task, reference: "", samples: [],
    }));
    index.problem.forEach((key, row) => {
      const sample = { row, problem: problems[key], mode: index.modes[index.mode[row]] };
      for (const name of COLUMNS) sample[name] = index[name][row];
      problems[key].samples.push(sample);
      problems[key].reference ||= sample.reference;
    });
    const budgets = [...new Set(index.budget)].filter((budget) => budget !== null).sort((a, b) => a - b);
    return { tasks: index.tasks, modes: index.modes, budgets, problems };
  }
  const COLUMNS = ["sample", "budget", "correct", "answer", "reference", "reason", "finish", "well_formed", "blocks",
    "tokens", "critical_path", "seconds"];

  const ANSWER = {
    right: (sample) => sample.correct === true,
    wrong: (sample) => sample.correct === false,
    ungradable: (sample) => sample.correct === null,
    none: (sample) => sample.answer === null,
  };
  const FORM = {
    blocks: (sample) => sample.blocks > 0,
    plain: (sample) => sample.blocks === 0,
    truncated: (sample) => sample.finish === "length",
    malformed: (sample) => !sample.well_formed,
  };

  // The values by which a column sorts, of the first line of a row.
  const SORT = {
    problem: (view) => view.problem.id,
    accuracy: (view) => view.lines[0].accuracy,
    samples: (view) => view.lines[0].samples.length,
    parallelism: (view) => view.lines[0].parallelism,
    tokens: (view) => view.lines[0].tokens,
    critical_path: (view) => view.lines[0].critical_path,
    well_formed: (view) => view.lines[0].well_formed,
    answer: (view) => view.lines[0].answer,
    reference: (view) => view.problem.reference,
  };

  const sum = (samples, value) => samples.reduce((total, sample) => total + value(sample), 0);

  // One line of a row: what the samples of one mode come to.
  function line(mode, samples) {
    const tokens = sum(samples, (s) => s.tokens), path = sum(samples, (s) => s.critical_path);
    const right = sum(samples, (s) => (s.correct === true ? 1 : 0));
    const formed = sum(samples, (s) => (s.well_formed ? 1 : 0));
    return {
      mode, samples, right, formed, ...mostFrequent(samples),
      accuracy: right / samples.length,
      parallelism: path ? tokens / path : 1,
      tokens: tokens / samples.length,
      critical_path: path / samples.length,
      well_formed: formed / samples.length,
    };
  }

  function mostFrequent(samples) {
    const counts = new Map();
    for (const { answer } of samples) if (answer !== null) counts.set(answer, (counts.get(answer) || 0) + 1);
    let answer = null, votes = 0;
    for (const [text, count] of counts) if (count > votes) [answer, votes] = [text, count];
    return { answer, votes };
  }

  // state: q, task, mode, answer, form, run (a budget or empty), sort (a name of SORT, "-" in front for descending).
  // Returns rows {problem, lines, matching}: a line a mode, and the samples that the filters are after.
  function select(data, state) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const budget = state.run === "" ? null : Number(state.run);
    const views = [];
    for (const problem of data.problems) {
      if (state.task && problem.task !== state.task) continue;
      const view = viewOf(problem, data.modes, budget, state);
      if (view && (!words.length || found(view, words))) views.push(view);
    }
    return sort(views, state.sort);
  }

  function viewOf(problem, modes, budget, state) {
    const inRun = problem.samples.filter((sample) => sample.budget === budget);
    const all = modes.map((mode) => [mode, inRun.filter((sample) => sample.mode === mode)])
      .filter(([, samples]) => samples.length).map(([mode, samples]) => line(mode, samples));
    const lines = all.filter((one) => !state.mode || one.mode === state.mode);
    if (!lines.length) return null;
    if (state.answer === "one" && !onlyOneRight(all, state.mode)) return null;
    const ofAnswer = ANSWER[state.answer] || (() => true), ofForm = FORM[state.form] || (() => true);
    const matching = lines.flatMap((one) => one.samples).filter((sample) => ofAnswer(sample) && ofForm(sample));
    return matching.length ? { problem, lines, matching } : null;
  }

  // A mode is right where more than half of its samples are.
  function onlyOneRight(lines, mode) {
    const right = lines.filter((one) => one.accuracy > 0.5);
    return lines.length > 1 && right.length === 1 && (!mode || right[0].mode === mode);
  }

  function found(view, words) {
    const problem = view.problem;
    problem.text ??= [problem.task, problem.id, problem.question, problem.reference,
      ...problem.samples.map((sample) => sample.answer || "")].join("\n").toLowerCase();
    return words.every((word) => problem.text.includes(word));
  }

  const collator = new Intl.Collator("en", { numeric: true });

  function sort(views, order) {
    const falling = order.startsWith("-");
    const value = SORT[order.replace("-", "")] || SORT.problem;
    const keyed = views.map((view) => [value(view), view]);
    keyed.sort(([a, viewA], [b, viewB]) => {
      if (a === null || b === null) return (a === null) - (b === null) || natural(viewA, viewB);
      const difference = typeof a === "number" ? a - b : collator.compare(a, b);
      return (falling ? -difference : difference) || natural(viewA, viewB);
    });
    return keyed.map(([, view]) => view);
  }

  const natural = (a, b) =>
    a.problem.place - b.problem.place || collator.compare(a.problem.id, b.problem.id) || a.problem.key - b.problem.key;

  return { build, select, sortNames: Object.keys(SORT) };
})();
