"""Writes text with PyTorch when told to: the peers of `craft_decode.py`."""

import argparse
import json

import torch
import torch_model
import worker


def main() -> None:
  """Builds a model and serves it, without a cache or as `transformers` does."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('shape', help='JSON of torch_model.Shape')
  parser.add_argument('--batch', type=int, required=True)
  parser.add_argument('--prompt', type=int, required=True)
  parser.add_argument('--chars', type=int, required=True)
  parser.add_argument('--bfloat16', action='store_true')
  parser.add_argument('--transformers', action='store_true')
  args = parser.parse_args()
  torch.manual_seed(0)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  shape = torch_model.Shape(**json.loads(args.shape))
  kind = torch_model.HuggingFace if args.transformers else torch_model.Decoder
  model = kind(shape).to(device).eval()
  prompt_BT = torch.arange(args.prompt, device=device).remainder(10)
  prompt_BT = prompt_BT.expand(args.batch, -1)
  cast = torch_model.autocast(device, args.bfloat16)

  def run() -> None:
    write = torch_model.write if args.transformers else _without_cache
    with torch.inference_mode(), cast:
      text_BT = write(model, prompt_BT, args.chars)
    assert text_BT.shape == (args.batch, args.prompt + args.chars)
    text_BT.cpu()

  worker.serve(run, torch=torch.__version__, threads=torch.get_num_threads())


def _without_cache(
  model: torch_model.Decoder, text_BT: torch.Tensor, chars: int
) -> torch.Tensor:
  """Reads the whole window for every token, as nanoGPT does."""
  for _ in range(chars):
    logits_BV = model(text_BT[:, -model.shape.context :])[:, -1] / 0.8
    least_B1 = torch.topk(logits_BV, 50).values[:, -1:]
    logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    chosen_B1 = torch.multinomial(logits_BV.float().softmax(-1), 1)
    text_BT = torch.cat((text_BT, chosen_B1), dim=1)
  return text_BT


if __name__ == '__main__':
  main()
