// Captions: many images in a grid, captioned a few at a time; captions can be edited and saved.

let cards = []; // { id, name, blob, caption, prompt, order }; `element` is what shows it
let captioning = null; // AbortController while captions are generated
let gridStyle = null; // the chosen style of captions

function stored({ id, name, blob, caption, prompt, order }) {
  return { id, name, blob, caption, prompt, order };
}

/** Store a card, unless it was removed meanwhile. */
async function keepCard(card) {
  if (cards.includes(card)) await store.put("cards", stored(card));
}

async function addCards(images) {
  const known = new Set(cards.map((card) => card.name));
  for (const { name, blob } of images) {
    const card = { id: newId(), name: uniqueName(name, known), blob, caption: "", prompt: "", order: cards.length };
    cards.push(card);
    $("cards").append(cardElement(card));
    await keepCard(card);
  }
  showGrid();
}

/** Captions are saved under the images' names, so two images must not have the same. */
function uniqueName(name, known) {
  const [, stem, suffix] = name.match(/^(.*?)(\.[^./]*)?$/);
  let unique = name;
  for (let count = 2; known.has(unique); count++) unique = `${stem} (${count})${suffix || ""}`;
  known.add(unique);
  return unique;
}

function cardElement(card) {
  const url = URL.createObjectURL(card.blob);
  card.status = make("span", { className: "info" });
  card.area = make("textarea", {
    value: card.caption, "aria-label": t("caption-of", card.name),
    change: () => { card.caption = card.area.value.trim(); keepCard(card); showGrid(); },
  });
  card.element = make(
    "li", { className: "card" },
    make("div", { className: "picture" }, make("img", { src: url, alt: card.name, load: () => URL.revokeObjectURL(url) })),
    make("div", { className: "text" },
      make("span", { className: "name" }, card.name), card.area,
      make("div", { className: "tools" },
        make("button", { className: "quiet small", type: "button", click: () => captionCards([card]) }, t("regenerate")),
        make("button", { className: "quiet small", type: "button", click: () => copy(card.caption) }, t("copy")),
        make("button", { className: "quiet small", type: "button", "aria-label": t("remove", card.name), title: t("remove", card.name), click: () => removeCard(card) }, "✕"),
        card.status)),
  );
  return card.element;
}

async function removeCard(card) {
  const next = card.element.nextElementSibling || card.element.previousElementSibling;
  cards = cards.filter((one) => one !== card);
  card.element.remove();
  await store.remove("cards", card.id);
  showGrid();
  (next?.querySelector("textarea") || $("grid-files")).focus();
}

function showGrid() {
  $("grid-empty").hidden = cards.length > 0;
  const count = cards.filter((card) => card.caption).length;
  $("caption-all").hidden = captioning !== null;
  $("grid-stop").hidden = captioning === null;
  if (!captioning) $("grid-status").textContent = cards.length ? t("grid-done", number(count)) : "";
  for (const id of ["save-txt", "save-jsonl"]) $(id).disabled = !count;
  $("caption-all").disabled = !cards.length;
  $("grid-clear").disabled = !cards.length;
}

/** Caption images; the server decodes them together, so as many requests as it has slots are sent at once. */
async function captionCards(chosen) {
  if (captioning) return;
  const prompt = $("grid-prompt").value.trim() || DATA.styles[0].prompt;
  captioning = new AbortController();
  let done = 0, failed = 0, tokens = 0;
  const started = performance.now();
  const report = () => {
    $("grid-progress").hidden = false;
    $("grid-progress").value = done / chosen.length;
    const speed = number(tokens / Math.max((performance.now() - started) / 1000, 0.001), 1);
    $("grid-status").textContent = `${t("captioning", number(done), number(chosen.length))} · ${speed} tokens/s`;
  };
  showGrid();
  report();
  await pool(chosen, DATA.max_batch, async (card) => {
    if (captioning.signal.aborted) return;
    try {
      const result = await captionOne(card, prompt);
      tokens += result.timings?.predicted_n || 0;
    } catch (error) {
      card.status.textContent = error.name === "AbortError" ? t("stopped") : error.message;
      failed += 1;
    }
    done += 1;
    report();
  });
  captioning = null;
  $("grid-progress").hidden = true;
  showGrid();
  if (failed) $("grid-status").textContent += ` · ${t("grid-failed", failed)}`;
  announce($("grid-status").textContent);
}

async function captionOne(card, prompt) {
  const on = {
    progress: ({ share, text }) => { card.status.textContent = share === null ? "" : text; },
    text: (text) => { card.area.value = text; },
  };
  const messages = [await question(prompt, [card.blob])];
  const { signal } = captioning, style = gridStyle;
  const result = await complete(messages, { signal, maxTokens: style?.max_new_tokens || null, on });
  const { text, broken } = await applyStyle(result.text, style, signal);
  Object.assign(card, { caption: text, prompt });
  card.area.value = card.caption;
  const breaks = broken.length ? [t("breaks", broken.join("; "))] : [];
  card.status.textContent = [speedText(result.timings, result.finishReason), ...breaks].filter(Boolean).join(" · ");
  await keepCard(card);
  return result;
}

function captioned() {
  const found = cards.filter((card) => card.caption);
  if (!found.length) showAlert(t("nothing-to-save"));
  return found;
}

/** Return the .txt names of cards, no two alike: cat.txt, but cat.jpg.txt and cat.png.txt if there are both. */
function textNames(chosen) {
  const stem = (card) => card.name.replace(/\.[^./]*$/, "");
  const counts = new Map(), known = new Set();
  const key = (card) => stem(card).toLowerCase(); // many file systems do not distinguish case
  for (const card of cards) counts.set(key(card), (counts.get(key(card)) || 0) + 1);
  return chosen.map((card) => uniqueName(`${counts.get(key(card)) > 1 ? card.name : stem(card)}.txt`, known));
}

async function saveCardTexts() {
  const found = captioned();
  const names = textNames(found);
  const files = found.map((card, index) => [names[index], `${card.caption}\n`]);
  try {
    if (files.length && (await saveTexts(files, "captions.zip"))) announce(t("saved", files.length));
  } catch (error) {
    showAlert(t("save-failed", error.message));
  }
}

function saveCardLines() {
  const lines = captioned().map((card) => JSON.stringify({ source: card.name, caption: card.caption, prompts: [card.prompt] }));
  if (lines.length) download(new Blob(lines.map((line) => `${line}\n`), { type: "application/jsonl" }), "captions.jsonl");
}

async function startGrid() {
  for (const id of ["grid-files", "grid-folder"]) {
    $(id).addEventListener("change", (event) => { addCards(imagesOf([...event.target.files])); event.target.value = ""; });
  }
  $("grid-form").addEventListener("submit", (event) => { event.preventDefault(); captionCards(cards); });
  $("grid-stop").addEventListener("click", () => captioning?.abort());
  $("save-txt").addEventListener("click", saveCardTexts);
  $("save-jsonl").addEventListener("click", saveCardLines);
  $("grid-clear").addEventListener("click", async () => {
    if (!confirm(t("clear-sure"))) return;
    captioning?.abort();
    cards = [];
    $("cards").replaceChildren();
    showGrid();
    await store.clear("cards");
  });
  cards = (await store.all("cards")).sort((one, other) => one.order - other.order);
  renderCards();
}

function renderCards() {
  $("cards").replaceChildren(...cards.map(cardElement));
  showGrid();
}
