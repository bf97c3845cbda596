"""
Every tokenizer behind one small face: encode, decode, bos, eos.

Whatever it comes from (trained here, the Hugging Face hub, tiktoken, a SentencePiece .model), inside it is one
`tokenizers` pipeline, which is what tokenizer.json holds. bos and eos never come out of text: a story may spell
`</s>` and it stays text.

    tokenizer = load('data/hindi/tokenizer.json')
    ids = tokenizer.encode('एक दिन')
"""

import itertools
import json
import os
import re
import unicodedata
import warnings

import numpy as np

from jsonl import replacing

MAX_VOCAB_SIZE = 65536  # ids are stored as uint16
MAX_ID = 2**22  # of a tokenizer from elsewhere, the largest of which have some 2**18 tokens; tables as long as this are no danger to memory

# A word with the space before it; signs (\p{M}) belong to their letters, or no Indic word would stay whole, and so do
# the joiners U+200C and U+200D. Digits go one by one, so that numbers of any length are spelled alike.
WORDS = r' ?[\p{L}\p{M}\x{200c}\x{200d}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}\x{200c}\x{200d}]+|\s+(?!\S)|\s+'
LONGEST = 20_000  # characters of a text for tiktoken, whose search for words gives up in a million spaces


class Tokenizer:
    """A tokenizer.json with the names of its bos and eos tokens.

    bos, eos: their ids, the same one where a tokenizer uses one token for both, as GPT-2's does.
    vocab_size: every id is below it.
    """

    def __init__(self, spec, bos, eos):
        """spec: the text of a tokenizer.json. bos, eos: token strings; those that it lacks are added behind the others."""
        from tokenizers import AddedToken, processors
        from tokenizers import Tokenizer as Backend
        self.backend = Backend.from_str(spec)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in dict.fromkeys((bos, eos))])
        self.backend.encode_special_tokens = True  # that is: spell them as the text they are
        self.bos, self.eos = self.backend.token_to_id(bos), self.backend.token_to_id(eos)
        self.bos_token, self.eos_token = bos, eos
        self.vocab_size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())
        if self.vocab_size > MAX_ID:
            raise ValueError(f'an id of {self.vocab_size - 1:,}')
        # for those who read tokenizer.json with other tools: a prompt begins with bos and stays open
        self.backend.post_processor = processors.TemplateProcessing(single=f'{bos} $A', pair=f'{bos} $A $B', special_tokens=[(bos, self.bos)])

    def encode(self, text):
        """text -> list of ids, without bos and eos."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """Texts -> a list of ids each, without bos and eos; on every core."""
        texts = [unicodedata.normalize('NFC', text) for text in texts]
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encoder(self):
        """A function for a corpus: texts -> (the ids of all in a row, uint32; how many there are of each), the same ids as encode_batch's.

        Where tiktoken can do it, it takes a tenth of the time, on one core and without holding up other threads.
        """
        quick = self.as_tiktoken()

        def encode(texts):
            texts = [unicodedata.normalize('NFC', text) for text in texts]
            if not quick or any(len(text) > LONGEST or '\0' in text for text in texts):
                ids = self.encode_batch(texts)
                return np.fromiter(itertools.chain.from_iterable(ids), np.uint32), np.array([*map(len, ids)], np.int64)
            ids = quick.encode_to_numpy('\0'.join([*texts, '']), allowed_special='all')
            ends = np.flatnonzero(ids == quick.max_token_value)
            return np.delete(ids, ends), np.diff(ends, prepend=-1) - 1
        return encode

    def as_tiktoken(self):
        """A tiktoken.Encoding that gives the same ids, and NUL one above all others; None where that is not certain.

        It is for a byte-level BPE that cuts words as ours or GPT-2's do and numbers its tokens in the order of its merges. tiktoken
        joins any neighbours that make a token together, not only the pairs among the merges. But wherever such a pair comes to stand
        side by side, it does so too in the encoding of that token alone, which then is not the token. Such tokens, which
        never come out of any text, are left out, and with them goes the difference.
        """
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str as gpt2
        from tokenizers import models
        spec = json.loads(self.to_str())
        model, steps = spec['model'], (spec['pre_tokenizer'] or {}).get('pretokenizers', [spec['pre_tokenizer']])
        to_bytes = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True}
        ways = [(pattern, [{'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}, to_bytes | {'use_regex': False}])
                for pattern in (WORDS, gpt2)] + [(gpt2, [to_bytes | {'use_regex': True}])]
        pattern = next((pattern for pattern, way in ways if steps == way), None)
        if (not pattern or spec['normalizer'] not in (None, {'type': 'NFC'}) or not all(token['special'] for token in spec['added_tokens'])
                or model['type'] != 'BPE' or any(model.get(key) for key in ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix'))):
            return None
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that ByteLevel writes as themselves; the others as characters from 256 on
        bytes_of = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(sorted({*range(256)} - {*plain}))}
        merges = [tuple(merge.split(' ')) if isinstance(merge, str) else tuple(merge) for merge in model['merges']]
        ids = [model['vocab'][a + b] for a, b in merges]
        bpe = models.BPE(model['vocab'], merges)
        tokens = [token for token in dict.fromkeys([*bytes_of, *map(''.join, merges)]) if len(bpe.tokenize(token)) == 1]
        special = {token['content'] for token in spec['added_tokens']}
        if ids != sorted(ids) or not bytes_of.keys() <= {*tokens} or model.get('ignore_merges') and {*tokens} | special != model['vocab'].keys() | special:
            return None
        ranks = {bytes(map(bytes_of.get, token)): model['vocab'][token] for token in tokens}
        return tiktoken.Encoding('', pat_str=pattern, mergeable_ranks=ranks, special_tokens={'\0': self.vocab_size})

    def decode(self, ids):
        """ids -> text; bos, eos and other special tokens are left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def add_tokens(self, tokens):
        """Give each of these strings a token of its own wherever it stands in a text, such as </h> behind a headline."""
        from tokenizers import AddedToken
        if {self.bos_token, self.eos_token} & {*tokens}:
            raise SystemExit(f'{self.bos_token} and {self.eos_token} are where stories begin and end, and nothing else can be')
        self.backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])
        self.vocab_size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def to_str(self):
        """The text of a tokenizer.json."""
        return self.backend.to_str()

    def save(self, folder):
        """Write tokenizer.json and the tokenizer_config.json by which Transformers' AutoTokenizer opens the folder."""
        settings = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': self.bos_token, 'eos_token': self.eos_token}
        for name, text in (('tokenizer.json', self.to_str()), ('tokenizer_config.json', json.dumps(settings, indent=1))):
            with replacing(os.path.join(folder, name)) as temporary, open(temporary, 'w', encoding='utf-8') as f:
                f.write(text)

    def state(self):
        """What a checkpoint keeps: `Tokenizer(**state)` is this one again."""
        return {'spec': self.to_str(), 'bos': self.bos_token, 'eos': self.eos_token}


def train(texts, vocab_size, special_tokens=()):
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019 for the bytes) learned from an iterable of texts.

    special_tokens: strings that get a token each, of the vocab_size.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + 2 + len(special_tokens)
    if not least <= vocab_size <= MAX_VOCAB_SIZE:
        raise SystemExit(f'vocab_size is {vocab_size:,}; a tokenizer trained here has from {least} to {MAX_VOCAB_SIZE:,} tokens')
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), 'isolated'),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(special_tokens), special_tokens=['<s>', '</s>'], initial_alphabet=sorted(alphabet),
                                  show_progress=False)
    marks = re.compile('|'.join(map(re.escape, special_tokens)) or '(?!)')  # (?!) matches nothing
    backend.train_from_iterator((marks.sub(' ', text) for text in texts), trainer)
    tok = Tokenizer(backend.to_str(), '<s>', '</s>')
    tok.add_tokens(special_tokens)
    return tok


def load(name):
    """`tiktoken:gpt2`, a .json, .model or checkpoint file, a folder that holds one, or a name on the hub, with @revision or without -> Tokenizer.

    Ends the program with one line when there is no such tokenizer.
    """
    if name.startswith('tiktoken:'):
        return from_tiktoken(name.removeprefix('tiktoken:'))
    if os.path.isdir(name):
        return from_folder(name)
    if os.path.isfile(name):
        return {'.model': from_sentencepiece, '.pt': from_checkpoint}.get(os.path.splitext(name)[1], from_json)(name)
    repository, revision = on_hub(name)
    if not repository or name.endswith(('.json', '.model')) or name.startswith(('.', '/')) or repository.count('/') > 1:
        raise SystemExit(f'{name or "tokenizer is empty"}: there is no such tokenizer file or folder')
    import huggingface_hub
    try:
        return from_folder(huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=['tokenizer*', '*.model', 'special_tokens_map.json']), name)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as e:
        raise SystemExit(f'{name}: no tokenizer by this name could be had from the Hugging Face hub ({type(e).__name__})') from None


def on_hub(name):
    """A name on the Hugging Face hub, as 'user/name' or 'user/name@revision' -> ('user/name', the branch, tag or commit, or None).

    Ends the program with one line where HF_ENDPOINT would have it downloaded unencrypted, so that anybody on the way could change it.
    """
    endpoint = os.environ.get('HF_ENDPOINT', '')
    if endpoint and not re.match(r'https://|http://(localhost|127\.0\.0\.1|\[::1\])(:|/|$)', endpoint):
        raise SystemExit(f'HF_ENDPOINT is {endpoint!r}; models are downloaded by https:// only')
    repository, _, revision = name.partition('@')
    return repository, revision or None


def from_folder(folder, name=None):
    """A Hugging Face folder (tokenizer.json, else a SentencePiece .model), or one of train.py's."""
    for file, read in (('tokenizer.json', from_json), ('tokenizer.model', from_sentencepiece), ('spiece.model', from_sentencepiece),
                       ('best.pt', from_checkpoint), ('ckpt.pt', from_checkpoint)):
        if os.path.exists(os.path.join(folder, file)):
            return read(os.path.join(folder, file))
    raise SystemExit(f'{name or folder}: holds neither a tokenizer.json nor a tokenizer.model')


def from_json(path):
    """A tokenizer.json; its bos and eos are named by the tokenizer_config.json beside it, or go by the usual names."""
    names = {}
    try:
        for file in ('special_tokens_map.json', 'tokenizer_config.json'):
            beside = os.path.join(os.path.dirname(path), file)
            if os.path.exists(beside):
                with open(beside, encoding='utf-8') as f:
                    names.update({k: v['content'] if isinstance(v, dict) else v for k, v in json.load(f).items() if k in ('bos_token', 'eos_token') and v})
        with open(path, encoding='utf-8') as f:
            spec = f.read()
        special = {token['content'] for token in json.loads(spec)['added_tokens']}
        usual = {'bos_token': ('<s>', '<bos>', '<|begin_of_text|>', '<|startoftext|>', '<|endoftext|>', '[CLS]'),
                 'eos_token': ('</s>', '<eos>', '<|end_of_text|>', '<|endoftext|>', '[SEP]')}
        bos, eos = (names.get(kind) or next((token for token in usual[kind] if token in special), ours)
                    for kind, ours in (('bos_token', '<s>'), ('eos_token', '</s>')))
        return Tokenizer(spec, bos, eos)
    except Exception as e:  # `tokenizers` raises nothing narrower for a file that it cannot read
        raise SystemExit(f'{path}: not a tokenizer.json that the package `tokenizers` can read ({e})') from None


def from_checkpoint(path):
    """The tokenizer in a checkpoint of train.py."""
    import torch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # at a plain pickle, before it is refused
            return Tokenizer(**torch.load(path, map_location='cpu', weights_only=True)['tokenizer'])
    except Exception as e:  # torch raises as many kinds as files can be broken
        raise SystemExit(f'{path}: no checkpoint with a tokenizer in it ({type(e).__name__})') from None


def from_tiktoken(name):
    """One of tiktoken's encodings, such as gpt2; the same ids, its <|endoftext|> serving as bos and eos."""
    import tiktoken
    from transformers.convert_slow_tokenizer import TikTokenConverter
    try:
        encoding = tiktoken.get_encoding(name)
    except ValueError:
        raise SystemExit(f'tiktoken has no encoding {name!r}; it has: {", ".join(tiktoken.list_encoding_names())}') from None
    except OSError as e:
        raise SystemExit(f'tiktoken could not download {name!r} ({type(e).__name__}); TIKTOKEN_CACHE_DIR may name a folder that holds it') from None
    converter = TikTokenConverter(pattern=encoding._pat_str, extra_special_tokens=encoding._special_tokens)
    converter.load_tiktoken_bpe = lambda path: encoding._mergeable_ranks  # they are in memory, not in a file
    return Tokenizer(converter.converted().to_str(), '<|endoftext|>', '<|endoftext|>')


def from_sentencepiece(path):
    """A SentencePiece .model, BPE or unigram, as a `tokenizers` pipeline that gives the same ids.

    What the pipeline must imitate stands in the model's own specification (sentencepiece_model.proto): its normalizer,
    the space before the text, pieces for bytes, and user-defined symbols, which are cut out before anything else. One
    thing it cannot: a text that begins with a user-defined symbol has no space put before it.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise SystemExit(f'{path}: reading it takes two packages: pip install sentencepiece protobuf') from None
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers.convert_slow_tokenizer import generate_merges
    proto = sentencepiece_model_pb2.ModelProto()
    with open(path, 'rb') as f:
        try:
            proto.ParseFromString(f.read())
        except Exception as e:  # protobuf's DecodeError has moved between its versions
            raise SystemExit(f'{path}: not a SentencePiece model ({e})') from None
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    if trainer.model_type == 1:
        backend = Backend(models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback))
    elif trainer.model_type == 2:
        scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
        backend = Backend(models.BPE({**ids}, generate_merges(ids, scores), unk_token=trainer.unk_piece, fuse_unk=True, byte_fallback=trainer.byte_fallback))
    else:
        raise SystemExit(f'{path}: a SentencePiece model of words or characters; only BPE and unigram models can be used')
    steps = [normalizers.Precompiled(normalizer.precompiled_charsmap)] if normalizer.precompiled_charsmap else []
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(' {2,}'), ' '), normalizers.Strip()]
    # Metaspace adds no space before text that has one; Prepend does, but would add it to the user-defined symbols too
    if normalizer.add_dummy_prefix and not normalizer.remove_extra_whitespaces:
        steps.append(normalizers.Prepend('▁'))
    backend.normalizer = normalizers.Sequence(steps)
    first = normalizer.add_dummy_prefix and normalizer.remove_extra_whitespaces
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first' if first else 'never', split=False)
    strip = [decoders.Strip(' ', 1, 0)] if normalizer.add_dummy_prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.add_special_tokens([AddedToken(p.piece, special=True, normalized=False) for p in proto.pieces if p.type in (UNKNOWN, CONTROL)])
    backend.add_tokens([AddedToken(p.piece, normalized=True) for p in proto.pieces if p.type == USER_DEFINED])
    bos, eos = (piece if 0 <= i < len(pieces) else ours
                for i, piece, ours in ((trainer.bos_id, trainer.bos_piece, '<s>'), (trainer.eos_id, trainer.eos_piece, '</s>')))
    return Tokenizer(backend.to_str(), bos, eos)


def trim(tokenizer, used):
    """The tokenizer without the tokens that a corpus does not need -> (Tokenizer, new id of each old one).

    used: the ids that the corpus holds. Its text is encoded into the very same tokens as before, and any other text
    still into some: kept are the used tokens, those that the merges pass through on the way to them, what spells
    everything else (bytes, or single characters where there is no token for a byte), and every added token. A merge is
    dropped only with its result, so the merges that happened still happen in their order, and a Viterbi path that was
    the best stays so among fewer.
    The ids come as an int64 array of the old vocabulary's length, -1 where a token is gone.
    """
    from tokenizers import pre_tokenizers
    spec = json.loads(tokenizer.to_str())
    model = spec['model']
    if model.get('continuing_subword_prefix') and model['type'] == 'BPE' or model.get('end_of_word_suffix'):
        raise SystemExit('a BPE tokenizer that marks parts of words cannot be trimmed; --trim=False keeps it whole')
    ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    names = {i: token for token, i in ids.items()}
    keep = {names[int(i)] for i in used} | {token['content'] for token in spec['added_tokens']}
    keep |= {model['unk_token']} & ids.keys() if model.get('unk_token') else set()
    if model.get('byte_fallback'):
        keep |= {f'<0x{byte:02X}>' for byte in range(256)} & ids.keys()
    elif 'ByteLevel' in json.dumps([spec['pre_tokenizer'], spec['normalizer']]):
        keep |= set(pre_tokenizers.ByteLevel.alphabet()) & ids.keys()
    else:
        keep |= {token for token in ids if len(token.removeprefix('##')) == 1}
    if model['type'] == 'BPE':
        merges = [tuple(merge.split(' ')) if isinstance(merge, str) else tuple(merge) for merge in model['merges']]
        rank = {merge: i for i, merge in enumerate(merges)}
        for token in list(keep):
            keep |= on_the_way(token, rank)
        model['merges'] = [(a, b) for a, b in merges if a in keep and b in keep and a + b in keep]
    if model['type'] == 'Unigram':
        vocab = [token for token, _ in model['vocab']]
        lowest = min(range(len(vocab)), key=lambda i: model['vocab'][i][1])
        keep |= {vocab[lowest], vocab[model['unk_id']]}  # an unknown character is scored relative to the lowest
        model['unk_id'] = sum(token in keep for token in vocab[:model['unk_id']])
        model['vocab'] = [pair for pair in model['vocab'] if pair[0] in keep]
    new = {token: i for i, token in enumerate(sorted(keep, key=ids.get))}
    if len(new) > MAX_VOCAB_SIZE:
        raise SystemExit(f'these stories need {len(new):,} tokens of this tokenizer and uint16 holds {MAX_VOCAB_SIZE:,}: '
                         'train one on them (--tokenizer=train), take a smaller one, or prepare fewer languages together')
    if model['type'] != 'Unigram':
        model['vocab'] = {token: new[token] for token in model['vocab'] if token in keep}
    for token in spec['added_tokens']:
        token['id'] = new[token['content']]
    spec['post_processor'] = None
    trimmed = Tokenizer(json.dumps(spec, ensure_ascii=False), tokenizer.bos_token, tokenizer.eos_token)
    if trimmed.backend.get_vocab(with_added_tokens=True) != new:
        raise SystemExit('this tokenizer numbers its tokens in a way that cannot be trimmed; --trim=False keeps it whole')
    new_ids = np.full(tokenizer.vocab_size, -1, np.int64)
    new_ids[[ids[token] for token in new]] = list(new.values())
    return trimmed, new_ids


def on_the_way(token, rank):
    """The tokens that byte-pair encoding passes through from the single characters to `token`; none if it never gets there."""
    parts, passed = list(token), set(token)
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), len(rank)))
        if (parts[best], parts[best + 1]) not in rank:
            return set()
        parts[best:best + 2] = [parts[best] + parts[best + 1]]
        passed.add(parts[best])
    return passed
