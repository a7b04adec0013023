'use strict';
// The page at `/` of `craft serve`. What a model or a server says is put in as
// text only. What each setting means is read from the server's own document.

const $ = (id) => document.getElementById(id);
// [name, label, what it does, step of a number, most of its slider]
const SHOWN = [
  ['How much', [
    ['max_tokens', 'Characters', 'written at most', 1],
    ['n', 'Texts', 'written side by side', 1],
    ['stop', 'Stop at', 'end before this text; \\n is a line break'],
    ['ignore_eos', 'Never end', 'go on where the model would end']]],
  ['How freely', [
    ['temperature', 'Temperature',
      'low is careful, high is wild; 0 always takes the most likely', 0.05, 2],
    ['top_p', 'Top p', 'only the most likely that sum to this share', 0.01, 1],
    ['top_k', 'Top k', 'only so many of the most likely; 0 is all', 1],
    ['min_p', 'Min p', 'only what has this share of the most likely', 0.01, 1],
    ['seed', 'Seed', 'the same number writes the same text', 1]]],
  ['More', [
    ['typical_p', 'Typical p', 'only the least odd that sum to this', 0.01, 1],
    ['repetition_penalty', 'Repetition', 'above 1 shuns what was just used', 0.05],
    ['presence_penalty', 'Presence', 'above 0 shuns what was used at all', 0.1],
    ['frequency_penalty', 'Frequency', 'above 0 shuns what was used often', 0.1],
    ['allowed_chars', 'Alphabet', 'write with these characters only'],
    ['echo', 'Colour the prompt', 'show it before the text, coloured too']]],
];
const START = {max_tokens: 400};  // where the page differs from the server
// What the openai client takes by name; the rest is its extra_body.
const OPENAI = new Set(['model', 'prompt', 'max_tokens', 'temperature', 'top_p',
  'n', 'stream', 'stop', 'logprobs', 'echo', 'seed', 'presence_penalty',
  'frequency_penalty']);
const BITS = [0.5, 1.5, 2.5, 3.5, 5, 7];  // where the next colour begins
const RULES = {
  regex: [['a date', '[0-3][0-9]/[01][0-9]/[12][0-9]{3}'],
    ['a dialogue', '(“[A-Za-z ,]{5,40}[.!?]”\\n){3}'],
    ['no letter e', '[a-df-z ,]{60}\\.']],
  schema: [['a person', JSON.stringify({type: 'object', properties: {
    name: {type: 'string', minLength: 3, maxLength: 20},
    age: {type: 'integer', minimum: 0, maximum: 120}},
    required: ['name', 'age'], additionalProperties: false}, null, 2)]],
};
const inputs = {};  // by the name of the field: {box, input, usual}
const rules = {regex: '', schema: ''};  // what stands in each box
let model = null, running = null, current = null, checking = null;

// --- small things ---

function make(tag, attributes = {}, ...inside) {
  const found = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in found) found[name] = value; else found.setAttribute(name, value);
  }
  found.append(...inside);
  return found;
}

const wait = (seconds) => new Promise((go) => setTimeout(go, seconds * 1000));
const say = (text) => { $('status').textContent = visible(text); };

// What would turn letters round, hide, or be taken for a lost byte.
const OBEYED = new RegExp('[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f'
  + '\\u202a-\\u202e\\u2066-\\u2069\\ufffd\\ud800-\\udfff]', 'gu');
const code = (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;

function visible(text) {
  return text.replace(OBEYED, code);
}

function complain(text = '') {
  $('error').textContent = visible(text);
  $('error').hidden = !text;
}

// A document ends where the next begins.
const isEnd = (token) => token === '<bos>' || token === '<eos>';

function named(token) {  // a token as it is shown
  const names = {' ': '␣', '\n': '↵', '\t': '⇥', '\r': '␍'};
  if (!token || isEnd(token)) return 'end';
  return names[token] ?? visible(token.replace(/^bytes:/, ''));
}

// --- the server ---

class Refused extends Error {
  constructor(status, message, retry) {
    super(message);
    Object.assign(this, {status, retry});
  }
}

async function ask(path, body, signal) {
  const headers = {};
  if ($('key').value) headers.authorization = `Bearer ${$('key').value.trim()}`;
  if (body) headers['content-type'] = 'application/json';
  const answer = await fetch(path, {method: body ? 'POST' : 'GET', headers,
    signal, body: body && JSON.stringify(body)});
  if (answer.ok) return answer;
  let message = `the server answered ${answer.status}`;
  try { message = (await answer.json()).error.message; } catch { /* not ours */ }
  throw new Refused(answer.status, message, answer.headers.get('retry-after'));
}

function explain(error) {
  if (!(error instanceof Refused)) {
    complain('The server cannot be reached: it has ended, or the network has. '
      + 'What is here stays; this page looks for it.');
    seek();
  } else if (error.status === 401) {
    complain('This server wants an API key, or does not know the one that was '
      + 'given. Type it above.');
    $('access').open = true;
    $('key').focus();
  } else if (error.status === 429) {
    complain(`Too much at once: ${error.message}. Try again in `
      + `${error.retry ?? 1} s.`);
  } else {
    complain(error.message.replace(/\.?$/, '.'));
    if (error.status === 503) seek();
  }
}

let seeking = false;
async function seek() {  // until the server is (back) there
  if (seeking) return;
  seeking = true;
  say('Looking for the server …');
  for (;;) {
    await wait(1);
    try { await ask('ready'); break; } catch { /* not yet */ }
  }
  seeking = false;
  complain();
  say('The server is back.');
  await meet();
}

async function meet() {  // learns what the model and its settings are
  try {
    const [models, tokens, paper] = await Promise.all(
      ['v1/models', 'tokenizer_info', 'openapi.json'].map(
        async (path) => (await ask(path)).json()));
    model = models.data[0];
    const kind = tokens.tokenizer_class === 'craft-byte' ? 'bytes' : 'characters';
    $('facts').textContent = `${visible(model.id)} · step ${model.step.toLocaleString()}`
      + ` · sees ${model.context} ${kind} back · ${tokens.vocab_size} tokens`;
    document.title = `${visible(model.id)} · Craft`;
    if (!Object.keys(inputs).length) {
      showSettings(paper.components.schemas.CompletionBody.properties);
    }
    return true;
  } catch (error) {
    explain(error);
    return false;
  }
}

// --- settings ---

function range(schema) {  // in words
  const least = schema.minimum ?? schema.exclusiveMinimum;
  let most = schema.maximum ?? schema.exclusiveMaximum;
  if (least === undefined || least < -1e9) return '';
  if (most > 1e9) most = undefined;
  const above = schema.minimum === undefined ? 'above ' : '';
  return most === undefined ? `${above}${least} or more` : `${above}${least} to ${most}`;
}

function showField([name, label, says, step, slider], property) {
  const schema = property.anyOf?.find((one) => one.type !== 'null') ?? property;
  const usual = START[name] ?? property.default ?? '';
  const type = schema.type === 'boolean' ? 'checkbox' : step ? 'number' : 'text';
  const input = make('input', {id: `set-${name}`, type, autocomplete: 'off'});
  input.setAttribute('aria-describedby', `help-${name}`);
  if (type === 'checkbox') input.checked = usual; else input.value = usual;
  if (step) input.step = 'any';
  if (type === 'text') input.className = 'wide';
  if (schema.minimum > -1e9) input.min = schema.minimum;
  if (schema.maximum < 1e9) input.max = schema.maximum;
  const words = [says, range(schema), step && usual !== '' ? `usually ${usual}`
    : step ? 'any if empty' : ''];
  const help = make('p', {className: 'help', id: `help-${name}`,
    textContent: words.filter(Boolean).join(' · ')});
  const row = make('div', {className: 'row'},
    make('label', {htmlFor: input.id, textContent: label}), input);
  const box = make('div', {className: 'field'}, row);
  if (slider) {
    const slide = make('input', {type: 'range', min: 0, max: slider, step,
      value: usual, tabIndex: -1});
    slide.setAttribute('aria-hidden', 'true');  // the number says the same
    slide.addEventListener('input', () => {
      input.value = slide.value;
      mark(name);
    });
    inputs[name] = {slide};
    box.append(slide);
  }
  box.append(help);
  inputs[name] = {...inputs[name], box, input, usual, step};
  input.addEventListener('input', () => mark(name));
  return box;
}

function showSettings(properties) {
  for (const [title, fields] of SHOWN) {
    const found = fields.filter(([name]) => properties[name]).map(
      (field) => showField(field, properties[field[0]]));
    $('fields').append(title === 'More'
      ? make('details', {}, make('summary', {textContent: title}), ...found)
      : make('fieldset', {}, make('legend', {textContent: title}), ...found));
  }
}

function value(name) {
  const {input, step} = inputs[name];
  if (input.type === 'checkbox') return input.checked;
  if (!step) return input.value;
  return input.value === '' ? '' : Number(input.value);
}

function mark(name) {
  const {box, slide, usual, input} = inputs[name];
  box.classList.toggle('changed', value(name) !== usual);
  if (name === 'max_tokens' && $('kind').value) validate();
  if (slide && document.activeElement !== slide) slide.value = input.value;
}

function reset() {
  for (const [name, {input, usual}] of Object.entries(inputs)) {
    if (input.type === 'checkbox') input.checked = usual; else input.value = usual;
    mark(name);
  }
}

function rule() {  // the constraint as fields; throws on what is no JSON
  const text = $('rule').value;
  if ($('kind').value === 'regex' && text) return {regex: text};
  if ($('kind').value !== 'schema' || !text.trim()) return {};
  return {response_format: {type: 'json_schema',
    json_schema: {name: 'schema', schema: JSON.parse(text)}}};
}

function asked() {  // the request, without what only this page needs
  const found = {model: model?.id, prompt: $('prompt').value};
  for (const [name, {input, usual}] of Object.entries(inputs)) {
    const now = value(name);
    if (input.validity?.badInput || !input.checkValidity()) {
      const label = input.labels[0].textContent;
      throw new Refused(400, `${label}: ${input.validationMessage || 'not a number'}`);
    }
    if (now === '' || (now === usual && !(name in START))) continue;
    found[name] = name === 'stop' ? now.replaceAll('\\n', '\n') : now;
  }
  try {
    return {...found, ...rule()};
  } catch (error) {
    throw new Refused(400, `The schema is no JSON: ${error.message}`);
  }
}

// --- the form of the text, validated while it is typed ---

function verdict(text, good = false) {
  $('verdict').textContent = visible(text);
  $('verdict').className = good ? 'good' : 'bad';
  $('rule').setAttribute('aria-invalid', String(Boolean(text) && !good));
}

async function validate() {
  checking?.abort();
  const mine = checking = new AbortController();
  let fields;
  try {
    fields = rule();
  } catch (error) {
    return verdict(`no JSON: ${error.message}`);
  }
  if (!Object.keys(fields).length) return verdict('');
  if (inputs.max_tokens?.input.value > 0) fields.max_tokens = value('max_tokens');
  await wait(0.3);
  if (mine.signal.aborted) return undefined;
  try {
    const found = await (await ask('validate', fields, mine.signal)).json();
    if (mine.signal.aborted) return undefined;
    return verdict(found.valid ? '✓ the model can write this' : found.message,
      found.valid);
  } catch (error) {
    if (mine.signal.aborted) return undefined;
    return verdict(error instanceof Refused ? error.message
      : 'the server cannot be reached');
  }
}

function chooseKind() {
  const kind = $('kind').value;
  $('formed').hidden = !kind;
  verdict('');
  if (!kind) return;
  $('ruleName').textContent = kind === 'regex' ? 'Pattern' : 'JSON schema';
  $('rule').value = rules[kind];
  $('examples').replaceChildren('Try ', ...RULES[kind].map(([name, text]) => {
    const button = make('button', {type: 'button', textContent: name});
    button.addEventListener('click', () => {
      $('rule').value = rules[kind] = text;
      validate();
    });
    return button;
  }));
  validate();
}

// --- the text ---

function colour(span, bits) {
  const level = BITS.filter((least) => bits >= least).length;
  span.className = `${level ? `s${level}` : ''} ${span.dataset.kind ?? ''}`;
}

class Text {  // one choice: its characters, and the tokens of each
  constructor(old) {
    this.box = make('div', {className: 'text', tabIndex: 0, role: 'group'});
    this.box.setAttribute('aria-label', 'Text; arrow keys walk through it');
    this.box.setAttribute('aria-busy', 'true');
    this.box.text = this;
    this.letters = [];
    this.old = old;  // characters of the prompt
    this.base = null;
    this.bits = this.count = 0;
  }

  letter(text, kind) {
    const span = make('span', {textContent: text});  // whole, to be copied
    if (visible(text) !== text) span.dataset.shown = visible(text);
    if (kind) span.dataset.kind = span.className = kind;
    this.letters.push({span, text, tokens: [], bits: 0});
    span.number = this.letters.length - 1;
    this.box.append(span);
  }

  take(choice, echo) {
    for (const one of choice.text) {
      const was = echo && this.letters.length < this.old.length ? 'was ' : '';
      this.letter(one, was + (one === '\n' ? 'line' : ''));
    }
    const {tokens, token_logprobs, top_logprobs, text_offset} = choice.logprobs
      ?? {tokens: []};
    tokens.forEach((token, i) => {
      this.base ??= echo ? 0 : text_offset[0];
      const at = text_offset[i] - this.base;
      if (at >= this.letters.length) {
        if (!isEnd(token)) return;
        this.letter('', 'end');
      }
      const letter = this.letters[Math.min(at, this.letters.length - 1)];
      if (token_logprobs[i] === null) return;
      const bits = -token_logprobs[i] / Math.LN2;
      letter.tokens.push({token, bits, top: top_logprobs?.[i] ?? {}});
      letter.bits += bits;
      if (letter.text) {
        this.bits += bits;
        this.count += letter.tokens.length === 1;
      }
      colour(letter.span, letter.bits);
    });
    if (choice.finish_reason) this.box.setAttribute('aria-busy', 'false');
  }

  upTo(end) {
    return this.letters.slice(0, end).map((one) => one.text).join('');
  }

  before(end, echo) {  // prompt and text, to go on from there
    return (echo ? '' : this.old.join('')) + this.upTo(end);
  }
}

let texts = [], echoed = false;

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const {value: piece, done} = await reader.read();
    if (done) throw new TypeError('the connection ended');
    const parts = (rest + piece).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, '');
      if (data === '[DONE]') return;
      yield JSON.parse(data);
    }
  }
}

async function run(scoring = false) {
  if (running) return;
  complain();
  hideCard();
  let body;
  try {
    if (!model && !await meet()) return;
    const fields = scoring ? {model: model.id, prompt: $('prompt').value,
      echo: true, max_tokens: 0} : asked();
    body = {...fields, logprobs: 5, stream: true};
  } catch (error) {
    explain(error);
    return;
  }
  const mine = running = new AbortController();
  say('Waiting for the first character …');
  busy(true);
  echoed = Boolean(body.echo);
  const begin = performance.now();
  let told = '', end = '', shown = false;
  try {
    const answer = await ask('v1/completions', body, mine.signal);
    texts = Array.from({length: body.n ?? 1}, () => new Text([...body.prompt]));
    shown = true;
    $('output').replaceChildren(...texts.map((text) => text.box));
    for await (const event of events(answer)) {
      if (event.error) throw new Refused(event.error.code === 'closing' ? 503 : 500,
        event.error.message);
      for (const choice of event.choices) {
        texts[choice.index].take(choice, echoed);
        told = choice.finish_reason ?? told;
      }
      say(figures(begin));
    }
    end = told === 'stop' ? 'ended by itself' : 'done';
  } catch (error) {
    end = mine.signal.aborted ? 'stopped' : 'broken off';
    if (!mine.signal.aborted) explain(error);
  }
  for (const text of texts) text.box.setAttribute('aria-busy', 'false');
  running = null;
  busy(false);
  const alone = mine.signal.aborted ? end : '';  // what was refused is told
  if (!seeking) say(shown ? figures(begin, end, scoring) : alone);
}

function figures(begin, end = 'writing', scoring = false) {
  const sum = (pick) => texts.reduce((all, text) => all + pick(text), 0);
  const count = sum((text) => text.count), seconds = (performance.now() - begin) / 1000;
  if (!count) return end;
  const rate = (count / seconds).toFixed(0);
  return `${end} · ${count} characters · ${(sum((t) => t.bits) / count).toFixed(2)}`
    + ` bits each${scoring ? '' : ` · ${rate} a second`}`;
}

function busy(is) {
  $('run').disabled = $('score').disabled = is;
  $('stop').disabled = !is;
  $('adopt').disabled = is || !texts.length;
  $('status').setAttribute('aria-live', is ? 'off' : 'polite');  // only the end
  if (is && document.activeElement === document.body) $('stop').focus();
}

// --- what else a character might have been ---

function alternatives(text, letter, {token, top}, first) {
  const pairs = Object.entries(top).sort((a, b) => b[1] - a[1]);
  return make('ol', {}, ...pairs.map(([other, log]) => {
    const share = Math.exp(log);
    const bar = make('i');
    bar.style.width = `${100 * share}%`;
    const cells = [make('code', {textContent: named(other)}),
      make('span', {className: 'meter'}, bar),
      make('small', {textContent: `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`})];
    const item = make('li', {className: other === token ? 'taken' : ''});
    if (!first || isEnd(other) || other.startsWith('bytes:')) {
      item.append(make('span', {className: 'fixed'}, ...cells));
      return item;
    }
    const button = make('button', {type: 'button', title: 'Go on from here with it'},
      ...cells);
    button.addEventListener('click', async () => {
      $('prompt').value = text.before(letter.span.number, echoed) + other;
      running?.abort();
      while (running) await wait(0.01);
      run();
    });
    item.append(button);
    return item;
  }));
}

function showCard(span) {
  const text = span.parentElement.text, letter = text.letters[span.number];
  current?.classList.remove('here');
  current = span;
  span.classList.add('here');
  const card = $('card');
  const what = letter.tokens.length
    ? ` ${letter.bits.toFixed(2)} bits · ${(100 * 2 ** -letter.bits).toFixed(1)} %`
    : ' nothing stood before it';
  card.replaceChildren(make('p', {}, make('strong', {
    textContent: named(letter.text)}), what));
  letter.tokens.forEach((one, i) => {
    if (letter.tokens.length > 1) {
      card.append(make('p', {textContent: `byte ${i + 1}: ${named(one.token)}`}));
    }
    card.append(alternatives(text, letter, one, i === 0));
  });
  card.hidden = false;
  const at = span.getBoundingClientRect(), size = card.getBoundingClientRect();
  const wide = document.documentElement.clientWidth;
  const left = Math.max(8, Math.min(at.left - 20, wide - size.width - 8));
  const fits = at.bottom + size.height + 8 < innerHeight || at.top < size.height + 8;
  const top = fits ? at.bottom + 4 : at.top - size.height - 4;
  card.style.left = `${left + scrollX}px`;
  card.style.top = `${top + scrollY}px`;
}

function hideCard() {
  $('card').hidden = true;
  current?.classList.remove('here');
  current = null;
}

function walk(event) {
  const text = event.target.text;
  if (!text?.letters.length) return;
  const here = current?.parentElement === text.box ? current.number : -1;
  const last = text.letters.length - 1;
  const to = {ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last,
    ArrowDown: lineBelow(text, here, 1), ArrowUp: lineBelow(text, here, -1)}[event.key];
  if (to !== undefined) {
    event.preventDefault();
    showCard(text.letters[Math.max(0, Math.min(last, to))].span);
    const {text: what, bits} = text.letters[current.number];
    const top = [...$('card').querySelectorAll('code')].map((c) => c.textContent);
    say(`${named(what)}: ${bits.toFixed(1)} bits; likely: ${top.join(' ')}`);
  } else if (event.key === 'Enter' && current && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    $('card').querySelector('button')?.focus();
  }
}

function lineBelow(text, here, sign) {  // the character above or below
  if (here < 0) return 0;
  const at = text.letters[here].span.getBoundingClientRect();
  for (let i = here + sign; text.letters[i]; i += sign) {
    const other = text.letters[i].span.getBoundingClientRect();
    if (sign * (other.top - at.top) > 4 && sign * (other.left - at.left) >= 0) return i;
  }
  return here;
}

// --- as code ---

function python(value, indent = '') {
  if (value === null) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (typeof value !== 'object') return JSON.stringify(value);
  const deeper = `${indent}  `, list = Array.isArray(value);
  const inside = Object.entries(value).map(([key, one]) =>
    `${deeper}${list ? '' : `${JSON.stringify(key)}: `}${python(one, deeper)},\n`);
  const [open, close] = list ? '[]' : '{}';
  return inside.length ? `${open}\n${inside.join('')}${indent}${close}` : open + close;
}

function asCurl(body) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = $('key').value ? '  -H "Authorization: Bearer $CRAFT_API_KEY" \\\n' : '';
  return `curl ${location.origin}/v1/completions \\\n${key}`
    + `  -H 'Content-Type: application/json' \\\n  -d '${quoted}'\n`;
}

function asPython(body) {
  const own = Object.entries(body).filter(([name]) => OPENAI.has(name));
  const extra = Object.entries(body).filter(([name]) => !OPENAI.has(name));
  const lines = own.map(([name, one]) => `  ${name}=${python(one, '  ')},\n`);
  if (extra.length) {
    lines.push(`  extra_body=${python(Object.fromEntries(extra), '  ')},\n`);
  }
  const key = $('key').value ? "os.environ['CRAFT_API_KEY']" : "'none'";
  return `${$('key').value ? 'import os\n\n' : ''}import openai\n\n`
    + `client = openai.OpenAI(\n  base_url='${location.origin}/v1', api_key=${key}\n)\n`
    + `answer = client.completions.create(\n${lines.join('')})\n`
    + 'print(answer.choices[0].text)\n';
}

async function copy(name, write) {
  complain();
  try {
    if (!model && !await meet()) return;
    $('codeText').value = visible(write(asked()));  // the same text as JSON
  } catch (error) {
    explain(error);
    return;
  }
  $('codeName').textContent = name;
  $('code').showModal();
  $('codeText').select();
  $('codeText').scrollTop = 0;
  try {
    await navigator.clipboard.writeText($('codeText').value);
    $('codeName').textContent = `${name}: copied`;
  } catch { /* selected, for Ctrl+C */ }
}

// --- all together ---

$('run').addEventListener('click', () => run());
$('stop').addEventListener('click', () => running?.abort());
$('score').addEventListener('click', () => {
  if ($('prompt').value) run(true);
  else complain('The prompt is empty; type a text to see how likely it is.');
});
$('curl').addEventListener('click', () => copy('curl', asCurl));
$('python').addEventListener('click', () => copy('Python', asPython));
$('reset').addEventListener('click', reset);
$('adopt').addEventListener('click', () => {
  $('prompt').value = texts[0].before(texts[0].letters.length, echoed);
  $('prompt').focus();
  $('prompt').scrollTop = $('prompt').scrollHeight;
});
$('kind').addEventListener('change', chooseKind);
$('rule').addEventListener('input', () => {
  rules[$('kind').value] = $('rule').value;
  validate();
});
for (const form of [$('settings'), $('form'), $('key').form]) {
  form.addEventListener('submit', (event) => event.preventDefault());
}
$('key').addEventListener('change', () => {
  keep();
  complain();
  meet();
});
$('keep').addEventListener('change', keep);
function keep() {
  if ($('keep').checked) sessionStorage.setItem('key', $('key').value);
  else sessionStorage.removeItem('key');
}
$('output').addEventListener('keydown', walk);
for (const kind of ['pointerover', 'click']) {
  $('output').addEventListener(kind, (event) => {
    if (event.target.matches('.text > span')) showCard(event.target);
  });
}
document.addEventListener('pointerover', (event) => {
  if (!event.target.closest?.('#output .text, #card')) hideCard();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) run();
  if (event.key !== 'Escape' || $('code').open) return;
  if (running) running.abort();
  else if (current) {
    const box = current.parentElement;
    hideCard();
    box.focus();
  }
});
$('legend').append(make('b', {textContent: 'bits'}), ...[0, ...BITS].map((bits, i) =>
  make('i', {className: i ? `s${i}` : '', textContent: bits})));
$('key').value = sessionStorage.getItem('key') ?? '';
$('keep').checked = Boolean($('key').value);
meet();
