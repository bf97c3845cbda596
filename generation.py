"""
Telling: how a model goes on with stories, many side by side (generate), and what it keeps of them meanwhile (Cache).

Of each story only the newest token is read, as keys and values of the others are kept; one that ends makes room for the next;
and each has a random stream of its own, so that it does not depend on its neighbours.
"""

import inspect
import itertools

import torch
import torch.nn as nn
from torch.nn import functional as F

from model import GPT, attend

PAGE = 32  # columns of a paged cache that lie together


def paged_columns(at, n_head, keys):
    """Where attend_paged reads, in all layers alike, for stories of which `at` (B,) columns are filled, before the new one. P: pages of all of them.

    -> reader (P,): the head, of B * n_head, that reads each page; key_rows (P, d); empty (P, PAGE): -inf in columns that are not filled, else 0;
    value_rows (P * PAGE,); first (B * n_head,): where those of each head begin among the value_rows.
    """
    n_kv_head, n_pages, d, _ = keys.shape[-4:]
    n = (at // PAGE + 1).repeat_interleave(n_head)  # pages that each head of each story reads
    reader, first = torch.arange(len(n)).repeat_interleave(n), n.cumsum(0) - n
    page = torch.arange(len(reader)) - first[reader]
    empty = torch.zeros(len(page), PAGE, dtype=torch.promote_types(keys.dtype, torch.float32))
    empty[page[:, None] * PAGE + torch.arange(PAGE) > at[reader // n_head, None]] = -torch.inf
    page = (reader // (n_head // n_kv_head) * n_pages + page).int()[:, None]  # among the pages of all
    return reader, page * d + torch.arange(d).int(), empty, (page * PAGE + torch.arange(PAGE).int()).flatten(), (first * PAGE).int()


def attend_paged(q, k, v, keys, values, at, reader, key_rows, empty, value_rows, first):
    """attend() for the next token of many stories on a CPU, whose k and v go into column at[i] of story i's.

    What to read takes longer here than to compute. Nothing in torch reads a table of 16 bits as fast on a CPU as embedding_bag (FBGEMM), and attention
    is two of its sums: of the rows of keys, turned over, weighted by the query, and of the rows of values, weighted by the softmax of that. Of each
    story only the pages that it fills are read. keys: (B, n_kv_head, pages, d, PAGE); values: (B, n_kv_head, pages * PAGE, d).
    """
    B, H, _, d = q.shape
    rows = torch.arange(B)
    keys[rows, :, at // PAGE, :, at % PAGE], values[rows, :, at] = k[:, :, 0].type_as(keys), v[:, :, 0].type_as(values)
    query = (q * d**-0.5).type_as(keys).reshape(B * H, d).index_select(0, reader)
    weights = F.embedding_bag(key_rows, keys.view(-1, PAGE), mode='sum', per_sample_weights=query).to(empty.dtype) + empty
    largest = weights.new_full((B * H,), -torch.inf).scatter_reduce_(0, reader, weights.amax(-1), 'amax')
    weights.sub_(largest.index_select(0, reader)[:, None]).exp_()
    total = weights.new_zeros(B * H).scatter_add_(0, reader, weights.sum(-1))
    weights.div_(total.index_select(0, reader)[:, None])  # here and not behind the sum, which in float16 could overflow
    y = F.embedding_bag(value_rows, values.view(-1, d), first, mode='sum', per_sample_weights=weights.type_as(values).flatten())
    return y.view(B, H, 1, d)


class Cache:
    """The keys and values of n stories in rows, up to `size` columns of each, and how a GPT reads on with them.

    at: how many columns of each row are filled, 0 where there is no story or it is to be read anew. On a CPU keys and values are in float32, whose
    attention is quicker there than bfloat16's, but from 8 rows on in pages for attend_paged, and those of a model of 16 bits in float16, finer than bfloat16.
    """

    refills = True  # whether a story can begin while others go on

    def __init__(self, model, n, size):
        a, like = model.args, model.wte.weight
        d, n_pages, dtype = a['n_embd'] // a['n_head'], -(-size // PAGE), like.dtype
        self.model, self.head, self.at = model, model.head, [0] * n
        self.paged = like.is_cpu and n >= 8 and torch.backends.cpu.get_cpu_capability().startswith('AVX')
        if like.is_cpu:
            dtype = torch.float16 if self.paged and dtype.itemsize == 2 else torch.promote_types(dtype, torch.float32)
            if type(model.head) is nn.Linear:  # for few rows the product with the matrix turned over is up to three times as fast
                turned = model.head.weight.t().contiguous()
                self.head = lambda x: x @ turned
        shapes = [(n_pages, d, PAGE), (n_pages * PAGE, d)] if self.paged else [(size, d)] * 2
        self.keys, self.values = (torch.zeros(a['n_layer'], n, a['n_kv_head'], *shape, dtype=dtype, device=like.device) for shape in shapes)

    def read(self, stories, rows):
        """Read stories, lists of ids, into these rows -> the logits behind the last token of each, (len(rows), vocab_size)."""
        keys, values, lengths = self.keys, self.values, [len(story) for story in stories]
        longest, places, device = max(lengths), torch.tensor(rows, device=self.keys.device), self.keys.device
        ids = torch.tensor([story + [0] * (longest - len(story)) for story in stories], device=device)  # no token looks at those behind it

        def attend_and_keep(layer, q, k, v):
            values[layer][places, :, :longest] = v.type_as(values)
            if self.paged:
                for page, some in enumerate(k.type_as(keys).split(PAGE, dim=2)):
                    keys[layer][places, :, page, :, :some.size(2)] = some.mT
            else:
                keys[layer][places, :, :longest] = k.type_as(keys)
            return attend(q, k, v, 0.0)

        x = self.model.hidden(ids, cached=attend_and_keep)
        for row, length in zip(rows, lengths):
            self.at[row] = length
        return self.head(x[torch.arange(len(rows), device=device), torch.tensor(lengths, device=device) - 1])

    def step(self, tokens, rows):
        """Read the next token of every row -> the logits behind it of these rows, in which there are stories, (len(rows), vocab_size)."""
        keys, values, at, n = self.keys, self.values, torch.tensor(self.at, device=self.keys.device), max(self.at) + 1
        if self.paged:
            columns = paged_columns(at, self.model.args['n_head'], keys)

            def attend_cached(layer, q, k, v):
                return attend_paged(q, k, v, keys[layer], values[layer], at, *columns)
        else:
            alike = n == min(self.at) + 1
            column = (slice(None), slice(None), n - 1) if alike else (torch.arange(len(at), device=at.device), slice(None), at)
            mask = None if alike else torch.where(torch.arange(n, device=at.device) > at[:, None], -torch.inf, 0.0).type_as(keys)[:, None, None]

            def attend_cached(layer, q, k, v):
                keys[layer][column], values[layer][column] = k[:, :, 0].type_as(keys), v[:, :, 0].type_as(values)
                grouped = q.type_as(keys).reshape(len(q), keys.size(2), -1, q.size(-1))  # heads that share keys, as if they were tokens of one
                return F.scaled_dot_product_attention(grouped, keys[layer, :, :, :n], values[layer, :, :, :n], mask).reshape(q.shape)

        x = self.model.hidden(torch.tensor(tokens, device=at.device)[:, None], at[:, None], attend_cached)
        for row in rows:
            self.at[row] += 1
        return self.head(x[torch.tensor(rows, device=at.device), 0])

    def keep(self, rows):
        """Let go of all rows but these, which become the first ones; each stays where it is or comes from behind all of them."""
        for kind in (self.keys, self.values):
            for i, row in enumerate(rows):
                if i != row:
                    kind[:, i] = kind[:, row]
        self.keys, self.values, self.at = self.keys[:, :len(rows)], self.values[:, :len(rows)], [self.at[row] for row in rows]


class ForeignCache:
    """As Cache, of a Foreign: Transformers' own, which grows by a column for all stories alike, with empty ones at the left. read() begins it anew."""

    refills = False

    def __init__(self, model, n, size):
        self.theirs, self.at = model.theirs, [0] * n
        self.takes = inspect.signature(self.theirs.forward).parameters  # not all can be told positions, or to make the last logits only

    def read(self, stories, rows):
        import transformers
        longest, device = max(map(len, stories)), self.theirs.device
        padded = [[0] * longest for _ in self.at]
        for row, story in zip(rows, stories):
            padded[row][longest - len(story):], self.at[row] = story, longest
        lengths = dict(zip(rows, map(len, stories)))
        position = torch.arange(longest, device=device) - torch.tensor([[longest - lengths.get(row, 1)] for row in range(len(self.at))], device=device)
        self.keys, self.mask = transformers.DynamicCache(config=self.theirs.config), (position >= 0).long()
        return self.logits(torch.tensor(padded, device=device), position.clamp(min=0))[rows]

    def step(self, tokens, rows):
        position, self.mask = self.mask.sum(1, keepdim=True), F.pad(self.mask, (0, 1), value=1)
        for row in rows:
            self.at[row] += 1
        return self.logits(torch.tensor(tokens, device=position.device)[:, None], position)[rows]

    def logits(self, ids, positions):
        """Those of the last column, (B, vocab_size). ids, positions: (B, T)"""
        options = {name: value for name, value in (('position_ids', positions), ('logits_to_keep', 1)) if name in self.takes}
        return self.theirs(ids, attention_mask=self.mask, past_key_values=self.keys, use_cache=True, **options).logits[:, -1]

    def keep(self, rows):
        chosen = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        self.keys.batch_select_indices(chosen)
        self.mask, self.at = self.mask[chosen], [self.at[row] for row in rows]


class Story:
    """One that is being told: its ids so far, the first of them that the model still sees, a number from [0, 1) for each new one, and how many are left."""

    def __init__(self, index, prompt, seed, max_new_tokens):
        self.index, self.ids, self.begin, self.left = index, list(prompt), 0, max_new_tokens
        self.chances = iter(torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed)).numpy())

    def seen(self, block_size):
        """The ids that the model is to read: those that it sees already or, where they have become more than block_size, the last half."""
        if len(self.ids) - self.begin > block_size:
            self.begin = len(self.ids) - (block_size // 2 or 1)
        return self.ids[self.begin:]


@torch.inference_mode()
def generate(model, prompts, max_new_tokens, eos=None, seeds=None, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
             repetition_penalty=1.0, no_repeat_ngram=0, bad_words=(), side_by_side=0):
    """Continue prompts side by side: yields, a step at a time, the list of (prompt's index, new token id).

    model: a GPT or a Foreign. prompts: lists of ids, of any lengths from 1. Whenever a story fills block_size, the model goes on from its last half.
    eos: the id with which a story ends (it is yielded too). seeds: an int a prompt: a story depends on its own seed,
    prompt and the settings, not on its neighbours (but for rounding: sharp in float32).
    temperature: 0 takes the likeliest token. top_k (Fan et al. 2018), top_p (Holtzman et al. 2020) and min_p
    (Nguyen et al. 2024) narrow the choice, in this order. repetition_penalty: Keskar et al. 2019, prompt included.
    no_repeat_ngram: no n tokens in a row come twice (Paulus et al. 2018). bad_words: lists of ids that must not come.
    side_by_side: how many are told at once, 0: all; where one has ended the next begins (of a Foreign: where all have).
    """
    if not all(prompts):
        raise ValueError('generate wants prompts of at least one token each')
    block_size, longest = model.args['block_size'], max(map(len, prompts), default=0)
    seeds = range(len(prompts)) if seeds is None else seeds
    waiting = (Story(i, prompt, seed, max_new_tokens) for i, (prompt, seed) in enumerate(zip(prompts, seeds)) if max_new_tokens > 0)
    while stories := list(itertools.islice(waiting, side_by_side or len(prompts))):  # one a row of the cache, None where it has ended
        cache = (Cache if isinstance(model, GPT) else ForeignCache)(model, len(stories), min(block_size, longest + max_new_tokens))
        while stories:
            few = len(stories) / 16  # for less it is not worth while to read stories, or to copy rows
            unread = [row for row, story in enumerate(stories) if story and not cache.at[row]]
            reading = unread and (len(unread) + stories.count(None) >= few or not any(cache.at))
            now = unread if reading else [row for row, n in enumerate(cache.at) if n]
            told = [stories[row] for row in now]
            if reading:
                logits = cache.read([story.seen(block_size) for story in told], now)
            else:
                logits = cache.step([story.ids[-1] if story else 0 for story in stories], now)
            chance, tokens = torch.tensor([next(story.chances) for story in told], device=logits.device), []
            n = max(1, (2**26 if logits.is_cuda else 2**18) // logits.size(1))  # of which the probabilities stay in a CPU's cache
            for i in range(0, len(told), n):
                some = restrain(logits[i:i + n].float(), [story.ids for story in told[i:i + n]], repetition_penalty, no_repeat_ngram, bad_words)
                tokens += choose(some, chance[i:i + n], temperature, top_k, top_p, min_p).tolist()
            for row, story, token in zip(now, told, tokens):
                story.ids.append(token)
                story.left -= 1
                if token == eos or not story.left:
                    stories[row] = next(waiting, None) if cache.refills else None
                    cache.at[row] = 0
                elif cache.at[row] == block_size:
                    cache.at[row] = 0  # to be read anew, from its last half
            yield [(story.index, token) for story, token in zip(told, tokens)]
            if stories.count(None) >= few:
                alive = [row for row, story in enumerate(stories) if story]
                places, last = set(alive), [row for row in alive if row >= len(alive)]
                alive = [row if row in places else last.pop() for row in range(len(alive))]  # the last ones into the gaps: few are copied
                cache.keep(alive)
                stories = [stories[row] for row in alive]


def restrain(logits, history, repetition_penalty, no_repeat_ngram, bad_words):
    """Logits (B, vocab_size) with what must not or should rather not come after these histories (lists of ids) lowered."""
    if repetition_penalty == 1.0 and not no_repeat_ngram and not bad_words:
        return logits
    for row, ids in enumerate(history):
        if repetition_penalty != 1.0 and ids:
            seen = torch.tensor(sorted(set(ids)), device=logits.device)
            score = logits[row, seen]
            logits[row, seen] = torch.where(score > 0, score / repetition_penalty, score * repetition_penalty)
        banned = [word[-1] for word in bad_words if len(word) == 1 or ids[1 - len(word):] == list(word[:-1])]
        if no_repeat_ngram and len(ids) >= no_repeat_ngram:
            n = no_repeat_ngram - 1
            banned += [ids[i + n] for i in range(len(ids) - n) if ids[i:i + n] == ids[len(ids) - n:]]
        logits[row, banned] = -torch.inf
    return logits


def choose(logits, chance, temperature, top_k, top_p, min_p):
    """One token a row, by inverse transform sampling. logits: (B, vocab_size); chance: (B,) from [0, 1) -> (B,)"""
    if temperature < 1e-4:
        return logits.argmax(-1)
    probs = F.softmax(logits / temperature, dim=-1)
    if top_k or top_p < 1:
        likeliest = probs.topk(min(top_k or probs.size(-1), probs.size(-1))).values  # sorted
        share = likeliest / likeliest.sum(-1, keepdim=True)
        kept = (share.cumsum(-1) - share < top_p).sum(-1, keepdim=True)
        probs = probs * (probs >= likeliest.gather(-1, kept - 1))  # in the vocabulary's order: as likely ones change places by rounding
    if min_p:
        probs = probs * (probs >= min_p * probs.max(-1, keepdim=True).values)
    cumulative = probs.cumsum(-1)
    place = torch.searchsorted(cumulative, (chance * cumulative[:, -1])[:, None], right=True)
    return place.clamp(max=probs.size(-1) - 1).squeeze(-1)
