"use strict";
(async () => {
  const say = (words) => {
    for (const place of document.querySelectorAll(".figure")) {
      place.textContent = words;
      place.style.minHeight = "0";
    }
  };
  if (typeof DecompressionStream === "undefined") {
    say("This browser is too old to draw the figure; the table below has its numbers.");
    return;
  }
  const packed = atob(document.getElementById("plotly").textContent.trim());
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);

  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const merged = (under, over) => {
    const found = { ...under };
    for (const [name, value] of Object.entries(over)) {
      const both = [found[name], value].every((one) => one && typeof one === "object" && !Array.isArray(one));
      found[name] = both ? merged(found[name], value) : value;
    }
    return found;
  };
  const layoutFor = (layout, height, place) => {
    const narrow = place.clientWidth < 520;
    const axis = {
      gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"),
      fixedrange: true, automargin: true,
    };
    const legend = { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" };
    const base = {
      autosize: true, height: narrow ? Math.max(height, 340) : height, dragmode: false,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), family: "system-ui, sans-serif", size: narrow ? 11 : 12 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      margin: { l: 44, r: 12, t: 12, b: 44 },
      legend: legend, showlegend: true, xaxis: axis, yaxis: axis,
    };
    return merged(base, layout);
  };
  const draw = () => {
    for (const [key, { figure, height }] of Object.entries(figures)) {
      const place = document.getElementById(`figure-${key}`);
      const layout = layoutFor(figure.layout, height, place);
      window.Plotly.react(place, figure.data, layout, { responsive: true, displayModeBar: false });
    }
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  };
  draw();
  dark.addEventListener("change", draw);
})();
