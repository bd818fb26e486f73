// The review page: cards of records, and actions on the selected ones, or on the one that has the focus.

const PAGE = 24;
const WORDS_OF_VERDICT = { none: "unreviewed", regenerated: "regenerated", accepted: "accepted", edited: "edited", rejected: "rejected" };
const DONE = { accepted: "accepted-done", rejected: "rejected-done" };
let found = []; // numbers of all records that the filter lets through
let first = 0; // index in `found` of the first card
let listing = ""; // the job's list of inputs, which says what the numbers mean
let rows = new Map(); // record number -> row, of the cards
let current = null; // number of the record that has the focus
const selected = new Set();
let generating = null; // AbortController while captions are generated again
let lookup = 0; // counts searches, so that an older answer does not replace a newer one

// Finding

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
    if (listing !== answer.listing) { selected.clear(); forgetPictures(() => true); }
    listing = answer.listing;
    found = answer.numbers;
    first = start;
    rows = new Map(answer.rows.map((row) => [row.number, row]));
    if (!rows.size && start) { await search(0); return; }
    showCards();
    if (focus !== null && found.length) focusCard(found[Math.min(first + focus, first + rows.size - 1)]);
  } catch (error) { showAlert(error.message); }
}

async function showStatus() {
  try {
    const status = await (await request("/review/status")).json();
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

// Cards

function showCards() {
  $("cards").replaceChildren(...[...rows.values()].map(cardElement));
  $("empty").hidden = rows.size > 0;
  $("page").textContent = found.length ? t("page-of", number(first + 1), number(first + rows.size), number(found.length)) : "";
  $("previous").disabled = first === 0;
  $("next").disabled = first + PAGE >= found.length;
  if (!rows.has(current)) current = rows.keys().next().value ?? null;
  showSelection();
  loadImages();
}

function cardElement(row) {
  const verdict = row.error ? "failed" : row.verdict;
  const text = make("div", { className: "text" },
    make("span", { className: "row head" },
      make("input", { type: "checkbox", checked: selected.has(row.number), "aria-label": t("select", row.source), change: () => toggle(row.number) }),
      make("span", { className: "name grow", title: row.source }, row.key),
      make("span", { className: `badge ${verdict}` }, t(row.error ? "failed" : WORDS_OF_VERDICT[verdict]))),
    row.error ? make("p", { className: "problem" }, row.error) : null,
    row.notes.length ? make("span", { className: "info" }, row.notes.join("; ")) : null);
  const texts = row.captions.length ? row.captions : [""];
  const areas = texts.map((caption) => make("textarea", { value: caption, "aria-label": t("caption-of", row.source), change: () => saveEdit(row, areas), keydown: (event) => keyInText(event, row, areas) }));
  text.append(...areas);
  return make("li", { className: "card", id: `card-${row.number}`, tabIndex: row.number === current ? 0 : -1, focusin: () => { setCurrent(row.number); } },
    make("div", { className: "picture" }, make("img", { alt: "", hidden: true })), text);
}

const pictures = new Map(); // record number -> URL of its image

function forgetPictures(which) {
  for (const [one, url] of pictures) if (which(one)) { URL.revokeObjectURL(url); pictures.delete(one); }
}

async function loadImages() {
  forgetPictures((one) => !rows.has(one));
  await pool([...rows.keys()], 4, async (one) => {
    const picture = document.querySelector(`#card-${one} .picture`);
    if (!picture) return;
    try {
      if (!pictures.has(one)) {
        const mine = listing, key = encodeURIComponent(rows.get(one).key);
        const blob = await (await request(`/review/image/${one}?key=${key}&listing=${mine}`)).blob();
        if (mine !== listing) return;
        pictures.set(one, URL.createObjectURL(blob));
      }
      const image = picture.querySelector("img");
      Object.assign(image, { src: pictures.get(one), alt: rows.get(one)?.source || "", hidden: false });
    } catch (error) { picture.textContent = t("no-image"); }
  });
}

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

// Actions

/** Send a change, show what became of it, and keep the focus at its place in the list. */
async function act(path, body, message) {
  const index = Math.max(0, [...rows.keys()].indexOf(current));
  try {
    const answer = await (await post(path, body)).json();
    announce(t(message, number(answer.count)));
    for (const row of answer.rows) if (rows.has(row.number)) replaceCard(row);
    await showStatus();
    return { index, count: answer.count };
  } catch (error) {
    showAlert(error.message);
    if (error.status === 409) await search(first, index);
    return null;
  }
}

function replaceCard(row) {
  const old = $(`card-${row.number}`), hadFocus = old.contains(document.activeElement);
  rows.set(row.number, row);
  old.replaceWith(cardElement(row));
  if (hadFocus) $(`card-${row.number}`).focus();
  const picture = pictures.get(row.number), image = $(`card-${row.number}`).querySelector("img");
  if (picture) Object.assign(image, { src: picture, alt: row.source, hidden: false });
  showSelection();
}

/** Accept or reject the targets; the focus goes on to the next card. */
async function decide(verdict) {
  const numbers = targets();
  const changes = numbers.map((one) => ({ number: one, verdict, ...(rows.has(one) ? { shown: rows.get(one).captions } : {}) }));
  const wasSelection = selected.size > 0;
  const done = await act("/review/changes", { changes, listing }, DONE[verdict]);
  if (!done) return;
  selected.clear();
  showSelection();
  if (wasSelection) { focusCard(current); return; }
  if (done.index + 1 < rows.size) focusCard([...rows.keys()][done.index + 1]);
  else if (first + PAGE < found.length) await search(first + PAGE, 0);
  else focusCard(current);
}

async function saveEdit(row, areas) {
  const captions = areas.map((area) => area.value.trim());
  if (captions.join("\n") === row.captions.join("\n")) return;
  await act("/review/changes", { changes: [{ number: row.number, verdict: "edited", captions, shown: row.captions }], listing: row.listing }, "edited-done");
}

async function undo() {
  const done = await act("/review/undo", {}, "undone");
  if (done) await search(first, done.index);
}

async function replaceText() {
  const done = await act("/review/replace", { numbers: targets(), listing, find: $("find").value, replacement: $("replacement").value }, "edited-done");
  if (done) $("selection").textContent = t("edited-done", number(done.count));
}

/** Generate captions again, a few at a time; what is finished is stored at once, also if the rest is stopped. */
async function generateAgain(prompt, maxTokens) {
  if (generating) return;
  generating = new AbortController();
  const numbers = targets(), mine = listing;
  let done = 0, failed = 0;
  const report = () => {
    $("again-progress").value = done / numbers.length;
    $("again-status").textContent = t("captioning", number(done), number(numbers.length)) + (failed ? ` · ${t("grid-failed", failed)}` : "");
  };
  $("again-bar").hidden = false;
  report();
  await pool(numbers, DATA.max_batch, async (one) => {
    if (generating.signal.aborted) return;
    try {
      const blob = await (await request(`/review/image/${one}?full=1&listing=${mine}`)).blob();
      const result = await complete([await question(prompt, [blob])], { signal: generating.signal, maxTokens });
      await act("/review/changes", { changes: [{ number: one, verdict: "regenerated", captions: [result.text] }], listing: mine }, "edited-done");
      done += 1;
    } catch (error) {
      if (error.name !== "AbortError") { failed += 1; showAlert(error.message); }
    }
    report();
  });
  generating = null;
  $("again-bar").hidden = true;
  announce($("again-status").textContent);
}
