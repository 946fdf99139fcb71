// Small helpers for elements.

/** Make an element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** A copy of a template's first element. */
export function copyOf(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}

let later = 0;

/** Tell screen readers, once the person has stopped moving. */
export function announce(words) {
  clearTimeout(later);
  later = setTimeout(() => {
    document.getElementById("live").textContent = words;
  }, 350);
}

/** Words with a capital at the start. */
export function capital(words) {
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Words of the server as a sentence. */
export function sentence(words) {
  return capital(/[.!?]$/.test(words) ? words : `${words}.`);
}

/** A share as percent: "0.4 %", "37 %"; what is not whole is never said to be. */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value < 100 && value > 99.9) return "> 99.9 %";
  if (value < 100 && value >= 99.5) return `${value.toFixed(1)} %`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}
