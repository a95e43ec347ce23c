"use strict";
// Draws the charts of the page from the data in it. The tables beside them say the same
// without.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const drawn = [];
  // Whole seconds and minutes between the marks of the time axis.
  const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
  const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // As in the tables: UTC, wherever the reader is.
  const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 19);

  // As in the tables: 840us, 1.2ms, 35s.
  const time = (us) => {
    for (const [size, unit] of [[1e6, "s"], [1e3, "ms"]]) {
      if (us >= size) return (us < 10 * size ? Math.floor(us / size * 10) / 10 : Math.floor(us / size)) + unit;
    }
    return us + "us";
  };

  // Of the marks of a scale of powers those at 1, 10, 100 …
  const powers = (_, splits) => splits.map((value) => (Number.isInteger(Math.log10(value)) ? value : null));

  // The values of a series on top of those before it.
  const stack = (series) => {
    const sums = [];
    return series.map((one) => one.values.map((value, at) => (sums[at] = (sums[at] || 0) + (value || 0))));
  };

  const draw = () => {
    drawn.splice(0).forEach((plot) => plot.destroy());
    for (const chart of data.charts) {
      const place = document.getElementById(chart.id);
      const ink = tone("--ink"), line = tone("--line");
      const axis = { stroke: ink, grid: { stroke: line, width: 0.5 }, ticks: { stroke: line, width: 0.5 } };
      const timed = chart.unit === "µs";
      const values = chart.stacked ? stack(chart.series)
        // Nothing is at no power.
        : chart.series.map((one) => (timed ? one.values.map((us) => (us == null ? us : Math.max(1, us))) : one.values));
      const series = chart.series.map((one, index) => {
        const colour = tone("--s" + one.colour);
        return {
          label: one.label,
          stroke: colour,
          width: chart.stacked ? 1 : 2,
          dash: one.dashed ? [6, 4] : undefined,
          fill: chart.stacked ? colour + "66" : undefined,
          paths: chart.stacked ? uPlot.paths.stepped({ align: 1 }) : undefined,
          spanGaps: !chart.stacked,
          points: { show: !chart.stacked && chart.time.length < 60 },
          // A stack shows sums; the legend says the series' own number.
          value: (_, __, ___, at) => {
            const own = at == null ? null : one.values[at];
            return own == null ? "–" : timed ? time(own) : String(own);
          },
        };
      });
      // The highest of a stack goes behind the others.
      const order = chart.stacked ? series.map((_, index) => index).reverse() : series.map((_, index) => index);
      const options = {
        width: Math.max(200, Math.floor(place.getBoundingClientRect().width)),
        height: 220,
        // Times go from microseconds to minutes, so each power has as much room.
        scales: { y: timed
          ? { distr: 3, range: (_, low, high) => [10 ** Math.floor(Math.log10(low || 1)), 10 ** Math.ceil(Math.log10((high || 1) + 1))] }
          : { range: (_, low, high) => [0, Math.max(1, (high || 0) * 1.08)] } },
        axes: [{ ...axis, space: 80, incrs: STEPS, values: (_, splits) => splits.map(clock) }, timed
          ? { ...axis, size: 60, grid: { ...axis.grid, filter: powers }, ticks: { ...axis.ticks, filter: powers },
              filter: powers, values: (_, splits) => splits.map((us) => (us == null ? null : time(us))) }
          : { ...axis, label: chart.unit, size: 60 }],
        series: [{ label: "UTC", value: (_, seconds) => (seconds == null ? "–" : clock(seconds)) }, ...order.map((index) => series[index])],
        cursor: { y: false },
      };
      drawn.push(new uPlot(options, [chart.time, ...order.map((index) => values[index])], place));
    }
  };

  let waiting;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(draw, 100); };
  draw();
  new ResizeObserver(soon).observe(document.querySelector("main"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("print").addEventListener("change", draw);
  addEventListener("beforeprint", draw);
  addEventListener("afterprint", draw);
})();
