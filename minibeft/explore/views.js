// The page: controls set the state, and every view is drawn from what attend() gives for it.

const model = JSON.parse(document.getElementById("numbers").textContent);
const BIASES = ["b_q", "b_k", "b_v"], SWITCHES = ["rotary", "sink", "qk_norm", "softcap", "bfloat16"];

// base64 of float64 as a list of rows; a vector as the one row that it is.
function unpacked({ columns, base64 }) {
  const bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  const numbers = Array.from(new Float64Array(bytes.buffer));
  return Array.from({ length: numbers.length / columns }, (_, t) => numbers.slice(t * columns, (t + 1) * columns));
}
for (const head of model.heads) {
  for (const name of ["q", "k", "v", "mask"]) head[name] = unpacked(head[name]);
  for (const name of BIASES) for (const axis of ["first", "second"]) head[name][axis] = unpacked(head[name][axis])[0];
}
for (const name of ["cos", "sin"]) model.rotation[name] = unpacked(model.rotation[name]);
for (const name of ["q", "k"]) model.norms[name].gain = unpacked(model.norms[name].gain)[0];

// What the controls say. A size is a part of the slider's most, an angle is in radians from the plane's first direction.
const off = { sink: false, qk_norm: false, softcap: false, bfloat16: false };
const plain = { ...off, rotary: model.rotation.own, qk_norm: model.norms.own, softcap: model.cap.own };
const waking = plain.rotary || plain.qk_norm || plain.softcap;
const state = { head: model.head, row: 1, on: { ...plain }, b_q: {}, b_k: {}, b_v: {} };
const head = () => model.heads[state.head];
const vector = (name, { size, angle }) => head()[name].first.map((x, d) => size * (Math.cos(angle) * x + Math.sin(angle) * head()[name].second[d]));
const biases = changed => Object.fromEntries(BIASES.map(name => [name, vector(name, { ...state[name], ...changed?.[name] })]));
const none = Object.fromEntries(BIASES.map(name => [name, { size: 0 }]));
const run = changed => attend(head(), biases(changed), state.on, model);
const own = name => ({ size: head()[name].size, angle: head()[name].angle });
const least = name => ({ size: 0, angle: head()[name].angle });
const large = name => ({ size: head()[name].most, angle: head()[name].angle });

const PRESETS = {
  "the model's own biases": [waking
    ? "What this model does to queries, keys or logits after their biases lets a b_k matter: see the switches."
    : "Whatever b_k and b_v are, only b_q moves what this head attends to. Move them.",
    () => ({ b_q: own("b_q"), b_k: own("b_k"), b_v: own("b_v"), on: plain })],
  "why b_k is null": ["b_k adds s q_i·b_k to every logit of row i: all bars move alike, and the softmax ignores what its row shares. Move b_k.",
    () => ({ b_q: own("b_q"), b_k: large("b_k"), b_v: least("b_v"), on: { rotary: false, ...off } })],
  "RoPE wakes it": ["Rotary positions turn k_j + b_k by j: what b_k adds depends on the distance to the key.",
    () => ({ b_q: own("b_q"), b_k: large("b_k"), b_v: least("b_v"), on: { rotary: true, ...off } })],
  "a sink wakes it": ["The sink has no b_k, so a b_k moves weight between it and the keys.",
    () => ({ b_q: own("b_q"), b_k: large("b_k"), b_v: least("b_v"), on: { rotary: false, ...off, sink: true } })],
  "rounding wakes it": ["bfloat16 keeps 8 bits: beside a large b_k the keys lose theirs.",
    () => ({ b_q: own("b_q"), b_k: large("b_k"), b_v: least("b_v"), on: { rotary: false, ...off, bfloat16: true } })],
  "b_v folds": ["Rows of P sum to one, so every output gets the same b_v: all arrows are alike, and b_o + W_o b_v does the same.",
    () => ({ b_q: least("b_q"), b_k: least("b_k"), b_v: large("b_v"), on: plain })],
  "b_q saturates": ["Far out, every query attends to the one key with the largest k_j·b_q. More changes nothing.",
    () => ({ b_q: { ...large("b_q"), angle: 0 }, b_k: least("b_k"), b_v: least("b_v"), on: { rotary: false, ...off } })],
  "b_q's null direction": ["Turned to 90°, b_q is at right angles to every difference of keys: it adds the same to all of them.",
    () => ({ b_q: { ...large("b_q"), angle: Math.PI / 2 }, b_k: least("b_k"), b_v: least("b_v"), on: { rotary: false, ...off } })],
};
if (model.tokens.length > model.size) delete PRESETS["b_q's null direction"];  // the keys' differences may span every direction

const $ = selector => document.querySelector(selector);
const brief = x => x === 0 ? "0" : Math.abs(x) < 1e-3 ? x.toExponential(1) : x.toPrecision(3);
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
// SVG from tagged pieces; texts of the model go through text(), which escapes them.
const escaped = text => String(text).replace(/[&<>"]/g, c => `&#${c.charCodeAt(0)};`);
const text = (x, y, content, more = "") => `<text x="${x}" y="${y}" ${more}>${escaped(content)}</text>`;
function draw(id, width, height, label, parts) {
  const svg = document.getElementById(id);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("aria-label", label);
  svg.innerHTML = parts.join("");
}

function drawWeights(now) {
  const tokens = model.tokens, n = tokens.length, cell = Math.min(26, 400 / n), left = 76, parts = [];
  now.p.forEach((row, i) => row.forEach((weight, j) => parts.push(
    `<rect data-row="${i}" x="${left + j * cell}" y="${i * cell}" width="${cell - .5}" height="${cell - .5}" fill="var(--blue)" fill-opacity="${(.03 + .97 * weight).toFixed(4)}"><title>${escaped(tokens[i])} → ${escaped(tokens[j])}: ${brief(weight)}</title></rect>`)));
  tokens.forEach((token, i) => {
    const bold = i === state.row ? 'font-weight="bold"' : "";
    parts.push(text(left - 4, (i + .72) * cell, token, `text-anchor="end" data-row="${i}" ${bold}`));
    parts.push(text(0, 0, token, `text-anchor="end" transform="translate(${left + (i + .7) * cell} ${n * cell + 6}) rotate(-60)"`));
  });
  parts.push(`<rect x="${left - 1}" y="${state.row * cell - 1}" width="${n * cell + 1.5}" height="${cell + 1.5}" fill="none" stroke="var(--red)" stroke-width="1.5"/>`);
  draw("weights", left + n * cell + 8, n * cell + 70, "attention weights, a row for each query", parts);
}

function drawLogits(bare, now) {
  const tokens = model.tokens, n = tokens.length, i = state.row, left = 76, width = 340, step = Math.min(24, 420 / n), parts = [];
  const seen = [...bare.z[i], ...now.z[i], 0].filter(Number.isFinite);
  const low = Math.min(...seen), high = Math.max(...seen), at = z => left + (z - low) / (high - low || 1) * (width - left);
  const bar = (z, y, h, style) => Number.isFinite(z) ? `<rect x="${Math.min(at(0), at(z))}" y="${y}" width="${Math.abs(at(z) - at(0))}" height="${h}" ${style}/>` : "";
  tokens.forEach((token, j) => {
    parts.push(text(left - 6, (j + .7) * step, token, 'text-anchor="end"'));
    parts.push(bar(now.z[i][j], j * step + 2, step - 5, 'fill="var(--blue)" fill-opacity=".75"'));
    parts.push(bar(bare.z[i][j], j * step + 2, step - 5, 'fill="none" stroke="var(--ink)"'));
    parts.push(text(width + 52, (j + .7) * step, `${(100 * now.p[i][j]).toFixed(2)} %`, 'text-anchor="end"'));
  });
  parts.push(`<line x1="${at(0)}" x2="${at(0)}" y1="0" y2="${n * step}" stroke="var(--line)"/>`);
  parts.push(text(left, n * step + 14, brief(low)), text(width, n * step + 14, brief(high), 'text-anchor="end"'));
  draw("logits", 400, n * step + 20, `logits of the query ${tokens[i]}`, parts);
}

function drawOutputs(bare, now) {
  const plane = head().b_v, flat = rows => rows.map(row => [dot(row, plane.first), dot(row, plane.second)]);
  const [from, to, old, values] = [flat(bare.o), flat(now.o), flat(bare.v), flat(now.v)];
  const reach = Math.max(...[...old, ...from].flat().map(Math.abs), 1e-9) + state.b_v.size, size = 400;
  const at = ([a, b]) => [size / 2 + a / reach * size / 2.1, size / 2 - b / reach * size / 2.1];
  const ring = (points, style) => `<polygon points="${hull(points).map(at).join(" ")}" fill="none" stroke="var(--ink)" ${style}/>`;
  const parts = [
    '<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0L6 3L0 6z" fill="var(--blue)"/></marker></defs>',
    ring(old, 'stroke-dasharray="4 3" opacity=".5"'), ring(values, 'opacity=".7"'),
    ...values.map(at).map(([x, y]) => `<circle cx="${x}" cy="${y}" r="2" fill="var(--ink)" opacity=".6"/>`),
    ...from.map((start, i) => {
      const [a, b] = [at(start), at(to[i])], chosen = i === state.row, moved = Math.hypot(b[0] - a[0], b[1] - a[1]) > 1;
      const style = `stroke="var(--${chosen ? "red" : "blue"})" stroke-width="${chosen ? 2.5 : 1.5}"`;
      return moved ? `<line x1="${a[0]}" y1="${a[1]}" x2="${b[0]}" y2="${b[1]}" ${style} marker-end="url(#tip)"/>` : `<circle cx="${b[0]}" cy="${b[1]}" r="3" fill="none" ${style}/>`;
    }),
    text(size - 4, size / 2 - 6, `${plane.named[0]} →`, 'text-anchor="end"'), text(size / 2 + 6, 12, `↑ ${plane.named[1]}`),
  ];
  draw("outputs", size, size, "outputs of every query in two dimensions", parts);
}

function drawSaturation(now) {
  const most = head().b_q.most, steps = 60, i = state.row, left = 34, width = 400, height = 240;
  const bare = run({ b_q: { size: 0 } });
  const points = Array.from({ length: steps + 1 }, (_, step) => {
    const at = run({ b_q: { size: step / steps * most } });
    return [step / steps * most, variation(at.p[i], bare.p[i]), Math.tanh(oscillation(bare, at, i, state.on.sink) / 4)];
  });
  const at = (size, y) => `${left + size / most * (width - left - 6)},${height - 24 - y * (height - 40)}`;
  const [x, y] = at(state.b_q.size, variation(now.p[i], bare.p[i])).split(",");
  const parts = [
    `<polyline points="${at(0, 1)} ${at(0, 0)} ${at(most, 0)}" fill="none" stroke="var(--line)"/>`,
    `<polyline points="${points.map(p => at(p[0], p[2])).join(" ")}" fill="none" stroke="var(--ink)" stroke-dasharray="5 4"/>`,
    `<polyline points="${points.map(p => at(p[0], p[1])).join(" ")}" fill="none" stroke="var(--blue)" stroke-width="2"/>`,
    `<circle cx="${x}" cy="${y}" r="5" fill="var(--red)"/>`,
    text(left - 6, height - 20, "0", 'text-anchor="end"'), text(left - 6, 22, "1", 'text-anchor="end"'),
    text(width - 6, height - 8, `size of b_q: ${brief(most)}`, 'text-anchor="end"'),
  ];
  draw("saturation", width, height, "how far the weights move, by the size of b_q", parts);
}

// One sentence for each bias: what it does to this head now.
function findings(now) {
  const without = name => run({ [name]: { size: 0 } });
  const [q, k, v] = BIASES.map(without);
  const awake = SWITCHES.filter(name => state.on[name]);
  const reasons = awake.map(name => model.why[name] ?? "rounding to 8 bits loses what tells the keys apart");
  const worst = Math.max(...now.p.map((_, i) => Math.tanh(oscillation(q, now, i, state.on.sink) / 4)));
  const shift = biases().b_v, offsets = now.o.map((row, i) => norm(row.map((x, d) => x - v.o[i][d] - shift[d])));
  say("#b_q", `It moves a row of P by up to ${brief(mostVariation(now.p, q.p))}; tanh(osc(β)/4) allows ${brief(worst)}.`, "");
  say("#b_k", `It moves a row of P by ${brief(mostVariation(now.p, k.p))}${awake.length ? "" : ": nothing, but for the last digits"}.`, awake.length ? "awake" : "null");
  say("#b_v", `It shifts every output by b_v, but for ${brief(Math.max(...offsets))}.`, state.on.sink || state.on.bfloat16 ? "awake" : "null");
  say("#switches", awake.length ? `b_k is awake: ${reasons.join("; ")}.` : "All are off: b_k can do nothing.", awake.length ? "awake" : "null");
}
function say(card, sentence, kind) {
  const place = $(`${card} .finding`);
  place.textContent = sentence;
  place.className = `finding ${kind}`;
}

function show() {
  for (const name of BIASES) {
    const { size, angle } = state[name];
    $(`#${name} .size`).value = 1000 * size / head()[name].most;
    $(`#${name} .angle`).value = 1800 / Math.PI * angle;
    $(`#${name} label:nth-of-type(1) output`).textContent = brief(size);
    $(`#${name} label:nth-of-type(2) output`).textContent = `${Math.round(180 / Math.PI * angle)}°`;
    $(`#${name} .axes`).textContent = `0°: ${head()[name].named[0]}; 90°: ${head()[name].named[1]}`;
  }
  for (const name of SWITCHES) $(`input[name=${name}]`).checked = state.on[name];
  $("#head").value = state.head;
  $("#row").value = state.row;
  const now = run(), bare = run(none);
  drawWeights(now); drawLogits(bare, now); drawOutputs(bare, now); drawSaturation(now); findings(now);
}

function choose(preset) {
  const [story, settings] = PRESETS[preset], { on, ...rest } = settings();
  Object.assign(state, rest, { on: { ...on } });
  $("#story").textContent = story;
  for (const button of document.querySelectorAll("nav button")) button.setAttribute("aria-pressed", button.textContent === preset);
  show();
}

// What a test reads: the state's biases, and what attend() gives for them.
window.now = () => ({ ...biases(), ...run(), on: state.on });

$("#cap").textContent = `soft-cap (${model.cap.at} tanh(z/${model.cap.at}))`;
$("#about").textContent = `“${model.text}” through layer ${model.layer} of ${model.model}: its own queries, keys and values, computed in your browser in float64.`;
$("#presets").append(...Object.keys(PRESETS).map(name => element("button", { type: "button" }, name)));
$("#presets").addEventListener("click", event => event.target.matches("button") && choose(event.target.textContent));
$("#head").append(...model.heads.map((_, h) => element("option", { value: h }, String(h))));
$("#row").append(...model.tokens.map((token, i) => element("option", { value: i }, `${i}: ${token}`)));
$("#head").addEventListener("change", event => { state.head = Number(event.target.value); choose("the model's own biases"); });
$("#row").addEventListener("change", event => { state.row = Number(event.target.value); show(); });
$("#weights").addEventListener("click", event => { if (event.target.dataset.row) { state.row = Number(event.target.dataset.row); show(); } });
for (const name of BIASES) {
  $(`#${name} .size`).addEventListener("input", event => { state[name] = { ...state[name], size: event.target.value / 1000 * head()[name].most }; show(); });
  $(`#${name} .angle`).addEventListener("input", event => { state[name] = { ...state[name], angle: event.target.value / 1800 * Math.PI }; show(); });
}
for (const name of SWITCHES) $(`input[name=${name}]`).addEventListener("change", event => { state.on[name] = event.target.checked; show(); });
for (const place of document.querySelectorAll(".statement"))
  place.append(...place.dataset.theorems.split(" ").flatMap(name => [element("a", { href: `#${name}` }, `${name}: ${model.theorems[name].title}`), " · "]).slice(0, -1));
$("#statements").append(element("h2", {}, "The statements, and how each is proved and tested"), element("dl", {}, ...Object.entries(model.theorems).flatMap(([name, { title, claim, places, coq }]) => [
  element("dt", { id: name }, `${name}: ${title}`), element("dd", {}, claim,
    element("p", {}, "Derived step by step by ", element("code", {}, `minibeft prove ${name}`), "; the files: ", element("code", {}, places.join("  "))),
    element("details", {}, element("summary", {}, `${name} in Coq, checked by make formal`), ...coq.flatMap(([sentence, statement]) => [element("p", {}, sentence), element("pre", {}, statement)])))])));
choose("the model's own biases");
