# The stories of the demo: Hindi, from the grammar, so that no key and no network is needed. In a small world, where the
# same few people meet in every story, a small model gets along after minutes.

language = 'hindi'
provider = 'grammar'
total = 20000
n_words = 30
n_characters = 1
out = 'data/demo/stories.jsonl'
