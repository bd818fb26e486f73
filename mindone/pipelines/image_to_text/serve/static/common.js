// What the pages share: texts, colours, settings, requests, images, files, and the browser's storage.

const DATA = JSON.parse(document.getElementById("data").textContent);
const IMAGE_TYPES = ["image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp"];
const SETTINGS_KEY = "share4v.settings";
const API_KEY = "share4v.key";
const DEFAULTS = { language: "", theme: "", maxTokens: 384, temperature: 0, topP: "", seed: "", system: "" };
const $ = (id) => document.getElementById(id);

/** Return a new element; properties that the element lacks become attributes, functions become listeners. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// Settings

function read(storage, key) {
  try { return window[storage].getItem(key); } catch { return null; } // storage may be forbidden
}

function write(storage, key, value) {
  try { window[storage].setItem(key, value); } catch { /* the setting holds until the page is closed */ }
}

function storedSettings() {
  try { return { ...DEFAULTS, ...JSON.parse(read("localStorage", SETTINGS_KEY) || "{}") }; } catch { return { ...DEFAULTS }; }
}

const settings = storedSettings();
let apiKey = read("sessionStorage", API_KEY) || "";

function saveSettings() {
  write("localStorage", SETTINGS_KEY, JSON.stringify(settings));
}

// Texts and colours

const isChinese = () => (settings.language || navigator.language || "en").toLowerCase().startsWith("zh");

function t(key, ...values) {
  const text = TEXTS[key][isChinese() ? 1 : 0];
  return text.replace(/\{(\d)\}/g, (_, number) => values[number]);
}

/** Put the language and the colours of the settings into the page. */
function applyLook() {
  document.documentElement.lang = isChinese() ? "zh" : "en";
  if (settings.theme) document.documentElement.dataset.theme = settings.theme;
  else delete document.documentElement.dataset.theme;
  for (const one of document.querySelectorAll("[data-text]")) one.textContent = t(one.dataset.text);
  for (const one of document.querySelectorAll("[data-placeholder]")) one.placeholder = t(one.dataset.placeholder);
  for (const one of document.querySelectorAll("[data-title]")) one.title = t(one.dataset.title);
  for (const one of document.querySelectorAll("[data-label]")) {
    one.setAttribute("aria-label", t(one.dataset.label));
    if (one.tagName === "BUTTON") one.title = t(one.dataset.label);
  }
}

// Messages to people

/** Have a screen reader read a text. */
function announce(text) {
  $("live").textContent = text;
}

function showAlert(text) {
  $("alert-text").textContent = text;
  $("alert").hidden = false;
}

function number(value, digits = 0) {
  return value.toLocaleString(isChinese() ? "zh" : "en", { maximumFractionDigits: digits });
}

// Requests

class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function inPlainWords(status, detail, retryAfter) {
  if (status === 401) return t("error-401");
  if (status === 409) return t("error-409");
  if (status === 413) return t("error-413");
  if (status === 429) return t("error-429", retryAfter || 5);
  if (status === 503) return t("error-503", detail);
  if (status === 504) return t("error-504");
  return t("error-other", detail);
}

/** Return the response of the server; throw a Problem with a text for people if there is none, or it is an error. */
async function request(path, options = {}) {
  const headers = { ...(apiKey ? { Authorization: `Bearer ${apiKey}` } : {}), ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(t("error-network"));
  }
  if (response.ok) return response;
  let detail = `${response.status}`;
  try { detail = (await response.json()).error.message; } catch { /* no JSON: the status says it */ }
  throw new Problem(inPlainWords(response.status, detail, response.headers.get("Retry-After")), response.status);
}

function post(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** Return the fields of a chat completions request that the settings ask for. */
function samplingFields(maxTokens) {
  const fields = { max_tokens: Number(maxTokens || settings.maxTokens) || 384, temperature: Number(settings.temperature) || 0 };
  if (settings.topP !== "") fields.top_p = Number(settings.topP);
  if (settings.seed !== "") fields.seed = Number(settings.seed);
  return fields;
}

/**
 * Ask the model, and call `on.text` with the text so far and `on.progress` with the state of the request.
 * Returns { text, timings, finishReason }.
 */
async function complete(messages, { signal, maxTokens, on = {} }) {
  const body = {
    messages: settings.system ? [{ role: "system", content: settings.system }, ...messages] : messages,
    stream: true, return_progress: true, ...samplingFields(maxTokens),
  };
  const state = { text: "", tokens: 0, first: 0, timings: null, finishReason: null, hasBegun: false };
  const queue = watchQueue(() => state.hasBegun, on.progress);
  try {
    const response = await post("/v1/chat/completions", body, signal);
    await readEvents(response.body, (event) => take(event, state, on));
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    throw new Problem(t("error-cut"));
  } finally {
    clearInterval(queue);
  }
  if (!state.finishReason) throw new Problem(t("error-cut"));
  return state;
}

/**
 * Return a caption as caption-dataset would record it, by the rules of its style (and of the job, on the page of one),
 * and the rules that it breaks then: { text, broken }.
 */
async function applyStyle(text, style, signal, name = "") {
  const body = { text, ...(style ? { style: style.name } : {}), ...(name ? { name } : {}) };
  const answer = await (await post("/apply_style", body, signal)).json();
  return { text: answer.text, broken: answer.broken_rules };
}

function take(event, state, on) {
  if (event.error) throw new Problem(inPlainWords(event.error.type === "rate_limit_error" ? 429 : 0, event.error.message));
  if (event.prompt_progress) {
    state.hasBegun = true;
    const { processed, total } = event.prompt_progress;
    on.progress?.({ share: processed / total, text: t("reading", number(processed), number(total)) });
  }
  const [choice] = event.choices || [];
  if (choice?.delta?.content) {
    state.hasBegun = true;
    state.tokens += 1;
    state.first ||= performance.now();
    state.text += choice.delta.content;
    const seconds = (performance.now() - state.first) / 1000;
    const speed = seconds > 0 ? (state.tokens - 1) / seconds : 0;
    on.text?.(state.text);
    on.progress?.({ share: null, text: t("writing", number(state.tokens), number(speed, 1)) });
  }
  if (choice?.finish_reason) {
    state.finishReason = choice.finish_reason;
    state.timings = event.timings;
  }
}

/** Report how many requests run and wait, until the model works on this one. */
function watchQueue(hasBegun, report) {
  report?.({ share: 0, text: t("sent") });
  return setInterval(async () => {
    if (hasBegun() || !report) return;
    try {
      const text = await (await request("/metrics")).text();
      const value = (name) => Number((text.match(new RegExp(`^vllm:num_requests_${name}\\S* (\\S+)$`, "m")) || [0, 0])[1]);
      if (!hasBegun()) report({ share: 0, text: t("waiting", value("running"), value("waiting")) });
    } catch { /* the request itself reports what is wrong */ }
  }, 1000);
}

/** Read server-sent events; comments are skipped. */
async function readEvents(stream, onEvent) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ") && event !== "data: [DONE]") onEvent(JSON.parse(event.slice(6)));
    }
  }
}

function speedText(timings, finishReason) {
  if (!timings) return "";
  const parts = [t("speed", number(timings.predicted_n), number(timings.predicted_per_second, 1), number(timings.time_to_first_token_ms / 1000, 2))];
  if (timings.cache_n) parts.push(t("speed-cached", number(timings.cache_n)));
  if (finishReason === "length") parts.push(t("cut"));
  return parts.join(" · ");
}

/** Show the model's name, or why it cannot be used, and look again while it loads. */
async function watchServer() {
  let text, isReady = false;
  try {
    const models = await (await request("/v1/models")).json();
    text = t("server-ready", models.data[0].id);
    isReady = true;
  } catch (error) {
    if (error.status === 401) text = t("server-key");
    else if (error.status === 503) text = t(DATA.has_model ? "server-loading" : "server-none");
    else text = t("server-gone");
  }
  $("server").textContent = text;
  if (!isReady && DATA.has_model) setTimeout(watchServer, 3000);
  return isReady;
}

// Images and files

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function imagePart(blob) {
  return { type: "image_url", image_url: { url: await dataUrl(blob) } };
}

async function question(text, blobs) {
  return { role: "user", content: [{ type: "text", text }, ...(await Promise.all(blobs.map(imagePart)))] };
}

/** Return the images among files as { name, blob }, and say how many others were left out. */
function imagesOf(files) {
  const found = files.filter((file) => IMAGE_TYPES.includes(file.type));
  // In a folder, captions and hidden files are expected; of what was chosen one by one, nothing is left out silently.
  const leftOut = files.filter((file) => !IMAGE_TYPES.includes(file.type) && !file.webkitRelativePath && !file.inFolder);
  if (leftOut.length) showAlert(t("not-images", leftOut.length));
  return found.map((file) => ({ name: file.path || file.webkitRelativePath || file.name || "image", blob: file }));
}

/** Return the files that were dropped, those in folders among them. */
async function droppedFiles(transfer) {
  const entries = Array.from(transfer.items || [], (item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return Array.from(transfer.files);
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    file.path = entry.fullPath.replace(/^\//, "");
    file.inFolder = file.path.includes("/");
    found.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at a time
    if (!some.length) return;
    for (const one of some) await walk(one, found);
  }
}

function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function copy(text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else { // not a secure context, such as a server on another machine without TLS
    const area = make("textarea", { value: text, className: "hidden" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce(t("copied"));
}

// ZIP, without compression: captions are small

const CRC = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? (byte >>> 1) ^ 0xedb88320 : byte >>> 1;
  return byte;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** Return a ZIP archive of texts, given as [name, text]. */
function zip(files) {
  const parts = [], directory = [];
  let offset = 0;
  for (const [name, text] of files) {
    const encodedName = new TextEncoder().encode(name), bytes = new TextEncoder().encode(text);
    // Version, flags (UTF-8 names), method, time, date (1980-01-01), CRC, both sizes, length of the name, no extra field.
    const fields = [[20, 2], [0x800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(bytes), 4], [bytes.length, 4], [bytes.length, 4], [encodedName.length, 2], [0, 2]];
    parts.push(packed([[0x04034b50, 4], ...fields]), encodedName, bytes);
    directory.push(packed([[0x02014b50, 4], [20, 2], ...fields, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), encodedName);
    offset += 30 + encodedName.length + bytes.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = packed([[0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function packed(fields) {
  const bytes = new Uint8Array(fields.reduce((sum, [, width]) => sum + width, 0));
  let at = 0;
  for (const [value, width] of fields) for (let byte = 0; byte < width; byte++) bytes[at++] = (value >>> (8 * byte)) & 255;
  return bytes;
}

/** Write texts into a folder that the user chooses, or where browsers cannot, save a ZIP archive. */
async function saveTexts(files, archive) {
  if (window.showDirectoryPicker && !navigator.webdriver) {
    let folder;
    try { folder = await window.showDirectoryPicker({ mode: "readwrite" }); } catch { return false; } // was cancelled
    for (const [name, text] of files) {
      const parts = name.split("/");
      let directory = folder;
      for (const part of parts.slice(0, -1)) directory = await directory.getDirectoryHandle(part, { create: true });
      const stream = await (await directory.getFileHandle(parts.at(-1), { create: true })).createWritable();
      await stream.write(text);
      await stream.close();
    }
    return true;
  }
  download(zip(files), archive);
  return true;
}

// Storage: chats, images and the grid, in IndexedDB; in memory if the browser forbids it, or has no room

const STORES = ["chats", "images", "cards"];
const memory = Object.fromEntries(STORES.map((name) => [name, new Map()]));
let database = null;

function openDatabase() {
  return new Promise((resolve) => {
    let opening;
    const giveUp = () => { showAlert(t("no-storage")); resolve(); };
    try { opening = indexedDB.open("share4v", 1); } catch { giveUp(); return; }
    opening.onupgradeneeded = () => STORES.forEach((name) => opening.result.createObjectStore(name, { keyPath: "id" }));
    opening.onsuccess = () => { database = opening.result; resolve(); };
    opening.onerror = giveUp;
  });
}

function inStore(name, mode, action) {
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(name, mode);
    const result = action(transaction.objectStore(name));
    transaction.oncomplete = () => resolve(result.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

const store = {
  async put(name, value) {
    try {
      if (database) {
        await inStore(name, "readwrite", (one) => one.put(value));
        memory[name].delete(value.id);
        return;
      }
    } catch { showAlert(t("not-stored")); }
    memory[name].set(value.id, value);
  },
  // What is in memory is newer. It is looked up last: a `put` that was under way may have just failed.
  async get(name, id) {
    const found = database ? await inStore(name, "readonly", (one) => one.get(id)) : undefined;
    return memory[name].get(id) ?? found;
  },
  async all(name) {
    const found = database ? await inStore(name, "readonly", (one) => one.getAll()) : [];
    return [...new Map([...found.map((one) => [one.id, one]), ...memory[name]]).values()];
  },
  async remove(name, id) {
    memory[name].delete(id);
    if (database) await inStore(name, "readwrite", (one) => one.delete(id));
  },
  async clear(name) {
    memory[name].clear();
    if (database) await inStore(name, "readwrite", (one) => one.clear());
  },
};

/** Run `job` on all items, a few at a time; errors are the job's own. */
async function pool(items, width, job) {
  const waiting = [...items];
  const worker = async () => { while (waiting.length) await job(waiting.shift()); };
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, worker));
}

/** Fill a list of styles; choosing one calls `onChoice` with it. */
function fillStyles(select, onChoice) {
  const chosen = select.value;
  select.replaceChildren(make("option", { value: "" }, t("style-own")));
  for (const style of DATA.styles) select.append(make("option", { value: style.name, title: style.description }, style.name));
  select.value = chosen;
  select.onchange = () => onChoice(DATA.styles.find((style) => style.name === select.value) || null);
}

$("alert-close").addEventListener("click", () => { $("alert").hidden = true; });
