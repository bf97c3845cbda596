"""
Every tokenizer behind one small interface: encode, decode, bos, eos.

    tokenizer = load('data/hindi/tokenizer.json')
    ids = tokenizer.encode('एक दिन')
    text = tokenizer.decode(ids)

- train() learns a byte-level BPE that keeps the vowel signs of Indic scripts with their letters.
- train_sentencepiece() learns a SentencePiece BPE, for programs that read a .model.
- load() reads any other tokenizer: from the Hugging Face hub, from tiktoken, SentencePiece's and llama2.c's.
- Each of them becomes one `tokenizers` pipeline, stored as tokenizer.json, which other programs read too.
- Text is never encoded as bos or eos: a story may contain '</s>', and it stays ordinary text.
- trim() removes the tokens that a corpus does not use, so that the ids of any tokenizer fit in uint16.
"""

import contextlib
import functools
import io
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import textwrap
import threading
import time
import unicodedata
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Pipeline

from files import check, fail, find, on_hub, replacing, write_json, write_text

try:
    import resource
except ModuleNotFoundError:  # on Windows
    resource = None

MAX_VOCAB_SIZE = 65536  # ids are stored as uint16
# A tokenizer from elsewhere must not fill the memory or run for ever. The largest real ones stay far below these.
MAX_LOADED_VOCAB_SIZE = 2**22
MAX_TOKEN_LENGTH = 4096  # characters
MAX_FILE_SIZE = 100 * 2**20
MAX_MEMORY = 2 * 2**30  # bytes for encoding, beyond 1 kB for each character
MAX_SECONDS = 20  # for encoding, beyond a second for 50,000 characters
MAX_TIKTOKEN_LENGTH = 20_000  # characters of a text; the regular expressions of tiktoken fail on a million spaces

# How text is split into words before BPE. No token crosses the end of a word.
# - A word includes the space before it, as in GPT-2.
# - Letters (\p{L}) keep their vowel signs (\p{M}) and the joiners U+200C and U+200D: this keeps Indic words whole.
# - Each digit (\p{N}) is a word of its own, so that all numbers are encoded in the same way.
WORDS = r' ?[\p{L}\p{M}\x{200c}\x{200d}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}\x{200c}\x{200d}]+|\s+(?!\S)|\s+'

# the usual bos and eos tokens, for a tokenizer.json without settings that name them
USUAL_BOS = '<s> <bos> <|begin_of_text|> <|startoftext|> <|endoftext|> [CLS]'.split()
USUAL_EOS = '</s> <eos> <|end_of_text|> <|endoftext|> [SEP]'.split()


class Tokenizer:
    """A `tokenizers` pipeline with a bos and an eos token.

    backend: the pipeline
    bos, eos: ids, equal if one token serves as both, as in GPT-2
    bos_token, eos_token: the same tokens as text
    ends: the ids at which generation ends: eos, or those that a model's files name
    unk: id of the unknown token, or None
    vocab_size: every id is below it
    sentencepiece: the bytes of a .model with the same ids, or None
    """
    sentencepiece = None

    def __init__(self, spec, bos='', eos=''):
        """spec: the text of a tokenizer.json. bos, eos: tokens, added if missing; '' = a usual one.

        Raises ValueError if the spec is broken or takes too much time or memory.
        """
        try_out(spec)
        try:
            self.backend = Pipeline.from_str(spec)
        except Exception as e:  # `tokenizers` raises nothing narrower
            raise ValueError(str(e)) from None
        self.backend.no_padding()
        self.backend.no_truncation()
        if isinstance(self.backend.model, models.BPE):
            self.backend.model.dropout = None  # else the same text gets other ids each time
        present = {token.content for token in self.backend.get_added_tokens_decoder().values()}
        self.bos_token = bos or next((name for name in USUAL_BOS if name in present), '<s>')
        self.eos_token = eos or next((name for name in USUAL_EOS if name in present), '</s>')
        self.backend.add_special_tokens([self.bos_token, self.eos_token])
        self.backend.encode_special_tokens = True  # encode them as ordinary text
        self.split_special_tokens()
        self.bos = self.backend.token_to_id(self.bos_token)
        self.eos = self.backend.token_to_id(self.eos_token)
        self.ends = [self.eos]
        self.unk = self.unknown_id()
        self.set_vocab_size()
        # for other programs that read tokenizer.json: a prompt begins with bos and has no eos
        bos = self.bos_token
        self.backend.post_processor = processors.TemplateProcessing(
            single=f'{bos} $A', pair=f'{bos} $A $B', special_tokens=[(bos, self.bos)])

    def split_special_tokens(self):
        """Keep text such as '</s>' from being encoded as the special token. Does nothing where it is not.

        A unigram model or a list of words finds it in its vocabulary. So its first character gets a word of its own.
        """
        tokens = {token.content for token in self.backend.get_added_tokens_decoder().values() if token.special}
        tokens |= {f'<0x{byte:02X}>' for byte in range(256)}  # they encode bytes
        starts = []
        for token in sorted(tokens & self.backend.get_vocab().keys()):
            with contextlib.suppress(Exception):  # a model without an unknown token
                encoding = self.backend.encode(token, add_special_tokens=False)
                if (token, (0, len(token))) in zip(encoding.tokens, encoding.offsets):
                    starts.append(f'{re.escape(token[0])}(?={re.escape(token[1:])})')
        if starts:
            steps = [self.backend.pre_tokenizer, pre_tokenizers.Split(Regex('|'.join(starts)), 'isolated')]
            self.backend.pre_tokenizer = pre_tokenizers.Sequence(list(filter(None, steps)))

    def unknown_id(self):
        """The id of what encodes unknown text, or None: such a model has bytes for it, or drops it."""
        model = self.backend.model
        if isinstance(model, models.Unigram):
            return json.loads(self.to_str())['model']['unk_id']
        return self.backend.token_to_id(model.unk_token or '')

    def set_vocab_size(self):
        vocab = self.backend.get_vocab(with_added_tokens=True)
        largest_id = max(vocab.values())
        if largest_id >= MAX_LOADED_VOCAB_SIZE:
            raise ValueError(f'its ids go up to {largest_id:,}')
        if len(set(vocab.values())) < len(vocab):
            raise ValueError('two of its tokens have the same id')
        if max(map(len, vocab)) > MAX_TOKEN_LENGTH:
            raise ValueError(f'it has a token of more than {MAX_TOKEN_LENGTH:,} characters')
        self.vocab_size = largest_id + 1

    def encode(self, text):
        """text -> list of ids, without bos and eos."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """List of texts -> list of lists of ids, without bos and eos. Uses all cores."""
        texts = [unicodedata.normalize('NFC', text) for text in texts]
        n = sum(map(len, texts))
        results = []  # one: the encodings, or the error
        end = time.monotonic() + MAX_SECONDS + n / 50_000
        most_memory = peak_memory() + MAX_MEMORY + 1000 * n

        def encode():
            try:
                results.append(self.backend.encode_batch_fast(texts, add_special_tokens=False))
            except BaseException as e:  # `tokenizers` raises nothing narrower
                results.append(e)

        # in a thread that can be left alone: a regular expression can run for ever
        thread = threading.Thread(target=encode, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.05)
            if time.monotonic() > end or peak_memory() > most_memory:
                fail(f'the tokenizer takes too much time or memory to encode {texts[0]!r:.80}; use another one')
        if isinstance(results[0], BaseException):  # a model without an unknown token
            fail(f'the tokenizer cannot encode these texts: {results[0]}')
        return [encoding.ids for encoding in results[0]]

    def encode_prefixes(self, texts):
        """Like encode_batch, for texts that a story follows: white space at the end is kept by every tokenizer.

        A tokenizer can join white space at the end with the story's first letter; common_length finds how many of the
        ids stand in front of a certain story.
        """
        texts = [unicodedata.normalize('NFC', text) for text in texts]
        encodings = self.backend.encode_batch([text + 'a' for text in texts], add_special_tokens=False)  # with offsets
        prefixes = []
        for text, encoding in zip(texts, encodings):
            prefixes.append([i for i, (_, end) in zip(encoding.ids, encoding.offsets) if end <= len(text)])
        return prefixes

    def encoder(self):
        """A function for a large corpus: texts -> (ids of all texts in a row: uint32, number of ids per text: int64).

        The ids are those of encode_batch. For most byte-level BPEs tiktoken finds them four times as fast.
        """
        fast = as_tiktoken(self)

        def encode(texts):
            texts = [unicodedata.normalize('NFC', text) for text in texts]
            if fast and max(map(len, texts)) <= MAX_TIKTOKEN_LENGTH:
                ids = [fast.encode_to_numpy(text) for text in texts]
            else:
                ids = self.encode_batch(texts)
            return np.concatenate(ids).astype(np.uint32), np.array([len(text_ids) for text_ids in ids])
        return encode

    def decode(self, ids):
        """ids -> text, without bos, eos and other special tokens."""
        return self.backend.decode(list(map(int, ids)), skip_special_tokens=True)

    def add_tokens(self, tokens):
        """Make each of these strings one token wherever it occurs in a text, such as '</h>' after a headline."""
        for token in tokens:
            check(token not in (self.bos_token, self.eos_token), f'special_tokens: {token} is already bos or eos')
            self.backend.add_tokens([AddedToken(token, normalized=False)])
        self.set_vocab_size()

    def to_str(self):
        """The text of a tokenizer.json."""
        return self.backend.to_str()

    def save(self, folder):
        """Write tokenizer.json, tokenizer_config.json for Transformers' AutoTokenizer, and perhaps tokenizer.model."""
        settings = {
            'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': self.bos_token, 'eos_token': self.eos_token}
        write_text(f'{folder}/tokenizer.json', self.to_str())
        write_json(f'{folder}/tokenizer_config.json', settings)
        if self.sentencepiece:
            with replacing(f'{folder}/tokenizer.model') as temporary:
                Path(temporary).write_bytes(self.sentencepiece)

    def state(self):
        """What a checkpoint stores: Tokenizer(**state) is an equal tokenizer."""
        return {'spec': self.to_str(), 'bos': self.bos_token, 'eos': self.eos_token}


def common_length(a, b):
    """How many ids two lists share at their beginning."""
    n = 0
    for left, right in zip(a, b):
        if left != right:
            break
        n += 1
    return n


def peak_memory():
    """Largest memory use of this process so far in bytes; 0 where the system does not say."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if resource else 0


# Load a tokenizer, decode each token, and encode these texts, and long texts of words and of equal characters.
TRY_OUT = """
import sys
sys.path[:] = sys.argv[1:]  # without the working directory
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
except ModuleNotFoundError:  # on Windows
    pass
from tokenizers import Tokenizer
try:
    tokenizer = Tokenizer.from_str(sys.stdin.buffer.read().decode())
except Exception:  # it is reported when it is loaded again
    sys.exit()
ids = range(1 + max(tokenizer.get_vocab().values()))[:2**22]
texts = tokenizer.decode_batch([[i] for i in ids])
words = ' '.join(' '.join(texts[::1 + len(texts) // 2000]).split())
characters = {text for text in texts if len(text) == 1}
long_texts = []
for character in sorted(characters)[:150]:
    long_texts += [character * 500, 50 * 'a' + character, words[:100] + character, words[-300:] + character]
for batch in [*([text] for text in long_texts), texts[::1 + len(texts) // 30000]]:
    try:
        tokenizer.encode_batch_fast(batch)
    except Exception:  # for example, it has no unknown token
        pass
"""


@functools.lru_cache(2)  # a tokenizer is often loaded, changed a little, and loaded again
def try_out(spec):
    """Raise ValueError for a tokenizer.json that takes too much time or memory.

    Its steps can multiply a text, and its regular expressions can run for ever, where nothing can stop them. So it is
    tried in a process of its own. Those of tokenizers trained here and of GPT-2 are known, and need no trial.
    """
    try:
        parts = json.loads(spec)
        known_decoder = parts['decoder'] is None or parts['decoder']['type'] == 'ByteLevel'
        if known_decoder and parts['normalizer'] in (None, {'type': 'NFC'}) and word_pattern(parts['pre_tokenizer']):
            return
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise ValueError(f'not a tokenizer.json: {e}') from None
    command = [sys.executable, '-c', TRY_OUT, *sys.path]
    env = os.environ | {'TOKENIZERS_PARALLELISM': 'false'}
    seconds = MAX_SECONDS + len(spec) / 200_000  # real ones are large, and slow to load
    with contextlib.suppress(subprocess.TimeoutExpired):
        if not subprocess.run(command, input=spec.encode(), env=env, capture_output=True, timeout=seconds).returncode:
            return
    raise ValueError('it takes too much time or memory to encode its own tokens')


# -----------------------------------------------------------------------------
# byte-level BPE


def train(texts, vocab_size, special_tokens=()):
    """Learn a byte-level BPE from an iterable of texts (Sennrich et al. 2016; bytes: Radford et al. 2019).

    special_tokens: strings that become one token each; vocab_size includes them.
    """
    check_vocab_size(vocab_size, 256 + 2 + len(special_tokens))
    pipeline = Pipeline(models.BPE())
    pipeline.normalizer = normalizers.NFC()
    pipeline.pre_tokenizer = words_as_bytes(WORDS)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special_tokens), special_tokens=['<s>', '</s>'],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    pipeline.train_from_iterator(without(special_tokens, texts), trainer)
    tokenizer = Tokenizer(pipeline.to_str(), '<s>', '</s>')
    tokenizer.add_tokens(special_tokens)
    return tokenizer


def train_sentencepiece(texts, vocab_size, special_tokens=()):
    """Learn a SentencePiece BPE with byte fallback from an iterable of texts, for programs that read a .model.

    save() writes it as tokenizer.model. tokenizer.json beside it encodes the same ids, of texts in NFC.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    check_vocab_size(vocab_size, 256 + 3 + len(special_tokens))
    taken = {'<unk>', '<s>', '</s>'} & set(special_tokens)
    check(not taken, f'special_tokens: a SentencePiece model has its own {", ".join(taken)}')
    model = io.BytesIO()
    errors = []
    sentencepiece.set_random_generator_seed(0)  # for the choice of lines
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=short_lines(texts, errors), model_writer=model, model_type='bpe', byte_fallback=True,
            user_defined_symbols=[token.replace(' ', '▁') for token in special_tokens], split_digits=True,
            vocab_size=vocab_size, hard_vocab_limit=False,  # False: fewer tokens if there is no more to learn
            normalization_rule_name='identity', remove_extra_whitespaces=False, add_dummy_prefix=False, minloglevel=2,
            input_sentence_size=2_000_000)  # lines that are kept in memory, a random choice if there are more
    except (RuntimeError, SystemError) as e:
        if not errors:
            reason = str(e).rpartition('] ')[2].partition(' or ')[0] or 'there are none'
            fail(f'SentencePiece cannot learn {vocab_size:,} tokens from these stories: {reason}')
    if errors:
        raise errors[0]
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    tokenizer = from_proto(proto, 'the new tokenizer')
    tokenizer.sentencepiece = model.getvalue()
    return tokenizer


def short_lines(texts, errors):
    """Yield the lines of the texts, long ones in parts: SentencePiece would skip them. An error goes into `errors`."""
    try:
        for text in texts:
            for line in text.split('\n'):
                yield from textwrap.wrap(line, 1000) if len(line) > 1000 else [line]
    except BaseException as e:  # also files.fail, which SentencePiece would take for an error of its own
        errors.append(e)
        raise


def check_vocab_size(vocab_size, smallest):
    check(smallest <= vocab_size <= MAX_VOCAB_SIZE,
          f'vocab_size is {vocab_size:,}; a tokenizer trained here has {smallest} to {MAX_VOCAB_SIZE:,} tokens')


def without(special_tokens, texts):
    """Yield the texts without these strings: no merge should be learned from them."""
    for text in texts:
        for token in special_tokens:
            text = text.replace(token, ' ')
        yield text


def words_as_bytes(pattern):
    """A pre-tokenizer: splits text into words by a regular expression, then turns each UTF-8 byte into a character."""
    split = pre_tokenizers.Split(Regex(pattern), 'isolated')
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_characters():
    """{character: byte} of a byte-level BPE. Printable bytes stand for themselves, the others follow from U+0100 on."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(character) for character in characters if ord(character) < 256]
    others = sorted(set(range(256)) - set(printable))
    return dict(zip(characters, printable + others))


def as_tiktoken(tokenizer):
    """A tiktoken.Encoding with the same ids; None if tiktoken's ids could differ.

    tiktoken joins any two neighbours that form a token, the lowest id first. `tokenizers` joins only the pairs in its
    list of merges, the first in the list first. Both give the same ids if the list is sorted by id, and if each token
    of the vocabulary is one token when its text is encoded alone: merges lead to it, and nothing gets in their way.
    """
    import tiktoken
    spec = json.loads(tokenizer.to_str())
    pattern = word_pattern(spec['pre_tokenizer'])
    if not pattern or spec['model']['type'] != 'BPE' or spec['normalizer'] not in (None, {'type': 'NFC'}):
        return None
    if not all(token['special'] for token in spec['added_tokens']):
        return None
    vocab = spec['model']['vocab']
    merges = [tuple(merge) for merge in spec['model']['merges']]
    merged_ids = [vocab[left + right] for left, right in merges]
    byte_of = byte_characters()
    if merged_ids != sorted(merged_ids) or not byte_of.keys() <= vocab.keys():
        return None

    bpe = models.BPE(vocab, merges)
    special = {token['content'] for token in spec['added_tokens']}
    ids = {}
    for token in vocab.keys() - special:
        if not byte_of.keys() >= set(token) or len(bpe.tokenize(token)) != 1:
            return None
        ids[bytes(byte_of[character] for character in token)] = vocab[token]
    return tiktoken.Encoding(name='', pat_str=pattern, mergeable_ranks=ids, special_tokens={})


def word_pattern(pre_tokenizer):
    """The regular expression by which a byte-level tokenizer splits words: ours or GPT-2's; None for others.

    pre_tokenizer: a value of tokenizer.json
    """
    from tiktoken_ext.openai_public import r50k_pat_str as gpt2_words
    known = [(words_as_bytes(WORDS), WORDS), (words_as_bytes(gpt2_words), gpt2_words),
             (pre_tokenizers.ByteLevel(add_prefix_space=False), gpt2_words)]
    for step, pattern in known:
        if json.loads(step.__getstate__()) == pre_tokenizer:
            return pattern
    return None


# -----------------------------------------------------------------------------
# other tokenizers


def load(name):
    """Load a tokenizer. Ends the script with one line if there is none.

    name: 'tiktoken:gpt2', a .json, .model, tok*.bin or model file, a folder that contains one, or a repository of the
    Hugging Face hub, such as 'sarvamai/sarvam-1' or 'sarvamai/sarvam-1@revision'.
    """
    if name.startswith('tiktoken:'):
        return from_tiktoken(name.removeprefix('tiktoken:'))
    path = find(name)
    if not os.path.exists(path):
        import huggingface_hub
        repository, revision = on_hub(name)
        try:
            path = huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=['tokenizer*', '*.model', *SETTINGS_FILES])
        except (OSError, ValueError) as e:
            fail(f'tokenizer {name!r}: {hub_problem(e)}')
    return from_folder(path) if os.path.isdir(path) else from_file(path)


def from_folder(folder):
    """The tokenizer of a Hugging Face folder, or of one of train.py's."""
    for file in 'tokenizer.json tokenizer.model spiece.model tokenizer.bin best.pt ckpt.pt'.split():
        path = f'{folder}/{file}'
        if os.path.exists(path):
            tokenizer = from_file(path)
            ends = [i for i in read_settings(folder)['ends'] if i in range(tokenizer.vocab_size)]
            tokenizer.ends = ends or tokenizer.ends
            return tokenizer
    fail(f'{folder}: contains no tokenizer.json and no tokenizer.model')


def from_file(path):
    """The tokenizer in a tokenizer.json, a SentencePiece .model, a tok*.bin, or in or beside a model's file."""
    name = os.path.basename(path)
    if name.endswith('.model') or fnmatch(name, 'tok*.bin'):
        return from_sentencepiece(path)
    if name.endswith('.pt'):
        from model import load_checkpoint
        checkpoint = load_checkpoint(path)
        if 'tokenizer' in checkpoint:
            return from_checkpoint(checkpoint, path)
    if name.endswith(('.pt', '.bin')):
        return from_file(find_beside(path))
    return from_json(path)


def from_checkpoint(checkpoint, path):
    """The tokenizer in a checkpoint of train.py."""
    try:
        return Tokenizer(**checkpoint['tokenizer'])
    except (TypeError, ValueError) as e:
        fail(f'{path}: its tokenizer is broken: {" ".join(str(e).split()):.200}')


def hub_problem(error):
    """Why nothing came from the Hugging Face hub for a name that is not here."""
    reached = getattr(error, 'response', None) is not None or not isinstance(error, OSError)
    where = 'not on the Hugging Face hub' if reached else 'the Hugging Face hub could not be reached'
    return f'no such file or folder here, and {where} ({type(error).__name__})'


def find_beside(path, n_tokens=0):
    """The file of the tokenizer in the folder of a model's file. nanoGPT and llama2.c store it apart from the model.

    n_tokens: of the model, for the advice if there is none.
    """
    for pattern in ('tokenizer.json', 'tok*.bin', '*.model'):
        for beside in sorted(Path(path).parent.glob(pattern)):
            return str(beside)
    if 0 < n_tokens < 256:
        fail(f'{path} is a model of {n_tokens} characters. nanoGPT stores them in meta.pkl, which can contain code and '
             'is not read; train on the same texts with prepare.py and train.py')
    usual = 'tiktoken:gpt2' if n_tokens in (50257, 50304) else '…'
    fail(f'{path} contains no tokenizer; put the tokenizer.json, tokenizer.bin or .model of its training beside it, or '
         f'name it with --tokenizer={usual} (sample.py and export.py)')


def read_bytes(path):
    """The content of a file of a tokenizer, or of settings. Raises ValueError if it is far too large for that."""
    size = os.path.getsize(path)
    if size > MAX_FILE_SIZE:
        raise ValueError(f'it has {size:,} bytes, and such files have at most {MAX_FILE_SIZE:,}')
    return Path(path).read_bytes()


def read_json(path):
    """The dict in a .json file."""
    try:
        content = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as e:
        fail(f'{path} could not be read: {e}')
    if not isinstance(content, dict):
        fail(f'{path} does not contain a dict')
    return content


# what they say of bos and eos: a later file counts more
SETTINGS_FILES = 'config.json generation_config.json special_tokens_map.json tokenizer_config.json'.split()


def read_settings(folder):
    """What the settings files of a Hugging Face folder say, a dict without nulls. 'ends': the ids that end a text."""
    settings = {}
    for file in SETTINGS_FILES:
        path = os.path.join(folder, file)
        if os.path.exists(path):
            settings |= {key: value for key, value in read_json(path).items() if value is not None}
    for key in ('bos_token', 'eos_token'):
        token = settings.get(key, '')
        settings[key] = token.get('content', '') if isinstance(token, dict) else token
    ends = settings.get('eos_token_id', [])
    settings['ends'] = ends if isinstance(ends, list) else [ends]
    return settings


def from_json(path):
    """A tokenizer.json. The settings beside it name its bos and eos."""
    settings = read_settings(os.path.dirname(path))
    try:
        spec = read_bytes(path).decode()
        eos = settings['eos_token']
        if not eos:
            added = json.loads(spec)['added_tokens']
            eos = next((token['content'] for token in added if token['id'] in settings['ends']), '')
        return Tokenizer(spec, settings['bos_token'], eos)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
        fail(f'{path}: not a usable tokenizer.json ({e})')


def from_tiktoken(name):
    """One of tiktoken's encodings, such as gpt2, with the same ids. <|endoftext|> is both bos and eos."""
    import tiktoken
    from transformers.convert_slow_tokenizer import TikTokenConverter
    try:
        encoding = tiktoken.get_encoding(name)
    except ValueError:
        fail(f'tiktoken has no encoding {name!r}, only {", ".join(tiktoken.list_encoding_names())}')
    except OSError as e:
        fail(f'tiktoken could not download {name!r} ({type(e).__name__}); TIKTOKEN_CACHE_DIR can name a folder with it')
    converter = TikTokenConverter(pattern=encoding._pat_str, extra_special_tokens=encoding._special_tokens)
    converter.load_tiktoken_bpe = lambda path: encoding._mergeable_ranks  # from memory instead of a file
    return Tokenizer(converter.converted().to_str(), '<|endoftext|>', '<|endoftext|>')


def from_sentencepiece(path):
    """A SentencePiece .model, BPE or unigram, or llama2.c's tokenizer.bin."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        data = read_bytes(path)
        if path.endswith('.bin'):
            read_llama2c(data, proto)
        else:
            proto.ParseFromString(data)
    except (DecodeError, struct.error, ValueError, IndexError) as e:
        fail(f'{path}: damaged, or not a SentencePiece model or tokenizer.bin of llama2.c, or from a byte-level BPE, '
             f'which only run.c can read ({e})')
    return from_proto(proto, path)


def from_proto(proto, path):
    """A SentencePiece ModelProto as a pipeline with the same ids. path: for messages.

    The pipeline does what sentencepiece_model.proto specifies: normalize, put a space before the text, match
    user-defined symbols first, use bytes for unknown characters. One difference remains: a text that begins with a
    user-defined symbol gets no space before it.
    """
    pipeline = Pipeline(sentencepiece_vocabulary(proto, path))
    settings = proto.normalizer_spec
    if proto.trainer_spec.treat_whitespace_as_suffix or not settings.escape_whitespaces:
        fail(f'{path}: a SentencePiece model that puts spaces behind words, or leaves them out, cannot be used')
    steps = []
    if settings.precompiled_charsmap:
        steps.append(normalizers.Precompiled(settings.precompiled_charsmap))
    if settings.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(' {2,}'), ' '), normalizers.Strip()]
    # Metaspace adds no space to a text that begins with one. Prepend does, but also before user-defined symbols.
    prepend_scheme = 'never'
    if settings.add_dummy_prefix and settings.remove_extra_whitespaces:
        prepend_scheme = 'first'
    elif settings.add_dummy_prefix:
        steps.append(normalizers.Prepend('▁'))
    steps.append(normalizers.Replace(' ', '▁'))  # here, as user-defined symbols are matched before the pre-tokenizer
    pipeline.normalizer = normalizers.Sequence(steps)
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)

    decoder = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
    if settings.add_dummy_prefix:
        decoder.append(decoders.Strip(' ', 1, 0))
    pipeline.decoder = decoders.Sequence(decoder)

    for piece in proto.pieces:
        if piece.type in (piece.UNKNOWN, piece.CONTROL):
            pipeline.add_special_tokens([piece.piece])
        if piece.type == piece.USER_DEFINED:
            pipeline.add_tokens([piece.piece])
    return Tokenizer(pipeline.to_str(), proto.trainer_spec.bos_piece, proto.trainer_spec.eos_piece)


def read_llama2c(data, proto):
    """Read the bytes of a tokenizer.bin of llama2.c, a SentencePiece BPE without its settings, into a ModelProto.

    They are the length of the longest piece (int32), then score (float32), length (int32) and bytes of each piece.
    """
    at = 4
    while at < len(data):
        score, length = struct.unpack_from('<fi', data, at)
        piece, = struct.unpack_from(f'{length}s', data, at + 8)
        proto.pieces.add(score=score, piece=piece.decode().replace(' ', '▁'))
        at += 8 + length
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    if proto.pieces[258].piece != '<0xFF>':  # b + 3 is byte b
        raise ValueError('its tokens are not those of a SentencePiece model')
    for i, piece in enumerate(proto.pieces[:259]):
        piece.type = piece.BYTE
        if i < 3:
            piece.type, piece.piece = piece.CONTROL, ('<unk>', '<s>', '</s>')[i]


def sentencepiece_vocabulary(proto, path):
    """The tokens and scores of a SentencePiece model, as a model of `tokenizers`."""
    from transformers.convert_slow_tokenizer import generate_merges
    trainer = proto.trainer_spec
    if trainer.model_type == trainer.UNIGRAM:
        pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        return models.Unigram(pieces, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    if trainer.model_type != trainer.BPE:
        fail(f'{path}: a SentencePiece model of words or characters; only BPE and unigram models can be used')
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    if sum(len(piece) ** 2 for piece in ids) > 2**28:  # generate_merges() looks up all splits of each piece
        fail(f'{path}: its pieces are too long')
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = generate_merges(ids, scores)
    return models.BPE(ids, merges, unk_token=trainer.unk_piece, fuse_unk=True, byte_fallback=trainer.byte_fallback)


# -----------------------------------------------------------------------------
# trimming


def trim(tokenizer, used_ids):
    """Remove the tokens that a corpus does not use -> (smaller Tokenizer, new ids).

    used_ids: the ids that the corpus contains
    new ids: int64, (old vocab_size,): the new id of each old id, -1 where the token is removed

    The corpus is encoded into the same tokens as before, and any other text can still be encoded. bos, eos and the
    tokens that encode what is unknown stay, other added tokens only where they are used. In a BPE, the tokens on the
    way to a used token stay too: a merge is removed only with one of its three tokens, so the merges that happened
    still happen in the same order. In a unigram model, the best path is still the best among fewer.
    """
    spec = json.loads(tokenizer.to_str())
    model = spec['model']
    old_ids = tokenizer.backend.get_vocab(with_added_tokens=True)
    used_ids = set(used_ids)
    keep = {token for token, i in old_ids.items() if i in used_ids}
    keep |= {tokenizer.bos_token, tokenizer.eos_token} | tokens_for_unknown_text(model, old_ids)
    if model['type'] == 'BPE':
        trim_merges(model, keep)
    if model['type'] == 'Unigram':
        trim_unigram(model, keep)

    # a pipeline gives added tokens that are not in its model's vocabulary the ids behind it
    vocab = tokenizer.backend.get_vocab(with_added_tokens=False)
    tokens = sorted(keep, key=lambda token: (token not in vocab, old_ids[token]))
    if len(tokens) > MAX_VOCAB_SIZE:
        fail(f'these stories need {len(tokens):,} tokens of this tokenizer and uint16 holds {MAX_VOCAB_SIZE:,}: '
             'train one (--tokenizer=train), use a smaller one, or prepare fewer languages together')
    new_ids = np.full(tokenizer.vocab_size, -1)
    new_ids[[old_ids[token] for token in tokens]] = range(len(tokens))
    ids = {token: i for i, token in enumerate(tokens)}
    if model['type'] != 'Unigram':
        model['vocab'] = {token: ids[token] for token in model['vocab'] if token in keep}
    spec['added_tokens'] = [token for token in spec['added_tokens'] if token['content'] in keep]
    for token in spec['added_tokens']:
        token['id'] = ids[token['content']]
    return Tokenizer(json.dumps(spec, ensure_ascii=False), tokenizer.bos_token, tokenizer.eos_token), new_ids


def tokens_for_unknown_text(model, ids):
    """The tokens that encode what no other token does: all bytes, else all single characters; and unk."""
    if model.get('byte_fallback'):
        tokens = {f'<0x{byte:02X}>' for byte in range(256)}
    else:
        prefix = model.get('continuing_subword_prefix') or ''  # '##' in a WordPiece model
        tokens = {token for token in ids if len(token.removeprefix(prefix)) == 1}
    return ids.keys() & {*tokens, model.get('unk_token')}


def trim_merges(model, keep):
    """Remove the merges of a BPE that `keep` does not need. Adds the tokens on the way to those in `keep`."""
    rank = {(left, right): i for i, (left, right) in enumerate(model['merges'])}
    for token in list(keep):
        keep |= tokens_on_the_way(token, rank)
    model['merges'] = [(left, right) for left, right in rank if {left, right, left + right} <= keep]


def tokens_on_the_way(token, rank):
    """All tokens that BPE forms on the way from characters to `token`; none if its merges do not lead there."""
    parts = list(token)
    passed = set(token)
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        first = min(pairs, key=lambda pair: rank.get(pair, len(rank)))
        if first not in rank:
            return set()
        i = pairs.index(first)
        parts[i:i + 2] = [''.join(first)]
        passed.add(parts[i])
    return passed


def trim_unigram(model, keep):
    """Remove the tokens of a unigram model that are not in `keep`. Adds unk and the least likely token to `keep`.

    An unknown character scores a fixed amount below the least likely token.
    """
    least_likely, _ = min(model['vocab'], key=lambda pair: pair[1])
    unk, _ = model['vocab'][model['unk_id']]
    keep |= {least_likely, unk}
    model['vocab'] = [pair for pair in model['vocab'] if pair[0] in keep]
    model['unk_id'] = [token for token, _ in model['vocab']].index(unk)
