# The bulletins of config/generate_news.py as tokens: in lower case, with </h> after a headline as one token.
#
#     python prepare.py config/prepare_news.py

source = 'data/news/stories.jsonl'
dataset = 'news'
lower_case = True
special_tokens = ['</h>']
vocab_size = 8192
