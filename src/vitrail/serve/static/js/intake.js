// Images that people bring: dropped, pasted, or picked.

/** Call `take(file)` for every image that arrives. Returns a function that opens the file dialog. */
export function listen(take) {
  const file = document.getElementById("file");
  const veil = document.getElementById("veil");
  file.addEventListener("change", () => {
    if (file.files.length) take(file.files[0]);
    file.value = "";
  });
  document.addEventListener("paste", (event) => {
    const found = [...(event.clipboardData?.files ?? [])][0];
    if (found) take(found);
  });
  let depth = 0; // dragenter and dragleave come for every element below
  document.addEventListener("dragenter", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    depth += 1;
    veil.hidden = false;
  });
  document.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    veil.hidden = depth === 0;
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    veil.hidden = true;
    const found = event.dataTransfer?.files[0];
    if (found) take(found, event.target.closest?.(".pane"));
  });
  return () => file.click();
}
