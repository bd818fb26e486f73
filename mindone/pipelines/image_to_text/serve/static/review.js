// The review page: what is found, and which records are selected.

const PAGE = 24;
const REVIEWER_KEY = "share4v.reviewer";
const WORDS_OF_VERDICT = { none: "unreviewed", regenerated: "regenerated", accepted: "accepted", edited: "edited", rejected: "rejected" };
let found = []; // numbers of all records that the filter lets through
let first = 0; // index in `found` of the first card
let listing = ""; // the job's list of inputs, which says what the numbers mean
let rows = new Map(); // record number -> row, of the cards
let current = null; // number of the record that has the focus
const selected = new Set();
let lookup = 0; // counts searches, so that an older answer does not replace a newer one
const reviewer = read("localStorage", REVIEWER_KEY) || newId(); // whose actions this page undoes
write("localStorage", REVIEWER_KEY, reviewer);

function filters() {
  const wanted = { sort: $("sort").value, search: $("search").value };
  if ($("verdict").value) wanted.verdicts = [$("verdict").value];
  if ($("kind").value) wanted[$("kind").value] = true;
  for (const [id, name] of [["min-words", "min_words"], ["max-words", "max_words"]]) {
    if ($(id).value !== "") wanted[name] = Number($(id).value);
  }
  return wanted;
}

/** Ask for the records of the filter, and show a page of them. */
async function search(start = 0, focus = null) {
  const mine = ++lookup;
  try {
    const answer = await (await post("/review/find", { ...filters(), start, count: PAGE })).json();
    if (mine !== lookup) return;
    if (listing !== answer.listing) {
      selected.clear();
      forgetPictures(() => true);
      if (drafts.size && !(await moveDrafts(answer.listing, mine))) return;
    }
    listing = answer.listing;
    found = answer.numbers;
    first = start;
    if (!answer.rows.length && start) { await search(0); return; }
    showRows(answer.rows);
    if (focus !== null && found.length) focusCard(found[Math.min(first + focus, first + answer.rows.length - 1)]);
  } catch (error) { showAlert(error.message); }
}

async function showStatus() {
  try {
    const status = await (await request(`/review/status?reviewer=${reviewer}`)).json();
    const reviewed = status.accepted + status.edited + status.rejected;
    $("counts").textContent = t("review-counts", number(reviewed), number(status.records), status.records < status.inputs ? t("review-running", number(status.inputs)) : "");
    $("undo").disabled = !status.can_undo;
    $("note").hidden = !status.problem;
    $("note").textContent = status.problem ? t("review-problem", status.problem) : "";
    document.body.dataset.unpublished = status.unpublished;
  } catch (error) {
    $("counts").textContent = error.status === 401 ? t("server-key") : t("server-gone");
  }
}

// Selection

function setCurrent(one) {
  if (current === one) return;
  for (const [value, other] of [[-1, current], [0, one]]) { const card = $(`card-${other}`); if (card) card.tabIndex = value; }
  current = one;
  showSelection();
}

function focusCard(one) {
  setCurrent(one);
  $(`card-${one}`)?.focus();
}

function toggle(one) {
  if (!selected.delete(one)) selected.add(one);
  showSelection();
}

function showSelection() {
  for (const one of rows.keys()) {
    const card = $(`card-${one}`);
    card.classList.toggle("selected", selected.has(one));
    card.querySelector("input[type=checkbox]").checked = selected.has(one);
  }
  $("selection").textContent = selected.size ? t("selected", number(selected.size)) : "";
  const has = selected.size > 0 || current !== null;
  for (const id of ["accept", "reject", "open-replace", "open-again"]) $(id).disabled = !has;
  $("select-none").disabled = !selected.size;
}

/** Return the records that an action is about. */
function targets() {
  return selected.size ? [...selected] : current === null ? [] : [current];
}
