// The keyboard of the review page, and its start.

// Key -> [what it does, the text that explains it]. They work while no text field has the focus.
const KEYS = {
  "a": [() => decide("accepted"), "accept"],
  "r": [() => decide("rejected"), "reject"],
  "e": [() => edit(), "key-edit"],
  "Enter": [() => edit(), "key-edit"],
  "x": [() => { if (current !== null) toggle(current); }, "key-select"],
  " ": [() => { if (current !== null) toggle(current); }, "key-select"],
  "ArrowRight": [() => move(1), "key-next"],
  "j": [() => move(1), "key-next"],
  "ArrowLeft": [() => move(-1), "key-previous"],
  "k": [() => move(-1), "key-previous"],
  "ArrowDown": [() => move(columns()), "key-down"],
  "ArrowUp": [() => move(-columns()), "key-up"],
  "]": [() => turn(1), "next-page"],
  "[": [() => turn(-1), "previous-page"],
  "u": [() => undo(), "undo"],
  "s": [() => openDialog("replace-dialog"), "replace"],
  "g": [() => { if (DATA.has_model) openDialog("again-dialog"); }, "again"],
  "/": [() => $("search").focus(), "search"],
  "?": [() => openDialog("keys-dialog"), "keys"],
};

function edit() {
  const area = $(`card-${current}`)?.querySelector("textarea");
  area?.focus();
}

function columns() {
  return getComputedStyle($("cards")).gridTemplateColumns.split(" ").length;
}

function move(by) {
  const numbers = [...rows.keys()], index = numbers.indexOf(current) + by;
  if (index >= 0 && index < numbers.length) focusCard(numbers[index]);
  else if (index >= numbers.length) turn(1);
  else turn(-1);
}

async function turn(by) {
  const start = first + by * PAGE;
  if (start >= 0 && start < found.length) await search(start, by > 0 ? 0 : PAGE - 1);
}

/** In a text: Ctrl+Enter stores it and leaves it, Escape gives the change up. */
function keyInText(event, card) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); card.element.focus(); }
  if (event.key === "Escape") discardDraft(card);
}

function keyPressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const target = event.target;
  if (target.closest("textarea, select, input:not([type=checkbox])")) {
    if (event.key === "Escape" && target.closest("#filters") && current !== null) focusCard(current);
    return;
  }
  if (["Enter", " "].includes(event.key) && target.closest("button, a, input")) return; // presses the button itself
  const [action] = KEYS[event.key] || [];
  if (!action) return;
  event.preventDefault();
  action();
}

/** Offer the captions of which one is generated again, by their names if the job has named texts. */
function fillTextChoice() {
  const several = [...rows.values()].filter((row) => row.captions.length > 1);
  const most = several.reduce((found, row) => (row.captions.length > found.captions.length ? row : found), { captions: [""], texts: [] });
  $("again-text").replaceChildren(...most.captions.map((_, index) => make("option", { value: String(index) }, most.texts[index] || number(index + 1))));
  $("again-text-field").hidden = most.captions.length < 2;
}

function openDialog(id) {
  if (id !== "keys-dialog" && !targets().length) return;
  if (id === "again-dialog") fillTextChoice();
  $(id).showModal();
}

function fillChoices(id, choices) {
  const chosen = $(id).value;
  $(id).replaceChildren(...choices.map(([value, key]) => make("option", { value }, t(key))));
  $(id).value = choices.some(([value]) => value === chosen) ? chosen : choices[0][0];
}

function renderAll() {
  applyLook();
  fillChoices("verdict", [["", "all-verdicts"], ...Object.entries(WORDS_OF_VERDICT)]);
  fillChoices("kind", [["", "all-kinds"], ["failed", "failed"], ["breaks_rules", "breaks-rules"], ["duplicates", "duplicates"]]);
  fillChoices("sort", [["number", "sort-number"], ["shortest", "sort-shortest"], ["longest", "sort-longest"]]);
  fillStyles($("again-style"), (style) => { if (style) $("again-prompt").value = style.prompt; });
  const texts = new Map();
  for (const [key, [, text]] of Object.entries(KEYS)) {
    if (text !== "again" || DATA.has_model) texts.set(text, [...(texts.get(text) || []), key === " " ? t("space") : key]);
  }
  $("keys").replaceChildren(...[...texts, ["key-save", ["Ctrl+Enter"]], ["key-cancel", ["Escape"]]].flatMap(([text, keys]) => [
    make("dt", {}, ...keys.map((key) => make("kbd", {}, key))), make("dd", {}, t(text)),
  ]));
  showStatus();
  watchServer();
  return search(first);
}

async function start() {
  applyLook();
  $("delete-all").hidden = true;
  $("open-again").hidden = !DATA.has_model;
  startSettings(renderAll);
  $("again-prompt").value = DATA.styles[0].prompt;
  let typing = null;
  $("filters").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => { selected.clear(); search(); }, 250); });
  $("filters").addEventListener("submit", (event) => { event.preventDefault(); if (current !== null) focusCard(current); });
  for (const [id, action] of Object.entries({
    "accept": () => decide("accepted"), "reject": () => decide("rejected"), "undo": undo,
    "open-replace": () => openDialog("replace-dialog"), "open-again": () => openDialog("again-dialog"), "open-keys": () => openDialog("keys-dialog"),
    "select-all": () => { found.forEach((one) => selected.add(one)); showSelection(); },
    "select-none": () => { selected.clear(); showSelection(); },
    "previous": () => turn(-1), "next": () => turn(1), "again-stop": () => generating?.abort(),
  })) $(id).addEventListener("click", action);
  for (const cancel of document.querySelectorAll(".cancel")) cancel.addEventListener("click", () => cancel.closest("dialog").close());
  for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("close", () => { if (current !== null && dialog.id !== "settings") $(`card-${current}`)?.focus(); });
  $("replace-form").addEventListener("submit", replaceText);
  $("again-form").addEventListener("submit", () => {
    const style = DATA.styles.find((one) => one.name === $("again-style").value);
    generateAgain($("again-prompt").value, style, Number($("again-text").value));
  });
  addEventListener("keydown", keyPressed);
  addEventListener("beforeunload", (event) => { if (drafts.size) event.preventDefault(); });
  await renderAll();
  setInterval(showStatus, 3000);
  document.body.dataset.ready = "true";
}

start();
