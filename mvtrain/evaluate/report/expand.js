"use strict";
// The inverse of compact.py: differences and runs back into columns of one number a token.
const mvExpand = (() => {
  const sums = (column) => {
    let total = 0;
    return column.map((difference) => (total += difference));
  };
  const runs = (pairs) => {
    const column = [];
    for (let i = 0; i < pairs.length; i += 2) for (let k = 0; k < pairs[i + 1]; k++) column.push(pairs[i]);
    return column;
  };
  const decoders = {
    deltas: sums,
    runs: runs,
    delta_runs: (pairs) => sums(runs(pairs)),
    thousandths: (column) => column.map((value) => (value === null ? null : (0 - value) / 1000)),
  };

  // compact: what compact_tokens gives. Returns the dict of records.token_details.
  function tokens(compact) {
    const expanded = { ...compact.plain };
    for (const [kind, decode] of Object.entries(decoders))
      for (const [name, column] of Object.entries(compact[kind])) expanded[name] = decode(column);
    return expanded;
  }

  return { tokens };
})();
