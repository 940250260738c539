/** Pixels: files, masks, and how near two pictures are. */

/** File of a picture that was sent as base64. */
export function file(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: `image/${format}` });
}

/** Red, green, blue and alpha of each pixel of a file. */
export async function pixels(blob) {
  const image = await createImageBitmap(blob, { colorSpaceConversion: 'none' });
  const canvas = document.createElement('canvas');
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height).data;
}

/** Peak signal-to-noise ratio in dB of two pictures of one size; Infinity if they are equal. */
export function psnr(one, other) {
  let sum = 0;
  for (let i = 0; i < one.length; i++) {
    if (i % 4 !== 3) sum += (one[i] - other[i]) ** 2; // alpha is no colour
  }
  return 10 * Math.log10(255 ** 2 / (sum / (one.length * 0.75)));
}

/** Paints the cells of a grid: `kept` are the indices of the computed ones, null for all. */
export function paintMask(canvas, [rows, columns], kept, { computed, left }) {
  const cell = Math.max(2, Math.floor(256 / Math.max(rows, columns)));
  canvas.width = columns * cell;
  canvas.height = rows * cell;
  const context = canvas.getContext('2d');
  const chosen = kept && new Set(kept);
  for (let i = 0; i < rows * columns; i++) {
    const [x, y] = [(i % columns) * cell, Math.floor(i / columns) * cell];
    context.fillStyle = !chosen || chosen.has(i) ? computed : left;
    context.fillRect(x, y, cell, cell);
    if (cell > 6) context.clearRect(x, y, cell, 1), context.clearRect(x, y, 1, cell); // lines between cells
  }
}
