"""
Models on disk: the checkpoints of train.py and nanoGPT, Hugging Face folders and what the hub has of them, adapters. No file from outside can run code.
"""

import json
import os
import re
import warnings
import zipfile

import torch

from jsonl import replacing
from model import GPT, Foreign
from tokenizer import Tokenizer, from_folder, on_hub
from tokenizer import load as load_tokenizer


def save_checkpoint(path, checkpoint):
    """Write a checkpoint (tensors and plain Python only); the old file stays until the new one is whole."""
    with replacing(path) as temporary:
        try:
            with open(temporary, 'wb') as f:
                torch.save(checkpoint, f)
        except RuntimeError as e:  # torch's own, over what the disk said
            raise e.__context__ if isinstance(e.__context__, OSError) else e from None


def load_checkpoint(path):
    """Read a checkpoint without running any code from it."""
    if not os.path.exists(path):
        raise SystemExit(f'{path} is missing; train first, or name another --out_dir')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # at a plain pickle, before it is refused
            if zipfile.is_zipfile(path):  # torch reads past the check sums that it wrote, and a flipped bit would become another weight
                with zipfile.ZipFile(path) as z:
                    if damaged := z.testzip():
                        raise ValueError(f'{damaged} in it is damaged')
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:  # a torn zip, a foreign pickle, a short read: torch raises as many kinds
        thing, said = re.search(r'GLOBAL (\S+)', str(e)), str(e).splitlines() or ['nothing in it']
        if thing:
            raise SystemExit(f'{path} holds, besides weights, a Python object ({thing[1]}), and reading that could run code from the file; '
                             'ask for one with tensors and plain values only') from None
        why = 'something other than tensors and plain values in it' if 'weights_only' in said[0] else said[0]  # where torch advises to read it all the same
        beside = [other for file in ('best.pt', 'ckpt.pt') if os.path.exists(other := os.path.join(os.path.dirname(path), file)) and other != str(path)]
        raise SystemExit(f'{path}: not a checkpoint that can be read ({why})' + ''.join(f'; there is also {other}' for other in beside)) from None


def load(name, device='cpu', tokenizer=''):
    """A trained model -> (GPT in eval mode, Tokenizer, checkpoint or {}).

    name: a checkpoint of train.py or of nanoGPT, as a file or, from the Hugging Face hub, user/repository/file.pt; a folder
    with best.pt or ckpt.pt; or a Hugging Face folder or hub name. What comes from the hub may be pinned by @revision at its end.
    tokenizer: the name of one to use instead of the model's own. A nanoGPT checkpoint has none: it is the one named or the
    tokenizer.json beside it. A model that is no Llama, Qwen3 or GPT-2 is a Foreign. Ends the program with one line when
    there is no such model or its files are broken.
    """
    try:
        model, spelling, checkpoint = read(name, tokenizer)
        highest = max(spelling.bos, spelling.eos, *spelling.backend.get_vocab(with_added_tokens=False).values())
    except Exception as e:  # files from anywhere can be wrong in any way
        raise SystemExit(f'{name}: not a model that can be used here ({type(e).__name__}: {" ".join(str(e).split()):.300})') from None
    if highest >= model.args['vocab_size']:
        raise SystemExit(f'{name} has {model.args["vocab_size"]:,} tokens and its tokenizer {highest + 1:,}; they do not belong together')
    return model.to(device).eval(), spelling, checkpoint


def read(name, tokenizer):
    """What load returns, on the CPU; a file that is none of these may raise anything."""
    path = name
    if os.path.isdir(name):
        path = next((p for file in ('best.pt', 'ckpt.pt') if os.path.exists(p := os.path.join(name, file))), name)
    elif not os.path.exists(name) and (not name.endswith('.pt') or name.count('/') > 1):
        path = download(name)
    if not path.endswith('.pt'):
        return load_hf(path), load_tokenizer(tokenizer) if tokenizer else from_folder(path, name), {}
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or not {'model_args', 'model'} <= checkpoint.keys():
        raise SystemExit(f'{path}: a checkpoint, but neither of train.py nor of nanoGPT')
    config, meta = checkpoint.get('config', {}), checkpoint.get('meta', {})
    if not isinstance(config, dict) or not isinstance(meta, dict) or not isinstance(config.get('dataset', ''), str):
        raise SystemExit(f'{path}: its config and meta are not as train.py writes them')
    beside = os.path.join(os.path.dirname(path), 'tokenizer.json')
    if tokenizer or 'tokenizer' not in checkpoint and os.path.exists(beside):
        spelling = load_tokenizer(tokenizer or beside)
    elif 'tokenizer' in checkpoint:
        spelling = Tokenizer(**checkpoint['tokenizer'])
    else:
        raise SystemExit(f'{path} holds no tokenizer: put its tokenizer.json beside, or name one (--tokenizer= of sample.py and export.py)')
    return restore(checkpoint, path, merge=True), spelling, checkpoint


def restore(checkpoint, path, merge=False):
    """The GPT of a checkpoint of train.py or, as its names of weights tell, of nanoGPT; adapters are read on top of their base."""
    args, weights = checkpoint['model_args'], {name.removeprefix('_orig_mod.'): weight for name, weight in checkpoint['model'].items()}
    if lora := checkpoint.get('lora'):
        model = resized(load(lora['base'])[0], args['block_size'], args['dropout'])
        adapted = add_lora(model, lora['rank'], lora['alpha'], lora['dropout'])
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if unexpected or any('.lora_' in name for name in missing):
            raise SystemExit(f'{path}: these adapters do not fit {lora["base"]}')
        return adapted.merge_and_unload() if merge else model
    if 'transformer.wte.weight' in weights:
        model = GPT(**args, norm='layernorm', position='learned', mlp='gelu')
        fill(model, weights, path)
    else:
        model = GPT(**args)
        model.load_state_dict(weights)
    return model


def resized(model, block_size, dropout):
    """A GPT with the same weights that reads block_size tokens, which are no more than it could before."""
    weights = model.state_dict()
    if 'wpe.weight' in weights:
        weights['wpe.weight'] = weights['wpe.weight'][:block_size]
    model = GPT(**{**model.args, 'block_size': block_size, 'dropout': dropout})
    model.load_state_dict(weights)
    return model


def add_lora(model, rank, alpha, dropout):
    """Put low-rank adapters (Hu et al. 2021) beside the linear layers of a GPT's blocks, so that only they learn -> peft's LoraModel around it."""
    try:
        import peft
    except ImportError:
        raise SystemExit('LoRA takes one more package: pip install peft') from None
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=['qkv', 'proj', 'gate', 'up', 'down'])
    return peft.LoraModel(model, config, 'default')


def download(name):
    """A model's files from the Hugging Face hub -> the folder where they are kept, or the file when the name has a third part."""
    path, revision = on_hub(name)
    user, _, file = path.partition('/')
    repository, _, file = file.partition('/')
    if name.startswith(('.', '/')) or file and not file.endswith('.pt') or user in ('out', 'data'):
        raise SystemExit(f'{name} holds no checkpoint; train first, or name another folder')
    import huggingface_hub
    try:
        if file:
            return huggingface_hub.hf_hub_download(f'{user}/{repository}', file, revision=revision)
        kinds = ['*.json', '*.safetensors', '*.model', '*.spm', '*.txt']
        folder = huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=kinds)
        if not any(file.endswith('.safetensors') for file in os.listdir(folder)):
            folder = huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=[*kinds, 'pytorch_model*.bin'])
        return folder
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as e:
        raise SystemExit(f'{name}: neither here nor a model to be had from the Hugging Face hub ({type(e).__name__})') from None


def load_hf(folder):
    """The model that a Hugging Face folder holds -> GPT, or Foreign when it is no plain Llama, Qwen3 or GPT-2. No code from the folder is run."""
    if not os.path.exists(os.path.join(folder, 'config.json')):
        raise SystemExit(f'{folder} holds neither best.pt, ckpt.pt nor a Hugging Face config.json')
    with open(os.path.join(folder, 'config.json'), encoding='utf-8') as f:
        config = json.load(f)
    kind = config.get('model_type')
    if kind == 'gpt2':
        mlp = {'gelu_new': 'gelu_new', 'gelu': 'gelu'}.get(config.get('activation_function', 'gelu_new'))
        args = {'block_size': config['n_positions'], 'n_layer': config['n_layer'], 'n_head': config['n_head'], 'n_embd': config['n_embd'],
                'n_inner': config.get('n_inner') or 0, 'norm': 'layernorm', 'position': 'learned', 'mlp': mlp, 'bias': True,
                'tie_weights': config.get('tie_word_embeddings', True), 'norm_eps': config.get('layer_norm_epsilon', 1e-5)}
        supported = mlp and config.get('scale_attn_weights', True) \
            and not any(config.get(key) for key in ('scale_attn_by_inverse_layer_idx', 'add_cross_attention'))
    elif kind in ('llama', 'qwen3'):
        rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
        head_size = config['hidden_size'] // config['num_attention_heads']
        args = {'block_size': config['max_position_embeddings'], 'n_layer': config['num_hidden_layers'], 'n_head': config['num_attention_heads'],
                'n_embd': config['hidden_size'], 'n_kv_head': config.get('num_key_value_heads') or 0, 'n_inner': config['intermediate_size'],
                'tie_weights': config.get('tie_word_embeddings', False), 'qk_norm': kind == 'qwen3', 'norm_eps': config['rms_norm_eps'],
                'rope_theta': float(rope.get('rope_theta') or config.get('rope_theta') or 10000)}
        supported = (rope.get('rope_type') or rope.get('type') or 'default') == 'default' and config.get('hidden_act', 'silu') == 'silu' \
            and (config.get('head_dim') or head_size) == head_size \
            and not any(config.get(key) for key in ('attention_bias', 'mlp_bias', 'use_sliding_window'))
    else:
        supported = False
    stay_inside(folder)
    if not supported:  # of another kind, or with parts that GPT has not: scaled rope or attention, biases, another activation or head size
        try:
            return Foreign(folder)
        except Exception as e:  # whatever Transformers says of a folder with too little in it, or with code of its own
            raise SystemExit(f'{folder}: a model of type {kind!r} that Transformers cannot open ({reason_in(e):.200})') from None
    model = GPT(vocab_size=config['vocab_size'], **args)
    weights = read_weights(folder)
    if kind == 'gpt2':  # its matrices lie the other way round
        weights = {name: weight.t() if weight.dim() == 2 and '.h.' in f'.{name}' else weight for name, weight in weights.items()}
    fill(model, weights, folder)
    return model


def reason_in(error):
    """What Transformers says, in a line; but not torch's advice to read a pickle all the same, which would run code from it."""
    said = ' '.join(str(error).split())
    return 'something other than tensors in its weights' if 'weights_only' in said else said


def asks_for_kernel(config):
    """Whether a config.json names, however deep, an implementation of attention or experts as 'user/kernel'."""
    if isinstance(config, dict):
        return any('_implementation' in key and '/' in json.dumps(value) or asks_for_kernel(value) for key, value in config.items())
    return isinstance(config, list) and any(map(asks_for_kernel, config))


def stay_inside(folder):
    """End the program where a Hugging Face folder sends its reader elsewhere: to weights in other folders, or to an attention kernel, which is code."""
    for file in os.listdir(folder):
        if file != 'config.json' and not file.endswith('.index.json'):
            continue
        with open(os.path.join(folder, file), encoding='utf-8') as f:
            content = json.load(f)
        if file == 'config.json':
            if asks_for_kernel(content):
                raise SystemExit(f'{folder}: config.json asks for a kernel from the hub, and that is code')
        elif any(os.path.isabs(name) or os.path.normpath(name).startswith('..') for name in content['weight_map'].values()):
            raise SystemExit(f'{folder}: {file} names weights outside of the folder')


def fill(model, weights, path):
    """Give a GPT the weights of Hugging Face's or nanoGPT's classes."""
    weights = {name.removeprefix('transformer.').removeprefix('model.'): weight for name, weight in weights.items()}
    state = {}
    for ours, names in hf_names(model.args).items():
        found = [weights.get(name) for name in names]
        if any(weight is None for weight in found):
            raise SystemExit(f'{path}: the weights lack {names}')
        state[ours] = torch.cat(found)
    if model.args['tie_weights']:
        state['head.weight'] = state['wte.weight']
    model.load_state_dict(state)


def hf_names(args):
    """Our parameters' names -> those of Hugging Face's Llama, Qwen3 or GPT-2 (and nanoGPT) that, stacked, are the same."""
    if args['position'] == 'learned':
        kinds = ('weight', 'bias') if args['bias'] else ('weight',)
        names = {'wte.weight': ['wte.weight'], 'wpe.weight': ['wpe.weight']} | {f'norm.{kind}': [f'ln_f.{kind}'] for kind in kinds}
        parts = {'norm1': 'ln_1', 'attn.qkv': 'attn.c_attn', 'attn.proj': 'attn.c_proj', 'norm2': 'ln_2', 'mlp.up': 'mlp.c_fc', 'mlp.down': 'mlp.c_proj'}
        for i in range(args['n_layer']):
            names |= {f'blocks.{i}.{ours}.{kind}': [f'h.{i}.{part}.{kind}'] for ours, part in parts.items() for kind in kinds}
    else:
        names = {'wte.weight': ['embed_tokens.weight'], 'norm.weight': ['norm.weight']}
        parts = {'norm1': ['input_layernorm'], 'attn.qkv': ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'], 'attn.proj': ['self_attn.o_proj'],
                 'norm2': ['post_attention_layernorm'], 'mlp.gate': ['mlp.gate_proj'], 'mlp.up': ['mlp.up_proj'], 'mlp.down': ['mlp.down_proj']}
        if args['mlp'] != 'swiglu':
            del parts['mlp.gate']
        if args['qk_norm']:
            parts |= {'attn.q_norm': ['self_attn.q_norm'], 'attn.k_norm': ['self_attn.k_norm']}
        for i in range(args['n_layer']):
            names |= {f'blocks.{i}.{ours}.weight': [f'layers.{i}.{part}.weight' for part in theirs] for ours, theirs in parts.items()}
    return names if args['tie_weights'] else names | {'head.weight': ['lm_head.weight']}


def read_weights(folder):
    """Every tensor of a folder's .safetensors, or else of its pytorch_model*.bin, by name, in float32."""
    files = sorted(os.listdir(folder))
    weights = {}
    for file in [f for f in files if f.endswith('.safetensors')] or [f for f in files if f.startswith('pytorch_model') and f.endswith('.bin')]:
        path = os.path.join(folder, file)
        if file.endswith('.bin'):
            weights |= load_checkpoint(path)
            continue
        import safetensors.torch
        try:
            weights |= safetensors.torch.load_file(path)
        except safetensors.SafetensorError as e:
            raise SystemExit(f'{path}: cannot be read ({e})') from None
    if not weights:
        raise SystemExit(f'{folder}: no .safetensors and no pytorch_model.bin in it')
    return {name: weight.float() for name, weight in weights.items()}
