"""tokenizer.py: ids are those of the original tokenizer, text comes back, and trimming changes neither.

Tests of real tokenizers need TIKTOKEN_CACHE_DIR with the files of gpt2 and SENTENCEPIECE_MODELS with .model files.
"""

import json
import os
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT

import tokenizer

REAL_MODELS = sorted(Path(os.environ.get('SENTENCEPIECE_MODELS', 'none')).glob('*.model'))
NASTY = [
    '', ' ', '  ', '\n', ' \n\t\r\n ', 'a', ' a', 'a ', '  two  spaces  ', '\x00\x01\x1f\x7f', '\ufeff',
    '\u200b\u2028\xa0',
    '👩‍👩‍👧‍👦 🇮🇳🏳️‍🌈👍🏽', 'क्‍ष क्‌ष', 'कखगabcабвあ漢字한국עربי', 'ﷺ', 'Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A', '12345 ६७८९ ½ Ⅷ',
    '<s>', '</s>', 'a</s>b <s> c', '<|endoftext|>', '<0x41>', '<unk>', '▁a▁', 'Ġ', '“नमस्ते!”', "don't", 'it’s',
    '\U0010ffff\ue000',
]
RANGES = [  # of characters
    (0, 0x80), (0x80, 0x300), (0x900, 0xa00), (0x2000, 0x2070), (0x3040, 0x3100), (0x1f300, 0x1f700),
    (0xe000, 0x110000),
]
SENTENCEPIECE = {
    'bpe': dict(model_type='bpe', byte_fallback=True, normalization_rule_name='identity',
                remove_extra_whitespaces=False, vocab_size=1200),
    'unigram': dict(model_type='unigram', vocab_size=1000),
    'symbols': dict(model_type='bpe', normalization_rule_name='nmt_nfkc', user_defined_symbols=['</h>', '<x>'],
                    vocab_size=900),
}
KINDS = ['trained', 'tiktoken', *SENTENCEPIECE]


def random_texts(n):
    """NFC strings of random characters, most of them from one script."""
    rng = random.Random(1)
    texts = []
    for _ in range(n):
        low, high = rng.choice(RANGES)
        codes = [rng.randrange(low, high) for _ in range(rng.randrange(40))]
        codes += [rng.choice(b' aA1.\n') for _ in range(rng.randrange(9))]
        rng.shuffle(codes)
        texts.append(unicodedata.normalize('NFC', ''.join(map(chr, codes))))
    return texts


def flat(lists):
    return [item for inner in lists for item in inner]


@pytest.fixture(scope='module')
def stories():
    """400 Hindi and 200 English texts."""
    hindi = (PROJECT / 'data/hindi/prompts.txt').read_text(encoding='utf-8').splitlines()
    english = (PROJECT / 'data/english/prompts.txt').read_text(encoding='utf-8').splitlines()
    return hindi[:400] + english[:200]


@pytest.fixture(scope='module')
def bpe(stories):
    return tokenizer.train(stories, 3000)


def sentencepiece_model(folder, stories, **options):
    """Train a SentencePiece model -> (path, processor)."""
    sentencepiece = pytest.importorskip('sentencepiece')
    pytest.importorskip('google.protobuf')
    prefix = str(folder / 'sp')
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(stories), model_prefix=prefix, num_threads=1, minloglevel=2, **options)
    return f'{prefix}.model', sentencepiece.SentencePieceProcessor(model_file=f'{prefix}.model')


@pytest.fixture
def tiny_tiktoken(bpe, monkeypatch):
    """A tiktoken.Encoding with the tokens of `bpe`, which load('tiktoken:tiny') finds."""
    tiktoken = pytest.importorskip('tiktoken')
    from tiktoken_ext.openai_public import r50k_pat_str
    byte_of = tokenizer.byte_characters()
    vocab = json.loads(bpe.to_str())['model']['vocab']
    learned = [token for token in sorted(vocab, key=vocab.get) if token not in ('<s>', '</s>')]
    ranks = {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(learned)}
    encoding = tiktoken.Encoding(
        'tiny', pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={'<|endoftext|>': len(ranks)})
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: encoding)
    return encoding


@pytest.fixture(params=KINDS)
def any_kind(request, bpe, stories, tmp_path):
    if request.param == 'trained':
        return bpe
    if request.param == 'tiktoken':
        request.getfixturevalue('tiny_tiktoken')
        return tokenizer.load('tiktoken:tiny')
    return tokenizer.load(sentencepiece_model(tmp_path, stories, **SENTENCEPIECE[request.param])[0])


# -----------------------------------------------------------------------------
# trained here


def test_text_comes_back_without_bos_and_eos(bpe, stories):
    texts = [*NASTY, *random_texts(1000), *stories[:20], '\n\n'.join(stories), 'क' * 100_000, ' ' * 1_000_000]
    ids = bpe.encode_batch(texts)
    assert [bpe.decode(text_ids) for text_ids in ids] == [unicodedata.normalize('NFC', text) for text in texts]
    assert ids[:50] == [bpe.encode(text) for text in texts[:50]]
    used = set(flat(ids))
    assert max(used) < bpe.vocab_size and not used & {bpe.bos, bpe.eos}
    assert bpe.decode([bpe.bos, *bpe.encode('एक दिन'), bpe.eos]) == 'एक दिन'


@pytest.mark.parametrize('word', ['किताब', 'लड़की', 'स्त्री', 'कुँआ', 'दुःख', 'রাজা', 'विद्यार्थी', 'क्‍षमा', 'été'])
def test_a_word_stays_whole(word):
    """Vowel signs and joiners belong to their letters: a BPE that learns only this word has a token for it."""
    word = unicodedata.normalize('NFC', word)
    tok = tokenizer.train([f'{word} {word} {word}'] * 50, 400)
    assert len(tok.encode(word)) == 1
    assert len(tok.encode(f'{word} {word}')) == 2
    assert len(tok.encode('2024')) == 4


def test_vocab_size(stories, capsys):
    for size in (258, 500):
        tok = tokenizer.train(stories[:50], size)
        assert tok.vocab_size == size and tok.decode(tok.encode(stories[0])) == stories[0]
    assert tokenizer.train(['abc abc'], 1000).vocab_size < 300  # there is no more to learn
    for size in (257, 65537):
        with pytest.raises(SystemExit):
            tokenizer.train(stories[:50], size)
        assert f'vocab_size is {size:,}; a tokenizer trained here has 258 to 65,536 tokens' in capsys.readouterr().err


def test_special_tokens_are_one_token_each(stories):
    tok = tokenizer.train([f'{text}</h> {text}' for text in stories[:50]], 400, ['</h>'])
    assert tok.vocab_size == 400
    mark, = tok.encode('</h>')
    assert tok.encode('a</h> b').count(mark) == 1 and tok.decode([mark]) == '</h>'
    assert tok.encoder()(['a</h> b'])[0].tolist() == tok.encode('a</h> b')
    with pytest.raises(SystemExit):
        tok.add_tokens(['</s>'])


def test_save_and_load(bpe, stories, tmp_path):
    bpe.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['tokenizer.json', 'tokenizer_config.json']
    from_folder = tokenizer.load(str(tmp_path))
    from_file = tokenizer.load(str(tmp_path / 'tokenizer.json'))
    from_state = tokenizer.Tokenizer(**bpe.state())
    for tok in (from_folder, from_file, from_state):
        assert (tok.bos, tok.eos, tok.vocab_size, tok.to_str()) == (bpe.bos, bpe.eos, bpe.vocab_size, bpe.to_str())
        assert tok.encode_batch(stories[:50] + NASTY) == bpe.encode_batch(stories[:50] + NASTY)


# -----------------------------------------------------------------------------
# loading


def test_a_tokenizer_of_a_checkpoint(bpe, tmp_path):
    import torch
    torch.save({'tokenizer': bpe.state(), 'model': {}, 'model_args': {}}, tmp_path / 'best.pt')
    assert tokenizer.load(str(tmp_path)).state() == bpe.state()


@pytest.mark.parametrize('name, content, message', [
    ('nowhere.json', None, 'no such file or folder'),
    ('bad.json', b'{"model": 1}', 'not a usable tokenizer.json'),
    ('torn.json', b'{"mod', 'not a usable tokenizer.json'),
    ('latin.json', '{"é": 1}'.encode('latin-1'), 'not a usable tokenizer.json'),
    ('bad.model', b'\xff\xff\xffnot a model', 'not a SentencePiece model'),
    ('empty.pt', b'', 'empty.pt'),
    ('folder/x', b'', 'contains no tokenizer.json'),
    ('tiktoken:gpt9', None, 'no encoding'),
])
def test_what_cannot_be_loaded_ends_in_one_line(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=message) as stopped:
        tokenizer.load(name.removesuffix('/x'))
    assert '\n' not in str(stopped.value)


def words_tokenizer(vocab):
    """A tokenizer.json that knows nothing but whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    backend = Tokenizer(models.WordLevel(vocab, unk_token='[UNK]'))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend.to_str()


def test_missing_bos_and_eos_are_added(tmp_path):
    (tmp_path / 'tokenizer.json').write_text(words_tokenizer({'a': 0, 'b': 1, '[UNK]': 2}), encoding='utf-8')
    tok = tokenizer.load(str(tmp_path))
    assert (tok.bos, tok.eos, tok.vocab_size) == (3, 4, 5) and tok.encode('a b c') == [0, 1, 2]


@pytest.mark.parametrize('kind', SENTENCEPIECE)
def test_sentencepiece(kind, stories, tmp_path):
    path, sp = sentencepiece_model(tmp_path, stories, **SENTENCEPIECE[kind])
    tok = tokenizer.load(path)
    assert (tok.bos, tok.eos, tok.vocab_size) == (sp.bos_id(), sp.eos_id(), sp.vocab_size())
    texts = [*stories, 'unseen: Ωß漢🐘', 'x' * 50, 'a  b   c ', '12,5%', 'a headline</h>and a story <x> here']
    ids = sp.encode(texts)
    assert tok.encode_batch(texts) == ids
    known = [text_ids for text_ids in ids if sp.unk_id() not in text_ids]  # SentencePiece decodes the others to ⁇
    assert len(known) > 300 and [tok.decode(text_ids) for text_ids in known] == sp.decode(known)
    if kind == 'bpe':
        assert [tok.decode(text_ids) for text_ids in ids] == texts
    if kind == 'symbols':
        assert sp.piece_to_id('</h>') in ids[-1]


def test_a_sentencepiece_model_trained_here(stories, tmp_path):
    """Its .model and tokenizer.json give the same ids for any text, and every text comes back."""
    sentencepiece = pytest.importorskip('sentencepiece')
    texts = ['\n\n'.join(stories), 'a' * 9000, *[f'{text}</h> {text}, "' for text in stories]]
    tok = tokenizer.train_sentencepiece(texts, 1200, ['</h>', ', "'])
    tok.save(tmp_path)
    sp = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'tokenizer.model'))
    assert (tok.bos, tok.eos, tok.vocab_size) == (sp.bos_id(), sp.eos_id(), sp.vocab_size()) == (1, 2, 1200)
    texts += ['</h> first', ' space', *random_texts(300), *[unicodedata.normalize('NFC', text) for text in NASTY]]
    texts.remove('▁a▁')  # ▁ is SentencePiece's space
    again = tokenizer.load(str(tmp_path))
    ids = again.encode_batch(texts)
    assert ids == tok.encode_batch(texts) == sp.encode(texts)
    assert [again.decode(text_ids) for text_ids in ids] == texts
    assert tokenizer.train_sentencepiece(['abc abc'], 500).vocab_size < 300  # there is no more to learn


def test_sentencepiece_without_bos_and_eos(stories, tmp_path):
    path, sp = sentencepiece_model(tmp_path, stories, **SENTENCEPIECE['bpe'] | {'bos_id': -1, 'eos_id': -1})
    tok = tokenizer.load(path)
    assert (tok.bos, tok.eos) == (sp.vocab_size(), sp.vocab_size() + 1)
    assert tok.encode_batch(stories[:50]) == sp.encode(stories[:50])


@pytest.mark.parametrize('kind', ['unigram', 'words'])
def test_a_special_token_in_a_text_stays_text(kind, stories, tmp_path):
    """Also where the vocabulary contains it, and where the tokenizer is loaded again."""
    text = '<s> said </s> and [CLS] to <pad> twice <0x41>.'
    (tmp_path / 'tokenizer.json').write_text(words_tokenizer({'[CLS]': 0, '</s>': 1, '[UNK]': 2}), encoding='utf-8')
    if kind == 'unigram':
        options = dict(model_type='unigram', byte_fallback=True, vocab_size=1300, pad_id=3)
        path, _ = sentencepiece_model(tmp_path, [*stories, text], **options)
        tokenizer.load(path).save(tmp_path)
    spec = json.loads((tmp_path / 'tokenizer.json').read_text(encoding='utf-8'))
    spec['pre_tokenizer'] = {'type': 'WhitespaceSplit'} if kind == 'words' else spec['pre_tokenizer']
    tok = tokenizer.Tokenizer(json.dumps(spec), '[CLS]', '</s>')
    again = tokenizer.Tokenizer(**tok.state())
    assert again.state() == tok.state()
    tokens = {again.backend.id_to_token(i) for i in again.encode(text)}
    assert not tokens & {'<s>', '</s>', '[CLS]', '<pad>', '<0x41>'}
    assert kind == 'words' or again.decode(again.encode(text)) == text


@pytest.mark.parametrize('options, message', [
    ({'model_type': 'word', 'vocab_size': 100}, 'only BPE and unigram'),
    ({'treat_whitespace_as_suffix': True, 'vocab_size': 1000}, 'puts spaces behind words')])
def test_a_sentencepiece_model_of_another_kind_is_refused(stories, tmp_path, options, message):
    path, _ = sentencepiece_model(tmp_path, stories, **options)
    with pytest.raises(SystemExit, match=message):
        tokenizer.load(path)


@pytest.mark.slow
@pytest.mark.parametrize('path', REAL_MODELS, ids=lambda path: path.stem)
def test_real_sentencepiece_models(path, stories):
    sentencepiece = pytest.importorskip('sentencepiece')
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tok = tokenizer.load(str(path))
    texts = [text for text in stories if not text.startswith('"')]  # which is a user-defined symbol of TinyNews
    assert (tok.bos, tok.eos, tok.vocab_size) == (sp.bos_id(), sp.eos_id(), sp.vocab_size())
    ids = sp.encode(texts)
    assert tok.encode_batch(texts) == ids
    small, new_ids = tokenizer.trim(tok, set(flat(ids)))
    assert small.encode_batch(texts) == [new_ids[text_ids].tolist() for text_ids in ids]
    assert small.vocab_size < tok.vocab_size / 2


def test_tiktoken(tiny_tiktoken, stories):
    tok = tokenizer.load('tiktoken:tiny')
    assert tok.bos == tok.eos == tiny_tiktoken.eot_token and tok.vocab_size == tiny_tiktoken.n_vocab
    texts = [unicodedata.normalize('NFC', text) for text in [*stories, *NASTY, *random_texts(500)]]
    ids = tok.encode_batch(texts)
    assert ids == [tiny_tiktoken.encode_ordinary(text) for text in texts]
    assert [tok.decode(text_ids) for text_ids in ids] == texts


@pytest.mark.slow
@pytest.mark.skipif('TIKTOKEN_CACHE_DIR' not in os.environ, reason='TIKTOKEN_CACHE_DIR is not set')
def test_real_gpt2(stories):
    tiktoken = pytest.importorskip('tiktoken')
    tok = tokenizer.load('tiktoken:gpt2')
    gpt2 = tiktoken.get_encoding('gpt2')
    assert tok.bos == tok.eos == gpt2.eot_token == 50256 and tok.vocab_size == 50257
    texts = [unicodedata.normalize('NFC', text) for text in [*stories, *NASTY, *random_texts(200)]]
    assert tok.encode_batch(texts) == [gpt2.encode_ordinary(text) for text in texts]
    assert tokenizer.as_tiktoken(tok)


# -----------------------------------------------------------------------------
# the encoder of a corpus


@pytest.mark.parametrize('any_kind', ['trained', 'tiktoken', 'bpe'], indirect=True)
def test_a_corpus_is_encoded_like_its_texts(any_kind, stories, request):
    small, _ = tokenizer.trim(any_kind, set(flat(any_kind.encode_batch(stories[350:450]))))
    texts = [*stories[::4], *NASTY, *random_texts(300), *['a' * n for n in range(20)], *['aab ' * n for n in range(9)]]
    is_byte_level = request.node.callspec.params['any_kind'] != 'bpe'
    for tok in (any_kind, small):
        assert bool(tokenizer.as_tiktoken(tok)) == is_byte_level
        for corpus in (texts, [''], [*texts[:9], 'a' * 30_000, ' ' * 30_000]):
            ids, lengths = tok.encoder()(corpus)
            expected = tok.encode_batch(corpus)
            assert ids.tolist() == flat(expected) and ids.dtype == np.uint32
            assert lengths.tolist() == [len(text_ids) for text_ids in expected]


@pytest.mark.parametrize('merges, in_order, is_fast', [
    (['a b', 'ab c', 'b c'], True, True),
    (['a a', 'aa a', 'aa aa'], True, True),
    (['b c', 'a b', 'ab c'], True, False),  # bc is joined first, so abc never is, though a and bc are neighbours
    (['a b', 'ab c', 'b c'], False, False),  # the ids are in another order than the merges
])
def test_tiktoken_is_used_only_where_it_is_exact(merges, in_order, is_fast):
    spec = json.loads(tokenizer.train(['x'], 258).to_str())
    merged = [merge.replace(' ', '') for merge in merges]
    if not in_order:
        merged.reverse()
    spec['model']['merges'] = [merge.split() for merge in merges]
    for token in merged:
        spec['model']['vocab'][token] = len(spec['model']['vocab'])
    tok = tokenizer.Tokenizer(json.dumps(spec), '<s>', '</s>')
    assert bool(tokenizer.as_tiktoken(tok)) == is_fast
    texts = ['abc', 'ab', 'bc', 'aabcc', 'bbc', *['a' * n for n in range(12)]]
    assert tok.encoder()(texts)[0].tolist() == flat(tok.encode_batch(texts))


# -----------------------------------------------------------------------------
# trimming


def test_trim(any_kind, stories, tmp_path, request):
    corpus = stories[380:430]
    full_ids = any_kind.encode_batch(corpus)
    used = set(flat(full_ids))
    small, new_ids = tokenizer.trim(any_kind, used)
    assert small.vocab_size < any_kind.vocab_size and new_ids.shape == (any_kind.vocab_size,)
    assert sorted(new_ids[new_ids >= 0]) == sorted(small.backend.get_vocab().values()) == [*range(small.vocab_size)]
    assert (small.bos, small.eos) == (new_ids[any_kind.bos], new_ids[any_kind.eos])
    small_ids = small.encode_batch(corpus)
    assert small_ids == [new_ids[ids].tolist() for ids in full_ids]
    assert [small.decode(ids) for ids in small_ids] == [any_kind.decode(ids) for ids in full_ids]

    if request.node.callspec.params['any_kind'] in ('trained', 'tiktoken', 'bpe'):  # these can encode any byte
        for text in [*stories[:50], *random_texts(200)]:
            assert small.decode(small.encode(text)) == text

    small.save(tmp_path / 'small')
    again = tokenizer.load(str(tmp_path / 'small'))
    assert again.state() == small.state()
    twice, new_ids = tokenizer.trim(small, set(flat(small_ids)))
    assert twice.vocab_size == small.vocab_size and (new_ids == np.arange(small.vocab_size)).all()


@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
def test_trimming_removes_unused_added_tokens(kind, stories, tmp_path):
    """Used ones stay, and a text with an unused one is still encoded."""
    options = {'user_defined_symbols': ['</h>', '\n\n', *[f'<unused{i}>' for i in range(300)]], 'byte_fallback': True,
               'normalization_rule_name': 'identity',
               'remove_extra_whitespaces': False, 'add_dummy_prefix': False, 'vocab_size': 2000}
    full = tokenizer.load(sentencepiece_model(tmp_path, stories, model_type=kind, **options)[0])
    corpus = [f'Boats</h> {text}' for text in stories[:50]]
    full_ids = full.encode_batch(corpus)
    small, new_ids = tokenizer.trim(full, set(flat(full_ids)))
    assert small.encode_batch(corpus) == [new_ids[ids].tolist() for ids in full_ids]
    added = {token['content'] for token in json.loads(small.to_str())['added_tokens']}
    assert added == {'</h>', '<s>', '</s>', '<unk>'}
    assert (small.bos, small.eos, small.unk) == tuple(new_ids[[full.bos, full.eos, full.unk]])
    assert not any('unused' in token for token in small.backend.get_vocab())
    for text in ('a <unused7> b', 'two\n\nlines', 'ठ Ω 漢'):
        assert small.decode(small.encode(text)) == text


@pytest.mark.slow
def test_transformers_opens_the_folder(any_kind, stories, tmp_path):
    from transformers import AutoTokenizer
    small, _ = tokenizer.trim(any_kind, set(flat(any_kind.encode_batch(stories[:50]))))
    for tok in (any_kind, small):
        tok.save(tmp_path / 'hf')
        auto = AutoTokenizer.from_pretrained(tmp_path / 'hf')
        assert (auto.bos_token_id, auto.eos_token_id) == (tok.bos, tok.eos)
        for prompt in ('Once upon a time', 'एक दिन', stories[0]):
            ids = auto(prompt)['input_ids']
            assert ids == [tok.bos, *tok.encode(prompt)]
            assert auto.decode(ids, skip_special_tokens=True) == tok.decode(ids)


def test_more_tokens_than_uint16_holds():
    vocab = {f'w{i}': i for i in range(70_000)} | {'[UNK]': 70_000}
    full = tokenizer.Tokenizer(words_tokenizer(vocab))
    with pytest.raises(SystemExit, match=r'need 66,003 tokens .* 65,536: .*--tokenizer=train'):
        tokenizer.trim(full, range(66_000))
    small, new_ids = tokenizer.trim(full, range(69_000, 69_100))
    assert small.vocab_size < 200 and small.encode('w69050 w69000') == new_ids[[69050, 69000]].tolist()


def test_a_vocabulary_with_gaps_is_trimmed():
    """bos and eos are added in a gap; a model's words follow."""
    full = tokenizer.Tokenizer(words_tokenizer({'aa': 0, 'bb': 1, '[UNK]': 2, 'yy': 8, 'zz': 9}))
    assert (full.bos, full.eos) == (5, 6)
    small, new_ids = tokenizer.trim(full, full.encode('aa zz'))
    assert small.encode('aa zz yy') == [*new_ids[full.encode('aa zz')], small.unk] and small.vocab_size == 5
    assert (small.bos, small.eos) == tuple(new_ids[[5, 6]]) and tokenizer.Tokenizer(**small.state()).bos == small.bos


# -----------------------------------------------------------------------------
# hostile tokenizers


def repeated(step, n):
    """A sequence of n equal steps, as a normalizer or decoder of tokenizer.json."""
    kind = 'decoders' if step.get('decoder') else 'normalizers'
    step = {key: value for key, value in step.items() if key != 'decoder'}
    return {'type': 'Sequence', kind: [step] * n}


def replace(pattern, content):
    return {'type': 'Replace', 'pattern': pattern, 'content': content}


def split(pattern):
    """Splits words by a regular expression, then turns bytes into characters."""
    words = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
    as_bytes = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
    return {'type': 'Sequence', 'pretokenizers': [words, as_bytes]}


@pytest.mark.parametrize('change', [
    pytest.param({'normalizer': repeated(replace({'String': 'e'}, 'ee'), 40)}, marks=pytest.mark.slow),
    {'normalizer': repeated(replace({'Regex': '.'}, 'xyxyxyxyxy'), 12)},
    {'normalizer': repeated({'type': 'Prepend', 'prepend': 'a' * 10**6}, 90)},
    pytest.param({'decoder': repeated(replace({'String': 'b'}, 'bbb') | {'decoder': True}, 30)},
                 marks=pytest.mark.slow),
    {'normalizer': replace({'Regex': r'(\w+\s?)*[!]{9}'}, '')},
    {'pre_tokenizer': split(r'(a|aa)+$|(?:[\p{L}\p{M}]+ ?)*!!')},
    {'pre_tokenizer': split(r'(?:\w+\w*)*[~]{2}')}])
def test_a_tokenizer_that_needs_too_much_time_or_memory(tmp_path, change, capfd):
    spec = json.loads(tokenizer.train(['the dogs and cats ran home!'] * 9, 300).to_str())
    path = tmp_path / 'tokenizer.json'
    path.write_text(json.dumps(spec), encoding='utf-8')
    tokenizer.load(str(path))
    path.write_text(json.dumps(spec | change), encoding='utf-8')
    with pytest.raises(SystemExit, match='too much time or memory'):
        tokenizer.load(str(path))
    assert capfd.readouterr().err == ''  # the library prints its own errors


def test_a_text_that_needs_too_much_time_or_memory(project):
    """A step that only one rare text sets off. In a process of its own, which ends the thread that goes on encoding."""
    spec = json.loads(tokenizer.train(['abc'], 300).to_str())
    spec['normalizer'] = repeated(replace({'String': 'ଝଝ'}, 'ଝଝଝଝ'), 40)
    (project.path / 'spec.json').write_text(json.dumps(spec), encoding='utf-8')
    line = project.refuses('-c', """
import tokenizer
tokenizer.MAX_MEMORY = 2**28
with open('spec.json', encoding='utf-8') as f:
    tok = tokenizer.Tokenizer(f.read())
assert tok.decode(tok.encode('ଝ')) == 'ଝ'
tok.encode('ଝଝ')
""")
    assert 'too much time or memory' in line


@pytest.mark.parametrize('change, message', [
    ({'zz': 5}, 'the same id'), ({'zz': 2**32 - 1}, 'go up to'), ({'z' * 5000: 300}, 'more than 4,096 characters')])
def test_impossible_vocabularies(change, message):
    spec = json.loads(tokenizer.train(['abc'], 300).to_str())
    spec['model']['vocab'] |= change
    with pytest.raises(ValueError, match=message):
        tokenizer.Tokenizer(json.dumps(spec))


@pytest.mark.parametrize('content', ['[' * 10**6, '{"normalizer": ' * 10**5, '{}', '[]', '5', '{"decoder": 1}'])
def test_a_tokenizer_json_of_another_form(tmp_path, content):
    (tmp_path / 'tokenizer.json').write_text(content)
    with pytest.raises(SystemExit, match='not a usable tokenizer'):
        tokenizer.load(str(tmp_path))


def test_files_that_are_too_large(tmp_path):
    for name in ('tokenizer.json', 'tokenizer.model', 'tok.bin'):
        with open(tmp_path / name, 'wb') as f:
            f.truncate(2**40)  # takes no space
        with pytest.raises(SystemExit, match='at most 104,857,600'):
            tokenizer.load(str(tmp_path / name))


def test_a_tokenizer_with_thousands_of_added_tokens_is_trimmed(tmp_path):
    """As gemma-3's: special ones and ordinary ones. bos, eos, unk and those in the corpus stay."""
    spec = json.loads(tokenizer.train(['abc abd'], 300).to_str())
    token = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
    for i in range(6000):
        spec['model']['vocab'][f'<unused{i}>'] = 300 + i
        spec['added_tokens'].append(token | {'id': 300 + i, 'content': f'<unused{i}>', 'special': i % 2 == 0})
    full = tokenizer.Tokenizer(json.dumps(spec), '<s>', '</s>')
    ids = full.encode('abc <unused7> abd')
    small, new_ids = tokenizer.trim(full, ids)
    added = {token['content'] for token in json.loads(small.to_str())['added_tokens']}
    assert added == {'<s>', '</s>', '<unused7>'} and small.vocab_size < 300
    assert small.encode('abc <unused7> abd') == new_ids[ids].tolist()
    assert small.decode(small.encode('<unused8> <unused9>')) == '<unused8> <unused9>'
