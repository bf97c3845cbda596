"""
Models of other programs: Hugging Face folders and names, nanoGPT's and llama2.c's checkpoints, LoRA.

    model, tokenizer, checkpoint = load('MaxLSB/LeCarnet-3M')

Notable choices:
- The weights of a Llama, Qwen3 or GPT-2 are copied into our GPT.
- Any other causal language model stays in Transformers' own class. A wrapper lets it generate and compute a loss.
- No code from a file or from the hub runs: weights are loaded as tensors only, and trust_remote_code is False.
- A damaged or unsuitable file ends the program with one line.
"""

import contextlib
import dataclasses
import inspect
import itertools
import json
import os
import re
import sys
import types
import warnings

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from files import fail, on_hub
from model import (GPT, checkpoint_path, gpt_config, load_checkpoint, load_weights, new_gpt, parts_of, save_checkpoint,
                   verify_file)
from tokenizer import find_beside, from_checkpoint, hub_problem, read_json
from tokenizer import load as load_tokenizer


def load(name, device='cpu', tokenizer=''):
    """Load any trained model -> (model in eval mode, Tokenizer, checkpoint: a dict, empty if the model has none).

    name: a checkpoint of train.py, nanoGPT or llama2.c (.pt); llama2.c's model.bin; a folder with one of them; a
    Hugging Face folder; or a name on the Hugging Face hub: user/model, user/repository/file.pt or file.bin. @revision
    at its end pins a version.
    tokenizer: name of a tokenizer to use instead of the model's own. A model of nanoGPT or llama2.c contains none.
    Without a name, the tokenizer beside it is used.
    """
    path = find_model(name)
    checkpoint = {}
    if os.path.isdir(path):
        model = load_hf(path)
    elif path.endswith('.bin'):
        model = load_llama2c(path)
    elif path.endswith('.pt'):
        checkpoint = load_checkpoint(path)
        model = restore(checkpoint, path, merge=True)
    else:
        fail(f'{path} is neither a .pt file, nor a model.bin of llama2.c, nor the folder of a Hugging Face model')
    has_own = os.path.isdir(path) or 'tokenizer' in checkpoint
    is_llama2c = path.endswith('.bin') or 'dim' in checkpoint.get('model_args', ())
    n_tokens = model.config.vocab_size
    if tokenizer or 'tokenizer' not in checkpoint:
        tok = load_tokenizer(tokenizer or (path if has_own else find_beside(path, n_tokens)))
    else:
        tok = from_checkpoint(checkpoint, path)
    if is_llama2c:
        tok.ends = [tok.eos, tok.bos]  # run.c ends a story at bos
    # Added tokens such as padding may have ids that the model lacks. They never come out of text.
    n_needed = max(tok.backend.get_vocab_size(with_added_tokens=False), tok.bos + 1, tok.eos + 1)
    padding = 0 if is_llama2c else 63  # nanoGPT pads the vocabulary to a multiple of 64
    if n_needed > n_tokens or not has_own and tok.vocab_size < n_tokens - padding:
        fail(f'{name} has {n_tokens:,} tokens, but {tokenizer or "its tokenizer"} {n_needed:,}')
    if tok.eos not in tok.ends:
        print(f'{name} ends a story at the ids {tok.ends}, by its settings, not at {tok.eos_token}', file=sys.stderr)
    return model.to(device).eval(), tok, checkpoint


def find_model(name):
    """The file or Hugging Face folder of a model. A name that is not here is downloaded."""
    if os.path.isdir(name):
        return checkpoint_path(name) or name
    if os.path.exists(name):
        return name
    return download(name)


def download(name):
    """Download a model from the Hugging Face hub -> its folder, or its file for user/repository/file.pt or file.bin."""
    model_name, revision = on_hub(name)
    user, _, rest = model_name.partition('/')
    repository, _, file = rest.partition('/')
    if name.startswith(('.', '/')) or user in ('out', 'data') or (file and not file.endswith(('.pt', '.bin'))):
        fail(f'{name} contains no checkpoint; train first, or name another folder')
    import huggingface_hub
    patterns = ['*.json', '*.safetensors', '*.model', '*.spm', '*.txt']
    try:
        if file:
            return huggingface_hub.hf_hub_download(f'{user}/{repository}', file, revision=revision)
        folder = huggingface_hub.snapshot_download(model_name, revision=revision, allow_patterns=patterns)
        if not any(path.endswith('.safetensors') for path in os.listdir(folder)):
            patterns.append('pytorch_model*.bin')
            folder = huggingface_hub.snapshot_download(model_name, revision=revision, allow_patterns=patterns)
        return folder
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as e:
        fail(f'{name}: {hub_problem(e)}')


def one_line(error):
    """The beginning of an error's message, without line breaks."""
    text = ' '.join(str(error).split())
    return text[:200]


# -----------------------------------------------------------------------------
# checkpoints of train.py, nanoGPT and llama2.c


def restore(checkpoint, path, merge=False):
    """The GPT of a checkpoint of train.py, nanoGPT or llama2.c, on the CPU.

    A LoRA checkpoint contains only adapters, and the name of their base model. merge=True adds them to its weights.
    """
    args, weights = parts_of(checkpoint, path)
    if 'lora' in checkpoint:
        return restore_lora(checkpoint['lora'], gpt_config(args, path), weights, path, merge)
    if 'tok_embeddings.weight' in weights:
        return restore_llama2c(args, weights, path)
    is_nanogpt = 'transformer.wte.weight' in weights
    if is_nanogpt:
        args = args | {'norm': 'layernorm', 'position': 'learned', 'mlp': 'gelu'}
    model = new_gpt(args, weights, path)
    if is_nanogpt:
        load_hf_weights(model, weights, path)
    else:
        load_weights(model, weights, path)
    return model


def restore_llama2c(args, weights, path):
    """The GPT of a checkpoint of llama2.c."""
    values = renamed(args, META_KEYS)
    up = weights.get('layers.0.feed_forward.w1.weight', torch.empty(0))
    values['n_inner'] = next(iter(up.shape), 0)
    head = weights.get('output.weight')
    values['tie_weights'] = head is None or torch.equal(head, weights['tok_embeddings.weight'])
    model = new_gpt(values, weights, path)
    load_hf_weights(model, weights, path, META_LAYERS)
    return rotate_halves(model)


@torch.no_grad()
def load_llama2c(path):
    """The GPT of a model.bin of llama2.c, as run.c reads it: seven int32, then the weights in float32."""
    header = np.fromfile(path, '<i4', 7).tolist()
    if header[:1] == [0x616b3432]:
        fail(f'{path} is in a format for runq.c; export it again with --version 0 of llama2.c')
    n_weights = float('inf')
    if len(header) == 7 and all(header):
        n_embd, n_inner, n_layer, n_head, n_kv_head, vocab_size, block_size = header
        is_tied = vocab_size > 0
        vocab_size = abs(vocab_size)
        head_size = n_embd // n_head
        n_layer_weights = n_embd * (2 * n_embd + 2 * n_kv_head * head_size + 3 * n_inner + 2)
        n_weights = n_layer * n_layer_weights + n_embd * (vocab_size * (2 - is_tied) + 1) + block_size * head_size
    if os.path.getsize(path) != 28 + 4 * n_weights:
        fail(f'{path} is damaged, or not a model.bin of llama2.c')
    model = GPT(gpt_config({
        'n_embd': n_embd, 'n_inner': n_inner, 'n_layer': n_layer, 'n_head': n_head, 'n_kv_head': n_kv_head,
        'vocab_size': vocab_size, 'block_size': block_size, 'tie_weights': is_tied}, path))

    layers = []
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.split([n * head_size for n in (n_head, n_kv_head, n_kv_head)])
        layers.append([block.norm1.weight, q, k, v, block.attn.proj.weight,
                       block.norm2.weight, block.mlp.gate.weight, block.mlp.down.weight, block.mlp.up.weight])
    # first norm1 of all layers, then q of all layers, and so on
    tensors = [model.wte.weight, *itertools.chain(*zip(*layers)), model.norm.weight]
    tensors.append(torch.empty(block_size, head_size))  # the angles of the positions
    if not is_tied:
        tensors.append(model.head.weight)
    floats = torch.from_numpy(np.fromfile(path, '<f4', offset=28))
    for tensor, part in zip(tensors, floats.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view(tensor.shape))
    return rotate_halves(model)


@torch.no_grad()
def rotate_halves(model):
    """Reorder queries and keys that rotate neighbours, as in Meta's Llama, so that they rotate the halves of a head."""
    config = model.config
    for block in model.blocks:
        qk = block.attn.qkv.weight[:(config.n_head + config.n_kv_head) * config.head_size]
        pairs = qk.reshape(-1, config.head_size // 2, 2, config.n_embd)  # (heads, d / 2, 2, C)
        qk.copy_(pairs.transpose(1, 2).reshape(qk.shape))
    return model


# -----------------------------------------------------------------------------
# fine-tuning, with LoRA: low-rank adapters (Hu et al. 2021)


def load_for_training(name, tokenizer, vocab_size, block_size, dropout):
    """Load a model to fine-tune, as a GPT with this block_size and dropout.

    tokenizer: the tokenizers.Tokenizer of the training data. vocab_size: the one in its meta.json.
    """
    model, own_tokenizer, _ = load(name)
    if not isinstance(model, GPT):
        fail(f'{name} can generate here but not be trained: it is not a plain Llama, Qwen3 or GPT-2')
    if own_tokenizer.backend.get_vocab() != tokenizer.get_vocab() or vocab_size > model.config.vocab_size:
        fail(f'{name} has another tokenizer than the data; prepare the data with --tokenizer={name} --trim=False')
    if block_size > model.config.block_size:
        fail(f'{name} reads at most {model.config.block_size} tokens and block_size is {block_size}')
    return resized(model, block_size, dropout)


def resized(model, block_size, dropout):
    """A copy of a GPT with another dropout and another block_size, which must not be larger."""
    weights = model.state_dict()
    if 'wpe.weight' in weights:
        weights['wpe.weight'] = weights['wpe.weight'][:block_size]
    model = GPT(dataclasses.replace(model.config, block_size=block_size, dropout=dropout))
    model.load_state_dict(weights)
    return model


def add_lora(model, rank, alpha, dropout):
    """Add LoRA adapters to the linear layers of a GPT's blocks -> peft's LoraModel, which wraps the GPT.

    Only the adapters stay trainable.
    """
    import peft
    layers = ['qkv', 'proj', 'gate', 'up', 'down']
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)
    return peft.LoraModel(model, config, 'default')


loading_lora = []  # the LoRA checkpoints whose base model is being loaded


def restore_lora(lora, config, adapters, path, merge):
    """The base model of a LoRA checkpoint, with its adapters. lora: {'base', 'rank', 'alpha', 'dropout'}."""
    kinds = {'base': str, 'rank': int, 'alpha': (int, float), 'dropout': (int, float)}
    if not isinstance(lora, dict) or not all(isinstance(lora.get(key), kind) for key, kind in kinds.items()):
        fail(f'{path}: its LoRA settings are incomplete')
    if not 1 <= lora['rank'] <= config.n_embd or not 0 <= lora['dropout'] < 1:
        fail(f'{path}: a LoRA rank of {lora["rank"]} or a dropout of {lora["dropout"]} is impossible')
    base = lora['base']
    try:
        base_path = find_model(base)
    except SystemExit:
        fail(f'{path} has LoRA adapters for {base}, which is no longer there; move that model back to this path, '
             'from the working directory, or for a name on the hub check the connection')
    loading_lora.append(os.path.realpath(path))
    if os.path.realpath(base_path) in loading_lora:
        fail(f'{path} is a LoRA checkpoint that names itself as its base model, or as the base of its base')
    model = load(base)[0]
    loading_lora.pop()
    if not isinstance(model, GPT) or config.block_size > model.config.block_size:
        fail(f'{path}: its adapters do not fit {base}')
    model = resized(model, config.block_size, config.dropout)
    lora_model = add_lora(model, lora['rank'], lora['alpha'], lora['dropout'])
    missing, unexpected = load_weights(model, adapters, path, strict=False)
    if unexpected or any('.lora_' in name for name in missing):
        fail(f'{path}: its adapters do not fit {base}')
    return lora_model.merge_and_unload() if merge else model


def merge_lora(path):
    """Replace a LoRA checkpoint by one with the weights of its base model and adapters together."""
    checkpoint = load_checkpoint(path)
    checkpoint['model'] = restore(checkpoint, path, merge=True).state_dict()
    del checkpoint['lora']
    save_checkpoint(path, checkpoint)


# -----------------------------------------------------------------------------
# Hugging Face folders

# Keys of config.json -> fields of GPTConfig.
GPT2_KEYS = {
    'vocab_size': 'vocab_size', 'n_positions': 'block_size', 'n_layer': 'n_layer', 'n_head': 'n_head',
    'n_embd': 'n_embd', 'n_inner': 'n_inner', 'activation_function': 'mlp', 'layer_norm_epsilon': 'norm_eps',
    'tie_word_embeddings': 'tie_weights',
}
LLAMA_KEYS = {
    'vocab_size': 'vocab_size', 'max_position_embeddings': 'block_size', 'num_hidden_layers': 'n_layer',
    'num_attention_heads': 'n_head', 'num_key_value_heads': 'n_kv_head', 'hidden_size': 'n_embd',
    'intermediate_size': 'n_inner', 'rms_norm_eps': 'norm_eps', 'rope_theta': 'rope_theta',
    'tie_word_embeddings': 'tie_weights',
}
META_KEYS = {  # of llama2.c's checkpoints
    'vocab_size': 'vocab_size', 'max_seq_len': 'block_size', 'n_layers': 'n_layer', 'n_heads': 'n_head',
    'n_kv_heads': 'n_kv_head', 'dim': 'n_embd', 'norm_eps': 'norm_eps',
}
KEYS = {'gpt2': GPT2_KEYS, 'llama': LLAMA_KEYS, 'qwen3': LLAMA_KEYS}
# Fields that each class implies, and defaults for keys that config.json may omit.
DEFAULTS = {
    'gpt2': {'norm': 'layernorm', 'position': 'learned', 'mlp': 'gelu_new', 'bias': True},
    'llama': {'tie_weights': False, 'norm_eps': 1e-6},
    'qwen3': {'tie_weights': False, 'norm_eps': 1e-6, 'qk_norm': True},
}
# Optional keys of config.json, with the values that our GPT can compute. (`type` is an older name of rope_type.)
SUPPORTED = {
    'activation_function': ('gelu_new', 'gelu'), 'hidden_act': ('silu',),
    'rope_type': ('default',), 'type': ('default',), 'use_sliding_window': (False,),
    'scale_attn_weights': (True,), 'scale_attn_by_inverse_layer_idx': (False,),
    'attention_bias': (False,), 'mlp_bias': (False,),
}


def load_hf(folder):
    """The model of a Hugging Face folder: a GPT if it is a plain Llama, Qwen3 or GPT-2, else a TransformersModel."""
    path = os.path.join(folder, 'config.json')
    if not os.path.exists(path):
        fail(f'{folder} contains neither best.pt, ckpt.pt nor a Hugging Face config.json')
    stay_inside(folder)
    settings = read_json(path)
    rope = settings.get('rope_parameters') or settings.get('rope_scaling')
    if isinstance(rope, dict):
        settings |= rope
    kind = settings.get('model_type')
    for key, values in SUPPORTED.items():
        if settings.get(key) not in (None, *values):
            kind = None
    if not isinstance(kind, str) or kind not in KEYS:
        return TransformersModel(folder)

    config = gpt_config(DEFAULTS[kind] | renamed(settings, KEYS[kind]), path)
    if settings.get('head_dim') not in (None, config.head_size):
        return TransformersModel(folder)
    weights = read_weights(folder)
    if kind == 'gpt2':
        for name, weight in weights.items():
            if '.c_' in name and weight.dim() == 2:  # (in, out) there, (out, in) in nn.Linear
                weights[name] = weight.t()
    model = new_gpt(vars(config), weights, folder)
    load_hf_weights(model, weights, folder)
    return model


def renamed(settings, names):
    """The settings that are in `names`, a dict of new names, and are not None."""
    return {names[key]: settings[key] for key in names if settings.get(key) is not None}


def stay_inside(folder):
    """Fail when a Hugging Face folder names weights in other folders, or a kernel on the hub, which is code."""
    for file in os.listdir(folder):
        path = os.path.join(folder, file)
        if file == 'adapter_config.json':
            fail(f'{path} names another model; merge the adapter into its model first')
        if file == 'config.json':
            text = json.dumps(read_json(path))
            if re.search(r'_implementation": (\{[^}]*|"[^"]*)/', text):  # "attn_implementation": "user/kernel"
                fail(f'{path} names a kernel on the hub, which is code')
            for name, n in re.findall(r'"(\w*(?:layer|expert)s?)": (\d+)', text):
                if len(n) > 4 or int(n) > 1000:
                    fail(f'{path}: a {name} of {n:.20} fits in no memory')
        if file.endswith('.index.json'):
            names = read_json(path).get('weight_map', {})
            if not isinstance(names, dict) or any(os.path.basename(str(name)) != name for name in names.values()):
                fail(f'{path} names weights outside of the folder')
        if file.startswith('pytorch_model') and file.endswith('.bin'):
            try:
                verify_file(path)
            except Exception as e:  # of many kinds
                fail(f'{path}: its weights contain something other than tensors, or are damaged ({one_line(e)})')


def read_weights(folder):
    """The tensors of a folder by name, in float32."""
    import safetensors.torch
    files = [file for file in sorted(os.listdir(folder)) if file.endswith('.safetensors')]
    if not files:  # pytorch_model.bin
        return TransformersModel(folder).inner.state_dict()
    weights = {}
    for file in files:
        path = os.path.join(folder, file)
        try:
            weights |= safetensors.torch.load_file(path)
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as e:
            fail(f'{path} could not be read: {one_line(e)}')
    return {name: weight.float() for name, weight in weights.items()}


# -----------------------------------------------------------------------------
# names of weights

# Our layers -> the layers in Hugging Face's class. Where there are several, ours is their concatenation along dim 0.
LLAMA_LAYERS = {
    'wte': ['embed_tokens'], 'norm': ['norm'], 'head': ['lm_head'],
    'norm1': ['input_layernorm'], 'norm2': ['post_attention_layernorm'],
    'attn.qkv': ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'], 'attn.proj': ['self_attn.o_proj'],
    'attn.q_norm': ['self_attn.q_norm'], 'attn.k_norm': ['self_attn.k_norm'],
    'mlp.gate': ['mlp.gate_proj'], 'mlp.up': ['mlp.up_proj'], 'mlp.down': ['mlp.down_proj'],
}
GPT2_LAYERS = {
    'wte': ['wte'], 'wpe': ['wpe'], 'norm': ['ln_f'], 'head': ['lm_head'],
    'norm1': ['ln_1'], 'norm2': ['ln_2'], 'attn.qkv': ['attn.c_attn'], 'attn.proj': ['attn.c_proj'],
    'mlp.up': ['mlp.c_fc'], 'mlp.down': ['mlp.c_proj'],
}
META_LAYERS = {  # in llama2.c
    'wte': ['tok_embeddings'], 'norm': ['norm'], 'head': ['output'], 'norm1': ['attention_norm'], 'norm2': ['ffn_norm'],
    'attn.qkv': ['attention.wq', 'attention.wk', 'attention.wv'], 'attn.proj': ['attention.wo'],
    'mlp.gate': ['feed_forward.w1'], 'mlp.up': ['feed_forward.w3'], 'mlp.down': ['feed_forward.w2'],
}


def hf_names(name, config, layers=None):
    """The names of one of our weights in Hugging Face's class, without the prefix 'model.' or 'transformer.'.

    'blocks.0.attn.qkv.weight' -> ['layers.0.self_attn.q_proj.weight', 'layers.0.self_attn.k_proj.weight', …]
    The class is GPT-2 for learned positions, else Llama or Qwen3. nanoGPT has GPT-2's names. layers: other names.
    """
    layer, _, kind = name.rpartition('.')
    is_gpt2 = config.position == 'learned'
    prefix = ''
    if layer.startswith('blocks.'):
        _, i, layer = layer.split('.', 2)
        prefix = f'h.{i}.' if is_gpt2 else f'layers.{i}.'
    layers = layers or (GPT2_LAYERS if is_gpt2 else LLAMA_LAYERS)
    return [f'{prefix}{hf_layer}.{kind}' for hf_layer in layers[layer]]


def load_hf_weights(model, weights, path, layers=None):
    """Load weights with Hugging Face's or nanoGPT's names, or those in `layers`, into a GPT."""
    weights = {name.removeprefix('transformer.').removeprefix('model.'): weight for name, weight in weights.items()}
    state = {}
    for name in model.state_dict():
        is_tied = name == 'head.weight' and model.config.tie_weights
        names = hf_names('wte.weight' if is_tied else name, model.config, layers)
        if not weights.keys() >= set(names):
            fail(f'{path}: the weights lack {", ".join(names)}')
        parts = [weights[hf_name] for hf_name in names]
        try:
            state[name] = torch.cat(parts)
        except RuntimeError as e:  # other shapes
            fail(f'{path}: the weights {names[0]} do not fit the model: {one_line(e)}')
    load_weights(model, state, path)


# -----------------------------------------------------------------------------
# any other causal language model

def from_pretrained(auto_class, folder, **options):
    """auto_class.from_pretrained(folder) for a class of Transformers. No code of the folder runs.

    With output_loading_info=True, a model whose files lack weights is refused: they would be filled at random.
    """
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), memory_limit(4 * sum(file.stat().st_size for file in os.scandir(folder))):
            warnings.simplefilter('ignore')
            loaded = auto_class.from_pretrained(folder, trust_remote_code=False, **options)
    except Exception as e:  # of many kinds, for folders that are damaged, incomplete or need code of their own
        reason = one_line(e)
        if 'weights_only' in str(e):  # torch's advice to load the file in an unsafe way
            reason = 'its weights contain something other than tensors'
        fail(f'{folder}: Transformers cannot open it: {reason}')
    if not options.get('output_loading_info'):
        return loaded
    model, info = loaded
    if info['missing_keys']:
        fail(f'{folder}: the weights lack {", ".join(sorted(info["missing_keys"])):.200}')
    return model


@contextlib.contextmanager
def memory_limit(n_bytes):
    """In this block, an allocation of more than n_bytes and 2 GB fails. Only Linux can do that."""
    if sys.platform != 'linux':
        yield
        return
    import resource
    with open('/proc/self/status', encoding='ascii') as f:
        used = int(re.search(r'VmData:\s*(\d+) kB', f.read())[1]) * 1024
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + n_bytes + 2 * 2**30
    if limits[1] != resource.RLIM_INFINITY:
        limit = min(limit, limits[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


class TransformersModel(nn.Module):
    """A causal language model in Transformers' own class, with what generation and a loss need of GPT's interface."""

    n_params = GPT.n_params

    def __init__(self, folder):
        import transformers
        super().__init__()
        self.inner = from_pretrained(transformers.AutoModelForCausalLM, folder, dtype=torch.float32,
                                     output_loading_info=True)
        config = self.inner.config.get_text_config()
        block_size = getattr(config, 'max_position_embeddings', 2048)
        self.config = types.SimpleNamespace(vocab_size=config.vocab_size, block_size=block_size,
                                            n_layer=config.num_hidden_layers, n_embd=config.hidden_size)

    def forward(self, ids, targets=None):
        """ids: (B, T) int64 -> logits (B, T, vocab_size); with targets (B, T), the mean loss in nats."""
        if targets is None:
            return self.inner(ids, use_cache=False).logits
        # one part of the columns after the other, so that at most 2**28 logits (1 GB) are in memory
        n_columns = max(1, 2**28 // (len(ids) * self.config.vocab_size))
        loss, cache = 0.0, None
        for part, target in zip(ids.split(n_columns, 1), targets.split(n_columns, 1)):
            output = self.inner(part, past_key_values=cache, use_cache=n_columns < ids.size(1))
            cache = output.past_key_values
            loss += F.cross_entropy(output.logits.flatten(0, 1).float(), target.flatten(), reduction='sum')
        return loss / targets.numel()

    def new_cache(self, n_slots, length):
        """A cache for generate(). It grows with the sequences, so their length is not needed."""
        return TransformersCache(self.inner, n_slots)


class TransformersCache:
    """The interface of model.KVCache on Transformers' own cache.

    Sequences are padded on the left, so that all end in the same column. So they start together: prefill() begins anew.
    """

    refill = False  # a finished slot stays free until all are finished

    def __init__(self, model, n_slots):
        self.model = model
        self.lengths = [0] * n_slots  # columns, padding included
        self.parameters = inspect.signature(model.forward).parameters

    def prefill(self, slots, sequences):
        """Read sequences, lists of ids, into the first slots -> logits after each, (len(slots), vocab_size)."""
        import transformers
        assert slots == list(range(len(slots)))
        sequences = [torch.tensor(ids, device=self.model.device) for ids in sequences]
        ids = pad_sequence(sequences, batch_first=True, padding_side='left')  # (B, T)
        ones = [torch.ones_like(ids) for ids in sequences]
        self.mask = pad_sequence(ones, batch_first=True, padding_side='left')  # (B, T), 0: padding
        self.cache = transformers.DynamicCache(config=self.model.config)
        self.lengths[:len(slots)] = [ids.size(1)] * len(slots)
        positions = self.mask.cumsum(1) - 1
        return self.last_logits(ids, positions.clamp(min=0))

    def decode(self, tokens):
        """Read one token into each of the first len(tokens) slots -> the logits after it, (len(tokens), vocab_size)."""
        n = len(tokens)
        if n < len(self.mask):
            self.select(list(range(n)))
        for slot in range(n):
            self.lengths[slot] += 1
        positions = self.mask.sum(1, keepdim=True)  # (B, 1)
        self.mask = F.pad(self.mask, (0, 1), value=1)
        return self.last_logits(torch.tensor(tokens, device=positions.device)[:, None], positions)

    def move(self, source, target):
        """Copy one slot over another."""
        slots = list(range(len(self.mask)))
        slots[target] = source
        self.select(slots)
        self.lengths[target] = self.lengths[source]

    def select(self, slots):
        """Keep these slots, as the first ones."""
        index = torch.tensor(slots, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]

    def last_logits(self, ids, positions):
        """The logits after the last column, (B, vocab_size). ids, positions: (B, T)"""
        options = {}
        if 'position_ids' in self.parameters:  # not every model has both
            options['position_ids'] = positions
        if 'logits_to_keep' in self.parameters:
            options['logits_to_keep'] = 1
        output = self.model(ids, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **options)
        return output.logits[:, -1]
