// Tokens of a passage: what stands under the pointer, or at the arrow keys, is told below it.
page.section("passages", (element) => {
  for (const figure of element.querySelectorAll(".passage")) {
    const line = figure.querySelector(".tokens");
    const told = figure.querySelector(".told");
    const tokens = [...line.querySelectorAll("[title]")];
    let at = -1;
    const tell = (i) => {
      if (tokens[at]) tokens[at].classList.remove("at");
      at = i;
      if (tokens[at]) tokens[at].classList.add("at");
      told.textContent = tokens[at] ? tokens[at].title : "";
    };
    line.addEventListener("mouseover", (event) => {
      const i = tokens.indexOf(event.target);
      if (i >= 0) tell(i);
    });
    line.addEventListener("focus", () => tell(Math.max(at, 0)));
    line.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -tokens.length, End: tokens.length }[event.key];
      if (!step) return;
      tell(Math.min(Math.max(at + step, 0), tokens.length - 1));
      event.preventDefault();
    });
  }
});
