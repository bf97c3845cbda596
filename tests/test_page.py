"""The page of export.py --format=page in a real browser: the stories of PyTorch, any tokenizer, hostile texts."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from conftest import PROJECT, Project
from test_export import SHAPES, random_checkpoint
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, pre_tokenizers, trainers

from model import GPT, GPTConfig, generate, save_checkpoint
from tokenizer import Tokenizer
from tokenizer import train as train_tokenizer

OPENINGS = ['', 'एक दिन', '“मैं रवि हूँ,” उसने कहा।', 'Once upon a time', 'राजा\n\nक\u200d्ष 12 😀']
TEXTS = [*OPENINGS, "I'll  go, don't!\n\n he said\t7,000 times ", 'cafe\u0301 Ａ½', 'a\u00a0b\ufeffc\u0085d\u200b',
         '  <s> </s> ', 'क़ािाे ০১২ ಕನ್ನಡ', '</h> a</h>b', '😀' * 3, 'x' * 60, '।।। ...--- \n \n']
PAGE_SHAPES = {
    name: SHAPES[name] for name in ('llama', 'llama with biases', 'qwen3 with relu2', 'gpt2', 'gpt2 of nanogpt')}
PAGE_SHAPES['layernorm with rope'] = {'norm': 'layernorm', 'qk_norm': True, 'n_kv_head': 2, 'mlp': 'gelu_new'}
pytestmark = pytest.mark.slow
Keys = pytest.importorskip('selenium.webdriver.common.keys').Keys
WebDriverWait = pytest.importorskip('selenium.webdriver.support.wait').WebDriverWait


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp('project'))
    (project.path / 'out').mkdir()
    return project


@pytest.fixture(scope='module')
def texts():
    """Hindi and English lines to learn tokens from."""
    files = [PROJECT / 'data' / language / 'prompts.txt' for language in ('hindi', 'english')]
    return [line for file in files for line in file.read_text(encoding='utf-8').splitlines()]


@pytest.fixture(scope='module')
def tokenizer(texts):
    return train_tokenizer(texts, 600, ['</h>'])


def export_page(project, folder, *arguments):
    """Run export.py -> the path of story.html."""
    project.run('export.py', f'--out_dir={folder}', '--format=page', '--examples=0', *arguments)
    return folder / 'page/story.html'


def page_data(path):
    """The data in a page."""
    return json.loads(re.search('id="data">(.*?)</script>', path.read_text(encoding='utf-8'), re.DOTALL)[1])


def dequantized(path):
    """The model in a page, in float32."""
    data = page_data(path)
    content = base64.b64decode(data['weights'])
    state, at = {}, 0
    for name, rows, columns in data['tensors']:
        weight = np.frombuffer(content, '<f4', rows, at)
        at += 4 * rows
        if columns:
            weight = weight[:, None] * np.frombuffer(content, 'i1', rows * columns, at).reshape(rows, columns)
            at += rows * columns
        state[name] = torch.from_numpy(np.array(weight, np.float32))
    assert at == len(content)
    model = GPT(GPTConfig(**data['config']))
    model.load_state_dict(state, strict=not model.config.tie_weights)
    return model.eval()


class Page:
    """An open page."""

    def __init__(self, browser, path, width=1200):
        self.browser = browser
        screen = {'width': width, 'height': 800, 'deviceScaleFactor': 1, 'mobile': width < 500}
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
        browser.get(path.as_uri())
        self.wait('return document.body.dataset.ready')

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, script):
        WebDriverWait(self.browser, 300).until(lambda _: self.run(script))

    def find(self, selector):
        return self.browser.find_element('css selector', selector)

    def click(self, selector):
        self.run('document.querySelector(arguments[0]).click()', selector)

    def fill(self, **fields):
        for name, value in fields.items():
            self.run('document.forms[0][arguments[0]].value = arguments[1]', name, str(value))

    def write(self, **fields):
        """Generate a story with these settings -> what the page knows of it: prompt and tokens (ids), text."""
        self.fill(**fields)
        self.click('#write')
        return self.finished()

    def finished(self):
        self.wait('return document.body.dataset.busy === ""')
        return self.run('return {prompt: story.prompt, tokens: story.tokens, text: story.text}')


def assert_greedy(model, prompt, tokens, ends):
    """These tokens follow greedily in PyTorch too, up to a place where the two best logits are nearly equal."""
    ids = list(prompt)
    steps = generate(model, [ids], len(tokens), ends, temperature=0)
    for place, (token, [(_, expected)]) in enumerate(zip(tokens, steps, strict=True)):
        if token != expected:
            best = model(torch.tensor([ids]))[0, -1].topk(2).values
            assert best[0] - best[1] < 1e-3, place
            return
        ids.append(token)


# -----------------------------------------------------------------------------
# the same stories


@pytest.mark.parametrize('shape', PAGE_SHAPES)
def test_greedy_stories_are_those_of_pytorch(project, tokenizer, browser, shape):
    folder = random_checkpoint(project, tokenizer, **PAGE_SHAPES[shape])
    path = export_page(project, folder)
    model = dequantized(path)
    original = torch.load(folder / 'best.pt', weights_only=True)['model']
    for name, weight in model.state_dict().items():
        largest = original[name].abs().amax(-1, keepdim=True)
        assert (weight - original[name]).abs().le(largest / 250).all(), name
    page = Page(browser, path)
    for opening in OPENINGS:
        story = page.write(opening=opening, temperature=0, max_new_tokens=100)  # more than block_size
        assert story['prompt'] == [tokenizer.bos, *tokenizer.encode(opening)]
        assert_greedy(model, story['prompt'], story['tokens'], tokenizer.ends)
        assert story['text'] == tokenizer.decode(story['prompt'] + story['tokens']).lstrip()
    assert browser.get_log('browser') == []


def byte_level(texts, *steps):
    """A byte-level BPE with these pre-tokenizers."""
    pipeline = Pipeline(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    pipeline.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    pipeline.train_from_iterator(texts, trainer)
    return Tokenizer(pipeline.to_str())


LLAMA3_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
                r'\s*[\r\n]+|\s+(?!\S)|\s+')


def some_tokenizers(texts, folder):
    """Tokenizers of the kinds that the page knows."""
    from tokenizers import Regex
    from tokenizer import load
    gpt2 = byte_level(texts, pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel())
    llama3 = byte_level(texts, pre_tokenizers.Split(Regex(LLAMA3_WORDS), 'isolated'),
                        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizers = [gpt2, llama3]
    sentencepiece = pytest.importorskip('sentencepiece')
    for i, options in enumerate([
            {'byte_fallback': True, 'remove_extra_whitespaces': False},
            {'user_defined_symbols': ['</h>']}]):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_prefix=str(folder / f'{i}'), vocab_size=700, model_type='bpe',
            normalization_rule_name='identity', minloglevel=2, **options)
        tokenizers.append(load(str(folder / f'{i}.model')))
    return tokenizers


def test_the_page_reads_texts_as_each_tokenizer_does(project, texts, browser):
    for number, tokenizer in enumerate(some_tokenizers(texts, project.path)):
        folder = random_checkpoint(project, tokenizer, n_layer=1, n_embd=16)
        page = Page(browser, export_page(project, folder))
        for text in TEXTS:
            page.run("""const settings = {max_new_tokens: 9, temperature: 1, top_p: 1, seed: 1}
                        story.prompt = []
                        setBusy(true)
                        request({type: 'story', prefix: '', opening: arguments[0], settings})""", text)
            ids = page.finished()['prompt']
            assert ids == [tokenizer.bos, *tokenizer.encode(text)], (number, text)
    assert browser.get_log('browser') == []


# -----------------------------------------------------------------------------
# the page


# it begins as a story with words in front, by TEMPLATE
EVIL = '<b>, <i>: </script><script>document.title = "hacked"</script><img src=x onerror="document.title=1"> &'
TEMPLATE = '{noun}, {verb}: {text}'


@pytest.fixture(scope='module')
def hostile(project, texts):
    """A page of a model that always generates the token EVIL, in a folder with such a name."""
    # without English, the letter `a` is not joined to the space before it, but Hindi words are
    tokenizer = train_tokenizer([text for text in texts if not text.isascii()], 600, [EVIL])
    evil_id = tokenizer.backend.token_to_id(EVIL)
    folder = random_checkpoint(project, tokenizer, norm='layernorm', bias=True, tie_weights=False)
    checkpoint = torch.load(folder / 'best.pt', weights_only=True)
    checkpoint['model']['norm.weight'][:] = 0
    checkpoint['model']['norm.bias'][:] = 1
    checkpoint['model']['head.weight'][evil_id] = 1
    counts = {unit: {'train': 9, 'val': 9} for unit in ('stories', 'tokens', 'bytes')}
    checkpoint |= {'config': {'dataset': EVIL}, 'best_val_loss': 1.5,
                   'meta': counts | {'tokenizer': EVIL, 'story_template': TEMPLATE}}
    renamed = folder.parent / EVIL.replace('/', '\u2215')
    save_checkpoint(str(renamed / 'best.pt'), checkpoint)
    return tokenizer, evil_id, export_page(project, renamed, '--language=hi', f'--start={EVIL}')


def test_hostile_texts_are_shown_as_text(hostile, browser):
    _, evil_id, path = hostile
    for width in (1200, 360):
        page = Page(browser, path, width)
        assert '∕script' in page.find('#lead').text and EVIL in page.find('#card').get_property('textContent')
        page.click('#card summary')
        story = page.write(max_new_tokens=3)
        assert story['tokens'] == [evil_id] * 3 and story['text'] == EVIL * 4
        assert page.find('#story').text == EVIL * 4 and page.find('#story .opening').text == EVIL
        page.click('#story .word')
        assert EVIL in page.find('#word li.taken').text
        assert page.run('return document.documentElement.scrollWidth <= innerWidth')
        assert browser.title.endswith('&: a storyteller') and not page.run('return document.images.length')
        assert page.run('return performance.getEntriesByType("resource").every(r => /^(data|blob):/.test(r.name))')
    assert browser.get_log('browser') == []
    html = path.read_text(encoding='utf-8')
    assert not re.search(r'(src|href)="(?!data:,)|@import|url\(|https?://(?!www\.w3)', html.replace(EVIL, ''))


def test_words_fill_the_story_template(hostile, browser):
    tokenizer, _, path = hostile
    page = Page(browser, path)
    assert [label.text for label in browser.find_elements('css selector', '#words label')] == ['noun', 'verb']
    prefix = [tokenizer.bos, *tokenizer.encode_prefixes(['बिल्ली, go: '])[0]]
    inputs = browser.find_elements('css selector', '#words input')
    page.wait('return wordInputs[1].value')
    assert [box.get_property('value') for box in inputs] == ['<b>', '<i>']  # the model invented them
    for box in inputs:
        box.clear()
    inputs[0].send_keys(' बिल्ली ')
    page.fill(opening='')
    page.click('#write')
    assert 'all the words' in page.find('#status').text and browser.switch_to.active_element == inputs[1]
    inputs[1].send_keys('go')
    story = page.write(max_new_tokens=1)
    assert story['prompt'] == prefix and story['text'] == EVIL and page.find('#words-used').text == 'बिल्ली · go'
    story = page.write(opening=' एक दिन', max_new_tokens=1)
    assert story['prompt'] == [tokenizer.bos, *tokenizer.encode('बिल्ली, go: एक दिन')]
    assert story['text'] == 'एक दिन' + EVIL


def test_write_stop_again_copy_save_and_look_at_words(project, tokenizer, browser):
    path = export_page(project, random_checkpoint(project, tokenizer, block_size=256))
    downloads = project.path / 'downloads'
    browser.execute_cdp_cmd('Browser.setDownloadBehavior', {'behavior': 'allow', 'downloadPath': str(downloads)})
    page = Page(browser, path)
    settings = {'temperature': 0.9, 'top_p': 0.8, 'max_new_tokens': 40, 'opening': 'एक दिन'}
    first = page.write(seed=5, **settings)
    page.click('#again')
    second = page.finished()
    assert page.find('[name=seed]').get_property('value') == '6'
    assert first['tokens'] != second['tokens'] and page.write(seed=5)['tokens'] == first['tokens']
    assert re.search(r'\d+ a second', page.find('#status').text)

    page.click('#save')
    WebDriverWait(browser, 60).until(lambda _: (downloads / 'story.txt').exists())
    assert (downloads / 'story.txt').read_text(encoding='utf-8') == first['text'] + '\n'
    page.find('#copy').click()
    page.wait('return status.textContent === "Copied."')
    box = page.find('#opening')
    box.clear()
    box.send_keys(Keys.CONTROL, 'v')
    assert box.get_property('value') == first['text'].replace('\r', '\n')

    # the probabilities are the model's own
    model = dequantized(path)
    probs = model(torch.tensor([first['prompt'] + first['tokens']]))[0].softmax(-1)
    place = len(first['prompt']) - 1
    for word in page.run('return story.words.map(word => word.tokens)'):
        for token in word:
            likeliest = probs[place].topk(5)
            for candidate, i, p in zip(token['candidates'], likeliest.indices, likeliest.values):
                assert candidate['probability'] == pytest.approx(p.item(), abs=1e-4)
                assert candidate['token'] == i or p == pytest.approx(likeliest.values[0].item(), abs=1)
            place += 1
    page.find('#story .word').click()
    assert '%' in page.find('#word').text
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.find('#word').is_displayed()
    page.run('story.words[0].node.focus()')
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert page.run('return story.words.findIndex(word => word.node === document.activeElement)') == 1
    assert page.find('#word').is_displayed()

    page.fill(max_new_tokens=5000, temperature=1.5)
    page.click('#write')
    page.wait('return story.tokens.length > 3')
    page.click('#stop')
    n = page.run('return story.tokens.length')
    assert n < 5000 and page.find('#status').text == 'Stopped.'
    page.write(max_new_tokens=5)
    assert page.run('return story.tokens.length') <= 5 and browser.get_log('browser') == []


# -----------------------------------------------------------------------------
# refusals


@pytest.mark.parametrize('change, message', [
    ({'pre_tokenizer': {'type': 'BertPreTokenizer'}}, 'BertPreTokenizer'),
    ({'decoder': None}, 'empty decoder'),
    ({'pre_tokenizer': {'type': 'Split', 'pattern': {'Regex': '(?<=a)b'}, 'behavior': 'Isolated', 'invert': False}},
     '(?<=a)b'),
    ('NaN', 'NaN')])
def test_what_the_page_cannot_compute_is_refused(project, tokenizer, change, message):
    folder = random_checkpoint(project, tokenizer, n_layer=1)
    checkpoint = torch.load(folder / 'best.pt', weights_only=True)
    if change == 'NaN':
        checkpoint['model']['norm.weight'][0] = float('nan')
    else:
        spec = json.loads(checkpoint['tokenizer']['spec']) | change
        checkpoint['tokenizer']['spec'] = json.dumps(spec)
    save_checkpoint(str(folder / 'best.pt'), checkpoint)
    assert message in project.refuses('export.py', f'--out_dir={folder}', '--format=page', '--examples=0')
    assert not (folder / 'page').exists()
