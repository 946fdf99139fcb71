// The picture as a file: what the panes show, with a line of words below.

const SIDE_PX = 1080;
const LINE_PX = 64;

/** Draw panes side by side on one canvas and download it. */
export function savePicture(panes, words) {
  const height = SIDE_PX;
  const widths = panes.map(({ stage }) => Math.round((height * stage.canvas.width) / stage.canvas.height));
  const gap = 24;
  const canvas = document.createElement("canvas");
  canvas.width = widths.reduce((sum, width) => sum + width, gap * (panes.length + 1));
  canvas.height = height + gap + LINE_PX;
  const context = canvas.getContext("2d");
  context.fillStyle = "#14161c";
  context.fillRect(0, 0, canvas.width, canvas.height);
  let x = gap;
  for (const [place, pane] of panes.entries()) {
    pane.stage.drawOn(context, x, gap, widths[place], height);
    x += widths[place] + gap;
  }
  context.fillStyle = "#e9e4d8";
  context.font = "24px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.fillText(words, gap, height + gap + LINE_PX / 2, canvas.width - 2 * gap);
  canvas.toBlob((blob) => {
    const address = URL.createObjectURL(blob);
    const link = document.createElement("a");
    link.href = address;
    link.download = "vitrail.png";
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }, "image/png");
}
