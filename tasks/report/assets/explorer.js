// Maps of the same samples side by side: point at one, loop many, find them again in every map.
(function () {
  "use strict";
  var root = document.documentElement;
  var data = window.stratascope || {};
  var MOST_LISTED = 60, REACH = 14, INSET = 0.04;
  function all(selector, where) { return Array.prototype.slice.call((where || document).querySelectorAll(selector)); }
  function element(tag, attributes, text) {
    var made = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) { made.setAttribute(name, attributes[name]); });
    if (text !== undefined) { made.textContent = text; }
    return made;
  }
  function tone(name) { return getComputedStyle(root).getPropertyValue(name).trim(); }
  function unpacked(text) {
    var bytes = atob(text), found = new Uint8Array(bytes.length);
    for (var n = 0; n < bytes.length; n += 1) { found[n] = bytes.charCodeAt(n); }
    return new DataView(found.buffer);
  }

  function explorer(host) {
    var content = (data[host.dataset.explorer] || {}).explorer;
    if (!content) { return; }
    var figure = host.closest("figure"), count = content.ids.length;
    var state = { place: content.steps.length - 1, method: 0, marked: new Set(), current: -1 };
    var picture = null, panels = [], waiting = false;
    host.textContent = "";

    // -- what a sample is called and looks like --------------------------------------------------------
    function className(sample) { return content.groups ? content.names[content.groups[sample]] : ""; }
    function colourOf(group) { return tone("--c" + content.colours[group % content.colours.length].slice(1).toLowerCase()); }
    function portrait(sample, side) {
      var shown = element("canvas", { width: content.pictures.width, height: content.pictures.height, "aria-hidden": "true" });
      var column = sample % content.pictures.columns, row = Math.floor(sample / content.pictures.columns);
      shown.style.width = side + "px";
      shown.getContext("2d").drawImage(picture, column * content.pictures.width, row * content.pictures.height,
        content.pictures.width, content.pictures.height, 0, 0, content.pictures.width, content.pictures.height);
      return shown;
    }
    function hasPicture() { return picture && picture.complete && picture.naturalWidth > 0; }
    if (content.pictures) {
      picture = new Image();
      picture.onload = list;
      picture.src = content.pictures.source;
    }

    // -- tools: which method, which class --------------------------------------------------------------
    var tools = element("div", { "class": "tools", role: "group", "aria-label": "Which maps are shown" });
    if (content.methods.length > 1) {
      content.methods.forEach(function (title, place) {
        var button = element("button", { type: "button", "data-role": "method", "aria-pressed": String(place === 0) }, title);
        button.addEventListener("click", function () {
          all("[data-role=method]", tools).forEach(function (other) { other.setAttribute("aria-pressed", String(other === button)); });
          state.method = place; redraw();
        });
        tools.appendChild(button);
      });
      host.appendChild(tools);
    }
    var grid = element("div", { "class": "explorer-panels" });
    host.appendChild(grid);
    var legend = element("div", { "class": "tools explorer-legend", role: "group", "aria-label": "Choose all samples of a class" });
    Object.keys(content.groups ? content.names : {}).forEach(function (group) {
      var button = element("button", { type: "button", "data-role": "class", "aria-pressed": "false" });
      var swatch = element("i", { "aria-hidden": "true" });
      swatch.style.background = "var(--c" + content.colours[Number(group) % content.colours.length].slice(1).toLowerCase() + ")";
      button.appendChild(swatch);
      button.appendChild(element("bdi", {}, content.names[group]));
      button.addEventListener("click", function () {
        var members = [];
        content.groups.forEach(function (value, sample) { if (String(value) === group) { members.push(sample); } });
        var every = members.every(function (sample) { return state.marked.has(sample); });
        members.forEach(function (sample) { if (every) { state.marked.delete(sample); } else { state.marked.add(sample); } });
        changed();
      });
      legend.appendChild(button);
    });
    if (legend.children.length) { host.appendChild(legend); }
    var listing = element("div", { "class": "explorer-list", "data-role": "samples" });
    var told = element("p", { role: "status" });
    var cards = element("ul", {});
    var below = element("div", { "class": "tools" });
    var clear = element("button", { type: "button", "data-role": "clear" }, "Clear");
    var save = element("a", { "class": "numbers", download: host.dataset.explorer + "-samples.csv", "data-role": "list" }, "List (CSV)");
    clear.addEventListener("click", function () { state.marked.clear(); changed(); });
    save.addEventListener("click", function () {
      var lines = ["sample_id,class"];
      state.marked.forEach(function (sample) {
        lines.push([content.ids[sample], className(sample)].map(function (text) { return '"' + String(text).replace(/"/g, '""') + '"'; }).join(","));
      });
      save.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    });
    [clear, save].forEach(function (item) { below.appendChild(item); });
    [told, cards, below].forEach(function (item) { listing.appendChild(item); });
    host.appendChild(listing);

    function list() {
      var marked = Array.from(state.marked).sort(function (a, b) { return a - b; });
      var counts = {};
      marked.forEach(function (sample) { var name = className(sample); counts[name] = (counts[name] || 0) + 1; });
      var parts = Object.keys(counts).sort(function (a, b) { return counts[b] - counts[a]; })
        .map(function (name) { return counts[name] + (name ? " × " + name : ""); });
      told.textContent = marked.length
        ? marked.length + (marked.length === 1 ? " sample: " : " samples: ") + parts.join(", ") +
          (marked.length > MOST_LISTED ? "; the first " + MOST_LISTED + " are shown." : ".")
        : "Draw a loop around samples, or choose a class, to list them here.";
      below.hidden = !marked.length;
      cards.textContent = "";
      marked.slice(0, MOST_LISTED).forEach(function (sample) {
        var card = element("li", { "data-sample": content.ids[sample] });
        if (hasPicture()) { card.appendChild(portrait(sample, 48)); }
        card.appendChild(element("bdi", {}, className(sample) || "sample"));
        card.appendChild(element("small", {}, "#" + content.ids[sample]));
        cards.appendChild(card);
      });
      all("[data-role=class]", legend).forEach(function (button, place) {
        var group = Object.keys(content.names)[place];
        button.setAttribute("aria-pressed", String(content.groups.some(function (value, sample) {
          return String(value) === group && state.marked.has(sample);
        })));
      });
    }
    function changed() { list(); redraw(); }

    // -- a panel for each layer -------------------------------------------------------------------------
    content.layers.forEach(function (layer, number) {
      var panel = element("div", { "class": "explorer-panel" });
      panel.appendChild(element("h4", {}, layer));
      var box = element("div", { "class": "explorer-box" });
      var canvas = element("canvas", {
        tabindex: "0", role: "application",
        "aria-label": "Map of " + layer + ". Arrow keys go from sample to sample, Enter marks one, Escape clears."
      });
      var tip = element("div", { "class": "explorer-tip", role: "status" });
      tip.hidden = true;
      box.appendChild(canvas); box.appendChild(tip); panel.appendChild(box); grid.appendChild(panel);
      var packed = content.maps[number].map(unpacked);
      var here = { canvas: canvas, tip: tip, loop: null };
      panels.push(here);

      function where(sample) {
        var view = packed[state.method], at = 4 * (state.place * count + sample), size = canvas.clientWidth;
        var room = size * (1 - 2 * INSET), edge = size * INSET;
        return [edge + view.getUint16(at, true) / 65535 * room, edge + (1 - view.getUint16(at + 2, true) / 65535) * room];
      }
      here.draw = function () {
        var size = canvas.clientWidth, sharp = window.devicePixelRatio || 1;
        if (!size) { return; }
        canvas.width = canvas.height = Math.round(size * sharp);
        var brush = canvas.getContext("2d");
        brush.scale(sharp, sharp);
        var radius = count > 600 ? 2.2 : 2.8, some = state.marked.size > 0;
        var tones = {};
        function dot(sample, wide) {
          var group = content.groups ? content.groups[sample] : 0, at = where(sample);
          brush.fillStyle = tones[group] || (tones[group] = colourOf(group));
          brush.beginPath(); brush.arc(at[0], at[1], wide, 0, 2 * Math.PI); brush.fill();
        }
        brush.globalAlpha = some ? 0.22 : 0.85;
        for (var n = 0; n < count; n += 1) { if (!state.marked.has(n)) { dot(n, radius); } }
        brush.globalAlpha = 1;
        state.marked.forEach(function (sample) { dot(sample, radius + 1); });
        if (state.current >= 0) {
          var at = where(state.current);
          brush.strokeStyle = tone("--ink"); brush.lineWidth = 2;
          brush.beginPath(); brush.arc(at[0], at[1], radius + 4, 0, 2 * Math.PI); brush.stroke();
        }
        if (here.loop) {
          brush.strokeStyle = tone("--accent"); brush.lineWidth = 2;
          brush.beginPath();
          here.loop.forEach(function (point, place) { brush[place ? "lineTo" : "moveTo"](point[0], point[1]); });
          brush.stroke();
        }
      };
      function nearest(x, y, reach) {
        var best = -1, least = reach * reach;
        for (var n = 0; n < count; n += 1) {
          var at = where(n), away = (at[0] - x) * (at[0] - x) + (at[1] - y) * (at[1] - y);
          if (away < least) { least = away; best = n; }
        }
        return best;
      }
      function tell(sample) {
        state.current = sample;
        panels.forEach(function (other) { other.tip.hidden = true; });
        if (sample >= 0) {
          var at = where(sample);
          tip.textContent = "";
          if (hasPicture()) { tip.appendChild(portrait(sample, 72)); }
          tip.appendChild(element("b", {}, className(sample) || "sample"));
          tip.appendChild(element("small", {}, "#" + content.ids[sample]));
          tip.hidden = false;
          var right = at[0] > canvas.clientWidth / 2, low = at[1] > canvas.clientHeight / 2;
          tip.style.left = right ? "auto" : at[0] + 12 + "px";
          tip.style.right = right ? canvas.clientWidth - at[0] + 12 + "px" : "auto";
          tip.style.top = low ? "auto" : at[1] + 12 + "px";
          tip.style.bottom = low ? canvas.clientHeight - at[1] + 12 + "px" : "auto";
        }
        redraw();
      }
      function toggle(sample) {
        if (state.marked.has(sample)) { state.marked.delete(sample); } else { state.marked.add(sample); }
        changed();
      }
      function point(event) {
        var edge = canvas.getBoundingClientRect();
        return [event.clientX - edge.left, event.clientY - edge.top];
      }
      function inside(at, loop) {
        var within = false;
        for (var n = 0, m = loop.length - 1; n < loop.length; m = n, n += 1) {
          var a = loop[n], b = loop[m];
          if ((a[1] > at[1]) !== (b[1] > at[1]) && at[0] < (b[0] - a[0]) * (at[1] - a[1]) / (b[1] - a[1]) + a[0]) { within = !within; }
        }
        return within;
      }
      canvas.addEventListener("pointerdown", function (event) {
        if (event.button) { return; }
        here.loop = [point(event)];
        canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointermove", function (event) {
        var at = point(event);
        if (here.loop) { here.loop.push(at); redraw(); } else { tell(nearest(at[0], at[1], REACH)); }
      });
      canvas.addEventListener("pointerup", function (event) {
        var loop = here.loop;
        here.loop = null;
        if (!loop) { return; }
        var wide = Math.max.apply(null, loop.map(function (at) { return Math.hypot(at[0] - loop[0][0], at[1] - loop[0][1]); }));
        if (wide < 6) {
          var sample = nearest(loop[0][0], loop[0][1], REACH);
          if (sample >= 0) { tell(sample); toggle(sample); }
          return;
        }
        if (!event.shiftKey) { state.marked.clear(); }
        for (var n = 0; n < count; n += 1) { if (inside(where(n), loop)) { state.marked.add(n); } }
        changed();
      });
      canvas.addEventListener("pointercancel", function () { here.loop = null; redraw(); });
      canvas.addEventListener("pointerleave", function () { if (!here.loop && document.activeElement !== canvas) { tell(-1); } });
      canvas.addEventListener("blur", function () { tell(-1); });
      var ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      canvas.addEventListener("keydown", function (event) {
        var way = ways[event.key];
        if (event.key === "Escape") { state.marked.clear(); tell(-1); changed(); return; }
        if ((event.key === "Enter" || event.key === " ") && state.current >= 0) { event.preventDefault(); toggle(state.current); return; }
        if (!way) { return; }
        event.preventDefault();
        if (state.current < 0) { tell(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, 1e6)); return; }
        var from = where(state.current), best = -1, least = Infinity;
        for (var n = 0; n < count; n += 1) {
          var at = where(n), dx = at[0] - from[0], dy = at[1] - from[1];
          var along = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
          if (n !== state.current && along > 0.01 && along + 2 * aside < least) { least = along + 2 * aside; best = n; }
        }
        if (best >= 0) { tell(best); }
      });
    });

    function redraw() {
      if (waiting) { return; }
      waiting = true;
      requestAnimationFrame(function () { waiting = false; panels.forEach(function (panel) { panel.draw(); }); });
    }
    figure.addEventListener("stepchange", function (event) { state.place = event.detail; redraw(); });
    window.addEventListener("resize", redraw);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    if ("ResizeObserver" in window) { new ResizeObserver(redraw).observe(grid); }
    list(); redraw();
    host.dataset.drawn = "yes";
  }
  all("[data-explorer]").forEach(explorer);
})();
