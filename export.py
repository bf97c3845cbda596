"""
Turns a checkpoint into files for other people's programs: out_dir -> out, a folder, with a model card.

    python export.py --out_dir=out/hindi                                     for Transformers: AutoModelForCausalLM.from_pretrained('out/hindi/hf')
    python export.py --out_dir=out/hindi --format=gguf --dtype=float16       for llama.cpp and Ollama: ollama create kahani -f out/hindi/gguf/Modelfile
    python export.py --out_dir=out/hindi --format=llama2c                    for llama2.c: ./run out/hindi/llama2c/model.bin -z out/hindi/llama2c/tokenizer.bin
    python export.py --out_dir=out/hindi --push=user/kahani-hindi            and up to the Hugging Face hub (hf auth login first)

The weights are a Llama's, a Qwen3's (qk_norm) or a GPT-2's (learned positions), whichever the model is, so that no program
needs code from here to run them.
"""

import glob
import html
import json
import math
import os
import re
import shutil
import struct
import tempfile

# -----------------------------------------------------------------------------
# what to export
out_dir = 'out/hindi'  # a folder with best.pt, a checkpoint (nanoGPT's too), a Hugging Face folder or hub name, pinned by name@revision
tokenizer = ''  # a name as for prepare.py, for a model without one, such as nanoGPT's; empty: the model's own
format = 'hf'  # 'hf', 'llama2c' or 'gguf'
out = ''  # the folder to write; empty: one named after the format, in out_dir
dtype = 'float32'  # of the weights in hf and gguf: 'float32', 'bfloat16' or 'float16'
push = ''  # user/name: upload the folder there, on the Hugging Face hub
# the model card
license = 'mit'  # of the weights, as the hub names licences
language = ''  # code of the stories' language, such as hi; empty: told by the dataset's name
examples = 3  # stories told for the card
start = ''  # how they begin
seed = 1337  # story number i uses seed + i
temperature = 0.8  # theirs, and what Transformers and Ollama will use when nobody says otherwise
max_new_tokens = 300  # a story is cut there, or where the model's context ends
# -----------------------------------------------------------------------------
exec(open('configurator.py', encoding='utf-8').read())


def fail(message):
    raise SystemExit(f'export.py: {message}')


if format not in ('hf', 'llama2c', 'gguf'):
    fail(f"format is {format!r}; it is 'hf', 'llama2c' or 'gguf'")
if dtype not in ('float32', 'bfloat16', 'float16'):
    fail(f"dtype is {dtype!r}; it is 'float32', 'bfloat16' or 'float16'")
if format == 'llama2c' and dtype != 'float32':
    fail(f'dtype is {dtype!r}; run.c reads float32 only')
if not 0 <= examples <= 1000 or max_new_tokens < 1 or not 0 <= temperature < 1e6 or not 0 <= seed < 2**62:
    fail('examples is a number from 0 to 1000, temperature from 0, max_new_tokens from 1, seed from 0 to below 2**62')
run = out_dir if os.path.isdir(out_dir) else os.path.dirname(out_dir) if os.path.isfile(out_dir) else os.path.join('out', os.path.basename(out_dir))
out = out or os.path.join(run, format)
main_file = {'hf': 'model.safetensors', 'llama2c': 'model.bin', 'gguf': 'model.gguf'}[format]
if out.endswith(('.bin', '.gguf', '.safetensors', '.pt')) or os.path.isfile(out):
    fail(f'out is {out!r}; it is the folder that {main_file} goes to, with what belongs to it')
if os.path.isdir(out) and os.listdir(out) and (not os.path.exists(os.path.join(out, main_file)) or os.path.exists(out_dir) and os.path.samefile(out, out_dir)):
    fail(f'{out} holds other things already; name a new folder')
if push:
    try:
        import huggingface_hub
    except ImportError:
        fail('push wants one more package: pip install huggingface_hub')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', push, re.ASCII):
        fail(f'push is {push!r}; it is the name of a model on the hub, such as user/kahani-hindi')
    from tokenizer import on_hub
    on_hub(push)  # for the address, which may be unencrypted
if format == 'gguf':
    try:
        import gguf
    except ImportError:
        fail('format=gguf wants one more package: pip install gguf')

import torch
from safetensors import SafetensorError

import jsonl
import measures
from checkpoint import hf_names, load
from generation import generate
from model import GPT
from tokenizer import WORDS

CLASS = {'llama': 'Llama', 'qwen3': 'Qwen3', 'gpt2': 'GPT-2'}
ARCHITECTURE = {'llama': 'LlamaForCausalLM', 'qwen3': 'Qwen3ForCausalLM', 'gpt2': 'GPT2LMHeadModel'}
PREFIX = {'llama': 'model.', 'qwen3': 'model.', 'gpt2': 'transformer.'}
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# llama.cpp knows patterns that cut text into words by the name of a model that has them. Qwen3.5's is not WORDS to the letter: it leaves
# a quotation mark with its word, and so on. But no merge learned within WORDS reaches across such places, so the tokens are the same.
PRE_TOKENIZERS = {
    WORDS: 'qwen35',
    GPT2_WORDS: 'gpt-2',
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": 'gpt-2',
}

# -----------------------------------------------------------------------------
# what every format needs


def architecture():
    """'gpt2', 'qwen3' or 'llama', after a look at whether that class and the format can express the model."""
    kind = 'gpt2' if a['position'] == 'learned' else 'qwen3' if a['qk_norm'] else 'llama'
    if format == 'llama2c':
        whose, can = 'run.c', {'position': ['rope'], 'norm': ['rmsnorm'], 'mlp': ['swiglu'], 'qk_norm': [False], 'bias': [False],
                               'rope_theta': [10000.0], 'norm_eps': [1e-5]}
    elif kind == 'gpt2':
        whose, can = 'a GPT-2 (position is learned)', {'norm': ['layernorm'], 'mlp': ['gelu_new', 'gelu'], 'n_kv_head': [a['n_head']], 'qk_norm': [False]}
    else:
        whose = 'a Llama (position is rope)' if kind == 'llama' else 'a Qwen3 (qk_norm is True)'
        can = {'norm': ['rmsnorm'], 'mlp': ['swiglu'], 'bias': [False, True] if kind == 'llama' else [False]}
        if format == 'hf':
            can['mlp'].append('relu2')
        else:
            whose += f' as {format}'
    for key, values in can.items():
        if a[key] not in values:
            fail(f'{key} is {a[key]!r} in this model; {whose} can only have {" or ".join(map(repr, values))}')
    return kind


def weights(neighbours=False):
    """The weights in float32 by the names of the Hugging Face class, matrices (out, in).

    neighbours: queries' and keys' rows for a program that rotates neighbours, as Meta's Llama does, rather than halves of a head.
    """
    state, named = model.state_dict(), {}
    names = hf_names(a | {'bias': True})  # GPT-2 has biases everywhere; those that the model has not are zero
    names |= {ours.replace('.weight', '.bias'): [name.replace('.weight', '.bias') for name in theirs]
              for ours, theirs in names.items() if ours.replace('.weight', '.bias') in state}
    size, heads = a['n_embd'] // a['n_head'], [a['n_head'], a['n_kv_head'], a['n_kv_head']]
    for ours, theirs in names.items():
        weight = state[ours] if ours in state else torch.zeros(len(state[ours.replace('.bias', '.weight')]))
        for name, part, n in zip(theirs, weight.split([n * size for n in heads]) if len(theirs) == 3 else [weight], heads):
            if neighbours and ('q_proj' in name or 'k_proj' in name):
                part = part.reshape(n, 2, size // 2, -1).transpose(1, 2).reshape(part.shape)
            named[name if name == 'lm_head.weight' else PREFIX[kind] + name] = part.float().contiguous()
    if a['mlp'] == 'relu2':  # relu(x) * x
        named |= {name.replace('up_proj', 'gate_proj'): weight.clone() for name, weight in named.items() if 'up_proj' in name}
    return named


def byte_pairs():
    """Of a BPE tokenizer: the token of each id (None where the model has an id more), merges, a score a token, whether it is made of bytes."""
    if spec['model']['type'] != 'BPE':
        fail(f'the tokenizer is a {spec["model"]["type"]} model; {format} takes BPE only, and --format=hf any')
    tokens = {i: token for token, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    merges = [merge.split(' ') if isinstance(merge, str) else merge for merge in spec['model']['merges']]
    scores = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    return [tokens.get(i) for i in range(a['vocab_size'])], merges, scores, 'ByteLevel' in json.dumps([spec['pre_tokenizer'], spec['normalizer']])


def write(folder, name, content):
    """Write a text, or an object as JSON."""
    with open(os.path.join(folder, name), 'w', encoding='utf-8', newline='\n') as f:
        f.write(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=2) + '\n')


# -----------------------------------------------------------------------------
# the formats: each writes into a folder and returns what a user should know


def write_hf(folder):
    """config.json, generation_config.json, model.safetensors and the tokenizer, with keys that Transformers 4 and 5 read."""
    from safetensors.torch import save_file
    if kind == 'gpt2':
        config = {'n_positions': a['block_size'], 'n_layer': a['n_layer'], 'n_head': a['n_head'], 'n_embd': a['n_embd'], 'n_inner': a['n_inner'],
                  'activation_function': a['mlp'], 'layer_norm_epsilon': a['norm_eps']}
    else:
        config = {'max_position_embeddings': a['block_size'], 'num_hidden_layers': a['n_layer'], 'num_attention_heads': a['n_head'],
                  'num_key_value_heads': a['n_kv_head'], 'head_dim': a['n_embd'] // a['n_head'], 'hidden_size': a['n_embd'],
                  'intermediate_size': a['n_inner'], 'hidden_act': 'relu' if a['mlp'] == 'relu2' else 'silu', 'rms_norm_eps': a['norm_eps'],
                  'rope_theta': a['rope_theta'], 'attention_bias': a['bias'], 'mlp_bias': a['bias']}
    ends = {'bos_token_id': tokenizer.bos, 'eos_token_id': tokenizer.eos}
    write(folder, 'config.json', {'architectures': [ARCHITECTURE[kind]], 'model_type': kind, 'vocab_size': a['vocab_size'], **config,
                                  'tie_word_embeddings': a['tie_weights'], 'torch_dtype': dtype, **ends})
    choice = {'do_sample': True, 'temperature': temperature} if temperature else {'do_sample': False}
    write(folder, 'generation_config.json', {**ends, 'pad_token_id': tokenizer.eos, 'max_length': a['block_size'], **choice})
    tensors = {name: weight.to(getattr(torch, dtype)) for name, weight in weights().items()}
    if kind == 'gpt2':  # whose matrices in the blocks are (in, out)
        tensors = {name: weight.t().contiguous() if '.h.' in name and weight.dim() == 2 else weight for name, weight in tensors.items()}
    save_file(tensors, os.path.join(folder, main_file), {'format': 'pt'})
    tokenizer.save(folder)
    with open(os.path.join(folder, 'tokenizer_config.json'), encoding='utf-8') as f:
        settings = json.load(f)
    # no token types, at which generate() would stumble, and no spaces taken from before punctuation
    write(folder, 'tokenizer_config.json', settings | {
        'pad_token': tokenizer.eos_token, 'padding_side': 'left', 'model_max_length': a['block_size'],
        'model_input_names': ['input_ids', 'attention_mask'], 'clean_up_tokenization_spaces': False})
    return []


def write_llama2c(folder):
    """model.bin and tokenizer.bin, as llama2.c's run.c reads them.

    model.bin: seven int32 (its struct Config; the vocabulary's size is negative when the head has weights of its own), then the
    weights, kind by kind, in float32. tokenizer.bin: the longest piece's length, then score (float32), length (int32) and bytes
    of every piece. Some ids are built into run.c: 1 begins a story and, when it comes again, ends it; 2 is eos; and a byte of
    a letter that is no piece becomes its value + 3. It puts a space before a prompt. Where the tokenizer does not, byte 0, which
    no text holds, takes the space in: its piece is bos and a space, which run.c joins first of all, and it is read as bos is.
    Its row of the head must stay as it was, so the head is written apart.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    tokens, _, scores, made_of_bytes = byte_pairs()
    value = {char: byte for byte, char in bytes_to_unicode().items()}
    byte_tokens = sorted(value, key=value.get) if made_of_bytes else [f'<0x{byte:02X}>' for byte in range(256)]
    missing = set(byte_tokens) - set(tokens)
    if missing:
        fail(f'the tokenizer has no token for a byte ({min(missing)}), and run.c spells with bytes what it finds no token for')
    built_in = [None, tokenizer.bos, tokenizer.eos if tokenizer.eos != tokenizer.bos else None, *map(tokens.index, byte_tokens)]
    others = [i for i in range(a['vocab_size']) if i not in built_in]
    order = [others.pop() if i is None else i for i in built_in] + others  # the id here of each id there

    added = {token['content'] for token in spec['added_tokens']}
    pieces = []
    for token in (tokens[i] for i in order):
        if token == tokenizer.bos_token:
            piece = b'\n<s>\n'  # never shown, and nothing that a prompt's first letters could be joined to
        elif token in (None, tokenizer.eos_token):
            piece = b'\0'  # shown as nothing; run.c cannot read a piece of no bytes
        elif made_of_bytes and token not in added:
            piece = bytes(value[char] for char in token)
        else:
            piece = token.replace('▁', ' ').encode()
        pieces.append((scores.get(token, -1e11), piece))  # run.c joins neighbours into the best-scored piece above -1e10
    if not adds_space:
        pieces[3] = 1e10, pieces[1][1] + b' '
    if b' ' not in (piece for _, piece in pieces):
        fail('the tokenizer has no token for a single space, which run.c puts before a prompt')
    with open(os.path.join(folder, 'tokenizer.bin'), 'wb') as f:
        f.write(struct.pack('<i', max(len(piece) for _, piece in pieces)))
        for score, piece in pieces:
            f.write(struct.pack('<fi', score, len(piece)) + piece)

    size, named = a['n_embd'] // a['n_head'], weights(neighbours=True)
    table, head = named['model.embed_tokens.weight'][order], named['lm_head.weight'][order] if not a['tie_weights'] else None
    if not adds_space:
        head = table.clone() if head is None else head
        table[3] = table[1]
    parts = ['input_layernorm', 'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj', 'post_attention_layernorm',
             'mlp.gate_proj', 'mlp.down_proj', 'mlp.up_proj']
    with open(os.path.join(folder, main_file), 'wb') as f:
        f.write(struct.pack('<7i', a['n_embd'], a['n_inner'], a['n_layer'], a['n_head'], a['n_kv_head'],
                            a['vocab_size'] if head is None else -a['vocab_size'], a['block_size']))
        for weight in (table,
                       *(named[f'model.layers.{i}.{part}.weight'] for part in parts for i in range(a['n_layer'])),
                       named['model.norm.weight'], *torch.zeros(2, a['block_size'], size // 2),  # where the angles were, which run.c skips
                       *([] if head is None else [head])):
            f.write(weight.numpy().astype('<f4').tobytes())

    torn = sum(len(piece) > 1 and '\ufffd' in piece.decode('utf-8', 'replace') for _, piece in pieces)
    return [f'{torn} of the {a["vocab_size"]:,} tokens begin or end inside a letter. run.c shows them in a story, but it takes a prompt letter by letter '
            'and may cut a word into other tokens; and a byte that comes alone it does not show.'] if torn else []


def write_gguf(folder):
    """model.gguf, with the names and settings that llama.cpp looks for, and a Modelfile for Ollama."""
    tokens, merges, scores, made_of_bytes = byte_pairs()
    added = {token['content']: token['special'] for token in spec['added_tokens']}
    types, numbers = gguf.TokenType, gguf.GGMLQuantizationType
    w = gguf.GGUFWriter(os.path.join(folder, main_file), kind)
    w.add_name(title)
    w.add_file_type({'float32': gguf.LlamaFileType.ALL_F32, 'float16': gguf.LlamaFileType.MOSTLY_F16, 'bfloat16': gguf.LlamaFileType.MOSTLY_BF16}[dtype])
    for add, number in ((w.add_vocab_size, a['vocab_size']), (w.add_context_length, a['block_size']), (w.add_embedding_length, a['n_embd']),
                        (w.add_block_count, a['n_layer']), (w.add_feed_forward_length, a['n_inner']), (w.add_head_count, a['n_head']),
                        (w.add_head_count_kv, a['n_kv_head']), (w.add_bos_token_id, tokenizer.bos), (w.add_eos_token_id, tokenizer.eos)):
        add(number)
    if kind == 'gpt2':
        w.add_layer_norm_eps(a['norm_eps'])
    else:
        w.add_layer_norm_rms_eps(a['norm_eps'])
        w.add_rope_freq_base(a['rope_theta'])
        w.add_rope_dimension_count(a['n_embd'] // a['n_head'])
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_token_list([f'<unused {i}>' if token is None else token for i, token in enumerate(tokens)])
    w.add_token_types([types.UNUSED if token is None else types.UNKNOWN if token == spec['model'].get('unk_token') else
                       (types.CONTROL if added[token] else types.USER_DEFINED) if token in added else
                       types.BYTE if not made_of_bytes and re.fullmatch('<0x[0-9A-F]{2}>', token) else types.NORMAL for token in tokens])
    if made_of_bytes:
        steps = spec['pre_tokenizer'].get('pretokenizers', [spec['pre_tokenizer']])
        pattern = next((step['pattern'].get('Regex') for step in steps if step['type'] == 'Split'), GPT2_WORDS)
        if pattern not in PRE_TOKENIZERS:
            fail(f'llama.cpp does not know this tokenizer\'s pattern of words, {pattern}; it knows those of tokenizers trained here and of GPT-2')
        w.add_tokenizer_model('gpt2')
        w.add_tokenizer_pre(PRE_TOKENIZERS[pattern])
        w.add_token_merges([' '.join(merge) for merge in merges])
    else:
        w.add_tokenizer_model('llama')
        w.add_token_scores([scores.get(token, -1e6) for token in tokens])
        w.add_add_space_prefix(adds_space)

    place = gguf.get_tensor_name_map({number: arch for arch, number in gguf.MODEL_ARCH_NAMES.items()}[kind], a['n_layer'])
    for name, weight in weights(neighbours=kind == 'llama').items():
        small = weight.dim() == 1 or 'wpe' in name  # what is added to the stream stays sharp, as llama.cpp wants it
        number = numbers.F32 if small else {'float32': numbers.F32, 'float16': numbers.F16, 'bfloat16': numbers.BF16}[dtype]
        w.add_tensor(place.get_name(name, ('.weight', '.bias')), gguf.quants.quantize(weight.numpy(), number), raw_dtype=number)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    write(folder, 'Modelfile', f'FROM ./{main_file}\nTEMPLATE "{{{{ .Prompt }}}}"\n'
                               f'PARAMETER temperature {temperature}\nPARAMETER num_ctx {a["block_size"]}\n')
    return ['llama.cpp approximates GELU, which this model was trained with, by its tanh form.'] if a['mlp'] == 'gelu' else []


# -----------------------------------------------------------------------------
# the model card


def tell():
    """The stories for the card."""
    head = [tokenizer.bos, *tokenizer.encode(start.encode('utf-8', 'replace').decode())]  # a command line may hold bytes that are no text
    n = min(max_new_tokens, a['block_size'] - len(head))
    if n < 1:
        fail(f'start is {len(head)} tokens long; this model reads {a["block_size"]}, the story included')
    stories = [[*head] for _ in range(examples)]
    for new in generate(model, stories, n, tokenizer.eos, range(seed, seed + examples), temperature) if examples else ():
        for row, token in new:
            stories[row].append(token)
    return [tokenizer.decode(story) for story in stories]


def table(heading, rows):
    """A section of the card."""
    rows = [f'| {name} | {value:,} |' if type(value) is int else f'| {name} | {value} |' for name, value in rows]
    return [f'## {heading}', '', '| | |', '| --- | --- |', *rows, '']


def card(notes, stories):
    """README.md: between the dashes what the hub reads, then what a person wants to know, in the figures of this very model."""
    config, meta = checkpoint.get('config', {}), checkpoint.get('meta', {})
    step = checkpoint.get('step', checkpoint.get('iter_num'))  # nanoGPT's name for it
    dataset = config.get('dataset', '')
    code = language or next((code for name, code in measures.CODES.items() if name in dataset), '')
    front = {'license': license, 'pipeline_tag': 'text-generation', 'tags': ['nanokahani', *([] if format == 'hf' else [format])],
             **({'library_name': 'transformers'} if format == 'hf' else {}), **({'language': code} if code else {})}
    use = {'hf': ['python', 'from transformers import pipeline', f'tell = pipeline("text-generation", {json.dumps(push or out)})',
                  f'print(tell({json.dumps(start, ensure_ascii=False)})[0]["generated_text"])'],
           'gguf': ['sh', 'ollama create story -f Modelfile && ollama run story', f'llama-completion -no-cnv -m {main_file} --temp {temperature}'],
           'llama2c': ['sh', f'./run {main_file} -z tokenizer.bin -t {temperature} -n {a["block_size"]}']}[format]
    lines = ['---', *(f'{key}: {json.dumps(value)}' for key, value in front.items()), '---', f'# {title}', '',  # JSON is YAML
             f'A {CLASS[kind]} of {model.n_params():,} parameters that tells short stories'
             + (f', trained on `{dataset}` with nanokahani.' if dataset else '.'), '',
             '```' + use[0], *use[1:], '```', '', *(f'- {note}' for note in notes), *[''] * bool(notes)]
    lines += table('Model', [('parameters', model.n_params()), *((key, value) for key, value in a.items() if key != 'dropout'), ('dtype', dtype)])
    if meta:
        lines += table('Data', [('tokenizer', meta['tokenizer']),
                                *((f'{what}, {split}', n) for what in ('stories', 'tokens', 'bytes') for split, n in meta[what].items())])
    if config:
        lines += table('Training', [('step', step), *((key, config[key]) for key in (
            'init_from', 'batch_size', 'gradient_accumulation_steps', 'block_size', 'optimizer', 'learning_rate', 'min_lr', 'warmup_iters', 'max_iters',
            'weight_decay', 'beta1', 'beta2', 'grad_clip', 'dropout', 'seed', 'lora_rank') if key in config)])
        log_path = os.path.join(run, 'log.jsonl')
        log = list(jsonl.read(log_path)) if os.path.exists(log_path) else []
        log = [row for row in log if isinstance(row, dict) and row.get('step') == step]
        measured = next((row for row in log if 'val_loss' in row), {'val_loss': checkpoint.get('best_val_loss', math.nan)})
        names = {'tokens': 'tokens seen', 'loss': 'training loss, nats a token', 'val_loss': 'validation loss, nats a token',
                 'perplexity': 'perplexity', 'bits_per_byte': 'bits per byte'}
        lines += table('Measured', [(names[key], value if type(value) is int else f'{float(value):.4f}') for key, value in measured.items() if key in names])
    if stories:
        lines += ['## Stories', '', f'The first ones that came, at temperature {temperature}, with seeds from {seed}:', '']
    for story in stories:
        lines += [*('> ' + html.escape(line, quote=False) for line in story.split('\n')), '', '---', '']
    lines += ['## Limitations', '', 'So small a model knows the world of its stories and no other. It loses threads and repeats itself, nothing it says can be '
              'relied on, and it is not tuned to be safe: read before you read aloud. '
              f'A prompt and its story have {a["block_size"]:,} tokens together.', '', '## Licence', '', license, '']
    return '\n'.join(lines)


# -----------------------------------------------------------------------------
try:
    model, tokenizer, checkpoint = load(out_dir, tokenizer=tokenizer)
except SystemExit as e:
    fail(e)
if not isinstance(model, GPT):
    fail(f'{out_dir} is no Llama, Qwen3 or GPT-2; Transformers has it as it is')
a = model.args
kind = architecture()
spec = json.loads(tokenizer.to_str())
adds_space = ''.join(tokenizer.backend.encode('a', add_special_tokens=False).tokens).startswith(('▁', 'Ġ'))  # to every text, as SentencePiece does
title = push.split('/')[-1] or os.path.basename(os.path.abspath(run))
try:
    parent = os.path.dirname(os.path.abspath(out))
    jsonl.claim(os.path.abspath(out))
    for left in glob.glob(glob.escape(os.path.abspath(out)) + '.tmp*'):
        shutil.rmtree(left)  # by a kill
    with tempfile.TemporaryDirectory(prefix=f'{os.path.basename(os.path.abspath(out))}.tmp', dir=parent) as folder:
        notes = {'hf': write_hf, 'llama2c': write_llama2c, 'gguf': write_gguf}[format](folder)
        stories = tell()
        try:
            text = card(notes, stories)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            fail(f'{out_dir}: what the checkpoint or log.jsonl says of its making is not as train.py writes it ({type(e).__name__}: {e})')
        write(folder, 'README.md', text)
        names = sorted(os.listdir(folder))
        os.makedirs(out, exist_ok=True)
        for name in names:
            os.replace(os.path.join(folder, name), os.path.join(out, name))
except (OSError, SafetensorError) as e:
    fail(f'{out} could not be written: {e}')
print(f'{out}: a {CLASS[kind]} of {model.n_params():,} parameters; {", ".join(names)}', *notes, sep='\n')
if push:
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(push, exist_ok=True)
        api.upload_folder(repo_id=push, folder_path=out, allow_patterns=names)
    except Exception as e:  # of many kinds: no token, no network, a wrong name
        fail(f'{push} was not uploaded: {" ".join(str(e).split())[:300]}; the same command tries again')
    print(f'uploaded to {api.endpoint}/{push}')
