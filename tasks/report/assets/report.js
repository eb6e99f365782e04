// Who reads, sliders over the steps, drawings that can be turned, long lists. Everything else works without it.
(function () {
  "use strict";
  var root = document.documentElement;
  var data = window.stratascope || {};
  function all(selector, where) { return Array.prototype.slice.call((where || document).querySelectorAll(selector)); }
  function element(tag, attributes, text) {
    var made = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) { made.setAttribute(name, attributes[name]); });
    if (text !== undefined) { made.textContent = text; }
    return made;
  }

  // -- who reads: the order of the sections is that of the document, so that the keyboard follows it ------
  function arrange() {
    var reader = root.dataset.reader || "practitioner";
    all(".ordered").forEach(function (group) {
      Array.prototype.slice.call(group.children).sort(function (a, b) {
        return Number(a.dataset[reader] || 9) - Number(b.dataset[reader] || 9);
      }).forEach(function (section, place) {
        if (group.children[place] !== section) { group.insertBefore(section, group.children[place]); }
      });
    });
    all(".reader-choice [data-reader-choice]").forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.dataset.readerChoice === root.dataset.reader));
    });
  }
  function choose(reader) {
    var asked = document.activeElement && document.activeElement.closest(".ask");
    root.dataset.reader = reader;
    try { localStorage.setItem("stratascope-reader", reader); } catch (error) { /* private mode */ }
    arrange();
    if (asked) { document.getElementById("main").focus({ preventScroll: true }); }
  }
  all("[data-reader-choice]").forEach(function (button) {
    button.addEventListener("click", function () { choose(button.dataset.readerChoice); });
  });
  arrange();
  // Some browsers keep a store of their own for every file: the choice travels in the address too.
  document.addEventListener("click", function (event) {
    var link = event.target.closest && event.target.closest("a[href]");
    var address = link && link.getAttribute("href");
    if (root.dataset.reader && address && /\.html(#|$)/.test(address)) {
      link.setAttribute("href", address.replace(/\.html/, ".html?reader=" + root.dataset.reader));
    }
  });

  // On a narrow screen the list of pages is folded at first; on a wide one the current page is in view.
  var pages = document.querySelector("nav details");
  if (pages && window.matchMedia("(max-width: 60rem)").matches) { pages.removeAttribute("open"); }
  var bar = document.querySelector("nav");
  var current = document.querySelector("nav a[aria-current]");
  if (bar && current && current.offsetTop > bar.clientHeight - 60) { bar.scrollTop = current.offsetTop - bar.clientHeight / 2; }

  // -- drawings that can be turned ---------------------------------------------------------------------
  function tone(name) { return getComputedStyle(root).getPropertyValue(name).trim(); }
  function layoutOf(plot, target) {
    var layout = Object.assign({}, plot.layout, {
      font: { color: tone("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
      autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", uirevision: "kept",
      margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: true
    });
    delete layout.height; delete layout.width;
    layout.legend = Object.assign({ itemsizing: "constant", bgcolor: "rgba(0,0,0,0)" }, layout.legend,
      { orientation: "h", x: 0, xanchor: "left", y: 0, yanchor: "top", font: { size: 12 } });
    if (plot.layout.scene) {
      layout.scene = Object.assign({}, plot.layout.scene);
      ["xaxis", "yaxis", "zaxis"].forEach(function (axis) {
        layout.scene[axis] = Object.assign({}, plot.layout.scene[axis], { gridcolor: tone("--line"), linecolor: tone("--edge"), color: tone("--ink") });
      });
      var shown = target._fullLayout && target._fullLayout.scene && target._fullLayout.scene._scene;
      // The view that the reader has turned to stays while the step changes.
      var away = target.clientWidth < 450 ? 1.6 : 1.35;
      layout.scene.camera = shown ? shown.getCamera() : { eye: { x: away, y: away, z: 0.7 * away }, center: { x: 0, y: 0, z: -0.14 } };
    }
    return layout;
  }
  function framesOf(plot) { return plot.frames && plot.frames.length ? plot.frames : [{ data: plot.data }]; }
  function toned(trace) {
    var colour = trace.marker && typeof trace.marker.color === "string" ? tone("--c" + trace.marker.color.slice(1).toLowerCase()) : "";
    return colour ? Object.assign({}, trace, { marker: Object.assign({}, trace.marker, { color: colour }) }) : trace;
  }
  function drawPlotly(target, place) {
    var plot = data[target.dataset.plotly].plotly;
    var frames = framesOf(plot);
    target.dataset.drawn = "yes";
    target.dataset.place = String(place === undefined ? frames.length - 1 : place);
    return window.Plotly.react(target, frames[Number(target.dataset.place)].data.map(toned), layoutOf(plot, target),
      { displaylogo: false, responsive: true, displayModeBar: false });
  }
  function drawWhenSeen(target) {
    if (target.dataset.drawn || !window.Plotly || !data[target.dataset.plotly] || !target.offsetParent) { return; }
    drawPlotly(target);
  }
  var solids = all("[data-plotly]");
  if ("IntersectionObserver" in window) {
    var seen = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) { if (entry.isIntersecting) { drawWhenSeen(entry.target); } });
    }, { rootMargin: "400px" });
    solids.forEach(function (target) { seen.observe(target); });
  } else { solids.forEach(drawWhenSeen); }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () {
    all("[data-plotly][data-drawn]").forEach(function (target) { drawPlotly(target, Number(target.dataset.place)); });
  });
  window.addEventListener("beforeprint", function () {
    solids.forEach(drawWhenSeen);
    all("details").forEach(function (folded) { folded.open = true; });
  });

  // Keys turn a solid drawing about its upright axis and over it, and bring it nearer.
  var turns = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, 0.12], ArrowDown: [0, -0.12] };
  solids.forEach(function (target) {
    target.addEventListener("keydown", function (event) {
      var turn = turns[event.key], nearer = { "+": 0.9, "=": 0.9, "-": 1.1, "−": 1.1 }[event.key];
      if (event.target !== target || !(turn || nearer) || !target._fullLayout || !target._fullLayout.scene) { return; }
      event.preventDefault();
      var eye = target._fullLayout.scene._scene.getCamera().eye;
      var distance = Math.hypot(eye.x, eye.y, eye.z), around = Math.atan2(eye.y, eye.x), over = Math.asin(eye.z / distance);
      if (turn) { around += turn[0]; over = Math.max(-1.5, Math.min(1.5, over + turn[1])); } else { distance *= nearer; }
      window.Plotly.relayout(target, { "scene.camera.eye": {
        x: distance * Math.cos(over) * Math.cos(around), y: distance * Math.cos(over) * Math.sin(around), z: distance * Math.sin(over)
      } });
    });
  });

  // -- sliders over the steps --------------------------------------------------------------------------
  function picture(content, place) {
    return content.head + content.frames[place].map(function (piece) { return content.pieces[piece]; }).join("") + content.tail;
  }
  all(".slider").forEach(function (slider) {
    var steps = slider.dataset.steps.split(",").map(Number);
    var input = slider.querySelector("[data-role=step]");
    var figure = slider.closest("figure");
    var shown = slider.querySelector("output");
    var play = slider.querySelector("[data-role=play]");
    var timer = null;
    function move() {
      var place = Number(input.value), content = data[slider.dataset.target];
      shown.textContent = steps[place].toLocaleString("en");
      input.setAttribute("aria-valuetext", "training step " + steps[place]);
      figure.dispatchEvent(new CustomEvent("stepchange", { detail: place }));
      if (!content) { return; }
      if (content.frames) { figure.querySelector(".drawing").innerHTML = picture(content, place); }
      else if (content.plotly && window.Plotly) { drawPlotly(figure.querySelector("[data-plotly]"), place); }
    }
    function stop() {
      clearInterval(timer); timer = null;
      play.textContent = "▶"; play.setAttribute("aria-pressed", "false");
    }
    input.addEventListener("input", function () { if (timer) { stop(); } move(); });
    play.addEventListener("click", function () {
      if (timer) { stop(); return; }
      if (Number(input.value) === steps.length - 1) { input.value = 0; move(); }
      play.textContent = "❚❚"; play.setAttribute("aria-pressed", "true");
      timer = setInterval(function () {
        if (Number(input.value) >= steps.length - 1) { stop(); return; }
        input.value = Number(input.value) + 1; move();
      }, 700);
    });
    input.value = steps.length - 1; // browsers remember an older place over a reload
  });

  // -- numbers of drawings that carry them in their script ---------------------------------------------
  function numbersOf(plot) {
    var lines = ["step,name,x,y,z"];
    framesOf(plot).forEach(function (frame) {
      frame.data.forEach(function (trace) {
        (trace.x || []).forEach(function (x, n) {
          var name = '"' + String(trace.name || "").replace(/"/g, '""') + '"';
          lines.push([frame.name || "", name, x, trace.y[n], trace.z ? trace.z[n] : ""].join(","));
        });
      });
    });
    return lines.join("\n") + "\n";
  }
  all("[data-role=numbers]").forEach(function (link) {
    var id = link.closest("figure").id;
    if (!data[id] || !data[id].plotly) { return; }
    link.textContent = "Numbers (CSV)";
    link.addEventListener("click", function () {
      if (link.dataset.made) { return; }
      link.dataset.made = "yes";
      link.href = URL.createObjectURL(new Blob([numbersOf(data[id].plotly)], { type: "text/csv" }));
      link.download = id + ".csv";
    });
  });

  // -- many figures: choose the run and the probe ------------------------------------------------------
  function chips(tools, label, values, chosen, change) {
    if (values.length < 2) { return; }
    tools.appendChild(element("span", {}, label));
    var buttons = [""].concat(values).map(function (value) {
      var button = element("button", { type: "button", "aria-pressed": String(value === chosen) }, value || "all");
      button.addEventListener("click", function () {
        buttons.forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
        change(value);
      });
      tools.appendChild(button);
      return button;
    });
  }
  all(".figures").forEach(function (group) {
    var figures = all("figure", group);
    function valuesOf(name) {
      return figures.map(function (figure) { return figure.dataset[name]; })
        .filter(function (value, place, list) { return value && list.indexOf(value) === place; });
    }
    var wanted = { run: "", probe: "" };
    var tools = element("div", { "class": "tools", role: "group", "aria-label": "Which figures are shown" });
    function show() {
      figures.forEach(function (figure) {
        figure.hidden = ["run", "probe"].some(function (name) {
          return wanted[name] && figure.dataset[name] && figure.dataset[name] !== wanted[name];
        });
      });
      solids.forEach(function (target) {
        if (target.getBoundingClientRect().top < window.innerHeight + 400) { drawWhenSeen(target); }
      });
    }
    if (figures.length < 4) { return; }
    ["run", "probe"].forEach(function (name) {
      var values = valuesOf(name);
      if (values.length > 1 && figures.length > 6) { wanted[name] = values[0]; }
      chips(tools, name, values, wanted[name], function (value) { wanted[name] = value; show(); });
    });
    if (tools.children.length) { group.parentNode.insertBefore(tools, group); show(); }
  });
  // A link to a figure that is filtered away shows it.
  function reveal() {
    var target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.hidden) { target.hidden = false; }
    if (target && target.tagName === "FIGURE") { target.scrollIntoView(); }
  }
  window.addEventListener("hashchange", reveal);
  reveal();

  // -- long tables: a word to look for, and pages ------------------------------------------------------
  all("table[data-page]").forEach(function (table) {
    var size = Number(table.dataset.page), rows = all("tbody tr", table), place = 0, found = rows;
    if (rows.length <= size) { return; }
    var box = table.closest(".scroll");
    var tools = element("div", { "class": "tools" });
    var input = element("input", { type: "search", placeholder: "filter the rows", "aria-label": "Filter the rows of " + box.getAttribute("aria-label") });
    tools.appendChild(input);
    var pager = element("div", { "class": "pager" });
    var back = element("button", { type: "button" }, "‹ earlier"), on = element("button", { type: "button" }, "later ›");
    var count = element("span", { role: "status" });
    [back, count, on].forEach(function (item) { pager.appendChild(item); });
    function show() {
      var last = Math.min(place + size, found.length);
      rows.forEach(function (row) { row.hidden = true; });
      found.slice(place, last).forEach(function (row) { row.hidden = false; });
      count.textContent = found.length ? (place + 1) + "–" + last + " of " + found.length.toLocaleString("en") : "no row has that";
      back.disabled = place === 0; on.disabled = last >= found.length;
    }
    back.addEventListener("click", function () { place = Math.max(0, place - size); show(); });
    on.addEventListener("click", function () { place += size; show(); });
    input.addEventListener("input", function () {
      var words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = rows.filter(function (row) {
        var text = row.textContent.toLowerCase();
        return words.every(function (word) { return text.indexOf(word) >= 0; });
      });
      place = 0; show();
    });
    box.parentNode.insertBefore(tools, box);
    box.parentNode.insertBefore(pager, box.nextSibling);
    show();
  });
})();
