// Errors as people meet them: one sentence, and the way out as a button.

import { make, sentence } from "./dom.js";

const place = document.getElementById("notice");

/** Show a sentence, with a button if there is a way out. */
export function tell(words, action = null) {
  place.replaceChildren(make("p", {}, sentence(words)));
  if (action) {
    place.append(make("button", { type: "button", onclick: () => (hush(), action.run()) }, action.label));
  }
  place.append(make("button", { type: "button", className: "quiet close", "aria-label": "Close", onclick: hush }, "×"));
  place.hidden = false;
}

export function hush() {
  place.hidden = true;
  place.replaceChildren();
}
