// Cards of records, and drafts: edits that are not stored yet. A draft stays in its card until the server has stored it
// or the person discards it, whatever happens to the record meanwhile.

let cards = new Map(); // identity of an input -> its card: { row, element, areas, ... }
// Identity of an input -> { row, base: the captions that were edited, texts: what they are now, sent: texts that the
// server got, problem: why it did not store them }
const drafts = new Map();

/** Return what identifies an input, also after the job has listed its inputs again. */
function identity(row) {
  return `${row.key}\n${row.source}`;
}

function isSame(texts, others) {
  return texts.map((one) => one.trim()).join("\n") === others.map((one) => one.trim()).join("\n");
}

/** Show rows as cards, after those with a draft that are not among them. A text in which the person types stays. */
function showRows(shown) {
  for (const row of shown) if (drafts.has(identity(row))) drafts.get(identity(row)).row = row;
  const numbers = new Set(shown.map((row) => row.number));
  const all = [...[...drafts.values()].map((draft) => draft.row).filter((row) => !numbers.has(row.number)), ...shown];
  rows = new Map(all.map((row) => [row.number, row]));
  const earlier = cards;
  cards = new Map(all.map((row) => {
    const old = earlier.get(identity(row));
    const isTyping = old && old.areas.includes(document.activeElement);
    return [identity(row), isTyping ? old : newCard(row)];
  }));
  placeElements([...cards.values()].map((card) => card.element));
  for (const row of all) fillCard(cards.get(identity(row)), row);
  $("empty").hidden = rows.size > 0;
  $("page").textContent = found.length ? t("page-of", number(first + 1), number(first + shown.length), number(found.length)) : "";
  $("previous").disabled = first === 0;
  $("next").disabled = first + PAGE >= found.length;
  if (!rows.has(current)) current = rows.keys().next().value ?? null;
  for (const card of cards.values()) card.element.tabIndex = card.row.number === current ? 0 : -1;
  showSelection();
  loadImages();
}

/** Put elements into the list without taking out one that stays: that would end its focus. */
function placeElements(elements) {
  const list = $("cards");
  for (const old of [...list.children]) if (!elements.includes(old)) old.remove();
  elements.forEach((element, index) => {
    if (list.children[index] === element) return;
    if (element.contains(document.activeElement)) while (list.children[index] !== element) list.append(list.children[index]);
    else list.insertBefore(element, list.children[index] || null);
  });
}

function newCard(row) {
  const card = { row, areas: [] };
  card.check = make("input", { type: "checkbox", change: () => toggle(card.row.number) });
  card.name = make("span", { className: "name grow" });
  card.badge = make("span", {});
  card.error = make("p", { className: "problem" });
  card.notes = make("span", { className: "info" });
  card.problem = make("p", { className: "problem" });
  card.stored = make("p", { className: "stored" });
  card.unsaved = make("div", { className: "unsaved", hidden: true }, card.problem, card.stored,
    make("div", { className: "row" },
      make("button", { className: "save", click: () => overwrite(card) }, t("unsaved-save")),
      make("button", { className: "quiet discard", click: () => discardDraft(card) }, t("unsaved-discard"))));
  card.image = make("img", { alt: "", hidden: true });
  card.text = make("div", { className: "text" }, make("span", { className: "row head" }, card.check, card.name, card.badge), card.error, card.notes, card.unsaved);
  card.element = make("li", { className: "card", tabIndex: -1, focusin: () => { setCurrent(card.row.number); } }, make("div", { className: "picture" }, card.image), card.text);
  return card;
}

/** Show a row in a card; texts that somebody edits stay. */
function fillCard(card, row) {
  card.row = row;
  card.element.id = `card-${row.number}`;
  card.check.setAttribute("aria-label", t("select", row.source));
  Object.assign(card.name, { title: row.source, textContent: row.key });
  Object.assign(card.error, { textContent: row.error || "", hidden: !row.error });
  Object.assign(card.notes, { textContent: row.notes.join("; "), hidden: !row.notes.length });
  fillTexts(card);
  showDraft(card);
}

function fillTexts(card) {
  const texts = drafts.get(identity(card.row))?.texts || (card.row.captions.length ? card.row.captions : [""]);
  if (card.areas.length !== texts.length) {
    for (const area of card.areas) area.remove();
    card.areas = texts.map(() => make("textarea", { "aria-label": t("caption-of", card.row.source), input: () => noteDraft(card), change: () => saveDraft(card), keydown: (event) => keyInText(event, card) }));
    card.unsaved.before(...card.areas);
  }
  card.areas.forEach((area, index) => { if (area.value !== texts[index]) area.value = texts[index]; });
}

/** Show the verdict, or that a draft is not stored, why, and what the record has instead. */
function showDraft(card) {
  const { row } = card, draft = drafts.get(identity(row));
  const isStale = draft !== undefined && !isSame(draft.base, row.captions);
  const isUnsaved = isStale || Boolean(draft?.problem);
  const verdict = isUnsaved || row.error ? "failed" : row.verdict;
  Object.assign(card.badge, { className: `badge ${verdict}`, textContent: t(isUnsaved ? "unsaved" : row.error ? "failed" : WORDS_OF_VERDICT[verdict]) });
  card.unsaved.hidden = !isUnsaved;
  card.stored.hidden = !isStale;
  if (!isUnsaved) return;
  card.problem.textContent = isStale ? t("unsaved-stale") : t("unsaved-why", draft.problem);
  card.stored.textContent = t("unsaved-stored", row.captions.join("\n") || row.error || "—");
}

/** Take over what the person has typed. */
function noteDraft(card) {
  const id = identity(card.row), texts = card.areas.map((area) => area.value);
  if (isSame(texts, card.row.captions)) drafts.delete(id);
  else if (drafts.has(id)) drafts.get(id).texts = texts;
  else drafts.set(id, { row: card.row, base: card.row.captions, texts, problem: "" });
  showDraft(card);
}

/** Store a draft in place of what its card shows that the record has now. */
function overwrite(card) {
  const draft = drafts.get(identity(card.row));
  if (!draft) return;
  draft.base = card.row.captions;
  saveDraft(card);
}

function discardDraft(card) {
  drafts.delete(identity(card.row));
  fillCard(card, card.row);
  card.element.focus();
}

/** Show rows as the server has them now, where they have cards. */
function updateRows(changed) {
  for (const row of changed) {
    const draft = drafts.get(identity(row)), card = cards.get(identity(row));
    if (draft) {
      draft.row = row;
      // Stored, perhaps with an answer that was lost; what was typed meanwhile is an edit of it.
      if (draft.sent && isSame(draft.sent, row.captions)) draft.base = row.captions;
      if (isSame(draft.texts, row.captions)) drafts.delete(identity(row));
    }
    if (!card) continue;
    rows.set(row.number, row);
    fillCard(card, row);
  }
  showSelection();
}

/** Find the inputs of drafts in another list of inputs; return whether the search that asked is still the last one. */
async function moveDrafts(newListing, mine) {
  for (const [id, draft] of [...drafts]) {
    if (draft.row.listing === newListing) continue;
    const answer = await (await post("/review/find", { search: draft.row.source, count: 200 })).json();
    if (mine !== lookup) return false;
    const row = answer.rows.find((one) => identity(one) === id);
    if (row) draft.row = row;
    else { drafts.delete(id); showAlert(t("unsaved-gone", draft.row.source, draft.texts.join("\n"))); }
  }
  return true;
}

// Images

const pictures = new Map(); // record number -> URL of its image

function forgetPictures(which) {
  for (const [one, url] of pictures) if (which(one)) { URL.revokeObjectURL(url); pictures.delete(one); }
}

/** Return an input's image; the key makes sure that it is still this one's. */
async function pictureOf(row, isFull = false) {
  const key = encodeURIComponent(row.key);
  return (await request(`/review/image/${row.number}?key=${key}&listing=${row.listing}${isFull ? "&full=1" : ""}`)).blob();
}

async function loadImages() {
  forgetPictures((one) => !rows.has(one));
  await pool([...cards.values()], 4, async (card) => {
    const one = card.row.number, mine = listing;
    if (cards.get(identity(card.row)) !== card) return;
    try {
      if (!pictures.has(one)) {
        const blob = await pictureOf(card.row);
        if (mine !== listing) return;
        pictures.set(one, URL.createObjectURL(blob));
      }
      Object.assign(card.image, { src: pictures.get(one), alt: card.row.source, hidden: false });
    } catch (error) { card.image.parentElement?.replaceChildren(t("no-image")); }
  });
}
