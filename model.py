"""
The GPT: what it is, and how it learns (forward with a loss, learn_bigrams).

Notable choices, each a keyword of GPT:
- the default is Llama's block: RMSNorm, rotary positions, SwiGLU, no biases; heads may share keys and values (n_kv_head)
- norm='layernorm', position='learned', mlp='gelu_new', bias=True is GPT-2; with bias=False and mlp='gelu' it is nanoGPT's
- qk_norm=True is Qwen3's; mlp='relu2' learns sooner than SwiGLU on a CPU, and is a gate equal to what it gates, with a ReLU, in those classes
so that weights can be exchanged with Hugging Face's classes of those names.
"""

import sys
import time
import warnings

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from tqdm import tqdm

MLPS = {'swiglu': F.silu, 'gelu': F.gelu, 'gelu_new': lambda x: F.gelu(x, approximate='tanh'),
        'relu2': lambda x: F.relu(x).square()}  # So et al. 2021, "Primer"


class ScaleByRMS(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019), in x's dtype but for the mean.

    torch's own is on a CPU a row of small operations in float32, whatever x is, and takes twice as long or more. x: (…, C), weight: (C,) -> (…, C)
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = (norm.square() / x.size(-1) + eps).rsqrt().type_as(x)
        ctx.dtype, x, weight = weight.dtype, x * scale, weight.type_as(x)
        ctx.save_for_backward(x, scale, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, scale, weight = ctx.saved_tensors
        grad_x = grad * x
        mean = (grad_x @ weight)[..., None] / x.size(-1)
        return torch.addcmul(grad * weight, x, mean, value=-1) * scale, grad_x.flatten(0, -2).sum(0, dtype=ctx.dtype), None


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        # for a step of a few stories torch's own is the quicker one; to ask for telling breaks a graph of torch.compile in two
        if x.numel() < 2**15 and not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return ScaleByRMS.apply(x, self.weight, self.eps)


def rotate(x, cos, sin):
    """Rotary positions (Su et al. 2021), halves paired as in Hugging Face's Llama. x: (B, T, heads, d); cos, sin: (…, T, 1, d), sin's first half negative."""
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin)


def attend(q, k, v, dropout):
    """Causal attention. q: (B, n_head, T, d); k, v: (B, n_kv_head, T, d) -> (B, n_head, T, d)"""
    B, H, T, d = q.shape
    if q.is_cpu and q.dtype == torch.bfloat16 and k.shape == q.shape and 1 < T <= 512 and not dropout:
        # what torch's kernel saves in memory it loses twice in time here, where the scores of so short rows fit in the cache
        later = q.new_full((T, T), -torch.inf).triu(1)
        scores = torch.baddbmm(later, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=d**-0.5)
        return (scores.softmax(-1) @ v.flatten(0, 1)).view(B, H, T, d)
    return F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=True, enable_gqa=H != k.size(1))


class Attention(nn.Module):
    def __init__(self, args, make_norm):
        super().__init__()
        self.n_head, self.n_kv_head = args['n_head'], args['n_kv_head']
        self.head_size = args['n_embd'] // self.n_head
        self.qkv = nn.Linear(args['n_embd'], (self.n_head + 2 * self.n_kv_head) * self.head_size, bias=args['bias'])
        self.proj = nn.Linear(args['n_embd'], args['n_embd'], bias=args['bias'])
        self.q_norm, self.k_norm = (make_norm(self.head_size), make_norm(self.head_size)) if args['qk_norm'] else (None, None)
        self.dropout = args['dropout']

    def forward(self, x, rope, cached=None, layer=0):
        """x: (B, T, C). cached: instead of attend(), cached(layer, q, k, v) keeps k and v and attends to what it has kept -> (B, n_head, T, d)"""
        B, T, C = x.shape
        qk, v = self.qkv(x).view(B, T, -1, self.head_size).split([self.n_head + self.n_kv_head, self.n_kv_head], dim=2)
        if self.q_norm:
            q, k = qk.split([self.n_head, self.n_kv_head], dim=2)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], dim=2)
        if rope:
            qk = rotate(qk, *rope)
        q, k, v = *qk.transpose(1, 2).split([self.n_head, self.n_kv_head], dim=1), v.transpose(1, 2)
        y = cached(layer, q, k, v) if cached else attend(q, k, v, self.dropout if self.training else 0.0)
        return F.dropout(self.proj(y.transpose(1, 2).reshape(B, T, C).type_as(x)), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.up = nn.Linear(args['n_embd'], args['n_inner'], bias=args['bias'])
        self.gate = nn.Linear(args['n_embd'], args['n_inner'], bias=args['bias']) if args['mlp'] == 'swiglu' else None
        self.down = nn.Linear(args['n_inner'], args['n_embd'], bias=args['bias'])
        self.activation, self.dropout = MLPS[args['mlp']], args['dropout']

    def forward(self, x):
        x = self.activation(self.gate(x)) * self.up(x) if self.gate else self.activation(self.up(x))
        return F.dropout(self.down(x), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, args, make_norm):
        super().__init__()
        self.norm1, self.attn = make_norm(args['n_embd']), Attention(args, make_norm)
        self.norm2, self.mlp = make_norm(args['n_embd']), MLP(args)

    def forward(self, x, *attention):
        x = x + self.attn(self.norm1(x), *attention)
        return x + self.mlp(self.norm2(x))


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of logits x @ weight.T, some rows at a time, so that the logits never exist whole.

    The gradients are made on the way, while a chunk's logits are still in the cache: less memory and less time
    (the idea is Hsu et al. 2024, "Liger Kernel"). x: (N, C), weight: (V, C), targets: (N,) int64 -> nats, float32.
    """

    @staticmethod
    def forward(ctx, x, weight, targets):
        # so few that a CPU's cache holds their logits, so many that adding to dweight is little work beside the products; few, too, for sums in float16
        rows = max(256, min(2048, (2**26 if x.is_cuda else 2**21) // len(weight)))
        loss = torch.zeros((), device=x.device)
        wanted = ctx.needs_input_grad[0]
        dx, dweight = torch.empty_like(x) if wanted else x, torch.zeros_like(weight) if wanted and ctx.needs_input_grad[1] else None
        for some, dsome, target in zip(x.split(rows), dx.split(rows), targets.split(rows)):
            logprobs = F.log_softmax((some @ weight.t()).float(), dim=-1)
            wanted_logprobs = logprobs.gather(1, target[:, None])
            loss -= wanted_logprobs.sum()
            if wanted:
                dlogits = logprobs.exp_().scatter_(1, target[:, None], wanted_logprobs.expm1())
                dsome.copy_(dlogits @ weight)
                if dweight is not None:
                    dweight += dlogits.t() @ some
        if wanted:
            ctx.save_for_backward(dx, dweight)
        ctx.n = len(targets)
        return loss / ctx.n

    @staticmethod
    def backward(ctx, grad):
        dx, dweight = ctx.saved_tensors
        return dx * (grad / ctx.n), None if dweight is None else dweight * (grad / ctx.n), None  # divided only here: in float16 so small a number would be 0


class GPT(nn.Module):
    """A decoder-only transformer; `GPT(**model.args)` has the same shape as `model`."""

    def __init__(self, *, vocab_size, block_size, n_layer, n_head, n_embd, n_kv_head=0, n_inner=0, norm='rmsnorm', position='rope',
                 mlp='swiglu', bias=False, tie_weights=True, qk_norm=False, dropout=0.0, rope_theta=10000.0, norm_eps=1e-5):
        """n_kv_head: 0 for one a head. n_inner: the MLP's width, 0 for 4 × n_embd or, gated, 8/3 × n_embd rounded up to 32s."""
        super().__init__()
        n_kv_head = n_kv_head or n_head
        n_inner = n_inner or (-(-8 * n_embd // 96) * 32 if mlp == 'swiglu' else 4 * n_embd)
        self.args = {k: v for k, v in locals().items() if k not in ('self', '__class__')}
        for name, value, options in (('norm', norm, ('rmsnorm', 'layernorm')), ('position', position, ('rope', 'learned')), ('mlp', mlp, tuple(MLPS))):
            if value not in options:
                raise SystemExit(f'{name} is {value!r}; it is one of {", ".join(options)}')
        if min(vocab_size, block_size, n_layer, n_head, n_embd, n_kv_head, n_inner) < 1 or n_embd % n_head or n_head % n_kv_head:
            raise SystemExit(f'n_embd ({n_embd}) must be a multiple of n_head ({n_head}) and that of n_kv_head ({n_kv_head}), '
                             f'and these, vocab_size, block_size, n_layer ({n_layer}) and n_inner ({n_inner}) are from 1')
        if n_layer > 10_000 or n_layer * n_embd * (n_embd + n_inner) > 1e12:  # it would be built, layer after layer, until the memory is full
            raise SystemExit(f'n_layer ({n_layer:,}) blocks of n_embd ({n_embd:,}) make more weights than any machine holds')
        if not 0 < rope_theta < float('inf'):
            raise SystemExit(f'rope_theta is {rope_theta}; it is a number above 0')
        if position == 'rope' and n_embd // n_head % 2:
            raise SystemExit(f'a head of {n_embd // n_head} cannot be rotated: n_embd / n_head must be even')

        def make_norm(size):
            return RMSNorm(size, norm_eps) if norm == 'rmsnorm' else nn.LayerNorm(size, eps=norm_eps, bias=bias)

        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd) if position == 'learned' else None
        self.blocks = nn.ModuleList([Block(self.args, make_norm) for _ in range(n_layer)])
        self.norm = make_norm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        if tie_weights:
            self.head.weight = self.wte.weight
        if position == 'rope':
            size = n_embd // n_head
            angles = torch.outer(torch.arange(block_size), rope_theta ** (-torch.arange(0, size, 2) / size))
            self.register_buffer('cos', torch.cat([angles.cos(), angles.cos()], -1)[:, None], persistent=False)
            self.register_buffer('sin', torch.cat([-angles.sin(), angles.sin()], -1)[:, None], persistent=False)
        for name, p in self.named_parameters():  # as GPT-2: 0.02, and less where blocks add to the stream
            if name == 'wte.weight' and not tie_weights:
                nn.init.normal_(p)
            elif p.dim() > 1:
                nn.init.normal_(p, std=0.02 / (2 * n_layer) ** 0.5 if name.endswith(('proj.weight', 'down.weight')) else 0.02)
            elif name.endswith('bias'):
                nn.init.zeros_(p)

    def n_params(self):
        """How many weights it has; tied ones count once."""
        return sum(p.numel() for p in self.parameters())

    def hidden(self, ids, positions=None, cached=None):
        """The stream after the last norm. ids: (B, T). positions: (B, T), 0 … T-1 when not given. cached: see Attention. -> (B, T, n_embd)"""
        x = self.wte(ids)
        where = slice(ids.size(1)) if positions is None else positions
        if self.wpe:
            x = x + self.wpe.weight[where]
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        if dtype == torch.bfloat16:
            x = x.bfloat16()  # half the bytes to move; in float16 the sums could overflow
        x = F.dropout(x, self.args['dropout'], self.training)
        rope = None if self.wpe else (self.cos[where].to(dtype), self.sin[where].to(dtype))
        for i, block in enumerate(self.blocks):
            x = block(x, rope, cached, i)
        return self.norm(x)

    def forward(self, ids, targets=None):
        """ids: (B, T) int64, T up to block_size -> logits (B, T, vocab_size); with targets (B, T), the mean loss in nats instead."""
        x = self.hidden(ids)
        return self.head(x) if targets is None else LinearCrossEntropy.apply(x.flatten(0, 1), self.head.weight, targets.flatten())


def learn_bigrams(model, tokens, steps, seed, amp):
    """Have embedding and head of a new GPT, without the blocks between them, learn which token follows which.

    tokens: the training stream, (N,) uint16; amp: the autocast to compute under. What follows each token is counted once. A step draws
    tokens as often as they come; the target of each is the whole distribution of its followers, where ordinary training shows one at a time.
    """
    device, size = model.wte.weight.device, model.args['vocab_size']
    tokens = tokens.astype(np.uint32)  # so large are pairs of uint16
    pairs, counts = np.unique(tokens[:-1] * size + tokens[1:], return_counts=True)
    first, second = np.divmod(pairs.astype(np.int64), size)
    often = np.bincount(first, counts, size)
    share = counts / often[first]  # of the tokens behind `first`
    followers = torch.sparse_coo_tensor(np.stack([first, second]), share, (size, size), dtype=torch.float32, is_coalesced=True, check_invariants=True)
    often, chance = torch.from_numpy(often), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam([{'params': [p], 'lr': p.std().item() / 2} for p in (model.wte.weight, model.head.weight)], betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: min(1, (1 - i / steps) / 0.7))
    for _ in tqdm(range(steps), 'bigrams', unit=' steps', leave=False):
        drawn, times = often.multinomial(4096, replacement=True, generator=chance).unique(return_counts=True)
        wanted = followers.index_select(0, drawn)
        for i in torch.arange(len(drawn)).split(max(1, 2**22 // size)):  # whose distributions take 16 MB
            target = (wanted.index_select(0, i).to_dense() * times[i, None]).to(device)
            with amp:
                logits = model.head(model.norm(model.wte(drawn[i].to(device))))
            F.cross_entropy(logits.float(), target, reduction='sum').backward()  # the gradients of a mean would be too small for float16
        adam.step()
        schedule.step()
        adam.zero_grad()
    model.zero_grad()  # the norm's


class Foreign(nn.Module):
    """Any other causal language model, in Transformers' own class, with so much of GPT's face as telling and measuring a loss take."""

    n_params = GPT.n_params

    def __init__(self, folder):
        import transformers
        super().__init__()
        transformers.logging.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # at a plain pickle, before it is refused
            self.theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        config = self.theirs.config
        self.args = {'vocab_size': config.vocab_size, 'block_size': getattr(config, 'max_position_embeddings', 2048),
                     'n_layer': config.num_hidden_layers, 'n_embd': config.hidden_size}

    def forward(self, ids, targets=None):
        logits = self.theirs(ids, use_cache=False).logits
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Int8Linear(nn.Module):
    """A linear layer with weights of 8 bits and one scale for each output: a quarter of the bytes, which is what telling one story waits for."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.weight, self.scale = (linear.weight / scale).round().to(torch.int8), scale.flatten().bfloat16()
        self.bias = linear.bias

    def forward(self, x):
        rows = x.flatten(0, -2).bfloat16()
        if len(rows) > 16:  # for which products take longer than reading the weights
            y = rows @ self.weight.t().bfloat16() * self.scale
        else:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)  # as torchao and gpt-fast call it
        y = y.view(*x.shape[:-1], -1)
        return (y if self.bias is None else y + self.bias).type_as(x)


@torch.no_grad()
def quantize_int8(model):
    """Give a model that tells on a CPU weights of 8 bits in its linear layers, and bfloat16 elsewhere."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
    return model.to(torch.bfloat16)


# -----------------------------------------------------------------------------
# where and in what numbers to compute

def choose_device(device='', dtype=''):
    """Fill in what is not given -> (device, dtype): the fastest device here and the dtype that it is fast in.

    dtype is 'bfloat16' where the hardware multiplies it, 'float16' on older CUDA cards (T4, P100), else 'float32'.
    """
    if not device:
        device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    if device.split(':')[0] not in ('cpu', 'cuda', 'mps'):
        raise SystemExit(f"device is {device!r}; it is 'cpu', 'cuda', 'cuda:1' or 'mps'")
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise SystemExit(f'device is {device!r} but torch finds no CUDA here; leave --device out')
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise SystemExit(f'device {device!r}: {str(e).splitlines()[0]}') from None
    if device.startswith('cuda'):
        fast = 'bfloat16' if torch.cuda.get_device_capability(device) >= (8, 0) else 'float16'
    else:
        cpu_has_it = getattr(torch.cpu, 'get_capabilities', dict)().get('avx512_bf16', False)  # torch 2.9 cannot tell
        fast = 'bfloat16' if device == 'cpu' and cpu_has_it else 'float32'
    if dtype not in ('', 'float32', 'bfloat16', 'float16'):
        raise SystemExit(f"dtype is {dtype!r}; it is 'float32', 'bfloat16' or 'float16'")
    return device, dtype or fast


def matrix_rate(device, dtype, seconds=0.1):
    """Floating-point operations a second that this machine reaches in a large matrix product, which bounds any training."""
    size = 4096 if device.startswith('cuda') else 1024
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    wait = {'cuda': torch.cuda.synchronize, 'mps': torch.mps.synchronize}.get(device.split(':')[0], lambda: None)
    a[:64] @ a  # the first product takes as long as loading the library
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait()
        start = time.perf_counter()
        a @ a
        wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def peak_memory(device):
    """The bytes that this process has held at most: of the GPU's memory, else of the machine's; 0 where the system does not tell."""
    if device.startswith('cuda'):
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
