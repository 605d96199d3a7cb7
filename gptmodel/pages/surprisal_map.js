"use strict";
(() => {
  const panel = document.getElementById("panel");
  const passages = JSON.parse(document.getElementById("tokens").textContent);
  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const share = (p) => p >= 0.0001 ? (100 * p).toPrecision(p >= 0.1 ? 3 : 2) + " %" : p.toExponential(1);
  const oneIn = (nats) => "1 in " + Math.exp(nats).toLocaleString("en", { maximumSignificantDigits: 3 });
  const rows = (label, p, own, place) => {
    const row = make("li", undefined, (own ? "own" : "") + (place > 4 && !own ? " more" : ""));
    const bar = make("u");
    bar.style.width = 100 * p + "%";
    row.append(make("span", (own ? "▸ " : "") + label), make("span", share(p)), bar);
    return row;
  };
  const tell = ([label, id, nats, rank, likeliest]) => {
    const told = document.createDocumentFragment();
    told.append(make("p", label, "name"));
    told.append(make("p", `loss ${nats.toFixed(2)} nats = ${(nats / Math.LN2).toFixed(2)} bits`));
    told.append(make("p", `probability ${share(Math.exp(-nats))} (${oneIn(nats)})`));
    told.append(make("p", `rank ${rank.toLocaleString("en")}; token number ${id.toLocaleString("en")}`));
    const list = make("ol");
    likeliest.forEach(([other, p], place) => list.append(rows(other, p, place === rank - 1, place)));
    if (rank > likeliest.length) list.append(rows(label, Math.exp(-nats), true, 0));
    told.append(make("p", "What the model held likeliest here:", "more"), list);
    return told;
  };
  let chosen = null;
  const show = (tile, piece) => {
    if (chosen) chosen.classList.remove("chosen");
    chosen = tile;
    tile.classList.add("chosen");
    panel.replaceChildren();
    if (piece.length > 1) {
      const sum = piece.reduce((total, token) => total + token[2], 0);
      panel.append(make("p", `${piece.length} tokens spell this; together ${sum.toFixed(2)} nats`), make("hr"));
    }
    piece.forEach((token, place) => panel.append(...(place ? [make("hr")] : []), tell(token)));
    panel.scrollTop = 0;
  };
  document.querySelectorAll(".passage").forEach((passage, which) => {
    const tiles = [...passage.querySelectorAll(".t")];
    const number = new Map(tiles.map((tile, place) => [tile, place]));
    const here = (event) => number.get(event.target.closest(".t"));
    const look = (event) => {
      const place = here(event);
      if (place !== undefined) show(tiles[place], passages[which][place]);
    };
    passage.addEventListener("pointerover", look);
    passage.addEventListener("focusin", look);
    passage.addEventListener("keydown", (event) => {
      const place = here(event);
      const steps = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tiles.length - 1 };
      const next = tiles[steps[event.key]];
      if (place === undefined || !next || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      tiles[place].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
})();
