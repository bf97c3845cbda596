# The stories of the demo: Hindi, from the grammar, without a key or network. With few words and characters, a small
# model generates sensible stories after minutes of training.

language = 'hindi'
provider = 'grammar'
total = 20000
n_words = 30
n_characters = 1
out = 'data/demo/stories.jsonl'
