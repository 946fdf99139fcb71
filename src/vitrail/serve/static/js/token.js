// Asks for the server's bearer token. It is kept in memory only (api.js).

import { setToken } from "./api.js";

const dialog = document.getElementById("token");
const field = document.getElementById("token-field");
let asked = null;

document.getElementById("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(field.value);
  field.value = "";
  dialog.close("given");
});

/** Open the dialog, once for all that wait, and return when a token was typed in. */
export function askForToken(wrong) {
  asked ??= new Promise((resolve, reject) => {
    document.getElementById("token-wrong").hidden = !wrong;
    dialog.addEventListener(
      "close",
      () => {
        asked = null;
        if (dialog.returnValue === "given") resolve();
        else reject(new Error("Without its token, the server does not answer. Reload the page to type it in."));
      },
      { once: true },
    );
    dialog.returnValue = "";
    dialog.showModal();
    field.focus();
  });
  return asked;
}
