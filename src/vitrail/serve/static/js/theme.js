// Light or dark: the system's choice, until the button changes it for this browser.

const KEY = "vitrail-theme";

export function initTheme(button) {
  apply(remembered());
  button.addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const dark = (document.documentElement.dataset.theme ?? system) === "dark";
    apply(dark ? "light" : "dark");
    try {
      localStorage.setItem(KEY, dark ? "light" : "dark");
    } catch {
      // a browser that stores nothing: the choice lasts as long as the page
    }
  });
}

function apply(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

function remembered() {
  try {
    const found = localStorage.getItem(KEY);
    return found === "light" || found === "dark" ? found : null;
  } catch {
    return null;
  }
}
