"""
The client for chat APIs: anything that speaks OpenAI's /chat/completions.

    api = chat.connect('mistral')   # reads the key from MISTRAL_API_KEY
    print(chat.ask(api, 'Write a story.'))

    with open_append('stories.jsonl') as f:   # many prompts at once; rows are appended as replies come
        chat.collect(api, ids, prompt, accept, f, total=1000)

Notable choices:
- Worker threads only send requests. The calling thread does everything else, so no state needs a lock.
- Errors are retried with exponential backoff and jitter; a Retry-After header is obeyed.
- The number of requests in flight adapts to the provider's rate limit.
- A prompt is given up after max_tries tries and goes to failed.jsonl.
- The key is read from the environment only, and never shown or written: all that a server sends passes `clean`.
- A reply has a limit of bytes and a deadline, however it is packed and however slowly it comes.
"""

import base64
import collections
import functools
import http.client
import io
import itertools
import json
import os
import queue
import random
import re
import signal
import sys
import threading
import time
import urllib.parse
import zlib
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz

import requests
import urllib3
from tqdm import tqdm

from files import append_rows, check, fail, fill_template, open_append, printable, read_jsonl

PROVIDERS = {  # name: (address, environment variable of the key, default model or '' = the first one that it lists)
    'openai': ('https://api.openai.com/v1', 'OPENAI_API_KEY', 'gpt-6-luna'),
    'mistral': ('https://api.mistral.ai/v1', 'MISTRAL_API_KEY', 'mistral-small-latest'),
    'gemini': ('https://generativelanguage.googleapis.com/v1beta/openai', 'GEMINI_API_KEY', 'gemini-3.1-flash-lite'),
    'groq': ('https://api.groq.com/openai/v1', 'GROQ_API_KEY', 'openai/gpt-oss-120b'),
    'together': ('https://api.together.xyz/v1', 'TOGETHER_API_KEY', 'Qwen/Qwen3.8-Flash'),
    'openrouter': ('https://openrouter.ai/api/v1', 'OPENROUTER_API_KEY', ''),
    'sarvam': ('https://api.sarvam.ai/v1', 'SARVAM_API_KEY', 'sarvam-30b'),
    'ollama': ('http://localhost:11434/v1', '', ''),
    'vllm': ('http://localhost:8000/v1', '', ''),
    'llama.cpp': ('http://localhost:8080/v1', '', ''),
}

PRICES = {  # US dollars per million tokens (input, output), from litellm 1.106.2, November 2026
    'gpt-6-luna': (0.10, 0.50),
    'gpt-6-sol': (2.00, 10.00),
    'mistral-small-latest': (0.15, 0.60),
    'mistral-large-latest': (0.50, 1.50),
    'ministral-8b-latest': (0.15, 0.15),
    'gemini-3.1-flash-lite': (0.25, 1.50),
    'gemini-3.8-flash': (0.75, 3.75),
    'openai/gpt-oss-120b': (0.15, 0.60),
    'openai/gpt-oss-20b': (0.075, 0.30),
    'Qwen/Qwen3.8-Flash': (0.15, 0.47),
}

CONNECT_TIMEOUT = 10  # seconds
MAX_REPLY = 1 << 24  # bytes, packed and unpacked; batches.py sets a larger one for its files
MAX_ANSWER = 1 << 19  # characters of the answer in a reply; patterns are slow on a longer one
MAX_BACKOFF = 60  # seconds
START_TIMEOUT = 15  # seconds; `collect` ends if the server has not answered a single prompt by then
OUTAGE_TIMEOUT = 3600  # seconds; `collect` ends after this time without an answer; also the limit of a Retry-After

MAX_COST_REACHED = 'max_cost is reached; the same command continues with a higher one'

ADVICE = {  # what to do about a reason, the first pattern that it matches; {url} is the base_url
    'max_completion_tokens': """set --extra="{'max_tokens': None, 'max_completion_tokens': 1024}\"""",
    'HTTP 400.*temperature': '--temperature=None leaves that field out',
    '^reasoning|^empty reply': """raise max_tokens, or shorten the reasoning: --extra="{'reasoning_effort': 'low'}\"""",
    '^cut off': 'raise max_tokens',
    '^a streamed reply': """try --extra="{'stream': False}\", or another server""",
    '^HTTP 40[13]': 'are the key and base_url right?',
    '^HTTP 404': 'is base_url right ({url})? If it is, is the model?',
    '^HTTP (3|405)|^a web page|^broken reply': 'is base_url right ({url})?',
    '^connection failed|^timeout': 'is the address right, also its http:// or https://, and does the server run?',
    '^connection broken': 'does base_url need https:// in place of http://, or the other way round?',
    '^certificate': 'if you trust the server, set SSL_CERT_FILE=… to a file with the certificate that signed its own',
    '^HTTP|^proxy': '',
    '': 'another model, prompt or limit may help; --dry_run=1 shows one reply',
}


class Rejected(Exception):
    """A reply that cannot be used. The text is the reason in a few words; reasons are counted."""


class NoAnswer(SystemExit):
    """The server could not be reached, or had an error that may pass. If not caught, it ends the script in one line."""


def connect(provider='', base_url='', model='', temperature=1.0, max_tokens=1024, extra=None,
            price_in=-1.0, price_out=-1.0, otherwise='or set --base_url=… for a server that needs none'):
    """Check the settings of an API -> a dict for `ask` and `collect`. A bad setting ends the script.

    provider: a name in PROVIDERS; or any other with base_url: then the key is in CHAT_API_KEY, if one is needed.
    model: if empty, the provider's default model, else the first one that the server lists.
    temperature, max_tokens, extra (a dict): fields of every request; those that are None are not sent.
    price_in, price_out: US dollars per million tokens; negative = from PRICES.
    otherwise: for the message about a missing key: what a user without one can do.
    """
    check(provider in PROVIDERS or base_url,
          f'there is no provider {provider!r}; there is: {", ".join(PROVIDERS)}; set --base_url=http… for any other')
    url, key_variable, default_model = PROVIDERS.get(provider, ('', 'CHAT_API_KEY', ''))
    url = re.sub(r'((/chat)?/completions|/responses|/models)?/*$', '', base_url or url)
    check(is_address(url),
          'base_url must begin with http:// or https://, name a host and port that can exist, and contain no user '
          'name, password or ?…; a key belongs in CHAT_API_KEY')
    key = os.environ.get(key_variable, '').strip()
    check(key or base_url or not key_variable,
          f'{key_variable} is not set; export {key_variable}=… with your key of {provider}, {otherwise}')
    check(re.fullmatch(r'[!-~]*', key),
          f'{key_variable} is not a key: it contains white space or letters outside ASCII')
    check((temperature or 0) >= 0 and (max_tokens is None or max_tokens >= 1),
          'temperature must be at least 0, max_tokens at least 1; None leaves the field out')
    try:
        json.dumps([temperature, extra], allow_nan=False)
    except (TypeError, ValueError) as e:
        check(False, f'temperature or extra cannot be written as JSON: {e}')
    check((price_in < 0) == (price_out < 0), 'price_in and price_out go together, in US dollars per million tokens')

    api = {'provider': provider if provider in PROVIDERS else url, 'url': url, 'key': key}
    api['model'] = model or default_model or first_model(api)
    length_field = 'max_completion_tokens' if provider == 'openai' else 'max_tokens'
    fields = {'model': api['model'], 'temperature': temperature, length_field: max_tokens} | (extra or {})
    api['fields'] = {key: value for key, value in fields.items() if value is not None}
    api['max_tokens'] = max_tokens or 8192  # for estimates of costs
    api['prices'] = PRICES.get(api['model'], None if key else (0.0, 0.0))  # None = unknown; no key = a free server
    if price_in >= 0:
        api['prices'] = (price_in, price_out)
    return api


def is_address(url):
    """Whether a text is an http or https address: a host, maybe a port and a path, and nothing else."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ''
        host.encode('idna')  # refuses an empty or too long part of a name
        requests.Request('GET', url).prepare()
    except ValueError:  # the errors of all three are ValueErrors
        return False
    return parts.scheme in ('http', 'https') and parts.port != 0 and not re.search(r'[\s@?#\\]', url)


def first_model(api):
    """The first model that the server lists."""
    text = call(api, 'GET', '/models')
    match parse_json(api, text):
        case {'data': [{'id': str(name)}, *_]}:
            return name[:200]
    reason = kind_of(text)
    fail(f'{api["url"]} lists no model ({reason}){advice(api, reason)} If it is, set --model=…')


def fill(template, slots):
    """A prompt: the template with slots['name'] in place of {name}."""
    for name in re.findall(r'\{(\w+)\}', template):
        check(name in slots, f'the template has a slot {{{name}}}; there is: {", ".join(slots)}')
    return fill_template(template, slots).strip()


# -----------------------------------------------------------------------------
# one request


class LimitedReader(io.RawIOBase):
    """What comes from a socket, up to MAX_REPLY bytes and within the socket's timeout in all."""

    def __init__(self, sock, file):
        self.sock = sock
        self.file = file
        self.deadline = time.monotonic() + sock.gettimeout()
        self.bytes_left = MAX_REPLY

    def readable(self):
        return True

    def readinto(self, buffer):
        seconds_left = self.deadline - time.monotonic()
        if seconds_left <= 0:
            raise TimeoutError
        self.sock.settimeout(seconds_left)  # else each packet would have the whole timeout
        n = self.file.readinto(buffer)
        self.bytes_left -= n
        if self.bytes_left < 0:
            raise OSError(TOO_LONG)
        return n

    def close(self):
        self.file.close()
        super().close()


class LimitedResponse(http.client.HTTPResponse):
    """A response that is read through a LimitedReader, from its status line on."""

    def __init__(self, sock, **options):
        super().__init__(sock, **options)
        self.fp = io.BufferedReader(LimitedReader(sock, self.fp.detach()))


class LimitedAdapter(requests.adapters.HTTPAdapter):
    """Lets requests read a LimitedResponse."""

    def get_connection_with_tls_context(self, *args, **options):
        pool = super().get_connection_with_tls_context(*args, **options)
        if pool.ConnectionCls.response_class != LimitedResponse:
            pool.ConnectionCls = type('Connection', (pool.ConnectionCls,), {'response_class': LimitedResponse})
        return pool


def open_session(api):
    """A requests.Session for `send`."""
    session = requests.Session()
    session.headers['Accept-Encoding'] = 'gzip'
    if api['key']:
        session.headers['Authorization'] = f'Bearer {api["key"]}'
    session.auth = lambda request: request  # without it, a password from ~/.netrc would replace the key
    session.mount('http://', LimitedAdapter())
    session.mount('https://', LimitedAdapter())
    return session


def send(session, api, method, path, timeout, **options):
    """One HTTP request -> (status, headers, text). Without a complete reply: (0, {}, the reason).

    session: what open_session returned. timeout: seconds for the whole reply.
    """
    try:
        with session.request(method, api['url'] + path, timeout=(CONNECT_TIMEOUT, timeout), allow_redirects=False,
                             stream=True, verify=session.verify, **options) as reply:
            # a Content-Length may name any size, so the body is read in pieces; it is unpacked here, within the limit
            body = b''.join(reply.raw.stream(1 << 16, decode_content=False))
        body = unpack(body, reply.headers.get('Content-Encoding', 'identity').lower())
    except (OSError, urllib3.exceptions.HTTPError, zlib.error) as e:  # all errors of requests are OSErrors
        reason = clean(api, connection_error(e))
        if reason.startswith('certificate') and session.verify is True and 'SSL_CERT_FILE' in os.environ:
            session.verify = os.environ['SSL_CERT_FILE']  # requests itself reads only REQUESTS_CA_BUNDLE
            return send(session, api, method, path, timeout, **options)
        return 0, {}, reason
    text = body.decode('utf-8-sig', 'replace')
    if reply.is_redirect:
        text = f'moved to {reply.headers["Location"]}'
    return reply.status_code, reply.headers, clean(api, text)


def unpack(body, encoding):
    """Undo a Content-Encoding. Raises OSError or zlib.error."""
    if encoding == 'identity':
        return body
    if encoding != 'gzip':
        raise zlib.error('packed in another way')
    decoder = zlib.decompressobj(wbits=31)  # of gzip
    body = decoder.decompress(body, MAX_REPLY + 1)
    if len(body) > MAX_REPLY:
        raise OSError(TOO_LONG)
    if not decoder.eof:
        raise zlib.error('incomplete')
    return body


TOO_LONG = 'reply too long'
ERRORS = {  # pattern in an error of requests -> the reason in a few words; '' = the text that matches
    'ProxyError|InvalidProxyURL': 'proxy error',
    TOO_LONG: '',
    r'^error\(': 'broken reply',  # of zlib
    r'certificate[^("\'\\]*': '',
    'Timeout': 'timeout',
    'NewConnection|NameResolution': 'connection failed',
    '': 'connection broken',
}


def connection_error(error):
    """Why a request got no reply, in a few words."""
    text = repr(error)
    for pattern, reason in ERRORS.items():
        if found := re.search(pattern, text):
            return reason or found[0].strip()


def advice(api, reason):
    """What to do about a reason, as the end of a message."""
    url = api['url']
    if not re.search(r'/v\d', url):
        url += f'; most servers need {url}/v1'
    text = next(ADVICE[pattern] for pattern in ADVICE if re.search(pattern, reason)).replace('{url}', url)
    if requests.utils.select_proxy(api['url'], requests.utils.get_environ_proxies(api['url'])):
        text += f' Note the proxy of {url.partition(":")[0].upper()}_PROXY or ALL_PROXY.'
    return f'; {text.strip()}' if text else ''


def call(api, method, path, timeout=20, **options):
    """One request without retries -> the text of the reply. A refusal ends the script; other errors raise NoAnswer."""
    with open_session(api) as session:
        status, _, text = send(session, api, method, path, timeout, **options)
    if is_refused(status, text):
        fail(refusal(api, status, text))
    if not 200 <= status < 300:
        raise NoAnswer(no_answer(api, status, text))
    return text


def no_answer(api, status, text):
    reason = f'HTTP {status}: {message_in(text)}' if status else text
    return f'{api["url"]} gives no answer ({reason}){advice(api, reason)}'


def request_body(api, prompt):
    """The JSON of a request. prompt: a text, or a list of messages."""
    if isinstance(prompt, str):
        prompt = [{'role': 'user', 'content': prompt}]
    return api['fields'] | {'messages': prompt}


def ask(api, prompt, timeout=120.0):
    """One prompt -> the text of the reply. Any error ends the script."""
    text = call(api, 'POST', '/chat/completions', timeout, json=request_body(api, prompt))
    try:
        return text_of(parse_json(api, text), body=text)
    except Rejected as e:
        fail(f'{api["provider"]}: {e}, in the reply {text[:200]!r}{advice(api, str(e))}')


# -----------------------------------------------------------------------------
# reading replies


def clean(api, value):
    """What a server sent -> the same without the key, in any of its encodings, and without terminal control sequences.

    value: a text, or JSON that contains texts. Everything passes this function before it is printed or stored.
    """
    if isinstance(value, str):
        return key_pattern(api['key']).sub('***', printable(value))
    if isinstance(value, list):
        return [clean(api, item) for item in value]
    if isinstance(value, dict):
        return {clean(api, name): clean(api, item) for name, item in value.items()}
    return value


@functools.cache
def key_pattern(key):
    """Finds a key: plain, with some letters as escapes of JSON, URLs or HTML, in hexadecimal and in base64."""
    if len(key) < 8:  # a shorter one is a mere word, as local servers accept
        return re.compile('(?!)')
    letters = []
    for char in key:
        code = ord(char)
        letters.append(rf'(?:\\{{0,9}}{re.escape(char)}|\\{{1,9}}u{code:04x}|%(?:25){{0,9}}{code:02x}'
                       rf'|&#0{{0,9}}{code};|&#x0{{0,9}}{code:x};)')
    forms = [''.join(letters), key.encode().hex()]
    for n_before in range(3):  # base64 packs three bytes into four letters, so it depends on what stands before
        packed = base64.b64encode(b' ' * n_before + key.encode()).decode()
        whole = packed[-(-n_before * 8 // 6):(n_before + len(key)) * 8 // 6]
        forms.append(re.escape(whole).replace(r'\+', '[-+]').replace('/', '[/_]'))
    return re.compile('|'.join(forms), re.I)


def parse_json(api, text):
    """The value of a JSON text from a server, cleaned; None if it is broken."""
    try:
        return clean(api, json.loads(text))
    except (ValueError, RecursionError):
        return None


def kind_of(body):
    """What a server sent in place of a chat completion, in a few words."""
    body = body[:2000]  # on a longer one, the patterns could take for ever
    if re.match(r'\s*<', body):
        return 'a web page'
    if re.match(r'\s*(?:(?:data|event|id|retry)?:|\{.*\}\s*\n\s*\{)|.*chat\.completion\.chunk', body):
        return 'a streamed reply'
    return 'broken reply'


def text_of(data, whole=True, body=''):
    """The answer in the JSON of a reply, without the model's reasoning. Raises Rejected.

    whole: reject an answer that was cut off at max_tokens. body: the reply as it came, to name what is wrong with it.
    """
    try:
        choice = data['choices'][0]
        message = choice['message']
        end = str(choice.get('finish_reason'))
        if message.get('refusal') or re.search('filter|safety', end, re.I):
            raise Rejected('refused')
        is_cut = re.search('length|max.tokens', end, re.I)
        content = message.get('content') or ''
        if isinstance(content, list):  # of parts, such as {'type': 'thinking', 'thinking': …}, {'type': 'text', …}
            content = ''.join(part['text'] for part in content if not part.get('thought')
                              and part.get('type', 'text') in ('text', 'output_text'))
        if len(content) > MAX_ANSWER:
            raise Rejected(TOO_LONG)
        answer = without_reasoning(content)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Rejected(kind_of(body)) from None
    if not answer.strip():
        if is_cut:
            raise Rejected('reasoning used up max_tokens')
        raise Rejected('reasoning without an answer' if message.get('content') else 'empty reply')
    if whole and is_cut:
        raise Rejected('cut off at max_tokens')
    return answer


# What begins and ends reasoning in a text; the beginning may be missing. There are
# - tags with such a name: <think>…</think>, [THINK], ◁think▷, <seed:think>, <|begin_of_thought|>…<|end_of_thought|>
# - channels: <|channel|>analysis<|message|>…<|channel|>final<|message|>, or <|channel>thought…<channel|>
# - what is left of channels when a server removes special tokens: analysis…assistantfinal
# - tags and headings that begin the answer: <answer>, [BEGIN FINAL RESPONSE], **Final answer**
NAME = r"""[^\s<>\[\]◁▷"'&;]{0,30}"""
STEM = ('think|thought|reason|reflect|analysis|scratch|draft|monolog|brainstorm|rational|unused9[45]|思考'
        '|(?<![a-z])(?:cot|plan|planning|inner|details)(?![a-z])')
OPEN = r'(?:[<\[◁]|&lt;)'
TAG = rf'{OPEN}{NAME}(?:{STEM}){NAME}(?:\s[^<>]{{0,200}}(?=>))?(?:[>\]▷]|&gt;)'
ANSWER = '(?:answer|response|output|solution|box)'
MARK = re.compile(rf'''
    (?P<end> (?={OPEN}{NAME}(?:/|(?<![a-z])end|suffix|unused95)) {TAG}
      | <\|channel\|>\s*final (?:[^{{}}]{{0,80}}?<\|message\|>)?
      | <channel\|> | (?-i:assistant\n?final) | \.\.\.\ ?done\ thinking\.?
      | [<\[]\|?(?:(?:begin|start)[\ _])?(?:of_)?(?:final[\ _])?{ANSWER}\|?[>\]]
      | (?m:^[*#]{{0,6}}\ ?(?:final\ answer|here\ is\ my\ response)[*:\ ]{{0,4}}$) )
    | {TAG} | <\|channel\|?> | \A\s*(?-i:(?:assistant)?analysis(?=[\w\n<]|\ [A-Z<])|thought\n)
''', re.I | re.X)
# what may follow an answer: </answer>, [END FINAL RESPONSE], <|im_end|>
AFTER_ANSWER = re.compile(
    rf'(?:\s{{0,9}}(?:</(?:s|{ANSWER})>|\[end [a-z ]{{1,20}}\]|<[|｜][^<>]{{1,30}}[|｜]>)){{1,9}}\Z', re.I)


def without_reasoning(text):
    """The part of a text after the last mark of reasoning; '' if that begins reasoning, so that no answer follows.

    A mark inside a JSON object, or alone in quotation marks, is part of the answer.
    """
    start = 0  # of the answer
    objects = list(json_objects(text))
    for mark in MARK.finditer(text):
        around = text[max(0, mark.start() - 1):mark.start()] + text[mark.end():mark.end() + 1]
        is_quoted = around in ('""', "''", '``', '“”', '‘’', '«»')
        if not is_quoted and not any(begin < mark.start() < end for _, begin, end in objects):
            start = mark.end() if mark['end'] else len(text)
    return AFTER_ANSWER.sub('', text[start:].strip())


def break_marks(text):
    """A text in which `without_reasoning` finds no mark: < /think> for </think>."""
    return MARK.sub(lambda mark: re.sub(r'(\S)', r'\1 ', mark[0], count=1), text)


def json_objects(text, **options):
    """Yield the JSON objects in a text with anything around them, and those inside them -> (dict, start, end).

    Line breaks in strings are allowed. The last 200 braces are tried. options: for json.JSONDecoder.
    """
    decoder = json.JSONDecoder(strict=False, **options)
    for start in [brace.start() for brace in re.finditer('{', text)][-200:]:
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        yield found, start, end


def status_of(status, data):
    """The status of a reply. Some servers send errors with status 200 and the real one as a code in the JSON."""
    match data:
        case {'error': {'code': code}} if status == 200:
            return int(code) if re.fullmatch('[1-9][0-9]{2}', str(code)) else 503  # a word, such as server_busy
    return status


def is_refused(status, text):
    """Whether the provider refuses the request, so that a retry would not help."""
    if status >= 400 and re.search('insufficient.(quota|credit|balance|fund)|credit balance', text, re.I):
        return True
    return 300 <= status < 500 and status not in (408, 409, 429)


def refusal(api, status, text):
    """One line that says why a request was refused."""
    message = message_in(text)
    return f'{api["provider"]} says {status}: {message}{advice(api, f"HTTP {status} {message}")}'


def message_in(text):
    """The message in the JSON of an error, else the beginning of the text."""
    found = re.search(r'"message":\s*"(.*?[^\\])"', text)  # the first one, wherever it is in the JSON
    return ' '.join((found[1] if found else text).split())[:300]


def retry_after(headers):
    """Seconds to wait before the next request, by a reply's Retry-After header (seconds or a date); 0 without one."""
    value = headers.get('Retry-After', '')
    try:
        date = parsedate_tz(value)
        seconds = mktime_tz(date) - time.time() if date else float(value)
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), OUTAGE_TIMEOUT)


# -----------------------------------------------------------------------------
# many requests


def failed_path(out):
    return os.path.join(os.path.dirname(out), 'failed.jsonl')


def finished(out, spent):
    """Yield the rows of `out` and, of failed.jsonl beside it, the prompts of `out` that were given up.

    spent: a list [input tokens, output tokens, US dollars], to which the costs of all rows are added.
    """
    for path in (out, failed_path(out)):
        if not os.path.exists(path):
            continue
        for row in read_jsonl(path):
            if not isinstance(row, dict):
                fail(f'{path} contains {row!r:.60}, which this script does not write; use another file')
            if path != out and row.get('out') != os.path.basename(out):
                continue
            for i, name in enumerate(('prompt_tokens', 'completion_tokens', 'cost')):
                number = row.get(name) or 0
                if not isinstance(number, (int, float)) or not 0 <= number < 1e15:
                    fail(f'{path}: {name} is {number!r:.40}; it must be a number of at least 0')
                spent[i] += number
            if path == out or 'id' in row:  # a row without id only keeps account of costs
                yield row


def too_many_failed(n_failed, total, max_failed, out, unit='stories'):
    """One line for files.fail if more than max_failed (a fraction) of all prompts were given up, else ''."""
    if n_failed <= max_failed * total:
        return ''
    return (f'{n_failed:,} of {total:,} {unit} were given up, more than max_failed={max_failed}; '
            f'delete {failed_path(out)} to try them again')


def collect(api, ids, prompt, accept, file, *, total, n_done, n_failed, spent, num_workers, timeout, max_tries,
            max_cost, max_failed, unit='stories', batch=False, whole=True, done=()):
    """Send the prompt of every id and append the accepted replies to `file`, which files.open_append opened.

    The rows of an id are written at once, each with the model's name; the first one has prompt_tokens,
    completion_tokens and cost of all tries. Prompts that are given up go to failed.jsonl beside the file.

    ids: iterable of the ids that are not done, read as needed.
    prompt(id) -> a text, or messages. accept(id, text) -> rows (a list of dicts), or raises Rejected.
    total, n_done: the number of all ids, and of those done already.
    n_failed: how many of the n_done were given up. max_failed: the fraction of all ids that may be.
    spent: what earlier runs cost: [input tokens, output tokens, US dollars], from `finished`.
    timeout: seconds for a reply. max_tries: tries of an id; an error and a rejected reply are one each.
    max_cost: US dollars for all runs on this file, 0 = no limit. A reply without usage counts as max_tokens.
    batch: use the Batch API. done: the ids that are done already, for its open batches.
    whole: reject replies that were cut off at max_tokens.
    -> '' if every id is done and at most max_failed were given up; else one line for files.fail: Ctrl-C, max_cost, a
    refusal, a server that does not answer, replies that cannot be used. All replies until then are written.
    """
    check(1 <= num_workers <= 10_000 and 0 < timeout <= 86_400 and max_tries >= 1 and max_cost >= 0
          and 0 <= max_failed <= 1,
          'num_workers must be from 1 to 10,000, timeout more than 0 seconds and at most a day, '
          'max_tries at least 1, max_cost at least 0, max_failed from 0 to 1')
    check(api['prices'] or not max_cost,
          f'max_cost needs the price of {api["model"]}: --price_in=… --price_out=… in US dollars per million tokens')
    state_path = os.path.splitext(file.name)[0] + '.batches.json'
    check(batch or not os.path.exists(state_path),
          f'{state_path} lists batches that are paid for; --batch=True fetches them')
    if batch:
        import batches
        all_batches = batches.Batches(state_path, api, ids, done)
        if api['prices']:
            api = api | {'prices': [price / 2 for price in api['prices']]}
    bar = tqdm(total=total, initial=n_done, desc=file.name, unit=f' {unit}', dynamic_ncols=True, miniters=0)
    run = Run(api, prompt, accept, file, bar, unit, whole, max_tries, max_cost, spent)
    try:
        if batch:
            all_batches.collect(run)
        else:
            send_all(run, ids, min(num_workers, total), timeout)
    finally:
        run.close()
    return run.problem or too_many_failed(n_failed + run.n_failed, total, max_failed, file.name, unit)


@dataclass
class Job:
    """An id and its tries so far."""
    id: object
    tries: int = 0
    errors: int = 0  # in a row, for the backoff
    tokens: tuple = (0, 0)  # input and output tokens of all tries
    reply: str = ''  # the last one
    sent_at: float = 0.0
    retry_at: float = 0.0


@dataclass
class Run:
    """One call of `collect`: writes rows, counts tokens and costs, shows the progress."""
    api: dict
    prompt: object
    accept: object
    file: object
    bar: tqdm
    unit: str
    whole: bool
    max_tries: int
    max_cost: float
    spent: list  # input tokens, output tokens and US dollars, earlier runs included
    run_cost: float = 0.0  # US dollars of this run
    n_answers: int = 0
    n_rows: int = 0
    n_failed: int = 0
    failures: collections.Counter = field(default_factory=collections.Counter)  # of tries: reason and number
    # of the last prompts: why each was given up, or '' if its reply was accepted
    outcomes: collections.deque = field(default_factory=lambda: collections.deque(maxlen=100))
    failed_reply: str = ''  # of the last try that failed
    problem: str = ''  # why nothing more is sent

    def cost(self, tokens):
        """US dollars for [input tokens, output tokens]."""
        price_in, price_out = self.api['prices'] or (0, 0)
        return (tokens[0] * price_in + tokens[1] * price_out) / 1e6

    def spend(self, tokens):
        """Count [input tokens, output tokens] and their cost."""
        cost = self.cost(tokens)
        self.run_cost += cost
        self.spent = [sum(pair) for pair in zip(self.spent, [*tokens, cost])]

    def can_afford(self, n):
        """Whether n requests more, those in flight included, stay below max_cost if each costs the mean so far."""
        mean = self.cost([self.api['max_tokens']] * 2)
        if self.n_answers:
            mean = self.run_cost / self.n_answers
        return not self.max_cost or self.spent[2] + n * mean <= self.max_cost + 1e-9  # rounding

    def handle_answer(self, job, data, text):
        """Write the rows of a reply with status 200, or count it as rejected -> whether the job is done.

        data: the reply's JSON. text: the reply as it came.
        """
        self.n_answers += 1
        self.count_tokens(job, data)
        job.reply = text
        try:
            job.reply = text_of(data, self.whole, text)
            rows = self.accept(job.id, job.reply)
        except Rejected as e:
            return self.count_failure(job, str(e))
        tokens = job.tokens
        for row in rows:
            # what was decoded from the reply: JSON in JSON can hide the key or a control character
            row |= {name: clean(self.api, row[name]) for name in ('text', 'notes') if name in row}
            row |= {'model': self.api['model']} | self.usage(tokens)
            tokens = [0, 0]  # the first row has the tokens of all
        append_rows(self.file, *rows)
        self.n_rows += len(rows)
        self.outcomes.append('')
        self.bar.update()
        return True

    def count_tokens(self, job, data):
        tokens = [0, self.api['max_tokens'] if self.max_cost else 0]  # if the server does not count, or counts wrong
        match data:
            case {'usage': {'prompt_tokens': int(n_in), 'completion_tokens': int(n_out)}}:
                if 0 <= min(n_in, n_out) <= max(n_in, n_out) < 1e9:
                    tokens = [n_in, n_out]
        job.tokens = [sum(pair) for pair in zip(job.tokens, tokens)]
        self.spend(tokens)

    def usage(self, tokens):
        """Token counts as the fields of a row."""
        fields = {'prompt_tokens': tokens[0], 'completion_tokens': tokens[1]}
        if self.api['prices']:
            fields['cost'] = round(self.cost(tokens), 7)
        return fields

    def handle_error(self, job, status, text, outage):
        """Count an error -> whether the job is given up. A fault of the key or the model ends the run."""
        reason = f'HTTP {status}' if status else text
        job.reply = text
        if is_refused(status, text):
            self.failures[reason] += 1
            message = refusal(self.api, status, text)
            if self.bar.n == 0 or outage or status in (401, 402, 404, 429):
                self.problem = self.problem or message
                return False
            self.give_up(job, message)
            return True
        if status != 429:
            job.errors += 1
            job.retry_at = time.monotonic() + random.uniform(0, min(MAX_BACKOFF, 2 ** job.errors))
        prompt_may_be_the_cause = status != 429 and (status or self.n_answers) and not outage
        return self.count_failure(job, reason, prompt_may_be_the_cause)

    def count_failure(self, job, reason, is_try=True):
        """Count a request that failed -> whether it was the last try of the job, so that the job is given up."""
        self.failures[reason] += 1
        self.failed_reply = job.reply
        job.tries += is_try
        if job.tries < self.max_tries:
            return False
        self.give_up(job, reason)
        return True

    def give_up(self, job, reason):
        self.failed_reply = job.reply
        self.write_failed({'id': job.id, 'reason': reason, 'reply': job.reply[:10_000]}, job.tokens)
        self.n_failed += 1
        self.outcomes.append(reason)
        self.bar.update()

    def check_success(self):
        """End the run if it cannot succeed: the first 20, or more than 50 of the last 100 prompts failed."""
        reasons = collections.Counter(filter(None, self.outcomes))
        n_failed = reasons.total()
        if self.problem or n_failed < 20 or (n_failed <= 50 and self.n_rows):
            return
        reason = reasons.most_common(1)[0][0]
        self.problem = (
            f'{n_failed} of the last {len(self.outcomes)} prompts failed (delete {failed_path(self.file.name)} to '
            f'try them again), mostly by: {reason}, as in {self.failed_reply[:200]!r}{advice(self.api, reason)}')

    def write_failed(self, row, tokens):
        out = self.file.name
        with open_append(failed_path(out), wait=True) as f:  # several shards may share it
            append_rows(f, row | {'out': os.path.basename(out)} | self.usage(tokens))

    def show(self, status):
        """Refresh the progress bar; tqdm draws it at most ten times a second."""
        self.bar.set_postfix_str(f'{status}, {self.summary()}', refresh=False)
        self.bar.update(0)

    def log(self, line):
        self.bar.write(line, file=sys.stderr)

    def summary(self):
        """'1,200 tokens in, 3,600 out: $0.12; rejected replies and errors: 12 too short, 3 HTTP 500'"""
        n_in, n_out, cost = self.spent
        price = f'${cost:,.2f}' if self.api['prices'] else 'price unknown, see --price_in'
        text = f'{n_in:,} tokens in, {n_out:,} out: {price}'
        if self.failures:
            reasons = [f'{count:,} {reason}' for reason, count in self.failures.most_common()]
            text += f'; rejected replies and errors: {", ".join(reasons)}'
        return text

    def close(self):
        self.bar.close()
        failed = f', {self.n_failed:,} given up, see failed.jsonl beside it' if self.n_failed else ''
        print(f'{self.n_rows:,} {self.unit} added to {self.file.name}{failed}')
        print(self.summary())


# -----------------------------------------------------------------------------
# sending


class RateLimit:
    """How many requests may be in flight, and when the next one may go.

    - `max_in_flight` grows by 5 % in the time of one reply and shrinks by 2 % at each 429. So some 429s, as of an
      overloaded provider, do not slow a run down, and many do.
    - While it is below the number of workers, requests go at even intervals: a provider that accepts a steady flow may
      refuse the same number of requests in a burst.
    """

    def __init__(self, num_workers):
        self.num_workers = num_workers
        self.max_in_flight = num_workers
        self.latency = 1.0  # seconds, of the latest answer
        self.next_at = 0.0  # time when the next request may go

    def allows(self, in_flight):
        return in_flight < int(self.max_in_flight) and time.monotonic() >= self.next_at

    def pause(self, seconds):
        self.next_at = max(self.next_at, time.monotonic() + seconds)

    def after_sending(self):
        if self.max_in_flight < self.num_workers:
            self.pause(self.latency / self.max_in_flight)

    def after_answer(self, latency):
        self.latency = latency
        self.max_in_flight = min(self.num_workers, self.max_in_flight + 0.05)

    def after_429(self):
        self.max_in_flight = max(1, self.max_in_flight * 0.98)


def run_worker(api, timeout, tasks, replies):
    """A worker thread: send the requests of the queue `tasks` one by one; put the replies into the queue `replies`."""
    job = None
    try:
        with open_session(api) as session:  # keeps its connection open
            for job, body in iter(tasks.get, None):  # until None comes
                reply = send(session, api, 'POST', '/chat/completions', timeout, json=body)
                replies.put((job, reply))
    except Exception as e:  # a bug: the calling thread raises it, instead of waiting for ever
        replies.put((job, e))


def send_all(run, ids, num_workers, timeout):
    """Send the prompts of all ids until each is done, or run.problem says why nothing more is sent.

    An outage is more errors in a row than there are workers, plus 8 (with one worker, its first error is no outage).
    In an outage, errors do not count as tries of a prompt, and no new prompt is sent until a retry gets an answer.
    """
    tasks = queue.SimpleQueue()  # to the workers: (job, JSON of the request), or None to end
    replies = queue.SimpleQueue()  # from the workers: (job, (status, headers, text)), or (job, a bug's exception)
    rate_limit = RateLimit(num_workers)
    new_jobs = map(Job, ids)
    waiting = []  # jobs to send: retries and at most one new job
    in_flight = 0
    errors_in_a_row = 0
    last_answer = time.monotonic()
    status = None  # of the last reply; 0 = none came
    text = ''  # of the last reply, or why none came
    said_slow = False

    def on_signal(*_):
        if run.problem:
            raise KeyboardInterrupt
        run.problem = 'stopped; the same command continues'
        run.log(f'finishing the {in_flight} requests in flight; again to stop at once')

    def check_silence():
        max_silence = OUTAGE_TIMEOUT if run.n_answers or status == 429 else START_TIMEOUT
        if not run.problem and time.monotonic() - last_answer > max_silence:
            run.problem = no_answer(run.api, status, text)

    handlers = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    for _ in range(num_workers):
        threading.Thread(target=run_worker, args=(run.api, timeout, tasks, replies), name='chat worker',
                         daemon=True).start()
    try:
        while True:
            # 1) send what may be sent now: retries that are due, then new prompts
            run.check_success()
            outage = errors_in_a_row > num_workers + 8
            while not run.problem:
                waiting.sort(key=lambda job: job.retry_at)
                if not waiting or (waiting[0].retry_at > time.monotonic() and not outage):
                    waiting[:0] = itertools.islice(new_jobs, 1)  # the next new one; its retry_at is 0
                if not waiting or waiting[0].retry_at > time.monotonic() or not rate_limit.allows(in_flight):
                    break
                if not run.can_afford(in_flight + 1):
                    if in_flight == 0:
                        run.problem = MAX_COST_REACHED
                    break
                job = waiting.pop(0)
                job.sent_at = time.monotonic()
                tasks.put((job, request_body(run.api, run.prompt(job.id))))
                rate_limit.after_sending()
                in_flight += 1
            if in_flight == 0 and (run.problem or not waiting):
                break

            # 2) wait for a reply
            pause = rate_limit.next_at - time.monotonic()
            run.show(f'{in_flight} in flight' + (f', next in {pause:.0f} s' if pause > 2 else ''))
            try:
                job, reply = replies.get(timeout=pause if 0 < pause < 0.1 else 0.1)
            except queue.Empty:
                if in_flight == 0 and status == 0:
                    check_silence()
                is_slow = status is None and time.monotonic() - last_answer > START_TIMEOUT
                if is_slow and timeout > START_TIMEOUT and not said_slow:
                    said_slow = True  # a local model may need minutes for its first reply
                    run.log(f'no reply after {START_TIMEOUT:g} s, waiting for up to timeout={timeout:g} s')
                continue
            in_flight -= 1
            if isinstance(reply, Exception):
                raise reply
            status, headers, text = reply
            data = parse_json(run.api, text)
            status = status_of(status, data)
            rate_limit.pause(retry_after(headers))

            # 3) write the rows of an answer; give up, retry or wait after an error
            if status == 200:
                last_answer = time.monotonic()
                errors_in_a_row = job.errors = 0
                rate_limit.after_answer(last_answer - job.sent_at)
                is_done = run.handle_answer(job, data, text)
            else:
                if status == 429:
                    rate_limit.after_429()
                else:
                    errors_in_a_row += 1
                is_done = run.handle_error(job, status, text, outage)
                check_silence()
            if not is_done:
                waiting.append(job)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for _ in range(num_workers):
            tasks.put(None)
        for job in waiting:
            if any(job.tokens):
                run.write_failed({'reason': 'tries of an unfinished prompt'}, job.tokens)
