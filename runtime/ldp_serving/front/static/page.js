/** The form: what can be asked of the server, and one picture after another for each policy that is ticked. */

import { ApiError, draw, models, server } from './api.js';
import { Card } from './card.js';

const UNPRUNED = 'none';
/** Milliseconds between two lines of one picture's progress, so that they can be read out. */
const PAUSE = 2000;

const find = (id) => document.getElementById(id);
const [form, prompt, label, model, size, seed] = ['form', 'prompt', 'class', 'model', 'size', 'seed'].map(find);

let offered = [];
let running = null; // AbortController of what is drawn
let cards = [];

const say = (words) => { find('status').textContent = words; };

function complain(error) {
  const again = error.retry ? ` Try again in ${error.retry} s.` : '';
  find('error').textContent = error instanceof ApiError ? `${error.message}.${again}` : String(error);
}

/** Waits until the server has loaded its models, then shows what can be asked. */
async function start() {
  const state = await server();
  find('server').textContent = `ldp-export ${state.version}`;
  find('key-row').hidden = !state.needs_key;
  if (!state.loaded) {
    say('The server is loading its models.');
    setTimeout(begin, 2000);
  } else if (state.needs_key) {
    say('This server asks for a key.');
    find('key').focus();
  } else {
    await offer();
  }
}

const begin = () => start().catch(complain);

async function offer() {
  find('error').textContent = '';
  offered = await models(find('key').value);
  model.replaceChildren(...offered.map(({ id }) => new Option(id)));
  find('request').disabled = false;
  say('');
  adapt();
}

/** Shows the sizes, policies and classes of the chosen model. */
function adapt() {
  const { sizes, policies, classes } = offered[model.selectedIndex];
  size.replaceChildren(new Option('auto'), ...sizes.map((text) => new Option(text)));
  find('policy-list').replaceChildren(...policies.map(choice));
  find('policies-note').textContent = !policies.includes(UNPRUNED)
    ? `This server does not allow ${UNPRUNED}, so there is no unpruned picture to compare with.`
    : policies.length > 1 ? `With ${UNPRUNED} ticked too, PSNR says how near the others are to the unpruned picture.` : '';
  const draws = classes === null;
  find('prompt-row').hidden = !draws;
  find('class-row').hidden = draws;
  prompt.required = draws;
  label.required = !draws;
  label.max = draws ? '' : classes - 1;
  find('class-note').textContent = draws ? '' : `0 to ${classes - 1}`;
}

function choice(policy, place) {
  const part = find('choice').content.cloneNode(true).firstElementChild;
  Object.assign(part.querySelector('input'), { value: policy, checked: place === 0 });
  part.querySelector('span').textContent = policy;
  return part;
}

/** The policies that are ticked, the unpruned one first: the others are compared with it. */
function ticked() {
  const chosen = [...form.querySelectorAll('#policy-list input:checked')].map((box) => box.value);
  return chosen.sort((one, other) => (other === UNPRUNED) - (one === UNPRUNED));
}

/** What to draw, but for the policy. */
function request() {
  const { id, sizes, classes } = offered[model.selectedIndex];
  const number = seed.value === '' ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(seed.value);
  const asked = { model: id, size: size.value, seed: number, prompt: classes === null ? prompt.value : '' };
  const shape = size.value === 'auto' ? sizes[0] : size.value;
  const what = classes === null ? `“${prompt.value.trim()}”` : `Class ${Number(label.value)}`;
  return [classes === null ? asked : { ...asked, class_label: Number(label.value) }, what, shape.split('x').map(Number)];
}

/** Draws with each policy that is ticked; what is still drawn for an earlier request is given up. */
async function drawAll() {
  const policies = ticked();
  if (!policies.length) return complain(new ApiError('tick at least one policy'));
  running?.abort();
  const mine = running = new AbortController();
  find('error').textContent = '';
  cards.splice(0).forEach((card) => card.remove());
  const [asked, what, shape] = request();
  const drawn = cards = policies.map((policy) => new Card(find('pictures'), policy, what, asked.seed, shape));
  find('stop').disabled = false;
  try {
    let reference = null;
    for (const card of drawn) {
      await drawOne(card, asked, mine.signal, reference);
      if (card.policy === UNPRUNED) reference = card.pixels;
    }
    say(drawn.map((card) => card.sentence).join(' '));
  } catch (error) {
    drawn.filter((card) => !card.pixels).forEach((card) => card.ended(mine.signal.aborted ? 'stopped' : 'failed'));
    if (!mine.signal.aborted) complain(error);
    if (running === mine) say(mine.signal.aborted ? 'Stopped.' : '');
  } finally {
    if (running === mine) finish();
  }
}

async function drawOne(card, asked, signal, reference) {
  say(`Drawing with ${card.policy}.`);
  let told = performance.now();
  for await (const event of draw({ ...asked, policy: card.policy }, find('key').value, signal)) {
    if (event.type === 'ldp.scale') card.scale(event);
    else if (event.type === 'image_generation.partial_image') card.partial(event);
    else if (event.type === 'image_generation.completed') await card.completed(event, reference);
    if (event.type === 'ldp.scale' && performance.now() - told > PAUSE) {
      told = performance.now();
      say(`Drawing with ${card.policy}: scale ${event.scale + 1} of ${event.scales}.`);
    }
  }
}

/** Nothing is drawn any more; a keyboard that was on the button goes back to the other. */
function finish() {
  running = null;
  if (document.activeElement === find('stop')) find('draw').focus();
  find('stop').disabled = true;
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  if (offered.length) drawAll();
});
prompt.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') running?.abort();
});
find('stop').addEventListener('click', () => running?.abort());
find('key').addEventListener('change', () => offer().then(() => prompt.focus()).catch(complain));
model.addEventListener('change', adapt);
begin();
