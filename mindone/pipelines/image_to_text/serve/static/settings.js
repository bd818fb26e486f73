// The settings dialog, which all pages have.

// Setting -> its field, and whether it is a number.
const FIELDS = {
  language: "set-language", theme: "set-theme", maxTokens: "set-max-tokens", temperature: "set-temperature",
  topP: "set-top-p", seed: "set-seed", system: "set-system",
};

/** Make the dialog work; `onChange` is called when the language or the key has changed. */
function startSettings(onChange) {
  $("open-settings").addEventListener("click", () => {
    for (const [name, id] of Object.entries(FIELDS)) $(id).value = settings[name];
    $("set-key").value = apiKey;
    $("settings").showModal();
  });
  $("settings").addEventListener("close", () => $("open-settings").focus());
  for (const [name, id] of Object.entries(FIELDS)) {
    $(id).addEventListener("change", () => {
      if (!$(id).checkValidity()) { $(id).reportValidity(); return; }
      settings[name] = $(id).value;
      saveSettings();
      applyLook();
      if (name === "language") onChange();
    });
  }
  $("set-key").addEventListener("change", () => {
    apiKey = $("set-key").value.trim();
    write("sessionStorage", API_KEY, apiKey);
    onChange();
  });
}
