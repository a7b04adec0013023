"""`craft score` on a model that a real, tiny run has trained."""

import io
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from craft_jax import main as entry
from craft_jax.config.settings import Config, Model, Text
from craft_jax.data.text.vocabulary import Vocabulary
from craft_jax.inference import score
from craft_jax.inference.load import load_model
from craft_jax.inference.sampling.prompt import start_tokens
from craft_jax.model.build import build
from craft_jax.model.precision import platform_of
from craft_jax.runs import checkpoint

HERE = platform_of(jax.devices()[0])

TEXT = 'the quick brown fox jumps over the lazy dog, né?\n' * 60
TINY = (
  '--quiet', '--config=text', '--config.train.steps=12',
  '--config.train.batch_size=4', '--config.eval.batch_size=4',
  '--config.model.context=32', '--config.model.width=16',
  '--config.model.depth=1', '--config.model.num_heads=1',
  '--config.optim.warmup_steps=2', '--config.optim.name=adamw',
  '--config.log.sample_chars=0',
)  # fmt: skip


@pytest.fixture(scope='module')
def byte_run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('byte')
  (folder / 'text.txt').write_text(TEXT)
  workdir = folder / 'run'
  argv = ['train', f'--workdir={workdir}', *TINY]
  assert entry.main([*argv, f'--config.data.path={folder / "text.txt"}']) == 0
  return str(workdir)


def untrained(workdir, unknown):
  """A run of a character model as it was initialised."""
  cfg = Config(
    text=Text(vocabulary='char', unknown=unknown),
    model=Model(context=32, width=16, depth=1, num_heads=1),
  )
  vocabulary = Vocabulary.from_text(TEXT, 20, unknown)
  params = jax.jit(build(cfg.model, vocabulary.size, HERE).init)(
    jax.random.key(0)
  )
  state = {
    'step': jnp.int32(1),
    'data_offset': jnp.int32(0),
    'params': params,
    'opt_state': (),
    'ema': None,
  }
  with checkpoint.Checkpointer(workdir) as saver:
    saver.save(state, checkpoint.Meta(1, cfg, vocabulary, 'abc', {}))
  return str(workdir)


@pytest.fixture
def craft(capsys, monkeypatch):
  """Runs `craft score`; gives code, standard output and error."""

  def run(workdir, *flags, stdin=None):
    piped = io.TextIOWrapper(io.BytesIO(stdin or b''))
    piped.isatty = lambda: stdin is None
    monkeypatch.setattr(sys, 'stdin', piped)
    capsys.readouterr()
    code = entry.main(['score', f'--workdir={workdir}', *flags])
    return code, *capsys.readouterr()

  return run


def last_object(out):
  return json.loads(out.splitlines()[-1])


def test_figures(craft, byte_run):
  text = 'the né' + 'dog, ' * 20
  code, out, _ = craft(byte_run, f'--text={text}', '--json', '--per-char')
  assert code == 0 and 'bits per byte' in out and 'nats in total' in out
  result = last_object(out)
  (got,) = result['texts']
  assert (result['step'], result['context'], result['stride']) == (12, 32, 16)
  data = text.encode()
  assert (got['characters'], got['bytes']) == (len(text), len(data))
  assert got['count'] == len(data) and got['name'] == 'text'

  _, vocabulary, model, params, meta = load_model(byte_run)
  tokens = np.concatenate(
    [start_tokens(vocabulary, meta.documents), vocabulary.encode(text)]
  )
  nats = score.token_nats(model, params, tokens).sum(dtype=np.float64)
  assert got['nats'] == pytest.approx(nats, rel=1e-6)
  assert got['loss'] == pytest.approx(nats / len(data))
  assert got['bpb'] == pytest.approx(nats / math.log(2) / len(data))
  assert got['bpc'] == pytest.approx(nats / math.log(2) / len(text))
  assert got['perplexity'] == pytest.approx(math.exp(nats / len(data)))
  each = got['per_char']
  assert ''.join(each['characters']) == text
  assert each['offsets'][5:8] == [5, 7, 8]
  assert sum(each['nats']) == pytest.approx(nats, rel=1e-6)


def test_sources(craft, byte_run, tmp_path):
  for name in ('a', 'b'):
    (tmp_path / name).write_text(f'the {name}\n' * 30)
  flags = [f'--file={tmp_path / name}' for name in ('a', 'b')]
  _, out, _ = craft(byte_run, '--text=x', '--text=the', *flags, '--json')
  texts = last_object(out)['texts']
  assert [t['name'] for t in texts][:2] == ['text 1', 'text 2']
  assert [t['bytes'] for t in texts] == [1, 3, 180, 180]
  assert 'per_char' not in texts[0]
  alone = last_object(craft(byte_run, flags[1], '--json')[1])['texts'][0]
  assert alone['nats'] == pytest.approx(texts[3]['nats'], rel=1e-4)
  piped = craft(byte_run, '--json', stdin=b'the')[1]
  assert last_object(piped)['texts'][0]['nats'] == pytest.approx(
    texts[1]['nats'], rel=1e-4
  )
  named = craft(byte_run, '--file=-', '--json', stdin=b'the')[1]
  assert last_object(named) == last_object(piped)


def test_any_bytes_of_a_byte_model(craft, byte_run):
  code, out, _ = craft(byte_run, '--json', '--per-char', stdin=b'\xff\x00\xc3')
  (got,) = last_object(out)['texts']
  assert code == 0 and got['bytes'] == got['characters'] == 3
  assert got['per_char']['characters'] == ['\ufffd', '\0', '\ufffd']


def test_character_model(craft, tmp_path):
  workdir = untrained(tmp_path / 'run', 'replace')
  code, out, _ = craft(workdir, '--text=ne', '--json', '--stride=1')
  (got,) = last_object(out)['texts']
  assert code == 0 and got['count'] == got['characters'] == 2
  assert got['bytes'] == 2 and got['bpb'] == got['bpc']
  # What the vocabulary lacks becomes UNK: nobody knows for how many bytes.
  code, out, _ = craft(workdir, '--text=the DOG', '--json')
  (got,) = last_object(out)['texts']
  assert code == 0 and got['bpb'] is None and '3 characters' in got['withheld']
  assert 'bits per byte withheld' in out


def test_unknown_characters(craft, tmp_path):
  workdir = untrained(tmp_path / 'run', 'error')
  path = tmp_path / 'x.txt'
  path.write_text('the Dog')
  code, _, err = craft(workdir, f'--file={path}')
  assert code == 2 and err.count('\n') == 1
  assert f'{path}: character U+0044' in err and 'at position 4' in err


@pytest.mark.parametrize(
  'flags, words',
  [
    ([], 'nothing to score; give --text'),
    (['--text='], 'text is empty'),
    (['--text=a', '--per-char'], 'give both'),
    (
      ['--text=a', '--stride=99'],
      'stride=99 must be from 0 to model.',
    ),
    (['--file=no/such/file'], 'no/such/file: No such file'),
    (['--text=a', '--step=7'], 'has no step 7'),
    (['--text=a', '--html=no/such/page'], 'no/such/page: there is no folder'),
  ],
)
def test_mistakes(craft, byte_run, flags, words):
  code, _, err = craft(byte_run, *flags)
  assert code == 2 and words in err and err.count('\n') == 1


def test_heat_without_colours(craft, byte_run, monkeypatch):
  monkeypatch.delenv('FORCE_COLOR', raising=False)
  _, out, _ = craft(byte_run, '--text=the\tx\x1b', '--heat')
  assert 'the⇥x␛' in out and '\x1b' not in out
  assert 'a digit is the bits' in out


def test_heat_with_colours(craft, byte_run, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')
  monkeypatch.setenv('COLORTERM', 'truecolor')
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.delenv('NO_COLOR', raising=False)
  _, out, _ = craft(byte_run, '--text=the x', '--heat')
  assert '\x1b[' in out and 'below 0.5' in out
  monkeypatch.setenv('NO_COLOR', '1')
  _, out, _ = craft(byte_run, '--text=the x', '--heat')
  assert '\x1b' not in out and 'the·x' in out


def test_html(craft, byte_run, tmp_path):
  path = tmp_path / 'page.html'
  _, out, _ = craft(byte_run, '--text=<the> é', f'--html={path}')
  page = path.read_text()
  assert f'wrote {path}' in out and '&lt;' in page and '<the>' not in page
  assert page.count('title="U+') == 7 and 'nats per token' in page


def test_models_that_adapt(craft, byte_run):
  flags = ('--text=' + 'so it goes; ' * 30, '--dynamic', '--cache', '--json')
  _, out, _ = craft(byte_run, *flags, '--dynamic-rate=0.01', '--per-char')
  (got,) = last_object(out)['texts']
  alone = last_object(craft(byte_run, flags[0], '--json')[1])['texts'][0]
  assert {name: got[name] for name in alone} == alone
  for name in ('dynamic', 'dynamic_cache', 'dynamic_both'):
    assert f'\n{name}: ' in out
    assert got[f'loss_{name}'] < got['loss'] - 0.3
    nats = got[f'nats_{name}']
    assert got[f'bpb_{name}'] == pytest.approx(nats / math.log(2) / 360)
    assert sum(got['per_char'][f'nats_{name}']) == pytest.approx(nats)
  _, out, _ = craft(byte_run, '--text=the the', '--cache', '--heat')
  assert 'coloured by dynamic_cache' in out


def test_eval_has_them_under_their_names(byte_run, capsys):
  argv = ['eval', f'--workdir={byte_run}', '--json', '--stride=8']
  assert entry.main(argv) == 0
  static = last_object(capsys.readouterr().out)
  assert entry.main([*argv, '--dynamic', '--dynamic-rate=0.01', '--cache']) == 0
  out = capsys.readouterr().out
  got = last_object(out)
  assert {name: got[name] for name in static} == static
  added = set(got) - set(static)
  assert added and all('dynamic' in name for name in added)
  assert got['val_stride_dynamic'] == 8
  assert got['val_loss_dynamic'] < static['val_loss_strided']
  assert 'not comparable' in out


def test_rates_need_their_flag(craft, byte_run):
  code, _, err = craft(byte_run, '--text=a', '--dynamic-rate=0.1')
  assert code == 2 and '--dynamic; give it too' in err
  code, _, err = craft(byte_run, '--text=a', '--dynamic', '--dynamic-decay=2')
  assert code == 2 and 'decay 2.0 must be from 0 to 1' in err
