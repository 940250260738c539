/** Card of one picture: how it comes, what it cost, and which of its tokens were computed. */

import { file, paintMask, pixels, psnr } from './pixels.js';

/** Over the picture: what was computed is left clear. */
const OVER = { computed: 'rgba(255, 255, 255, 0.12)', left: 'rgba(0, 0, 0, 0.78)' };
/** Beside the text: a map of its own. */
const ALONE = { computed: '#4c8dde', left: '#22262c' };

const count = (number) => number.toLocaleString('en');
const milliseconds = (number) => `${number < 10 ? number.toFixed(1) : Math.round(number)} ms`;

let cards = 0;

export class Card {
  #root = document.getElementById('card').content.cloneNode(true).firstElementChild;
  #name = `scales-${++cards}`;
  #scales = []; // events of the scales so far
  #pictures = []; // {after, address, alt}: the picture after so many scales, as far as it was sent
  #tokens = { computed: 0, full: 0 };
  #chosen = false; // somebody has looked at a scale: what follows does not change it

  constructor(place, policy, what, seed, [width, height]) {
    this.policy = policy;
    this.what = what;
    this.seed = seed;
    this.#find('h2').textContent = policy;
    this.#root.setAttribute('aria-label', `Policy ${policy}`);
    this.#find('progress').setAttribute('aria-label', `Scales drawn with ${policy}`);
    this.#find('.picture').style.aspectRatio = `${width} / ${height}`;
    this.#find('.seed').textContent = seed;
    this.#find('input').name = this.#name;
    this.#find('.scales').addEventListener('change', () => {
      this.#chosen = true;
      this.#look();
    });
    place.append(this.#root);
  }

  /** A scale is drawn: its mask joins the list, and lies over the picture until the next one does. */
  scale(event) {
    const part = document.getElementById('scale').content.cloneNode(true).firstElementChild;
    const [radio, map] = [part.querySelector('input'), part.querySelector('canvas')];
    Object.assign(radio, { name: this.#name, value: event.scale });
    paintMask(map, event.grid, event.kept, ALONE);
    const share = event.tokens === event.tokens_full ? 'all' : count(event.tokens);
    part.querySelector('.what').textContent =
      `scale ${event.scale + 1}, ${event.grid[1]}x${event.grid[0]}: ${share} of ${count(event.tokens_full)} tokens`;
    part.querySelector('.cost').textContent = milliseconds(event.milliseconds);
    this.#find('.scales').append(part);
    this.#scales.push(event);
    Object.assign(this.#find('progress'), { max: event.scales, value: event.scale + 1 });
    this.#tokens.computed += event.tokens;
    this.#tokens.full += event.tokens_full;
    this.#count();
    if (!this.#chosen) radio.checked = true;
    this.#look();
  }

  /** A partial image has come. */
  partial(event) {
    this.#keep(file(event.b64_json, event.output_format), `after scale ${this.#scales.length}`);
  }

  /** The picture is drawn; `reference` holds the pixels of the unpruned one, if there is one. */
  async completed(event, reference) {
    const { trace, output_format: format } = event;
    const blob = file(event.b64_json, format);
    if (!this.#chosen) this.#find('input').checked = true;
    this.#keep(blob, `seed ${event.seed}`);
    this.#tokens = { computed: trace.tokens, full: trace.tokens_full };
    this.#count();
    const scales = trace.scales.map((s) => 1000 * (s.select_s + s.blocks_s / s.images_in_call + s.residual_s));
    trace.scales.forEach(({ scale }, i) => { // on a GPU only now are they the device's
      this.#part(scale).querySelector('.cost').textContent = milliseconds(scales[i]);
    });
    this.milliseconds = 1000 * (trace.text_s + trace.decode_s) + scales.reduce((sum, time) => sum + time, 0);
    this.#find('.time').textContent = milliseconds(this.milliseconds);
    this.#find('progress').hidden = true;
    this.pixels = await pixels(blob);
    this.#find('.psnr').textContent = this.#nearness(reference);
    const link = this.#find('.download');
    const name = `${this.seed}-${this.policy.replace(/[^\w.=-]+/g, '_')}.${format}`;
    Object.assign(link, { href: this.#pictures.at(-1).address, download: name, hidden: false });
    link.setAttribute('aria-label', `Download the picture drawn with ${this.policy}`);
  }

  /** The picture will not come. */
  ended(words) {
    this.#find('progress').hidden = true;
    this.#find('.time').textContent = words;
  }

  /** The figures in one sentence. */
  get sentence() {
    const [time, tokens, psnr] = ['.time', '.tokens', '.psnr'].map((name) => this.#find(name).textContent);
    return `${this.policy}: drawn in ${time}, ${tokens} tokens${psnr.endsWith('dB') ? `, ${psnr}` : ''}.`;
  }

  remove() {
    this.#pictures.forEach(({ address }) => URL.revokeObjectURL(address));
    this.#root.remove();
  }

  #nearness(reference) {
    if (this.policy === 'none') return 'unpruned';
    if (!reference) return '–';
    const decibels = psnr(this.pixels, reference);
    return Number.isFinite(decibels) ? `${decibels.toFixed(1)} dB` : 'equal';
  }

  #count() {
    const { computed, full } = this.#tokens;
    this.#find('.tokens').textContent = `${count(computed)} of ${count(full)}`;
  }

  #keep(blob, state) {
    const alt = `${this.what}, drawn with ${this.policy}, ${state}`;
    this.#pictures.push({ after: this.#scales.length, address: URL.createObjectURL(blob), alt });
    this.#look();
  }

  /** Shows the picture as it was after the chosen scale, as far as it was sent, and over it the scale's mask. */
  #look() {
    const { value } = this.#find('input:checked');
    const event = this.#scales.find(({ scale }) => String(scale) === value);
    const picture = this.#pictures.findLast(({ after }) => !event || after <= event.scale + 1);
    const [image, mask] = [this.#find('img'), this.#find('.mask')];
    if (picture) Object.assign(image, { src: picture.address, alt: picture.alt });
    image.hidden = !picture;
    if (event) paintMask(mask, event.grid, event.kept, OVER);
    mask.hidden = !event;
  }

  #part(scale) {
    return this.#find(`input[value="${scale}"]`).parentElement;
  }

  #find(selector) {
    return this.#root.querySelector(selector);
  }
}
