// Chats: a tree of messages, of which one branch is shown. Editing a question or retrying an answer adds a branch.

const ROOT = "root";
let chat = null; // the one that is shown
let attached = []; // images of the next question: { name, blob }
let running = null; // { node, controller } while an answer is generated
let styleOfQuestion = null;
const objectUrls = new Map(); // image id -> URL
const deleted = new Set(); // ids of chats; an answer that ends later must not store its chat again

function newChat() {
  return {
    id: newId(), title: "", updated: Date.now(),
    nodes: { [ROOT]: { id: ROOT, parent: null, role: ROOT, text: "", images: [], children: [], selected: 0 } },
  };
}

/** Add a message behind `parent`, and select its branch. */
function addNode(parent, role, text, images = []) {
  const node = { id: newId(), parent: parent.id, role, text, images, children: [], selected: 0, info: "", problem: "" };
  chat.nodes[node.id] = node;
  parent.selected = parent.children.push(node.id) - 1;
  return node;
}

/** Return the messages of the branch that is shown. */
function branch(end = null) {
  const found = [];
  for (let node = chat.nodes[ROOT]; node.children.length;) {
    node = chat.nodes[node.children[node.selected]];
    found.push(node);
    if (node.id === end) break;
  }
  return found;
}

async function keepChat(one) {
  if (!deleted.has(one.id)) await store.put("chats", one);
}

async function saveChat() {
  chat.updated = Date.now();
  chat.title ||= (branch()[0]?.text || "").slice(0, 60);
  await keepChat(chat);
  await showChats();
}

async function imageUrl(id) {
  if (!objectUrls.has(id)) {
    const stored = await store.get("images", id);
    objectUrls.set(id, stored ? URL.createObjectURL(stored.blob) : "");
  }
  return objectUrls.get(id);
}

// Asking

async function ask(text, images, parent) {
  const node = addNode(parent, "user", text, images);
  await answer(node);
}

/** Generate an answer to a question of the chat. */
async function answer(questionNode) {
  const node = addNode(questionNode, "assistant", "");
  const own = chat; // another chat may be opened meanwhile
  running = { node, controller: new AbortController() };
  showComposer();
  await renderMessages();
  await saveChat();
  try {
    const messages = [];
    for (const one of branch(questionNode.id)) {
      const blobs = [];
      for (const id of one.images) blobs.push((await store.get("images", id)).blob);
      if (one.role === "user") messages.push(await question(one.text, blobs));
      else messages.push({ role: "assistant", content: one.text });
    }
    const on = { text: (value) => { node.text = value; showText(node); }, progress: showProgress };
    const result = await complete(messages, { signal: running.controller.signal, maxTokens: styleTokens(), on });
    node.info = speedText(result.timings, result.finishReason);
    announce(t("answer-done", node.text));
  } catch (error) {
    if (error.name === "AbortError") node.info = t("stopped");
    else node.problem = error.message;
    announce(node.problem || node.info);
  }
  running = null;
  showProgress(null);
  showComposer();
  if (chat === own) await renderMessages();
  own.updated = Date.now();
  await keepChat(own);
}

function styleTokens() {
  return styleOfQuestion ? Math.max(styleOfQuestion.max_new_tokens, Number(settings.maxTokens) || 0) : null;
}

/** Show the progress of a request; null is the end. */
function showProgress(progress) {
  const bar = $("progress");
  bar.hidden = !progress || progress.share === null;
  if (progress?.share !== null && progress) bar.value = progress.share;
  $("status").textContent = progress ? progress.text : "";
}

function showComposer() {
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
}

// The messages

async function renderMessages() {
  const nodes = branch();
  $("welcome").hidden = nodes.length > 0;
  $("messages").replaceChildren(...(await Promise.all(nodes.map(messageElement))));
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

async function messageElement(node) {
  const images = make("div", { className: "images" });
  for (const id of node.images) {
    const stored = await store.get("images", id);
    images.append(make("img", { src: await imageUrl(id), alt: stored?.name || "" }));
  }
  const element = make(
    "li", { className: `message ${node.role}`, id: `message-${node.id}` },
    make("div", { className: "who" }, t(node.role === "user" ? "you" : "model")),
    node.images.length ? images : null,
    make("div", { className: "body" }, node.text),
    node.problem ? make("p", { className: "problem" }, node.problem) : null,
    running?.node === node ? null : tools(node),
  );
  return element;
}

function showText(node) {
  const body = document.querySelector(`#message-${node.id} .body`);
  if (!body) return;
  const scroller = $("scroller");
  const isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
  body.textContent = node.text;
  if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
}

function tools(node) {
  const row = make("div", { className: "tools" });
  const add = (key, action) => row.append(make("button", { className: "quiet small", click: action }, t(key)));
  const siblings = chat.nodes[node.parent].children;
  if (siblings.length > 1) row.append(...versions(node, siblings));
  add("copy", () => copy(node.text));
  if (node.role === "user") add("edit", () => editMessage(node));
  else add("retry", () => { if (!running) answer(chat.nodes[node.parent]); });
  if (node.info) row.append(make("span", { className: "info" }, node.info));
  return row;
}

function versions(node, siblings) {
  const at = siblings.indexOf(node.id);
  const step = (key, sign, by) => make("button", {
    className: "quiet small", "aria-label": t(key), title: t(key), disabled: running !== null || !siblings[at + by],
    click: async () => {
      chat.nodes[node.parent].selected = at + by;
      await renderMessages();
      await saveChat();
      const shown = document.querySelector(`#message-${siblings[at + by]} button[aria-label="${t(key)}"]`);
      (shown && !shown.disabled ? shown : document.querySelector(`#message-${siblings[at + by]} button:not(:disabled)`))?.focus();
    },
  }, sign);
  return [step("previous-version", "‹", -1), make("span", {}, t("version", at + 1, siblings.length)), step("next-version", "›", 1)];
}

/** Replace a question by a text field; sending it starts another branch. */
function editMessage(node) {
  if (running) return;
  const element = $(`message-${node.id}`);
  const area = make("textarea", { value: node.text, rows: 3, "aria-label": t("question") });
  const send = async () => { if (!running && area.value.trim()) await ask(area.value.trim(), node.images, chat.nodes[node.parent]); };
  const cancel = async () => { await renderMessages(); $(`message-${node.id}`).querySelector("button")?.focus(); };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  element.querySelector(".body").replaceWith(area);
  element.querySelector(".tools").replaceChildren(
    make("button", { className: "primary small", click: send }, t("save-send")),
    make("button", { className: "small", click: cancel }, t("cancel")),
  );
  area.focus();
}

// The images of the next question

function attach(images) {
  const room = DATA.max_images - attached.length;
  attached.push(...images.slice(0, room));
  if (images.length > room) {
    addCards(images.slice(room));
    showAlert(t("too-many", DATA.max_images));
  }
  renderAttached();
  $("question").focus();
}

function renderAttached() {
  $("attached").replaceChildren(...attached.map((image, index) => {
    const url = URL.createObjectURL(image.blob);
    const remove = make("button", {
      type: "button", "aria-label": t("remove", image.name), title: t("remove", image.name),
      click: () => { attached.splice(index, 1); renderAttached(); $("question").focus(); },
    }, "✕");
    return make("li", {}, make("img", { src: url, alt: image.name, load: () => URL.revokeObjectURL(url) }), remove);
  }));
}

async function submitQuestion() {
  const text = $("question").value.trim();
  if (running || (!text && !attached.length)) return;
  const images = attached.map(({ name, blob }) => ({ id: newId(), name, blob }));
  for (const image of images) store.put("images", image); // not awaited: a second Enter must find `running`
  attached = [];
  renderAttached();
  $("question").value = "";
  const nodes = branch();
  await ask(text || DATA.styles[0].prompt, images.map((image) => image.id), nodes.at(-1) || chat.nodes[ROOT]);
}

// The history

async function showChats() {
  const all = (await store.all("chats")).sort((one, other) => other.updated - one.updated);
  $("chats").replaceChildren(...all.map((one) => {
    const title = one.title || t("untitled");
    const item = make(
      "li", {},
      make("button", { className: "open", click: () => openChat(one.id) }, make("span", {}, title)),
      make("button", { className: "quiet small", "aria-label": t("delete-chat", title), title: t("delete-chat", title), click: () => deleteChat(one) }, "✕"),
    );
    if (one.id === chat?.id) item.setAttribute("aria-current", "true");
    return item;
  }));
}

async function openChat(id) {
  if (running) running.controller.abort();
  chat = (id && (await store.get("chats", id))) || newChat();
  toggleHistory(false);
  await renderMessages();
  await showChats();
  $("question").focus();
}

async function deleteChat(one) {
  deleted.add(one.id);
  for (const node of Object.values(one.nodes)) for (const id of node.images) await store.remove("images", id);
  await store.remove("chats", one.id);
  if (one.id === chat.id) await openChat(null);
  else await showChats();
}

function toggleHistory(isShown) {
  $("side").classList.toggle("shown", isShown);
  $("menu").setAttribute("aria-expanded", String(isShown));
}

async function exportChats() {
  const images = {};
  for (const one of await store.all("images")) images[one.id] = { name: one.name, data: await dataUrl(one.blob) };
  const all = { format: "share4v history 1", chats: await store.all("chats"), images };
  download(new Blob([JSON.stringify(all)], { type: "application/json" }), "share4v-history.json");
}

/** Add the chats of an exported file; it comes from anywhere, so only known fields of known types are taken over. */
async function importChats(file) {
  try {
    const all = JSON.parse(await file.text());
    if (all.format !== "share4v history 1") throw new Error();
    const chats = all.chats.map(checkedChat);
    for (const [id, { name, data }] of Object.entries(all.images)) {
      const [head, encoded] = data.split(",");
      const type = IMAGE_TYPES.find((one) => head === `data:${one};base64`);
      if (!type) throw new Error();
      const blob = new Blob([Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0))], { type });
      await store.put("images", { id, name: String(name), blob });
    }
    for (const one of chats) {
      deleted.delete(one.id);
      await store.put("chats", one);
    }
    announce(t("import-done", chats.length));
  } catch {
    showAlert(t("import-bad"));
  }
  await showChats();
}

/** Build the tree anew from its root, each message once: a loop of messages would never end. */
function checkedChat(one) {
  if (!Object.hasOwn(one.nodes, ROOT)) throw new Error();
  const nodes = {};
  const seen = new Set([ROOT]);
  for (const waiting = [{ old: ROOT, id: ROOT, parent: null }]; waiting.length;) {
    const { old, id, parent } = waiting.pop();
    const node = one.nodes[old];
    const isNew = (child) => Object.hasOwn(one.nodes, child) && !seen.has(child) && seen.add(child);
    const found = node.children.map(String).filter(isNew).map((child) => ({ old: child, id: newId(), parent: id }));
    waiting.push(...found);
    const children = found.map((child) => child.id);
    const selected = Math.trunc(Math.min(Math.max(0, Number(node.selected) || 0), Math.max(0, children.length - 1)));
    const texts = Object.fromEntries(["text", "info", "problem"].map((name) => [name, String(node[name] ?? "")]));
    const role = id === ROOT ? ROOT : node.role === "user" ? "user" : "assistant";
    nodes[id] = { id, parent, role, children, selected, images: node.images.map(String), ...texts };
  }
  return { id: String(one.id), title: String(one.title), updated: Number(one.updated) || 0, nodes };
}

// Wiring

function startChats() {
  $("composer").addEventListener("submit", (event) => { event.preventDefault(); submitQuestion(); });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submitQuestion(); }
  });
  $("stop").addEventListener("click", () => { running?.controller.abort(); $("question").focus(); });
  $("files").addEventListener("change", (event) => { attach(imagesOf([...event.target.files])); event.target.value = ""; });
  $("new-chat").addEventListener("click", () => openChat(null));
  $("menu").addEventListener("click", () => toggleHistory(!$("side").classList.contains("shown")));
  $("export").addEventListener("click", exportChats);
  $("import").addEventListener("change", async (event) => { await importChats(event.target.files[0]); event.target.value = ""; });
  $("delete-all").addEventListener("click", async () => {
    if (!confirm(t("delete-all-sure"))) return;
    for (const one of [chat, ...(await store.all("chats"))]) deleted.add(one.id);
    await store.clear("chats");
    await store.clear("images");
    await openChat(null);
  });
}
