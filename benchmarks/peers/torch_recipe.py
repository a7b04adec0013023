"""nanoGPT's documented run for a CPU, from start to finish.

4 layers, width 128, 4 heads, context 64, 12 sequences a step, 2,000 steps, no
dropout, AdamW of 1e-3 with 100 steps of warm-up and a cosine to 1e-4, betas
0.9 and 0.99, decay 0.1, gradients clipped to 1 (github.com/karpathy/nanoGPT,
README and train.py). Every 250 steps the loss on the whole validation split, in
windows side by side: a JSON line with step, loss and seconds since the process
began.
"""

import argparse
import json
import math
import pathlib
import time

import torch
import torch_model

_STEPS, _WARM_UP, _BATCH, _EVERY = 2000, 100, 12, 250
_PEAK, _LEAST = 1e-3, 1e-4


def main() -> None:
  """Trains; stops at the last loss asked for."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('text')
  parser.add_argument('--began', type=float, required=True, help='time.time()')
  parser.add_argument('--stop-at', type=float, default=0.0, help='a loss')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--bfloat16', action='store_true')
  args = parser.parse_args()
  torch.manual_seed(args.seed)
  text = pathlib.Path(args.text).read_text(encoding='utf-8')
  places = {char: i for i, char in enumerate(sorted(set(text)))}
  tokens = torch.tensor([places[char] for char in text])
  train, valid = tokens.split([int(0.9 * len(tokens)), -(-len(tokens) // 10)])
  shape = torch_model.Shape(len(places), 64, 128, 4, 4)
  model = torch_model.Decoder(shape)
  optimizer = torch_model.adamw(model, _PEAK, 0.1, 0.99)
  cast = torch_model.autocast('cpu', args.bfloat16)
  places_T = torch.arange(shape.context + 1)
  for step in range(1, _STEPS + 1):
    for group in optimizer.param_groups:
      group['lr'] = _learning_rate(step - 1)
    starts_B = torch.randint(len(train) - shape.context, (_BATCH,))
    window_BT = train[starts_B[:, None] + places_T]
    torch_model.train_step(model, optimizer, window_BT, cast)
    if step % _EVERY == 0:
      value = _evaluated(model, valid)
      seconds = time.time() - args.began
      row = {'step': step, 'val_loss': value, 'seconds': seconds}
      print(json.dumps(row), flush=True)
      if value <= args.stop_at:
        break


def _learning_rate(step: int) -> float:
  if step < _WARM_UP:
    return _PEAK * (step + 1) / (_WARM_UP + 1)
  share = (step - _WARM_UP) / (_STEPS - _WARM_UP)
  return _LEAST + 0.5 * (1 + math.cos(math.pi * share)) * (_PEAK - _LEAST)


@torch.inference_mode()
def _evaluated(model: torch_model.Decoder, valid: torch.Tensor) -> float:
  """Nats per character over all whole windows, side by side."""
  T = model.shape.context
  rows = (len(valid) - 1) // T
  x_RT, y_RT = (
    valid[: rows * T].view(-1, T),
    valid[1 : rows * T + 1].view(-1, T),
  )
  total = 0.0
  for x_BT, y_BT in zip(x_RT.split(128), y_RT.split(128), strict=True):
    total += float(torch_model.loss_of(model(x_BT), y_BT)) * x_BT.numel()
  return total / x_RT.numel()


if __name__ == '__main__':
  main()
