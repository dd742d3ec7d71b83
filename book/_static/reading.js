// Marks what is wider than the page: it scrolls, by keyboard too, and says so. Without this script it scrolls all the same.
(() => {
  const WIDE = ".bd-article :is(pre, .pst-scrollable-table-container, .text_html, div.math)";
  const LONGEST = 88; // a printed line longer than this is a sentence rather than columns, and wraps

  // Whether what is printed stands in columns, which must not be broken.
  function inColumns(text) {
    const lines = text.split("\n");
    return lines.every((line) => line.length <= LONGEST) && lines.filter((line) => /\S {2,}\S/.test(line)).length > 1;
  }

  function mark(block) {
    const hint = block.previousElementSibling;
    const marked = hint?.classList.contains("scroll-hint");
    const wide = block.clientWidth > 0 && block.scrollWidth > block.clientWidth + 1;
    if (wide === Boolean(marked)) return;
    block.classList.toggle("scrolls", wide);
    if (!wide) {
      hint.remove();
      for (const name of ["tabindex", "role", "aria-label"]) block.removeAttribute(name);
      return;
    }
    const line = document.createElement("p");
    line.className = "scroll-hint";
    line.textContent = "wider than the page: scroll sideways →";
    block.before(line);
    block.tabIndex = 0;
    block.setAttribute("role", "region");
    block.setAttribute("aria-label", "wider than the page, scrolls sideways");
  }

  // Cells with a sentence, for which the style sheet makes room where a table scrolls, and words of code that fit a line.
  function measure() {
    for (const cell of document.querySelectorAll(".bd-article :is(td, th)")) {
      const length = cell.textContent.trim().length;
      cell.classList.toggle("sentence", length > 24);
      cell.classList.toggle("long", length > 60);
    }
    for (const word of document.querySelectorAll(".bd-article code .pre")) {
      word.classList.toggle("short", word.textContent.length <= 24);
    }
  }

  // Keeps a full stop, comma or bracket from beginning a line because a formula ends the one before.
  function joinMarks() {
    for (const formula of document.querySelectorAll(".bd-article span.math")) {
      const text = formula.nextSibling;
      const marks = text?.nodeType === Node.TEXT_NODE && text.data.match(/^[.,;:!?)]+/);
      if (!marks) continue;
      const both = document.createElement("span");
      both.className = "with-mark";
      formula.replaceWith(both);
      both.append(formula, marks[0]);
      text.data = text.data.slice(marks[0].length);
    }
  }

  function look() {
    const blocks = [...document.querySelectorAll(WIDE)];
    // the outermost one scrolls
    blocks.filter((block) => !block.parentElement.closest(".scrolls")).forEach(mark);
  }

  addEventListener("load", async () => {
    for (const block of document.querySelectorAll(".bd-article .cell_output pre")) {
      if (!inColumns(block.textContent)) block.classList.add("prose");
    }
    if (window.MathJax?.startup) await window.MathJax.startup.promise;
    joinMarks();
    measure();
    look();
    document.documentElement.dataset.looked = "true";
    addEventListener("resize", look);
    document.querySelectorAll("details").forEach((fold) => fold.addEventListener("toggle", look));
  });
  // folds are opened before printing, and closed again
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll(".bd-article details:not([open])")];
    opened.forEach((fold) => (fold.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((fold) => (fold.open = false)));
})();
