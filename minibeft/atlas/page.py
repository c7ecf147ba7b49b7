"""The atlas: a page that needs nothing else, with one table to search and to sort; and a table for the terminal."""

from collections.abc import Iterator
from typing import Any

from minibeft.errors import shortened
from minibeft.show.grid import Grid
from minibeft.show.page import page
from minibeft.show.record import made_by

HEADER = ("model type", "b_k", "why", "b_v", "why not", "dead entries", "certify")
MOST_ROWS = 40
STYLE = """
body { max-width: 76rem; }
td { vertical-align: top; }
td:first-child, td:nth-child(3) { max-width: 18rem; overflow-wrap: anywhere; }
input { font: inherit; width: 100%; box-sizing: border-box; padding: .4rem .6rem; margin: .5rem 0; }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
td:nth-child(6) { text-align: right; }
@media (max-width: 40rem) {
  table, tbody, tr { display: block; }
  thead tr { display: flex; flex-wrap: wrap; }
  th, td { border: 0; padding: 0 .8rem 0 0; }
  tr { border-bottom: 1px solid #8886; padding: .4rem 0; }
  tr[hidden] { display: none; }
  td { display: inline; overflow-wrap: anywhere; }
  td:first-child, td:nth-child(3) { max-width: none; }
  td:first-child { display: block; font-weight: bold; }
  td:empty { display: none; }
  td:nth-child(2)::before { content: "b_k "; opacity: .75; }
  td:nth-child(4)::before { content: "b_v "; opacity: .75; }
  td:nth-child(6)::before { content: "dead entries "; opacity: .75; }
  td:nth-child(7)::before { content: "certify "; opacity: .75; }
}
""".strip()
SCRIPT = """
const body = document.querySelector("tbody"), rows = [...body.rows], heads = [...document.querySelectorAll("th")];
const box = document.querySelector("input"), count = document.querySelector("output");
function search() {
  const words = box.value.toLowerCase().split(/\\s+/);
  for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  count.textContent = rows.filter(row => !row.hidden).length + " of " + rows.length;
}
function sort(column) {
  const up = heads[column].getAttribute("aria-sort") !== "ascending";
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const text = row => row.cells[column].textContent.replace(/,/g, "");
  rows.sort((a, b) => (up ? 1 : -1) * text(a).localeCompare(text(b), "en", { numeric: true }));
  body.append(...rows);
}
heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.onclick = () => sort(column);
  head.append(button);
});
box.oninput = search;
search();
""".strip()


def finding(record: dict[str, Any]) -> str:
    """The atlas in a few sentences."""
    s, version = record["summary"], record["versions"]["transformers"]
    left = s["types"] - s["audited"] - s["no_softmax"] - s["no_model"] - s["not_installed"]
    parts = [
        f"Of {s['types']} model types of transformers {version}, {s['audited']} were audited: "
        f"b_k does nothing in {s['null']}, nothing in part in {s['partly_null']}, and something in {s['active']}.",
        f"{s['shipped_dead']} ship a key bias of which entries do nothing; b_v folds into the output bias in "
        f"{s['foldable']}.",
        f"certify says the same for {s['compared'] - len(s['disagreements'])} of the {s['compared']} that it knows.",
    ]
    if s["audited"] < s["types"]:
        parts.insert(
            2,
            f"Of those not audited {s['no_softmax']} have no softmax over keys, {s['no_model']} are parts without a "
            f"model of their own, {s['not_installed']} need a package that was not there; {left} could not be made "
            "small or run.",
        )
    if s["largest_null"] and s["smallest_active"]:
        parts.append(
            f"The largest sum that counts as zero is {s['largest_null']:.1e} of its terms, the smallest that does not "
            f"{s['smallest_active']:.1e}."
        )
    return " ".join(parts)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A type's row."""
    if "unaudited" in row:
        return (row["type"], "not audited", row["unaudited"], "", "", "", "")
    without, of = row["k_without"]
    key = f"{row['k']} ({without} of {of})" if row["k"] == "partly null" else row["k"]
    said = "" if row["agrees"] is not False else ": disagrees"
    return (row["type"], key, row["k_why"], row["v"], row["v_why"], f"{row['dead']:,}", row["certify"] + said)


def render(record: dict[str, Any]) -> Iterator[Grid | str]:
    """For the terminal: what was found, and the table where it is short."""
    yield finding(record)
    if len(record["rows"]) <= MOST_ROWS:
        rows = [
            (c[0], "\n".join(filter(None, c[1:3])), "\n".join(filter(None, c[3:5])), *c[5:])
            for c in map(cells, record["rows"])
        ]
        yield Grid("", ("model type", "b_k", "b_v", "dead", "certify (b_k, b_v)"), rows)


def html(record: dict[str, Any]) -> str:
    """The page."""
    note = (
        "Each type is measured on transformers' own model, small and with random weights, in its default "
        "configuration. b_k: what a bias on the key projection can do, whether or not the model has one. Dead "
        "entries: those of key biases that do nothing, in a model of the default size. certify: its verdicts on b_k "
        "and b_v from the configuration alone. "
    )
    box = '<p><input type="search" placeholder="bert, null, gate …" aria-label="search"><output></output></p>'
    return page(
        "What attention biases do in every model of transformers",
        [Grid("Every model type", HEADER, list(map(cells, record["rows"])))],
        [],
        note + shortened(made_by(record)),
        style=STYLE,
        intro=f"<p>{finding(record)}</p>\n{box}",
        script=SCRIPT,
    )
