/* Brings the figures with sliders to life. A page has one only if it has such a figure (see book/_ext/lvmbook.py).

   A figure comes as a picture and, beside it, its chart as JSON. When a reader comes near, the Vega libraries are loaded
   from this folder (once, and by a script element: a page opened from a disk may not fetch), the chart is drawn from the
   JSON, and takes the place of the picture. Where anything fails the picture stays. */
(() => {
  "use strict";
  const LIBRARY = new URL("vega-bundle.js", document.currentScript.src).href;
  const NEAR = "600px"; // how far outside the window a figure may be when its chart is drawn
  const MARGIN = 76; // pixels that a chart needs beside a panel: axis, its title, padding (`styled` in widgets.py)
  const SIDE_BY_SIDE = 560; // with less room than this, panels stand below one another

  let library;
  const load = () =>
    (library ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = LIBRARY;
      script.onload = () => resolve(window.vegaEmbed);
      script.onerror = () => reject(new Error(`${LIBRARY} cannot be loaded`));
      document.head.append(script);
    }));

  /* A copy of the chart that fits into `room` pixels, with the sliders where the reader has left them. */
  const fitted = (spec, room, values) => {
    const view = { ...spec };
    for (const kind of ["vconcat", "hconcat", "concat"])
      if (view[kind]) view[kind] = view[kind].map((part) => fitted(part, room, {}));
    if (view.columns && room < SIDE_BY_SIDE) view.columns = 1;
    if (view.width) view.width = Math.min(view.width, room - MARGIN);
    if (view.params)
      view.params = view.params.map((param) => (param.name in values ? { ...param, value: values[param.name] } : param));
    return view;
  };

  const element = (kind, className, parent) => {
    const made = document.createElement(kind);
    made.className = className;
    parent.append(made);
    return made;
  };

  const enliven = async (figure) => {
    const spec = JSON.parse(figure.querySelector("script.lvm-widget-spec").textContent);
    const picture = figure.querySelector("img");
    const names = spec.params.filter((param) => param.bind).map((param) => param.name);
    const vegaEmbed = await load();

    const live = element("div", "lvm-live", figure);
    picture.before(live);
    const paper = element("div", "lvm-chart", live);
    paper.setAttribute("role", "img");
    paper.setAttribute("aria-label", picture.alt);
    const sliders = element("div", "lvm-sliders", live);
    const said = element("output", "lvm-said", live); // for screen readers: what the chart says in words
    said.setAttribute("aria-live", "polite");

    let shown, width;
    const draw = async () => {
      width = figure.clientWidth;
      const style = getComputedStyle(paper);
      const room = width - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
      const values = shown ? Object.fromEntries(names.map((name) => [name, shown.view.signal(name)])) : {};
      shown?.finalize();
      sliders.replaceChildren();
      shown = await vegaEmbed(paper, fitted(spec, room, values), { actions: false, renderer: "svg", bind: sliders });
    };
    try {
      await draw();
    } catch (error) {
      live.remove();
      throw error;
    }
    picture.loading = "eager"; // it is printed instead of the chart, so it must be there
    figure.classList.add("is-live");

    sliders.addEventListener("change", async () => {
      await shown.view.runAsync();
      said.textContent = [...paper.querySelectorAll(".readout_marks tspan")].map((line) => line.textContent).join("; ");
    });
    let waiting;
    new ResizeObserver(() => {
      clearTimeout(waiting);
      if (figure.clientWidth && figure.clientWidth !== width) waiting = setTimeout(draw, 200);
    }).observe(figure);
  };

  const start = (figure) => enliven(figure).catch((error) => console.error(error));
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        watch.unobserve(entry.target);
        start(entry.target);
      }
    },
    { rootMargin: NEAR },
  );
  document.querySelectorAll("figure.lvm-widget").forEach((figure) => watch.observe(figure));
})();
