"""Serves GPT-2 of `transformers` as one writes it in an afternoon.

FastAPI runs the function in its pool of threads. One text at a time by a lock,
which on a CPU is the faster way; `--threads` is without it.
"""

import argparse
import contextlib
import json
import threading

import fastapi
import pydantic
import torch
import torch_model
import uvicorn


class Body(pydantic.BaseModel):
  """A request."""

  prompt: str
  max_tokens: int


def main() -> None:
  """Serves until it is killed; says `port` once it listens."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('shape', help='JSON of torch_model.Shape')
  parser.add_argument('--threads', action='store_true')
  args = parser.parse_args()
  torch.manual_seed(0)
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  shape = torch_model.Shape(**json.loads(args.shape))
  model = torch_model.HuggingFace(shape).to(device).eval()
  lock = contextlib.nullcontext() if args.threads else threading.Lock()
  app = fastapi.FastAPI()

  @app.post('/v1/completions')
  def completions(body: Body) -> dict:
    ids = torch.tensor([[ord(c) - ord('0') for c in body.prompt]])
    with lock, torch.inference_mode():
      found = torch_model.write(model, ids.to(device), body.max_tokens)
    text = ''.join(chr(ord('0') + i) for i in found[0, ids.shape[1] :].tolist())
    return {'choices': [{'text': text}]}

  class Server(uvicorn.Server):
    async def startup(self, sockets: list | None = None) -> None:
      await super().startup(sockets)
      port = self.servers[0].sockets[0].getsockname()[1]
      print(json.dumps({'port': port, 'torch': torch.__version__}), flush=True)

  Server(uvicorn.Config(app, port=0, log_level='critical')).run()


if __name__ == '__main__':
  main()
