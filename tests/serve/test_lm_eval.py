"""lm-eval's `local-completions`, on a task of our own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from craft_jax.inference.load import load_model
from craft_jax.inference.sampling.prompt import start_tokens
from craft_jax.inference.score import token_nats
from craft_jax.inference.surprisal import score_texts

_ROWS = [
  {'query': '12 squared is', 'choices': [' 144', ' 145'], 'gold': 0},
  {'query': 'é—😀\n7 squared is', 'choices': [' 49', ' é', ' 4'], 'gold': 0},
  {'query': 'x' * 90, 'choices': ['x', ' squared is'], 'gold': 1},
]
# Run as a program of its own: it sets up logging, datasets and event loops.
_PROGRAM = """
import json, sys
import lm_eval
from lm_eval.api.task import ConfigurableTask

url, name, rows, start = sys.argv[1:]
usual = {
  'dataset_path': 'json', 'dataset_kwargs': {'data_files': {'test': rows}},
  'test_split': 'test', 'target_delimiter': '', 'metadata': {'version': 0},
}
tasks = [
  ConfigurableTask(config=usual | {
    'task': 'choose', 'output_type': 'multiple_choice',
    'doc_to_text': 'query', 'doc_to_choice': 'choices', 'doc_to_target': 'gold',
    'metric_list': [{'metric': 'acc'}],
  }),
  ConfigurableTask(config=usual | {
    'task': 'write', 'output_type': 'generate_until',
    'doc_to_text': 'query', 'doc_to_target': '{{choices[0]}}',
    'generation_kwargs': {'until': ['\\n'], 'max_gen_toks': 12},
    'metric_list': [{'metric': 'exact_match'}],
  }),
  ConfigurableTask(config=usual | {
    'task': 'roll', 'output_type': 'loglikelihood_rolling',
    'doc_to_text': '', 'doc_to_target': 'query',
    'metric_list': [{'metric': 'bits_per_byte'}],
  }),
]
found = lm_eval.simple_evaluate(
  model='local-completions',
  model_args={
    'model': name, 'base_url': url + '/v1/completions',
    'tokenizer_backend': 'remote', 'num_concurrent': 2, 'max_length': 100000,
    'custom_prefix_token_id': int(start),
  },
  tasks=tasks, log_samples=True, bootstrap_iters=0,
)
print('FOUND ' + json.dumps({
  'choose': [s['filtered_resps'] for s in found['samples']['choose']],
  'write': [s['resps'] for s in found['samples']['write']],
  'roll': [s['filtered_resps'] for s in found['samples']['roll']],
  'acc': found['results']['choose']['acc,none'],
}))
"""


@pytest.mark.slow
def test_likelihoods_are_those_of_craft_score(server, model_dir, tmp_path):
  pytest.importorskip('lm_eval')
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(''.join(json.dumps(row) + '\n' for row in _ROWS))
  trained = load_model(model_dir)
  # What a text of this run begins after, as `craft score` has it.
  (start,) = start_tokens(trained.vocabulary, trained.meta.documents)
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM, server.url, server.name, str(rows),
     str(start)],
    env=os.environ | {
      'HF_HOME': str(tmp_path / 'hf'), 'HF_HUB_OFFLINE': '1',
      'HF_DATASETS_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false',
    },
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip
  lines = [x for x in done.stdout.splitlines() if x.startswith('FOUND ')]
  assert done.returncode == 0 and lines, done.stdout
  found = json.loads(lines[0].removeprefix('FOUND '))
  best = []
  for row, answers in zip(_ROWS, found['choose'], strict=True):
    want = []
    for choice in row['choices']:
      ids = trained.vocabulary.encode(row['query'] + choice)
      nats = token_nats(trained.model, trained.params, ids)
      want.append(-float(nats[-len(choice.encode()) :].sum()))
    got = [float(logprob) for logprob, _ in answers]
    np.testing.assert_allclose(got, want, atol=1e-3)
    best.append(int(np.argmax(want)) == row['gold'])
  assert found['acc'] == pytest.approx(np.mean(best))
  for row, ((text,),) in zip(_ROWS, found['write'], strict=True):
    asked = server.complete(
      prompt=row['query'], max_tokens=12, temperature=0, stop='\n'
    )
    assert text == asked['choices'][0]['text']
  scored = score_texts(
    trained, [(str(i), row['query'].encode()) for i, row in enumerate(_ROWS)]
  )
  for one, (got,) in zip(scored, found['roll'], strict=True):
    assert -float(got) == pytest.approx(one.figures['nats'], abs=1e-3)
