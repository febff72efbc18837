// Pictures, the explorer of neighbours, and light or dark for what Bokeh draws as data.
"use strict";
(() => {
  const { pictures, queries } = JSON.parse(document.getElementById("data").textContent);

  /** Show picture number `place`; one of few pixels shows them as they are. */
  function show(image, place) {
    image.onload = () => image.classList.toggle("small", image.naturalWidth <= 32);
    image.src = pictures[place];
  }

  function element(tag, text, className = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = className;
    return made;
  }

  // ------------------------------------------------------------------------------------------- explorer

  const buttons = [...document.querySelectorAll(".queries button")];

  function foundItem(neighbour, label) {
    const item = document.createElement("li");
    const image = document.createElement("img");
    image.alt = neighbour.id;
    image.title = neighbour.id;
    show(image, neighbour.picture);
    item.append(image);
    if (neighbour.label !== null) {
      const same = neighbour.label === label;
      const mark = label === null ? "" : same ? "✓ " : "✗ ";
      item.append(element("span", mark + neighbour.label, label === null ? "" : same ? "same" : "other"));
    }
    item.append(element("span", `cosine ${neighbour.similarity.toFixed(3)}`, "cosine"));
    return item;
  }

  function choose(button) {
    const query = queries[button.dataset.query];
    for (const other of buttons) {
      other.setAttribute("aria-pressed", String(other === button));
      other.tabIndex = other === button ? 0 : -1;
    }
    show(document.querySelector(".asked img"), query.picture);
    const text = document.querySelector(".asked p");
    text.replaceChildren(query.said, document.createElement("br"), element("small", query.id));
    const items = query.neighbours.map((neighbour) => foundItem(neighbour, query.label));
    document.querySelector(".found").replaceChildren(...items);
  }

  function columns() {
    const below = buttons.findIndex((button) => button.offsetTop > buttons[0].offsetTop);
    return below < 0 ? buttons.length : below;
  }

  function move(event) {
    const from = buttons.indexOf(document.activeElement);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
    const to = { Home: 0, End: buttons.length - 1 }[event.key] ?? from + (steps[event.key] ?? NaN);
    if (from < 0 || !buttons[to]) return;
    event.preventDefault();
    buttons[from].tabIndex = -1;
    buttons[to].tabIndex = 0;
    buttons[to].focus();
  }

  for (const button of buttons) {
    show(button.firstElementChild, button.firstElementChild.dataset.picture);
    button.addEventListener("click", () => choose(button));
  }
  if (buttons.length) {
    document.querySelector(".queries").addEventListener("keydown", move);
    choose(buttons[0]);
  }

  for (const image of document.querySelectorAll(".views img")) {
    image.classList.toggle("small", image.naturalWidth < image.clientWidth);
  }

  // ---------------------------------------------------------------------------------------------- plots

  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  /** Written counts are data to Bokeh, so they do not take their colour from the style sheet. */
  function inkCounts(plots) {
    const color = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    const counts = plots.get_model_by_name("ink");
    if (counts) counts.glyph.text_color = { value: color };
  }

  /** Everything else does, but only when it is painted. */
  function repaint() {
    for (const view of Bokeh.index.roots) view.request_paint?.();
  }

  function whenRead(then) {
    const plots = window.Bokeh?.documents[0];
    if (plots) then(plots);
    else requestAnimationFrame(() => whenRead(then));
  }

  if (document.querySelector("figure [data-root-id]")) {
    whenRead((plots) => {
      const map = plots.get_model_by_name("map");
      if (map?.data.picture) map.data = { ...map.data, picture: pictures.slice(0, map.data.picture.length) };
      inkCounts(plots);
      dark.addEventListener("change", () => {
        inkCounts(plots);
        repaint();
      });
    });
  }
})();
