"""Trains the PyTorch model when told to: the peer of `craft_train.py`."""

import argparse
import json

import numpy as np
import torch
import torch_model
import worker


def main() -> None:
  """Reads the sizes, compiles if asked, and serves."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('shape', help='JSON of torch_model.Shape')
  parser.add_argument('tokens', help='a .npy file')
  parser.add_argument('--batch', type=int, required=True)
  parser.add_argument('--steps', type=int, required=True)
  parser.add_argument('--bfloat16', action='store_true')
  parser.add_argument('--compile', action='store_true')
  parser.add_argument('--transformers', action='store_true')
  args = parser.parse_args()
  torch.manual_seed(0)
  torch.set_float32_matmul_precision('high')
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  shape = torch_model.Shape(**json.loads(args.shape))
  kind = torch_model.HuggingFace if args.transformers else torch_model.Decoder
  model = kind(shape).to(device).train()
  optimizer = torch_model.adamw(model, 1e-3, 0.1, 0.99)
  forward = torch.compile(model) if args.compile else model
  tokens = torch.from_numpy(np.load(args.tokens).astype(np.int64))
  if device == 'cuda':
    tokens = tokens.to(device)
  places_T = torch.arange(shape.context + 1, device=tokens.device)
  cast = torch_model.autocast(device, args.bfloat16)

  def step() -> torch.Tensor:
    starts_B = torch.randint(
      len(tokens) - shape.context, (args.batch,), device=tokens.device
    )
    window_BT = tokens[starts_B[:, None] + places_T]
    return torch_model.train_step(forward, optimizer, window_BT, cast)

  def run() -> None:
    for _ in range(args.steps):
      loss = step()
    loss.item()  # waits for an accelerator

  worker.serve(
    run,
    params=sum(p.numel() for p in model.parameters()),
    torch=torch.__version__,
    threads=torch.get_num_threads(),
  )


if __name__ == '__main__':
  main()
