// One head of attention in float64, as attend() and attend_variant() of minibeft/theory compute it. A matrix is a list of rows.

const dot = (a, b) => { let sum = 0; for (let i = 0; i < a.length; i++) sum += a[i] * b[i]; return sum; };
const plus = (rows, bias) => rows.map(row => row.map((x, i) => x + bias[i]));
const norm = x => Math.sqrt(dot(x, x));

// The nearest number with the 8 significant bits of bfloat16, ties to even; a float64 becomes a float32 first.
function bfloat16(x) {
  if (!Number.isFinite(x)) return x;
  const single = new Float32Array([x]), bits = new Uint32Array(single.buffer);
  bits[0] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) & 0xffff0000;
  return single[0];
}

// Rotary positions: pair i of row t turns by the angle whose cosine and sine stand in row t, column i.
function rotate(rows, { cos, sin, interleaved }) {
  const half = cos[0].length;
  return rows.map((row, t) => {
    const out = row.slice();
    for (let i = 0; i < half; i++) {
      const [a, b] = interleaved ? [2 * i, 2 * i + 1] : [i, i + half];
      out[a] = row[a] * cos[t][i] - row[b] * sin[t][i];
      out[b] = row[b] * cos[t][i] + row[a] * sin[t][i];
    }
    return out;
  });
}

// RMSNorm of each row.
const normalise = (rows, { gain, eps }) => rows.map(row => {
  const size = Math.sqrt(dot(row, row) / row.length + eps);
  return row.map((x, d) => x / size * gain[d]);
});

// Softmax over a row; a sink is one more logit, 0, that has no value. A hidden key has the logit −∞.
function softmax(logits, sink) {
  const most = Math.max(...logits, ...(sink ? [0] : []));
  const powers = logits.map(z => Math.exp(z - most));
  const sum = powers.reduce((a, b) => a + b, 0) + (sink ? Math.exp(-most) : 0);
  return powers.map(p => p / sum);
}

// head: q, k, v without biases, and the mask; bias: b_q, b_k, b_v; on: rotary, sink, qk_norm, softcap, bfloat16.
// Returns q and k as they meet, the logits z (T × T), the weights p (T × T) and the outputs o (T × D).
function attend(head, bias, on, model) {
  const stored = on.bfloat16 ? rows => rows.map(row => row.map(bfloat16)) : rows => rows;
  let q = stored(plus(head.q, bias.b_q)), k = stored(plus(head.k, bias.b_k));
  const v = stored(plus(head.v, bias.b_v));
  if (on.qk_norm) [q, k] = [stored(normalise(q, model.norms.q)), stored(normalise(k, model.norms.k))];
  if (on.rotary) [q, k] = [stored(rotate(q, model.rotation)), stored(rotate(k, model.rotation))];
  let z = stored(q.map(query => k.map(key => dot(query, key) * model.scale)));
  if (on.softcap) z = stored(z.map(row => row.map(x => model.cap.at * Math.tanh(x / model.cap.at))));
  z = z.map((row, i) => row.map((x, j) => x + head.mask[i][j]));
  const p = z.map(row => softmax(row, on.sink));
  const o = p.map(row => v[0].map((_, d) => row.reduce((sum, weight, j) => sum + weight * v[j][d], 0)));
  return { q, k, v, z, p, o };
}

// Half the sum of |p − p'| over a row; the most over all rows.
const variation = (p, other) => p.reduce((sum, x, j) => sum + Math.abs(x - other[j]), 0) / 2;
const mostVariation = (p, other) => Math.max(...p.map((row, i) => variation(row, other[i])));

// osc of what b_q adds to the logits of row i: the largest difference between two keys in sight; a sink gets nothing.
function oscillation(before, after, i, sink) {
  const added = [...after.z[i].map((z, j) => z - before.z[i][j]), ...(sink ? [0] : [])].filter(Number.isFinite);
  return added.length ? Math.max(...added) - Math.min(...added) : 0;
}

// The corners of the convex hull of points in the plane, counterclockwise.
function hull(points) {
  const sorted = [...points].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const turn = (o, a, b) => (a[0] - o[0]) * (b[1] - o[1]) - (a[1] - o[1]) * (b[0] - o[0]);
  const chain = list => list.reduce((kept, point) => {
    while (kept.length > 1 && turn(kept.at(-2), kept.at(-1), point) <= 0) kept.pop();
    return [...kept, point];
  }, []);
  return [...chain(sorted).slice(0, -1), ...chain(sorted.reverse()).slice(0, -1)];
}
