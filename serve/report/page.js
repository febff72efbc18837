// Pictures, the explorer of neighbours, and light or dark for what Bokeh draws as data.
"use strict";
(() => {
  const { pictures, queries, colours } = JSON.parse(document.getElementById("data").textContent);
  const colourOf = new Map(colours);
  const TILE = 96;

  /** Show picture number `place` in a frame of its class's colour; pixels of a small one become squares. */
  function show(image, place, label) {
    image.onload = () => {
      const factor = Math.floor(TILE / image.naturalWidth);
      image.classList.toggle("small", factor > 1);
      image.style.width = `${image.naturalWidth * Math.max(1, factor)}px`;
    };
    image.src = pictures[place];
    const colour = colourOf.get(label);
    if (colour) image.parentElement.style.setProperty("--class", colour);
    else image.parentElement.style.removeProperty("--class");
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
    const frame = element("span", "", "frame");
    const image = document.createElement("img");
    image.alt = neighbour.id;
    image.title = neighbour.id;
    frame.append(image);
    show(image, neighbour.picture, neighbour.label);
    item.append(frame);
    if (neighbour.label !== null) {
      const same = neighbour.label === label;
      const mark = label === null ? "" : same ? "✓ " : "✗ ";
      const name = element("span", mark + neighbour.label, label === null ? "name" : `name ${same ? "same" : "other"}`);
      name.title = neighbour.label;
      item.append(name);
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
    show(document.querySelector(".asked img"), query.picture, query.label);
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
    const image = button.querySelector("img");
    show(image, image.dataset.picture, queries[button.dataset.query].label);
    button.addEventListener("click", () => choose(button));
  }
  if (buttons.length) {
    document.querySelector(".queries").addEventListener("keydown", move);
    choose(buttons[0]);
  }

  for (const image of document.querySelectorAll(".views img")) {
    const factor = Math.floor(Math.min(image.closest("figure").clientWidth, 640) / image.naturalWidth);
    image.classList.toggle("small", image.naturalWidth < 640);
    if (factor > 1) image.style.width = `${factor * image.naturalWidth}px`;
  }

  // ---------------------------------------------------------------------------------------------- plots

  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  /** Written counts are data to Bokeh, so they do not take their colour from the style sheet. */
  function inkCounts(plots) {
    const color = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    const counts = plots.get_model_by_name("ink");
    if (counts) counts.glyph.text_color = { value: color };
  }

  // ------------------------------------------------------------------------------------------------ map

  const phone = window.matchMedia("(max-width: 44rem)");
  const legend = [...document.querySelectorAll(".classes button")];
  let chosen = null; // the class that is seen alone

  /** Names where they hide nothing at this width, in the colours that can be read on this paper. */
  function arrangeNames(plots) {
    for (const map of ["PCA", "UMAP"]) {
      const names = plots.get_model_by_name(`names ${map}`);
      if (!names) continue;
      const data = { ...names.data, ink: names.data[dark.matches ? "dark" : "light"] };
      for (const key of ["x", "y", "end_x", "end_y"]) data[key] = data[`${phone.matches ? "narrow" : "wide"}_${key}`];
      data.alpha = Array.from(data.class, (name) => (chosen === null || name === chosen ? 1 : 0.15));
      names.data = data;
    }
  }

  /** Fade all classes but one; the same again brings them back. */
  function isolate(plots, name) {
    chosen = chosen === name ? null : name;
    for (const button of legend) button.setAttribute("aria-pressed", String(button.dataset.class === chosen));
    legend[0].parentElement.classList.toggle("chosen", chosen !== null);
    const map = plots.get_model_by_name("map");
    const faded = (seen, else_) => Array.from(map.data.label, (label) => (chosen === null || label === chosen ? seen : else_));
    map.data = { ...map.data, alpha: faded(0.8, 0.07), ring: faded(0.4, 0) };
    arrangeNames(plots);
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
      for (const button of legend) button.addEventListener("click", () => isolate(plots, button.dataset.class));
      inkCounts(plots);
      arrangeNames(plots);
      phone.addEventListener("change", () => arrangeNames(plots));
      dark.addEventListener("change", () => {
        inkCounts(plots);
        arrangeNames(plots);
        repaint();
      });
    });
  }
})();
