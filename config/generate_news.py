# Short news bulletins from a chat API, as in TinyNews: ten in a reply, on topics suggested by a group of seed words.
#     python generate_data.py config/generate_news.py --provider=mistral --total=1000 --num_workers=64
#     python prepare.py config/prepare_news.py

language = 'news'  # the folder's name; the language is English
words = ['group']  # lines of data/news/groups.txt; each group is used once per epoch
epochs = 200
total = 100_000  # prompts, about a million bulletins
examples = 3
items = 10
reply_format = 'html'
max_tokens = 3000
min_words = 25
max_words = 150
proper_nouns = False

template = '''
Write {items} short news bulletins in plain English, every one about something else, and each suggested by some of these words: {group}.

A bulletin is a headline and a text of 50 to 90 words in three to five plain sentences, which say what happened, where, to whom and what comes
next. Invent everything. Use no proper nouns whatever: no names of people, places, companies, countries, months or days, and no abbreviations.
Write "the mayor", "a coastal town" or "last week" instead. No capital letter stands inside a sentence, and none in a headline but its first.

Three bulletins, as examples of the form:

{examples}

Answer with {items} bulletins in that form, <h1>headline</h1><p>text</p>, one after the other, and nothing else: no numbers, no remarks.
'''
