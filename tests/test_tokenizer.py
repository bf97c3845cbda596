"""tokenizer.py: whatever a tokenizer comes from, its ids are the original's, text comes back, and trimming changes neither."""

import itertools
import json
import os
import random
import unicodedata

import numpy as np
import pytest
from conftest import PROJECT, Project

import tokenizer

SHARED = PROJECT.parent / 'shared' / 'data'
NASTY = [
    '', ' ', '  ', '\n', ' \n\t\r\n ', 'a', ' a', 'a ', '  two  spaces  ', '\x00\x01\x1f\x7f', '\ufeff', '\u200b\u2028\u2029\xa0\u3000',
    '👩‍👩‍👧‍👦 🇮🇳🏳️‍🌈👍🏽', 'क्‍ष क्‌ष', 'कखगabcабвあ漢字한국عربי', 'ﷺ', 'Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!', '12345 ६७८९ ½ Ⅷ',
    '<s>', '</s>', '<|endoftext|>', '<0x41>', '<unk>', '▁a▁', 'Ġ', '“नमस्ते!”', "don't", 'it’s', '\U0010ffff\ue000', '𝒳𠜎']


def random_texts(n, seed=1):
    """Strings of any characters but surrogates, NFC."""
    rng = random.Random(seed)
    ranges = [(0, 0x80), (0x80, 0x300), (0x900, 0x980), (0x980, 0xa00), (0x2000, 0x2070), (0x3040, 0x3100), (0x1f300, 0x1f700), (0, 0xd800), (0xe000, 0x110000)]

    def text():
        pick = [rng.choice(ranges) for _ in range(rng.randrange(4))] or [(0x20, 0x7f)]
        return ''.join(chr(rng.randrange(*rng.choice(pick))) for _ in range(rng.randrange(40)))
    return [unicodedata.normalize('NFC', text()) for _ in range(n)]


@pytest.fixture(scope='module')
def stories(tmp_path_factory):
    """400 Hindi and 200 English stories that the grammar wrote."""
    project = Project(tmp_path_factory.mktemp('stories'))
    texts = []
    for language, total in (('hindi', 400), ('english', 200)):
        project.run('generate_data.py', f'--language={language}', f'--total={total}', '--out=s.jsonl')
        texts += [row['text'] for row in project.jsonl('s.jsonl')]
        (project.path / 's.jsonl').unlink()
    return texts


@pytest.fixture(scope='module')
def bpe(stories):
    return tokenizer.train(stories, 3000)


def sentencepiece_model(folder, stories, **options):
    sentencepiece = pytest.importorskip('sentencepiece')
    pytest.importorskip('google.protobuf')
    prefix = str(folder / 'sp')
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=(line for story in stories for line in story.split('\n') if line), model_prefix=prefix,
                                             num_threads=1, minloglevel=2, **options)
    return prefix + '.model', sentencepiece.SentencePieceProcessor(model_file=prefix + '.model')


SENTENCEPIECE = {
    'bpe': dict(model_type='bpe', byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False, vocab_size=1200),
    'unigram': dict(model_type='unigram', vocab_size=1000),
    'symbols': dict(model_type='bpe', normalization_rule_name='nmt_nfkc', user_defined_symbols=['</h>', '<x>'], vocab_size=900)}


# -----------------------------------------------------------------------------
# trained here

@pytest.mark.parametrize('text', [*NASTY, '\n'.join(random_texts(300))])
def test_text_comes_back(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == unicodedata.normalize('NFC', text)
    assert all(0 <= i < bpe.vocab_size for i in ids) and not {bpe.bos, bpe.eos} & {*ids}


def test_random_text_comes_back(bpe):
    texts = random_texts(2000)
    ids = bpe.encode_batch(texts)
    assert [bpe.decode(i) for i in ids] == texts
    assert max(map(max, filter(None, ids))) < bpe.vocab_size
    assert ids[:50] == [bpe.encode(text) for text in texts[:50]]


def test_a_megabyte(bpe, stories):
    for text in ('\n\n'.join(stories)[:400_000], 'क' * 350_000, ' ' * 1_000_000):
        assert bpe.decode(bpe.encode(text)) == text


def test_decomposed_text_is_composed(bpe, stories):
    for text in (*stories[:20], *stories[-20:], 'café ड़ क़ é'):
        composed = unicodedata.normalize('NFC', text)
        decomposed = unicodedata.normalize('NFD', text)
        assert bpe.encode(decomposed) == bpe.encode(composed)
        assert bpe.decode(bpe.encode(decomposed)) == composed


def test_bos_and_eos_never_come_out_of_text(bpe):
    for text in ('<s>', '</s>', 'a</s>b <s> c', '<s><s>'):
        ids = bpe.encode(text)
        assert not {bpe.bos, bpe.eos} & {*ids} and bpe.decode(ids) == text
    assert bpe.decode([bpe.bos, *bpe.encode('एक दिन'), bpe.eos]) == 'एक दिन'


@pytest.mark.parametrize('word', ['किताब', 'लड़की', 'स्त्री', 'कुँआ', 'दुःख', 'রাজা', 'विद्यार्थी', 'क्‍षमा', 'l’été'.split('’')[1]])
def test_a_word_stays_whole(word):
    """Vowel signs and joiners belong to their letters: with nothing else to learn, a word becomes one token."""
    word = unicodedata.normalize('NFC', word)
    tok = tokenizer.train([f'{word} {word} {word}'] * 50, 400)
    assert len(tok.encode(word)) == 1
    assert len(tok.encode(f'{word} {word}')) == 2


def test_digits_go_one_by_one(bpe):
    assert len(bpe.encode('2024')) == 4 and len(bpe.encode('२०२४')) >= 4


def test_vocab_size(stories):
    for size in (258, 259, 500):
        tok = tokenizer.train(stories[:50], size)
        assert tok.vocab_size == size and tok.decode(tok.encode(stories[0])) == stories[0]
    for size in (0, 257, 65537):
        with pytest.raises(SystemExit, match=f'vocab_size is {size:,}; .* from 258 to 65,536'):
            tokenizer.train(stories[:50], size)
    few = tokenizer.train(['abc abc'], 1000)  # less to learn than asked for
    assert few.vocab_size < 300 and few.decode(few.encode('abc xyz')) == 'abc xyz'


def test_training_twice_gives_the_same(stories):
    assert tokenizer.train(stories[:100], 600).to_str() == tokenizer.train(stories[:100], 600).to_str()


def test_save_and_load(bpe, stories, tmp_path):
    bpe.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['tokenizer.json', 'tokenizer_config.json']
    for other in (tokenizer.load(str(tmp_path)), tokenizer.load(str(tmp_path / 'tokenizer.json')), tokenizer.Tokenizer(**bpe.state())):
        assert (other.bos, other.eos, other.vocab_size) == (bpe.bos, bpe.eos, bpe.vocab_size)
        assert other.encode_batch(stories[:50] + NASTY) == bpe.encode_batch(stories[:50] + NASTY)
        assert other.to_str() == bpe.to_str()


def test_what_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'bad.json').write_text('{"model": 1}', encoding='utf-8')
    (tmp_path / 'cut.json').write_text('{"mod', encoding='utf-8')
    (tmp_path / 'bad.model').write_bytes(b'\xff\xff\xffnot a model')
    for name, says in (('nowhere.json', 'no such'), ('./nowhere', 'no such'), (tmp_path / 'empty', 'neither'), (tmp_path / 'bad.json', 'not a tokenizer.json'),
                       (tmp_path / 'cut.json', 'not a tokenizer.json'), (tmp_path / 'bad.model', 'not a SentencePiece'), ('tiktoken:gpt9', 'gpt9')):
        with pytest.raises(SystemExit, match=says) as e:
            tokenizer.load(str(name))
        assert '\n' not in str(e.value)


def test_a_tokenizer_without_bos_and_eos_is_given_them(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    backend = Tokenizer(models.WordLevel({'a': 0, 'b': 1, '[UNK]': 2}, unk_token='[UNK]'))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / 'tokenizer.json'))
    tok = tokenizer.load(str(tmp_path))
    assert {tok.bos, tok.eos} == {3, 4} and tok.vocab_size == 5 and tok.encode('a b c') == [0, 1, 2]


# -----------------------------------------------------------------------------
# SentencePiece

@pytest.mark.parametrize('kind', SENTENCEPIECE)
def test_sentencepiece(kind, stories, tmp_path):
    path, sp = sentencepiece_model(tmp_path, stories, **SENTENCEPIECE[kind])
    tok = tokenizer.load(path)
    assert (tok.bos, tok.eos, tok.vocab_size) == (sp.bos_id(), sp.eos_id(), sp.vocab_size())
    assert tok.encode_batch(stories) == sp.encode(stories)
    known = [ids for ids in sp.encode(stories) if sp.unk_id() not in ids]  # SentencePiece spells the unknown as ⁇
    assert len(known) > 300 and [tok.decode(ids) for ids in known] == sp.decode(known)
    others = ['unseen: Ωß漢🐘', 'x' * 50, 'a  b   c ', '12,5%']
    assert tok.encode_batch(others) == sp.encode(others)
    if kind == 'bpe':
        for text in stories[::10] + others:
            assert tok.decode(tok.encode(text)) == text
    if kind == 'symbols':
        text = 'a headline</h>and a story <x> here'
        assert tok.encode(text) == sp.encode(text) and sp.piece_to_id('</h>') in tok.encode(text)


def test_sentencepiece_without_bos_or_eos(stories, tmp_path):
    path, sp = sentencepiece_model(tmp_path, stories, **SENTENCEPIECE['bpe'] | {'bos_id': -1, 'eos_id': -1})
    tok = tokenizer.load(path)
    assert {tok.bos, tok.eos} == {sp.vocab_size(), sp.vocab_size() + 1}
    assert tok.encode_batch(stories[:50]) == sp.encode(stories[:50])


def test_sentencepiece_of_words_is_refused(stories, tmp_path):
    path, _ = sentencepiece_model(tmp_path, stories, model_type='word', vocab_size=100)
    with pytest.raises(SystemExit, match='only BPE and unigram'):
        tokenizer.load(path)


@pytest.mark.parametrize('name', ['llama2', 'tinynews8192'])
def test_real_sentencepiece_models(name, stories):
    path = SHARED / 'tokenizers' / f'{name}.model'
    if not path.exists():
        pytest.skip(f'{path} is not here')
    sentencepiece = pytest.importorskip('sentencepiece')
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tok = tokenizer.load(str(path))
    assert (tok.bos, tok.eos, tok.vocab_size) == (sp.bos_id(), sp.eos_id(), sp.vocab_size())
    theirs = sp.encode(stories)
    if name == 'tinynews8192':  # its quotation mark is a user-defined symbol, which gets no space at the beginning (from_sentencepiece tells)
        theirs = [ids[1:] if story.startswith('"') else ids for story, ids in zip(stories, theirs)]
    assert tok.encode_batch(stories) == theirs
    used = sorted({i for ids in tok.encode_batch(stories) for i in ids})
    small, new = tokenizer.trim(tok, used)
    assert small.encode_batch(stories) == [new[ids].tolist() for ids in tok.encode_batch(stories)]
    assert small.vocab_size < tok.vocab_size / 2


# -----------------------------------------------------------------------------
# tiktoken

def tiktoken_encoding(bpe):
    """A tiktoken.Encoding with the tokens of a byte-level BPE, in the order of its merges."""
    tiktoken = pytest.importorskip('tiktoken')
    from tiktoken_ext.openai_public import r50k_pat_str
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    byte_of = {c: b for b, c in bytes_to_unicode().items()}
    vocab = json.loads(bpe.to_str())['model']['vocab']
    learned = [token for token in sorted(vocab, key=vocab.get) if token not in ('<s>', '</s>')]
    ranks = {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(learned)}
    return tiktoken.Encoding('tiny', pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={'<|endoftext|>': len(ranks)})


@pytest.fixture
def tiny_tiktoken(bpe, monkeypatch):
    encoding = tiktoken_encoding(bpe)
    import tiktoken
    monkeypatch.setattr(tiktoken, 'get_encoding', lambda name: encoding)
    return encoding


def test_tiktoken(tiny_tiktoken, stories):
    tok = tokenizer.load('tiktoken:tiny')
    assert tok.bos == tok.eos == tiny_tiktoken.eot_token and tok.vocab_size == tiny_tiktoken.n_vocab
    texts = stories + [unicodedata.normalize('NFC', text) for text in NASTY] + random_texts(500)
    assert tok.encode_batch(texts) == [tiny_tiktoken.encode_ordinary(text) for text in texts]
    assert [tok.decode(ids) for ids in tok.encode_batch(texts)] == texts


def test_real_gpt2(stories, monkeypatch):
    tiktoken = pytest.importorskip('tiktoken')
    if 'TIKTOKEN_CACHE_DIR' not in os.environ:
        if not (SHARED / 'tiktoken_cache').exists():
            pytest.skip('no TIKTOKEN_CACHE_DIR')
        monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(SHARED / 'tiktoken_cache'))
    tok, gpt2 = tokenizer.load('tiktoken:gpt2'), tiktoken.get_encoding('gpt2')
    assert tok.bos == tok.eos == gpt2.eot_token == 50256 and tok.vocab_size == 50257
    texts = stories[::4] + [unicodedata.normalize('NFC', text) for text in NASTY] + random_texts(200)
    assert tok.encode_batch(texts) == [gpt2.encode_ordinary(text) for text in texts]


# -----------------------------------------------------------------------------
# trimming

@pytest.fixture(params=['trained', 'tiktoken', *SENTENCEPIECE])
def any_kind(request, bpe, stories, tmp_path):
    if request.param == 'trained':
        return bpe
    if request.param == 'tiktoken':
        request.getfixturevalue('tiny_tiktoken')
        return tokenizer.load('tiktoken:tiny')
    return tokenizer.load(sentencepiece_model(tmp_path, stories, **SENTENCEPIECE[request.param])[0])


@pytest.mark.parametrize('any_kind', ['trained', 'tiktoken', 'bpe'], indirect=True)
def test_a_corpus_is_encoded_as_its_texts_are(any_kind, stories, request):
    small, _ = tokenizer.trim(any_kind, {*itertools.chain.from_iterable(any_kind.encode_batch(stories[400:450]))})
    rng = random.Random(1)
    repeated = [''.join(rng.choice((' ', '  ', '\n', 'a', 'aa', 'aba', 'की', 'ा', '.')) * rng.randrange(9) for _ in range(9)) for _ in range(300)]
    texts = [*stories[::4], *(text for text in NASTY if '\0' not in text), *random_texts(300), *repeated]
    quick = {'trained', 'tiktoken'} & {request.node.callspec.params['any_kind']}
    for tok in (any_kind, small):
        assert bool(tok.as_tiktoken()) == bool(quick)
        for corpus in (texts, texts[:3], [''], [*texts[:9], 'a' * 30_000, '\0', ' ' * 30_000]):
            ids, lengths = tok.encoder()(corpus)
            assert [*map(len, tok.encode_batch(corpus))] == lengths.tolist() and [*itertools.chain.from_iterable(tok.encode_batch(corpus))] == ids.tolist()
    news = tokenizer.Tokenizer(**any_kind.state())
    news.add_tokens(['का'])
    ids, _ = news.encoder()(['एक का दो'])
    assert news.backend.token_to_id('का') in ids and ids.tolist() == news.encode('एक का दो')


@pytest.mark.parametrize('merges, texts', [
    (['b c', 'a b', 'ab c'], ['abc', 'ab', 'aabcc']),  # bc comes first, so abc never does, though a and bc stand side by side
    (['a b', 'ab c', 'b c'], ['abc', 'bc', 'bbc']),
    (['a a', 'aa a', 'aa aa'], ['a' * n for n in range(12)])])
@pytest.mark.parametrize('turned', [False, True])
def test_only_merges_join_tokens(merges, texts, turned):
    spec = json.loads(tokenizer.train(['x'], 258).to_str())
    merged = [merge.replace(' ', '') for merge in merges]
    spec['model']['merges'] = [merge.split() for merge in merges]
    spec['model']['vocab'] |= {token: 258 + i for i, token in enumerate(merged[::-1] if turned else merged)}
    tok = tokenizer.Tokenizer(json.dumps(spec), '<s>', '</s>')
    assert bool(tok.as_tiktoken()) != turned
    assert tok.encoder()(texts)[0].tolist() == [i for ids in tok.encode_batch(texts) for i in ids]


def test_trim(any_kind, stories, tmp_path, request):
    corpus, full = stories[400:450], any_kind
    used = sorted({*itertools.chain.from_iterable(full.encode_batch(corpus))})
    small, new = tokenizer.trim(full, used)
    assert new.shape == (full.vocab_size,) and small.vocab_size < full.vocab_size
    assert sorted(new[new >= 0]) == list(range(small.vocab_size)) and (new[used] >= 0).all()
    assert sorted(small.backend.get_vocab().values()) == list(range(small.vocab_size))
    assert (small.bos, small.eos) == (new[full.bos], new[full.eos])
    assert small.encode_batch(corpus) == [new[ids].tolist() for ids in full.encode_batch(corpus)]
    assert [small.decode(ids) for ids in small.encode_batch(corpus)] == [full.decode(ids) for ids in full.encode_batch(corpus)]

    if {'trained', 'tiktoken', 'bpe'} & {request.node.callspec.params['any_kind']}:  # those that can spell any byte
        others = stories[:50] + random_texts(300) + [unicodedata.normalize('NFC', text) for text in NASTY if '▁' not in text]
        for text in others:
            assert small.decode(small.encode(text)) == text
        assert max(itertools.chain.from_iterable(small.encode_batch(others))) < small.vocab_size

    small.save(tmp_path / 'small')
    again = tokenizer.load(str(tmp_path / 'small'))
    assert (again.bos, again.eos, again.to_str()) == (small.bos, small.eos, small.to_str())
    twice, new = tokenizer.trim(small, {*itertools.chain.from_iterable(small.encode_batch(corpus))})
    assert twice.vocab_size == small.vocab_size and (new == np.arange(small.vocab_size)).all()


def test_transformers_opens_the_folder(any_kind, stories, tmp_path):
    from transformers import AutoTokenizer
    full = any_kind
    small, _ = tokenizer.trim(full, {*itertools.chain.from_iterable(full.encode_batch(stories[:50]))})
    for tok in (full, small):
        tok.save(tmp_path / 'hf')
        theirs = AutoTokenizer.from_pretrained(tmp_path / 'hf')
        for prompt in ('Once upon a time', 'एक दिन', stories[0]):
            ids = theirs(prompt)['input_ids']
            assert ids == [tok.bos, *tok.encode(prompt)]
            assert theirs.decode(ids, skip_special_tokens=True) == tok.decode(ids)
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tok.bos, tok.eos)


def test_more_than_uint16_is_one_line():
    from tokenizers import Tokenizer, models, pre_tokenizers
    backend = Tokenizer(models.WordLevel({f'w{i}': i for i in range(70_000)} | {'[UNK]': 70_000}, unk_token='[UNK]'))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    full = tokenizer.Tokenizer(backend.to_str(), '<s>', '</s>')
    with pytest.raises(SystemExit, match=r'need 6[0-9],[0-9]{3} tokens .* 65,536: .*--tokenizer=train') as e:
        tokenizer.trim(full, range(66_000))
    assert '\n' not in str(e.value)
    small, new = tokenizer.trim(full, range(69_000, 69_100))
    assert small.vocab_size < 200 and small.encode('w69050 w69000') == new[[69050, 69000]].tolist()
