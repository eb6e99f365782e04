// Reader's choice, sliders over the steps, and drawings that can be turned. Everything else works without it.
(function () {
  "use strict";
  var root = document.documentElement;
  var data = window.stratascope || {};

  function choose(reader) {
    root.dataset.reader = reader;
    try { localStorage.setItem("stratascope-reader", reader); } catch (error) { /* private mode */ }
    showChoice();
  }
  function showChoice() {
    document.querySelectorAll(".reader-choice [data-reader-choice]").forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.dataset.readerChoice === root.dataset.reader));
    });
  }
  document.querySelectorAll("[data-reader-choice]").forEach(function (button) {
    button.addEventListener("click", function () { choose(button.dataset.readerChoice); });
  });
  showChoice();

  // On a narrow screen the list of pages is folded at first.
  var pages = document.querySelector("nav details");
  if (pages && window.matchMedia("(max-width: 60rem)").matches) { pages.removeAttribute("open"); }

  function colours() {
    var style = getComputedStyle(root);
    return { ink: style.getPropertyValue("--ink").trim(), line: style.getPropertyValue("--line").trim(), card: style.getPropertyValue("--card").trim() };
  }
  function layoutOf(plot, shown) {
    var tone = colours();
    var layout = Object.assign({}, plot.layout, { font: { color: tone.ink, family: getComputedStyle(document.body).fontFamily }, autosize: true });
    delete layout.height;
    if (plot.layout.scene) {
      layout.scene = Object.assign({}, plot.layout.scene);
      ["xaxis", "yaxis", "zaxis"].forEach(function (axis) {
        layout.scene[axis] = Object.assign({}, plot.layout.scene[axis], { gridcolor: tone.line, linecolor: tone.line });
      });
    }
    if (shown.clientWidth < 520) { layout.legend = Object.assign({}, layout.legend, { orientation: "h", y: -0.02 }); }
    return layout;
  }
  function drawPlotly(target, place) {
    var plot = data[target.dataset.plotly].plotly;
    var traces = plot.frames && plot.frames.length ? plot.frames[place === undefined ? plot.frames.length - 1 : place].data : plot.data;
    target.dataset.place = String(place === undefined ? "" : place);
    return window.Plotly.react(target, traces, layoutOf(plot, target), { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["sendDataToCloud"] });
  }
  function redrawAll() {
    document.querySelectorAll("[data-plotly][data-drawn]").forEach(function (target) {
      drawPlotly(target, target.dataset.place === "" ? undefined : Number(target.dataset.place));
    });
  }
  function drawWhenSeen(target) {
    if (target.dataset.drawn || !window.Plotly || !data[target.dataset.plotly]) { return; }
    target.dataset.drawn = "yes";
    drawPlotly(target);
  }
  var solids = document.querySelectorAll("[data-plotly]");
  if ("IntersectionObserver" in window) {
    var seen = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) { if (entry.isIntersecting) { drawWhenSeen(entry.target); } });
    }, { rootMargin: "400px" });
    solids.forEach(function (target) { seen.observe(target); });
  } else { solids.forEach(drawWhenSeen); }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

  document.querySelectorAll(".slider").forEach(function (slider) {
    var steps = slider.dataset.steps.split(",");
    var input = slider.querySelector("[data-role=step]");
    var figure = slider.closest("figure");
    var shown = slider.querySelector("output");
    function move() {
      var place = Number(input.value);
      shown.textContent = steps[place];
      input.setAttribute("aria-valuetext", "step " + steps[place]);
      var content = data[slider.dataset.target];
      if (!content) { return; }
      if (content.frames) { figure.querySelector(".drawing").innerHTML = content.frames[place]; }
      else { var target = figure.querySelector("[data-plotly]"); target.dataset.drawn = "yes"; drawPlotly(target, place); }
    }
    input.addEventListener("input", move);
    var timer = null;
    var play = slider.querySelector("[data-role=play]");
    play.addEventListener("click", function () {
      if (timer) { stop(); return; }
      if (Number(input.value) === steps.length - 1) { input.value = 0; move(); }
      play.textContent = "❚❚"; play.setAttribute("aria-label", "Stop");
      timer = setInterval(function () {
        if (Number(input.value) >= steps.length - 1) { stop(); return; }
        input.value = Number(input.value) + 1; move();
      }, 700);
    });
    function stop() { clearInterval(timer); timer = null; play.textContent = "▶"; play.setAttribute("aria-label", "Play through the steps"); }
  });
})();
