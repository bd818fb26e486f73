// Actions of the review page. They are sent one after the other, so that each sees what the one before it has changed.

const DONE = { accepted: "accepted-done", rejected: "rejected-done" };
let generating = null; // AbortController while captions are generated again
let lastAction = Promise.resolve();

/** Run `action` when those before it have ended, and return what it returns. */
function inTurn(action) {
  const result = lastAction.then(action);
  lastAction = result.catch(() => {});
  return result;
}

/** Send an action, and show what became of it; throws a Problem if it was refused. */
async function send(path, body, message) {
  const answer = await (await post(path, { ...body, reviewer })).json();
  updateRows(answer.rows);
  announce(t(message, number(answer.count)));
  await showStatus();
  return answer;
}

/**
 * Send an action of the person, and keep the focus at its place in the list.
 *
 * `body` is called when the actions before it have ended; what it throws is shown. Returns null if nothing was changed.
 */
function act(path, body, message) {
  const index = Math.max(0, [...rows.keys()].indexOf(current));
  return inTurn(async () => {
    try {
      return { index, count: (await send(path, body(), message)).count };
    } catch (error) {
      showAlert(error.message);
      if (error.status === 409) await search(first, index);
      return null;
    }
  });
}

/** Refuse an action on texts that the person sees but that are not stored. */
function checkStored(numbers) {
  const wanted = new Set(numbers);
  if ([...drafts.values()].some((draft) => wanted.has(draft.row.number))) throw new Problem(t("unsaved-first"));
}

/** Accept or reject the targets; the focus goes on to the next card. */
async function decide(verdict) {
  const numbers = targets(), mine = listing;
  const wasSelection = selected.size > 0;
  const done = await act("/review/changes", () => {
    checkStored(numbers);
    return { changes: numbers.map((one) => ({ number: one, verdict, ...(rows.has(one) ? { shown: rows.get(one).captions } : {}) })), listing: mine };
  }, DONE[verdict]);
  if (!done) return;
  selected.clear();
  showSelection();
  if (wasSelection) { focusCard(current); return; }
  if (done.index + 1 < rows.size) focusCard([...rows.keys()][done.index + 1]);
  else if (first + PAGE < found.length) await search(first + PAGE, 0);
  else focusCard(current);
}

/** Store what the person has typed into a card. What cannot be stored stays in the card, which says so. */
function saveDraft(card) {
  const id = identity(card.row);
  return inTurn(async () => {
    const draft = drafts.get(id);
    if (!draft) return;
    const { row, base } = draft, captions = draft.texts.map((one) => one.trim());
    draft.sent = captions;
    draft.problem = "";
    try {
      await send("/review/changes", { changes: [{ number: row.number, verdict: "edited", captions, shown: base }], listing: row.listing }, "edited-done");
    } catch (error) {
      draft.problem = error.message;
      if (error.status === 409) await reload(row);
      else showAlert(t("unsaved-why", error.message));
    }
    if (cards.has(id)) showDraft(cards.get(id));
  });
}

/** Show what a record is now. */
async function reload(row) {
  try {
    updateRows((await (await post("/review/rows", { numbers: [row.number], listing: row.listing })).json()).rows);
  } catch (error) {
    if (error.status === 409) await search(first); // the inputs were listed again
    else showAlert(error.message);
  }
}

async function undo() {
  const done = await act("/review/undo", () => ({}), "undone");
  if (done) await search(first, done.index);
}

async function replaceText() {
  const numbers = targets(), mine = listing;
  const done = await act("/review/replace", () => {
    checkStored(numbers);
    return { numbers, listing: mine, find: $("find").value, replacement: $("replacement").value };
  }, "edited-done");
  if (done) $("selection").textContent = t("edited-done", number(done.count));
}

/**
 * Generate captions again, a few at a time; what is finished is stored at once, also if the rest is stopped.
 *
 * Of records with several captions, the one at `index` is replaced, and the others stay.
 */
async function generateAgain(prompt, style, index) {
  if (generating) return;
  generating = new AbortController();
  const { signal } = generating, numbers = targets(), mine = listing;
  try {
    await inTurn(() => checkStored(numbers));
  } catch (error) {
    generating = null;
    showAlert(error.message);
    return;
  }
  let done = 0, failed = 0, isStale = false;
  const report = () => {
    $("again-progress").value = (done + failed) / numbers.length;
    $("again-status").textContent = t("captioning", number(done), number(numbers.length)) + (failed ? ` · ${t("grid-failed", number(failed))}` : "");
  };
  $("again-bar").hidden = false;
  report();
  await pool(numbers, DATA.max_batch, async (one) => {
    if (signal.aborted) return;
    try {
      const [row] = (await (await post("/review/rows", { numbers: [one], listing: mine }, signal)).json()).rows;
      const maxTokens = style?.max_new_tokens || null;
      const result = await complete([await question(prompt, [await pictureOf(row, true)])], { signal, maxTokens });
      const { text, broken } = await applyStyle(result.text, style, signal, row.texts[index]);
      const replaced = Math.min(index, row.captions.length - 1);
      const captions = row.captions.length > 1 ? row.captions.map((one, at) => (at === replaced ? text : one)) : [text];
      const change = { number: one, verdict: "regenerated", captions, shown: row.captions };
      await inTurn(() => send("/review/changes", { changes: [change], listing: mine }, "edited-done"));
      if (broken.length) showAlert(t("breaks-of", row.key, broken.join("; ")));
      done += 1;
    } catch (error) {
      if (error.name === "AbortError") return;
      failed += 1;
      isStale ||= error.status === 409;
      showAlert(error.message);
    }
    report();
  });
  generating = null;
  $("again-bar").hidden = true;
  announce($("again-status").textContent);
  if (isStale) await search(first);
}
