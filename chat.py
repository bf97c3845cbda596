"""
One request to an API that speaks OpenAI's /chat/completions, and what its reply says. collect.py sends any number of them.

    api = chat.connect('mistral')  # the key is read from MISTRAL_API_KEY, and shown nowhere
    print(chat.ask(api, [{'role': 'user', 'content': 'Tell a story.'}]))
"""

import email.utils
import itertools
import json
import os
import random
import re
import time

import requests

PROVIDERS = {  # name: address, the variable that holds the key, a model that writes well for little ('': --model says which)
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

PRICES = {  # US dollars for a million tokens in and out, as litellm 1.106.2 (November 2026) has them; --price_in, --price_out for others
    'gpt-6-luna': (0.10, 0.50), 'gpt-6-sol': (2.00, 10.00), 'gpt-5.4-nano': (0.20, 1.25), 'gpt-5.4-mini': (0.75, 4.50), 'gpt-4o-mini': (0.15, 0.60),
    'mistral-small-latest': (0.15, 0.60), 'mistral-large-latest': (0.50, 1.50), 'ministral-8b-latest': (0.15, 0.15),
    'gemini-3.1-flash-lite': (0.25, 1.50), 'gemini-3.8-flash': (0.75, 3.75),
    'openai/gpt-oss-120b': (0.15, 0.60), 'openai/gpt-oss-20b': (0.075, 0.30), 'Qwen/Qwen3.8-Flash': (0.15, 0.47),
}

# before the reply; only their end, on a line of its own, where the model's template has them begun. A tag that is quoted further on is none of theirs
THOUGHTS = re.compile(r'\s*<think>.*?(?:</think>|\Z)|.*?\n</think>\s*\n', re.S)

CONNECT_TIMEOUT = 10  # seconds
MAX_WAIT = 60  # seconds, the longest backoff after an error
PATIENCE = 3600  # seconds without any answer, or that a provider may ask to wait, before the run is ended


class Rejected(Exception):
    """Raised for a reply that will not do; its text is the reason, a few words that are counted."""


class Unanswered(SystemExit):
    """Raised by `request` when nothing came, not even a refusal."""


def connect(provider='', base_url='', model='', temperature=1.0, max_tokens=1024, extra=None, price_in=-1.0, price_out=-1.0, otherwise=''):
    """Who answers, and how -> a dict for `ask`, `request` and collect.py. Ends the program with one line when something is missing.

    provider: a name of PROVIDERS; with base_url it may be left out, and the key is then in CHAT_API_KEY, if one is needed.
    model: the provider's usual one when empty, or else the first that the server lists.
    temperature, max_tokens, extra (a dict): fields of every request.
    price_in, price_out: US dollars for a million tokens; from PRICES when negative.
    otherwise: what a user without a key can do instead, for the message.
    """
    if not base_url and provider not in PROVIDERS:
        raise SystemExit(f'there is no provider {provider!r}; there is: {", ".join(PROVIDERS)}; --base_url=http… for any other')
    url, variable, usual = PROVIDERS.get(provider, ('', 'CHAT_API_KEY', ''))
    url = (base_url or url).rstrip('/')
    if not re.fullmatch(r'https?://[^\s/@?#]+(/[^\s@?#]*)?', url):
        raise SystemExit('base_url begins with http:// or https:// and holds no name, password or ?…; a key is given in CHAT_API_KEY')
    key = os.environ.get(variable, '').strip() if variable else ''
    if not key and variable and not base_url:
        raise SystemExit(f'{variable} is not set; export {variable}=… with your key of {provider}' + (f', {otherwise}' if otherwise else ''))
    if not re.fullmatch(r'[!-~]*', key):
        raise SystemExit(f'{variable} holds something that is not a key (white space or letters outside ASCII)')
    api = {'provider': provider if provider in PROVIDERS else url, 'url': url, 'key': key, 'headers': {'Authorization': f'Bearer {key}'} if key else {}}
    if not (model or usual):
        listed = request(api, 'GET', '/models')
        models = [model for model in (listed.get('data') if isinstance(listed, dict) else listed) or [] if isinstance(model, dict)]
        usual = str(models[0].get('id') or '') if models else ''
        if not usual:
            raise SystemExit(f'{url} lists no model; say which with --model=…')
    model = model or usual
    if not (0 <= temperature < 1e6 and max_tokens > 0 and price_in < 1e9 and price_out < 1e9):  # nor is nan
        raise SystemExit('temperature is a number from 0, max_tokens from 1, price_in and price_out are US dollars a million tokens')
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise SystemExit(f'extra holds what JSON cannot ({e})') from None
    limit = 'max_completion_tokens' if provider == 'openai' else 'max_tokens'
    api['fields'] = {'model': model, 'temperature': temperature, limit: max_tokens} | (extra or {})
    local = not variable or re.match(r'https?://(localhost|127\.|\[::1\])', url)
    prices = PRICES.get(model, (0.0, 0.0) if local else None)
    if min(price_in, price_out) >= 0:
        prices = (price_in, price_out)
    elif max(price_in, price_out) >= 0:
        raise SystemExit('price_in and price_out go together')
    return api | {'model': model, 'max_tokens': max_tokens, 'prices': prices}


def fill(template, slots):
    """A prompt: the template with slots['name'] where it says {name}. A slot that there is not ends the program."""
    def value(slot):
        if slot[1] not in slots:
            raise SystemExit(f'the template has a slot {slot[0]}; there is: {", ".join(slots)}')
        return slots[slot[1]]
    return re.sub(r'\{(\w+)\}', value, template).strip()


def request(api, method, path, patience=10, **options):
    """One call of the API apart from the stream of prompts -> the JSON of its reply (or its bytes, for /content). It is tried again on errors for
    `patience` seconds; then Unanswered is raised. A refusal ends the program."""
    started = time.monotonic()
    for attempt in itertools.count():
        try:
            reply = requests.request(method, api['url'] + path, headers=api['headers'], timeout=(CONNECT_TIMEOUT, 600), allow_redirects=False,
                                     auth=lambda r: r, **options)  # an auth of our own keeps ~/.netrc from replacing the key
            if 200 <= reply.status_code < 300:
                return reply.content if path.endswith('/content') else reply.json()
            if is_refused(reply.status_code, reply.text):
                raise SystemExit(refusal(api, reply.status_code, reply.text, path))
            problem, wait = f'HTTP {reply.status_code}', seconds_to_wait(reply.headers)
        except ValueError:
            problem, wait = 'a reply that is not JSON', 0
        except requests.RequestException as e:
            problem, wait = type(e).__name__, 0
        wait = max(min(wait, MAX_WAIT), random.uniform(0, min(MAX_WAIT, 2 ** attempt)))
        if time.monotonic() - started + wait > patience:
            raise Unanswered(f'{api["url"]} does not answer ({problem}); is it running, and is the address right?')
        time.sleep(wait)


def ask(api, messages):
    """One request -> the text of the reply."""
    try:
        return text_of(request(api, 'POST', '/chat/completions', patience=60, json=api['fields'] | {'messages': messages}))
    except Rejected as e:
        raise SystemExit(f'{api["provider"]}: {e}') from None


def text_of(data, whole=True):
    """What the model says in a reply's JSON, without the thoughts before it; raises Rejected. whole: a text cut off at max_tokens will not do."""
    choice = data.get('choices') if isinstance(data, dict) else None
    if not (isinstance(choice, list) and choice and isinstance(choice[0], dict)):
        raise Rejected('no choices' if isinstance(data, dict) else 'broken reply')
    message = choice[0].get('message') if isinstance(choice[0].get('message'), dict) else {}
    content = message.get('content')
    if isinstance(content, list):  # some send parts
        content = ''.join(str(part.get('text') or '') for part in content if isinstance(part, dict))
    if message.get('refusal') or choice[0].get('finish_reason') == 'content_filter':
        raise Rejected('refused')
    if whole and choice[0].get('finish_reason') == 'length':
        raise Rejected('cut off at max_tokens')
    if not isinstance(content, str):
        raise Rejected('empty reply')
    thoughts = THOUGHTS.match(content)
    content = content[thoughts.end():] if thoughts else content
    if not content.strip():
        raise Rejected('empty reply')
    return content


# -----------------------------------------------------------------------------
# what replies say

def clean(api, text):
    """Text from outside, as it may be shown and written: without the key, unless that is a mere word, as local servers take."""
    return text.replace(api['key'], '***') if len(api['key']) >= 8 else text


def understood(status, text):
    """A reply's status and JSON (None when it is none); a status of 200 with an error inside becomes the error's own."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return status, None
    error = data.get('error') if isinstance(data, dict) else None
    if status == 200 and error:  # OpenRouter passes on what went wrong behind it in a reply of its own
        code = error.get('code') if isinstance(error, dict) else None
        status = code if isinstance(code, int) and code >= 400 else 502
    return status, data


def refusal(api, status, text, path=''):
    """What a provider says when it will not, in one line."""
    said = understood(status, text)[1]
    said = said[0] if isinstance(said, list) and said else said
    for name in ('error', 'message', 'detail'):
        said = said[name] if isinstance(said, dict) and said.get(name) else said
    message = ' '.join(clean(api, str(said or text)).split())[:300]
    hint = {401: '; is the key right?', 403: '; may this key do that?', 404: '' if path else f'; is {api["model"]!r} the name of a model there?'}
    return f'{api["url"] + path if path else api["provider"]} says {status}: {message}{hint.get(status, "")}'


def is_refused(status, text):
    """Whether the same request would be answered so again; anything else is worth another try."""
    if status == 429:
        return bool(re.search(r'insufficient.(quota|balance|credit|fund)', text, flags=re.I))
    return 0 < status < 500 and status not in (200, 408, 409, 425)


def is_filtered(status, text):
    """Whether a content filter took offence at this one prompt."""
    return status == 400 and bool(re.search(r'content.?(filter|policy|management)|safety', text, flags=re.I))


def seconds_to_wait(headers):
    """What Retry-After or the x-ratelimit-… headers of a reply ask for, in seconds; 0 when they ask for nothing."""
    waits = [0.0]
    after = headers.get('Retry-After', '').strip()
    if re.fullmatch(r'\d+(\.\d+)?', after):
        waits.append(float(after))
    elif after:
        try:
            waits.append(email.utils.parsedate_to_datetime(after).timestamp() - time.time())
        except (ValueError, OverflowError):
            pass  # neither form of the standard: as if it were not there
    units = {'ms': 0.001, 's': 1, '': 1, 'm': 60, 'h': 3600, 'd': 86400}
    for kind in ('', '-requests', '-tokens'):
        remaining, reset = (headers.get(f'x-ratelimit-{what}{kind}', '').strip() for what in ('remaining', 'reset'))
        if remaining in ('0', '0.0') and reset and re.fullmatch(r'(\d+(\.\d+)?(ms|[smhd]))*(\d+(\.\d+)?)?', reset):  # 6m0s, 20ms, 1.5, or a Unix time
            wait = sum(float(n) * units[unit] for n, unit in re.findall(r'(\d+(?:\.\d+)?)(ms|s|m|h|d|)', reset))
            waits.append(wait - time.time() if 1e9 < wait < 1e11 else wait / 1000 - time.time() if wait > 1e11 else wait)
    return max(waits)
