"""Random requests of every kind, what the sampler writes for each, clients."""

import dataclasses
import functools
import http.client
import json
import random
import socket
import struct
from typing import Any, NamedTuple

import jax
import numpy as np

from craft_jax.inference.sampling.answers import (
  Answer,
  Answers,
  Prepared,
  add_echoes,
  prepare,
)
from craft_jax.inference.sampling.generate import decoding_params, generate
from craft_jax.inference.sampling.request import Request
from craft_jax.serve.responses import token_name

_ENDS = ((), ('<bos>',), ('<eos>',))
_MOST_DRAWN = 4  # texts per prompt
_TEXTS = ('12 squared is 144', 'é3—😀\n', '7', ' is ', '99 squared')
_CONSTRAINTS = (
  {'regex': '[0-9]{1,6} squared is [0-9]{1,8}'},
  {'regex': '(yes|no|perhaps)( indeed)?'},
  {'regex': r'é[0-9]—\n'},
  {'regex': '(the same beginning of it|the same beginning of all)'},
  {'regex': '[^0-9]{3,9}'},
  {'regex': '(😀|é|—){1,12}'},
  {'allowed_chars': '0123456789 \n'},
  {'allowed_chars': 'é—😀 abc'},
  {'regex': '[a-z ]+', 'allowed_chars': 'square di'},
)
_SCHEMAS = (
  {'type': 'integer', 'minimum': 10, 'maximum': 999},
  {'enum': ['left', 'right', 7, None, True]},
  {
    'type': 'object',
    'properties': {'n': {'type': 'integer'}, 'ok': {'type': 'boolean'}},
    'required': ['n', 'ok'],
    'additionalProperties': False,
  },
  {'type': 'array', 'items': {'type': 'boolean'}, 'minItems': 1, 'maxItems': 3},
)


# --- what is asked ---


def _any_plane(rng: random.Random) -> str:
  """Characters of each of the 17 planes of Unicode."""
  found = []
  for plane in rng.sample(range(17), rng.randint(1, 17)):
    code = plane << 16 | rng.randrange(1 << 16)
    found.append('é' if 0xD800 <= code < 0xE000 else chr(code))
  return ''.join(found)


def _prompt(rng: random.Random) -> str | list[int]:
  kind = rng.random()
  if kind < 0.5:
    return ''.join(rng.choices(_TEXTS, k=rng.randint(0, 3)))
  if kind < 0.7:
    return _any_plane(rng)
  if kind < 0.8:  # longer than the context
    return ''.join(rng.choices(_TEXTS, k=rng.randint(8, 30)))
  if kind < 0.9:  # ids of a text that may be cut within a character
    ids = list(_any_plane(rng).encode())
    return ids[: rng.randint(1, len(ids))]
  return [rng.randrange(258) for _ in range(rng.randint(1, 20))]


def _drawing(rng: random.Random) -> dict[str, Any]:
  """How tokens are chosen."""
  usual: dict[str, Any] = {
    'temperature': rng.choice([0, 0.5, 1, 1.3]),
    'seed': rng.randint(-(2**40), 2**40),
  }
  some = {
    'top_p': lambda: rng.uniform(0.3, 1),
    'top_k': lambda: rng.randint(1, 40),
    'min_p': lambda: rng.uniform(0, 0.2),
    'typical_p': lambda: rng.uniform(0.5, 1),
    'repetition_penalty': lambda: rng.uniform(0.8, 1.5),
    'presence_penalty': lambda: rng.uniform(-2, 2),
    'frequency_penalty': lambda: rng.uniform(-2, 2),
    'logit_bias': lambda: {
      str(rng.randrange(128)): rng.uniform(-9, 9) for _ in range(3)
    },
    'stop': lambda: rng.choice(
      [' ', ['s', 'is', '1'], ['—', '😀'], ['squared is', 'e', '\n', '00']]
    ),
    'user': lambda: _any_plane(rng),
    'ignore_eos': lambda: True,
  }
  chosen = rng.sample(sorted(some), rng.choice([0, 0, 1, 2, 4]))
  return usual | {name: some[name]() for name in chosen}


def valid(rng: random.Random) -> dict[str, Any]:
  """A request that is answered with 200, and by one text only."""
  body = {'max_tokens': rng.randint(1, 24)}
  if rng.random() < 0.05:
    beams = rng.choice([2, 3])
    return body | {
      'prompt': rng.choice(_TEXTS), 'max_tokens': 6, 'beam_width': beams,
      'n': rng.randint(1, beams), 'echo': rng.random() < 0.5,
    }  # fmt: skip
  body |= _drawing(rng) | {'prompt': _prompt(rng)}
  if rng.random() < 0.15:
    body['prompt'] = [
      p if isinstance(p, str) else '' for p in map(_prompt, [rng] * 3)
    ]
  elif rng.random() < 0.05:
    body['prompt'] = [[1, 2, 3], list('é'.encode())]
  body['n'] = rng.choice([1, 1, 1, 2, 3])
  if rng.random() < 0.1:
    body['best_of'] = body['n'] + rng.randint(0, _MOST_DRAWN - body['n'])
  if rng.random() < 0.3:
    body['logprobs'] = rng.randint(0, 5)
  if rng.random() < 0.2:
    body['echo'] = True
    if rng.random() < 0.2:
      body['max_tokens'] = 0
  if rng.random() < 0.3 and body['max_tokens']:
    form = rng.choice([*_CONSTRAINTS, *_SCHEMAS])
    if form in _SCHEMAS:
      shown = {'name': 'it', 'schema': form}
      form = {'response_format': {'type': 'json_schema', 'json_schema': shown}}
    body |= form | {'max_tokens': rng.randint(36, 48)}
  if body['max_tokens'] > 1 and rng.random() < 0.02:
    body['max_tokens'] = 200  # the window slides
  return body


def malformed(rng: random.Random) -> tuple[Any, tuple[int, str | None]]:
  """A request that is refused; the status, and the field to blame."""
  wrong = [
    ({'promt': 'a'}, 'promt'), ({'suffix': 'a'}, 'suffix'),
    ({'prompt': []}, 'prompt'), ({'prompt': [[]]}, 'prompt'),
    ({'prompt': [1, 999]}, 'prompt'), ({'prompt': [-1]}, 'prompt'),
    ({'prompt': ['a', 1]}, 'prompt'), ({'prompt': {'a': 1}}, 'prompt'),
    ({'max_tokens': 0, 'echo': False}, 'max_tokens'),
    ({'max_tokens': 10**6}, 'max_tokens'), ({'max_tokens': 1.5}, 'max_tokens'),
    ({'temperature': -1}, 'temperature'), ({'temperature': 'x'}, 'temperature'),
    ({'top_p': 1.1}, 'top_p'), ({'n': 0}, 'n'), ({'n': 129}, 'n'),
    ({'n': 3, 'best_of': 2}, 'best_of'), ({'logprobs': 6}, 'logprobs'),
    ({'stop': ['a'] * 5}, 'stop'), ({'stop': 7}, 'stop'),
    ({'logit_bias': {'a': 1}}, 'logit_bias'),
    ({'logit_bias': {'999': 1}}, 'logit_bias'),
    ({'regex': '('}, 'regex'), ({'regex': '(a|b)*a(a|b){18}'}, 'regex'),
    ({'response_format': {'type': 'json_schema'}}, 'response_format'),
    ({'response_format': {'type': 'xml'}}, 'response_format'),
    ({'stream': True, 'n': 1, 'best_of': 2}, 'best_of'),
    ({'stream': True, 'n': 1, 'beam_width': 2}, 'beam_width'),
    ({'stream': False, 'stream_options': {}}, 'stream_options'),
    ({'seed': 2**70}, 'seed'),
  ]  # fmt: skip
  kind = rng.random()
  if kind < 0.1:
    half = json.dumps(valid(rng))[:-1].encode()
    return rng.choice([half, b'', b'[]', b'\xff', b'null']), (400, None)
  plain = {'prompt': _TEXTS[0], 'max_tokens': 5, 'seed': rng.getrandbits(9)}
  if kind < 0.2:
    return plain | {'model': 'another'}, (404, 'model')
  fields, param = rng.choice(wrong)
  return plain | fields, (400, param)


# --- what is to be answered ---


class Choice(NamedTuple):
  """A text as it is compared.

  Attributes:
    text: the prompt before it where there is `echo`.
    reason: why it ended.
    tokens: names of its tokens; () where no log-probabilities are asked for.
    logprobs: of these.
    top: likewise, those of others too.
    offsets: likewise, the characters before each.
    before: characters that offsets count and `text` has not.
  """

  text: str
  reason: str
  tokens: tuple[str, ...] = ()
  logprobs: tuple[float | None, ...] = ()
  top: tuple[dict[str, float] | None, ...] = ()
  offsets: tuple[int, ...] = ()
  before: int = 0


class Oracle:
  """The sampler alone, asked one at a time; knows nothing of the server.

  Args:
    trained: the model.
  """

  def __init__(self, trained: Any):
    self._trained = trained
    self._params = decoding_params(trained.model, trained.params)

  def choices(self, body: dict[str, Any], noise: int = 0) -> list[Choice]:
    """What a body is to be answered; `noise` rounds differently."""
    params = self._params
    if noise:
      params = _shaken(params, jax.random.key(noise))
    prompts = body['prompt']
    if isinstance(prompts, str) or isinstance(prompts[0], int):
      prompts = [prompts]
    samples = []
    for i, prompt in enumerate(prompts):
      samples += self._samples(self._prepared(body, prompt), i, body, params)
    return [self._choice(body, sample) for sample in samples]

  def allows(self, body: dict[str, Any], texts: list[str]) -> bool:
    """Whether other rounding writes these texts: a near-tie decided."""
    return any(
      [choice.text for choice in self.choices(body, noise)] == texts
      for noise in range(1, 25)
    )

  def _prepared(self, body: dict[str, Any], prompt: Any) -> Prepared:
    form = body.get('response_format')
    stop = body.get('stop', [])
    n = body.get('n', 1)
    best_of = body.get('best_of', n)
    same = (
      'temperature', 'top_p', 'top_k', 'min_p', 'typical_p', 'logprobs',
      'repetition_penalty', 'presence_penalty', 'frequency_penalty', 'regex',
      'allowed_chars', 'echo',
    )  # fmt: skip
    shown = prompt
    if not isinstance(prompt, str):
      shown = bytes(token for token in prompt if token < 256)
    request = Request(
      prompt=shown,
      max_chars=max(body['max_tokens'], 1),
      num_samples=n,
      best_of=best_of if best_of > n else 0,
      beams=body.get('beam_width', 0),
      seed=body.get('seed', 0) % 2**32,
      stop=(stop,) if isinstance(stop, str) else tuple(stop),
      json_schema=form and form['json_schema']['schema'],
      ignore_end=body.get('ignore_eos', False),
      penalty_window=self._trained.cfg.model.context,
      **{name: body[name] for name in same if name in body},
    )
    one = prepare(self._trained, request)
    biases = {int(k): x for k, x in body.get('logit_bias', {}).items()}
    settings = dataclasses.replace(one.settings, logit_bias=biases)
    if isinstance(prompt, str):
      return one._replace(settings=settings)
    # The ids of specials cannot be had from a text.
    ids = np.array(prompt, self._trained.vocabulary.dtype)
    request = dataclasses.replace(request, prompt=shown or ' ')
    return one._replace(settings=settings, ids=ids, request=request)

  def _samples(self, one: Prepared, number: int, body: Any, params: Any) -> Any:
    if one.request.beams:
      found = Answers(self._trained, [one], params)
      list(found)
      return found.samples()
    drawn = one.request.num_drawn
    answer = Answer(one, drawn)
    add_echoes(self._trained, [answer])
    if not body['max_tokens']:
      for sample in answer.drawn:
        sample.finish_reason = 'length'
      return answer.samples()
    # Of one shape, so that one program writes all, and without drafts.
    for pieces in generate(
      self._trained.model, params, self._trained.vocabulary,
      [one.ids] * _MOST_DRAWN, one.settings, one.request.seed,
      one.request.max_chars, first_row=number * drawn, num_top=5, drafts=None,
    ):  # fmt: skip
      for piece in pieces:
        if piece.row < drawn:
          answer.drawn[piece.row].add(piece, self._trained.vocabulary)
    return answer.samples()

  def _choice(self, body: dict[str, Any], sample: Any) -> Choice:
    shown = 0 if body.get('echo') else len(sample.prepared.shown)
    whole = Choice(sample.full_text, sample.finish_reason, before=shown)
    if 'logprobs' not in body:
      return whole
    ids, logprobs, top = sample.ids, sample.logprobs, sample.top
    if body.get('echo') and body['max_tokens'] == 1:
      # A character may be several; see "What differs" in docs/serving.md.
      ids, logprobs, top = ids[:1], logprobs[:1], top[:1]
    if body.get('echo') and sample.prepared.request.prompt:
      ids = [*sample.prepared.ids.tolist(), *ids]
      logprobs = [None, *sample.prompt_logprobs, *logprobs]
      top = [(), *sample.prompt_top, *top]
    name = functools.partial(token_name, self._trained.vocabulary)
    return whole._replace(
      tokens=tuple(map(name, ids)),
      logprobs=tuple(logprobs),
      top=tuple({name(other): log for other, log in pairs} for pairs in top),
    )


def _shaken(params: Any, key: Any) -> Any:
  """Each parameter off by some units in its last place."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  return tree.unflatten(
    leaf * (1 + 1e-6 * jax.random.normal(k, leaf.shape))
    for leaf, k in zip(leaves, keys, strict=True)
  )


def difference(got: Choice, want: Choice) -> str:
  """What a choice of the server has that is not as wanted; '' for nothing.

  Figures agree to the rounding of other shapes. Places are those that are
  wanted, if any are; else each token has to be where they say.
  """
  if (got.text, got.reason) != (want.text, want.reason):
    return f'{got[:2]} is not {want[:2]}'
  # The sampler does not give the token that ends a text.
  if got.tokens not in [want.tokens + end for end in _ENDS]:
    return f'{got.tokens} are not {want.tokens}'
  places = want.offsets or tuple(
    at if len(name) > 1 or got.text[at - want.before :][:1] == name else None
    for name, at in zip(got.tokens, got.offsets, strict=True)
  )
  if got.offsets != places:
    return f'{got.offsets} are not {places} in {got.text!r}'
  for a, b in zip(got.logprobs, want.logprobs, strict=False):
    if (a is None) != (b is None) or (a is not None and abs(a - b) > 1e-3):
      return f'{got.logprobs} are not {want.logprobs}'
  for pairs, others in zip(got.top, want.top, strict=False):
    for name, log in (others or {}).items():
      # Of two nearly alike the one or the other is among the most likely.
      least = min(pairs.values()) - 1e-3
      if abs(pairs.get(name, log) - log) > 1e-3 or log < least:
        return f'{pairs} are not {others}'
  return ''


# --- who asks ---


class Answered(NamedTuple):
  """An answer.

  Attributes:
    status: of HTTP.
    choices: of a 200.
    error: of another.
    usage: where it was given.
  """

  status: int
  choices: tuple[Choice, ...] = ()
  error: Any = None
  usage: Any = None


class Client:
  """One connection after the other, each kept while the server keeps it."""

  def __init__(self, port: int):
    self._port = port
    self._line = http.client.HTTPConnection('127.0.0.1', port, timeout=120)

  def ask(self, body: Any) -> Answered:
    """Sends a body and reads all that comes."""
    self._send(body)
    answer = self._line.getresponse()
    data = answer.read()
    if answer.status != 200:
      return Answered(answer.status, error=json.loads(data)['error'])
    if not answer.headers['content-type'].startswith('text/event-stream'):
      found = json.loads(data)
      choices = [_read([one]) for one in found['choices']]
      return Answered(200, tuple(choices), usage=found['usage'])
    *events, done, end = data.decode().split('\n\n')
    assert (done, end) == ('data: [DONE]', ''), data[-200:]
    parts: dict[int, list[Any]] = {}
    usage = None
    for event in events:
      found = json.loads(event.removeprefix('data: '))
      if 'error' in found:
        return Answered(200, error=found['error'])
      usage = found.get('usage') or usage
      for choice in found['choices']:
        parts.setdefault(choice['index'], []).append(choice)
    choices = [_read(parts[i]) for i in sorted(parts)]
    return Answered(200, tuple(choices), usage=usage)

  def leave(
    self, body: Any, seconds: float, after: int, half: bool = False
  ) -> None:
    """Sends a body, or half of it, and goes away; after so many bytes too."""
    self._send(body, half)
    line = self._line.sock
    line.settimeout(max(seconds, 0.001))
    got = 0
    try:
      while got < after and (piece := line.recv(after - got)):
        got += len(piece)
    except TimeoutError:
      pass
    if got:  # a reset, which takes nothing with it that was asked
      reset = struct.pack('ii', 1, 0)
      line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    self._line.close()

  def close(self) -> None:
    """Ends the connection."""
    self._line.close()

  def _send(self, body: Any, half: bool = False) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {
      'Content-Type': 'application/json', 'Content-Length': str(len(data))
    }  # fmt: skip
    data = data[: len(data) // 2] if half else data
    self._line.request('POST', '/v1/completions', data, headers)


def _read(parts: list[Any]) -> Choice:
  """The pieces of a choice as one."""
  text = ''.join(part['text'] for part in parts)
  assert all(part['finish_reason'] is None for part in parts[:-1])
  reason = parts[-1]['finish_reason']
  if parts[0]['logprobs'] is None:
    return Choice(text, reason)
  lists = [
    tuple(one for part in parts for one in part['logprobs'][name])
    for name in ('tokens', 'token_logprobs', 'top_logprobs', 'text_offset')
  ]
  return Choice(text, reason, *lists)
