"use strict";
(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e");
    return String(Number(value.toPrecision(4)));
  };
  const WHOLE = [...Array(16).keys()].flatMap((power) => [1, 2, 5].map((one) => one * 10 ** power));
  const step = (value) => Math.round(value).toLocaleString("en");

  for (const section of document.querySelectorAll(".samples")) {
    const slider = section.querySelector("input[type=range]");
    if (!slider) continue;
    const shown = section.querySelector("output");
    const items = section.querySelectorAll(".strip > li");
    const show = () => {
      items.forEach((item, place) => item.classList.toggle("current", place === Number(slider.value)));
      const at = items[Number(slider.value)].dataset.step;
      shown.value = step(at);
      slider.setAttribute("aria-valuetext", at);
    };
    slider.addEventListener("input", show);
    show(); // a browser may restore the slider of an earlier visit
  }

  /** uPlot's description of one series; the thin one is of each logged step. */
  const line = (series) => {
    const stroke = () => colour(`--c${series.colour % 6}`) + (series.role === "raw" ? "80" : "");
    const dots = series.role === "points";
    return {
      label: series.name, stroke, spanGaps: true,
      width: series.role === "raw" || dots ? 1 : 2,
      points: dots ? { show: true, size: 6, fill: stroke } : { show: series.values.length === 1 },
    };
  };

  const draw = (figure, chart, key) => {
    const box = figure.querySelector(".plot");
    const outputs = figure.querySelectorAll(".legend output");
    const whole = figure.querySelector(".whole");
    const log = figure.querySelector(".log");
    const last = chart.steps.length - 1;
    const ends = chart.span[0] < chart.span[1] ? chart.span : [chart.span[0] - 1, chart.span[1] + 1];
    const data = [chart.steps, ...chart.series.map((series) => series.values)];
    let plot = null;

    /** Shows the values at a place; of a series without a value there the nearest before it. */
    const tell = (place) => {
      outputs[0].value = step(chart.steps[place]);
      chart.series.forEach((series, k) => {
        let at = place;
        while (at > 0 && series.values[at] === null) at -= 1;
        outputs[k + 1].value = number(series.values[at]);
      });
    };
    const axis = (more) => ({
      stroke: () => colour("--soft"), font: "12px system-ui, sans-serif",
      grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false }, ...more,
    });
    const make = () => {
      const before = plot;
      plot = new uPlot({
        width: box.clientWidth, height: box.clientHeight, legend: { show: false },
        padding: [8, 18, 0, 0],
        scales: {
          x: { time: false, range: (_, low, high) => (low === chart.steps[0] && high === chart.steps[last] ? ends : [low, high]) },
          y: { distr: log && log.checked ? 3 : 1 },
        },
        axes: [
          axis({ size: 24, gap: 4, incrs: WHOLE, values: (_, ticks) => ticks.map(step) }),
          axis({ size: 60, gap: 6, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick))) }),
        ],
        series: [{}, ...chart.series.map(line)],
        cursor: { sync: { key, scales: ["x", null] }, points: { size: 7 }, drag: { x: true, y: false } },
        hooks: {
          setCursor: [(made) => tell(made.cursor.idx ?? last)],
          setScale: [(made, name) => {
            if (name === "x") whole.hidden = made.scales.x.min <= ends[0] && made.scales.x.max >= ends[1];
          }],
        },
      }, data, (made, start) => {
        if (before) before.destroy();
        box.replaceChildren(made.root);
        start();
      });
    };
    make();
    new ResizeObserver(() => {
      if (box.clientWidth !== plot.width) plot.setSize({ width: box.clientWidth, height: box.clientHeight });
    }).observe(box);
    if (log) log.addEventListener("change", make);
    whole.addEventListener("click", () => {
      plot.setScale("x", { min: ends[0], max: ends[1] });
      box.focus();
    });

    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `Curve: ${figure.querySelector(".title").firstElementChild.textContent}`);
    let place = last;
    box.addEventListener("keydown", (event) => {
      const { min, max } = plot.scales.x;
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const factor = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
      if (by) {
        place = Math.min(last, Math.max(0, place + by * (event.shiftKey ? 10 : 1)));
        const at = chart.steps[place];
        plot.setCursor({ left: plot.valToPos(at, "x"), top: plot.over.clientHeight / 2 });
        tell(place);
      } else if (factor) {
        const half = ((max - min) / 2) * factor;
        const middle = Math.min(max, Math.max(min, chart.steps[place]));
        plot.setScale("x", { min: Math.max(ends[0], middle - half), max: Math.min(ends[1], middle + half) });
      } else if (event.key === "Escape") {
        plot.setScale("x", { min: ends[0], max: ends[1] });
      } else return;
      event.preventDefault();
    });
    return () => plot.redraw(false);
  };

  const all = JSON.parse(document.getElementById("charts").textContent);
  const redraw = [];
  for (const section of document.querySelectorAll(".charts")) {
    const charts = all[Number(section.dataset.run)];
    section.querySelectorAll(".chart").forEach((figure, k) => {
      redraw.push(draw(figure, charts[k], `run${section.dataset.run}`));
    });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw.forEach((each) => each()));
})();
