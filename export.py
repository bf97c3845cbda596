"""
Export a model for other programs: out_dir -> out, a folder with the weights, the tokenizer and a model card.

    python export.py --out_dir=out/hindi                                 # for Transformers
    python export.py --out_dir=out/hindi --format=gguf --dtype=float16   # for llama.cpp and Ollama
    python export.py --out_dir=out/hindi --format=llama2c                # for run.c of llama2.c
    python export.py --out_dir=out/hindi --push=user/kahani-hindi        # upload it; run hf auth login first

The model becomes a Llama, a Qwen3 (qk_norm) or a GPT-2 (learned positions), which those programs can already run.
"""

import os

# -----------------------------------------------------------------------------
# input and output
out_dir = 'out/hindi'  # a folder of train.py, nanoGPT's or llama2.c's model, a Hugging Face folder or name[@revision]
tokenizer = ''  # for nanoGPT's and llama2.c's models: a name as for prepare.py; empty = the model's own, or beside it
format = 'hf'  # 'hf', 'llama2c' or 'gguf'
out = ''  # the folder to write; empty = out_dir/<format>
dtype = 'float32'  # of the weights in hf and gguf: 'float32', 'bfloat16' or 'float16'
push = ''  # user/name: upload the folder to this model on the Hugging Face hub
# model card
license = ''  # license of the weights, by its name on the hub, such as mit; empty = the card names none
language = ''  # language code of the stories, such as hi; empty = by the name of the dataset
examples = 3  # sample stories in the card
start = ''  # how the sample stories begin
seed = 1337  # sample story i uses seed + i
temperature = 0.8  # for the sample stories, the card's example and Ollama
max_new_tokens = 300  # a sample story is cut off there
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'export.py')))  # in a notebook: the working directory
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

import dataclasses
import json
import re
import shutil
import struct
import tempfile

import torch
from safetensors import SafetensorError

import hub
from files import (ISO_CODES, check, check_push, check_writable, fail, lock, loss_measures, quote_markdown, write_json,
                   write_text)
from model import GPT, export_problems, generate
from tokenizer import WORDS, byte_characters, word_pattern

MAIN_FILES = {'hf': 'model.safetensors', 'llama2c': 'model.bin', 'gguf': 'model.gguf'}
PREFIXES = {'llama': 'model.', 'qwen3': 'model.', 'gpt2': 'transformer.'}
CLASSES = {'llama': 'LlamaForCausalLM', 'qwen3': 'Qwen3ForCausalLM', 'gpt2': 'GPT2LMHeadModel'}

# -----------------------------------------------------------------------------
# the model, as other programs see it


def model_type():
    """'llama', 'qwen3' or 'gpt2'. Fails when the format cannot hold the model."""
    problem = export_problems(gpt)[format]
    if problem:
        fail(f'{problem}, which the format {format} needs')
    if gpt.position == 'learned':
        return 'gpt2'
    return 'qwen3' if gpt.qk_norm else 'llama'


def named_weights(interleaved=False):
    """The weights in float32 by the names of Hugging Face's class. Matrices are (out, in).

    interleaved: order the rows of queries and keys for a program that rotates neighbours, as Meta's Llama does.
    Hugging Face's classes and model.py rotate the halves of a head.
    """
    state = model.state_dict()
    if gpt.tie_weights:
        del state['head.weight']
    if kind == 'gpt2' and not gpt.bias:  # GPT-2 has biases in all layers
        for name, weight in list(state.items()):
            if name.startswith(('blocks.', 'norm.')):
                state[name.replace('.weight', '.bias')] = torch.zeros(len(weight))
    n_rows = [n * gpt.head_size for n in (gpt.n_head, gpt.n_kv_head, gpt.n_kv_head)]  # of queries, keys, values
    weights = {}
    for name, weight in state.items():
        hf_names = hub.hf_names(name, gpt)
        parts = weight.split(n_rows) if len(hf_names) == 3 else [weight]
        for hf_name, part in zip(hf_names, parts):
            if interleaved and ('q_proj' in hf_name or 'k_proj' in hf_name):
                halves = part.reshape(-1, 2, gpt.head_size // 2, part[0].numel())  # (heads, 2, d / 2, C)
                part = halves.transpose(1, 2).reshape(part.shape)
            prefix = '' if hf_name == 'lm_head.weight' else PREFIXES[kind]
            weights[prefix + hf_name] = part.float().contiguous()
    if gpt.mlp == 'relu2':  # relu(x)² = relu(x) · x: the gate equals what it gates
        for name, weight in list(weights.items()):
            if 'up_proj' in name:
                weights[name.replace('up_proj', 'gate_proj')] = weight.clone()
    return weights


def read_bpe():
    """The token of each id of a BPE tokenizer, None for an unused id; its merges; a score for each merged token."""
    bpe = spec['model']
    if bpe['type'] != 'BPE':
        fail(f'the tokenizer is a {bpe["type"]} model and {format} needs BPE; --format=hf takes any')
    vocab = {i: token for token, i in tok.backend.get_vocab(with_added_tokens=True).items()}
    tokens = [vocab.get(i) for i in range(gpt.vocab_size)]
    scores = {}
    for rank, (left, right) in enumerate(bpe['merges']):
        scores.setdefault(left + right, -float(rank))
    return tokens, bpe['merges'], scores


# -----------------------------------------------------------------------------
# Transformers. Each of the functions write_hf, write_llama2c and write_gguf fills a folder and returns a note for the
# user, or ''.


def write_hf(folder):
    """Write config.json, generation_config.json, model.safetensors and the tokenizer, for Transformers 4 and 5."""
    from safetensors.torch import save_file
    settings = {'architectures': [CLASSES[kind]], 'model_type': kind}
    for key, name in hub.KEYS[kind].items():
        settings[key] = getattr(gpt, name)
    if kind != 'gpt2':
        activation = 'relu' if gpt.mlp == 'relu2' else 'silu'
        settings |= {'head_dim': gpt.head_size, 'hidden_act': activation}
        settings |= {'attention_bias': gpt.bias, 'mlp_bias': gpt.bias}
    ids = {'bos_token_id': tok.bos, 'eos_token_id': tok.ends if len(tok.ends) > 1 else tok.ends[0]}
    write_json(os.path.join(folder, 'config.json'), settings | {'torch_dtype': dtype} | ids)
    # Fine-tuning ignores padding, so with eos as padding it would not learn where a story ends.
    pads = [tok.backend.token_to_id('<pad>'), tok.unk, tok.bos]
    pad = next((i for i in pads if i not in (None, tok.eos)), tok.eos)
    # Nothing else: Transformers warns of a temperature with do_sample=False, and of a max_length with max_new_tokens.
    # Here bos must not be padding: generate() without attention_mask would not read it. Only ended stories are padded.
    generation = ids | {'pad_token_id': tok.eos if pad == tok.bos else pad, 'do_sample': temperature > 0}
    write_json(os.path.join(folder, 'generation_config.json'), generation)

    weights = named_weights()
    for name, weight in weights.items():
        if kind == 'gpt2' and '.h.' in name and weight.dim() == 2:  # (in, out) there
            weight = weight.t().contiguous()
        weights[name] = weight.to(getattr(torch, dtype))
    save_file(weights, os.path.join(folder, main_file), {'format': 'pt'})

    tok.save(folder)
    path = os.path.join(folder, 'tokenizer_config.json')
    with open(path, encoding='utf-8') as f:
        tokenizer_settings = json.load(f)
    # Without model_input_names, generate() would get token types, which these classes do not take.
    # Without the last setting, older versions remove spaces before punctuation.
    write_json(path, tokenizer_settings | {
        'pad_token': tok.backend.id_to_token(pad), 'padding_side': 'left', 'model_max_length': gpt.block_size,
        'model_input_names': ['input_ids', 'attention_mask'], 'clean_up_tokenization_spaces': False})
    return ''


# -----------------------------------------------------------------------------
# llama2.c


def write_llama2c(folder):
    """Write model.bin and tokenizer.bin for run.c of llama2.c.

    Some ids are built into run.c: 1 is bos and also ends a story, 2 is eos, and b + 3 is byte b, for characters that
    are no token. So the ids are reordered.
    run.c puts a space before a prompt. Most of our tokenizers do not. For them the id of byte 0, which is in no text,
    becomes "bos and a space": run.c merges these two first of all. It is embedded like bos. The head is not changed,
    so it is written as a separate matrix.
    """
    tokens, _, scores = read_bpe()
    byte_of = byte_characters()
    byte_tokens = [f'<0x{byte:02X}>' for byte in range(256)]
    if is_byte_level:
        byte_tokens = sorted(byte_of, key=byte_of.get)
    missing = set(byte_tokens) - set(tokens)
    if missing:
        fail(f'the tokenizer has no token for the byte {min(missing)}, and run.c needs one for each byte')

    # the id here for each id of run.c
    eos = tok.eos if tok.eos != tok.bos else None
    fixed = [None, tok.bos, eos] + [tokens.index(token) for token in byte_tokens]
    others = [i for i in range(gpt.vocab_size) if i not in fixed]
    order = [others.pop(0) if i is None else i for i in fixed] + others

    added = {token['content'] for token in spec['added_tokens']}
    pieces = []
    for i in order:
        token = tokens[i]
        if token == tok.bos_token:
            piece = b'\n<s>\n'  # never printed, and no token of a prompt merges with it
        elif token in (None, tok.eos_token):
            piece = b'\0'  # printed as nothing; run.c cannot read an empty piece
        elif is_byte_level and token not in added:
            piece = bytes(byte_of[char] for char in token)
        else:
            piece = token.replace('▁', ' ').encode()
        score = scores.get(token, -1e11)  # run.c merges to the piece with the best score above -1e10
        pieces.append((score, piece))
    if not adds_space:
        pieces[3] = (1e10, pieces[1][1] + b' ')
    write_run_c_tokenizer(os.path.join(folder, 'tokenizer.bin'), pieces)
    write_run_c_model(os.path.join(folder, main_file), order)

    n_cut = sum(len(piece) > 1 and '\ufffd' in piece.decode('utf-8', 'replace') for _, piece in pieces)
    if not {tok.bos, tok.eos} >= set(tok.ends):
        return f'This model ends a story at the ids {tok.ends}, and run.c only where it begins the next one.'
    if not n_cut:
        return ''
    return (f'{n_cut} of the {gpt.vocab_size:,} tokens begin or end inside a character. run.c can encode a prompt with '
            'them differently, and it does not print a part of a character that is a token alone.')


def write_run_c_tokenizer(path, pieces):
    """Write the length of the longest piece, then score (float32), length (int32) and bytes of each piece."""
    with open(path, 'wb') as f:
        f.write(struct.pack('<i', max(len(piece) for _, piece in pieces)))
        for score, piece in pieces:
            f.write(struct.pack('<fi', score, len(piece)) + piece)


def write_run_c_model(path, order):
    """Write run.c's Config, seven int32, and the weights in float32. vocab_size < 0 announces a separate head."""
    weights = named_weights(interleaved=True)
    embedding = weights['model.embed_tokens.weight'][order]
    head = None
    if not gpt.tie_weights:
        head = weights['lm_head.weight'][order]
    elif not adds_space:
        head = embedding.clone()
    if not adds_space:
        embedding[3] = embedding[1]
    vocab_size = gpt.vocab_size if head is None else -gpt.vocab_size
    tensors = [embedding]
    for part in ('input_layernorm', 'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj', 'self_attn.o_proj',
                 'post_attention_layernorm', 'mlp.gate_proj', 'mlp.down_proj', 'mlp.up_proj'):
        tensors += [weights[f'model.layers.{i}.{part}.weight'] for i in range(gpt.n_layer)]
    tensors.append(weights['model.norm.weight'])
    tensors.append(torch.zeros(gpt.block_size, gpt.head_size))  # run.c skips this
    if head is not None:
        tensors.append(head)
    with open(path, 'wb') as f:
        f.write(struct.pack('<7i', gpt.n_embd, gpt.n_inner, gpt.n_layer, gpt.n_head, gpt.n_kv_head, vocab_size,
                            gpt.block_size))
        for tensor in tensors:
            f.write(tensor.numpy().astype('<f4').tobytes())


# -----------------------------------------------------------------------------
# llama.cpp and Ollama


def write_gguf(folder):
    """Write model.gguf, with llama.cpp's names, and a Modelfile for Ollama."""
    import gguf
    writer = gguf.GGUFWriter(os.path.join(folder, main_file), kind)
    file_type = {'float32': 'ALL_F32', 'float16': 'MOSTLY_F16', 'bfloat16': 'MOSTLY_BF16'}[dtype]
    writer.add_name(title)
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_vocab_size(gpt.vocab_size)
    writer.add_context_length(gpt.block_size)
    writer.add_embedding_length(gpt.n_embd)
    writer.add_block_count(gpt.n_layer)
    writer.add_feed_forward_length(gpt.n_inner)
    writer.add_head_count(gpt.n_head)
    writer.add_head_count_kv(gpt.n_kv_head)
    writer.add_bos_token_id(tok.bos)
    for add_end, i in zip([writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id], tok.ends):
        add_end(i)
    if kind == 'gpt2':
        writer.add_layer_norm_eps(gpt.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(gpt.norm_eps)
        writer.add_rope_freq_base(gpt.rope_theta)
        writer.add_rope_dimension_count(gpt.head_size)
    add_gguf_tokenizer(writer)

    architecture = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    gguf_names = gguf.get_tensor_name_map(architecture, gpt.n_layer)
    quantization = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}[dtype]
    for name, weight in named_weights(interleaved=kind == 'llama').items():
        stays_float32 = weight.dim() == 1 or 'wpe' in name  # as llama.cpp needs it
        number = gguf.GGMLQuantizationType['F32' if stays_float32 else quantization]
        tensor = gguf.quants.quantize(weight.numpy(), number)
        writer.add_tensor(gguf_names.get_name(name, ('.weight', '.bias')), tensor, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_text(os.path.join(folder, 'Modelfile'), f'FROM ./{main_file}\nTEMPLATE "{{{{ .Prompt }}}}"\n'
               f'PARAMETER temperature {temperature}\nPARAMETER num_ctx {gpt.block_size}\n')
    if len(tok.ends) > 3:
        return f'A GGUF file names three ids that end a story; this model also ends at {tok.ends[3:]}.'
    if gpt.mlp == 'gelu':
        return 'llama.cpp computes the tanh approximation of GELU; this model was trained with GELU itself.'
    return ''


def add_gguf_tokenizer(writer):
    """Add the tokenizer to a GGUF file."""
    import gguf
    tokens, merges, scores = read_bpe()
    is_special = {token['content']: token['special'] for token in spec['added_tokens']}
    token_types = []
    for token in tokens:
        token_type = gguf.TokenType.NORMAL
        if token is None:
            token_type = gguf.TokenType.UNUSED
        elif token == spec['model'].get('unk_token'):
            token_type = gguf.TokenType.UNKNOWN
        elif token in is_special:
            token_type = gguf.TokenType.CONTROL if is_special[token] else gguf.TokenType.USER_DEFINED
        elif not is_byte_level and re.fullmatch('<0x[0-9A-F]{2}>', token):
            token_type = gguf.TokenType.BYTE
        token_types.append(token_type)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_token_list([f'<unused {i}>' if token is None else token for i, token in enumerate(tokens)])
    writer.add_token_types(token_types)
    if not is_byte_level:
        writer.add_tokenizer_model('llama')
        writer.add_token_scores([scores.get(token, -1e6) for token in tokens])
        writer.add_add_space_prefix(adds_space)
        return
    pattern = word_pattern(spec['pre_tokenizer'])
    if not pattern:
        fail('llama.cpp does not know how this tokenizer splits words; it knows tokenizers trained here and GPT-2\'s')
    # llama.cpp names a pattern after a model that has it. Qwen3.5's differs a little from WORDS, but no merge learned
    # with WORDS reaches across a place where it splits, so the tokens are the same.
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('qwen35' if pattern == WORDS else 'gpt-2')
    writer.add_token_merges([' '.join(merge) for merge in merges])


# -----------------------------------------------------------------------------
# the model card


def sample_stories():
    """The stories of the card."""
    text = start.encode('utf-8', 'replace').decode()  # the command line may contain bytes that are not UTF-8
    prompt = [tok.bos, *tok.encode(text)]
    n = min(max_new_tokens, gpt.block_size - len(prompt))
    check(n >= 1, f'start is {len(prompt)} tokens long and the model reads {gpt.block_size}, the story included')
    stories = [list(prompt) for _ in range(examples)]
    seeds = range(seed, seed + examples)
    for step in generate(model, stories, n, tok.ends, seeds, temperature):
        for i, token in step:
            stories[i].append(token)
    return [tok.decode(ids) for ids in stories]


TRAINING_KEYS = ('init_from', 'batch_size', 'gradient_accumulation_steps', 'block_size', 'optimizer', 'learning_rate',
                 'min_lr', 'warmup_iters', 'max_iters', 'weight_decay', 'beta1', 'beta2', 'grad_clip', 'dropout',
                 'seed')


def table(heading, rows):
    """A section with a table of the values that are not None."""
    lines = []
    for name, value in rows.items():
        if value is not None:
            text = f'{value:,}' if type(value) is int else f'{value!s:.200}'
            lines.append(f'| {name} | {quote_markdown(text)} |\n')
    if not lines:
        return ''
    return f'\n## {heading}\n\n| | |\n| --- | --- |\n{"".join(lines)}'


def usage():
    """How to generate a story with the exported model."""
    if format == 'gguf':
        return ('```sh\nollama create story -f Modelfile && ollama run story\n'
                f'llama-completion -no-cnv -m {main_file} --temp {temperature}\n```')
    if format == 'llama2c':
        return f'```sh\n./run {main_file} -z tokenizer.bin -t {temperature} -n {gpt.block_size}\n```'
    name = os.path.basename(out) if os.path.isabs(out) else out
    options = f'max_new_tokens={gpt.block_size // 2}, do_sample={temperature > 0}'
    if temperature:
        options += f', temperature={temperature}'
    return ('```python\nfrom transformers import pipeline\n'
            f'generate = pipeline("text-generation", {json.dumps(push or name)})\n'
            f'stories = generate({json.dumps(start, ensure_ascii=False)}, {options})\n'
            'print(stories[0]["generated_text"])\n```')


def data_and_loss():
    """What the checkpoint says of its data set, as in meta.json, and its validation loss."""
    meta = checkpoint.get('meta')
    if not meta:
        return {}
    try:
        rows = {'tokenizer': str(meta['tokenizer'])}
        for unit in ('stories', 'tokens', 'bytes'):
            for split in ('train', 'val'):
                rows[f'{unit}, {split}'] = int(meta[unit][split])
        measures = loss_measures(checkpoint['best_val_loss'], meta)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as e:
        fail(f'{out_dir}: what its checkpoint says of the data set is damaged ({type(e).__name__})')
    for key, value in measures.items():
        name = 'validation loss, nats per token' if key == 'val_loss' else key.replace('_', ' ')
        rows[name] = f'{value:.4f}'
    return rows


def card(notes):
    """The text of README.md. Its first lines are YAML for the hub."""
    config = checkpoint.get('config')
    if not isinstance(config, dict):  # another program can store it in another form
        config = {}
    dataset = str(config.get('dataset', ''))
    code = language or next((code for name, code in ISO_CODES.items() if name in dataset), '')
    front = ['pipeline_tag: text-generation', f'tags: [nanokahani, {format}]']
    if license:
        front.append(f'license: {json.dumps(license)}')
    if format == 'hf':
        front.append('library_name: transformers')
    if code:
        front.append(f'language: {json.dumps(code)}')
    front = '\n'.join(front)
    trained_on = f', trained on {quote_markdown(dataset)}' if dataset else ''
    shape = {'parameters': model.n_params()} | dataclasses.asdict(gpt) | {'dtype': dtype}
    training = {'step': checkpoint.get('step', checkpoint.get('iter_num'))}  # the latter is nanoGPT's
    training |= {key: config.get(key) for key in TRAINING_KEYS}
    stories = ''
    for story in sample_stories():
        lines = [f'> {quote_markdown(line)}\n' for line in story.splitlines()]
        stories += f'\n{"".join(lines)}\n---\n'
    return f'''---
{front}
---
# {quote_markdown(title)}

A {CLASSES[kind]} with {model.n_params():,} parameters that writes short stories{trained_on}.

{usage()}

{notes}
{table('Model', shape)}{table('Training', training)}{table('Data and loss', data_and_loss())}
## Stories

The first {examples}, at temperature {temperature}, with seeds from {seed}.
{stories}
## Limitations

A model this small knows little beyond its stories. It loses the thread and repeats itself, nothing in a story is
reliable, and it is not tuned to be safe: read a story before you read it to a child. A prompt and its story together
have at most {gpt.block_size:,} tokens.
{table('License', {'weights': license or None})}'''


# -----------------------------------------------------------------------------
# main


def write_folder():
    """Write all files into a temporary folder, then move them to `out` -> (their names, what the user should know)."""
    writers = {'hf': write_hf, 'llama2c': write_llama2c, 'gguf': write_gguf}
    path = os.path.abspath(out)
    folder = tempfile.mkdtemp(dir=os.path.dirname(path), prefix=f'{os.path.basename(path)}.tmp')
    try:
        notes = writers[format](folder)
        write_text(os.path.join(folder, 'README.md'), card(notes))
        names = sorted(os.listdir(folder))
        for name in names:  # some libraries write files that nobody else may read
            shutil.copymode(os.path.join(folder, 'README.md'), os.path.join(folder, name))
        os.makedirs(out, exist_ok=True)
        for name in names:
            os.replace(os.path.join(folder, name), os.path.join(out, name))
    finally:
        shutil.rmtree(folder)
    return names, notes


def upload(names):
    """Upload these files to the Hugging Face hub, with the token of `hf auth login` or HF_TOKEN."""
    import huggingface_hub
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(push, exist_ok=True)
        api.upload_folder(repo_id=push, folder_path=out, allow_patterns=names)
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as e:
        fail(f'{push} was not uploaded: {hub.one_line(e)}; the same command tries again')
    print(f'uploaded to {api.endpoint}/{push}')


check(format in MAIN_FILES, f"format is {format!r}; use 'hf', 'llama2c' or 'gguf'")
check(dtype in ('float32', 'bfloat16', 'float16'), f"dtype is {dtype!r}; use 'float32', 'bfloat16' or 'float16'")
check(format != 'llama2c' or dtype == 'float32', 'run.c reads float32 only; leave --dtype out')
check(0 <= examples <= 1000, f'examples is {examples}; it must be from 0 to 1000')
check(max_new_tokens >= 1, f'max_new_tokens is {max_new_tokens}; it must be at least 1')
check(0 <= temperature < 1e6, f'temperature is {temperature}; it must be at least 0')
check(0 <= seed < 2**62, f'seed is {seed}; it must be from 0 to 2**62')
check_push(push)

# the folder of the training run
run_dir = out_dir
if os.path.isfile(out_dir):
    run_dir = os.path.dirname(out_dir)
elif not os.path.isdir(out_dir):  # a name on the hub
    run_dir = os.path.join('out', os.path.basename(out_dir))
named_folder = out or run_dir
out = out or os.path.join(run_dir, format)
main_file = MAIN_FILES[format]
is_file = os.path.isfile(out) or out.endswith(('.bin', '.gguf', '.safetensors', '.pt'))
check(not is_file, f'out is {out!r}; it must be a folder, for {main_file} and the files that belong to it')
is_export = os.path.exists(os.path.join(out, main_file))
check(is_export or not os.path.isdir(out) or not os.listdir(out), f'{out} contains other files; name a new folder')

model, tok, checkpoint = hub.load(out_dir, tokenizer=tokenizer)
if not isinstance(model, GPT):
    fail(f'{out_dir} is not a Llama, Qwen3 or GPT-2; Transformers can use it as it is')
gpt = model.config
kind = model_type()
spec = json.loads(tok.to_str())  # tokenizer.json
is_byte_level = 'ByteLevel' in json.dumps([spec['pre_tokenizer'], spec['normalizer']])
text = ''.join(tok.backend.encode('a', add_special_tokens=False).tokens)
adds_space = text.startswith(('▁', 'Ġ'))  # the tokenizer puts a space before every text, as SentencePiece does
title = push.split('/')[-1] or os.path.basename(os.path.abspath(run_dir))
check_writable(out, named_folder)
lock(os.path.abspath(out))
try:
    names, notes = write_folder()
except (OSError, SafetensorError) as e:
    fail(f'{out} could not be written: {e}')
print(f'{out}: a {CLASSES[kind]} with {model.n_params():,} parameters; {", ".join(names)}\n{notes}'.strip())
if push:
    upload(names)
