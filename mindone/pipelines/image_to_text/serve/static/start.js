// The page with chats and the grid: views, dropping and pasting, and the start.

function showView(name) {
  for (const one of ["chat", "grid"]) {
    $(one).hidden = one !== name;
    if (one === name) $(`view-${one}`).setAttribute("aria-current", "page");
    else $(`view-${one}`).removeAttribute("aria-current");
  }
  $("side").hidden = name !== "chat";
  $("menu").hidden = name !== "chat";
  write("localStorage", "share4v.view", name);
}

/** Take images that were dropped or pasted: a folder, or more than a question can have, is for the grid. */
function takeIn(files) {
  const images = imagesOf(files);
  if (!images.length) return;
  if ($("chat").hidden || files.some((file) => file.inFolder)) {
    addCards(images);
    showView("grid");
  } else attach(images);
}

function startDropping() {
  let depth = 0; // of the elements that the pointer has entered
  const show = (change) => { depth = Math.max(0, depth + change); $("drop-hint").hidden = !depth; };
  const hasFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  addEventListener("dragenter", (event) => { if (hasFiles(event)) show(1); });
  addEventListener("dragleave", (event) => { if (hasFiles(event)) show(-1); });
  addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(-depth);
    takeIn(await droppedFiles(event.dataTransfer));
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files || [])];
    if (files.length) { event.preventDefault(); takeIn(files); }
  });
}

function renderAll() {
  applyLook();
  fillStyles($("style"), (style) => {
    styleOfQuestion = style;
    if (style) $("question").value = style.prompt;
    $("question").focus();
  });
  fillStyles($("grid-style"), (style) => {
    gridStyle = style;
    if (style) $("grid-prompt").value = style.prompt;
  });
  renderMessages();
  renderAttached();
  renderCards();
  showChats();
  watchServer();
}

async function start() {
  applyLook();
  await openDatabase();
  chat = newChat();
  $("grid-prompt").value = DATA.styles[0].prompt;
  for (const name of ["chat", "grid"]) $(`view-${name}`).addEventListener("click", () => showView(name));
  addEventListener("keydown", (event) => { if (event.key === "Escape") toggleHistory(false); });
  startSettings(renderAll);
  startDropping();
  startChats();
  await startGrid();
  const [latest] = (await store.all("chats")).sort((one, other) => other.updated - one.updated);
  if (latest) chat = latest;
  showView(read("localStorage", "share4v.view") === "grid" ? "grid" : "chat");
  renderAll();
  document.body.dataset.ready = "true";
}

start();
