"""
Models of other programs: Hugging Face folders and names, checkpoints of nanoGPT, llama2.c and TinyNews, LoRA.

    model, tokenizer, checkpoint = load('MaxLSB/LeCarnet-3M')

Notable choices:
- The weights of a Llama, Qwen3 or GPT-2 are copied into our GPT.
- Any other causal language model stays in Transformers' own class. A wrapper lets it generate and be trained.
- LoRA adapters are read and written as peft does.
- No code from a file or from the hub runs: weights are loaded as tensors only, and trust_remote_code is False.
- A damaged or unsuitable file ends the program with one line.
"""

import contextlib
import dataclasses
import inspect
import json
import math
import os
import re
import sys
import warnings

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F

from files import fail, on_hub
from model import (GPT, checkpoint_path, gpt_config, left_padded, load_checkpoint, load_weights, new_gpt, parts_of,
                   save_checkpoint, verify_file)
from tokenizer import find_beside, from_checkpoint, hub_problem, read_json
from tokenizer import load as load_tokenizer


def load(name, device='cpu', tokenizer='', data_tokenizer=''):
    """Load any trained model -> (model in eval mode, Tokenizer, checkpoint: a dict, empty if the model has none).

    name: a checkpoint of train.py, nanoGPT or llama2.c (.pt); llama2.c's model.bin; a folder with one of them, of
    Hugging Face, peft or TinyNews; or a name on the Hugging Face hub: user/model, user/repository/file.pt or file.bin.
    @revision at its end pins a version.
    tokenizer: name of a tokenizer to use instead of the model's own. A model of nanoGPT, llama2.c or TinyNews contains
    none. Without a name, the tokenizer beside it is used, or else data_tokenizer, the one of the training data.
    """
    path = find_model(name)
    checkpoint = {}
    tokenizer_folder = ''  # the folder of a model that contains its tokenizer
    model_file = path  # otherwise the tokenizer is searched for beside this file
    if os.path.isdir(path):
        base = base_folder(path)
        model_file = os.path.join(base, 'config.json')
        for folder in (base, path):  # adapters can have a tokenizer of their own
            stay_inside(folder)
            if any(file.startswith(('tokenizer', 'spiece')) for file in os.listdir(folder)):
                tokenizer_folder = folder
        model = load_hf(base, '' if base == path else path)
    elif path.endswith('.bin'):
        model = load_llama2c(path)
    elif path.endswith('.pt'):
        checkpoint = load_checkpoint(path)
        model = restore(checkpoint, path, merge=True)
    else:
        fail(f'{path} is neither a .pt file, nor a model.bin of llama2.c, nor the folder of a Hugging Face model')
    use_own_tokenizer = 'tokenizer' in checkpoint and not tokenizer
    has_tokenizer = use_own_tokenizer or tokenizer_folder
    is_llama2c = path.endswith('.bin') or 'dim' in checkpoint.get('model_args', ())
    n_tokens = model.config.vocab_size
    if use_own_tokenizer:
        tok = from_checkpoint(checkpoint, path)
    else:
        tok = load_tokenizer(tokenizer or tokenizer_folder or find_tokenizer(model_file, n_tokens, data_tokenizer))
    if is_llama2c:
        tok.ends = [tok.eos, tok.bos]  # run.c ends a story at bos
    # Added tokens such as padding may have ids that the model lacks. They never come out of text.
    n_needed = max(tok.backend.get_vocab_size(with_added_tokens=False), tok.bos + 1, tok.eos + 1)
    padding = 0 if is_llama2c else 63  # nanoGPT pads the vocabulary to a multiple of 64
    too_many = n_needed > n_tokens
    too_few = not has_tokenizer and tok.vocab_size < n_tokens - padding
    if too_many or too_few:
        n = n_needed if too_many else tok.vocab_size
        fail(f'{name} has {n_tokens:,} tokens, but {tokenizer or "its tokenizer"} has {n:,}')
    if tok.eos not in tok.ends:
        print(f'{name} ends a story at the ids {tok.ends}, by its settings, not at {tok.eos_token}', file=sys.stderr)
    return model.to(device).eval(), tok, checkpoint


def find_tokenizer(path, n_tokens, data_tokenizer):
    """The tokenizer beside a model's file, or else data_tokenizer, unless that is '' or a new one."""
    try:
        return find_beside(path, n_tokens)
    except SystemExit:
        if data_tokenizer in ('', 'train'):
            raise
        return data_tokenizer


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
            patterns += ['pytorch_model*.bin', 'adapter_model*.bin']
            folder = huggingface_hub.snapshot_download(model_name, revision=revision, allow_patterns=patterns)
        return folder
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as e:  # of the HTTP package that it uses
        fail(f'{name}: {hub_problem(e)}')


def quantize_int8(model):
    """Replace the weights of the linear layers of a model on a GPU, except the head, by 8-bit ones, in place."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    head = model.head
    quantize_(model, Int8WeightOnlyConfig(), lambda module, name: isinstance(module, nn.Linear) and module is not head)


def one_line(error):
    """The beginning of an error's message, without line breaks."""
    return ' '.join(str(error).split())[:200]


# -----------------------------------------------------------------------------
# checkpoints of train.py, nanoGPT and llama2.c


def restore(checkpoint, path, merge=False):
    """The model of a checkpoint of train.py, nanoGPT or llama2.c, on the CPU.

    A LoRA checkpoint contains only adapters, and the name of their base model. merge=True adds them to its weights.
    """
    args, weights = parts_of(checkpoint, path)
    if 'lora' in checkpoint:
        return restore_lora(checkpoint, path, merge)
    if 'settings' in args:
        return new_transformers(args, weights, path)
    if 'tok_embeddings.weight' in weights:
        return restore_llama2c(args, weights, path)
    if 'transformer.wte.weight' in weights:  # of nanoGPT
        return gpt_of(args | {'norm': 'layernorm', 'position': 'learned', 'mlp': 'gelu'}, weights, path)
    model = new_gpt(args, weights, path)
    load_weights(model, weights, path)
    return model


@torch.no_grad()
def restore_llama2c(args, weights, path):
    """The GPT of a checkpoint of llama2.c."""
    values = renamed(args, META_KEYS)
    gate = weights.get('layers.0.feed_forward.w1.weight')
    if gate is not None and gate.dim():
        values['n_inner'] = len(gate)
    model = gpt_of(values, weights, path, META_LAYERS)
    # Reorder queries and keys: Meta's Llama rotates neighbours, our GPT rotates the halves of a head.
    config = model.config
    for block in model.blocks:
        qk = block.attn.qkv.weight[:(config.n_head + config.n_kv_head) * config.head_size]
        pairs = qk.reshape(-1, config.head_size // 2, 2, config.n_embd)  # (heads, d / 2, 2, C)
        qk.copy_(pairs.transpose(1, 2).reshape(qk.shape))
    return model


def load_llama2c(path):
    """The GPT of a model.bin of llama2.c, as run.c reads it: seven int32, then the weights in float32."""
    header = np.fromfile(path, '<i4', 7).tolist()
    if header[:1] == [0x616b3432]:
        fail(f'{path} is in a format for runq.c; export it again with --version 0 of llama2.c')
    shapes = {}
    if len(header) == 7 and min(header[:5]) > 0 and header[2] <= 1000:
        dim, n_inner, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len = header
        head_size = dim // n_heads
        shapes['tok_embeddings.weight'] = (abs(vocab_size), dim)
        parts = {  # first the first one of all layers, then the second one of all layers, and so on
            'attention_norm': (dim,), 'attention.wq': (dim, dim), 'attention.wk': (n_kv_heads * head_size, dim),
            'attention.wv': (n_kv_heads * head_size, dim), 'attention.wo': (dim, dim), 'ffn_norm': (dim,),
            'feed_forward.w1': (n_inner, dim), 'feed_forward.w2': (dim, n_inner), 'feed_forward.w3': (n_inner, dim)}
        for part, shape in parts.items():
            for i in range(n_layers):
                shapes[f'layers.{i}.{part}.weight'] = shape
        shapes['norm.weight'] = (dim,)
        shapes['angles'] = (abs(max_seq_len), head_size)  # of the positions; not needed here
        if vocab_size < 0:
            shapes['output.weight'] = (-vocab_size, dim)
    sizes = [math.prod(shape) for shape in shapes.values()]
    if not shapes or os.path.getsize(path) != 28 + 4 * sum(sizes):
        fail(f'{path} is damaged, or not a model.bin of llama2.c')
    floats = torch.from_numpy(np.fromfile(path, '<f4', offset=28))
    weights = {}
    for (name, shape), part in zip(shapes.items(), floats.split(sizes)):
        weights[name] = part.view(shape)
    args = {'dim': dim, 'n_layers': n_layers, 'n_heads': n_heads, 'n_kv_heads': n_kv_heads,
            'vocab_size': abs(vocab_size), 'max_seq_len': max_seq_len}
    return restore_llama2c(args, weights, path)


# -----------------------------------------------------------------------------
# fine-tuning and resuming


def load_for_training(name, tokenizer, data_tokenizer, config):
    """Load a model to train -> (model, settings of its LoRA adapters or None, state of its training or None).

    tokenizer: the tokenizers.Tokenizer of the training data. It may be the model's, trimmed: then only the rows of its
    tokens stay in embedding and head. data_tokenizer: the name that prepare.py got. config: the keys of train.py.
    A checkpoint without an optimizer has no state. The state has 'step' and 'optimizer', as in train.py's checkpoints.
    """
    block_size, dropout = config['block_size'], config['dropout']
    model, model_tokenizer, checkpoint = load(name, data_tokenizer=data_tokenizer)
    if block_size > model.config.block_size:
        fail(f'{name} reads at most {model.config.block_size} tokens and block_size is {block_size}')
    rows = embedding_rows(model_tokenizer, tokenizer.get_vocab())
    if rows is None:
        fail(f'{name} has another tokenizer than the data; prepare the data with --tokenizer={name} --trim=False')
    model = resized(model, block_size, dropout, rows)
    if config['lora_rank']:
        lora = {'base': name, 'tokenizer': data_tokenizer, 'rank': config['lora_rank'], 'alpha': config['lora_alpha'],
                'dropout': config['lora_dropout']}
        add_lora(model, lora['rank'], lora['alpha'], lora['dropout'])
        return model, lora, None
    starts_fresh = config['fresh_optimizer'] or config['eval_only'] or config['plan']
    if starts_fresh or 'optimizer' not in checkpoint or 'lora' in checkpoint:
        return model, None, None
    step = checkpoint.get('step', checkpoint.get('iter_num'))  # the latter is nanoGPT's and llama2.c's
    if not isinstance(step, int) or not 0 <= step < config['max_iters']:
        fail(f'{name} is at step {step} and max_iters is {config["max_iters"]}; raise max_iters to go on, or start at '
             'step 0 with --fresh_optimizer=True')
    if 'step' in checkpoint:
        weights = model.state_dict()
        if any(weights[key].shape != weight.shape for key, weight in checkpoint['model'].items() if key in weights):
            fail(f'{name}: its embeddings are cut for these data, its optimizer is not; --fresh_optimizer=True starts '
                 'at step 0 without it')
        return model, None, checkpoint
    # AdamW's moments have the names and shapes of the weights, so they are converted like them
    moments = {}
    for key in ('exp_avg', 'exp_avg_sq'):
        converted = restore(checkpoint | {'model': moments_of(checkpoint, key, name)}, name)
        moments[key] = resized(converted, block_size, dropout, rows).state_dict()
    [adamw] = model.configure_optimizers(  # only its state is used
        'adamw', learning_rate=0.0, embedding_lr=0.0, weight_decay=0.0, betas=(0.9, 0.95), momentum=0.0, ns_steps=0)
    for parameter_name, parameter in model.named_parameters():
        state = {key: values[parameter_name] for key, values in moments.items()}
        adamw.state[parameter] = state | {'step': torch.tensor(float(step))}
    return model, None, {'step': step, 'optimizer': [adamw.state_dict()]}


def moments_of(checkpoint, key, path):
    """One of AdamW's moments in a checkpoint of nanoGPT or llama2.c, by the names of the weights.

    key: 'exp_avg' or 'exp_avg_sq'. Both programs number first the matrices, then the vectors.
    """
    weights = parts_of(checkpoint, path)[1]
    embedding = weights.get('transformer.wte.weight', weights.get('tok_embeddings.weight'))
    names = []
    for name, weight in weights.items():
        is_tied = name in ('lm_head.weight', 'output.weight') and torch.equal(weight, embedding)
        if weight.dim() < 4 and not is_tied:  # the masks of older versions have four dimensions
            names.append(name)
    names.sort(key=lambda name: weights[name].dim() < 2)
    try:
        states = checkpoint['optimizer']['state']
        if len(states) != len(names):
            raise ValueError
        return {name: states[i][key] for i, name in enumerate(names)}
    except (KeyError, TypeError, ValueError):
        fail(f'{path}: the state of its optimizer does not fit its weights; --fresh_optimizer=True leaves it out')


def embedding_rows(model_tokenizer, vocab):
    """The rows of a model's embedding for the tokens of a vocabulary, {token: id}, in the order of its ids.

    model_tokenizer: the Tokenizer of the model. [] = all rows, in the same order. None if a token has no row.
    """
    model_vocab = model_tokenizer.backend.get_vocab()
    if model_vocab == vocab:
        return []
    if not vocab.keys() <= model_vocab.keys():
        return None
    return [model_vocab[token] for token in sorted(vocab, key=vocab.get)]


def resized(model, block_size, dropout, rows=()):
    """A copy of a model with another dropout and another block_size, which must not be larger.

    rows: the rows that stay in embedding and head, in their new order; empty = all.
    """
    weights = model.state_dict()
    config = dataclasses.replace(model.config, block_size=block_size, dropout=dropout)
    if rows:
        config.vocab_size = len(rows)
        embedding_and_head = {id(parameter) for parameter in (*model.wte.parameters(), *model.head.parameters())}
        for name, parameter in model.named_parameters(remove_duplicate=False):  # tied weights have two names
            if id(parameter) in embedding_and_head:
                weights[name] = weights[name][rows]
    if isinstance(model, TransformersModel):
        return new_transformers(vars(config), weights, 'the model')
    if 'wpe.weight' in weights:
        weights['wpe.weight'] = weights['wpe.weight'][:block_size]
    model = GPT(config)
    model.load_state_dict(weights)
    return model


# -----------------------------------------------------------------------------
# LoRA: low-rank adapters (Hu et al. 2021)


def add_lora(model, rank, alpha, dropout):
    """Add LoRA adapters to the linear layers, except the head -> peft's LoraModel, which wraps the model.

    Only the adapters stay trainable.
    """
    import peft
    layers = ['qkv', 'proj', 'gate', 'up', 'down']
    if isinstance(model, TransformersModel):
        model, layers = model.inner, 'all-linear'
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)
    return peft.LoraModel(model, config, 'default')


loading_lora = []  # the LoRA checkpoints whose base model is being loaded


def restore_lora(checkpoint, path, merge):
    """The base model of a LoRA checkpoint, with its adapters. checkpoint['lora']: {'base', 'rank', 'alpha', …}"""
    args, adapters = parts_of(checkpoint, path)
    lora = checkpoint['lora']
    kinds = {'base': str, 'rank': int, 'alpha': (int, float), 'dropout': (int, float)}
    is_complete = isinstance(lora, dict) and all(isinstance(lora.get(key), kind) for key, kind in kinds.items())
    if not is_complete or 'tokenizer' not in checkpoint:
        fail(f'{path}: its LoRA settings are incomplete')
    base = lora['base']
    try:
        base_path = find_model(base)
    except SystemExit:
        fail(f'{path} has LoRA adapters for {base}, which is no longer there; move that model back to this path, '
             'from the working directory, or for a name on the hub check the connection')
    loading_lora.append(os.path.realpath(path))
    try:
        if os.path.realpath(base_path) in loading_lora:
            fail(f'{path} is a LoRA checkpoint that names itself as its base model, or as the base of its base')
        model, tok, _ = load(base, data_tokenizer=str(lora.get('tokenizer', '')))
    finally:
        loading_lora.pop()
    rows = embedding_rows(tok, from_checkpoint(checkpoint, path).backend.get_vocab())
    try:
        if rows is None or lora['rank'] > model.config.n_embd or args['block_size'] > model.config.block_size:
            raise ValueError
        model = resized(model, args['block_size'], args['dropout'], rows)
        lora_model = add_lora(model, lora['rank'], lora['alpha'], lora['dropout'])
        missing, unexpected = load_weights(model, adapters, path, strict=False)
        if unexpected or any('.lora_' in name for name in missing):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        fail(f'{path}: its LoRA adapters do not fit {base}')
    if merge:
        lora_model.merge_and_unload()
    return model


def merge_lora(path):
    """Replace a LoRA checkpoint by one with the weights of its base model and adapters together."""
    checkpoint = load_checkpoint(path)
    checkpoint['model'] = restore(checkpoint, path, merge=True).state_dict()
    del checkpoint['lora']
    save_checkpoint(path, checkpoint)


def write_adapters(checkpoint, path, folder):
    """Write the LoRA adapters of a checkpoint as peft.PeftModel.from_pretrained(base_model, folder) reads them."""
    import peft
    from safetensors.torch import save_file
    if 'lora' not in checkpoint:
        fail(f'{path} has no LoRA adapters; export it with --format=hf')
    args, adapters = parts_of(checkpoint, path)
    lora = checkpoint['lora']
    settings_path = os.path.join(find_model(lora['base']), 'config.json')
    kind = read_json(settings_path).get('model_type') if os.path.exists(settings_path) else None
    if not kind:
        fail(f'{path}: its base model {lora["base"]} is not a Hugging Face folder, which peft needs; export that model '
             'and train the adapters for the export, or use --format=hf, which merges them')
    config = None if 'settings' in args else gpt_config(args, path)
    weights = {}
    for name, weight in adapters.items():
        layer, side = name.removesuffix('.default.weight').split('.lora_')  # side: 'A' or 'B'
        if config:
            prefix = 'transformer.' if kind == 'gpt2' else 'model.'
            layers = [prefix + hf_name.removesuffix('.weight') for hf_name in hf_names(f'{layer}.weight', config)]
        else:  # a class of Transformers: the names are its own
            layers = [layer.removeprefix('inner.')]
        parts = [weight] * len(layers)  # three layers, queries, keys and values, share A
        if len(layers) == 3 and side == 'B':
            parts = weight.split([n * config.head_size for n in (config.n_head, config.n_kv_head, config.n_kv_head)])
        for hf_layer, part in zip(layers, parts):
            weights[f'base_model.model.{hf_layer}.lora_{side}.weight'] = part.clone()
    target_modules = sorted({name.split('.')[-3] for name in weights})  # such as c_attn
    base, revision = lora['base'], None
    if not os.path.exists(base):
        base, revision = on_hub(base)
    peft.LoraConfig(r=lora['rank'], lora_alpha=lora['alpha'], lora_dropout=lora['dropout'], inference_mode=True,
                    target_modules=target_modules, fan_in_fan_out=kind == 'gpt2', task_type='CAUSAL_LM',
                    base_model_name_or_path=base, revision=revision).save_pretrained(folder)
    save_file(weights, os.path.join(folder, 'adapter_model.safetensors'), {'format': 'pt'})


def merge_adapters(model, folder):
    """Merge the adapters in a folder of peft into a model of Transformers, in place."""
    import peft
    if not any(file.startswith('adapter_model') for file in os.listdir(folder)):  # peft would look for it on the hub
        fail(f'{folder} contains no adapter_model.safetensors')
    with transformers_errors(folder):
        peft.PeftModel.from_pretrained(model, folder).merge_and_unload()


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
TINYNEWS_KEYS = {
    'vocab_size': 'vocab_size', 'context_length': 'block_size', 'd_embedding': 'n_embd', 'd_intermediate': 'n_inner',
    'n_heads': 'n_head', 'n_layers': 'n_layer', 'qkv_bias': 'qkv_bias',
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
    'attention_bias': (False,), 'mlp_bias': (False,), 'quantization_config': (),
}


def load_hf(folder, adapters=''):
    """The model of a folder of Hugging Face or TinyNews, with the adapters in a folder of peft merged into it.

    It is a GPT if it is a plain Llama, Qwen3 or GPT-2, or TinyNews' model, else a TransformersModel.
    """
    path = os.path.join(folder, 'config.json')
    if not os.path.exists(path):
        fail(f'{folder} contains neither best.pt, ckpt.pt nor a Hugging Face config.json')
    settings = read_json(path)
    if isinstance(settings.get('model'), dict) and not adapters:
        return load_tinynews(folder, settings['model'])
    config = plain_config(settings, path)
    weights = read_weights(folder) if config and not adapters else {}
    if not weights:
        import transformers
        model = from_pretrained(transformers.AutoModelForCausalLM, folder, dtype=torch.float32,
                                output_loading_info=True)
        if adapters:
            merge_adapters(model, adapters)
        if not config:
            model = TransformersModel(model)
            check_generation(model, folder)
            return model
        weights = model.state_dict()
    if config.position == 'learned':
        for name, weight in weights.items():
            if '.c_' in name and weight.dim() == 2:  # (in, out) there, (out, in) in nn.Linear
                weights[name] = weight.t()
    return gpt_of(vars(config), weights, folder)


def base_folder(folder):
    """The folder of the base model of adapters that peft wrote; the folder itself if it contains a whole model."""
    path = os.path.join(folder, 'adapter_config.json')
    if not os.path.exists(path) or os.path.exists(os.path.join(folder, 'config.json')):
        return folder
    return find_model(str(read_json(path).get('base_model_name_or_path')))


def plain_config(settings, path):
    """The GPTConfig for the settings of a config.json, or None if a GPT cannot compute that model."""
    rope = settings.get('rope_parameters') or settings.get('rope_scaling')
    if isinstance(rope, dict):
        settings |= rope
    kind = str(settings.get('model_type'))
    if kind not in KEYS or any(settings.get(key) not in (None, *values) for key, values in SUPPORTED.items()):
        return None
    config = gpt_config(DEFAULTS[kind] | renamed(settings, KEYS[kind]), path)
    if settings.get('head_dim') not in (None, config.head_size):
        return None
    return config


def load_tinynews(folder, settings):
    """The GPT of a folder of TinyNews: its config.json, of which settings is the part 'model', and safetensors."""
    weights = {}
    for name, weight in read_weights(folder).items():
        for theirs, ours in (('trf_blocks.', 'h.'), ('.scale', '.weight'), ('.shift', '.bias')):
            name = name.replace(theirs, ours)
        weights[name] = weight
    values = {'norm': 'layernorm', 'position': 'learned', 'mlp': 'gelu', 'bias': True, 'tie_weights': False}
    return gpt_of(values | renamed(settings, TINYNEWS_KEYS), weights, folder, TINYNEWS_LAYERS)


def renamed(settings, names):
    """The settings that are in `names`, a dict of new names, and are not None."""
    return {names[key]: settings[key] for key in names if settings.get(key) is not None}


def stay_inside(folder):
    """Fail when a Hugging Face folder names weights in other folders, or a kernel on the hub, which is code."""
    files = os.listdir(folder)
    for file in files:
        path = os.path.join(folder, file)
        if file == 'adapter_config.json' and 'config.json' in files:
            fail(f'{path} names another model; merge the adapter into its model first')
        if file == 'config.json':
            check_settings(read_json(path), path)
        if file.endswith('.index.json'):
            names = read_json(path).get('weight_map', {})
            if not isinstance(names, dict) or any(os.path.basename(str(name)) != name for name in names.values()):
                fail(f'{path} names weights outside of the folder')
        if file.startswith(('pytorch_model', 'adapter_model')) and file.endswith('.bin'):
            try:
                verify_file(path)
            except Exception as e:  # of many kinds
                fail(f'{path}: its weights contain something other than tensors, or are damaged ({one_line(e)})')


def check_settings(settings, path):
    """Fail when the settings of a config.json name a kernel on the hub, or need more memory than there is."""
    waiting = list(settings.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f'{key} {inner_key}', inner_value) for inner_key, inner_value in value.items()]
        elif isinstance(value, list):
            waiting += [(key, part) for part in value]
        elif isinstance(value, str) and '_implementation' in key and '/' in value:
            fail(f'{path} names a kernel on the hub, which is code')
        elif isinstance(value, int) and value > 1000 and re.search('(layer|expert)s?$', key):
            fail(f'{path}: a {key} of {value} fits in no memory')


def read_weights(folder):
    """The tensors by name, in float32, in model.safetensors or in the files of its index; {} if there is neither."""
    import safetensors.torch
    files = []
    index_path = os.path.join(folder, 'model.safetensors.index.json')
    if os.path.exists(os.path.join(folder, 'model.safetensors')):
        files = ['model.safetensors']
    elif os.path.exists(index_path):
        files = set(read_json(index_path).get('weight_map', {}).values())
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
TINYNEWS_LAYERS = {
    'wte': ['tok_emb'], 'wpe': ['pos_emb'], 'norm': ['final_norm'], 'head': ['out_head'],
    'norm1': ['norm1'], 'norm2': ['norm2'], 'attn.qkv': ['att.qkv'], 'attn.proj': ['att.proj'],
    'mlp.up': ['ff.layers.0'], 'mlp.down': ['ff.layers.2'],
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


def gpt_of(values, weights, path, layers=None):
    """The GPT with these settings, a dict, and weights with Hugging Face's or nanoGPT's names, or those in `layers`."""
    weights = {name.removeprefix('transformer.').removeprefix('model.'): weight for name, weight in weights.items()}
    config = gpt_config(values, path)
    embedding_name, = hf_names('wte.weight', config, layers)
    head_name, = hf_names('head.weight', config, layers)
    if config.tie_weights and embedding_name in weights:
        head = weights.setdefault(head_name, weights[embedding_name])
        config.tie_weights = torch.equal(head, weights[embedding_name])  # whatever the settings say, as in Transformers
    model = new_gpt(vars(config), weights, path)
    state = {}
    for name in model.state_dict():
        names = hf_names(name, config, layers)
        try:
            state[name] = torch.cat([weights.pop(hf_name) for hf_name in names])
        except KeyError as e:
            fail(f'{path}: the weights lack {e.args[0]}')
        except RuntimeError as e:  # other shapes
            fail(f'{path}: the weights {names[0]} do not fit the model: {one_line(e)}')
    load_weights(model, state, path)
    return model


# -----------------------------------------------------------------------------
# any other causal language model

def from_pretrained(auto_class, folder, **options):
    """auto_class.from_pretrained(folder) for a class of Transformers. No code of the folder runs.

    With output_loading_info=True, a model whose files lack weights is refused: they would be filled at random.
    """
    with transformers_errors(folder):
        loaded = auto_class.from_pretrained(folder, trust_remote_code=False, **options)
    if not options.get('output_loading_info'):
        return loaded
    model, info = loaded
    if info['missing_keys']:
        fail(f'{folder}: the weights lack {", ".join(sorted(info["missing_keys"])):.200}')
    return model


def check_generation(model, path):
    """Fail if a TransformersModel cannot continue prompts of different lengths with a cache.

    Mamba and RWKV read padding too. BERT, which fills gaps, sees what follows. NaN as a weight is found too.
    """
    with transformers_errors(path), torch.no_grad():
        cache = model.new_cache(2, 4)
        cache.prefill([0, 1], [[5, 6, 7], [8]])
        logits = cache.decode([9, 9])[1]
        expected = model(torch.tensor([[8, 9]]))[0, -1]
        is_close = (logits - expected).abs().max() < 0.01 * expected.std()  # False for NaN
        if not is_close:
            fail(f'{path}: its class of Transformers cannot generate stories in batches, or its weights are damaged')


def new_transformers(args, weights, path):
    """The TransformersModel of a checkpoint. args: the fields of a TransformersConfig.

    All its dropouts are set to args['dropout']. No token is padding, so that all are trained.
    """
    import transformers
    with transformers_errors(path, sum(weight.nbytes for weight in weights.values())):
        check_settings(args['settings'], path)
        if not 1 <= args['block_size'] <= 2**20 or not 0 <= args['dropout'] < 1:
            raise ValueError('an impossible block_size or dropout')
        config = transformers.AutoConfig.for_model(**args['settings'])
        text_config = config.get_text_config()
        text_config.vocab_size = args['vocab_size']
        text_config.pad_token_id = None
        for name, value in list(vars(text_config).items()):
            if isinstance(value, float) and ('dropout' in name or 'pdrop' in name):
                setattr(text_config, name, args['dropout'])
        inner = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False)
        model = TransformersModel(inner, args['block_size'], args['dropout'])
    load_weights(model, weights, path)
    return model


@contextlib.contextmanager
def transformers_errors(path, n_bytes=None):
    """In this block, an error of Transformers or peft, or too much memory, ends the program with one line.

    n_bytes: the size of the weights to load; None = of the files in the folder `path`.
    Only Linux can limit memory: to four times that, and 2 GB.
    """
    import transformers
    if n_bytes is None:
        n_bytes = sum(file.stat().st_size for file in os.scandir(path))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    limits = None
    if sys.platform == 'linux':
        import resource
        with open('/proc/self/status', encoding='ascii') as f:
            used = int(re.search(r'VmData:\s*(\d+) kB', f.read())[1]) * 1024
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        limit = used + 4 * n_bytes + 2 * 2**30
        if limits[1] != resource.RLIM_INFINITY:
            limit = min(limit, limits[1])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limits[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            warnings.filterwarnings('error', 'Found missing adapter keys')  # peft would leave them out
            yield
    except Exception as e:  # of many kinds, for files that are damaged, incomplete or contain code
        reason = one_line(e)
        if 'weights_only' in str(e):  # torch's advice to load the file in an unsafe way
            reason = 'its weights contain something other than tensors'
        if 'mismatched_sizes' in reason:  # advice for programmers
            reason = 'its weights have other shapes than its config.json says'
        fail(f'{path}: Transformers cannot open it: {reason}')
    finally:
        if limits:
            resource.setrlimit(resource.RLIMIT_DATA, limits)


@dataclasses.dataclass
class TransformersConfig:
    settings: dict  # as in config.json
    vocab_size: int
    block_size: int
    n_layer: int
    n_embd: int
    dropout: float


class TransformersModel(nn.Module):
    """A causal language model in Transformers' own class, with GPT's interface for generation and training."""

    n_params = GPT.n_params
    flops_per_token = GPT.flops_per_token  # too many for an embedding that is not tied
    configure_optimizers = GPT.configure_optimizers

    def __init__(self, inner, block_size=0, dropout=0.0):
        super().__init__()
        self.inner = inner
        config = inner.config.get_text_config()
        settings = json.loads(inner.config.to_json_string(use_diff=False))
        block_size = block_size or getattr(config, 'max_position_embeddings', 2048)
        self.config = TransformersConfig(settings, config.vocab_size, block_size, config.num_hidden_layers,
                                         config.hidden_size, dropout)

    @property
    def wte(self):
        return self.inner.get_input_embeddings()

    @property
    def head(self):
        return self.inner.get_output_embeddings()

    def forward(self, ids, targets=None):
        """ids: (B, T) int64 -> logits (B, T, vocab_size); with targets (B, T), the mean loss in nats."""
        if targets is None:
            return self.inner(ids, use_cache=False).logits
        loss = 0.0
        n_rows = max(1, 2**28 // (ids.size(1) * self.config.vocab_size))  # whose logits take 1 GB
        for rows, target in zip(ids.split(n_rows), targets.split(n_rows)):
            logits = self(rows).flatten(0, 1).float()
            loss = loss + F.cross_entropy(logits, target.flatten(), reduction='sum')
        return loss / targets.numel()

    def new_cache(self, n_slots, length):
        """A cache for generate(). It grows with the sequences, so their length is not needed."""
        return TransformersCache(self.inner, n_slots)


class TransformersCache:
    """The interface of model.KVCache on Transformers' own cache.

    Sequences are padded on the left, so that all end in the same column. prefill() starts a new cache.
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
        ids = left_padded(sequences, -1, self.model.device)  # (B, T)
        self.mask = (ids >= 0).long()  # 0: padding
        self.cache = transformers.DynamicCache(config=self.model.config)
        self.lengths[:len(slots)] = [ids.size(1)] * len(slots)
        positions = self.mask.cumsum(1) - 1
        return self.last_logits(ids.clamp(min=0), positions.clamp(min=0))

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
        options = {'position_ids': positions, 'logits_to_keep': 1}
        # not every model has both
        options = {key: value for key, value in options.items() if key in self.parameters}
        output = self.model(ids, attention_mask=self.mask, past_key_values=self.cache, use_cache=True, **options)
        return output.logits[:, -1]
