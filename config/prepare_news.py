# The bulletins of config/generate_news.py as tokens: all in lower case, and </h> behind a headline as one token.

source = 'data/news/chat.jsonl'
dataset = 'news'
lower_case = True
special_tokens = ['</h>']
vocab_size = 8192
