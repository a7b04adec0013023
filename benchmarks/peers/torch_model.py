"""The decoder of `craft_jax.model` in PyTorch, for the settings below.

Attention is `scaled_dot_product_attention`, which picks a fused kernel. With
`norm='layer'`, learned positions, GELU and a tied head it is nanoGPT's model
(without biases); with the other settings it is Craft's own block.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Shape:
  """Settings of a model, named as in `craft_jax.config.settings`."""

  vocabulary_size: int
  context: int
  width: int
  depth: int
  num_heads: int
  norm: str = 'layer'
  mlp: str = 'gelu'
  position: str = 'learned'
  qk_norm: bool = False
  logit_cap: float = 0.0
  tied: bool = True
  dropout: float = 0.0


class Attention(nn.Module):
  """Causal multi-head attention; queries, keys and values from one product."""

  def __init__(self, shape: Shape):
    super().__init__()
    self.shape = shape
    self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
    self.output = nn.Linear(shape.width, shape.width, bias=False)
    if shape.position == 'rope':
      half = shape.width // shape.num_heads // 2
      frequency_H = 10000.0 ** (-torch.arange(half) / half)
      angle_TH = torch.arange(shape.context)[:, None] * frequency_H
      self.register_buffer('cos_TH', angle_TH.cos(), persistent=False)
      self.register_buffer('sin_TH', angle_TH.sin(), persistent=False)

  def forward(self, x_BTD: Tensor) -> Tensor:
    shape = self.shape
    B, T, D = x_BTD.shape
    heads = (B, T, 3, shape.num_heads, D // shape.num_heads)
    q, k, v = self.qkv(x_BTD).view(heads).permute(2, 0, 3, 1, 4)
    if shape.qk_norm:
      q, k = _rms_norm(q), _rms_norm(k)
    if shape.position == 'rope':
      q, k = self._rotated(q), self._rotated(k)
    y = functional.scaled_dot_product_attention(
      q.to(v.dtype), k.to(v.dtype), v, is_causal=True
    )
    return self.output(y.transpose(1, 2).reshape(B, T, D))

  def _rotated(self, x_BNTH: Tensor) -> Tensor:
    T = x_BNTH.shape[2]
    first, second = x_BNTH.float().chunk(2, dim=-1)
    cos_TH, sin_TH = self.cos_TH[:T], self.sin_TH[:T]
    return torch.cat(
      (first * cos_TH - second * sin_TH, second * cos_TH + first * sin_TH), -1
    )


def _rms_norm(x: Tensor) -> Tensor:
  return functional.rms_norm(x, x.shape[-1:], eps=1e-6)


class Block(nn.Module):
  """Pre-norm attention and MLP, each added to the stream."""

  def __init__(self, shape: Shape):
    super().__init__()
    self.shape = shape
    self.attention_norm = _norm(shape)
    self.attention = Attention(shape)
    self.mlp_norm = _norm(shape)
    self.up = nn.Linear(shape.width, 4 * shape.width, bias=False)
    self.down = nn.Linear(4 * shape.width, shape.width, bias=False)
    self.dropout = nn.Dropout(shape.dropout)

  def forward(self, x_BTD: Tensor) -> Tensor:
    x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD)))
    hidden_BTF = self.up(self.mlp_norm(x_BTD))
    if self.shape.mlp == 'gelu':
      hidden_BTF = functional.gelu(hidden_BTF, approximate='tanh')
    else:
      hidden_BTF = functional.relu(hidden_BTF).square()
    return x_BTD + self.dropout(self.down(hidden_BTF))


def _norm(shape: Shape) -> nn.Module:
  kind = nn.LayerNorm if shape.norm == 'layer' else nn.RMSNorm
  return kind(shape.width, eps=1e-6)


class Decoder(nn.Module):
  """Tokens to logits."""

  def __init__(self, shape: Shape):
    super().__init__()
    self.shape = shape
    self.embed = nn.Embedding(shape.vocabulary_size, shape.width)
    if shape.position == 'learned':
      self.positions = nn.Embedding(shape.context, shape.width)
    self.dropout = nn.Dropout(shape.dropout)
    self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
    self.final_norm = _norm(shape)
    self.head = nn.Linear(shape.width, shape.vocabulary_size, bias=False)
    self.apply(_initialize)
    for block in self.blocks:
      for layer in (block.attention.output, block.down):
        nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * shape.depth))
    if shape.tied:
      self.head.weight = self.embed.weight

  def forward(self, x_BT: Tensor) -> Tensor:
    shape = self.shape
    x_BTD = self.embed(x_BT)
    if shape.position == 'learned':
      place_T = torch.arange(x_BT.shape[1], device=x_BT.device)
      x_BTD = x_BTD + self.positions(place_T)
    x_BTD = self.dropout(x_BTD)
    for block in self.blocks:
      x_BTD = block(x_BTD)
    logits_BTV = self.head(self.final_norm(x_BTD))
    if shape.logit_cap:
      cap = shape.logit_cap
      logits_BTV = cap * torch.tanh(logits_BTV / cap)
    return logits_BTV


def _initialize(module: nn.Module) -> None:
  """As GPT-2 begins: normal with deviation 0.02."""
  if isinstance(module, nn.Linear | nn.Embedding):
    nn.init.normal_(module.weight, std=0.02)


class HuggingFace(nn.Module):
  """GPT-2 of `transformers` with the same sizes."""

  def __init__(self, shape: Shape):
    super().__init__()
    import transformers

    self.model = transformers.GPT2LMHeadModel(
      transformers.GPT2Config(
        vocab_size=shape.vocabulary_size,
        n_positions=shape.context,
        n_embd=shape.width,
        n_layer=shape.depth,
        n_head=shape.num_heads,
        resid_pdrop=shape.dropout,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        use_cache=False,
      )
    )

  def forward(self, x_BT: Tensor) -> Tensor:
    return self.model(x_BT).logits


def write(model: HuggingFace, prompt_BT: Tensor, chars: int) -> Tensor:
  """Goes on from prompts with the cache of `transformers`; prompts included."""
  return model.model.generate(
    prompt_BT,
    attention_mask=torch.ones_like(prompt_BT),
    do_sample=True,
    temperature=0.8,
    top_k=50,
    min_new_tokens=chars,
    max_new_tokens=chars,
    use_cache=True,
    pad_token_id=0,
  )


def loss_of(logits_BTV: Tensor, y_BT: Tensor) -> Tensor:
  """Mean cross-entropy, in float32."""
  return functional.cross_entropy(
    logits_BTV.float().flatten(0, 1), y_BT.flatten()
  )


def autocast(device: str, bfloat16: bool) -> contextlib.AbstractContextManager:
  """Products in bfloat16, or nothing."""
  if bfloat16:
    return torch.autocast(device, torch.bfloat16)
  return contextlib.nullcontext()


def train_step(
  forward: Callable[[Tensor], Tensor],
  optimizer: torch.optim.Optimizer,
  window_BT: Tensor,
  cast: contextlib.AbstractContextManager,
) -> Tensor:
  """Forward, backward, clipping, update; the loss."""
  with cast:
    loss = loss_of(forward(window_BT[:, :-1]), window_BT[:, 1:])
  loss.backward()
  params = [p for group in optimizer.param_groups for p in group['params']]
  torch.nn.utils.clip_grad_norm_(params, 1.0)
  optimizer.step()
  optimizer.zero_grad(set_to_none=True)
  return loss


def adamw(
  model: nn.Module, learning_rate: float, weight_decay: float, b2: float
) -> torch.optim.AdamW:
  """Fused AdamW that decays matrices only, as nanoGPT's."""
  matrices = [p for p in model.parameters() if p.dim() >= 2]
  others = [p for p in model.parameters() if p.dim() < 2]
  return torch.optim.AdamW(
    [
      {'params': matrices, 'weight_decay': weight_decay},
      {'params': others, 'weight_decay': 0.0},
    ],
    lr=learning_rate,
    betas=(0.9, b2),
    fused=True,
  )
