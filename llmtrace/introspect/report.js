// Of the page everything is there without this. It adds: copying, arrow keys in the token strip and
// in the lens, what a token or cell says, and the measure that colours the lens.
"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const MINUS = "\u2212";
  const show = (value) => {
    if (value === null || value === undefined) return "\u2013";
    if (Number.isInteger(value)) return String(value).replace("-", MINUS);
    const size = Math.abs(value);
    const text = size < 1e-3 ? value.toExponential(1) : value.toPrecision(3);
    return text.replace("-", MINUS);
  };
  const word = (node) => (node.firstChild ? node.firstChild.textContent : "");
  const say = (id, text) => { const out = at(id); out.textContent = text; };

  const copy = at("copy");
  if (copy && navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(copy.dataset.text);
        say("copied", "copied");
      } catch {
        say("copied", copy.dataset.text);
      }
    });
  }

  // One tab stop a collection; arrow keys move inside it.
  const rove = (items, across, tell) => {
    let current = 0;
    const go = (to) => {
      items[current].tabIndex = -1;
      current = Math.min(items.length - 1, Math.max(0, to));
      items[current].tabIndex = 0;
      items[current].focus();
    };
    const steps = {
      ArrowRight: () => current + 1,
      ArrowLeft: () => current - 1,
      ArrowDown: () => (current + across < items.length ? current + across : current),
      ArrowUp: () => (current - across >= 0 ? current - across : current),
      Home: () => current - (current % across),
      End: () => current - (current % across) + across - 1,
      PageDown: () => current + 10,
      PageUp: () => current - 10,
    };
    items.forEach((item, i) => {
      item.tabIndex = i ? -1 : 0;
      item.addEventListener("focus", () => {
        items[current].tabIndex = -1;
        current = i;
        item.tabIndex = 0;
        tell(i);
      });
      item.addEventListener("mouseenter", () => tell(i));
      item.addEventListener("click", () => go(i));
      item.addEventListener("keydown", (event) => {
        const step = steps[event.key];
        if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
        event.preventDefault();
        go(step());
      });
    });
    return go;
  };

  const strip = at("strip");
  if (strip) {
    const items = [...strip.querySelectorAll(".t")];
    strip.tabIndex = -1;
    strip.setAttribute("role", "listbox");
    strip.setAttribute("aria-label", "Tokens; arrow keys move");
    strip.setAttribute("aria-orientation", "horizontal");
    items.forEach((item) => item.setAttribute("role", "option"));
    rove(items, items.length, (i) => {
      const [position, token, logprob, entropy, rank, margin, commits] = data.tokens[i];
      let text = `Position ${position}: \u201c${word(items[i])}\u201d, token ${token}`;
      if (logprob !== null) {
        text += `. Log-probability ${show(logprob)} nats, entropy ${show(entropy)}, rank ${show(rank)}`;
        text += `, margin ${show(margin)}; `;
        text += commits === "\u2013" ? "the lens does not give it" : `commits at ${commits}`;
      }
      items.forEach((item) => item.removeAttribute("aria-selected"));
      items[i].setAttribute("aria-selected", "true");
      say("about-token", text + ".");
    });
  }

  const table = at("lens");
  if (!table || !data.lens) return;
  const lens = data.lens, across = lens.positions.length, count = lens.layers.length;
  const cells = [...table.tBodies[0].querySelectorAll("td")];
  const heads = [...table.tHead.rows[0].cells].slice(1), came = [...table.tHead.rows[1].cells].slice(1);
  const of = (i) => [count - 1 - Math.floor(i / across), i % across];
  at("lens-box").tabIndex = -1;
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", "Lens; arrow keys move");
  rove(cells, across, (i) => {
    const [row, column] = of(i);
    const value = (name) => show(lens[name][row][column]);
    say(
      "about-lens",
      `After \u201c${heads[column].lastChild.textContent}\u201d (position ${lens.positions[column]})`
        + ` ${lens.layers[row]} says \u201c${cells[i].textContent}\u201d, log-probability ${value("top_logprob")}.`
        + ` What came, \u201c${came[column].textContent}\u201d: log-probability ${value("logprob")}, rank ${value("rank")}.`
        + ` Entropy ${value("entropy")}, KL to the last layer ${value("kl")} nats.`,
    );
  });

  const LEVELS = 16;
  const scales = {
    kl: [(v) => Math.sqrt(Math.max(0, v)), true, "far from the last layer", "the same"],
    logprob: [(v) => Math.min(12, -v), true, "what came is unlikely", "certain"],
    rank: [(v) => Math.log1p(v), true, "high rank", "rank 0"],
    entropy: [(v) => v, false, "certain", "undecided"],
  };
  const paint = (name) => {
    const [scale, falls, low, high] = scales[name];
    const most = Math.max(1e-9, ...lens[name].map((row) => row.reduce((m, v) => Math.max(m, v === null ? 0 : scale(v)), 0)));
    cells.forEach((cell, i) => {
      const [row, column] = of(i), value = lens[name][row][column];
      const share = value === null ? 0 : scale(value) / most;
      cell.className = `c${Math.max(0, Math.min(LEVELS - 1, Math.floor(LEVELS * (falls ? 1 - share : share))))}`;
    });
    const ends = at("lens-key").querySelectorAll(".end");
    ends[0].textContent = low;
    ends[1].textContent = high;
  };
  const measure = at("measure");
  measure.hidden = false;
  measure.addEventListener("change", (event) => paint(event.target.value));
})();
