"""
Export a model for other programs: out_dir -> out, a folder with the weights, the tokenizer and a model card.

    python export.py --out_dir=out/hindi                                 # for Transformers
    python export.py --out_dir=out/hindi --format=gguf --dtype=float16   # for llama.cpp and Ollama
    python export.py --out_dir=out/hindi --format=llama2c                # for run.c of llama2.c
    python export.py --out_dir=out/hindi --format=page                   # story.html generates stories in a browser
    python export.py --out_dir=out/gpt2 --format=peft                    # LoRA adapters, for peft
    python export.py --out_dir=out/hindi --push=user/kahani-hindi        # upload it; run hf auth login first

The model becomes a Llama, a Qwen3 (qk_norm) or a GPT-2 (learned positions), which those programs can already run.
The page computes any GPT of model.py by itself: story_template.html has the code.
"""

import os

# -----------------------------------------------------------------------------
# input and output
out_dir = 'out/hindi'  # a folder of train.py, nanoGPT's or llama2.c's model, a Hugging Face folder or name[@revision]
tokenizer = ''  # for nanoGPT's and llama2.c's models: a name as for prepare.py; empty = the model's own, or beside it
format = 'hf'  # 'hf', 'llama2c', 'gguf', 'page' or 'peft'
out = ''  # the folder to write; empty = out_dir/<format>
dtype = 'float32'  # of the weights in hf and gguf: 'float32', 'bfloat16' or 'float16'
push = ''  # user/name: upload the folder to this model on the Hugging Face hub
# model card
license = ''  # license of the weights, by its name on the hub, such as mit; empty = the card names none
language = ''  # language code of the stories, such as hi; empty = by the name of the dataset
hub_dataset = ''  # data set of the training on the hub, such as user/kahani; empty = the source of the training data
examples = 3  # sample stories in the card
start = ''  # how the sample stories begin
seed = 1337  # sample story i uses seed + i
temperature = 0.8  # for the sample stories, the card's example, Ollama and the page
max_new_tokens = 300  # a sample story is cut off there, and one of the page
# -----------------------------------------------------------------------------
here = os.path.dirname(os.path.abspath(globals().get('__file__', 'export.py')))  # in a notebook: the working directory
exec(open(os.path.join(here, 'configurator.py'), encoding='utf-8').read())

import base64
import dataclasses
import json
import re
import shutil
import struct
import tempfile

import torch
from safetensors import SafetensorError

import hub
from files import (VERSION, check, check_push, check_writable, fail, hide_folders, language_code, lock,
                   loss_measures, quote_markdown, template_of, write_json, write_text)
from model import GPT, export_problems, generate
from tokenizer import WORDS, byte_characters, read_json, word_pattern

MAIN_FILES = {'hf': 'model.safetensors', 'llama2c': 'model.bin', 'gguf': 'model.gguf', 'page': 'story.html',
              'peft': 'adapter_model.safetensors'}
CLASSES = {'llama': 'LlamaForCausalLM', 'qwen3': 'Qwen3ForCausalLM', 'gpt2': 'GPT2LMHeadModel', 'gpt': 'GPT'}
INTENDED_USE = (
    'To generate short stories from an opening, to show in class how a language model works, and for experiments with '
    'small models. It is not for facts, advice, or anything that somebody relies on.')
LIMITATIONS = (
    'A model this small knows little beyond its stories. It forgets what happened earlier in a story, repeats itself '
    'and invents facts. It is not tuned to be safe: read a story before you read it to a child.')

# -----------------------------------------------------------------------------
# the model, as other programs see it


def model_type():
    """'llama', 'qwen3', 'gpt2', for the page 'gpt', or a class of Transformers. Fails if the format cannot hold it."""
    if not isinstance(model, GPT):
        check(format in ('hf', 'peft'), f'{out_dir} is not a Llama, Qwen3 or GPT-2, which the format {format} needs')
        return type(model.inner).__name__
    if format == 'page':
        return 'gpt'
    problem = export_problems(gpt).get(format)
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
    for name, weight in list(state.items()):
        # GPT-2 has biases in all layers, and Llama in all parts of the attention or in none
        if kind == 'gpt2' and name.startswith(('blocks.', 'norm.')) or gpt.bias and 'attn.qkv' in name:
            state.setdefault(name.replace('.weight', '.bias'), torch.zeros(len(weight)))
    n_rows = [n * gpt.head_size for n in (gpt.n_head, gpt.n_kv_head, gpt.n_kv_head)]  # of queries, keys, values
    prefix = 'transformer.' if kind == 'gpt2' else 'model.'
    weights = {}
    for name, weight in state.items():
        hf_names = hub.hf_names(name, gpt)
        parts = weight.split(n_rows) if len(hf_names) == 3 else [weight]
        for hf_name, part in zip(hf_names, parts):
            if interleaved and ('q_proj' in hf_name or 'k_proj' in hf_name):
                halves = part.reshape(-1, 2, gpt.head_size // 2, part[0].numel())  # (heads, 2, d / 2, C)
                part = halves.transpose(1, 2).reshape(part.shape)
            if hf_name != 'lm_head.weight':
                hf_name = prefix + hf_name
            weights[hf_name] = part.float().contiguous()
    if gpt.mlp == 'relu2':  # relu(x)² = relu(x) · x: the gate equals what it gates
        for name, weight in list(weights.items()):
            if 'up_proj' in name:
                weights[name.replace('up_proj', 'gate_proj')] = weight.clone()
    return weights


def read_bpe():
    """The token of each id of a BPE tokenizer, None for an unused id; its merges; a score for each merged token."""
    merges = spec['model']['merges']
    vocab = {i: token for token, i in tok.backend.get_vocab(with_added_tokens=True).items()}
    tokens = [vocab.get(i) for i in range(gpt.vocab_size)]
    scores = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    return tokens, merges, scores


# -----------------------------------------------------------------------------
# Transformers. Each of the functions write_hf, write_llama2c, write_gguf and write_page fills a folder and returns a
# note for the user, or ''.


def write_hf(folder):
    """Write config.json, generation_config.json, model.safetensors and the tokenizer, for Transformers 4 and 5."""
    ids = {'bos_token_id': tok.bos, 'eos_token_id': tok.ends if len(tok.ends) > 1 else tok.ends[0]}
    if isinstance(model, GPT):
        write_gpt(folder, ids)
    else:
        model.inner.config.update(ids)
        model.inner.to(getattr(torch, dtype)).save_pretrained(folder)
    # Fine-tuning ignores padding, so with eos as padding it would not learn where a story ends.
    # In generation, bos must not be padding: generate() without attention_mask would not read the bos of a prompt.
    pads = [tok.backend.token_to_id('<pad>'), tok.unk]
    pads = [i for i in pads if i is not None and i != tok.eos and i < model.config.vocab_size]
    training_pad = pads[0] if pads else tok.bos
    generation_pad = pads[0] if pads and pads[0] != tok.bos else tok.eos
    # Nothing else: Transformers warns of a temperature with do_sample=False, and of a max_length with max_new_tokens.
    generation = ids | {'pad_token_id': generation_pad, 'do_sample': temperature > 0}
    write_json(os.path.join(folder, 'generation_config.json'), generation)

    tok.save(folder)
    path = os.path.join(folder, 'tokenizer_config.json')
    with open(path, encoding='utf-8') as f:
        tokenizer_settings = json.load(f)
    # Without model_input_names, generate() would get token types, which these classes do not take.
    # Without the last setting, older versions remove spaces before punctuation.
    write_json(path, tokenizer_settings | {
        'pad_token': tok.backend.id_to_token(training_pad), 'padding_side': 'left', 'model_max_length': gpt.block_size,
        'model_input_names': ['input_ids', 'attention_mask'], 'clean_up_tokenization_spaces': False})
    return ''


def write_gpt(folder, ids):
    """Write config.json, with the ids of bos and eos, and model.safetensors."""
    from safetensors.torch import save_file
    settings = {'architectures': [CLASSES[kind]], 'model_type': kind}
    for key, name in hub.KEYS[kind].items():
        settings[key] = getattr(gpt, name)
    if kind != 'gpt2':
        activation = 'relu' if gpt.mlp == 'relu2' else 'silu'
        settings |= {'head_dim': gpt.head_size, 'hidden_act': activation}
        settings |= {'attention_bias': gpt.bias, 'mlp_bias': gpt.bias}
    write_json(os.path.join(folder, 'config.json'), settings | {'torch_dtype': dtype} | ids)
    weights = named_weights()
    for name, weight in weights.items():
        if kind == 'gpt2' and '.h.' in name and weight.dim() == 2:  # (in, out) there
            weight = weight.t().contiguous()
        weights[name] = weight.to(getattr(torch, dtype))
    save_file(weights, os.path.join(folder, main_file), {'format': 'pt'})


def write_peft(folder):
    """Write adapter_config.json and adapter_model.safetensors. The tokenizer is that of the base model."""
    hub.write_adapters(checkpoint, out_dir, folder)
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
    with open(os.path.join(folder, 'tokenizer.bin'), 'wb') as f:
        f.write(struct.pack('<i', max(len(piece) for _, piece in pieces)))
        for score, piece in pieces:
            f.write(struct.pack('<fi', score, len(piece)) + piece)
    write_run_c_model(os.path.join(folder, main_file), order)

    n_cut = sum(len(piece) > 1 and '\ufffd' in piece.decode('utf-8', 'replace') for _, piece in pieces)
    if not {tok.bos, tok.eos} >= set(tok.ends):
        return f'This model ends a story at the ids {tok.ends}, and run.c only where it begins the next one.'
    if not n_cut:
        return ''
    return (f'{n_cut} of the {gpt.vocab_size:,} tokens begin or end inside a character. run.c can encode a prompt with '
            'them differently, and it does not print a part of a character that is a token alone.')


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
    quantization = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}[dtype]
    writer.add_name(title)
    writer.add_file_type(gguf.LlamaFileType['ALL_F32' if dtype == 'float32' else f'MOSTLY_{quantization}'])
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

    gguf_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], gpt.n_layer)
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
# the page


MAX_PAGE_WEIGHTS = 300_000_000  # browsers limit a text to 512 MB, and a weight takes 1.33 bytes
# what the page knows of tokenizer.json: the types of its steps, and the syntax of regular expressions
PAGE_STEPS = {
    'normalizer': {'Sequence', 'NFC', 'NFD', 'NFKC', 'NFKD', 'Prepend', 'Replace', 'Strip', 'Precompiled'},
    'pre_tokenizer': {'Sequence', 'Split', 'Digits', 'ByteLevel', 'Metaspace'},
    'decoder': {'Sequence', 'Replace', 'ByteFallback', 'Fuse', 'Strip', 'ByteLevel', 'Metaspace'}}
ESCAPE = r'\\[pP]\{\w+\} | \\x\{\w+\} | \\[sSdrnt]'  # such as \p{L}, \x{200d}, \s
PAGE_REGEX = re.compile(fr'''(?:
    {ESCAPE}
    | \[\^? (?: {ESCAPE} | [^][\\&+*?] )+ \]  # a class of characters
    | \(\?i: [a-z'|]* \)  # alternatives without regard to case
    | \(\?[:!=] | \((?!\?) | \)  # groups and lookahead
    | [+*?]\+? | \{{[\d,]+\}}(?!\+)  # quantifiers
    | [^][\\{{}}()+*?]  # a character that stands for itself
    )*''', re.VERBOSE)


def write_page(folder):
    """Write story.html: story_template.html with the model, its tokenizer and its card as JSON without any <."""
    path = os.path.join(here, 'story_template.html')
    check(os.path.exists(path), 'story_template.html is missing: copy it beside export.py')
    if model.n_params() > MAX_PAGE_WEIGHTS:
        fail(f'a browser cannot open a page with {model.n_params():,} weights; --format=gguf is for large models')
    check_page_tokenizer()
    with open(path, encoding='utf-8') as f:
        before, _, after = f.read().partition('{{data}}')
    weights, tensors = quantized_weights()
    strips_space = adds_space and tok.decode(tok.encode('a')) == 'a'
    data = {
        'title': title, 'language': language, 'n_params': f'{model.n_params():,}', 'start': start,
        'examples': openings(), 'template': template_of(checkpoint).removesuffix('{text}'), 'temperature': temperature,
        'max_new_tokens': max_new_tokens, 'seed': seed, 'about': [INTENDED_USE, LIMITATIONS], 'tables': tables,
        'tokenizer': spec, 'bos': tok.bos, 'ends': tok.ends, 'is_byte_level': is_byte_level,
        'strips_space': strips_space, 'config': dataclasses.asdict(gpt), 'tensors': tensors,
        'weights': base64.b64encode(weights).decode()}
    text = json.dumps(data, ensure_ascii=False).replace('<', '\\u003c')
    write_text(os.path.join(folder, main_file), before + text + after)
    return ''


def check_page_tokenizer():
    """Fail if the page does not know a part of the tokenizer."""
    unknown = set()
    for part, known_types in PAGE_STEPS.items():
        steps = json.dumps(spec[part])
        unknown |= set(re.findall(r'"type": "(\w+)"', steps)) - known_types
        unknown |= set(re.findall(r'"behavior": "(?!Isolated)\w+"|"invert": true', steps))
        for pattern in re.findall(r'"Regex": ("(?:[^"\\]|\\.)*")', steps):
            if not PAGE_REGEX.fullmatch(json.loads(pattern)):
                unknown.add(pattern)
    for key in ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix'):
        if spec['model'].get(key):
            unknown.add(key)
    for token in spec['added_tokens']:
        if not token['special'] and (token['single_word'] or token['lstrip'] or token['rstrip']):
            unknown.add(token['content'])
    if not spec['decoder']:
        unknown.add('empty decoder')
    if unknown:
        fail(f"the page does not know this tokenizer's {min(unknown):.80}; --format=hf takes any")


def quantized_weights():
    """The weights by model.py's names -> (bytes, [(name, rows, columns), …] in their order).

    A vector is stored in float32, with columns = 0; a matrix as a float32 scale for each row, then its rows in int8.
    """
    parts, tensors = [], []
    for name, weight in model.state_dict().items():
        if name == 'head.weight' and gpt.tie_weights:
            continue
        weight = weight.float()
        if weight.dim() == 1:
            tensors.append((name, len(weight), 0))
            parts.append(weight)
        else:
            tensors.append((name, *weight.shape))
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127  # (rows, 1)
            parts += [scale, (weight / scale).round().to(torch.int8)]
    return b''.join(part.numpy().tobytes() for part in parts), tensors


# -----------------------------------------------------------------------------
# the model card

TRAINING_KEYS = (
    'init_from batch_size gradient_accumulation_steps block_size optimizer learning_rate min_lr warmup_iters max_iters '
    'weight_decay beta1 beta2 grad_clip dropout seed').split()


def sample_stories():
    """The stories of the card, without the words that a story_template puts in front."""
    text = start.encode('utf-8', 'replace').decode()  # the command line may contain bytes that are not UTF-8
    prompt = [tok.bos, *tok.encode(text)]
    n = min(max_new_tokens, gpt.block_size - len(prompt))
    check(n >= 1, f'start is {len(prompt)} tokens long and the model reads {gpt.block_size}, the story included')
    stories = [list(prompt) for _ in range(examples)]
    seeds = range(seed, seed + examples)
    for step in generate(model, stories, n, tok.ends, seeds, temperature):
        for i, token in step:
            stories[i].append(token)
    return [without_words(tok.decode(ids)) for ids in stories]


def without_words(story):
    """A generated story without the words that a story_template puts in front, if it begins with some."""
    first, *literals = re.split(r'\{\w+\}', template_of(checkpoint).removesuffix('{text}'))
    if not story.startswith(first):
        return story
    rest = story.removeprefix(first)
    for literal in literals:
        word, _, rest = rest.partition(literal or '\n')
        if not rest or len(word) > 30 or re.search('[.!?।\n]', word):
            return story
    return rest


def openings():
    """`start`, or else the first four words of each sample story: examples of a prompt."""
    texts = [start] if start else [' '.join(story.split()[:4]) for story in stories]
    return [text for text in dict.fromkeys(texts) if text]


def data_and_measures():
    """What the checkpoint says of its data set, as in meta.json, and all measures of the model -> two dicts.

    The measures are those of the validation loss, and the exams and grades in results.json of evaluate.py.
    """
    data, measures = {}, {}
    meta = checkpoint.get('meta')
    results_path = os.path.join(run_dir, 'results.json')
    results = read_json(results_path) if os.path.exists(results_path) else {}
    name = os.path.basename(os.path.abspath(run_dir))  # the name of a model in results.json
    try:
        if meta:
            data = {'source': meta.get('config', {}).get('source'), 'tokenizer': hide_folders(str(meta['tokenizer']))}
            for unit in ('stories', 'tokens', 'bytes'):
                for split in ('train', 'val'):
                    data[f'{unit}, {split}'] = int(meta[unit][split])
            measures |= loss_measures(checkpoint['best_val_loss'], meta)
        for exam, phenomena in results.get('exam', {}).get(name, {}).items():
            measures[f'exam, {exam}'] = float(phenomena['all']['mean'])
        for judge, grades in results.get('models', {}).get(name, {}).get('grades', {}).items():
            for criterion, estimate in grades.items():
                if estimate:
                    measures[f'{criterion}, by {judge}'] = float(estimate['mean'])
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as e:
        fail(f'{out_dir}: what its checkpoint or results.json says of the data set is damaged ({type(e).__name__})')
    return data, measures


def facts():
    """What is known of the model -> {heading: {name: text}}."""
    training = {key: run_config.get(key) for key in TRAINING_KEYS} | {'nanokahani': checkpoint.get('version')}
    step = checkpoint.get('step', checkpoint.get('iter_num'))  # the latter is nanoGPT's
    sections = {
        'Model': {'parameters': model.n_params()} | dataclasses.asdict(gpt) | {'dtype': stored_dtype},
        'Training': {'step': step} | training, 'Data': dict(training_data),
        'Evaluation': {name.replace('_', ' '): f'{value:.4f}' for name, value in measures.items()}}
    for rows in sections.values():
        for name, value in list(rows.items()):
            if value is None or isinstance(value, dict):  # a dict: the settings of a class of Transformers
                del rows[name]
            else:
                rows[name] = f'{value:,}' if type(value) is int else f'{value!s:.200}'
    return sections


def table(heading, rows):
    """A section of the card with a table."""
    lines = [f'| {quote_markdown(name)} | {quote_markdown(text)} |\n' for name, text in rows.items()]
    if not lines:
        return ''
    return f'\n## {heading}\n\n| | |\n| --- | --- |\n{"".join(lines)}'


def usage():
    """How to generate a story with the exported model."""
    if format == 'page':
        return f'Open {main_file} in a browser. It needs no network.'
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


def hub_metadata():
    """The first lines of the card: YAML with what the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData
    source = re.match(r'hf:([\w-][\w.-]*/[\w.-]+)', str(training_data.get('source')))
    on_the_hub = hub_dataset or (source[1] if source else None)
    name = on_the_hub or run_dataset or 'stories'
    results = []
    for measure, value in measures.items():
        split = None if ', ' in measure else 'validation'  # exams and grades are not of the data set's stories
        results.append(EvalResult(
            task_type='text-generation', dataset_type=name, dataset_name=name, dataset_split=split,
            metric_type=measure, metric_name=measure.replace('_', ' '), metric_value=round(value, 4)))
    return ModelCardData(
        language=language or None, license=license or None, tags=['nanokahani', format],
        library_name='transformers' if format == 'hf' else None, pipeline_tag='text-generation',
        datasets=[on_the_hub] if on_the_hub else None,
        model_name=title if results else None, eval_results=results or None,
        widget=[{'text': text} for text in openings()] or None).to_yaml()


def card(notes):
    """The text of README.md."""
    trained_on = f', trained on {quote_markdown(run_dataset)}' if run_dataset else ''
    sections = ''.join(table(heading, rows) for heading, rows in tables.items())
    quoted_stories = ''
    for story in stories:
        lines = [f'> {quote_markdown(line)}\n' for line in story.splitlines()]
        quoted_stories += f'\n{"".join(lines)}\n---\n'
    plain_title = re.sub(r'[^\w .-]', ' ', title)  # for BibTeX
    address = f'  howpublished = {{https://huggingface.co/{push}}},\n' if push else ''
    return f'''---
{hub_metadata()}
---
# {quote_markdown(title)}

A {CLASSES.get(kind, kind)} with {model.n_params():,} parameters that writes short stories{trained_on}.

{usage()}

{notes}

## Intended use

{INTENDED_USE}
{sections}
## Stories

The first {examples}, at temperature {temperature}, with seeds from {seed}.
{quoted_stories}
## Limitations

{LIMITATIONS} A prompt and its story together have at most {gpt.block_size:,} tokens.

## Citation

```bibtex
@misc{{story_model,
  title = {{{plain_title}: a language model of {model.n_params():,} parameters for short stories}},
{address}  note = {{made with nanokahani {VERSION}}}
}}
```
{table('License', {'weights': license} if license else {})}'''


# -----------------------------------------------------------------------------
# main


def write_folder():
    """Write all files into a temporary folder, then move them to `out` -> (their names, what the user should know)."""
    writers = {'hf': write_hf, 'llama2c': write_llama2c, 'gguf': write_gguf, 'page': write_page, 'peft': write_peft}
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
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as e:  # of the HTTP package that it uses
        fail(f'{push} was not uploaded: {hub.one_line(e)}; the same command tries again')
    print(f'uploaded to {api.endpoint}/{push}')


check(format in MAIN_FILES, f"format is {format!r}; use 'hf', 'llama2c', 'gguf', 'page' or 'peft'")
check(dtype in ('float32', 'bfloat16', 'float16'), f"dtype is {dtype!r}; use 'float32', 'bfloat16' or 'float16'")
check(format in ('hf', 'gguf') or dtype == 'float32', 'dtype is for hf and gguf; llama2c has float32, page int8')
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
is_file = os.path.isfile(out) or out.endswith(('.bin', '.gguf', '.safetensors', '.pt', '.html'))
check(not is_file, f'out is {out!r}; it must be a folder, for {main_file} and the files that belong to it')
is_export = os.path.exists(os.path.join(out, main_file))
check(is_export or not os.path.isdir(out) or not os.listdir(out), f'{out} contains other files; name a new folder')

model, tok, checkpoint = hub.load(out_dir, tokenizer=tokenizer)
gpt = model.config
kind = model_type()
spec = json.loads(tok.to_str())  # tokenizer.json
if format not in ('hf', 'peft') and spec['model']['type'] != 'BPE':
    fail(f'the tokenizer is a {spec["model"]["type"]} model and {format} needs BPE; --format=hf takes any')
is_byte_level = 'ByteLevel' in json.dumps([spec['pre_tokenizer'], spec['normalizer']])
text = ''.join(tok.backend.encode('a', add_special_tokens=False).tokens)
adds_space = text.startswith(('▁', 'Ġ'))  # the tokenizer puts a space before every text, as SentencePiece does
title = push.split('/')[-1] or os.path.basename(os.path.abspath(run_dir))
run_config = checkpoint.get('config')
run_config = hide_folders(run_config) if isinstance(run_config, dict) else {}  # it may be another program's
run_dataset = str(run_config.get('dataset', ''))
language = language or language_code(run_dataset)
stored_dtype = 'int8' if format == 'page' else dtype
training_data, measures = data_and_measures()
tables = facts()
check_writable(out, named_folder)
lock(os.path.abspath(out))
stories = sample_stories()
try:
    names, notes = write_folder()
except (OSError, SafetensorError) as e:
    fail(f'{out} could not be written: {e}')
print(f'{out}: a {CLASSES.get(kind, kind)} with {model.n_params():,} parameters; {", ".join(names)}\n{notes}'.strip())
if push:
    upload(names)
