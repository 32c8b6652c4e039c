// The page of `mvtrain view`: a list of rows to search, and one of them in the viewer.

const mvPage = (() => {
  const data = JSON.parse(document.getElementById("mv-data").textContent);
  const list = document.getElementById("rows");
  const main = document.getElementById("record");
  const search = document.getElementById("search");
  let shown = []; // indices of the rows in the list
  let current = -1;

  function item(index) {
    const row = data.rows[index];
    const element = mvText.make("li", "", mvText.make("div", "row-title", row.title));
    if (row.question) element.append(mvText.make("div", "row-question", row.question));
    element.append(mvText.make("div", "row-facts", row.facts));
    element.id = `row-${index}`;
    element.dataset.index = index;
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", String(index === current));
    return element;
  }

  function fill() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = ({ title, question, facts }) => {
      const text = `${title} ${question} ${facts}`.toLowerCase();
      return words.every((word) => text.includes(word));
    };
    shown = [...data.rows.keys()].filter((index) => matches(data.rows[index]));
    list.replaceChildren(...shown.map(item));
    document.getElementById("found").textContent = words.length ? `${shown.length} of ${data.rows.length} rows` : "";
  }

  async function show(index) {
    current = index;
    for (const element of list.children) {
      element.setAttribute("aria-selected", String(Number(element.dataset.index) === index));
    }
    list.setAttribute("aria-activedescendant", `row-${index}`);
    document.getElementById(`row-${index}`)?.scrollIntoView({ block: "nearest" });
    const record = await mvViewer.unpack(data.rows[index].packed);
    if (index !== current) return; // another row was chosen meanwhile
    mvPage.viewer = mvViewer.show(main, record);
    window.scrollTo(0, 0);
    if (data.rows.length > 1) history.replaceState(null, "", `#${index + 1}`);
  }

  function step(by) {
    const at = shown.indexOf(current);
    const next = shown[Math.min(shown.length - 1, Math.max(0, at + by))];
    if (next !== undefined && next !== current) show(next);
  }

  function key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || (event.target === search && Math.abs(steps[event.key]) > 1)) return;
    event.preventDefault();
    step(steps[event.key]);
  }

  search.addEventListener("input", fill);
  document.querySelector("nav").addEventListener("keydown", key);
  list.addEventListener("click", (event) => {
    const element = event.target.closest("li");
    if (element) show(Number(element.dataset.index));
  });
  fill();
  const wanted = Number(location.hash.slice(1)) - 1;
  if (data.rows.length) show(wanted in data.rows ? wanted : 0);
  return { show, viewer: null };
})();
